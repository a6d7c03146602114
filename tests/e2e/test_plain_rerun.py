"""``lpad rerun_fws`` on any job of a whole cycle, on real FireWorks: nothing is done twice."""

from __future__ import annotations

import jobflow
import pytest

from otf_workflows import control
from otf_workflows.alignment import Alignment
from otf_workflows.campaign import Budget, Campaign, Exploration, Seeding, SelectionRules
from otf_workflows.engine.worker import Worker
from otf_workflows.reconcile import reconcile
from otf_workflows.schemas import Frame
from otf_workflows.store import Store
from otf_workflows.training.finetune import Finetuned
from otf_workflows.types import Role

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
        production=None,
    )


@pytest.fixture
def drain(site, monkeypatch):
    """Run all jobs in this process; training, which needs torch, returns its parent."""
    monkeypatch.setattr(jobflow.SETTINGS, "JOB_STORE", jobflow.SETTINGS.JOB_STORE)

    def untrained(parent, labels, **_rules):
        return Finetuned(parent, [], Alignment.model_construct(), [], 0.0)

    monkeypatch.setattr("otf_workflows.training.finetune", untrained)
    workers = [Worker(site, role, reconcile=False) for role in Role]

    def run():
        done = 0
        while n := sum(worker.run_one() for worker in workers):
            done += n
        return done

    yield run
    for worker in workers:
        worker.engine.close()


def test_a_plain_rerun_of_every_job_leaves_the_campaign_as_it_is(
    campaign, database, engine, drain, monkeypatch
):
    from otf_workflows.labelers.ase_calculator import AseLabeler

    computed, label = [], AseLabeler.label
    monkeypatch.setattr(
        AseLabeler, "label", lambda *a, **k: computed.append(k["key"]) or label(*a, **k)
    )
    store = Store(database)
    control.submit(campaign, store)
    reconcile(store, engine, "toy")
    drain()
    reconcile(store, engine, "toy")  # opens cycle 1, which has asked nothing yet

    def picture():
        return {
            "campaign": store.campaign("toy").model_dump(exclude={"lease"}),
            "cycles": [c.model_dump(exclude={"stages"}) for c in store.cycles("toy")],
            "labels": [item.model_dump() for item in store.labels()],
            "datasets": database.otf_datasets.count_documents({}),
            "models": [m.model_id for m in store.models()],
        }

    before, n_computed = picture(), len(computed)
    assert [c["state"] for c in before["cycles"]] == ["done", "running"]
    engine.pause("toy")  # cycle 1 waits, so that only what is run again runs
    database.otf_holds.delete_many({})
    first = engine.jobs(campaign="toy", cycle=0)
    for stage in ("label", "assess", "gather", "select"):
        job = next(job for job in first if job.stage == stage)
        engine.launchpad.rerun_fw(job.engine_id)
        assert drain() > 0, stage
        reconcile(store, engine, "toy")
        assert picture() == before, stage
    assert len(computed) == n_computed
    assert len(engine.find(campaign="toy", cycle=1, kind="cycle")) == 1
