"""Submitting, reading, rerunning, holding: on the real database, with real FireWorks."""

import json
from datetime import UTC, datetime

import pytest
from jobflow import Flow

from otf_workflows.engine import FireWorksEngine, JobState
from otf_workflows.testing.jobs import (
    cycle,
    fail_label,
    report,
    report_with_blob,
    spawn,
    staged,
)
from otf_workflows.types import Role, Stage

KEY = {"campaign": "c", "cycle": 0, "kind": "cycle"}


def test_every_job_runs_on_a_worker_of_its_role_dynamic_ones_too(engine, drain):
    flow, train = cycle()
    ids = engine.submit(flow, **KEY)
    assert engine.find(**KEY) == ids
    assert drain() == 6
    jobs = engine.jobs(campaign="c")
    assert len(jobs) == 6
    for job in jobs:
        assert job.state is JobState.DONE
        assert job.worker.startswith(f"{job.role}-")
    labels = [job for job in jobs if job.stage is Stage.LABEL]
    assert sorted(job.label_key for job in labels) == ["a", "b"]
    assert {job.role for job in labels} == {Role.DFT}
    end = next(job for job in jobs if job.name == "store_inputs")
    assert (end.role, end.stage, end.label_key) == (Role.CONTROL, None, None)
    assert engine.output(train.uuid)["worker"] == ""


def test_a_worker_leaves_jobs_of_other_roles_alone(engine, drain):
    engine.submit(cycle()[0], **KEY)
    assert drain(Role.DFT, Role.TRAIN) == 0
    assert drain(Role.MD) == 1


def test_records_say_where_and_when(engine, drain):
    before = datetime.now(UTC)
    engine.submit(Flow([staged(report(), Stage.EXPLORE)]), **KEY)
    (job,) = engine.jobs(campaign="c", cycle=0, kind="cycle")
    assert (job.state, job.started, job.worker, job.failure) == (JobState.READY, None, None, None)
    drain(Role.MD)
    (job,) = engine.jobs(campaign="c")
    assert before < job.started < job.finished < datetime.now(UTC)
    assert engine.output(job.uuid)["directory"] == job.directory
    assert engine.jobs(campaign="c", cycle=1) == []
    assert engine.jobs(campaign="c", kind="production") == []
    assert engine.jobs(campaign="other") == []


def test_jobs_made_by_a_running_one_during_a_pause_are_held_as_well(engine, drain, site):
    select = staged(spawn(["a", "b"]), Stage.SELECT)
    engine.submit(Flow([select]), **KEY)
    # The job is taken just before the pause, and ends during it.
    pad, taken = engine.launchpad, {}
    original = type(pad).checkout_fw

    def checkout_then_pause(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        taken["held"] = FireWorksEngine(site).pause("c")
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(pad), "checkout_fw", checkout_then_pause)
        assert drain(Role.CONTROL, one=True) == 1
    assert taken["held"] == 0
    made = [job for job in engine.jobs(campaign="c") if job.name != "spawn"]
    assert len(made) == 3
    assert {job.state for job in made} == {JobState.PAUSED}
    assert drain() == 0
    engine.resume("c")
    assert drain() == 3


def test_no_password_is_written_anywhere(engine, drain, site, database):
    bad = staged(fail_label("k"), Stage.LABEL)
    engine.submit(Flow([cycle()[0], bad, report_with_blob(3)]), **KEY)
    drain()
    secret = site.password.get_secret_value()
    for name in database.list_collection_names():
        for document in database[name].find():
            assert secret not in str(document), name
    for file in site.resolved_state_dir.rglob("*"):
        if file.is_file():
            assert secret not in file.read_text(errors="replace"), file
    assert secret not in json.dumps(engine.launchpad.to_dict())


def test_reading_jobs_uses_an_index_and_fetches_no_large_parts(engine, drain):
    engine.submit(cycle()[0], **KEY)
    query = {"spec.campaign": "c", "state": {"$ne": "ARCHIVED"}, "spec.cycle": 0}
    plan = engine.launchpad.fireworks.find(query).explain()["queryPlanner"]["winningPlan"]
    assert "IXSCAN" in json.dumps(plan)
    plan = engine.launchpad.workflows.find({"metadata.campaign": "c"}).explain()
    assert "IXSCAN" in json.dumps(plan["queryPlanner"]["winningPlan"])


def test_output_of_a_job_that_has_not_run_is_none(engine):
    assert engine.output("no-such-uuid") is None


def test_setting_up_again_keeps_what_is_there(engine, site):
    engine.submit(cycle()[0], **KEY)
    assert len(FireWorksEngine(site).jobs(campaign="c")) == 3
