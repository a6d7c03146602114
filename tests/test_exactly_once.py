"""Each label is computed once, whoever asks and whatever breaks: real FireWorks, real mongod."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest

from otf_workflows import claims, control, reconcile
from otf_workflows.campaign import Campaign, SelectionRules
from otf_workflows.claims import Claims, computed_once
from otf_workflows.connection import OUTPUTS
from otf_workflows.errors import LabelFailed
from otf_workflows.reconcile import adopt_labels, book_labels
from otf_workflows.schemas import Frame
from otf_workflows.store import Store
from otf_workflows.store_labels import GIVEN_UP
from otf_workflows.testing.labelling import ask_for_labels, walker_that_met, workers_here
from otf_workflows.testing.waiting import wait_for
from otf_workflows.types import FailureCause, LabelState, Role

pytestmark = pytest.mark.integration

CELL = [[3.6, 0, 0], [0, 3.6, 0], [0, 0, 3.6]]
N_LABELS = 5


def frame(x):
    return Frame(numbers=[29, 29], cell_A=CELL, positions_A=[[x, 0, 0], [1.8] * 3])


def campaign(name, **labels):
    return Campaign(
        name=name,
        structure=frame(0.0),
        potential="toy-lj",
        labels={"code": "ase", "calculator": "emt", **labels},
        selection=SelectionRules(
            labels_per_cycle=N_LABELS - 1, audit_per_cycle=1, duplicate_distance=0.0
        ),
    )


@pytest.fixture
def store(database):
    store = Store(database)
    store.ensure_indexes()
    return store


@pytest.fixture
def begin(store, engine):
    """Submit the part of a cycle that asks for labels and gathers them."""

    def start(asked):
        walker = walker_that_met([frame(0.02 * i) for i in range(1, N_LABELS + 1)])
        return ask_for_labels(asked, walker, store, engine)

    return start


@pytest.fixture
def drain(site):
    """Run what can run, as workers of these roles would."""
    with workers_here(site, Role.CONTROL, Role.DFT) as run:
        yield run


def test_two_campaigns_that_ask_at_the_same_time_get_one_computation_and_both_data_sets(
    begin, drain, computed, store, engine
):
    one, two = begin(campaign("one")), begin(campaign("two"))
    drain()
    assert len(computed) == len(set(computed)) == N_LABELS
    for name, batch in (("one", one), ("two", two)):
        assert store.label_counts(name)[LabelState.DONE] == N_LABELS
        found = engine.output(batch)
        assert found.missing_keys == []
        assert found.quorum_met
        assert len(found.fresh_keys) == N_LABELS
    assert store.database.otf_labels.count_documents({}) == N_LABELS


def test_labels_of_a_stopped_campaign_are_computed_by_the_one_that_wants_them_too(
    begin, drain, computed, store, engine
):
    begin(campaign("one"))
    drain(Role.CONTROL)
    two = begin(campaign("two"))
    drain(Role.CONTROL)
    control.stop("one", store, engine)
    book_labels(store, engine, "one")
    assert store.label_counts("two")[LabelState.PENDING] == N_LABELS, "somebody still wants them"
    drain()
    assert len(computed) == N_LABELS
    assert engine.output(two).missing_keys == []
    assert store.label_counts("two")[LabelState.DONE] == N_LABELS


def test_labels_given_up_with_their_campaign_are_computed_when_somebody_asks_again(
    begin, drain, computed, store, engine
):
    begin(campaign("one"))
    drain(Role.CONTROL)
    control.stop("one", store, engine)
    book_labels(store, engine, "one")
    given_up = store.labels(campaign="one")
    assert {label.reason for label in given_up} == {GIVEN_UP}
    assert {label.cause for label in given_up} == {FailureCause.KILLED}
    two = begin(campaign("two"))
    drain()
    assert len(computed) == N_LABELS
    assert engine.output(two).missing_keys == []


def test_labels_of_a_paused_campaign_do_not_keep_the_other_waiting(
    begin, drain, computed, store, engine
):
    begin(campaign("one"))
    drain(Role.CONTROL)
    control.pause("one", store, engine)
    two = begin(campaign("two"))
    drain()
    assert engine.output(two).missing_keys == []
    control.resume("one", store, engine)
    drain()
    assert len(computed) == N_LABELS
    assert store.label_counts("one")[LabelState.DONE] == N_LABELS


def test_a_pending_label_that_nobody_computes_is_adopted_once(
    begin, drain, computed, store, engine
):
    begin(campaign("one"))
    begin(campaign("two"))
    drain()
    key = computed.pop()
    # As if the jobs of both had been given up by hand: pending, and no job that will do it.
    store.database.otf_labels.update_one(
        {"key": key}, {"$set": {"state": "pending", "result": None}}
    )
    store.database[claims.COLLECTION].delete_many({})
    pad = engine.launchpad
    pad.fireworks.update_many(
        {"spec.label_key": key}, {"$set": {"state": "DEFUSED", "launches": []}}
    )
    store.database[OUTPUTS].delete_many({"output.key": key})
    done = []
    both = [
        threading.Thread(target=lambda n=name: done.extend(adopt_labels(store, engine, n)))
        for name in ("one", "two")
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(done) == 1
    assert adopt_labels(store, engine, "one") == adopt_labels(store, engine, "two") == []
    relabels = [j for n in ("one", "two") for j in engine.jobs(campaign=n, kind="relabel")]
    assert [job.label_key for job in relabels] == [key]
    drain()
    book_labels(store, engine, "two")
    book_labels(store, engine, "one")
    assert store.label(key).state is LabelState.DONE
    assert computed.count(key) == 1


def test_nothing_is_adopted_while_a_cycle_may_still_submit_it(begin, drain, store, engine):
    begin(campaign("one"))
    assert drain(Role.CONTROL, most=1) == 1  # select has asked and spawned; gather waits
    store.database.fireworks.update_many({"spec.stage": "label"}, {"$set": {"state": "DEFUSED"}})
    assert adopt_labels(store, engine, "one") == []


def test_a_failure_of_the_frame_is_told_to_the_other_campaign_not_tried_again(
    begin, drain, computed, store, engine
):
    failing = {
        "calculator": "otf_workflows.testing.labelers.FailingCalculator",
        "kwargs": {"calculator": "emt", "share": 1.0},
    }
    begin(campaign("one", **failing))
    begin(campaign("two", **failing))
    drain()
    assert len(computed) == N_LABELS, "the other campaign's jobs heard of the failure"
    book_labels(store, engine, "one")
    labels = store.labels(campaign="two")
    assert {label.state for label in labels} == {LabelState.FAILED}
    assert all("chosen to fail" in label.reason for label in labels)


def test_an_old_failure_booked_again_while_a_rerun_is_submitted_does_not_stand(
    begin, drain, store, engine, monkeypatch
):
    failing = {
        "calculator": "otf_workflows.testing.labelers.FailingCalculator",
        "kwargs": {"calculator": "emt", "share": 1.0},
    }
    begin(campaign("one", **failing))
    drain()
    book_labels(store, engine, "one")
    monkeypatch.setattr(reconcile, "RERUN_GRACE", timedelta(0))  # a machine that is very slow
    submit = engine.submit

    def slow(flow, **key):
        book_labels(store, engine, "one")
        return submit(flow, **key)

    monkeypatch.setattr(engine, "submit", slow)
    control.rerun(control.plan_rerun(store, engine, campaign="one"), store, engine)
    book_labels(store, engine, "one")
    assert store.label_counts("one")[LabelState.PENDING] == N_LABELS


@pytest.mark.parametrize("stage", ["label", "select", "gather"])
def test_a_plain_rerun_by_fireworks_own_command_is_harmless(  # noqa: PLR0917
    stage, begin, drain, computed, store, engine
):
    batch = begin(campaign("one"))
    drain()
    before = engine.output(batch)
    labels = {label.key: label.result for label in store.labels()}
    for job in engine.jobs(campaign="one"):
        if job.stage == stage:
            engine.launchpad.rerun_fw(job.engine_id)
    assert drain() > 0
    assert len(computed) == N_LABELS, "nothing was computed again"
    assert {label.key: label.result for label in store.labels()} == labels
    assert store.database.otf_cycles.count_documents({}) == 1
    assert engine.output(batch).dataset_hash == before.dataset_hash
    assert {job.state for job in engine.jobs(campaign="one")} == {"done"}


# -- the claim itself ------------------------------------------------------------------------------


def test_one_of_many_gets_a_claim(database):
    book = Claims(database)
    got = []
    threads = [
        threading.Thread(target=lambda n=n: got.append(book.take("k", by=f"job-{n}")))
        for n in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got.count(True) == 1


def run_out(database, key):
    """Let a claim run out now."""
    past = [{"$set": {"until": {"$subtract": ["$$NOW", 1]}}}]
    assert database[claims.COLLECTION].update_one({"_id": key}, past).matched_count


def test_a_claim_is_its_jobs_own_until_it_runs_out(database):
    book = Claims(database)
    assert book.take("k", by="one")
    assert book.take("k", by="one"), "a relaunch of the same job goes on"
    assert not book.take("k", by="two")
    run_out(database, "k")
    assert book.take("k", by="two")
    assert not book.take("k", by="one")


def test_a_failure_is_told_once_and_a_rerun_may_try_again(database):
    book = Claims(database)
    book.take("k", by="one")
    book.fail("k", by="one", failure={"message": "no"})
    assert not book.take("k", by="two")
    assert book.failure_for("k", by="two") == {"message": "no"}
    assert book.failure_for("k", by="two") is None
    assert book.take("k", by="two")
    assert book.failure_for("k", by="three") is None, "it is being computed again"


def test_a_persons_rerun_forgets_the_failure(database):
    book = Claims(database)
    book.take("k", by="one")
    book.forget_failure("k")
    assert not book.take("k", by="two"), "a claim at work is not a failure"
    book.fail("k", by="one", failure={"message": "no"})
    book.forget_failure("k")
    assert book.take("k", by="two")


@pytest.mark.parametrize("cause", [FailureCause.NODE, FailureCause.WALLTIME])
def test_a_failure_of_the_machine_is_nobody_elses(database, cause):
    def broken():
        raise LabelFailed("the node died", cause=cause)

    with pytest.raises(LabelFailed):
        computed_once(database, "k", by="one", known=lambda: None, compute=broken)
    done = computed_once(database, "k", by="two", known=lambda: None, compute=lambda: "fine")
    assert done == "fine"


def test_who_waits_gets_the_result_of_who_computes(database, monkeypatch):
    monkeypatch.setattr(claims, "POLL_S", 0.01)
    result, computing = [], threading.Event()

    def slow():
        computing.set()
        time.sleep(0.2)
        result.append("made")
        return "made"

    def known():
        return result[0] if result else None

    def never():
        raise AssertionError("computed twice")

    first = threading.Thread(
        target=computed_once, args=(database, "k"),
        kwargs={"by": "one", "known": known, "compute": slow},
    )  # fmt: skip
    first.start()
    computing.wait()
    assert computed_once(database, "k", by="two", known=known, compute=never) == "made"
    first.join()


def test_a_long_computation_keeps_its_claim(database, monkeypatch):
    monkeypatch.setattr(claims, "RENEW_S", 0.05)
    book = Claims(database)

    def long():
        run_out(database, "k")
        free = {"$expr": {"$lt": ["$until", "$$NOW"]}}
        wait_for(lambda: not database[claims.COLLECTION].count_documents(free), "a renewal")
        return book.take("k", by="two")

    assert not computed_once(database, "k", by="one", known=lambda: None, compute=long)
