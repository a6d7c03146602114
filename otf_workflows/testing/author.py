"""Who writes a synthetic campaign: one clock, its events and stages, walkers and labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.hashing import label_key
from otf_workflows.schemas import (
    CampaignDocument,
    Frame,
    ModelDocument,
    Origin,
    StageRecord,
    WalkerSegment,
    core_hours,
)
from otf_workflows.testing.synthetic import (
    synthetic_evaluation,
    synthetic_failure,
    synthetic_result,
)
from otf_workflows.testing.trajectories import store_output, synthetic_trajectory
from otf_workflows.types import CampaignState, FailureCause, Purpose, Split, Stage, StopReason

if TYPE_CHECKING:
    from otf_workflows.campaign import Campaign
    from otf_workflows.store import Store

PRETRAINED = "chgnet-0.3.0"
FINGERPRINT = "synthetic0000000"


def rock_salt(origin: Origin, purpose: Purpose = Purpose.SEED, **fields: Any) -> Frame:
    """Return eight atoms of rock salt."""
    corners = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
    scaled = np.concatenate([corners, corners + np.array([0.5, 0, 0])])
    return Frame(
        numbers=[3] * 4 + [17] * 4,
        cell_A=(5.14 * np.eye(3)).tolist(),
        positions_A=(5.14 * (scaled % 1.0)).tolist(),
        origin=origin,
        purpose=purpose,
        **fields,
    )


@dataclass
class Author:
    """Writes one campaign, stage after stage, on one clock."""

    store: Store
    campaign: Campaign
    rng: np.random.Generator
    start: datetime
    clock: datetime = field(init=False)
    incumbent: str = PRETRAINED
    models: list[str] = field(default_factory=lambda: [PRETRAINED])
    splits: dict[str, Split] = field(default_factory=dict)
    audits: list[str] = field(default_factory=list)
    truths: dict[str, np.ndarray] = field(default_factory=dict)
    core_hours: float = 0.0
    walked: list[int] = field(default_factory=lambda: [0, 0])
    segments: list[WalkerSegment] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = self.start

    @property
    def name(self) -> str:
        """Name of the campaign."""
        return self.campaign.name

    def submit(self) -> None:
        """Write the campaign and the pretrained model."""
        self.store.add_campaign(
            CampaignDocument(
                name=self.name,
                state=CampaignState.RUNNING,
                reason="cycle 0 is about to start",
                campaign=self.campaign.model_dump(mode="json"),
                digest=self.campaign.digest,
                incumbent_id=PRETRAINED,
                created=self.clock,
            )
        )
        self.store.add_model(
            ModelDocument(
                model_id=PRETRAINED,
                potential=PRETRAINED,
                promoted=True,
                verdict=["pretrained, as shipped"],
                versions={"chgnet": "0.4.2"},
                created=self.clock,
            )
        )
        self.say("Submitted (synthetic campaign: no number in it was computed).")

    def say(self, what: str, **fields: Any) -> None:
        """Add an event."""
        self.store.event(
            what, who="synthetic@example:1", campaign=self.name, when=self.clock, **fields
        )

    def stage(self, stage: Stage, seconds: float, *, n_jobs: int = 1, failed: int = 0) -> Any:
        """Advance the clock by a stage and return its record."""
        started = self.clock
        self.clock += timedelta(seconds=seconds)
        record = StageRecord(
            stage=stage,
            n_jobs=n_jobs,
            n_done=n_jobs - failed,
            n_failed=failed,
            seconds=0.95 * seconds * min(n_jobs, 2),
            started=started,
            finished=self.clock,
        )
        self.clock += timedelta(seconds=2.5)
        return record

    def walk(self, cycle: int, walker: int) -> WalkerSegment:
        """Return one walker's segment: hotter and earlier is less certain."""
        temperature_K = self.campaign.exploration.temperatures_K[walker]
        n_run = (240, 500)[walker == 0 or cycle > 0]
        steps = np.arange(10, n_run + 1, 10)
        level = (0.075, 0.055, 0.042, 0.033)[cycle] * (1 + 0.9 * walker)
        drift = np.linspace(0.0, 1.6, len(steps)) if n_run < 500 else 0.0
        sigmas = level * np.exp(self.rng.normal(0.0, 0.25, len(steps)) + drift)
        stopped = n_run < 500
        first, kept = self.walked[walker], n_run - 60 if stopped else n_run
        self.walked[walker] += kept
        return WalkerSegment(
            walker=walker,
            temperature_K=temperature_K,
            model_id=self.incumbent,
            first_step=first,
            n_steps=kept,
            n_steps_run=n_run,
            n_checked=len(steps),
            n_above=int((sigmas > self.campaign.tolerance_eV_A).sum()),
            stop_reason=StopReason.UNCERTAIN if stopped else StopReason.COMPLETED,
            stop_message="uncertainty above twice the tolerance" if stopped else "",
            steps=(first + steps).tolist(),
            sigmas_eV_A=sigmas.tolist(),
            temperatures_K=self.rng.normal(temperature_K, 0.2 * temperature_K, len(steps)).tolist(),
            seconds=21.0,
        )

    def walked_frames(self, cycle: int, segment: WalkerSegment) -> str:
        """Store the trajectory of a walker; return the id of its job."""
        text = synthetic_trajectory(
            np.random.default_rng([cycle, segment.walker]),
            self.campaign.structure,
            n_frames=segment.n_checked,
            first_step=segment.first_step,
        )
        uuid = f"synthetic-{self.name}-{cycle}-{segment.walker}"
        return store_output(self.store.database, uuid, {"trajectory": text})

    def label_all(
        self, cycle: int, wanted: list[Purpose], *, fail_one: bool = False
    ) -> tuple[list[str], list[str]]:
        """Write labels; return the keys of all and of the done ones."""
        keys, done = [], []
        for number, purpose in enumerate(wanted):
            temperature_K = (300.0, 600.0)[number % 2]
            frame = self.frame(cycle, number, purpose, temperature_K)
            key = label_key(frame, FINGERPRINT)
            self.store.want_label(
                key,
                frame,
                recipe=self.campaign.labels,
                fingerprint=FINGERPRINT,
                campaign=self.name,
                cycle=cycle,
            )
            keys.append(key)
            if fail_one and number == 0:
                self.fail(key, cycle)
                continue
            self.compute(key, frame, number)
            done.append(key)
            self.splits[key] = (
                Split.AUDIT
                if purpose is Purpose.AUDIT
                else Split.VALIDATION
                if number % 6 == 5
                else Split.TRAIN
            )
            if purpose is Purpose.AUDIT:
                self.audits.append(key)
        return keys, done

    def frame(self, cycle: int, number: int, purpose: Purpose, temperature_K: float) -> Frame:
        """Return a rattled cell, met by a walker: audits anywhere, others where σ was largest."""
        origin = Origin(
            campaign=self.name,
            cycle=cycle,
            walker=number % 2,
            step=500 * cycle + 30 * number,
            temperature_K=temperature_K,
            model_id=self.incumbent,
        )
        sigma_eV_A = float(self.rng.uniform(0.05, 0.25))
        if self.segments and purpose is not Purpose.SEED:
            met = self.segments[number % 2]
            order = np.argsort(met.sigmas_eV_A)[:: -1 if purpose is Purpose.UNCERTAIN else 3]
            at = int(order[number // 2])
            origin.step, sigma_eV_A = met.steps[at], met.sigmas_eV_A[at]
        frame = rock_salt(origin, purpose, sigma_eV_A=sigma_eV_A)
        rattle = self.rng.normal(0.0, 0.004 * np.sqrt(temperature_K), (8, 3))
        return frame.model_copy(
            update={"positions_A": (np.array(frame.positions_A) + rattle).tolist()}
        )

    def compute(self, key: str, frame: Frame, number: int) -> None:
        """Write the result of a label."""
        started = self.clock + timedelta(seconds=8.0 * number)
        result = synthetic_result(self.rng, key, frame, fingerprint=FINGERPRINT, started=started)
        self.truths[key] = np.array(result.forces_eV_A)
        self.core_hours += result.core_hours
        self.store.record_result(result)

    def fail(self, key: str, cycle: int) -> None:
        """Write a failed label with two tries."""
        cause = FailureCause.SCF if cycle == 1 else FailureCause.WALLTIME
        attempts = synthetic_failure(cause, started=self.clock)
        self.core_hours += core_hours(attempts)
        message = attempts[-1].message
        self.store.record_failure(key, cause=cause, reason=message, attempts=attempts)
        self.say(f"Label {key[:10]} failed: {message}.", cycle=cycle, label_key=key)

    def evaluate(self, generation: int, keys: list[str]) -> dict[str, Any]:
        """Return synthetic predictions of a generation of models on labels."""
        return synthetic_evaluation(generation, {key: self.truths[key] for key in keys})

    def totals(self) -> dict[str, float]:
        """Return the totals so far."""
        return {
            "md_steps": float(500 * 2 * (len(self.models) - 1)),
            "labels_computed": float(len(self.truths)),
            "labels_reused": 0.0,
            "core_hours": self.core_hours,
            "seconds_total": (self.clock - self.start).total_seconds(),
        }
