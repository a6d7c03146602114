"""Structures, and what walkers did with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from otf_workflows.schemas.base import Document
from otf_workflows.types import Purpose, StopReason

if TYPE_CHECKING:
    from ase import Atoms


class Origin(Document):
    """Where a frame comes from."""

    campaign: str | None = Field(None, description="Campaign that generated the frame.")
    cycle: int | None = Field(None, description="Cycle that generated the frame.")
    walker: int | None = Field(None, description="Walker index; none for seed frames.")
    step: int | None = Field(None, description="MD step of the walker, counted over all cycles.")
    temperature_K: float | None = Field(None, description="Thermostat temperature (K).")
    pressure_GPa: float | None = Field(None, description="Barostat pressure (GPa); none for NVT.")
    model_id: str | None = Field(None, description="Model that drove the walker.")
    note: str | None = Field(None, description="How a frame that is not from MD was made.")


class Frame(Document):
    """One structure, periodic in three dimensions, with its origin."""

    numbers: list[int] = Field(description="Atomic numbers, shape (n,).")
    cell_A: list[list[float]] = Field(description="Lattice vectors as rows (Å), shape (3, 3).")
    positions_A: list[list[float]] = Field(description="Positions (Å), shape (n, 3).")
    origin: Origin = Field(default_factory=Origin, description="Where the frame comes from.")
    purpose: Purpose = Field(Purpose.UNCERTAIN, description="Why it is (to be) labelled.")
    sigma_eV_A: float | None = Field(
        None, description="Worst-atom force uncertainty when it was met (eV/Å), calibrated."
    )
    features: list[float] | None = Field(
        None, description="Structure-mean latent features of the potential, for diversity."
    )
    features_of: str | None = Field(
        None, description="Potential, as pretrained, that made them; others are no match for them."
    )

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return len(self.numbers)

    @classmethod
    def from_atoms(cls, atoms: Atoms, **fields: Any) -> Frame:
        """Return a frame with the geometry of ``atoms``; other fields as given."""
        return cls(
            numbers=[int(z) for z in atoms.numbers],
            cell_A=atoms.cell.array.tolist(),
            positions_A=atoms.get_positions().tolist(),
            **fields,
        )

    def to_atoms(self) -> Atoms:
        """Return the geometry as ASE atoms, periodic, without a calculator."""
        from ase import Atoms

        return Atoms(numbers=self.numbers, cell=self.cell_A, positions=self.positions_A, pbc=True)


class Checkpoint(Document):
    """Everything a walker needs to continue exactly where it was."""

    frame: Frame = Field(description="Geometry.")
    velocities_A_fs: list[list[float]] = Field(description="Velocities (Å/fs), shape (n, 3).")
    step: int = Field(description="MD steps so far, over all cycles.")
    rng_state: dict[str, Any] = Field(description="State of the walker's random generator.")
    thermostat: dict[str, Any] = Field(
        default_factory=dict, description="Extra state of thermostat and barostat."
    )


class WalkerSegment(Document):
    """What one walker did in one cycle. Output of an explore job."""

    walker: int = Field(description="Walker index.")
    temperature_K: float = Field(
        description="Thermostat temperature (K), at step 0 if there is a ramp."
    )
    pressure_GPa: float | None = Field(
        None, description="Barostat pressure (GPa), at step 0 if there is a ramp."
    )
    model_id: str = Field(description="Model that drove it.")
    first_step: int = Field(description="Step count at the start of the segment.")
    n_steps: int = Field(description="Trusted steps kept (the walker is rewound to them).")
    n_steps_run: int = Field(description="MD steps computed, including those rewound.")
    n_checked: int = Field(description="Steps at which the uncertainty was read.")
    n_above: int = Field(description="Of these, steps with uncertainty above the tolerance.")
    n_extra: int = Field(
        0,
        description="Further readings, in no average: made early because the novelty had risen, "
        "or by a biased walker.",
    )
    n_extra_above: int = Field(0, description="Of these, readings above the tolerance.")
    stop_reason: StopReason = Field(description="Why the segment ended.")
    stop_message: str = Field("", description="One sentence on it.")
    steps: list[int] = Field(default_factory=list, description="Checked steps (≤ 1000 kept).")
    sigmas_eV_A: list[float] = Field(
        default_factory=list, description="Calibrated worst-atom uncertainty at these (eV/Å)."
    )
    temperatures_K: list[float] = Field(
        default_factory=list, description="Instantaneous temperature at these (K)."
    )
    targets_K: list[float] = Field(
        default_factory=list, description="Thermostat temperature at these (K)."
    )
    bias_eV: list[float] = Field(
        default_factory=list, description="Bias energy at these (eV); empty without a bias."
    )
    candidates: list[Frame] = Field(
        default_factory=list, description="Frames above the tolerance, with features."
    )
    pool: list[Frame] = Field(
        default_factory=list, description="Random sample of checked frames, trusted or not."
    )
    blob: dict[str, Any] = Field(
        default_factory=dict, description="'checkpoint': Checkpoint; 'trajectory': encoded text."
    )
    seconds: float = Field(
        description="Wall time (s); of a job with several walkers, its share by steps."
    )
