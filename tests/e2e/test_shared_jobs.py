"""A whole campaign whose walkers share jobs: every segment is found wherever it is looked for."""

from __future__ import annotations

import pytest

from otf_workflows import Store, control, run_locally
from otf_workflows.alignment import Alignment
from otf_workflows.campaign import (
    Budget,
    Campaign,
    Exploration,
    Production,
    Seeding,
    SelectionRules,
)
from otf_workflows.dashboard.queries.trajectories import walker_trajectory
from otf_workflows.engine.base import JobState
from otf_workflows.reconcile import reconcile
from otf_workflows.schemas import Frame, WalkerSegment
from otf_workflows.testing.labelling import workers_here
from otf_workflows.training.finetune import Finetuned
from otf_workflows.trajectories import walker_frames
from otf_workflows.types import Role, Stage

pytestmark = pytest.mark.integration


@pytest.fixture
def campaign():
    from ase.build import bulk

    return Campaign(
        name="shared",
        structure=Frame.from_atoms(bulk("Cu", cubic=True)),
        potential="toy-lj",
        tolerance_eV_A=10.0,  # walkers are to move
        labels={"code": "ase", "calculator": "emt"},
        seeding=Seeding(n_frames=2),
        exploration=Exploration(
            temperatures_K=[300, 400, 500], walkers_per_job=2, steps_per_cycle=30, check_every=5
        ),
        selection=SelectionRules(
            labels_per_cycle=4, audit_per_cycle=1, min_labels=2, duplicate_distance=0.0
        ),
        budget=Budget(max_cycles=2, max_labels=40),
        production=Production(
            supercell=(1, 1, 1), steps=20, sample_every=2, audit_steps=10, audit_labels=2
        ),
    )


@pytest.fixture(autouse=True)
def _no_training(monkeypatch):
    def untrained(parent, labels, **_rules):
        """Return the parent: training needs torch."""
        return Finetuned(parent, [], Alignment.model_construct(sentences=[]), [], 0.0)

    monkeypatch.setattr("otf_workflows.training.finetune", untrained)


def test_every_walker_of_a_shared_job_is_one_trajectory_over_all_cycles(
    campaign, site, database, tmp_path
):
    report = tmp_path / "report.html"
    done = run_locally(campaign, site=site, report=report)
    store = Store(database)

    assert done.state.terminal
    cycles = store.cycles("shared")
    assert [cycle.kind for cycle in cycles] == ["cycle", "cycle", "production"]
    for cycle in cycles[:2]:
        places = [cycle.outputs[f"explore/{walker}"] for walker in range(3)]
        assert len({place.split("/")[0] for place in places}) == 2
        segments = [WalkerSegment.model_validate(w) for w in cycle.walkers]
        assert [s.walker for s in segments] == [0, 1, 2]
        assert [s.temperature_K for s in segments] == [300, 400, 500]
    for walker in range(3):
        kept = [cycle.walkers[walker]["n_steps"] for cycle in cycles[:2]]
        assert cycles[1].walkers[walker]["first_step"] == kept[0]
        frames = walker_frames(store, "shared", walker)
        assert [atoms.info["step"] for atoms in frames] == list(range(0, sum(kept) + 1, 5))
        shown = walker_trajectory(store, "shared", 1, walker)
        assert shown.steps[-1] == sum(kept)
    assert done.totals["md_steps"] == sum(w["n_steps_run"] for c in cycles for w in c.walkers)
    assert "walker" in report.read_text(encoding="utf-8")


def test_large_parts_of_a_shared_output_are_not_in_its_document(campaign, site, database):
    run_locally(campaign.model_copy(update={"production": None}), site=site)
    place = Store(database).cycles("shared")[0].outputs["explore/1"]
    uuid, part = place.split("/")
    stored = database.jobflow_outputs.find_one({"uuid": uuid})["output"]
    assert stored.keys() == {"walker-0", "walker-1"}
    for name in ("blob", "candidates", "pool"):
        assert "blob_uuid" in stored[part][name]


def test_on_fireworks_a_plain_rerun_of_a_shared_job_repeats_no_step(
    campaign, site, database, engine, monkeypatch
):
    store = Store(database)
    control.submit(campaign, store)
    reconcile(store, engine, "shared")
    with workers_here(site) as drain:
        assert drain(Role.MD) == 3  # two for walkers, one for seeds
        explorers = [j for j in engine.jobs(campaign="shared") if j.stage is Stage.EXPLORE]
        assert [job.state for job in explorers] == [JobState.DONE] * 2
        before = [engine.output(job.uuid) for job in explorers]

        def refuse(*_args, **_kwargs):
            raise AssertionError("walkers were run again")

        monkeypatch.setattr("otf_workflows.exploration.explore_together", refuse)
        for job in explorers:
            engine.launchpad.rerun_fw(job.engine_id)
        assert drain(Role.MD) == 2
        assert [engine.output(job.uuid) for job in explorers] == before
        drain(Role.CONTROL, most=1)
    assert [w["walker"] for w in store.cycles("shared")[0].walkers] == [0, 1, 2]
