"""jobflow-remote as the engine: real database, real runner, jobs that see no database."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from jobflow import Flow

from otf_workflows import control
from otf_workflows.campaign import Campaign, SelectionRules
from otf_workflows.claims import Claims
from otf_workflows.engine import JobState, open_engine
from otf_workflows.errors import ConfigurationError, LabelFailed, NotFoundError, PartialError
from otf_workflows.flow import relabel
from otf_workflows.jobs.gather import gather
from otf_workflows.jobs.select import select
from otf_workflows.reconcile import book_labels
from otf_workflows.schemas import CycleDocument, Frame, WalkerSegment
from otf_workflows.settings import load_site
from otf_workflows.store import Store
from otf_workflows.testing.jobs import (
    collect,
    fail_label,
    fail_once,
    nap,
    report,
    report_with_blob,
    spawn,
    staged,
)
from otf_workflows.types import CycleState, FailureCause, LabelState, Role, Stage, StopReason

pytest.importorskip(
    "jobflow_remote", reason="jobflow-remote is not installed: pip install 'otf-workflows[remote]'"
)
pytestmark = pytest.mark.integration

KEY = {"campaign": "c", "cycle": 0, "kind": "cycle"}
ENDED = {JobState.DONE, JobState.FAILED, JobState.PAUSED}


@pytest.fixture
def remote_site(site):
    """The site, with jobflow-remote as its engine."""
    document = yaml.safe_load(site.source.read_text())
    document |= {"engine": "jobflow-remote", "remote": {"poll_s": 0.2}}
    site.source.write_text(yaml.safe_dump(document))
    return load_site()


@pytest.fixture
def engine(remote_site):
    made = open_engine(remote_site)
    yield made
    made.close()


@pytest.fixture
def runner(engine):
    """A runner whose jobs run in this process, as soon as they are submitted."""
    from jobflow_remote.remote.queue import QueueManager
    from qtoolkit.core.data_objects import SubmissionResult, SubmissionStatus

    from otf_workflows.engine.remote.execute import execute
    from otf_workflows.engine.remote.runner import SiteRunner

    numbers = itertools.count(4_000_000)  # above all process numbers: they are never found running

    def submit(_self, *, work_dir, **_rest):
        execute(Path(work_dir))
        return SubmissionResult(job_id=str(next(numbers)), status=SubmissionStatus.SUCCESSFUL)

    with patch.object(QueueManager, "submit", submit):
        made = SiteRunner(engine)
        yield made
        made.close()


@pytest.fixture
def drain(runner):
    """Turn until nothing changes any more."""

    def picture():
        found = runner.job_controller.jobs.find({}, ["db_id", "state", "otf_returns"])
        return [(d["db_id"], d["state"], d.get("otf_returns")) for d in found.sort("_id", 1)]

    def run():
        before = None
        while picture() != before:
            before = picture()
            runner.turn()

    return run


def states(engine, campaign="c"):
    return {job.name: str(job.state) for job in engine.jobs(campaign=campaign)}


def cycle():
    """A flow shaped like a cycle."""
    explore = staged(report(), Stage.EXPLORE)
    chosen = staged(spawn(["a", "b"]), Stage.SELECT)
    train = staged(report(chosen.output, explore.output), Stage.FINETUNE)
    train.name = "train"
    return Flow([explore, chosen, train]), train


# -- the interface of every engine -----------------------------------------------------------------


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
    dft_places(runner, 0)
    drain()
    job = next(job for job in engine.jobs(campaign="c") if job.label_key == "late")
    assert job.state is JobState.READY
    assert engine.let_go([job.engine_id]) == [job.engine_id]
    drain()
    assert engine.output(ended.uuid) == 1
    assert [j.label_key for j in engine.jobs(campaign="c", kind="relabel")] == ["late"]
    dft_places(runner, 1)
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


# -- jobs that vanish ------------------------------------------------------------------------------


def lose(runner, db_id, words=""):
    """Let a job leave, vanish with these last words, and turn until that is noticed."""
    jobs = runner.job_controller.jobs
    runner.checkout()
    runner.advance_state(["CHECKED_OUT", "UPLOADED"])
    found = jobs.find_one({"db_id": db_id})
    assert found["state"] == "SUBMITTED"
    (Path(found["run_dir"]) / "queue.err").write_text(words)
    runner.check_run_status()
    runner.advance_state(["DOWNLOADED"])
    return jobs.find_one({"db_id": db_id})


@pytest.fixture
def losing(runner):
    """Submissions that start nothing."""
    from jobflow_remote.remote.queue import QueueManager
    from qtoolkit.core.data_objects import SubmissionResult, SubmissionStatus

    gone = SubmissionResult(job_id="4999999", status=SubmissionStatus.SUCCESSFUL)
    with patch.object(QueueManager, "submit", lambda *_, **__: gone):
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


# -- labels, once ----------------------------------------------------------------------------------

CELL = [[3.6, 0, 0], [0, 3.6, 0], [0, 0, 3.6]]
N_LABELS = 4


def frame(x, **fields):
    return Frame(numbers=[29, 29], cell_A=CELL, positions_A=[[x, 0, 0], [1.8] * 3], **fields)


def segment():
    """A walker that met some frames to label."""
    met = [
        frame(0.02 * i, sigma_eV_A=0.5 + 0.01 * i, features=[float(i), float(i * i)])
        for i in range(1, N_LABELS + 1)
    ]
    for i, item in enumerate(met):
        item.origin.walker, item.origin.step = 0, i
    return WalkerSegment(
        walker=0, temperature_K=300, model_id="toy-lj", first_step=0, n_steps=10, n_steps_run=10,
        n_checked=5, n_above=5, stop_reason=StopReason.COMPLETED, candidates=met[1:], pool=met[:1],
        seconds=0.1,
    )  # fmt: skip


@pytest.fixture
def store(database):
    store = Store(database)
    store.ensure_indexes()
    return store


@pytest.fixture
def begin(store, engine):
    """Submit the part of a cycle that asks for labels and gathers them."""
    return lambda name, **labels: ask(store, engine, name, **labels)


def ask(store, engine, name, **labels):
    asked = Campaign(
        name=name,
        structure=frame(0.0),
        potential="toy-lj",
        labels={"code": "ase", "calculator": "emt", **labels},
        selection=SelectionRules(
            labels_per_cycle=N_LABELS - 1, audit_per_cycle=1, duplicate_distance=0.0
        ),
    )
    control.submit(asked, store)
    store.open_cycle(
        CycleDocument(campaign=name, cycle=0, state=CycleState.RUNNING, incumbent_id="toy-lj")
    )
    chosen = select([segment()], [], campaign=asked, cycle=0)
    batch = gather(chosen.output, campaign=asked, cycle=0)
    engine.submit(Flow([chosen, batch]), campaign=name, cycle=0, kind="cycle")
    return batch


@pytest.fixture
def computed(monkeypatch):
    """The keys that were really computed, in order."""
    from otf_workflows.labelers.ase_calculator import AseLabeler

    keys, original = [], AseLabeler.label

    def label(self, frame, recipe, *, key, **rest):
        keys.append(key)
        return original(self, frame, recipe, key=key, **rest)

    monkeypatch.setattr(AseLabeler, "label", label)
    return keys


def test_two_campaigns_that_ask_at_once_get_one_computation(begin, drain, engine, store, computed):
    first, second = begin("one"), begin("two")
    drain()
    assert len(computed) == len(set(computed)) == N_LABELS
    for batch in (first, second):
        found = engine.output(batch.uuid)
        assert (found.n_train + found.n_validation + found.n_audit, found.missing_keys) == (4, [])
    labels = [j for n in ("one", "two") for j in engine.jobs(campaign=n) if j.label_key]
    assert len(labels) == 2 * N_LABELS
    assert {job.state for job in labels} == {JobState.DONE}
    done = store.labels(states=[LabelState.DONE])
    assert {wish["campaign"] for label in done for wish in label.wanted_by} == {"one", "two"}


def test_a_label_that_another_job_computes_is_waited_for(begin, runner, drain, computed):
    engine = runner.engine
    begin("one")
    dft_places(runner, 0)
    drain()
    keys = [job.label_key for job in engine.jobs(campaign="one") if job.label_key]
    assert len(keys) == N_LABELS
    claims = Claims(engine.database)
    assert claims.take(keys[0], by="a FireWorks job")
    dft_places(runner, 2)
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
    dft_places(runner, 0)
    drain()
    claims = Claims(engine.database)
    for job in engine.jobs(campaign="one"):
        if job.label_key:  # as if each had been on its way and had been put back
            assert claims.take(job.label_key, by=job.uuid, seconds=3600)
    engine.pause("one")
    dft_places(runner, 2)
    drain()
    assert len(computed) == N_LABELS
    assert {str(j.state) for j in engine.jobs(campaign="two")} == {"done"}
    engine.resume("one")
    drain()
    assert len(computed) == N_LABELS
    assert {str(j.state) for j in engine.jobs(campaign="one")} == {"done"}


def dft_places(runner, count):
    """Let so many labels be on their way."""
    runner.site.workers[Role.DFT] = runner.site.workers[Role.DFT].model_copy(
        update={"count": count}
    )


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


# -- the project file and the program --------------------------------------------------------------


def test_the_project_file_is_private_and_readable_by_jobflow_remote(remote_site):
    from jobflow_remote.config.base import Project

    from otf_workflows.engine.remote.project import write_project

    file = write_project(remote_site)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    project = Project.model_validate(yaml.safe_load(file.read_text()))
    assert set(project.workers) == {str(role) for role in Role}
    write_project(remote_site)  # our own is written again


def test_a_project_of_somebody_else_is_left_alone(remote_site, monkeypatch, tmp_path):
    from otf_workflows.engine.remote.project import write_project

    monkeypatch.setenv("JFREMOTE_PROJECTS_FOLDER", str(tmp_path))
    monkeypatch.setenv("JFREMOTE_PROJECT", "mine")
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    with pytest.raises(ConfigurationError, match="not this site's") as caught:
        write_project(remote_site)
    assert "JFREMOTE_PROJECT" in caught.value.hint
    assert (tmp_path / "mine.yaml").read_text() == "name: mine\n"


def test_a_host_whose_key_nobody_knows_is_refused():
    import fabric
    import paramiko

    from otf_workflows.engine.remote.ssh import refuse_unknown_hosts

    with patch.multiple(fabric.connection, SSHClient=None, AutoAddPolicy=None):
        refuse_unknown_hosts()
        client = fabric.Connection("login.example.org").client
    assert isinstance(client._policy, paramiko.RejectPolicy)
    assert client._system_host_keys is not None


def test_doctor_tells_the_engine_and_what_is_wrong_with_the_login(remote_site):
    from otf_workflows.engine.remote.checks import engine_checks
    from otf_workflows.settings import Queue, RemoteSettings

    (check,) = engine_checks(remote_site)
    assert (check.ok, check.detail[:15]) == (True, "jobflow-remote ")
    host = {"host": "127.0.0.1", "port": 1, "work_dir": "/w", "site_file": "/w/site.yaml"}
    nowhere = remote_site.model_copy(
        update={
            "remote": RemoteSettings.model_validate(host),
            "queues": {Role.DFT: Queue(python="/opt/py")},
        }
    )
    _, login = engine_checks(nowhere)
    assert (login.ok, login.hint) == (False, "ssh -p 1 127.0.0.1")
    control = nowhere.model_copy(update={"queues": {Role.CONTROL: Queue()}})
    (refused,) = engine_checks(control)
    assert "Control jobs need the database" in refused.detail


def test_jobs_of_this_machine_are_put_back_when_the_runner_ends(remote_site, engine, tmp_path):
    started, proof = tmp_path / "started", tmp_path / "child"
    engine.submit(Flow([staged(nap(600, str(started), str(proof)), Stage.EXPLORE)]), **KEY)
    command = [sys.executable, "-m", "otf_workflows.engine.remote.service", "--no-reconcile"]
    with subprocess.Popen([*command, "--site", str(remote_site.source)]) as service:
        try:
            wait_for(lambda: started.exists() and proof.exists() and proof.read_text())
            wait_for(lambda: engine.jobs(campaign="c")[0].state is JobState.RUNNING)
        finally:
            service.send_signal(signal.SIGTERM)
        assert service.wait(60) == 0
    (job,) = engine.jobs(campaign="c")
    assert (job.state, job.started) == (JobState.READY, None)
    assert not Path(f"/proc/{proof.read_text()}").exists()


@pytest.mark.slow
def test_a_killed_runner_is_replaced_and_nothing_runs_twice(remote_site, engine, tmp_path):
    started = [tmp_path / f"started-{i}" for i in range(3)]
    labels = [staged(nap(4.0, str(f)), Stage.LABEL, label_key=f.name) for f in started]
    ended = staged(collect([label.output for label in labels]), Stage.GATHER)
    engine.submit(Flow([*labels, ended]), **KEY)
    command = [sys.executable, "-m", "otf_workflows.engine.remote.service", "--no-reconcile"]
    command += ["--site", str(remote_site.source)]
    with subprocess.Popen(command) as first:
        wait_for(lambda: any(file.exists() for file in started))
        first.kill()
    with subprocess.Popen(command) as second:
        try:
            wait_for(lambda: engine.output(ended.uuid) == 3, seconds=300)
        finally:
            second.terminate()
        assert second.wait(60) == 0
    assert [len(file.read_text().splitlines()) for file in started] == [1, 1, 1]


def test_jobflow_remotes_own_commands_read_our_project(remote_site, engine, drain):
    from otf_workflows.engine.remote.project import surroundings

    engine.submit(Flow([staged(report(), Stage.EXPLORE)]), **KEY)
    drain()
    code = "from jobflow_remote.cli.jf import app; app()"
    told = subprocess.run(
        [sys.executable, "-c", code, "job", "list"],
        env={**os.environ, **surroundings(remote_site), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "report" in told.stdout
    assert "COMPLETED" in told.stdout


def test_a_second_runner_for_the_same_database_is_refused(remote_site, database, engine):
    from otf_workflows.engine.remote.service import ONLY_ONE, serve

    assert Claims(database).take(ONLY_ONE, by="another machine")
    with pytest.raises(ConfigurationError, match="Another runner"):
        serve(remote_site, stop=threading.Event())


def wait_for(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.2)


# -- a real batch system ---------------------------------------------------------------------------


@pytest.fixture
def batch_engine(slurm, remote_site, tmp_path):
    """An engine whose labels and MD go to two partitions, on nodes that see no database."""
    blind = tmp_path / "blind.yaml"
    nowhere = {"mode": "server", "host": "127.0.0.1", "port": 1}
    blind.write_text(yaml.safe_dump({"database": nowhere, "state_dir": str(tmp_path / "node")}))
    small = {"memory_MiB": 2000, "walltime_s": 600}
    document = yaml.safe_load(remote_site.source.read_text()) | {
        "queues": {
            "dft": {"partition": "dft", **small},
            "md": {"partition": "gpu", **small},
            "train": {"partition": "gpu", "directives": ["#SBATCH --hold"], **small},
        },
        "remote": {"poll_s": 0.5, "site_file": str(blind)},
    }
    remote_site.source.write_text(yaml.safe_dump(document))
    made = open_engine(load_site())
    yield made
    made.close()


@pytest.mark.slow
def test_a_real_slurm_computes_labels_on_nodes_without_database_and_a_cancelled_job_runs_again(
    batch_engine, store, tmp_path
):
    from otf_workflows.engine.remote.runner import SiteRunner

    engine, started = batch_engine, tmp_path / "started"
    batch = ask(store, engine, "one")
    engine.submit(Flow([staged(nap(5.0, str(started)), Stage.EXPLORE)]), **KEY)
    runner = SiteRunner(engine)
    cancelled = []

    def over():
        runner.turn()
        (walker,) = runner.job_controller.jobs.find({"job.metadata.campaign": "c"})
        if started.exists() and not cancelled:
            cancelled.append(walker["remote"]["process_id"])
            subprocess.run(["scancel", *cancelled], check=True)
        jobs = engine.jobs(campaign="one") + engine.jobs(campaign="c")
        return all(job.state in ENDED for job in jobs)

    wait_for(over, seconds=900)
    runner.close()
    assert engine.output(batch.uuid).missing_keys == []
    labels = [job for job in engine.jobs(campaign="one") if job.label_key]
    assert {str(job.state) for job in labels} == {"done"}
    (walker,) = runner.job_controller.jobs.find({"job.metadata.campaign": "c"})
    assert (walker["state"], walker["otf_returns"]) == ("COMPLETED", 1)
    assert walker["remote"]["process_id"] not in cancelled
    assert len(started.read_text().splitlines()) == 2
    script = (Path(labels[0].directory) / "submit.sh").read_text()
    assert "#SBATCH --partition=dft" in script


@pytest.mark.slow
def test_jobs_that_wait_in_the_queue_leave_it_on_a_pause_and_a_stop(batch_engine):
    from otf_workflows.engine.remote.runner import SiteRunner

    engine = batch_engine
    engine.submit(Flow([staged(report(), Stage.FINETUNE)]), **KEY)
    runner = SiteRunner(engine)

    def queued():
        listed = subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True)
        return len(listed.stdout.splitlines())

    def state():
        runner.turn()
        return str(engine.jobs(campaign="c")[0].state)

    assert (state(), queued()) == ("ready", 1)
    engine.pause("c")
    wait_for(lambda: (state(), queued()) == ("paused", 0))
    engine.resume("c")
    wait_for(lambda: (state(), queued()) == ("ready", 1))
    engine.cancel("c")
    wait_for(lambda: (state(), queued()) == ("failed", 0))
    assert "given up" in engine.jobs(campaign="c")[0].failure["message"]
    runner.close()


@pytest.mark.slow
def test_rounds_from_cron_bring_everything_to_its_end(batch_engine):
    from otf_workflows.engine.rounds import one_round

    engine = batch_engine
    walker = staged(report(), Stage.EXPLORE)
    chosen = staged(spawn(["a"]), Stage.SELECT)
    ended = staged(collect([walker.output, chosen.output]), Stage.GATHER)
    engine.submit(Flow([walker, chosen, ended]), **KEY)

    def over():
        one_round(engine.site)
        return engine.output(ended.uuid) == 2

    wait_for(over, seconds=600)
    assert {job.worker for job in engine.jobs(campaign="c")} == {"control", "md", "dft"}
