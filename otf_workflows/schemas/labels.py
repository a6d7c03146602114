"""Labels: how they were chosen, how they were computed, and the data set they make."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import Field

from otf_workflows.schemas.base import Document, now
from otf_workflows.schemas.frames import Frame
from otf_workflows.types import FailureCause, LabelState, Split

if TYPE_CHECKING:
    from collections.abc import Sequence


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
