"""What follows from the documents, without any service."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from otf_workflows.engine.base import JobRecord, JobState
from otf_workflows.reconcile import Step, is_old_news, next_step, stage_records
from otf_workflows.schemas import CampaignDocument, CycleDocument, Frame, LabelDocument, Verdict
from otf_workflows.types import CampaignState, CycleState, Decision, LabelState, Role, Stage


def campaign(state=CampaignState.RUNNING, *, production=True):
    return CampaignDocument(
        name="c",
        state=state,
        campaign={"production": {"steps": 10} if production else None},
        digest="d",
        incumbent_id="chgnet-0.3.0",
    )


def cycle(number=0, state=CycleState.DONE, decision=None, kind="cycle"):
    verdict = None
    if decision:
        verdict = Verdict(promoted=True, incumbent_id="m", decision=decision, sentences=["why"])
    return CycleDocument(
        campaign="c", cycle=number, kind=kind, state=state, incumbent_id="m", verdict=verdict
    )


def test_a_new_campaign_opens_its_first_cycle():
    assert next_step(campaign(), []) is Step.OPEN


def test_a_cycle_that_was_opened_but_not_submitted_is_submitted():
    assert next_step(campaign(), [cycle(state=CycleState.EMITTING)]) is Step.SUBMIT


def test_a_running_cycle_is_waited_for():
    assert next_step(campaign(), [cycle(state=CycleState.RUNNING)]) is Step.WAIT


@pytest.mark.parametrize(
    ("decision", "step"),
    [
        (Decision.CONTINUE, Step.OPEN),
        (Decision.CONVERGED, Step.PRODUCE),
        (Decision.BUDGET_EXHAUSTED, Step.PRODUCE),
        (Decision.STALLED, Step.FINISH),
    ],
)
def test_the_verdict_of_a_cycle_decides_what_follows(decision, step):
    assert next_step(campaign(), [cycle(decision=decision)]) is step


def test_without_a_production_section_a_converged_campaign_is_finished():
    cycles = [cycle(decision=Decision.CONVERGED)]
    assert next_step(campaign(production=False), cycles) is Step.FINISH


def test_after_the_production_run_the_campaign_is_finished():
    cycles = [cycle(decision=Decision.CONVERGED), cycle(1, kind="production")]
    assert next_step(campaign(CampaignState.PRODUCING), cycles) is Step.FINISH


@pytest.mark.parametrize("state", [s for s in CampaignState if s.terminal])
def test_nothing_happens_to_a_campaign_that_has_ended(state):
    assert next_step(campaign(state), [cycle(decision=Decision.CONTINUE)]) is Step.WAIT


def test_a_paused_campaign_waits():
    assert next_step(campaign(CampaignState.PAUSED), []) is Step.WAIT


def test_stage_records_count_jobs_and_their_wall_time():
    start = datetime(2026, 1, 1, tzinfo=UTC)

    def job(state, seconds=None):
        return JobRecord(
            engine_id=1,
            name="label",
            state=state,
            role=Role.DFT,
            stage=Stage.LABEL,
            campaign="c",
            cycle=0,
            started=start if seconds else None,
            finished=start + timedelta(seconds=seconds) if seconds else None,
        )

    record = stage_records([job(JobState.DONE, 5), job(JobState.FAILED, 7), job(JobState.READY)])
    label = record["label"]
    assert (label.n_jobs, label.n_done, label.n_failed) == (3, 1, 1)
    assert label.seconds == 12
    assert label.started == start
    assert label.finished is None, "one job has not run: the stage is not over"


@pytest.mark.parametrize(
    ("ended_s_ago", "reset_s_ago", "old"), [(20, 10, True), (5, 10, False), (200, 100, False)]
)
def test_a_failure_from_before_a_rerun_is_not_booked_while_the_rerun_is_on_its_way(
    ended_s_ago, reset_s_ago, old
):
    moment = datetime.now(UTC)
    job = JobRecord(
        engine_id=1,
        name="label",
        state=JobState.FAILED,
        role=Role.DFT,
        campaign="c",
        cycle=0,
        finished=moment - timedelta(seconds=ended_s_ago),
    )
    label = LabelDocument(
        key="k",
        state=LabelState.PENDING,
        frame=Frame(numbers=[1], cell_A=[[1, 0, 0], [0, 1, 0], [0, 0, 1]], positions_A=[[0, 0, 0]]),
        recipe_fingerprint="f",
        recipe={},
        updated=moment - timedelta(seconds=reset_s_ago),
    )
    assert is_old_news(job, label) is old
    assert not is_old_news(job.model_copy(update={"finished": None}), label)
