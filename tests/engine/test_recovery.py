"""What killed workers leave behind is put right, and nothing else is touched."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from fireworks import Firework, FWorker
from fireworks.core.launchpad import LaunchPad, WFLock
from jobflow import Flow

from otf_workflows.engine import JobState
from otf_workflows.engine.identity import WORKER_VARIABLE, WorkerName, kill_programs_of
from otf_workflows.engine.lean_launchpad import LeanLaunchPad
from otf_workflows.engine.recovery import put_back, recover
from otf_workflows.testing.jobs import collect, report, spawn, staged
from otf_workflows.types import Role, Stage

KEY = {"campaign": "c", "cycle": 0, "kind": "cycle"}
NOW = timedelta(0)


@pytest.fixture
def dead():
    """The name of a worker whose process has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return WorkerName(Role.DFT, WorkerName.mine(Role.DFT).host, process.pid)


def take(engine, worker, folder):
    """Take the next job as this worker, and go no further."""
    fworker = FWorker(name=str(worker), category=str(worker.role))
    return engine.launchpad.checkout_fw(fworker, str(folder))


def names(engine):
    return {job.name: str(job.state) for job in engine.jobs(campaign="c")}


def test_the_job_of_a_dead_worker_is_ready_again_and_its_dependant_waits(
    engine, dead, tmp_path, drain
):
    label = staged(report(), Stage.LABEL)
    gather = staged(collect([label.output]), Stage.GATHER)
    engine.submit(Flow([label, gather]), **KEY)
    _, launch_id = take(engine, dead, tmp_path)
    assert names(engine) == {"report": "running", "collect": "waiting"}
    (sentence,) = engine.recover()
    assert str(dead) in sentence
    # FireWorks' own repair would fail the label first, and 'collect' would run without it.
    assert names(engine) == {"report": "ready", "collect": "waiting"}
    assert engine.launchpad.launches.find_one({"launch_id": launch_id})["state"] == "FIZZLED"
    assert engine.recover() == []
    assert drain() == 2
    assert engine.output(gather.uuid) == 1


@pytest.mark.parametrize("where", ["before", "after"])
def test_whoever_is_killed_while_putting_a_job_back_does_not_make_it_fail(
    engine, dead, tmp_path, drain, where
):
    engine.submit(Flow([staged(report(), Stage.LABEL)]), **KEY)
    take(engine, dead, tmp_path)
    update, leave = LaunchPad._update_wf, WFLock.__exit__

    class Killed(BaseException):
        pass

    def killed(self, workflow, updated):
        if where == "after":
            update(self, workflow, updated)
        raise Killed

    def exit_lock(self, kind, *rest):
        if kind is None:  # a killed process does not get to free its lock
            leave(self, kind, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LaunchPad, "_update_wf", killed)
        patch.setattr(WFLock, "__exit__", exit_lock)
        with pytest.raises(Killed):
            engine.recover()
    for _ in range(2):
        recover(engine.launchpad, patience=NOW)
    assert names(engine) == {"report": "ready"}
    assert drain() == 1
    recover(engine.launchpad, patience=NOW)
    assert names(engine) == {"report": "done"}
    assert engine.launchpad.launches.count_documents({"state": "RUNNING"}) == 0


@pytest.mark.parametrize("who", ["alive", "elsewhere", "stranger"])
def test_jobs_of_others_are_left_alone(engine, tmp_path, who):
    names_of = {
        "alive": str(WorkerName.mine(Role.DFT)),
        "elsewhere": "dft-node-17-4711",
        "stranger": "my cluster worker",
    }
    engine.submit(Flow([staged(report(), Stage.LABEL)]), **KEY)
    engine.launchpad.checkout_fw(FWorker(name=names_of[who]), str(tmp_path))
    assert recover(engine.launchpad, patience=NOW) == []
    assert names(engine) == {"report": "running"}


def test_a_reused_process_number_is_not_the_worker():
    mine = WorkerName.mine(Role.MD)
    assert not mine.is_dead(since=datetime.now(UTC))
    assert mine.is_dead(since=datetime.now(UTC) - timedelta(days=1))
    assert not WorkerName(Role.MD, "elsewhere", 1).is_dead(since=None)


def test_names_of_workers_are_read_back_whatever_the_host_is_called():
    name = WorkerName(Role.TRAIN, "gpu-node-3.cluster", 42)
    assert WorkerName.parse(str(name)) == name
    for other in ("", "dft", "dft-host", "dft-host-x", "cooking-host-3", "Automatic Worker"):
        assert WorkerName.parse(other) is None


def test_a_lock_left_behind_is_freed_only_after_patience(engine, drain):
    engine.submit(Flow([staged(report(), Stage.LABEL)]), **KEY)
    workflows = engine.launchpad.workflows
    workflows.update_one({}, {"$set": {"locked": True}})
    assert engine.recover() == []
    assert workflows.count_documents({"locked": True}) == 1
    (sentence,) = recover(engine.launchpad, patience=NOW)
    assert "free again" in sentence
    assert workflows.count_documents({"locked": {"$exists": True}}) == 0
    assert workflows.count_documents({"lock_seen": {"$exists": True}}) == 0
    assert drain() == 1


