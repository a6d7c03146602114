"""One worker: what it does when things go wrong around its jobs."""

import os
import sys

import pytest
from jobflow import Flow

from otf_workflows.engine import JobState
from otf_workflows.engine.worker import Worker, main
from otf_workflows.settings import STATE_DIR_VARIABLE
from otf_workflows.testing.jobs import report, staged
from otf_workflows.types import Role, Stage

KEY = {"campaign": "c", "cycle": 0, "kind": "cycle"}


@pytest.fixture
def worker(site, monkeypatch):
    import jobflow

    monkeypatch.setattr(jobflow.SETTINGS, "JOB_STORE", jobflow.SETTINGS.JOB_STORE)
    made = Worker(site, Role.DFT, reconcile=False)
    monkeypatch.setattr("otf_workflows.engine.worker.IDLE_S", 0.01)
    monkeypatch.setattr("otf_workflows.engine.worker.AFTER_ERROR_S", 0.01)
    yield made
    made.engine.close()


def test_a_job_whose_end_could_not_be_written_is_run_again(worker, engine, monkeypatch):
    from fireworks import LaunchPad
    from pymongo.errors import AutoReconnect

    engine.submit(Flow([staged(report(), Stage.LABEL)]), **KEY)
    complete, failures = LaunchPad.complete_launch, [1, 1]

    def interrupted(self, *args, **kwargs):
        if failures:
            failures.pop()
            raise AutoReconnect("connection closed")
        return complete(self, *args, **kwargs)

    monkeypatch.setattr(LaunchPad, "complete_launch", interrupted)
    assert worker.run(max_idle_s=0.2) == 1
    (job,) = engine.jobs(campaign="c")
    assert job.state is JobState.DONE
    assert engine.launchpad.launches.count_documents({}) == 2


def test_what_a_job_prints_stays_in_its_folder(worker, engine, capsys):
    from otf_workflows.testing.jobs import shout

    engine.submit(Flow([staged(shout("hello"), Stage.LABEL)]), **KEY)
    before = os.getcwd()  # noqa: PTH109
    worker.run_one()
    assert os.getcwd() == before  # noqa: PTH109
    (job,) = engine.jobs(campaign="c")
    from pathlib import Path

    assert "hello" in (Path(job.directory) / "job.out").read_text()
    assert "hello" not in capsys.readouterr().out


def test_an_empty_queue_leaves_no_folders(worker, site):
    assert worker.run_one() is False
    assert not (site.resolved_state_dir / "launches").exists()


def test_a_worker_of_a_site_that_does_not_answer_says_so_and_ends(tmp_path, monkeypatch, capsys):
    file = tmp_path / "site.yaml"
    file.write_text("database: {mode: server, port: 1}")
    monkeypatch.setenv(STATE_DIR_VARIABLE, str(tmp_path / "state"))
    monkeypatch.setattr("otf_workflows.engine.worker.PATIENCE_S", 0.1)
    for name in ("OTF_WORKER", "OTF_SITE_FILE", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    assert main(["--role", "md", "--site", str(file)]) == 4
    assert "does not answer" in capsys.readouterr().err


def test_every_module_of_a_worker_is_importable_without_heavy_libraries():
    code = (
        "import sys, otf_workflows.engine.worker, otf_workflows.engine.supervisor, "
        "otf_workflows.engine.fireworks_engine, otf_workflows.engine.local; "
        "heavy = {'torch', 'fireworks', 'jobflow', 'pymatgen', 'ase', 'pymongo'}; "
        "heavy &= set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
