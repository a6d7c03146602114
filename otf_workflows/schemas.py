"""The documents: what jobs return, and what our MongoDB collections hold.

Units everywhere: eV, Å, eV/Å, K, fs; stress in eV/Å³ with ASE's sign (tension positive). Large
arrays live in the keys named in :data:`BLOB_KEYS`, which jobflow moves to the ``data`` store
(GridFS), so that no document nears MongoDB's 16 MB.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from otf_workflows.types import (
    CampaignState,
    CycleState,
    Decision,
    FailureCause,
    LabelState,
    Purpose,
    Split,
    Stage,
    StopReason,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase import Atoms
    from numpy.typing import ArrayLike

BLOB_KEYS = ["blob", "candidates", "pool", "frames", "evaluation"]
"""Keys of job outputs that jobflow stores outside the document."""


def now() -> datetime:
    """Return the present moment, in UTC and aware of it."""
    return datetime.now(UTC)


class Document(BaseModel):
    """Base of all documents: unknown keys are an error."""

    model_config = ConfigDict(extra="forbid", use_enum_values=False)


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


class Attempt(Document):
    """One try at a label: what was run, where, and how it ended."""

    number: int = Field(description="1 for the first try.")
    command: str = Field("", description="Command line as run; empty for in-process calculators.")
    host: str = Field("", description="Machine it ran on.")
    queue_id: str | None = Field(None, description="Id given by the queue system, if any.")
    directory: str = Field("", description="Folder of inputs and outputs.")
    started: datetime | None = Field(None, description="Start (UTC).")
    seconds: float | None = Field(None, description="Wall time (s).")
    cores: int = Field(1, description="Cores reserved.")
    changes: dict[str, Any] = Field(
        default_factory=dict, description="Numerical settings changed by the retry ladder."
    )
    cause: FailureCause | None = Field(None, description="Why it failed; none if it succeeded.")
    message: str = Field("", description="One sentence on the failure.")
    last_lines: list[str] = Field(default_factory=list, description="End of the output (≤ 30).")


def core_hours(attempts: Sequence[Attempt]) -> float:
    """Return the core-hours of attempts."""
    return sum((attempt.seconds or 0.0) * attempt.cores for attempt in attempts) / 3600


class LabelResult(Document):
    """Energy, forces and stress of one frame, as computed. Output of a label job."""

    key: str = Field(description="Content hash: structure ⊕ recipe.")
    frame: Frame = Field(description="The frame as asked for; forces are in its atom order.")
    energy_eV: float = Field(description="Total energy (eV), of the recipe's own zero.")
    forces_eV_A: list[list[float]] = Field(description="Forces (eV/Å), shape (n, 3).")
    stress_eV_A3: list[list[float]] | None = Field(
        None, description="Stress (eV/Å³), shape (3, 3), tension positive; none if not to be used."
    )
    magmoms_muB: list[float] | None = Field(None, description="Site moments (μB), shape (n,).")
    fingerprint: str = Field(description="Level of theory as read from the OUTPUT.")
    settings_as_run: dict[str, Any] = Field(
        default_factory=dict, description="What the output says was computed."
    )
    attempts: list[Attempt] = Field(default_factory=list, description="All tries, oldest first.")
    core_hours: float = Field(0.0, description="Core-hours of all tries.")
    warnings: list[str] = Field(default_factory=list, description="What a person should know.")


class LabelDocument(Document):
    """One label in ``otf_labels``, whatever its state."""

    key: str = Field(description="Content hash: structure ⊕ recipe. Unique.")
    state: LabelState = Field(description="pending, running, done, failed or quarantined.")
    frame: Frame = Field(description="Structure and origin.")
    recipe_fingerprint: str = Field(description="Level of theory asked for.")
    recipe: dict[str, Any] = Field(description="The recipe as asked for.")
    wanted_by: list[dict[str, Any]] = Field(
        default_factory=list,
        description="Every {campaign, cycle, purpose} that asked; the first one computes it.",
    )
    cause: FailureCause | None = Field(None, description="Why it failed.")
    reason: str | None = Field(None, description="Failure or quarantine, in one sentence.")
    attempts: list[Attempt] = Field(default_factory=list, description="Tries of the last run.")
    earlier: list[Attempt] = Field(
        default_factory=list,
        description="Tries before a rerun, or lost with a batch job, oldest first.",
    )
    result: LabelResult | None = Field(None, description="Only when done or quarantined.")
    adopted: dict[str, Any] | None = Field(
        None, description="Campaign that took it over when nobody was computing it, and until when."
    )
    imported: dict[str, Any] | None = Field(
        None, description="File, how its level of theory is known, who brought it in, and when."
    )
    core_hours: float = Field(0.0, description="Core-hours of all tries.")
    created: datetime = Field(default_factory=now, description="First asked for (UTC).")
    updated: datetime = Field(default_factory=now, description="Last change (UTC).")

    @property
    def tries(self) -> list[Attempt]:
        """All tries, those before reruns included, oldest first."""
        return [*self.earlier, *self.attempts]


class LabelledFrame(Document):
    """A done label, as training and evaluation want it."""

    key: str = Field(description="Key of the label.")
    split: Split = Field(description="train, validation or audit.")
    cycle: int = Field(description="Cycle in which this campaign asked for it.")
    frame: Frame = Field(description="Structure and origin.")
    energy_eV: float = Field(description="Total energy (eV), at the recipe's zero.")
    forces_eV_A: list[list[float]] = Field(description="Forces (eV/Å), shape (n, 3).")
    stress_eV_A3: list[list[float]] | None = Field(None, description="Stress (eV/Å³), (3, 3).")
    magmoms_muB: list[float] | None = Field(None, description="Site moments (μB), shape (n,).")


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


class Selection(Document):
    """What a select job decided, in numbers."""

    n_candidates: int = Field(description="Frames proposed by walkers and seeds.")
    n_unphysical: int = Field(description="Dropped by geometry filters, before any DFT.")
    n_duplicates: int = Field(description="Dropped as near-copies of each other or of labels.")
    n_too_large: int = Field(0, description="Dropped for more electrons than the budget allows.")
    n_over_budget: int = Field(0, description="Dropped because labels or core-hours ran out.")
    keys: list[str] = Field(description="Keys of all labels wanted by this cycle.")
    reused_keys: list[str] = Field(description="Of these, labels that already exist.")
    adopted_keys: list[str] = Field(
        default_factory=list,
        description="Of the existing ones, labels of others in place of a frame near them.",
    )
    new_keys: list[str] = Field(description="Of these, labels to be computed now.")
    threshold_eV_A: float = Field(description="Uncertainty above which a frame is a candidate.")
    late_keys: list[str] = Field(
        default_factory=list, description="Of these, let go at the deadline; they join a later set."
    )
    asked: datetime | None = Field(None, description="When the labels were asked for (UTC).")
    sentences: list[str] = Field(default_factory=list, description="The decision in words.")


class Batch(Document):
    """The data set of one cycle. Output of a gather job; ``frames`` is the large part."""

    dataset_hash: str = Field(description="Hash of the sorted (key, split) pairs.")
    n_train: int = Field(description="Labels to train on.")
    n_validation: int = Field(description="Labels for early stopping and calibration.")
    n_audit: int = Field(description="Labels that judge, never trained on.")
    fresh_keys: list[str] = Field(description="Labels new in this cycle: unseen by the incumbent.")
    missing_keys: list[str] = Field(description="Wanted, but failed, quarantined or not there yet.")
    quorum_met: bool = Field(description="Whether enough labels are in to train.")
    frames: list[LabelledFrame] = Field(default_factory=list, description="All labels.")


class ErrorStatistics(Document):
    """Errors of a model on a set of labels, at one level of theory."""

    n_frames: int = Field(description="Number of frames.")
    n_atoms: int = Field(description="Number of atoms in all.")
    force_rmse_eV_A: float = Field(description="RMSE over force components (eV/Å).")
    force_rmse_low_eV_A: float = Field(description="Lower end of its 95 % bootstrap interval.")
    force_rmse_high_eV_A: float = Field(description="Upper end of its 95 % bootstrap interval.")
    force_mae_eV_A: float = Field(description="MAE over force components (eV/Å).")
    force_slope: float = Field(description="Slope of predicted against DFT forces; 1 is right.")
    energy_mae_eV_atom: float = Field(
        description="MAE of energy per atom after removing the mean offset (eV/atom)."
    )
    stress_mae_GPa: float | None = Field(None, description="MAE of stress components (GPa).")


class Calibration(Document):
    """How the raw uncertainty becomes an honest one: σ = √((factor × raw σ)² + floor²)."""

    factor: float = Field(1.0, description="What the raw σ is multiplied by.")
    floor_eV_A: float = Field(
        0.0, description="Error that stays however small the raw σ is (eV/Å), added in squares."
    )
    nominal: float = Field(0.9, description="Share of frames meant to lie below σ.")
    n: int = Field(0, description="Labels used, none of them trained on; 0 means uncalibrated.")
    measured: float | None = Field(None, description="Coverage seen on the next fresh batch.")
    n_atoms: int | None = Field(
        None, description="Size of the cells it was measured in; none for the worst atom of any."
    )
    multiples: dict[str, float] = Field(
        default_factory=dict,
        description="Share (%) → multiple of the calibrated σ that covered it in these labels.",
    )

    def calibrated(self, sigma_eV_A: ArrayLike) -> Any:
        """Return the honest uncertainty (eV/Å) of a raw one, a number or an array."""
        import numpy as np

        honest = np.hypot(self.factor * np.asarray(sigma_eV_A, dtype=float), self.floor_eV_A)
        return honest if honest.ndim else float(honest)

    def of_frame(self, sigmas_eV_A: ArrayLike) -> float:
        """Return the honest uncertainty of a frame (eV/Å) from the raw one of each atom, (n,).

        It means the same in cells of all sizes: that of the worst of :attr:`n_atoms` atoms, see
        :func:`~otf_workflows.uncertainty.worst_of`. So that one lost atom is not outvoted by many
        good ones, half of the worst atom of all counts as well.
        """
        from otf_workflows.uncertainty import LONE_ATOM_RATIO, worst_of

        lone = worst_of(sigmas_eV_A, None) / LONE_ATOM_RATIO
        return self.calibrated(max(worst_of(sigmas_eV_A, self.n_atoms), lone))


class Forgetting(Document):
    """How far a model went from the pretrained potential in other crystals of its elements."""

    n_frames: int = Field(description="Crystals compared, none of them trained on.")
    elements: list[str] = Field(description="Their elements.")
    force_rmse_eV_A: float = Field(description="RMS difference of force components (eV/Å).")
    force_rms_eV_A: float = Field(description="RMS force of the pretrained potential (eV/Å).")

    @property
    def sentence(self) -> str:
        """The number in words."""
        return (
            f"Elsewhere ({self.n_frames} other crystals of {', '.join(self.elements)}) its forces "
            f"differ from those of the pretrained potential by {self.force_rmse_eV_A:.3f} eV/Å, "
            f"{self.force_rmse_eV_A / max(self.force_rms_eV_A, 1e-12):.0%} of their size."
        )


class TrainingResult(Document):
    """A challenger and its evidence. Output of a finetune job."""

    model_id: str = Field(description="Id of the new model: campaign, cycle, hash of the weights.")
    parent_id: str = Field(description="Model the training started from.")
    sha256: str = Field(description="Hash of the weights.")
    blob: str = Field(description="Weights, heads and latent statistics, base64.")
    dataset_hash: str = Field(description="Data set trained on.")
    history: list[dict[str, float]] = Field(description="One entry per epoch: losses and errors.")
    alignment: dict[str, Any] = Field(description="Energy shifts per element, stress check.")
    calibration: Calibration = Field(description="Of the new model's uncertainty.")
    errors: dict[str, ErrorStatistics] = Field(
        description="'incumbent/audit', 'challenger/audit', 'pretrained/audit', 'incumbent/fresh'…"
    )
    evaluation: dict[str, Any] = Field(
        default_factory=dict, description="Arrays behind the errors, for parity plots."
    )
    fresh_coverage: dict[str, float] = Field(
        default_factory=dict, description="Coverage, Spearman, AUROC of σ on the fresh labels."
    )
    forgetting: Forgetting | None = Field(None, description="None if trained from scratch.")
    seconds: float = Field(description="Wall time (s).")
    versions: dict[str, str] = Field(default_factory=dict, description="Code versions.")


class Verdict(Document):
    """What a cycle concluded. Output of an assess job."""

    promoted: bool = Field(description="Whether the challenger becomes the incumbent.")
    incumbent_id: str = Field(description="Model that drives the next cycle.")
    decision: Decision = Field(description="What follows.")
    sentences: list[str] = Field(description="Reasons, for a person.")


class ModelDocument(Document):
    """One model in ``otf_models``; its weights are a GridFS file named by ``sha256``."""

    model_id: str = Field(description="campaign-cycle-hash, or the registry name if pretrained.")
    campaign: str | None = Field(None, description="None for a pretrained model.")
    cycle: int | None = Field(None, description="Cycle that trained it.")
    potential: str = Field(description="Registry name of the architecture and pretraining.")
    parent_id: str | None = None
    dataset_hash: str | None = None
    sha256: str | None = Field(None, description="None for a pretrained model shipped in a wheel.")
    output_uuid: str | None = Field(None, description="jobflow job that holds the weights.")
    promoted: bool = False
    verdict: list[str] = Field(default_factory=list)
    errors: dict[str, ErrorStatistics] = Field(default_factory=dict)
    calibration: Calibration = Field(default_factory=Calibration)
    alignment: dict[str, Any] = Field(default_factory=dict)
    history: list[dict[str, float]] = Field(default_factory=list)
    training: dict[str, Any] = Field(default_factory=dict, description="Hyper-parameters.")
    fresh_coverage: dict[str, float] = Field(default_factory=dict)
    forgetting: Forgetting | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    created: datetime = Field(default_factory=now)


class DatasetDocument(Document):
    """One immutable list of labels in ``otf_datasets``."""

    hash: str
    parent_hash: str | None = None
    campaign: str
    cycle: int
    entries: list[dict[str, str]] = Field(description="{key, split} in the order of keys.")
    recipe_fingerprint: str
    created: datetime = Field(default_factory=now)


class StageRecord(Document):
    """Cost of one stage of a cycle."""

    stage: Stage
    n_jobs: int = 0
    n_done: int = 0
    n_running: int = 0
    n_failed: int = 0
    seconds: float = Field(0.0, description="Wall time of the jobs, added up (s).")
    started: datetime | None = None
    finished: datetime | None = None


class CycleDocument(Document):
    """All the dashboard needs of one cycle, in ``otf_cycles``."""

    campaign: str
    cycle: int
    kind: str = Field("cycle", description="'cycle' or 'production'.")
    state: CycleState
    incumbent_id: str = Field(description="Model that drives the walkers.")
    calibration: Calibration = Field(
        default_factory=Calibration, description="How its uncertainty was read in this cycle."
    )
    engine_ids: list[int | str] = Field(default_factory=list, description="Workflow ids.")
    outputs: dict[str, str] = Field(
        default_factory=dict,
        description="Name of a job → uuid of its jobflow output, '/' and the part of it if several "
        "share it.",
    )
    stages: dict[str, StageRecord] = Field(default_factory=dict)
    walkers: list[dict[str, Any]] = Field(
        default_factory=list, description="WalkerSegment of each walker without its frames."
    )
    selection: Selection | None = None
    errors: dict[str, ErrorStatistics] = Field(default_factory=dict)
    fresh_coverage: dict[str, float] = Field(default_factory=dict)
    challenger_id: str | None = None
    verdict: Verdict | None = None
    created: datetime = Field(default_factory=now)
    finished: datetime | None = None


class CampaignDocument(Document):
    """One campaign in ``otf_campaigns``."""

    name: str
    state: CampaignState
    reason: str = Field("", description="Why it is in this state, in one sentence.")
    campaign: dict[str, Any] = Field(description="The campaign file, structure resolved.")
    digest: str = Field(description="Hash of all that decides the results, name left out.")
    outcome: CampaignState | None = Field(None, description="How the cycles ended.")
    incumbent_id: str = Field(description="The promoted model.")
    calibration: Calibration = Field(
        default_factory=Calibration, description="How to read its uncertainty in this campaign."
    )
    totals: dict[str, float] = Field(default_factory=dict)
    created: datetime = Field(default_factory=now)
    finished: datetime | None = None
    lease: dict[str, Any] | None = Field(None, description="Who reconciles it just now.")


class PropertyDocument(Document):
    """A property with its conditions and its origin, in ``otf_properties``."""

    campaign: str
    model_id: str
    kind: str = Field(description="'production' for the final MD run.")
    conditions: dict[str, Any] = Field(description="Temperature, steps, time step, cell …")
    values: dict[str, Any] = Field(description="Curves and numbers, with error bars and units.")
    trajectory_uuid: str = Field(description="jobflow output that holds the trajectory.")
    created: datetime = Field(default_factory=now)


class Event(Document):
    """Who did what, when and why, in ``otf_events``; append-only."""

    when: datetime = Field(default_factory=now)
    who: str
    what: str
    campaign: str | None = None
    cycle: int | None = None
    label_key: str | None = None
    details: dict[str, Any] = Field(default_factory=dict)
