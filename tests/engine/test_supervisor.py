"""Real workers in real processes: started, killed, replaced, and all gone at the end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from jobflow import Flow

from otf_workflows.engine import FireWorksEngine, JobState, Supervisor
from otf_workflows.engine.supervisor import service_status, start_services, stop_services
from otf_workflows.errors import ConfigurationError
from otf_workflows.settings import Site, Worker
from otf_workflows.testing.jobs import fail_label, nap, report, spawn, staged
from otf_workflows.testing.waiting import wait_for
from otf_workflows.types import Role, Stage

KEY = {"campaign": "c", "cycle": 0, "kind": "cycle"}


def only(site, **counts):
    """The same site with these workers, written where workers find it."""
    import yaml

    workers = {Role(role): Worker(count=count) for role, count in counts.items()}
    changed = site.model_copy(update={"workers": workers})
    site.source.write_text(yaml.safe_dump(changed.model_dump(mode="json")))
    return changed


def finished(engine):
    jobs = engine.jobs(campaign="c")
    return jobs if all(job.state in {JobState.DONE, JobState.FAILED} for job in jobs) else None


def processes_of(folder):
    """Processes that mention this folder in their command line."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if str(folder) in " ".join(process.info["cmdline"] or [])
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def lines(path):
    return path.read_text().split() if path.exists() else []


def is_gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_a_cycle_runs_on_workers_of_every_role_and_no_process_is_left(site, engine):
    explore = staged(report(), Stage.EXPLORE)
    select = staged(spawn(["a", "b"]), Stage.SELECT)
    train = staged(report(select.output, explore.output), Stage.FINETUNE)
    engine.submit(Flow([explore, select, train, staged(fail_label("k"), Stage.LABEL)]), **KEY)
    with Supervisor(site, reconcile=False) as services:
        jobs = wait_for(lambda: finished(engine), "the jobs")
        assert service_status(site).running
        assert len(services.workers) == 4
        assert {job.worker for job in jobs} == set(services.workers)
        assert all(job.worker.startswith(f"{job.role}-") for job in jobs)
        assert engine.output(train.uuid)["worker"].startswith("train-")
        commands = [" ".join(process.cmdline()) for process in processes_of(site.source)]
        assert len(commands) == 4
    assert processes_of(site.source) == []
    assert not service_status(site).running
    secret = site.password.get_secret_value()
    assert not any(secret in command for command in commands)
    logs = list((site.resolved_state_dir / "logs").iterdir())
    assert any("done after" in log.read_text() for log in logs)
    assert not any(secret in log.read_text() for log in logs)


@pytest.mark.slow
def test_the_job_of_a_worker_killed_with_kill_9_runs_again_and_its_program_ends(
    site, engine, tmp_path
):
    started, proof = tmp_path / "started", tmp_path / "proof"
    site = only(site, dft=1)
    job = staged(nap(4.0, str(started), str(proof)), Stage.LABEL)
    engine.submit(Flow([job]), **KEY)
    with Supervisor(site, reconcile=False) as services:
        wait_for(lambda: lines(started) and lines(proof), "the job to start")
        (worker,) = (int(pid) for pid in lines(started))
        program = int(proof.read_text())
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: is_gone(program), "the program of the dead worker to be killed")
        wait_for(lambda: services.workers and str(worker) not in services.workers[0], "a new one")
        (record,) = wait_for(lambda: finished(engine), "the second run")
    assert record.state is JobState.DONE
    first, second = (int(pid) for pid in lines(started))
    assert first == worker != second == engine.output(job.uuid)


@pytest.mark.slow
def test_stopping_puts_the_running_job_back_and_a_second_supervisor_is_refused(
    site, engine, tmp_path
):
    started, proof = tmp_path / "started", tmp_path / "proof"
    site = only(site, dft=1)
    engine.submit(Flow([staged(nap(600.0, str(started), str(proof)), Stage.LABEL)]), **KEY)
    with Supervisor(site, reconcile=False):
        wait_for(lambda: lines(started) and lines(proof), "the job to start")
        with pytest.raises(ConfigurationError, match="up already") as caught:
            Supervisor(site).start()
        assert "otf down" in caught.value.hint
    (record,) = engine.jobs(campaign="c")
    assert record.state is JobState.READY
    assert is_gone(int(proof.read_text()))
    assert processes_of(site.source) == []


@pytest.mark.slow
def test_workers_end_and_put_their_job_back_when_their_supervisor_is_killed(site, engine, tmp_path):
    started, proof = tmp_path / "started", tmp_path / "proof"
    only(site, dft=1)
    engine.submit(Flow([staged(nap(600.0, str(started), str(proof)), Stage.LABEL)]), **KEY)
    command = [sys.executable, "-m", "otf_workflows.engine.supervisor", "--site", site.source]
    with subprocess.Popen([str(part) for part in command], start_new_session=True) as supervisor:
        wait_for(lambda: lines(started) and lines(proof), "the job to start")
        supervisor.kill()
    wait_for(lambda: processes_of(site.source) == [], "the workers to end")
    (record,) = engine.jobs(campaign="c")
    assert record.state is JobState.READY
    assert is_gone(int(proof.read_text()))


@pytest.mark.slow
@pytest.mark.integration
def test_services_stay_up_across_commands_and_survive_the_death_of_mongod(tmp_path, monkeypatch):
    tmp_path.chmod(0o700)
    monkeypatch.setenv("OTF_STATE_DIR", str(tmp_path))
    site = Site(workers={Role.DFT: Worker()})
    try:
        status = start_services(site)
        assert status.running
        assert status.pid != os.getpid()
        assert len(status.workers) == 1
        assert start_services(site) == status
        engine = FireWorksEngine(site)
        engine.submit(Flow([staged(report(), Stage.LABEL)]), **KEY)
        wait_for(lambda: finished(engine), "the first job")
        (mongod,) = (p for p in processes_of(tmp_path / "mongod") if "mongod" in p.name())
        port = engine.database.client.address[1]
        mongod.kill()
        mongod.wait(300) if mongod.is_running() else None
        wait_for(lambda: len(processes_of(tmp_path / "mongod" / "data")) == 1, "a new mongod")
        engine.submit(Flow([staged(report(), Stage.LABEL)]), **{**KEY, "cycle": 1})
        jobs = wait_for(lambda: finished(engine), "the second job")
        assert [job.state for job in jobs] == [JobState.DONE] * 2
        assert engine.database.client.address[1] == port
        engine.close()
    finally:
        assert stop_services(site) is True
    assert processes_of(tmp_path) == []
    assert stop_services(site) is False
    assert not service_status(site).running
    assert "Worker dft-" in Path(tmp_path / "logs" / "supervisor.log").read_text()


@pytest.mark.slow
def test_services_that_cannot_start_say_why(tmp_path, monkeypatch):
    tmp_path.chmod(0o700)
    monkeypatch.setenv("OTF_STATE_DIR", str(tmp_path))
    file = tmp_path / "site.yaml"
    file.write_text("database: {mode: server, port: 1}\n")
    from otf_workflows.settings import load_site

    with pytest.raises(ConfigurationError, match="MongoDB does not answer"):
        start_services(load_site(file))
    assert not service_status(load_site(file)).running
