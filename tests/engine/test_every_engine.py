"""What the loop asks of an engine with a database, it gets from each of them."""

from __future__ import annotations

import pytest
from jobflow import Flow

from otf_workflows.engine import JobState, open_engine
from otf_workflows.errors import InputError, NotFoundError, PartialError
from otf_workflows.testing.jobs import (
    collect,
    cycle,
    fail_label,
    fail_once,
    report,
    report_with_blob,
    staged,
)
from otf_workflows.testing.labelling import workers_here
from otf_workflows.testing.remote import drain as drain_runner
from otf_workflows.testing.remote import runner_here, states
from otf_workflows.types import Stage

KEY = {"campaign": "c", "cycle": 0, "kind": "cycle"}


@pytest.fixture(params=["site", "remote_site"], ids=["fireworks", "jobflow-remote"])
def chosen(request):
    """A site with one of the engines."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def engine(chosen):
    made = open_engine(chosen)
    yield made
    made.close()


@pytest.fixture
def drain(chosen, engine):
    """Run all that can run, in this process."""
    if chosen.engine == "jobflow-remote":
        with runner_here(engine) as runner:
            yield lambda: drain_runner(runner)
    else:
        with workers_here(chosen) as run:
            yield run


def test_large_parts_come_back(engine, drain):
    big = report_with_blob(4)
    engine.submit(Flow([staged(big, Stage.EXPLORE)]), **KEY)
    drain()
    assert engine.output(big.uuid)["blob"]["numbers"] == [0, 1, 2, 3]


def test_an_empty_flow_is_refused(engine):
    with pytest.raises(InputError, match="no jobs"):
        engine.submit(Flow([]), **KEY)
    assert engine.find(**KEY) == []


def test_a_failed_label_tells_its_cause_and_attempts_and_stops_nobody(engine, drain):
    bad = staged(fail_label("k"), Stage.LABEL, label_key="k")
    good = staged(report(), Stage.LABEL, label_key="g")
    ended = staged(collect([bad.output, good.output]), Stage.GATHER)
    engine.submit(Flow([bad, good, ended]), **KEY)
    drain()
    failed = next(job for job in engine.jobs(campaign="c") if job.label_key == "k")
    assert failed.state is JobState.FAILED
    assert failed.failure["cause"] == "scf"
    assert failed.failure["attempts"][0]["message"] == "no convergence in 80 steps"
    assert failed.failure["directory"] == failed.directory
    assert engine.output(ended.uuid) == 1


def test_a_failed_job_runs_again_and_what_waited_goes_on(engine, drain, tmp_path):
    flag = tmp_path / "flag"
    first = staged(fail_once(str(flag)), Stage.EXPLORE)
    then = staged(report(first.output), Stage.SELECT)
    engine.submit(Flow([first, then]), **KEY)
    drain()
    assert states(engine) == {"fail_once": "failed", "report": "waiting"}
    failed = next(job for job in engine.jobs(campaign="c") if job.state is JobState.FAILED)
    assert failed.failure["message"] == f"RuntimeError: {flag} is not there"
    assert "in fail_once" in failed.failure["traceback"]
    flag.touch()
    engine.rerun([failed.engine_id])
    drain()
    assert states(engine) == {"fail_once": "done", "report": "done"}


def test_a_rerun_that_would_reset_what_followed_is_refused(engine, drain):
    bad = staged(fail_label("k"), Stage.LABEL, label_key="k")
    ended = staged(collect([bad.output]), Stage.GATHER)
    engine.submit(Flow([bad, ended]), **KEY)
    drain()
    before = states(engine)
    failed = next(job for job in engine.jobs(campaign="c") if job.label_key == "k")
    with pytest.raises(PartialError, match="has gone on without it") as caught:
        engine.rerun([failed.engine_id])
    assert caught.value.exit_code == 6
    done = next(job for job in engine.jobs(campaign="c") if job.name == "collect")
    with pytest.raises(PartialError, match="has not failed"):
        engine.rerun([done.engine_id])
    with pytest.raises(NotFoundError):
        engine.rerun(["999"])
    assert states(engine) == before == {"fail_label": "failed", "collect": "done"}


def test_pause_holds_everything_not_begun_and_resume_lets_it_go(engine, drain):
    engine.submit(cycle()[0], **KEY)
    engine.submit(Flow([staged(report(), Stage.EXPLORE)]), campaign="d", cycle=0, kind="cycle")
    assert engine.pause("c") == 3
    drain()
    assert set(states(engine).values()) == {"paused"}
    assert states(engine, "d") == {"report": "done"}
    assert engine.resume("c") == 3
    assert states(engine) == {"report": "ready", "spawn": "ready", "train": "waiting"}
    drain()
    assert set(states(engine).values()) == {"done"}
    assert len(engine.jobs(campaign="c")) == 6


def test_cancel_gives_up_what_has_not_begun_and_new_work_is_free(engine, drain):
    engine.submit(cycle()[0], **KEY)
    assert engine.cancel("c") == 3
    jobs = engine.jobs(campaign="c")
    assert {(job.state, job.started) for job in jobs} == {(JobState.FAILED, None)}
    assert "given up" in jobs[0].failure["message"]
    drain()
    assert engine.jobs(campaign="c") == jobs
    engine.submit(Flow([staged(report(), Stage.LABEL)]), campaign="c", cycle=0, kind="relabel")
    drain()
    assert engine.jobs(campaign="c", kind="relabel")[0].state is JobState.DONE
