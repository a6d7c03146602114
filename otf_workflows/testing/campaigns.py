"""A synthetic campaign in a store, so that pages and commands can be tried without any physics.

All numbers are drawn from a seeded generator and shaped like those of a real campaign; none was
computed. The material, the names and every sentence say so.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from otf_workflows.calibration import frame_pairs
from otf_workflows.campaign import Budget, Campaign, Exploration
from otf_workflows.honesty import report
from otf_workflows.schemas import (
    CycleDocument,
    DatasetDocument,
    ErrorStatistics,
    ModelDocument,
    Origin,
    PropertyDocument,
    Selection,
    Verdict,
    now,
)
from otf_workflows.testing.author import FINGERPRINT, PRETRAINED, Author, rock_salt
from otf_workflows.testing.synthetic import (
    synthetic_calibration,
    synthetic_msd,
    synthetic_rdf,
    synthetic_run,
    synthetic_statistics,
)
from otf_workflows.testing.trajectories import store_output, synthetic_trajectory
from otf_workflows.types import CampaignState, CycleState, Decision, Purpose, Stage

if TYPE_CHECKING:
    from otf_workflows.schemas import CampaignDocument
    from otf_workflows.store import Store

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
    author = Author(store, _campaign(name), np.random.default_rng(seed), start=start)
    author.submit()
    for cycle in range(n_cycles):
        _add_cycle(author, cycle)
    if production:
        _add_production(author)
    return store.campaign(name)


def _campaign(name: str) -> Campaign:
    return Campaign(
        name=name,
        structure=rock_salt(Origin(note="synthetic rock-salt cell")),
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


def _add_cycle(author: Author, cycle: int) -> None:
    """Write one whole cycle."""
    opened = author.clock
    walkers = author.segments = [author.walk(cycle, walker) for walker in range(2)]
    stages = {"explore": author.stage(Stage.EXPLORE, 24.0, n_jobs=2)}
    stages["select"] = author.stage(Stage.SELECT, 1.5)
    n_uncertain = (8, 7, 5, 4)[cycle]
    wanted = [
        (Purpose.SEED if cycle == 0 and i < 4 else Purpose.UNCERTAIN) for i in range(n_uncertain)
    ] + [Purpose.AUDIT] * 3
    keys, fresh = author.label_all(cycle, wanted, fail_one=cycle in {1, 2})
    stages["label"] = author.stage(
        Stage.LABEL, 8.0 * len(keys), n_jobs=len(keys), failed=len(keys) - len(fresh)
    )
    stages["gather"] = author.stage(Stage.GATHER, 1.0)
    stages["finetune"] = author.stage(Stage.FINETUNE, 38.0 + 6.0 * cycle)
    stages["assess"] = author.stage(Stage.ASSESS, 1.0)
    before = author.models.index(author.incumbent)
    verdict, model_id, errors, coverage = _train(author, cycle, fresh, before)
    author.store.open_cycle(
        CycleDocument(
            campaign=author.name,
            cycle=cycle,
            state=CycleState.DONE,
            incumbent_id=author.models[before],
            calibration=synthetic_calibration(before),
            stages=stages,
            outputs={f"explore/{w.walker}": author.walked_frames(cycle, w) for w in walkers},
            walkers=[
                w.model_dump(mode="json", exclude={"candidates", "pool", "blob"}) for w in walkers
            ],
            selection=Selection(
                n_candidates=40 - 7 * cycle,
                n_unphysical=2 if cycle == 0 else 0,
                n_duplicates=6,
                keys=keys,
                reused_keys=[],
                new_keys=keys,
                threshold_eV_A=author.campaign.tolerance_eV_A,
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
            finished=author.clock,
        )
    )
    author.say(
        f"cycle {cycle} closed: {str(verdict.decision).replace('_', ' ')}",
        cycle=cycle,
        details={"sentences": verdict.sentences, "promoted": verdict.promoted},
    )
    author.store.set_campaign(
        author.name,
        incumbent_id=author.incumbent,
        reason=f"cycle {cycle + 1} is running",
        totals=author.totals(),
    )


def _train(
    author: Author, cycle: int, fresh: list[str], before: int
) -> tuple[Verdict, str, dict[str, ErrorStatistics], dict[str, float]]:
    """Write the data set and the challenger of a cycle."""
    generation = cycle + 1
    model_id = f"{author.name}-c{cycle}-{author.rng.integers(16**8):08x}"
    tables = {
        "pretrained/audit": author.evaluate(0, author.audits),
        "incumbent/audit": author.evaluate(before, author.audits),
        "challenger/audit": author.evaluate(generation, author.audits),
        "incumbent/fresh": author.evaluate(before, fresh),
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
        incumbent_id=model_id if promoted else author.incumbent,
        decision=Decision.CONVERGED if cycle == 3 else Decision.CONTINUE,
        sentences=[
            f"Audit force RMSE {rmse['incumbent']:.3f} → {rmse['challenger']:.3f} eV/Å: "
            + ("promoted." if promoted else "not better, the incumbent stays."),
            "All criteria are met: converged." if cycle == 3 else "Another cycle follows.",
        ],
    )
    dataset = f"{cycle:02d}{author.rng.integers(16**10):010x}"
    author.store.add_dataset(
        DatasetDocument(
            hash=dataset,
            campaign=author.name,
            cycle=cycle,
            entries=[{"key": k, "split": str(s)} for k, s in sorted(author.splits.items())],
            recipe_fingerprint=FINGERPRINT,
            created=author.clock,
        )
    )
    epochs = np.arange(1, 41)
    author.store.add_model(
        ModelDocument(
            model_id=model_id,
            campaign=author.name,
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
            created=author.clock,
        )
    )
    author.store.put_file(f"evaluation/{model_id}", json.dumps(tables).encode())
    author.models.append(model_id)
    if promoted:
        author.incumbent = model_id
    return verdict, model_id, errors, coverage


def _add_production(author: Author) -> None:
    """Write the production run and its audit, and end the campaign."""
    opened, cycle, author.segments = author.clock, len(author.models) - 1, []
    stages = {"produce": author.stage(Stage.PRODUCE, 95.0), "audit": author.stage(Stage.AUDIT, 20)}
    _, done = author.label_all(cycle, [Purpose.AUDIT] * 4)
    stages["label"] = author.stage(Stage.LABEL, 32.0, n_jobs=4)
    stages["gather"] = author.stage(Stage.GATHER, 1.0)
    stages["evaluate"] = author.stage(Stage.EVALUATE, 6.0)
    stages["conclude"] = author.stage(Stage.CONCLUDE, 1.0)
    final = {model: author.evaluate(i, author.audits) for i, model in enumerate(author.models)}
    author.store.put_file(f"evaluation/{author.name}/final", json.dumps(final).encode())
    errors = {f"{model}/audit": synthetic_statistics(table) for model, table in final.items()}
    errors |= {
        f"{model}/production": synthetic_statistics(author.evaluate(i, done))
        for i, model in enumerate(author.models)
    }
    author.store.open_cycle(
        CycleDocument(
            campaign=author.name,
            cycle=cycle,
            kind="production",
            state=CycleState.DONE,
            incumbent_id=author.incumbent,
            calibration=synthetic_calibration(len(author.models) - 1),
            stages=stages,
            errors=errors,
            created=opened,
            finished=author.clock,
        )
    )
    wishes = author.campaign.production
    assert wishes is not None  # noqa: S101  # the campaign above asks for one
    author.store.add_property(
        PropertyDocument(
            campaign=author.name,
            model_id=author.incumbent,
            kind="production",
            conditions={
                "temperature_K": wishes.temperature_K,
                "n_atoms": 64,
                "timestep_fs": wishes.timestep_fs,
                "ensemble": "NVT",
            },
            values={
                **synthetic_run(
                    author.rng, n_steps=wishes.steps, temperature_K=wishes.temperature_K
                ),
                "rdf": synthetic_rdf(author.rng),
                "msd": synthetic_msd(author.rng),
            },
            trajectory_uuid=store_output(
                author.store.database,
                f"synthetic-{author.name}",
                {
                    "trajectory": synthetic_trajectory(
                        np.random.default_rng(1), author.campaign.structure, supercell=(2, 2, 2)
                    ),
                    "audit_trajectory": synthetic_trajectory(
                        np.random.default_rng(2), author.campaign.structure, n_frames=30
                    ),
                },
            ),
            created=author.clock,
        )
    )
    author.say("production finished", cycle=cycle)
    author.store.set_campaign(
        author.name,
        state=CampaignState.CONVERGED,
        outcome=CampaignState.CONVERGED,
        reason="All criteria of convergence were met in cycle 3 (synthetic numbers).",
        finished=author.clock,
        totals=author.totals() | {"production_steps": float(wishes.steps)},
    )
