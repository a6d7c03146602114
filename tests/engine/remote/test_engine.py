"""jobflow-remote answers as every engine does: submitting, reading, rerunning, holding."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from unittest.mock import patch

from jobflow import Flow

from otf_workflows.engine import JobState
from otf_workflows.testing.jobs import (
    collect,
    cycle,
    fail_label,
    report,
    report_with_blob,
    spawn,
    staged,
)
from otf_workflows.testing.remote import let_labels_go
from otf_workflows.types import Role, Stage

KEY = {"campaign": "c", "cycle": 0, "kind": "cycle"}


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
