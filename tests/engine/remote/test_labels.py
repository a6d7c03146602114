"""Each label is computed once through jobflow-remote as well."""

from __future__ import annotations

from otf_workflows.claims import Claims
from otf_workflows.engine import JobState
from otf_workflows.errors import LabelFailed
from otf_workflows.flow import relabel
from otf_workflows.reconcile import book_labels
from otf_workflows.testing.remote import let_labels_go
from otf_workflows.types import FailureCause, LabelState

N_LABELS = 4


def test_two_campaigns_that_ask_at_once_get_one_computation(begin, drain, engine, store, computed):
    first, second = begin("one"), begin("two")
    drain()
    assert len(computed) == len(set(computed)) == N_LABELS
    for batch in (first, second):
        found = engine.output(batch)
        assert (found.n_train + found.n_validation + found.n_audit, found.missing_keys) == (4, [])
    labels = [j for n in ("one", "two") for j in engine.jobs(campaign=n) if j.label_key]
    assert len(labels) == 2 * N_LABELS
    assert {job.state for job in labels} == {JobState.DONE}
    done = store.labels(states=[LabelState.DONE])
    assert {wish["campaign"] for label in done for wish in label.wanted_by} == {"one", "two"}


def test_a_label_that_another_job_computes_is_waited_for(begin, runner, drain, computed):
    engine = runner.engine
    begin("one")
    let_labels_go(runner, 0)
    drain()
    keys = [job.label_key for job in engine.jobs(campaign="one") if job.label_key]
    assert len(keys) == N_LABELS
    claims = Claims(engine.database)
    assert claims.take(keys[0], by="a FireWorks job")
    let_labels_go(runner, 2)
    drain()
    waiting = [j.label_key for j in engine.jobs(campaign="one") if j.label_key and not j.finished]
    assert waiting == [keys[0]]
    claims.release(keys[0], by="a FireWorks job")
    drain()
    assert sorted(computed) == sorted(keys)


def test_the_claim_of_a_job_that_is_held_is_taken_over(begin, runner, drain, computed):
    engine = runner.engine
    begin("one")
    begin("two")
    let_labels_go(runner, 0)
    drain()
    claims = Claims(engine.database)
    for job in engine.jobs(campaign="one"):
        if job.label_key:  # as if each had been on its way and had been put back
            assert claims.take(job.label_key, by=job.uuid, seconds=3600)
    engine.pause("one")
    let_labels_go(runner, 2)
    drain()
    assert len(computed) == N_LABELS
    assert {str(j.state) for j in engine.jobs(campaign="two")} == {"done"}
    engine.resume("one")
    drain()
    assert len(computed) == N_LABELS
    assert {str(j.state) for j in engine.jobs(campaign="one")} == {"done"}


def test_a_failure_in_a_label_is_not_tried_again_for_another_campaign(
    begin, drain, engine, store, monkeypatch
):
    from otf_workflows.labelers.ase_calculator import AseLabeler

    tried = []

    def label(self, frame, recipe, *, key, **_rest):
        tried.append(key)
        raise LabelFailed("hopeless", cause=FailureCause.SCF, where="/somewhere")

    monkeypatch.setattr(AseLabeler, "label", label)
    begin("one")
    begin("two")
    drain()
    assert len(tried) == len(set(tried)) == N_LABELS
    for name in ("one", "two"):
        failed = [job for job in engine.jobs(campaign=name) if job.label_key]
        assert {job.failure["cause"] for job in failed} == {"scf"}
        assert all(job.started for job in failed)
        book_labels(store, engine, name)
    assert {label.reason for label in store.labels()} == {"hopeless"}


def test_a_booked_label_is_taken_without_a_calculation(begin, drain, engine, store, computed):
    begin("one")
    drain()
    n_computed = len(computed)
    store.database.jobflow_outputs.delete_many({})
    label = store.labels()[0]  # booked by gather: an imported one is no different
    engine.submit(relabel(label, campaign="one"), campaign="one", cycle=0, kind="relabel")
    drain()
    assert len(computed) == n_computed
    (job,) = engine.jobs(campaign="one", kind="relabel")
    assert job.state is JobState.DONE
    assert engine.output(job.uuid).energy_eV == label.result.energy_eV
