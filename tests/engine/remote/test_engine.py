"""jobflow-remote answers as every engine does: submitting, reading, rerunning, holding."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from unittest.mock import patch

import pytest
from jobflow import Flow

from otf_workflows.engine import JobState
from otf_workflows.errors import NotFoundError, PartialError
from otf_workflows.testing.jobs import (
    collect,
    fail_label,
    fail_once,
    report,
    report_with_blob,
    spawn,
    staged,
)
from otf_workflows.testing.remote import let_labels_go, states
from otf_workflows.types import Role, Stage

KEY = {"campaign": "c", "cycle": 0, "kind": "cycle"}


def cycle():
    """A flow shaped like a cycle."""
    explore = staged(report(), Stage.EXPLORE)
    chosen = staged(spawn(["a", "b"]), Stage.SELECT)
    train = staged(report(chosen.output, explore.output), Stage.FINETUNE)
    train.name = "train"
    return Flow([explore, chosen, train]), train


def test_every_job_runs_on_a_worker_of_its_role_dynamic_ones_too(engine, drain):
    flow, train = cycle()
    ids = engine.submit(flow, **KEY)
    assert engine.find(**KEY) == ids
    drain()
    jobs = engine.jobs(campaign="c")
    assert len(jobs) == 6
    for job in jobs:
        assert job.state is JobState.DONE
        assert job.worker == job.role
        assert f"/jobs/{job.role}/" in job.directory
        assert job.host == socket.gethostname()
        assert job.started <= job.finished
    labels = [job for job in jobs if job.stage is Stage.LABEL]
    assert sorted(job.label_key for job in labels) == ["a", "b"]
    assert {job.role for job in labels} == {Role.DFT}
    end = next(job for job in jobs if job.name == "store_inputs")
    assert (end.role, end.stage, end.label_key) == (Role.CONTROL, None, None)
    assert engine.output(train.uuid)["pid"] == os.getpid()
    assert engine.jobs(campaign="c", cycle=1) == engine.jobs(campaign="other") == []


def test_no_more_jobs_of_a_role_are_on_their_way_than_it_has_places(engine, runner):
    several = [staged(report(), Stage.EXPLORE) for _ in range(3)]
    engine.submit(Flow(several), **KEY)
    runner.checkout()
    taken = [job.worker for job in engine.jobs(campaign="c")]
    assert sorted(map(str, taken)) == ["None", "None", "md"]


def test_large_parts_come_back(engine, drain):
    big = report_with_blob(4)
    engine.submit(Flow([staged(big, Stage.EXPLORE)]), **KEY)
    drain()
    assert engine.output(big.uuid)["blob"]["numbers"] == [0, 1, 2, 3]


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
    with pytest.raises(PartialError, match="has gone on without it"):
        engine.rerun([failed.engine_id])
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


def test_jobs_made_by_a_running_one_during_a_pause_are_held_as_well(engine, runner, drain):
    engine.submit(Flow([staged(spawn(["a", "b"]), Stage.SELECT)]), **KEY)
    runner.checkout()
    assert engine.pause("c") == 0
    drain()
    made = [job for job in engine.jobs(campaign="c") if job.name != "spawn"]
    assert [str(job.state) for job in made] == ["paused"] * 3
    engine.resume("c")
    drain()
    assert {job.state for job in engine.jobs(campaign="c")} == {JobState.DONE}


def test_cancel_gives_up_what_has_not_begun_and_new_work_is_free(engine, drain):
    engine.submit(cycle()[0], **KEY)
    assert engine.cancel("c") == 3
    jobs = engine.jobs(campaign="c")
    assert {(job.state, job.started) for job in jobs} == {(JobState.FAILED, None)}
    assert "given up" in jobs[0].failure["message"]
    drain()
    engine.submit(Flow([staged(report(), Stage.LABEL)]), campaign="c", cycle=0, kind="relabel")
    drain()
    assert engine.jobs(campaign="c", kind="relabel")[0].state is JobState.DONE


def test_what_waits_for_a_label_goes_on_without_it(engine, runner, drain):
    good = staged(report(), Stage.EXPLORE)
    late = staged(report(), Stage.LABEL, label_key="late")
    ended = staged(collect([good.output, late.output]), Stage.GATHER)
    engine.submit(Flow([good, late, ended]), **KEY)
    let_labels_go(runner, 0)
    drain()
    job = next(job for job in engine.jobs(campaign="c") if job.label_key == "late")
    assert job.state is JobState.READY
    assert engine.let_go([job.engine_id]) == [job.engine_id]
    drain()
    assert engine.output(ended.uuid) == 1
    assert [j.label_key for j in engine.jobs(campaign="c", kind="relabel")] == ["late"]
    let_labels_go(runner, 1)
    drain()
    assert engine.jobs(campaign="c", kind="relabel")[0].state is JobState.DONE
    assert engine.let_go([job.engine_id]) == []


def test_a_label_given_up_by_hand_can_be_let_go(engine, drain, database):
    late = staged(report(), Stage.LABEL, label_key="late")
    ended = staged(collect([late.output]), Stage.GATHER)
    engine.submit(Flow([late, ended]), **KEY)
    database.jf_jobs.update_one({"job.name": "report"}, {"$set": {"state": "USER_STOPPED"}})
    drain()
    (job,) = [job for job in engine.jobs(campaign="c") if job.label_key]
    assert (job.state, job.started) == (JobState.FAILED, None)
    assert engine.let_go([job.engine_id]) == [job.engine_id]
    drain()
    assert engine.output(ended.uuid) == 0


def test_a_workflow_added_half_way_does_not_count_and_is_removed(engine, database):
    flow, _ = cycle()
    engine.submit(flow, **KEY)
    database.jf_jobs.delete_one({"job.name": "train"})  # as if the submission had died there
    assert engine.find(**KEY) == []
    assert engine.recover() == []  # somebody may be adding it at this moment
    with patch("otf_workflows.engine.remote.engine.PATIENCE", timedelta(seconds=-1)):
        assert "half-way" in engine.recover()[0]
    assert engine.jobs(campaign="c") == []


def test_no_password_is_written_anywhere(engine, drain, remote_site, database):
    bad = staged(fail_label("k"), Stage.LABEL)
    engine.submit(Flow([cycle()[0], bad, report_with_blob(3)]), **KEY)
    drain()
    secret = remote_site.password.get_secret_value()
    for name in database.list_collection_names():
        for document in database[name].find():
            assert secret not in str(document), name
    files = [file for file in remote_site.resolved_state_dir.rglob("*") if file.is_file()]
    assert any(file.name == "otf.yaml" for file in files)
    for file in files:
        assert secret not in file.read_text(errors="replace"), file
