"""jobflow-remote's documents and batch scripts in our words; none of this needs the package."""

from __future__ import annotations

import traceback
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from otf_workflows.engine.base import JobState
from otf_workflows.engine.queues.retries import Grant
from otf_workflows.engine.remote.failures import cause_of_loss, failure_of, note
from otf_workflows.engine.remote.project import project_document, worker_document, write_project
from otf_workflows.engine.remote.records import STATES, job_record
from otf_workflows.engine.remote.resources import batch_options, grant_of, hours_minutes_seconds
from otf_workflows.errors import ConfigurationError, LabelFailed
from otf_workflows.settings import Queue, RemoteSettings, Site
from otf_workflows.types import EngineKind, FailureCause, QueueKind, Role

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC).replace(tzinfo=None)  # as jobflow-remote gives it


def document(state, **fields):
    metadata = {"campaign": "c", "cycle": 1, "kind": "cycle", "stage": "label", "label_key": "k"}
    return {
        "db_id": "7",
        "uuid": "u",
        "index": 1,
        "state": state,
        "worker": "dft",
        "updated_on": NOW,
        "job": {"name": "label k", "metadata": metadata},
        **fields,
    }


def raised(error):
    try:
        raise error
    except type(error) as caught:
        caught.add_note(note(caught))
        return traceback.format_exc()


def test_a_failure_comes_through_a_traceback_whole():
    error = LabelFailed(
        "two lines\nof words", cause=FailureCause.SCF, attempts=[{"number": 1}], where="/there"
    )
    found = failure_of(document("FAILED", error=raised(error)))
    assert found == error.to_dict()


def test_a_failure_of_others_tells_its_last_line():
    text = 'Traceback (most recent call last):\n  File "x", line 1\nKeyError: 3\n'
    assert failure_of(document("FAILED", error=text))["message"] == "KeyError: 3"


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT … DUE TO TIME LIMIT ***", "walltime"),
        ("=>> PBS: job killed: walltime 3610 exceeded limit 3600", "walltime"),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=5.batch.", "memory"),
        ("*** JOB 5 ON n1 CANCELLED AT … DUE TO NODE FAILURE, SEE SLURMCTLD LOG ***", "node"),
        ("*** JOB 5 CANCELLED AT … DUE TO PREEMPTION ***", "node"),
        ("*** JOB 5 ON n1 CANCELLED AT 2026-01-01T00:00:00 ***", "killed"),
        ("", "killed"),
    ],
)
def test_the_last_words_of_the_batch_system_are_the_cause(words, cause):
    assert cause_of_loss(words) == cause
    said = "no response. The job was likely killed before completing"
    lost = document("FAILED", error=said, remote={"queue_err": words}, run_dir="/jobs/7")
    failure = failure_of(lost)
    assert (failure["cause"], failure["directory"]) == (cause, "/jobs/7")
    assert words in failure["message"]


def test_what_waits_in_the_batch_queue_has_not_started():
    assert job_record(document("SUBMITTED")).state is JobState.READY
    assert job_record(document("WAITING")).worker is None
    assert job_record(document("SUBMITTED")).worker == "dft"
    record = job_record(document("RUNNING", start_time=NOW))
    assert record.started == NOW.replace(tzinfo=UTC)


def test_a_job_that_failed_has_been_tried_and_one_that_was_stopped_has_not():
    assert job_record(document("FAILED", error="x")).started is not None
    given_up = job_record(document("USER_STOPPED"))
    assert (given_up.state, given_up.started) == (JobState.FAILED, None)


def test_every_state_of_jobflow_remote_has_a_word_of_ours():
    states = pytest.importorskip(
        "jobflow_remote.jobs.state", reason="jobflow-remote is not installed"
    )
    assert {state.value for state in states.JobState} == set(STATES)


QUEUES = {
    QueueKind.SLURM: (
        {"partition": "cpu", "qos": "normal", "directives": ["#SBATCH --exclusive"]},
        [
            "#SBATCH --partition=cpu",
            "#SBATCH --nodes=2",
            "#SBATCH --ntasks=8",
            "#SBATCH --cpus-per-task=3",
            "#SBATCH --mem=4000M",
            "#SBATCH --time=25:00:00",
            "#SBATCH --account=me",
            "#SBATCH --qos=normal",
            "#SBATCH --gpus-per-node=1",
            "#SBATCH --exclusive",
        ],
    ),
    QueueKind.PBS: (
        {"partition": "long"},
        [
            "#PBS -q long",
            "#PBS -A me",
            "#PBS -l select=2:ncpus=12:mpiprocs=4:ngpus=1:mem=4000mb",
            "#PBS -l walltime=25:00:00",
        ],
    ),
    QueueKind.SGE: (
        {"partition": "all.q", "directives": ["#$ -pe mpi 8"]},
        [
            "#$ -q all.q",
            "#$ -P me",
            "#$ -l h_vmem=4000M",
            "#$ -l h_rt=25:00:00",
            "#$ -pe mpi 8",
        ],
    ),
}