def test_a_lock_that_is_worked_under_is_never_freed(engine):
    engine.submit(Flow([staged(report(), Stage.LABEL)]), **KEY)
    pad = engine.launchpad
    fw_id = engine.jobs(campaign="c")[0].engine_id
    with WFLock(pad, fw_id):
        recover(pad, patience=timedelta(seconds=5))  # marks the lock
        pad._update_wf(pad.get_wf_by_fw_id_lzyfw(fw_id), [])
    with WFLock(pad, fw_id):
        old = datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=1)
        assert pad.workflows.count_documents({"lock_seen": {"$lt": old}}) == 0
        assert recover(pad, patience=timedelta(seconds=5)) == []
    assert pad.workflows.count_documents({"locked": {"$exists": True}}) == 0


@pytest.mark.parametrize("writes", range(5))
def test_a_worker_killed_while_it_writes_new_jobs_down_loses_and_doubles_nothing(
    engine, drain, writes, dead
):
    """Stop the recording of a finished ``select`` after each of its steps."""
    select = staged(spawn(["a", "b"]), Stage.SELECT)
    then = staged(report(select.output), Stage.FINETUNE)
    then.name = "then"
    engine.submit(Flow([select, then]), **KEY)
    pad = engine.launchpad

    class Killed(BaseException):
        pass

    left = [writes]

    original_upsert = LaunchPad._upsert_fws

    def upsert(self, fws, reassign_all=False):
        if not any(fw.fw_id < 0 for fw in fws):
            return original_upsert(self, fws, reassign_all=reassign_all)
        mapping = {}
        for fw in sorted(fws, key=lambda fw: fw.fw_id):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            mapping.update(original_upsert(self, [fw]))
        if left[0] == 0:
            raise Killed
        return mapping

    leave = WFLock.__exit__

    def exit_lock(self, kind, *rest):
        if kind is None:  # a killed process does not get to free its lock
            leave(self, kind, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LaunchPad, "_upsert_fws", upsert)
        patch.setattr(WFLock, "__exit__", exit_lock)
        with pytest.raises(Killed):
            drain(Role.CONTROL)
    assert pad.workflows.count_documents({"locked": True}) == 1
    pad.fireworks.update_many(
        {}, {"$set": {"created_on": (datetime.now(UTC) - timedelta(hours=1)).isoformat()}}
    )
    recover(pad, patience=NOW)
    recover(pad, patience=NOW)
    drain()
    jobs = engine.jobs(campaign="c")
    assert sorted(job.name for job in jobs) == [
        "report", "report", "spawn", "store_inputs", "then",
    ]  # fmt: skip
    assert {job.state for job in jobs} == {JobState.DONE}


def test_a_job_taken_by_nobody_is_ready_again_but_a_queue_reservation_stays(engine, tmp_path):
    engine.submit(Flow([staged(report(), Stage.LABEL), staged(report(), Stage.LABEL)]), **KEY)
    pad = engine.launchpad
    pad.reserve_fw(FWorker(category="dft"), str(tmp_path))
    pad._get_a_fw_to_run({"spec._category": "dft"})  # killed before it wrote its launch
    assert engine.recover() == []
    assert len(recover(pad, patience=NOW)) == 1
    assert sorted(d["state"] for d in pad.fireworks.find()) == ["READY", "RESERVED"]


def test_an_end_that_was_not_recorded_is_recorded(engine, drain):
    engine.submit(Flow([staged(report(), Stage.LABEL)]), **KEY)
    drain()
    pad = engine.launchpad
    pad.fireworks.update_many({}, {"$set": {"state": "RUNNING"}})
    assert engine.recover() == []
    assert len(recover(pad, patience=NOW)) == 1
    assert names(engine) == {"report": "done"}


def test_jobs_without_a_workflow_are_removed(engine):
    engine.submit(Flow([staged(report(), Stage.LABEL)]), **KEY)
    pad = engine.launchpad
    pad._upsert_fws([Firework([], spec={"campaign": "c"}, fw_id=-1)])
    pad._upsert_fws([Firework([], spec={"campaign": "c"}, fw_id=-2, state="FIZZLED")])
    assert pad.fireworks.count_documents({}) == 3
    assert engine.recover() == []
    (sentence,) = recover(pad, patience=NOW)
    assert "Removed 2 jobs" in sentence
    assert names(engine) == {"report": "ready"}


def test_programs_of_a_dead_worker_are_killed_and_no_others():
    env = {**os.environ, WORKER_VARIABLE: "dft-here-1"}
    left = subprocess.Popen(["sleep", "60"], env=env)
    other = subprocess.Popen(["sleep", "60"], env={**env, WORKER_VARIABLE: "dft-here-12"})
    try:
        assert kill_programs_of("dft-here-1") == 1
        assert left.wait(10) == -9
        assert other.poll() is None
    finally:
        for process in (left, other):
            process.kill()
            process.wait()


def test_libraries_are_loaded_before_the_workflow_is_locked(engine, dead, tmp_path, monkeypatch):
    engine.submit(Flow([staged(report(), Stage.LABEL)]), **KEY)
    pad = engine.launchpad
    firework, launch_id = take(engine, dead, tmp_path)
    locked_at_first_look = []
    read = LeanLaunchPad.get_fw_by_id

    def look(self, fw_id):
        locked_at_first_look.append("locked" in pad.workflows.find_one())
        return read(self, fw_id)

    monkeypatch.setattr(LeanLaunchPad, "get_fw_by_id", look)
    assert put_back(pad, firework.fw_id, launch_id)
    assert locked_at_first_look[0] is False
