"""A worker inside a batch job: what it does at the warning, and what it leaves to the launcher."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from fireworks import FWorker
from jobflow import Flow

from otf_workflows.engine.queues import batch as batch_module
from otf_workflows.engine.queues.batch import Batch, run_side_by_side, warning_s
from otf_workflows.engine.queues.jobs import BatchJob, BatchState, QueueJobs, new_token, token_in
from otf_workflows.engine.queues.packing import limits_of
from otf_workflows.engine.queues.retries import Limits
from otf_workflows.engine.recovery import put_back_lost_jobs
from otf_workflows.engine.worker import Worker
from otf_workflows.settings import Queue, load_site
from otf_workflows.store import Store
from otf_workflows.testing.jobs import fail_label, nap, report, staged
from otf_workflows.testing.waiting import wait_for
from otf_workflows.types import Role, Stage

KEY = {"campaign": "c", "cycle": 0, "kind": "cycle"}
QUEUE = Queue(walltime_s=600)
STAGE = {Role.MD: Stage.EXPLORE, Role.DFT: Stage.LABEL}


@pytest.fixture
def queued(site):
    import yaml

    changed = site.model_copy(update={"queues": {Role.MD: QUEUE, Role.DFT: QUEUE}})
    site.source.write_text(yaml.safe_dump(changed.model_dump(mode="json")))
    return load_site()


@pytest.fixture
def book(database):
    return QueueJobs(database)


@pytest.fixture
def in_batch_job(queued, engine, book, monkeypatch):
    """Register a worker of a role in a batch job, and let it take the job that is ready."""
    engine.site = queued
    monkeypatch.setattr(batch_module, "LOOK_S", 0.02)
    complete = engine.launchpad.complete_launch

    def enter(role, *, left_s=600.0, take=True):
        job = BatchJob(token=new_token(), home="h", role=role, folder="/nowhere", walltime_s=600.0)
        book.add(job)
        name = f"{role}-cpu1-{os.getpid()}"
        entered = Batch(
            engine, token=job.token, worker=name, role=role, walltime_s=600, limits=limits_of(QUEUE)
        )
        entered.until = time.time() + left_s
        assert entered.begin()
        if take:
            engine.launchpad.checkout_fw(FWorker(name=name, category=str(role)), "/nowhere")
        return entered

    yield enter
    engine.launchpad.complete_launch = complete


def submit(engine, role):
    engine.submit(Flow([staged(report(), STAGE[role], label_key="k")]), **KEY)


def the_job(engine):
    (job,) = engine.jobs(campaign="c")
    return job


def test_md_goes_on_from_its_checkpoint_and_that_is_no_failure(in_batch_job, engine):
    submit(engine, Role.MD)
    entered = in_batch_job(Role.MD, left_s=21.0)
    entered.put_back_in_time(threading.Event())
    assert the_job(engine).state == "ready"
    (event,) = Store(engine.database).events("c")
    assert "goes on from its checkpoint" in event.what
    assert "cause" not in event.details


def test_the_next_checkpoint_is_waited_for(in_batch_job, engine, queued):
    submit(engine, Role.MD)
    folder = queued.resolved_state_dir / "scratch" / the_job(engine).uuid
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    os.utime(folder / "state.json", (1e9, 1e9))
    entered = in_batch_job(Role.MD, left_s=600.0)
    waiting = threading.Thread(target=entered.put_back_in_time, args=(threading.Event(),))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    assert the_job(engine).state == "running"
    (folder / "state.json").touch()
    waiting.join(300)
    assert the_job(engine).state == "ready"


def test_a_label_that_ran_out_of_time_gets_more_and_its_history_says_so(in_batch_job, engine):
    submit(engine, Role.DFT)
    entered = in_batch_job(Role.DFT, left_s=20.0)
    entered.put_back_in_time(threading.Event())
    assert the_job(engine).state == "ready"
    (event,) = Store(engine.database).events("c")
    assert event.details["cause"] == "walltime"
    fw_id = the_job(engine).engine_id
    assert entered.foreign() == {"fw_id": {"$nin": [fw_id]}}
    assert engine.database.otf_queue_needs.find_one({"fw_id": fw_id})["grant"]["walltime_s"] == 1200


def test_a_job_that_ends_after_the_warning_is_not_put_back(in_batch_job, engine):
    submit(engine, Role.DFT)
    entered = in_batch_job(Role.DFT)
    at_rest = threading.Event()
    at_rest.set()
    entered.put_back_in_time(at_rest)
    assert the_job(engine).state == "running"  # its end is written by the main thread


def test_no_job_is_taken_that_would_not_end_in_time(in_batch_job, monkeypatch):
    entered = in_batch_job(Role.DFT, left_s=300.0, take=False)
    assert entered.has_time()
    monkeypatch.setattr(entered._costs, "longest_s", lambda: 200.0)
    assert not entered.has_time()
    assert in_batch_job(Role.MD, left_s=300.0, take=False).has_time()
    assert not in_batch_job(Role.MD, left_s=100.0, take=False).has_time()
    entered.warned.set()
    assert entered.closing


def test_recovery_leaves_workers_in_batch_jobs_to_the_launcher(in_batch_job, engine, book):
    import socket

    submit(engine, Role.DFT)
    entered = in_batch_job(Role.DFT, take=False)
    with subprocess.Popen(["true"]) as gone:
        pass
    dead = f"dft-{socket.gethostname()}-{gone.pid}"
    book.begin(entered.token, worker=dead, job_id="7", node="cpu1")
    engine.launchpad.checkout_fw(FWorker(name=dead, category="dft"), "/nowhere")
    assert put_back_lost_jobs(engine.launchpad) == []
    book.end(entered.token, cause=None, sentence="over")
    assert len(put_back_lost_jobs(engine.launchpad)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("role", list(STAGE))
def test_a_worker_that_is_told_to_end_leaves_its_job_to_the_launcher(
    queued, engine, book, tmp_path, role
):
    started, proof = tmp_path / "started", tmp_path / "proof"
    engine.submit(Flow([staged(nap(600.0, str(started), str(proof)), STAGE[role])]), **KEY)
    job = BatchJob(token=new_token(), home="h", role=role, folder="/nowhere", walltime_s=600.0)
    book.add(job)
    worker = subprocess.Popen(
        [
            sys.executable, "-m", "otf_workflows.engine.worker", "--role", role,
            "--site", str(queued.source), "--token", job.token, "--walltime", "600",
        ],
        env={**os.environ, "SLURM_JOB_ID": "17"},
    )  # fmt: skip
    wait_for(lambda: proof.exists() and proof.read_text() and started.exists())
    worker.send_signal(signal.SIGTERM)
    worker.wait(300)
    assert the_job(engine).state == "running"
    program = int(proof.read_text())
    assert not psutil.pid_exists(program) or psutil.Process(program).status() == "zombie"
    found = book.get(job.token)
    assert (found.state, found.job_id, found.said) == (BatchState.RUNNING, "17", "told to end")


def test_a_failure_that_is_only_the_end_of_the_batch_job_is_not_written(in_batch_job, engine):
    submit(engine, Role.DFT)
    entered = in_batch_job(Role.DFT)
    launch = engine.launchpad.launches.find_one({})
    entered.ending.set()
    write = threading.Thread(
        target=engine.launchpad.complete_launch,
        args=(launch["launch_id"], None, "FIZZLED"),
        daemon=True,
    )
    write.start()
    write.join(0.5)
    assert write.is_alive()
    assert the_job(engine).state == "running"


def test_a_real_failure_is_written(in_batch_job, engine):
    submit(engine, Role.DFT)
    in_batch_job(Role.DFT)
    launch = engine.launchpad.launches.find_one({})
    engine.launchpad.complete_launch(launch["launch_id"], None, "FIZZLED")
    assert the_job(engine).state == "failed"


@pytest.mark.parametrize(("memory_MiB", "state"), [(500, "ready"), (1000, "failed")])
def test_a_dft_code_killed_for_its_memory_gets_more_if_there_is_more(
    in_batch_job, engine, memory_MiB, state
):
    from fireworks import FWAction

    submit(engine, Role.DFT)
    entered = in_batch_job(Role.DFT)
    entered.limits = Limits(600.0, 1000)
    engine.database.otf_queue_jobs.update_one({}, {"$set": {"memory_MiB": memory_MiB}})
    details = {"message": "pw.x was killed", "cause": "memory", "attempts": [], "directory": "/"}
    action = FWAction(stored_data={"_exception": {"_details": details, "_stacktrace": ""}})
    launch = engine.launchpad.launches.find_one({})
    engine.launchpad.complete_launch(launch["launch_id"], action, "FIZZLED")
    assert the_job(engine).state == state
    if state == "ready":
        needs = engine.database.otf_queue_needs.find_one({})
        assert needs["grant"]["memory_MiB"] == 1000


def test_a_worker_for_one_job_runs_that_job_alone(queued, engine, monkeypatch):
    import jobflow

    monkeypatch.setattr(jobflow.SETTINGS, "JOB_STORE", jobflow.SETTINGS.JOB_STORE)
    labels = [staged(report(), Stage.LABEL), staged(fail_label("k"), Stage.LABEL)]
    engine.submit(Flow(labels), **KEY)
    wanted = next(job for job in engine.jobs(campaign="c") if job.name == "fail_label")
    worker = Worker(queued, Role.DFT, reconcile=False, only=wanted.engine_id)
    engine.pause("c")
    engine.resume("c")
    assert worker.run() == 1
    assert {j.name: str(j.state) for j in engine.jobs(campaign="c")} == {
        "report": "ready",
        "fail_label": "failed",
    }
    assert worker.run() == 1  # there is nothing more for it
    worker.engine.close()


def test_names_carry_tokens_and_short_jobs_are_warned_early_enough():
    job = BatchJob(token=new_token(), home="h", role=Role.DFT, folder="/", walltime_s=60)
    assert token_in(job.name) == job.token
    for other in ("otf-dft-", "otf-dft-xyz", "my-otf-dft-0123456789ab", "otf-doctor-1"):
        assert token_in(other) is None
    assert warning_s(60) == 15
    assert warning_s(86400) == 120


def test_workers_side_by_side_share_a_batch_job_and_its_signals(tmp_path, monkeypatch):
    stub = tmp_path / "otf_stub.py"
    stub.write_text(
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n"
        "pathlib.Path(sys.argv[1], str(time.time_ns())).touch()\n"
        "time.sleep(900)\n"
    )
    begun = tmp_path / "begun"
    begun.mkdir()
    monkeypatch.setattr(batch_module, "WORKER_COMMAND", [sys.executable, str(stub)])
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)}

    def stop():
        wait_for(lambda: len(list(begun.iterdir())) == 2)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    try:
        assert run_side_by_side([str(begun)], 2) == 3
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def walker(steps):
    """An explore job of toy copper."""
    from ase.build import bulk

    from otf_workflows.campaign import Exploration
    from otf_workflows.jobs.explore import explore
    from otf_workflows.schemas import Calibration, Frame, Origin

    made = explore(
        Frame.from_atoms(bulk("Cu", a=3.62, cubic=True)),
        walker=0,
        temperature_K=300.0,
        potential="toy-lj",
        weights=None,
        calibration=Calibration(),
        rules=Exploration(temperatures_K=[300], steps_per_cycle=steps, check_every=50),
        tolerance_eV_A=0.5,
        seed=3,
        n_pool=4,
        checkpoint=None,
        origin=Origin(campaign="c", cycle=0),
    )
    made.name = "walker"
    return made


@pytest.mark.slow
def test_md_warned_of_its_end_goes_on_in_the_next_batch_job_to_the_same_bits(
    queued, engine, book, monkeypatch
):
    import jobflow

    # long enough not to end while it is being put back, which takes a second
    n_steps = 5000
    interrupted, whole = walker(n_steps), walker(n_steps)
    engine.submit(Flow([interrupted]), **KEY)
    job = BatchJob(token=new_token(), home="h", role=Role.MD, folder="/nowhere", walltime_s=600.0)
    book.add(job)
    process = subprocess.Popen(
        [
            sys.executable, "-m", "otf_workflows.engine.worker", "--role", "md",
            "--site", str(queued.source), "--token", job.token, "--walltime", "600",
        ]
    )  # fmt: skip
    saved = queued.resolved_state_dir / "scratch" / interrupted.uuid / "state.json"
    wait_for(saved.exists)
    process.send_signal(batch_module.WARNING_SIGNAL)
    assert process.wait(300) == 0
    assert the_job(engine).state == "ready"
    assert 0 < json.loads(saved.read_text())["n_steps_run"] < n_steps
    assert book.get(job.token).said == "told to end"

    monkeypatch.setattr(jobflow.SETTINGS, "JOB_STORE", jobflow.SETTINGS.JOB_STORE)
    engine.submit(Flow([whole]), **{**KEY, "cycle": 1})
    second = Worker(queued, Role.MD, reconcile=False)
    while second.run_one():
        pass
    second.engine.close()
    first, other = (engine.output(job.uuid) for job in (interrupted, whole))
    assert first.n_steps_run == other.n_steps_run == n_steps
    assert first.blob == other.blob
    assert first.sigmas_eV_A == other.sigmas_eV_A