@pytest.mark.parametrize("kind", QUEUES)
def test_a_queue_section_becomes_the_lines_of_a_batch_script(kind):
    qtoolkit = pytest.importorskip("qtoolkit.io", reason="qtoolkit comes with jobflow-remote")
    fields, expected = QUEUES[kind]
    queue = Queue(
        kind=kind, account="me", nodes=2, ranks=8, cores_per_rank=3, gpus=1, memory_MiB=4000,
        walltime_s=90000, **fields,
    )  # fmt: skip
    script = qtoolkit.scheduler_mapping[str(kind)]().get_submission_script(
        "run", batch_options(queue)
    )
    assert [line for line in script.splitlines() if line] == ["#!/bin/bash", *expected, "run"]


class NoCosts:
    def expected_s(self, _label):
        return None

    def size_ratio(self, _label):
        return None


def test_a_label_with_a_time_limit_of_its_own_gets_a_batch_job_that_outlives_it():
    assert grant_of(Queue(), None, NoCosts(), limit_s=7200).walltime_s == 7500
    assert batch_options(Queue(), Grant(7500.0))["time"] == "02:05:00"
    assert hours_minutes_seconds(100 * 3600 + 61) == "100:01:01"


def site(tmp_path, **fields):
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    return Site(state_dir=state, engine=EngineKind.JOBFLOW_REMOTE, **fields)


@pytest.fixture
def plain_state(monkeypatch):
    monkeypatch.delenv("OTF_STATE_DIR")


def test_a_role_with_a_queue_goes_there_and_the_others_stay(tmp_path, plain_state):
    here = site(tmp_path, queues={Role.DFT: Queue(python="/opt/py", environment=["module load q"])})
    workers = project_document(here)["workers"]
    assert workers["control"]["scheduler_type"] == "shell"
    assert workers["dft"]["scheduler_type"] == "slurm"
    with_database = [
        role for role in workers if "--with-database" in workers[role]["execution_cmd"]
    ]
    assert with_database == ["control"]
    assert workers["dft"]["execution_cmd"].startswith("/opt/py -m otf_workflows")
    assert workers["dft"]["pre_run"].splitlines()[-1] == "module load q"
    assert f"export OTF_STATE_DIR={here.state_dir}" in workers["dft"]["pre_run"]


def test_a_host_is_reached_over_ssh_with_its_own_site_file(tmp_path, plain_state):
    remote = RemoteSettings(host="login", work_dir=Path("/w"), site_file=Path("/w/site.yaml"))
    here = site(tmp_path, queues={Role.DFT: Queue(python="/opt/py")}, remote=remote)
    worker = worker_document(here, Role.DFT, site_file="/here/site.yaml")
    assert (worker["type"], worker["host"], worker["work_dir"]) == ("remote", "login", "/w/dft")
    assert worker["pre_run"].splitlines()[:2] == [
        "export OTF_SITE_FILE=/w/site.yaml",
        "unset OTF_STATE_DIR",
    ]
    assert worker_document(here, Role.MD, site_file="x")["type"] == "local"


def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path, plain_state):
    with pytest.raises(ConfigurationError, match="Control jobs need the database"):
        write_project(site(tmp_path, queues={Role.CONTROL: Queue()}))
    remote = RemoteSettings(host="login", work_dir=Path("/w"), site_file=Path("/w/site.yaml"))
    no_python = Site(queues={Role.DFT: Queue()}, remote=remote, state_dir=tmp_path / "state")
    with pytest.raises(ConfigurationError, match="which Python"):
        project_document(no_python)
    blank = Site(state_dir=tmp_path / "a b")
    with pytest.raises(ConfigurationError, match="blank"):
        project_document(blank)
    with pytest.raises(ValidationError, match="needs site_file"):
        RemoteSettings(host="login", work_dir=Path("/w"))


def test_a_site_that_asks_for_it_says_how_to_install_it(monkeypatch):
    from otf_workflows.engine.remote import controller

    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigurationError) as caught:
        controller.require_jobflow_remote()
    assert caught.value.hint == "pip install 'otf-workflows[remote]'"


def test_a_process_of_the_same_number_is_not_taken_for_the_job(tmp_path):
    import subprocess

    from otf_workflows.engine.remote.processes import kill_tree, runs_in

    job = tmp_path / "job"
    script = tmp_path / "job-script.sh"
    script.write_text("sleep 60\n")
    with subprocess.Popen(["bash", str(script)]) as process:
        other = tmp_path / "another"
        assert not runs_in(process.pid, other)
        kill_tree(process.pid, other)
        assert process.poll() is None
        assert runs_in(process.pid, job)
        kill_tree(process.pid, job)
        process.wait(300)
        assert not Path(f"/proc/{process.pid}").exists()
