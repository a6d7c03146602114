"""What a DFT code (or a stand-in for one) must offer to compute labels.

A new code is one file with a recipe and a labeler, and one line in
:data:`otf_workflows.labelers.LABELERS`.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field

from otf_workflows.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from otf_workflows.schemas import Frame, LabelResult


class Recipe(BaseModel):
    """Code and all settings that define the level of theory. Frozen; hashed into every label."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    code: str = Field(description="Name of the code in the registry.")
    use_stress: bool = Field(True, description="Whether stress is honest enough to train on.")

    @abstractmethod
    def level_of_theory(self, numbers: list[int]) -> dict[str, Any]:
        """Return what defines the results for these elements, numerics left out.

        The same dictionary is read back from the output (``settings_as_run``); the two are
        compared key by key, so every value must be found in an output file.
        """

    def fingerprint(self, numbers: list[int]) -> str:
        """Return the hash of the level of theory for these elements."""
        return fingerprint(self.level_of_theory(numbers))

    def for_shapes(self, cell_A: Any) -> Self:
        """Return a recipe that computes supercells of several shapes alike.

        Parameters
        ----------
        cell_A
            Cell that the settings of this recipe are meant for, as rows (Å).

        Raises
        ------
        InputError
            If the recipe has a grid of k-points, which means another density in another shape.
        """
        del cell_A
        if getattr(self, "kpoints", None) is not None:
            raise InputError(
                f"a fixed grid of k-points means another density in cells of another shape, "
                f"and {self.code} cannot fold it",
                where="labels.kpoints",
                hint="give labels.kspacing_per_A instead, or set exploration.cell_shapes to 1",
            )
        return self

    @abstractmethod
    def problems(self, frame: Frame) -> list[str]:
        """Return what makes this recipe impossible for a frame, in sentences."""

    def density_functional(self) -> str | None:
        """Return the density functional (U and dispersion aside), e.g. ``PBE`` or ``r2SCAN``.

        None if labels are not of density-functional theory, or nobody said of which.
        """
        return getattr(self, "functional", None)

    def mismatch(self, potential: str) -> str | None:  # noqa: ARG002 - recipes that know say so
        """Return how labels differ from what a potential was trained on; None if not known."""
        return None

    def mixing(self, compositions: Iterable[Sequence[int]]) -> str | None:  # noqa: ARG002
        """Return why energies of these compositions have no common zero; None if not known.

        Parameters
        ----------
        compositions
            Atomic numbers of every structure.
        """
        return None


class Resources(BaseModel):
    """What one label may use on this machine. Part of the site, never of the physics."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: str = Field("", description="Command of the code, e.g. 'mpirun -np 4 pw.x'.")
    cores: int = Field(1, ge=1, description="Cores, for the cost account and OMP_NUM_THREADS.")
    walltime_s: float | None = Field(None, gt=0, description="Stop after so many seconds.")
    data_dir: str | None = Field(
        None, description="Pseudopotentials, basis sets …; the code's own default if not given."
    )
    scratch_dir: str | None = Field(None, description="Fast disk for the code's own files.")


class Labeler(Protocol):
    """Computes labels with one code."""

    recipe_model: ClassVar[type[Recipe]]

    def label(
        self,
        frame: Frame,
        recipe: Recipe,
        *,
        key: str,
        directory: Path,
        resources: Resources,
        numerics: dict[str, Any] | None = None,
    ) -> LabelResult:
        """Compute one label in ``directory``.

        Parameters
        ----------
        frame
            Structure; forces come back in its atom order.
        recipe
            Level of theory.
        key
            Content hash, copied into the result.
        directory
            Empty folder for inputs and outputs.
        resources
            Command, cores, walltime, data folders of this machine.
        numerics
            Numerical settings for the first try (a person's ``--set mixing_beta=0.2``).

        Raises
        ------
        LabelFailed
            After all permitted retries, with the cause and every attempt.
        """

    def check_numerics(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Return numerical settings, checked; InputError for physics and impossible values."""

    def check(self, resources: Resources, numbers: list[int], recipe: Recipe) -> list[str]:
        """Return what is missing on this machine for these elements, in sentences."""


def fingerprint(level_of_theory: dict[str, Any]) -> str:
    """Return a short hash of a level of theory."""
    text = json.dumps(level_of_theory, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(asked: dict[str, Any], as_run: dict[str, Any]) -> list[str]:
    """Return how a level of theory as run differs from the one asked for, one sentence per key.

    An empty list means that the label may be trained on; otherwise it belongs in quarantine with
    these sentences as its reason.
    """
    found = []
    for name in sorted(asked.keys() | as_run.keys()):
        if name not in as_run:
            found.append(f"{name}: asked for {asked[name]!r}, not found in the output")
        elif name not in asked:
            found.append(f"{name}: not asked for, the output says {as_run[name]!r}")
        elif asked[name] != as_run[name]:
            found.append(f"{name}: asked for {asked[name]!r}, the output says {as_run[name]!r}")
    return found
