"""What a report says, as data: the page is drawn from it, and ``otf report --json`` prints it.

Units as everywhere: eV, Å, eV/Å, K, fs. Fields that only feed figures are left out of the JSON.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from otf_workflows.schemas import Document, ErrorStatistics, WalkerSegment
from otf_workflows.types import CampaignState, LabelState


class Material(Document):
    """The structure that was labelled."""

    formula: str = Field(description="Reduced formula.")
    n_atoms: int = Field(description="Atoms in the cell.")
    cell: str = Field(description="Cell lengths and angles in words.")
    elements: list[str] = Field(description="Chemical symbols, sorted.")


class WallTime(Document):
    """Where the time went, from submission to end."""

    total_s: float = Field(description="Wall time (s).")
    shares: dict[str, float] = Field(
        description="exploration, labelling, training, orchestration; they add up to 1. "
        "Empty if start and end of the jobs were not recorded."
    )


class Costs(Document):
    """What was computed, and what it stands for."""

    n_labels: int = Field(description="Finished labels of this campaign, reused ones included.")
    n_labels_reused: int = Field(description="Of these, labels another campaign paid for.")
    n_dft_calls: int = Field(
        description="DFT runs behind all labels: every try counts, failed and reused ones too."
    )
    n_md_exploration: int = Field(description="Trusted MD steps of the walkers.")
    n_md_rewound: int = Field(description="MD steps that were computed and thrown away.")
    n_md_production: int = Field(description="MD steps of the production run.")
    core_hours: float = Field(description="Core-hours of DFT that this campaign paid for.")
    seconds_per_call: float | None = Field(
        None, description="Median wall time of a finished DFT call (s)."
    )
    wall: WallTime | None = None

    @property
    def n_md(self) -> int:
        """MD steps that count."""
        return self.n_md_exploration + self.n_md_production

    @property
    def aimd_ratio(self) -> float | None:
        """MD steps for each DFT call."""
        return self.n_md / self.n_dft_calls if self.n_dft_calls else None


class HeadlineErrors(Document):
    """Errors of the pretrained and of the final model on the same labels."""

    where: str = Field(description="Which labels, in words.")
    pretrained: ErrorStatistics | None = None
    final: ErrorStatistics | None = None
    n_trained_on: int = Field(
        0,
        description="Of these labels, how many the final model saw in "
        "training or validation; anything but 0 is a fault.",
    )


class CycleSummary(Document):
    """One cycle, or the production run."""

    cycle: int
    kind: str
    state: str
    incumbent_id: str
    challenger_id: str | None = None
    promoted: bool | None = Field(None, description="None while there is no verdict.")
    n_train: int | None = Field(None, description="Labels in the training set of the cycle.")
    n_labels: dict[LabelState, int] = Field(default_factory=dict)
    fraction_above: float | None = Field(None, description="Share of MD checks above tolerance.")
    errors: dict[str, ErrorStatistics] = Field(default_factory=dict)
    coverage: dict[str, float] = Field(default_factory=dict)
    seconds: float | None = None
    sentences: list[str] = Field(default_factory=list, description="Selection and verdict.")


class LabelGroup(Document):
    """Labels asked for with one purpose."""

    purpose: str
    counts: dict[LabelState, int]
    core_hours: float


class FailedLabel(Document):
    """A label that failed or was quarantined."""

    key: str
    cycle: int | None
    state: LabelState
    cause: str
    reason: str
    n_attempts: int
    directory: str = ""
    last_lines: list[str] = Field(default_factory=list)


class ModelSummary(Document):
    """One model of the campaign."""

    model_id: str
    cycle: int | None
    parent_id: str | None
    status: str = Field(description="pretrained, in use, final, promoted or rejected.")
    n_labels: int | None = Field(None, description="Labels in its data set, audits left out.")
    sha256: str | None = None
    audit: ErrorStatistics | None = None
    calibration: str = ""
    verdict: list[str] = Field(default_factory=list)


class Coverage(Document):
    """How honest the uncertainty was on frames that the model had not seen."""

    n: int
    nominal: float
    measured: float = Field(description="Share of frames whose worst error lies below σ.")
    low: float = Field(description="Lower end of its 95 % interval (Wilson 1927).")
    high: float = Field(description="Upper end of it.")
    spearman: float | None = Field(None, description="Rank correlation of σ with the error.")
    spearman_force: float | None = Field(None, description="The same of plain |F|: the baseline.")
    auroc: float | None = Field(
        None, description="How well σ finds the worst tenth: 1 always, 0.5 by chance."
    )
    auroc_force: float | None = Field(None, description="The same of plain |F|: the baseline.")
    levels: dict[str, float] = Field(
        default_factory=dict,
        description="Share (%) promised at a multiple of σ → share of errors below it.",
    )


class Coordination(Document):
    """How many neighbours of an element an atom has."""

    centre: str
    neighbour: str
    number: float
    up_to_A: float = Field(description="First minimum of g(r) (Å).")


class Production(Document):
    """The long MD run."""

    model_id: str
    conditions: dict[str, Any]
    n_steps: int | None = None
    stopped: str = Field("", description="Why it ended early; empty if it did not.")
    mean_temperature_K: float | None = None
    mean_temperature_error_K: float | None = Field(None, description="Its standard error (K).")
    energy_drift_eV_atom_ps: float | None = None
    max_sigma_eV_A: float | None = None
    fraction_above: float | None = None
    worst_of_atoms: int | None = Field(None, description="Atoms that a σ is the worst of.")
    audit: ErrorStatistics | None = Field(None, description="Final model on DFT of its frames.")
    diffusion: list[str] = Field(default_factory=list, description="Diffusive or not, in words.")
    coordination: list[Coordination] = Field(default_factory=list)


class Occurrence(Document):
    """One line of the decision log."""

    when: datetime
    cycle: int | None = None
    sentences: list[str]


class ParityTable(Document):
    """DFT against prediction, for one model."""

    model_id: str
    keys: list[str]
    forces_dft_eV_A: list[Any] = Field(description="Per frame, shape (n, 3).")
    forces_predicted_eV_A: list[Any]
    energies_dft_eV_atom: list[float]
    energies_predicted_eV_atom: list[float]


class UncertaintyPoint(Document):
    """Worst atom of one unseen frame."""

    cycle: int
    calibrated: bool
    sigma_eV_A: float
    error_eV_A: float
    force_eV_A: float
    production: bool = False


class Curve(Document):
    """A curve with its error band."""

    name: str
    x: list[float]
    y: list[float]
    error: list[float] | None = None


class Curves(Document):
    """All that only figures need."""

    before: ParityTable | None = None
    after: ParityTable | None = None
    elements: dict[str, list[int]] = Field(
        default_factory=dict, description="Atomic numbers of the frame of each label key."
    )
    uncertainty: list[UncertaintyPoint] = Field(default_factory=list)
    walkers: dict[int, list[WalkerSegment]] = Field(default_factory=dict)
    rdf: list[Curve] = Field(default_factory=list)
    msd: list[Curve] = Field(default_factory=list)
    production_sigma: Curve | None = None
    production_temperature: Curve | None = None


class ReportData(Document):
    """Everything on the page."""

    version: str = Field("otf.report/1", description="Version of this layout.")
    campaign: str
    state: CampaignState
    outcome: CampaignState | None
    reason: str
    started: datetime
    finished: datetime | None = Field(description="End, or the last event of one that failed.")
    written: datetime
    material: Material
    potential: str
    potential_theory: str
    theory: str = Field(description="Level of theory of the labels, in words.")
    tolerance_eV_A: float
    final_model: str
    pretrained_model: str
    errors: HeadlineErrors
    errors_by_element: dict[str, tuple[float, float]] = Field(
        default_factory=dict, description="Force RMSE (eV/Å) before and after, per element."
    )
    costs: Costs
    cycles: list[CycleSummary] = Field(default_factory=list)
    label_counts: dict[LabelState, int] = Field(default_factory=dict)
    label_groups: list[LabelGroup] = Field(default_factory=list)
    failed_labels: list[FailedLabel] = Field(default_factory=list)
    models: list[ModelSummary] = Field(default_factory=list)
    coverage: Coverage | None = None
    production: Production | None = None
    decisions: list[Occurrence] = Field(default_factory=list)
    conditions: list[str] = Field(default_factory=list, description="When the numbers hold.")
    settings: dict[str, Any] = Field(default_factory=dict, description="The campaign file.")
    versions: dict[str, str] = Field(default_factory=dict)
    citations: list[str] = Field(default_factory=list)
    curves: Curves = Field(default_factory=Curves, exclude=True, repr=False)
