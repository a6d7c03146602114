"""``lpad rerun_fws`` on any job of a whole cycle, on real FireWorks: nothing is done twice."""

from __future__ import annotations

import importlib

import pytest

from otf_workflows import control
from otf_workflows.alignment import Alignment
from otf_workflows.campaign import (
    Budget,
    Campaign,
    Exploration,
    Production,
    Seeding,
    SelectionRules,
)
from otf_workflows.engine.routing import HELPER
from otf_workflows.reconcile import reconcile
from otf_workflows.schemas import Frame
from otf_workflows.store import Store
from otf_workflows.testing.labelling import workers_here
from otf_workflows.training.finetune import Finetuned
from otf_workflows.types import LabelState, Role

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture
def campaign():
    from ase.build import bulk

    return Campaign(
        name="toy",
        structure=Frame.from_atoms(bulk("Cu", cubic=True)),
        potential="toy-lj",
        labels={"code": "ase", "calculator": "emt"},
        seeding=Seeding(n_frames=2),
        exploration=Exploration(temperatures_K=[300], steps_per_cycle=20, check_every=5),
        selection=SelectionRules(
            labels_per_cycle=4, audit_per_cycle=1, min_labels=2, duplicate_distance=0.0
        ),
        budget=Budget(max_cycles=2, max_labels=40),
        production=Production(
            temperature_K=300,
            supercell=(1, 1, 1),
            steps=20,
            sample_every=2,
            audit_steps=10,
            audit_labels=2,
        ),
    )


@pytest.fixture
def done(monkeypatch):
    """What was really done, in order: keys of labels, and one word for MD and training."""
    from otf_workflows.labelers.ase_calculator import AseLabeler

    done = []

    def noted(target, what):
        module, _, name = target.rpartition(".")
        original = getattr(importlib.import_module(module), name)
        monkeypatch.setattr(target, lambda *a, **k: done.append(what) or original(*a, **k))

    def untrained(parent, labels, **_rules):
        """Return the parent: training needs torch."""
        return Finetuned(parent, [], Alignment.model_construct(sentences=[]), [], 0.0)

    label = AseLabeler.label
    monkeypatch.setattr(
        AseLabeler, "label", lambda *a, **k: done.append(k["key"]) or label(*a, **k)
    )
    monkeypatch.setattr("otf_workflows.training.finetune", untrained)
    noted("otf_workflows.training.finetune", "trained")
    noted("otf_workflows.exploration.explore", "explored")
    noted("otf_workflows.exploration.run_production", "produced")
    return done


@pytest.fixture
def drain(site):
    """Run all jobs in this process."""
    with workers_here(site) as run:
        yield run


@pytest.fixture
def store(database, campaign):
    store = Store(database)
    control.submit(campaign, store)
    return store


def picture(store):
    """Everything of a campaign that a rerun might spoil."""
    database = store.database
    return {
        "campaign": store.campaign("toy").model_dump(exclude={"lease", "totals"}),
        "cycles": [c.model_dump(exclude={"stages"}) for c in store.cycles("toy")],
        "labels": [item.model_dump() for item in store.labels()],
        "datasets": database.otf_datasets.count_documents({}),
        "models": [m.model_id for m in store.models()],
        "properties": [item.model_dump() for item in store.properties("toy")],
        "events": [event.what for event in store.events("toy")],
        "workflows": database.workflows.count_documents({}),
    }


def rerun(engine, stage, cycle):
    """Run the jobs of one stage again, as ``lpad rerun_fws`` would."""
    named = HELPER if stage == HELPER else None
    jobs = [
        job
        for job in engine.jobs(campaign="toy", cycle=cycle)
        if (job.name == named if named else job.stage == stage)
    ]
    assert jobs, stage
    for job in jobs:
        engine.launchpad.rerun_fw(job.engine_id)


CYCLE = ["seed", "explore", "select", "label", HELPER, "gather", "finetune", "assess"]


def test_a_plain_rerun_of_every_job_of_a_closed_cycle_leaves_the_campaign_as_it_is(
    store, engine, drain, done
):
    reconcile(store, engine, "toy")
    drain()
    reconcile(store, engine, "toy")  # opens cycle 1, which has asked nothing yet
    before, n_done = picture(store), len(done)
    assert [c["state"] for c in before["cycles"]] == ["done", "running"]
    engine.pause("toy")  # cycle 1 waits, so that only what is run again runs
    store.database.otf_holds.delete_many({})
    for stage in reversed(CYCLE):
        rerun(engine, stage, 0)
        assert drain() > 0, stage
        reconcile(store, engine, "toy")
        assert picture(store) == before, stage
        assert len(done) == n_done, stage


@pytest.mark.parametrize("stage", CYCLE[:5])
def test_a_plain_rerun_in_an_open_cycle_computes_nothing_twice(stage, store, engine, drain, done):
    reconcile(store, engine, "toy")
    for roles in ([Role.MD], [Role.CONTROL], [Role.DFT]):
        drain(*roles)
    if stage == HELPER:
        drain(Role.CONTROL)
    rerun(engine, stage, 0)
    drain()
    labels = store.labels(campaign="toy")
    assert {label.state for label in labels} == {LabelState.DONE}
    assert sorted(what for what in done if what in {label.key for label in labels}) == sorted(
        label.key for label in labels
    )
    assert (done.count("explored"), done.count("trained")) == (1, 1)
    (cycle,) = store.cycles("toy")
    assert cycle.state == "done"
    assert len(store.models("toy")) == 1


def test_a_plain_rerun_of_every_job_of_a_finished_campaign_leaves_it_as_it_is(
    store, engine, drain, done
):
    while reconcile(store, engine, "toy"):
        drain()
    before, n_done = picture(store), len(done)
    assert store.campaign("toy").state.terminal
    assert before["cycles"][-1]["kind"] == "production"
    for stage in ("conclude", "evaluate", "gather", "label", "audit", "produce"):
        rerun(engine, stage, before["cycles"][-1]["cycle"])
        assert drain() > 0, stage
        assert reconcile(store, engine, "toy") == []
        assert picture(store) == before, stage
        assert len(done) == n_done, stage
