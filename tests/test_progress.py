"""The estimate is arithmetic on what was measured, and silent about what was not."""

from datetime import timedelta

import pytest

from otf_workflows.engine.base import JobRecord, JobState
from otf_workflows.progress import (
    Workload,
    campaign_progress,
    estimate_remaining,
    present_stage,
    stage_table,
)
from otf_workflows.schemas import now
from otf_workflows.types import LabelState, Role, Stage

LAST = {Stage.EXPLORE: 100.0, Stage.FINETUNE: 40.0}


def test_labels_left_are_shared_by_the_workers():
    work = Workload(
        stage=Stage.LABEL, to_come=(Stage.LABEL,), label_s=[10, 20], labels_open=6, dft_workers=2
    )
    assert estimate_remaining(work).stage_s == pytest.approx(45.0)


def test_a_stage_takes_what_is_left_of_its_last_duration():
    work = Workload(stage=Stage.EXPLORE, to_come=(Stage.EXPLORE,), running_s=30, last_s=LAST)
    assert estimate_remaining(work).stage_s == pytest.approx(70.0)


def test_a_stage_that_overran_is_not_negative():
    work = Workload(stage=Stage.EXPLORE, to_come=(Stage.EXPLORE,), running_s=300, last_s=LAST)
    assert estimate_remaining(work).stage_s == 0.0


def test_later_cycles_and_production_are_added_up_to_the_budget():
    work = Workload(
        stage=Stage.LABEL,
        to_come=(Stage.LABEL, Stage.FINETUNE),
        last_s=LAST,
        label_s=[10.0],
        labels_open=4,
        labels_per_cycle=8,
        dft_workers=2,
        cycles_left=2,
        production_to_come=True,
        production_s=60.0,
        production_labels=4,
    )
    here = 4 * 10 / 2 + 40
    cycle = 100 + 40 + 8 * 10 / 2
    estimate = estimate_remaining(work)
    assert estimate.total_s == pytest.approx(here + 2 * cycle + 60 + 4 * 10 / 2)
    assert any("2 cycles left" in sentence for sentence in estimate.basis)


@pytest.mark.parametrize("missing", [Stage.EXPLORE, Stage.FINETUNE])
def test_what_was_never_measured_is_not_guessed(missing):
    last = {stage: s for stage, s in LAST.items() if stage is not missing}
    work = Workload(
        stage=Stage.LABEL, to_come=(Stage.LABEL,), last_s=last, label_s=[10], labels_open=1,
        cycles_left=1,
    )  # fmt: skip
    estimate = estimate_remaining(work)
    assert estimate.total_s is None
    assert estimate.stage_s == pytest.approx(10.0)


def test_stages_that_take_seconds_are_not_timed():
    assert estimate_remaining(Workload(stage=Stage.SELECT, to_come=(Stage.SELECT,))).stage_s is None


def test_without_a_finished_label_nothing_is_said_about_labels():
    work = Workload(stage=Stage.LABEL, to_come=(Stage.LABEL,), labels_open=3)
    assert estimate_remaining(work).stage_s is None


def test_labels_are_expected_before_they_are_selected():
    work = Workload(
        stage=Stage.EXPLORE, to_come=(Stage.EXPLORE, Stage.LABEL), last_s=LAST, label_s=[10],
        labels_per_cycle=5,
    )  # fmt: skip
    assert estimate_remaining(work).total_s == pytest.approx(100 + 50)


def job(stage, state, *, started_s=None, finished_s=None, number=0):
    moment = now()
    return JobRecord(
        engine_id=number,
        name=f"{stage}",
        state=state,
        role=Role.DFT if stage is Stage.LABEL else Role.MD,
        stage=stage,
        campaign="c",
        cycle=0,
        started=moment - timedelta(seconds=started_s) if started_s is not None else None,
        finished=moment - timedelta(seconds=finished_s) if finished_s is not None else None,
    )


def test_the_stage_table_counts_and_times_jobs_in_running_order():
    table = stage_table(
        [
            job(Stage.FINETUNE, JobState.WAITING),
            job(Stage.EXPLORE, JobState.DONE, started_s=100, finished_s=40),
            job(Stage.EXPLORE, JobState.DONE, started_s=90, finished_s=10),
            job(Stage.LABEL, JobState.FAILED, started_s=9, finished_s=2),
            job(Stage.LABEL, JobState.RUNNING, started_s=5),
        ]
    )
    assert [row.stage for row in table] == [Stage.EXPLORE, Stage.LABEL, Stage.FINETUNE]
    assert table[0].finished
    assert table[0].seconds == pytest.approx(90, abs=1)
    assert (table[1].n_failed, table[1].n_running) == (1, 1)
    assert present_stage(table).stage is Stage.LABEL


def test_a_production_run_is_shown_in_its_own_order():
    table = stage_table(
        [
            job(Stage.GATHER, JobState.WAITING),
            job(Stage.LABEL, JobState.WAITING),
            job(Stage.PRODUCE, JobState.RUNNING, started_s=5),
        ]
    )
    assert [row.stage for row in table] == [Stage.PRODUCE, Stage.LABEL, Stage.GATHER]
    assert present_stage(table).stage is Stage.PRODUCE


def test_what_runs_is_the_present_stage_even_if_an_earlier_one_waits():
    table = stage_table([job(Stage.SELECT, JobState.WAITING), job(Stage.LABEL, JobState.RUNNING)])
    assert present_stage(table).stage is Stage.LABEL


def test_jobs_of_jobflow_itself_are_not_shown():
    helper = job(Stage.EXPLORE, JobState.DONE).model_copy(update={"stage": None})
    assert stage_table([helper]) == []


class FakeEngine:
    def __init__(self, jobs):
        self._jobs = jobs

    def jobs(self, **_):
        return self._jobs


@pytest.fixture
def store(database):
    from otf_workflows.store import Store

    return Store(database)


def test_a_finished_campaign_says_how_it_ended_and_estimates_nothing(store):
    from otf_workflows.testing.campaigns import synthetic_campaign

    document = synthetic_campaign(store)
    progress = campaign_progress(store, None, document.name)
    assert progress.state.terminal
    assert str(document.state).replace("_", " ") in progress.sentence
    assert progress.estimate.total_s is None
    assert progress.aimd_steps == progress.md_steps - progress.dft_calls
    assert progress.labels[LabelState.DONE] > 0
    assert [row.cycle for row in progress.errors] == sorted(row.cycle for row in progress.errors)


def test_a_running_campaign_says_what_it_does_and_waits_for(store):
    from otf_workflows.testing.campaigns import synthetic_campaign

    name = synthetic_campaign(store, n_cycles=2, production=False).name
    store.set_cycle(name, 1, state="running")
    jobs = [
        job(Stage.EXPLORE, JobState.DONE, started_s=100, finished_s=40),
        job(Stage.LABEL, JobState.DONE, started_s=30, finished_s=10),
        job(Stage.LABEL, JobState.RUNNING, started_s=30),
        job(Stage.FINETUNE, JobState.WAITING),
    ]
    progress = campaign_progress(store, FakeEngine(jobs), name, dft_workers=2)
    assert progress.sentence == "cycle 1: labelling with DFT, 1 of 2 done, 1 running"
    assert progress.estimate.total_s > 0
    waiting = [*jobs[:2], job(Stage.LABEL, JobState.READY)]
    progress = campaign_progress(store, FakeEngine(waiting), name)
    assert "waiting for a free dft worker" in progress.sentence
