"""The campaign file: the physics a user asks for, and nothing about machines.

Every field says its unit; an unknown key is an error with a suggestion. Machines, queues and the
database live in the site file (:mod:`otf_workflows.settings`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from otf_workflows.schemas import Frame
from otf_workflows.types import CellMotion


class Section(BaseModel):
    """Base of all sections: frozen values, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Seeding(Section):
    """Frames labelled in cycle 0 beside those that walkers find."""

    n_frames: int = Field(4, ge=0, description="Rattled and strained copies of the structure.")
    rattle_A: float = Field(0.05, ge=0, le=0.5, description="Standard deviation of the rattle (Å).")
    strain: float = Field(0.03, ge=0, le=0.2, description="Largest linear strain, both signs.")


class Start(Section):
    """One more structure that walkers start from; its keys act in the order they stand here."""

    file: Frame | None = Field(
        None, description="Another structure file, taken as it is; the campaign's own without."
    )
    vacancy: str | None = Field(None, description="Element of which one random atom is removed.")
    strain: float | None = Field(
        None, ge=-0.2, le=0.2, description="Linear strain of all three lattice vectors."
    )
    rattle_A: float | None = Field(
        None, gt=0, le=0.5, description="Standard deviation of random displacements (Å)."
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.file is self.vacancy is self.strain is self.rattle_A is None:
            msg = "a start needs at least one of: file, vacancy, strain, rattle_A"
            raise ValueError(msg)
        return self


MIN_BIASED_STEPS = 200
"""Least length of a segment with a bias, half of which then acts."""


class Ramp(Section):
    """Heating, cooling or compressing while walkers run.

    Temperature and pressure follow from the step of a walker alone, so a walker that is rewound
    takes them back as well, and goes on over all cycles as one trajectory.
    """

    to_K: float | None = Field(
        None, gt=0, le=10_000, description="Temperature in the end (K); null to keep it."
    )
    to_GPa: float | None = Field(None, description="Pressure in the end (GPa); null to keep it.")
    steps: int = Field(
        ge=1, description="MD steps until then, counted over all cycles; afterwards it is held."
    )
    back: bool = Field(
        False, description="Instead of holding, return over as many steps, again and again."
    )

    @model_validator(mode="after")
    def _goes_somewhere(self) -> Self:
        if self.to_K is None and self.to_GPa is None:
            msg = "a ramp needs an end: to_K, to_GPa or both"
            raise ValueError(msg)
        return self

    def progress(self, step: int) -> float:
        """Return how far the ramp is at an MD step, from 0 (start) to 1 (end)."""
        share = step / self.steps
        return 1 - abs(share % 2 - 1) if self.back else min(share, 1.0)


class Bias(Section):
    """Pushing some walkers to where the model is unsure, for events too rare for plain MD.

    It acts as soon as the model has been fitted to labels, after the first 100 steps of a segment,
    which say how large the spread is in thermal motion. Biased walkers only look for frames: their
    checks are in no average, and random audit frames come from the others.
    """

    strength_eV: float = Field(
        gt=0, le=10, description="The most that a barrier is lowered by (eV), whole cell."
    )
    width_eV: float | None = Field(
        None,
        gt=0,
        description="Spread of the energy at which 63 % of that are reached (eV, whole cell); "
        "null for three times the thermal one, growing as the walker goes.",
    )
    walkers: int = Field(
        1, ge=1, description="So many of walkers_per_temperature, the last ones, are biased."
    )


class Exploration(Section):
    """MD with the current potential."""

    temperatures_K: list[float] = Field(
        [300.0, 600.0], min_length=1, description="One group of walkers for each (K)."
    )
    pressure_GPa: float | None = Field(
        None, description="Constant pressure (GPa) if given, else constant volume."
    )
    cell: CellMotion = Field(
        CellMotion.ISOTROPIC, description="What a pressure changes: the volume, or the shape too."
    )
    ramp: Ramp | None = Field(None, description="Let temperature or pressure change on the way.")
    bias: Bias | None = Field(None, description="Push some walkers to where the model is unsure.")
    walkers_per_temperature: int = Field(1, ge=1, le=1000, description="Walkers, seeds differ.")
    walkers_per_job: int = Field(
        1,
        ge=1,
        le=64,
        description="So many walkers share a job and its forward passes. On a CPU that pays for "
        "cells of up to about 16 atoms, when there are more walkers than md workers.",
    )
    supercell: tuple[int, int, int] = Field((1, 1, 1), description="Repeats of the structure.")
    cell_shapes: int = Field(
        1,
        ge=1,
        le=12,
        description="Supercells of that size in so many shapes, in which walkers, seeds and "
        "production audits take turns: small labels then show more of what a large cell needs.",
    )
    starts: list[Start] = Field(
        [], max_length=50, description="Further structures that walkers and seeds take turns in."
    )
    steps_per_cycle: int = Field(500, ge=10, description="MD steps of each walker in a cycle.")
    timestep_fs: float = Field(2.0, gt=0, le=10, description="MD time step (fs).")
    friction_per_fs: float = Field(0.01, gt=0, le=1, description="Langevin friction (1/fs).")
    check_every: int = Field(10, ge=1, description="Read the uncertainty every so many steps.")
    early_checks: bool = Field(
        default=True,
        description="Also read it as soon as the latent novelty, free at each step, rises.",
    )
    min_distance_ratio: float = Field(
        0.6, gt=0, lt=1, description="Stop if two atoms are nearer than this × covalent radii."
    )
    max_volume_ratio: float = Field(1.5, gt=1, description="Stop beyond this volume ratio.")

    @field_validator("temperatures_K")
    @classmethod
    def _positive(cls, value: list[float]) -> list[float]:
        for temperature in value:
            if not 0 < temperature <= 10_000:
                msg = f"a temperature must be above 0 and at most 10000 K, not {temperature:g}"
                raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _barostat(self) -> Self:
        _check_pressure(self.pressure_GPa, self.cell)
        if self.pressure_GPa is None and self.ramp is not None and self.ramp.to_GPa is not None:
            msg = "ramp.to_GPa needs a pressure to start from: set pressure_GPa"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _biased(self) -> Self:
        if self.bias is None:
            return self
        if self.bias.walkers >= self.walkers_per_temperature:
            msg = (
                "bias.walkers must be fewer than walkers_per_temperature: audits and averages "
                "need walkers that are not biased"
            )
            raise ValueError(msg)
        if self.steps_per_cycle < MIN_BIASED_STEPS:
            msg = f"a bias acts after 100 steps: set steps_per_cycle to {MIN_BIASED_STEPS} or more"
            raise ValueError(msg)
        return self

    def is_biased(self, walker: int) -> bool:
        """Return whether a walker, by its index among those of all temperatures, is biased."""
        if self.bias is None:
            return False
        plain = self.walkers_per_temperature - self.bias.walkers
        return walker % self.walkers_per_temperature >= plain


class SelectionRules(Section):
    """Which frames are worth a DFT calculation."""

    labels_per_cycle: int = Field(8, ge=1, description="At most so many new training labels.")
    audit_per_cycle: int = Field(
        2, ge=1, description="Random frames labelled as well, never trained on: the honest test."
    )
    min_labels: int = Field(
        4, ge=1, description="Label the most uncertain so many even if all are trusted."
    )
    duplicate_distance: float = Field(
        0.01, ge=0, description="Frames nearer than this in scaled latent space are copies."
    )
    reuse_distance: float = Field(
        0.05,
        ge=0,
        description="A finished label of another campaign that is nearer than this to a chosen "
        "frame takes its place. 0: copies only.",
    )


class Quorum(Section):
    """When training starts although labels are missing."""

    fraction: float = Field(0.6, gt=0, le=1, description="Share of wanted labels that must be in.")
    deadline_h: float | None = Field(
        None,
        gt=0,
        description="Hours to wait for all labels, if that share is in; none to wait for the last.",
    )

    def is_met(self, n_in: int, n_wanted: int) -> bool:
        """Return whether so many labels are enough."""
        return n_in >= self.fraction * n_wanted


EPOCHS = 60
EPOCHS_FROM_SCRATCH = 300
"""Random weights are further from the goal than pretrained ones."""


class Replay(Section):
    """Other crystals of the same elements, labelled by the pretrained potential: no forgetting."""

    n: int = Field(0, ge=0, le=1000, description="Such structures trained on as well; 0 for none.")
    weight: float = Field(0.2, gt=0, le=1, description="Weight of each in the loss; a label has 1.")


class TrainingRules(Section):
    """Fine-tuning."""

    from_scratch: bool = Field(
        default=False,
        description="Start from random weights of the same architecture; the pretrained ones "
        "only drive the walkers until they are beaten.",
    )
    epochs: int = Field(
        default_factory=lambda given: EPOCHS_FROM_SCRATCH if given["from_scratch"] else EPOCHS,
        ge=1,
        description="Passes over the training labels: 60, or 300 from scratch.",
    )
    learning_rate: float = Field(2e-3, gt=0, le=0.1, description="Peak of the cosine schedule.")
    batch_atoms: int = Field(
        16,
        ge=1,
        description="Most atoms in one batch; a larger frame is one of its own.",
    )
    force_weight: float = Field(1.0, ge=0, description="Weight of forces in the loss.")
    energy_weight: float = Field(1.0, ge=0, description="Weight of energies in the loss.")
    stress_weight: float = Field(0.1, ge=0, description="Weight of stresses; 0 leaves them out.")
    validation_fraction: float = Field(
        0.15, gt=0, lt=0.5, description="Share of labels kept for early stopping."
    )
    replay: Replay = Field(default_factory=Replay)

    @model_validator(mode="after")
    def _something_to_forget(self) -> Self:
        if self.from_scratch and self.replay.n:
            msg = "replay keeps what was pretrained, but from_scratch starts from random weights"
            raise ValueError(msg)
        return self


class Convergence(Section):
    """When the potential is good enough for this material."""

    max_fraction_above: float = Field(
        0.05, ge=0, le=1, description="Share of MD checks above the tolerance that is acceptable."
    )
    cycles: int = Field(1, ge=1, description="Cycles in a row that must pass.")
    stall_cycles: int = Field(
        3, ge=1, description="Stop as stalled after so many cycles without a promotion."
    )


class Budget(Section):
    """What the campaign may cost."""

    max_cycles: int = Field(10, ge=1, description="Cycles, the seeding one included.")
    max_labels: int = Field(200, ge=1, description="DFT calculations, audits included.")
    max_core_hours: float = Field(1000.0, gt=0, description="Core-hours for DFT.")
    max_electrons: int | None = Field(
        None, ge=1, description="Electrons of one label: those that the recipe counts, else all."
    )


class Production(Section):
    """The long MD with the finished potential."""

    temperature_K: float = Field(600.0, gt=0, le=10_000, description="Thermostat temperature (K).")
    pressure_GPa: float | None = Field(
        None, description="Constant pressure (GPa) if given, else constant volume."
    )
    cell: CellMotion = Field(
        CellMotion.ISOTROPIC, description="What a pressure changes: the volume, or the shape too."
    )
    supercell: tuple[int, int, int] = Field((2, 2, 2), description="Repeats of the structure.")
    steps: int = Field(2000, ge=10, description="MD steps.")
    timestep_fs: float = Field(2.0, gt=0, le=10, description="MD time step (fs).")
    sample_every: int = Field(10, ge=1, description="Keep every so many frames.")
    audit_steps: int = Field(
        500,
        ge=0,
        description="MD steps in each labelled cell, whose random frames check the model.",
    )
    audit_labels: int = Field(4, ge=0, description="Such frames computed with DFT.")

    @model_validator(mode="after")
    def _barostat(self) -> Self:
        _check_pressure(self.pressure_GPa, self.cell)
        return self


def _check_pressure(pressure_GPa: float | None, cell: CellMotion) -> None:
    if pressure_GPa is None and cell is not CellMotion.ISOTROPIC:
        msg = f"cell: {cell} needs a pressure: set pressure_GPa, to 0 for instance"
        raise ValueError(msg)


class Campaign(Section):
    """One campaign: a material, a potential, a tolerance, a level of theory, a budget."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$", description="Unique name.")
    structure: Frame = Field(description="A structure file (CIF, POSCAR, extxyz …).")
    potential: str = Field("chgnet-0.3.0", description="Universal potential to start from.")
    accept_level_mismatch: bool = Field(
        default=False,
        description="Fine-tune to labels of another density functional than the potential's.",
    )
    tolerance_eV_A: float = Field(
        0.1, gt=0, le=10, description="The force error you can live with (eV/Å)."
    )
    seed: int = Field(0, ge=0, description="Same seed, same campaign.")
    labels: dict[str, Any] = Field(description="The recipe: 'code' and its level of theory.")
    seeding: Seeding = Field(default_factory=Seeding)
    exploration: Exploration = Field(default_factory=Exploration)
    selection: SelectionRules = Field(default_factory=SelectionRules)
    quorum: Quorum = Field(default_factory=Quorum)
    training: TrainingRules = Field(default_factory=TrainingRules)
    convergence: Convergence = Field(default_factory=Convergence)
    budget: Budget = Field(default_factory=Budget)
    production: Production | None = Field(
        default_factory=Production, description="Null for no production run."
    )

    @model_validator(mode="after")
    def _affordable(self) -> Self:
        first = self.selection.audit_per_cycle + self.selection.min_labels
        if first > self.budget.max_labels:
            msg = (
                f"budget.max_labels is {self.budget.max_labels}, but one cycle needs at least "
                f"{first} (selection.min_labels + selection.audit_per_cycle)"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _alike_in_all_shapes(self) -> Self:
        rules = self.exploration
        if rules.cell_shapes > 1 or any(start.file for start in rules.starts):
            from otf_workflows.labelers import parse_recipe

            recipe = parse_recipe(self.labels)
            repeats = zip(rules.supercell, self.structure.cell_A, strict=True)
            cell_A = [[n * x for x in row] for n, row in repeats]
            if (shared := recipe.for_shapes(cell_A)) != recipe:
                self.labels.update(shared.model_dump(mode="json", exclude_unset=True))
        return self

    @property
    def n_walkers(self) -> int:
        """Number of walkers."""
        return len(self.exploration.temperatures_K) * self.exploration.walkers_per_temperature

    @property
    def digest(self) -> str:
        """Hash of all that decides the results; the name is left out."""
        content = self.model_dump(mode="json", exclude={"name"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_file(cls, path: str | Path, **overrides: Any) -> Campaign:
        """Read, resolve and check a campaign file.

        Parameters
        ----------
        path
            YAML file; ``structure`` in it is relative to its folder.
        **overrides
            Top-level fields that replace those of the file (``name`` for instance).

        Raises
        ------
        InputError
            For anything wrong with the file, the structure or the recipe, with the field named.
        """
        from otf_workflows.campaign_file import read_campaign

        return read_campaign(Path(path), overrides)
