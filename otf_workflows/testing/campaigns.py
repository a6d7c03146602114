"""A synthetic campaign in a store, so that pages and commands can be tried without any physics.

All numbers are drawn from a seeded generator and shaped like those of a real campaign; none was
computed. The material, the names and every sentence say so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.calibration import frame_pairs, report
from otf_workflows.campaign import Budget, Campaign, Exploration
from otf_workflows.hashing import label_key
from otf_workflows.schemas import (
    CampaignDocument,
    CycleDocument,
    DatasetDocument,
    ErrorStatistics,
    Frame,
    ModelDocument,
    Origin,
    PropertyDocument,
    Selection,
    StageRecord,
    Verdict,
    WalkerSegment,
    now,
)
from otf_workflows.testing.synthetic import (
    synthetic_calibration,
    synthetic_evaluation,
    synthetic_failure,
    synthetic_msd,
    synthetic_rdf,
    synthetic_result,
    synthetic_run,
    synthetic_statistics,
)
from otf_workflows.testing.trajectories import store_output, synthetic_trajectory
from otf_workflows.types import (
    CampaignState,
    CycleState,
    Decision,
    FailureCause,
    Purpose,
    Split,
    Stage,
    StopReason,
)

if TYPE_CHECKING:
    from otf_workflows.store import Store

PRETRAINED = "chgnet-0.3.0"
FINGERPRINT = "synthetic0000000"
START = datetime(2026, 1, 15, 20, 40, tzinfo=UTC)


def synthetic_campaign(
    store: Store,
    *,
    name: str = "synthetic-licl",
    seed: int = 7,
    n_cycles: int = 4,
    production: bool = True,
) -> CampaignDocument:
    """Write a campaign with all its documents into a store and return it.

    Parameters
    ----------
    store
        Where to write; its indexes are created.
    name
        Name of the campaign.
    seed
        Of all numbers.
    n_cycles
        Finished cycles, 0 to 4. With 0 the campaign has only been submitted.
    production
        Whether the production run is over as well; then all 4 cycles are needed. Without it the
        campaign is still running.

    Raises
    ------
    ValueError
        If a production run is asked for after fewer than 4 cycles.
    """
    if not 0 <= n_cycles <= 4 or (production and n_cycles != 4):
        msg = "a synthetic campaign has 0 to 4 cycles, and production only after the fourth"
        raise ValueError(msg)
    store.ensure_indexes()
    # An unfinished campaign looks as if it had begun a while ago.
    start = START if production else now() - timedelta(minutes=4 + 3 * n_cycles)
    author = _Author(store, _campaign(name), np.random.default_rng(seed), start=start)
    author.submit()
    for cycle in range(n_cycles):
        author.add_cycle(cycle)
    if production:
        author.add_production()
    return store.campaign(name)


def _campaign(name: str) -> Campaign:
    return Campaign(
        name=name,
        structure=_rock_salt(Origin(note="synthetic rock-salt cell")),
        tolerance_eV_A=0.1,
        labels={
            "code": "espresso",
            "functional": "PBE",
            "cutoff_Ry": 50.0,
            "kpoints": [2, 2, 2],
        },
        exploration=Exploration(temperatures_K=[300.0, 600.0], steps_per_cycle=500),
        budget=Budget(max_cycles=6, max_labels=60),
    )


def _rock_salt(origin: Origin, purpose: Purpose = Purpose.SEED, **fields: Any) -> Frame:
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
class _Author:
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

    def add_cycle(self, cycle: int) -> None:
        """Write one whole cycle."""
        opened = self.clock
        walkers = self.segments = [self.walk(cycle, walker) for walker in range(2)]
        stages = {"explore": self.stage(Stage.EXPLORE, 24.0, n_jobs=2)}
        stages["select"] = self.stage(Stage.SELECT, 1.5)
        n_uncertain = (8, 7, 5, 4)[cycle]
        wanted = [
            (Purpose.SEED if cycle == 0 and i < 4 else Purpose.UNCERTAIN)
            for i in range(n_uncertain)
        ] + [Purpose.AUDIT] * 3
        keys, fresh = self.label_all(cycle, wanted, fail_one=cycle in {1, 2})
        stages["label"] = self.stage(
            Stage.LABEL, 8.0 * len(keys), n_jobs=len(keys), failed=len(keys) - len(fresh)
        )
        stages["gather"] = self.stage(Stage.GATHER, 1.0)
        stages["finetune"] = self.stage(Stage.FINETUNE, 38.0 + 6.0 * cycle)
        stages["assess"] = self.stage(Stage.ASSESS, 1.0)
        before = self.models.index(self.incumbent)
        verdict, model_id, errors, coverage = self.train(cycle, fresh, before)
        self.store.open_cycle(
            CycleDocument(
                campaign=self.name,
                cycle=cycle,
                state=CycleState.DONE,
                incumbent_id=self.models[before],
                calibration=synthetic_calibration(before),
                stages=stages,
                outputs={f"explore/{w.walker}": self.walked_frames(cycle, w) for w in walkers},
                walkers=[
                    w.model_dump(mode="json", exclude={"candidates", "pool", "blob"})
                    for w in walkers
                ],
                selection=Selection(
                    n_candidates=40 - 7 * cycle,
                    n_unphysical=2 if cycle == 0 else 0,
                    n_duplicates=6,
                    keys=keys,
                    reused_keys=[],
                    new_keys=keys,
                    threshold_eV_A=self.campaign.tolerance_eV_A,
                    sentences=[
                        f"{n_uncertain} of {40 - 7 * cycle} candidates are labelled.",
                        "3 random frames are labelled as an audit.",
                    ],
                ),
                errors=errors,
                fresh_coverage=coverage,
                challenger_id=model_id,
                verdict=verdict,
                created=opened,
                finished=self.clock,
            )
        )
        self.say(
            f"cycle {cycle} closed: {str(verdict.decision).replace('_', ' ')}",
            cycle=cycle,
            details={"sentences": verdict.sentences, "promoted": verdict.promoted},
        )
        self.store.set_campaign(
            self.name,
            incumbent_id=self.incumbent,
            reason=f"cycle {cycle + 1} is running",
            totals=self.totals(),
        )

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
        frame = _rock_salt(origin, purpose, sigma_eV_A=sigma_eV_A)
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
        self.core_hours += sum(attempt.seconds or 0.0 for attempt in attempts) / 3600
        message = attempts[-1].message
        self.store.record_failure(key, cause=cause, reason=message, attempts=attempts)
        self.say(f"Label {key[:10]} failed: {message}.", cycle=cycle, label_key=key)

    def evaluate(self, generation: int, keys: list[str]) -> dict[str, Any]:
        """Return synthetic predictions of a generation of models on labels."""
        return synthetic_evaluation(generation, {key: self.truths[key] for key in keys})

    def train(
        self, cycle: int, fresh: list[str], before: int
    ) -> tuple[Verdict, str, dict[str, ErrorStatistics], dict[str, float]]:
        """Write the data set and the challenger of a cycle."""
        generation = cycle + 1
        model_id = f"{self.name}-c{cycle}-{self.rng.integers(16**8):08x}"
        tables = {
            "pretrained/audit": self.evaluate(0, self.audits),
            "incumbent/audit": self.evaluate(before, self.audits),
            "challenger/audit": self.evaluate(generation, self.audits),
            "incumbent/fresh": self.evaluate(before, fresh),
        }
        errors = {name: synthetic_statistics(table) for name, table in tables.items()}
        pairs = frame_pairs(tables["incumbent/fresh"])
        coverage = report(
            pairs.errors_eV_A,
            pairs.sigmas_eV_A,
            pairs.forces_eV_A,
            calibration=synthetic_calibration(before),
        )
        promoted = cycle != 2
        rmse = {k: errors[f"{k}/audit"].force_rmse_eV_A for k in ("incumbent", "challenger")}
        verdict = Verdict(
            promoted=promoted,
            incumbent_id=model_id if promoted else self.incumbent,
            decision=Decision.CONVERGED if cycle == 3 else Decision.CONTINUE,
            sentences=[
                f"Audit force RMSE {rmse['incumbent']:.3f} → {rmse['challenger']:.3f} eV/Å: "
                + ("promoted." if promoted else "not better, the incumbent stays."),
                "All criteria are met: converged." if cycle == 3 else "Another cycle follows.",
            ],
        )
        dataset = f"{cycle:02d}{self.rng.integers(16**10):010x}"
        self.store.add_dataset(
            DatasetDocument(
                hash=dataset,
                campaign=self.name,
                cycle=cycle,
                entries=[{"key": k, "split": str(s)} for k, s in sorted(self.splits.items())],
                recipe_fingerprint=FINGERPRINT,
                created=self.clock,
            )
        )
        epochs = np.arange(1, 41)
        self.store.add_model(
            ModelDocument(
                model_id=model_id,
                campaign=self.name,
                cycle=cycle,
                potential=PRETRAINED,
                parent_id=PRETRAINED,
                dataset_hash=dataset,
                sha256=None,
                promoted=promoted,
                verdict=verdict.sentences,
                errors=errors,
                calibration=synthetic_calibration(generation),
                history=[{"epoch": float(e), "loss": float(0.1 * np.exp(-e / 12))} for e in epochs],
                training={"epochs": 60, "learning_rate": 2e-3},
                fresh_coverage=coverage,
                versions={"otf-workflows": "0.1.0", "chgnet": "0.4.2", "torch": "2.13.0"},
                created=self.clock,
            )
        )
        self.store.put_file(f"evaluation/{model_id}", json.dumps(tables).encode())
        self.models.append(model_id)
        if promoted:
            self.incumbent = model_id
        return verdict, model_id, errors, coverage

    def add_production(self) -> None:
        """Write the production run and its audit, and end the campaign."""
        opened, cycle, self.segments = self.clock, len(self.models) - 1, []
        stages = {"produce": self.stage(Stage.PRODUCE, 95.0), "audit": self.stage(Stage.AUDIT, 20)}
        _, done = self.label_all(cycle, [Purpose.AUDIT] * 4)
        stages["label"] = self.stage(Stage.LABEL, 32.0, n_jobs=4)
        stages["gather"] = self.stage(Stage.GATHER, 1.0)
        stages["evaluate"] = self.stage(Stage.EVALUATE, 6.0)
        stages["conclude"] = self.stage(Stage.CONCLUDE, 1.0)
        final = {model: self.evaluate(i, self.audits) for i, model in enumerate(self.models)}
        self.store.put_file(f"evaluation/{self.name}/final", json.dumps(final).encode())
        errors = {f"{model}/audit": synthetic_statistics(table) for model, table in final.items()}
        errors |= {
            f"{model}/production": synthetic_statistics(self.evaluate(i, done))
            for i, model in enumerate(self.models)
        }
        self.store.open_cycle(
            CycleDocument(
                campaign=self.name,
                cycle=cycle,
                kind="production",
                state=CycleState.DONE,
                incumbent_id=self.incumbent,
                calibration=synthetic_calibration(len(self.models) - 1),
                stages=stages,
                errors=errors,
                created=opened,
                finished=self.clock,
            )
        )
        wishes = self.campaign.production
        assert wishes is not None  # noqa: S101  # the campaign above asks for one
        self.store.add_property(
            PropertyDocument(
                campaign=self.name,
                model_id=self.incumbent,
                kind="production",
                conditions={
                    "temperature_K": wishes.temperature_K,
                    "n_atoms": 64,
                    "timestep_fs": wishes.timestep_fs,
                    "ensemble": "NVT",
                },
                values={
                    **synthetic_run(
                        self.rng, n_steps=wishes.steps, temperature_K=wishes.temperature_K
                    ),
                    "rdf": synthetic_rdf(self.rng),
                    "msd": synthetic_msd(self.rng),
                },
                trajectory_uuid=store_output(
                    self.store.database,
                    f"synthetic-{self.name}",
                    {
                        "trajectory": synthetic_trajectory(
                            np.random.default_rng(1), self.campaign.structure, supercell=(2, 2, 2)
                        ),
                        "audit_trajectory": synthetic_trajectory(
                            np.random.default_rng(2), self.campaign.structure, n_frames=30
                        ),
                    },
                ),
                created=self.clock,
            )
        )
        self.say("production finished", cycle=cycle)
        self.store.set_campaign(
            self.name,
            state=CampaignState.CONVERGED,
            outcome=CampaignState.CONVERGED,
            reason="All criteria of convergence were met in cycle 3 (synthetic numbers).",
            finished=self.clock,
            totals=self.totals() | {"production_steps": float(wishes.steps)},
        )

    def totals(self) -> dict[str, float]:
        """Return the totals so far."""
        return {
            "md_steps": float(500 * 2 * (len(self.models) - 1)),
            "labels_computed": float(len(self.truths)),
            "labels_reused": 0.0,
            "core_hours": self.core_hours,
            "seconds_total": (self.clock - self.start).total_seconds(),
        }
