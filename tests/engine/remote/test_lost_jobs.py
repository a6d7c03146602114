"""Jobs that vanish on their way or on a node run again, or fail with a cause."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from jobflow import Flow

from otf_workflows.claims import Claims
from otf_workflows.engine import JobState, open_engine
from otf_workflows.schemas import Frame
from otf_workflows.settings import load_site
from otf_workflows.testing.jobs import collect, nap, report, staged
from otf_workflows.testing.remote import lose, runner_here, states, submissions_that_start_nothing
from otf_workflows.types import Stage

KEY = {"campaign": "c", "cycle": 0, "kind": "cycle"}


@pytest.fixture
def losing(runner):
    """Lose a job, with these last words, and return what is known of it then."""
    with submissions_that_start_nothing():
        yield lambda *args: lose(runner, *args)


def test_a_job_that_vanished_runs_again_a_few_times_and_then_fails(engine, losing, database):
    label = staged(report(), Stage.LABEL, label_key="k")
    ended = staged(collect([label.output]), Stage.GATHER)
    engine.submit(Flow([label, ended]), **KEY)
    (db_id,) = [j.engine_id for j in engine.jobs(campaign="c") if j.label_key]
    for returns in (1, 2, 3):
        found = losing(db_id)
        assert (found["state"], found["otf_returns"]) == ("READY", returns)
    assert losing(db_id, "slurmstepd: error: *** DUE TO NODE FAILURE ***")["state"] == "FAILED"
    job = next(job for job in engine.jobs(campaign="c") if job.label_key)
    assert (job.state, job.failure["cause"]) == (JobState.FAILED, "node")
    assert job.started is not None
    said = [e["what"] for e in database.otf_events.find({"label_key": "k"}).sort("_id", 1)]
    assert said == ["job vanished and runs again"] * 3 + ["job vanished and is given up"]
    assert Claims(database).take("k", by="somebody else")  # it says nothing about the label
    assert next(j for j in engine.jobs(campaign="c") if j.stage == "gather").state == "ready"


@pytest.mark.parametrize(
    ("words", "cause"),
    [("CANCELLED DUE TO TIME LIMIT", "walltime"), ("Detected 1 oom_kill event", "memory")],
)
def test_a_label_that_met_its_limit_is_not_begun_again(engine, losing, words, cause):
    engine.submit(Flow([staged(report(), Stage.LABEL, label_key="k")]), **KEY)
    (job,) = engine.jobs(campaign="c")
    losing(job.engine_id, f"slurmstepd: error: *** JOB 7 {words} ***")
    (job,) = engine.jobs(campaign="c")
    assert (job.state, job.failure["cause"]) == (JobState.FAILED, cause)


def test_md_that_met_the_walltime_goes_on(engine, losing):
    engine.submit(Flow([staged(report(), Stage.EXPLORE)]), **KEY)
    (job,) = engine.jobs(campaign="c")
    for _ in range(5):
        assert losing(job.engine_id, "CANCELLED DUE TO TIME LIMIT")["state"] == "READY"


def test_what_jobflow_remote_gives_up_fails_and_nobody_waits_for_it(engine, drain, database):
    label = staged(report(), Stage.LABEL, label_key="k")
    ended = staged(collect([label.output]), Stage.GATHER)
    engine.submit(Flow([label, ended]), **KEY)
    error = {"state": "REMOTE_ERROR", "previous_state": "UPLOADED", "remote.error": "no such host"}
    database.jf_jobs.update_one({"job.metadata.label_key": "k"}, {"$set": error})
    drain()
    failed = next(job for job in engine.jobs(campaign="c") if job.label_key)
    assert (failed.state, failed.failure["message"]) == (JobState.FAILED, "no such host")
    assert engine.output(ended.uuid) == 0


def test_a_result_that_never_came_is_a_job_that_vanished(engine, runner, database):
    engine.submit(Flow([staged(report(), Stage.LABEL, label_key="k")]), **KEY)
    said = "Remote error: file /w/jfremote_out.json for job u does not exist"
    error = {"state": "REMOTE_ERROR", "previous_state": "RUN_FINISHED", "remote.error": said}
    database.jf_jobs.update_one({}, {"$set": error})
    for _ in range(3):
        runner.settle_errors()
        assert database.jf_jobs.find_one({})["state"] == "READY"
        database.jf_jobs.update_one({}, {"$set": error})
    runner.settle_errors()
    (job,) = engine.jobs(campaign="c")
    assert (job.state, job.failure["cause"]) == (JobState.FAILED, "killed")


def test_a_job_submitted_twice_runs_once(engine, runner, drain, tmp_path):
    from otf_workflows.engine.remote.execute import execute

    proof = tmp_path / "proof"
    engine.submit(Flow([staged(nap(0.01, str(proof)), Stage.EXPLORE)]), **KEY)
    drain()
    (job,) = engine.jobs(campaign="c")
    assert execute(Path(job.directory)) is False
    assert len(proof.read_text().splitlines()) == 1


def test_a_lock_left_by_a_killed_runner_is_freed(engine, runner, drain, database):
    engine.submit(Flow([staged(report(), Stage.EXPLORE)]), **KEY)
    runner.checkout()
    old = {"lock_id": "gone", "lock_time": datetime.now(UTC) - timedelta(hours=1)}
    database.jf_jobs.update_one({}, {"$set": old})
    database.jf_flows.update_one({}, {"$set": old})
    drain()
    assert states(engine) == {"report": "done"}


@pytest.fixture
def queued(remote_site):
    """The site with labels in a queue of an hour and 2000 MiB, of which a job may get twice."""
    queue = {"memory_MiB": 2000, "walltime_s": 3600, "partition": "dft"}
    document = yaml.safe_load(remote_site.source.read_text()) | {"queues": {"dft": queue}}
    remote_site.source.write_text(yaml.safe_dump(document))
    return load_site()


@pytest.fixture
def queue_engine(queued):
    made = open_engine(queued)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("words", "first", "second"),
    [
        ("CANCELLED DUE TO TIME LIMIT", ("01:00:00", "2000M"), ("02:00:00", "2000M")),
        ("Detected 1 oom_kill event", ("01:00:00", "2000M"), ("01:00:00", "4000M")),
    ],
)
def test_a_label_in_a_queue_that_had_too_little_gets_more_until_its_limit(
    queue_engine, store, words, first, second
):
    frame = Frame(numbers=[29], cell_A=[[3, 0, 0], [0, 3, 0], [0, 0, 3]], positions_A=[[0, 0, 0]])
    recipe = {"code": "ase", "calculator": "emt"}
    store.want_label("k", frame, recipe=recipe, fingerprint="f", campaign="c", cycle=0)
    queue_engine.submit(Flow([staged(report(), Stage.LABEL, label_key="k")]), **KEY)
    (job,) = queue_engine.jobs(campaign="c")
    asked = []
    with runner_here(queue_engine) as runner, submissions_that_start_nothing():
        for _ in range(2):
            found = lose(runner, job.engine_id, f"slurmstepd: error: *** JOB 7 {words} ***")
            asked.append((found["resources"]["time"], found["resources"]["mem"]))
    assert asked == [first, second]
    (job,) = queue_engine.jobs(campaign="c")
    assert job.state is JobState.FAILED
