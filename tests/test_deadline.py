"""Training starts with the labels that are in; late ones are computed once and join later."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from otf_workflows import control
from otf_workflows.campaign import Campaign, Quorum, SelectionRules
from otf_workflows.deadline import is_past
from otf_workflows.engine.base import RELABEL
from otf_workflows.ledger import draw_dataset
from otf_workflows.reconcile import reconcile
from otf_workflows.schemas import Frame, Selection, now
from otf_workflows.store import Store
from otf_workflows.testing.labelling import ask_for_labels, walker_that_met, workers_here
from otf_workflows.types import LabelState, Role, Stage

CELL = [[3.6, 0, 0], [0, 3.6, 0], [0, 0, 3.6]]
N_LABELS = 5
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def asked(**fields):
    return Selection(
        n_candidates=1, n_unphysical=0, n_duplicates=0, keys=[], reused_keys=[], new_keys=[],
        threshold_eV_A=0.1, **fields,
    )  # fmt: skip


def test_a_deadline_counts_from_when_the_labels_were_asked_for():
    quorum = Quorum(deadline_h=2)
    selection = asked(asked=NOON)
    assert not is_past(selection, quorum, moment=NOON + timedelta(hours=1.9))
    assert is_past(selection, quorum, moment=NOON + timedelta(hours=2))
    # MongoDB gives times without their zone; they are in UTC.
    assert is_past(asked(asked=NOON.replace(tzinfo=None)), quorum, moment=NOON + timedelta(hours=2))


def test_without_a_deadline_every_label_is_waited_for():
    assert not is_past(asked(asked=NOON), Quorum(), moment=NOON + timedelta(days=400))
    assert not is_past(asked(), Quorum(deadline_h=1), moment=NOON)


@pytest.mark.parametrize(("n_in", "enough"), [(5, False), (6, True)])
def test_the_quorum_is_a_share_of_what_is_wanted(n_in, enough):
    assert Quorum(fraction=0.6).is_met(n_in, 10) is enough


# -- on real FireWorks -----------------------------------------------------------------------------


def frame(x):
    return Frame(numbers=[29, 29], cell_A=CELL, positions_A=[[x, 0, 0], [1.8] * 3])


@pytest.fixture
def campaign():
    return Campaign(
        name="c",
        structure=frame(0.0),
        potential="toy-lj",
        labels={"code": "ase", "calculator": "emt"},
        selection=SelectionRules(
            labels_per_cycle=N_LABELS - 1, audit_per_cycle=1, duplicate_distance=0.0
        ),
        quorum=Quorum(fraction=0.6, deadline_h=1.0),
    )


@pytest.fixture
def store(database):
    return Store(database)


@pytest.fixture
def workers(site):
    """Let a worker take jobs of a role; returns how many it found."""
    with workers_here(site, Role.CONTROL, Role.DFT) as run:
        yield run


@pytest.fixture
def batch(campaign, store, engine, workers):
    """The output of gather, of a cycle whose labels are waiting for a worker."""
    walker = walker_that_met([frame(0.02 * i) for i in range(1, N_LABELS + 1)])
    uuid = ask_for_labels(campaign, walker, store, engine)
    assert workers(Role.CONTROL) == 1
    return uuid


def late_by(store, hours):
    """Move the moment at which the labels were asked for."""
    selection = store.selection("c", 0).model_copy(update={"asked": now() - timedelta(hours=hours)})
    store.set_cycle("c", 0, selection=selection)


def states(engine, stage, **which):
    return [str(job.state) for job in engine.jobs(campaign="c", **which) if job.stage is stage]


def test_past_the_deadline_training_starts_with_the_quorum_and_late_labels_join_later(  # noqa: PLR0917
    batch, campaign, store, engine, workers, computed
):
    assert workers(Role.DFT, most=3) == 3
    late_by(store, hours=0.9)
    reconcile(store, engine, "c")
    assert workers(Role.CONTROL) == 0, "the deadline is not past"
    late_by(store, hours=1.1)
    sentences = reconcile(store, engine, "c")
    assert any("2 of 5 labels are late" in sentence for sentence in sentences)
    assert workers(Role.CONTROL) == 2, "what collects the labels, and gather"
    first = engine.output(batch)
    assert first.quorum_met
    assert len(first.frames) == 3
    assert len(first.missing_keys) == 2
    assert sorted(first.missing_keys) == store.selection("c", 0).late_keys
    assert len(states(engine, Stage.LABEL, kind="cycle")) == 3
    assert states(engine, Stage.LABEL, kind=RELABEL) == ["ready", "ready"]

    assert reconcile(store, engine, "c") == [], "once is enough"
    assert store.label_counts("c")[LabelState.PENDING] == 2
    assert workers(Role.DFT) == 2
    reconcile(store, engine, "c")
    assert len(computed) == len(set(computed)) == N_LABELS
    assert store.label_counts("c")[LabelState.DONE] == N_LABELS
    _, frames = draw_dataset(store, campaign=campaign, cycle=1)
    assert len(frames) == N_LABELS


def test_below_the_quorum_the_deadline_changes_nothing(batch, store, engine, workers):
    assert workers(Role.DFT, most=2) == 2
    late_by(store, hours=100)
    reconcile(store, engine, "c")
    assert workers(Role.CONTROL) == 0
    assert workers(Role.DFT, most=1) == 1
    reconcile(store, engine, "c")
    assert workers(Role.CONTROL) == 2, "the third of five makes the quorum"
    assert engine.output(batch).quorum_met


def test_a_label_that_runs_at_the_deadline_is_finished_and_kept(  # noqa: PLR0917
    batch, store, engine, workers, computed, monkeypatch
):
    from otf_workflows.labelers.ase_calculator import AseLabeler

    assert workers(Role.DFT, most=4) == 4
    late_by(store, hours=2)
    during, label = {}, AseLabeler.label

    def slow(self, *args, **kwargs):
        during["sentences"] = reconcile(store, engine, "c")
        during["control"] = workers(Role.CONTROL)
        during["states"] = states(engine, Stage.LABEL, kind=RELABEL)
        return label(self, *args, **kwargs)

    monkeypatch.setattr(AseLabeler, "label", slow)
    assert workers(Role.DFT) == 1
    assert during["control"] == 2
    assert during["states"] == ["running"]
    assert len(engine.output(batch).frames) == 4
    reconcile(store, engine, "c")
    assert store.label_counts("c")[LabelState.DONE] == N_LABELS
    assert len(computed) == len(set(computed)) == N_LABELS
    assert {str(job.state) for job in engine.jobs(campaign="c")} == {"done"}


def test_a_late_label_that_fails_is_rerun_by_itself(batch, store, engine, workers, monkeypatch):
    from otf_workflows.labelers.ase_calculator import AseLabeler

    assert workers(Role.DFT, most=4) == 4
    late_by(store, hours=2)
    reconcile(store, engine, "c")
    workers(Role.CONTROL)
    with monkeypatch.context() as broken:
        broken.setattr(AseLabeler, "label", None)
        assert workers(Role.DFT) == 1
    reconcile(store, engine, "c")
    plan = control.plan_rerun(store, engine, campaign="c")
    assert [item.mode for item in plan.items] == ["detached"]
    control.rerun(plan, store, engine)
    assert workers(Role.DFT) == 1
    reconcile(store, engine, "c")
    assert store.label_counts("c")[LabelState.DONE] == N_LABELS


def test_late_labels_yield_to_those_that_a_cycle_waits_for(batch, store, engine, workers):
    assert workers(Role.DFT, most=4) == 4
    late_by(store, hours=2)
    reconcile(store, engine, "c")
    fields = {"spec.stage": "label", "state": "READY"}
    (late,) = engine.launchpad.fireworks.find(fields)
    assert late["spec"]["_priority"] == 0


@pytest.mark.parametrize("stage", [Stage.LABEL, Stage.SELECT, Stage.GATHER])
def test_a_plain_rerun_after_the_deadline_is_harmless(  # noqa: PLR0917
    stage, batch, store, engine, workers, computed
):
    assert workers(Role.DFT, most=3) == 3
    late_by(store, hours=2)
    reconcile(store, engine, "c")
    workers(Role.CONTROL)
    for job in engine.jobs(campaign="c"):
        if job.stage is stage:
            engine.launchpad.rerun_fw(job.engine_id)
    for _ in range(3):
        workers(Role.CONTROL)
        workers(Role.DFT)
        reconcile(store, engine, "c")
    assert len(computed) == len(set(computed)) == N_LABELS
    assert store.label_counts("c")[LabelState.DONE] == N_LABELS
    assert {str(job.state) for job in engine.jobs(campaign="c")} == {"done"}


def test_a_label_job_given_up_by_hand_keeps_nobody_waiting_and_is_computed_after_all(
    batch, store, engine, workers, computed
):
    assert workers(Role.DFT, most=4) == 4
    (left,) = [job for job in engine.jobs(campaign="c") if job.state == "ready"]
    engine.launchpad.defuse_fw(left.engine_id)
    sentences = reconcile(store, engine, "c")
    assert any("given up by hand" in sentence for sentence in sentences)
    assert workers(Role.CONTROL) == 2
    assert engine.output(batch).missing_keys == [left.label_key]
    reconcile(store, engine, "c")
    assert workers(Role.DFT) == 1
    reconcile(store, engine, "c")
    assert len(computed) == len(set(computed)) == N_LABELS
    assert store.label_counts("c")[LabelState.DONE] == N_LABELS


def test_who_dies_while_letting_labels_go_does_it_again(batch, store, engine, workers, monkeypatch):
    assert workers(Role.DFT, most=4) == 4
    late_by(store, hours=2)
    with monkeypatch.context() as dying:
        dying.setattr(engine, "apply_hold", None)
        dying.setattr(type(engine.launchpad.fireworks), "update_many", None)
        with pytest.raises(TypeError):
            reconcile(store, engine, "c")
    assert len(states(engine, Stage.LABEL, kind="cycle")) == N_LABELS
    reconcile(store, engine, "c")
    assert states(engine, Stage.LABEL, kind=RELABEL) == ["ready"]
    assert workers(Role.CONTROL) == 2
    assert engine.output(batch).quorum_met
