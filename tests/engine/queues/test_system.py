"""Jobs are submitted, listed, ended and explained by a real Slurm."""

import subprocess
import sys
from pathlib import Path

import pytest

from otf_workflows.engine.queues import base as queue_base
from otf_workflows.engine.queues import script as queue_script
from otf_workflows.engine.queues import slurm as queue_slurm
from otf_workflows.engine.queues.slurm import _complaint, _fate_of_record, _fields, _queue_job, fate
from otf_workflows.engine.queues.system import (
    WARNING_SIGNAL,
    QueueJobState,
    QueueRefused,
    QueueSystem,
    QueueUnavailable,
)
from otf_workflows.settings import Queue
from otf_workflows.testing.waiting import wait_for
from otf_workflows.types import FailureCause

DFT = Queue(partition="dft", memory_MiB=100, walltime_s=300)
GPU = Queue(partition="gpu", memory_MiB=100, walltime_s=300, gpus=1)


def submit(queue, folder, program, *, name="otf-dft-test", **options):
    """Run a line of Python as a batch job."""
    system = QueueSystem(queue)
    folder.mkdir(exist_ok=True)
    script = folder / "job.sh"
    command = [sys.executable, "-c", program]
    made = system.script(name=name, folder=folder, command=command, environment={}, **options)
    script.write_text(made)
    return system.submit(script, name=name)


def listed(system, job_id):
    return next((job for job in system.jobs() if job.job_id == job_id), None)


def wait_until(system, job_id, state):
    return wait_for(lambda: (job := listed(system, job_id)) and job.state is state and job)


def test_the_script_runs_as_written_and_the_program_takes_the_place_of_the_shell(slurm, tmp_path):
    folder = tmp_path / "with a space"
    folder.mkdir()
    program = (
        "import os, signal, time\n"
        "told = []\n"
        "print(os.getcwd(), os.environ['GREETING'], os.environ['LINE'], flush=True)\n"
        f"signal.signal({int(WARNING_SIGNAL)}, lambda *_: told.append('warned'))\n"
        "open('ready', 'w').close()\n"
        "while not told: time.sleep(0.1)\n"
        "print(*told)\n"
        "open('done', 'w').close()\n"
    )
    queue = DFT.model_copy(update={"environment": ["export LINE='module loaded'"]})
    system = QueueSystem(queue)
    script = folder / "job.sh"
    command = [sys.executable, "-c", program]
    text = system.script(
        name="otf-dft-a", folder=folder, command=command, environment={"GREETING": "it's me"}
    )
    script.write_text(text)
    job_id = system.submit(script, name="otf-dft-a")
    wait_for((folder / "ready").exists)
    slurm.run("scancel", "--batch", f"--signal={WARNING_SIGNAL.name}", job_id)
    wait_until(system, job_id, QueueJobState.ENDED)
    out = (folder / f"otf-dft-a-{job_id}.out").read_text().splitlines()
    assert out == [f"{folder} it's me module loaded", "warned"]
    assert (folder / "done").exists()


def test_jobs_are_listed_with_state_reason_and_node_and_only_ours(slurm, tmp_path):
    system = QueueSystem(DFT)
    sleeps = "import time; time.sleep(900)"
    first = submit(DFT, tmp_path, sleeps, name="otf-dft-first")
    wide = DFT.model_copy(update={"ranks": 2})
    second = submit(wide, tmp_path, sleeps, name="otf-dft-second")
    (tmp_path / "other.sh").write_text("#!/bin/sh\nsleep 900\n")
    slurm.run("sbatch", "--chdir", str(tmp_path), "--job-name=other", str(tmp_path / "other.sh"))
    running = wait_until(system, first, QueueJobState.RUNNING)
    assert (running.name, running.node) == ("otf-dft-first", "cpu1")
    waiting = wait_for(lambda: (job := listed(system, second)) and job.reason and job)
    assert waiting.state is QueueJobState.PENDING
    assert waiting.reason in {"Resources", "Priority"}
    assert waiting.node is None
    assert {job.name for job in system.jobs()} == {"otf-dft-first", "otf-dft-second"}


def test_every_end_has_its_cause(slurm, tmp_path):
    system = QueueSystem(DFT)
    sleeps = "import time; time.sleep(900)"
    hungry = "x = bytearray(400 * 1024**2); import time; time.sleep(900)"
    well = submit(DFT, tmp_path, "pass")
    three = submit(DFT, tmp_path, "raise SystemExit(3)")
    killed = submit(DFT, tmp_path, "import os; os.kill(os.getpid(), 9)")
    memory = submit(GPU, tmp_path, hungry, name="otf-md-hungry")
    for job_id in (well, three, killed, memory):
        wait_until(system, job_id, QueueJobState.ENDED)
    running = submit(DFT, tmp_path, sleeps)
    wait_until(system, running, QueueJobState.RUNNING)
    wide = submit(DFT.model_copy(update={"ranks": 2}), tmp_path, sleeps)
    assert system.fates([running, wide, "999999"]) == {}
    system.cancel([running, wide])
    wait_until(system, running, QueueJobState.ENDED)
    lost = submit(DFT, tmp_path, sleeps)
    wait_until(system, lost, QueueJobState.RUNNING)
    slurm.node_down("cpu1")
    wait_until(system, lost, QueueJobState.ENDED)
    job_ids = [well, three, killed, memory, running, wide, lost]
    fates = system.fates(job_ids)
    assert [fates[job_id].cause for job_id in job_ids] == [
        None,
        FailureCause.UNKNOWN,
        FailureCause.KILLED,
        FailureCause.MEMORY,
        FailureCause.KILLED,
        FailureCause.KILLED,
        FailureCause.NODE,
    ]
    assert fates[three].sentence.endswith("exit code 3")
    assert fates[killed].sentence.endswith("ended by signal 9")
    assert fates[memory].sentence.startswith("Slurm says FAILED on gpu1 after")
    assert fates[wide].sentence == "Slurm says CANCELLED"
    assert fates[lost].sentence.startswith("Slurm says NODE_FAIL on cpu1 after ")
    assert fates[lost].state == "NODE_FAIL"

    # A controller that has forgotten: the list of completed jobs still knows, without memory.
    slurm.stop_controller()
    for file in (slurm.folder / "state").glob("job_state*"):
        file.unlink()
    slurm.start_controller()
    remembered = system.fates(job_ids)
    assert remembered[well].cause is None
    assert remembered[lost].cause is FailureCause.NODE
    assert remembered[lost].sentence.startswith("Slurm says NODE_FAIL on cpu1 after ")
    assert set(remembered) == set(job_ids)


@pytest.mark.slow
def test_a_job_is_warned_before_its_time_is_up(slurm, tmp_path, monkeypatch):
    monkeypatch.setattr(queue_script, "SHORTEST_WARNED_S", 60)
    monkeypatch.setattr(queue_script, "WARNING_S", 20)
    program = (
        "import signal, time\n"
        f"signal.signal({int(WARNING_SIGNAL)}, lambda *_: open('warned', 'w').close())\n"
        "signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "while True: time.sleep(1)\n"
    )
    system = QueueSystem(DFT)
    job_id = submit(DFT, tmp_path, program, walltime_s=60)
    wait_for((tmp_path / "warned").exists)
    assert listed(system, job_id).state is QueueJobState.RUNNING
    wait_for(lambda: listed(system, job_id).state is QueueJobState.ENDED)
    ended = system.fates([job_id])[job_id]
    assert ended.cause is FailureCause.WALLTIME
    assert ended.sentence.startswith("Slurm says TIMEOUT on cpu1 after ")


def test_an_impossible_job_is_refused_with_what_to_look_at(slurm, tmp_path):
    with pytest.raises(QueueRefused, match=r"[Ii]nvalid partition") as caught:
        submit(DFT.model_copy(update={"partition": "dtf"}), tmp_path, "pass")
    assert "sinfo" in caught.value.hint
    too_much = DFT.model_copy(update={"memory_MiB": 10**6})
    with pytest.raises(QueueRefused, match="node configuration"):
        submit(too_much, tmp_path, "pass")
    alive = [job for job in QueueSystem(DFT).jobs() if job.state is not QueueJobState.ENDED]
    assert not alive


def test_a_check_tells_where_a_job_would_run_and_submits_nothing(slurm, tmp_path):
    script = tmp_path / "job.sh"
    for queue, node in ((DFT, "cpu1"), (GPU, "gpu1")):
        system = QueueSystem(queue)
        command = [sys.executable, "-c", "pass"]
        script.write_text(
            system.script(name="otf-x", folder=tmp_path, command=command, environment={})
        )
        assert node in system.check(script)
    slurm.node_down("cpu1")
    system = QueueSystem(DFT)
    command = [sys.executable, "-c", "pass"]
    script.write_text(system.script(name="otf-x", folder=tmp_path, command=command, environment={}))
    with pytest.raises(QueueRefused, match="not available"):
        system.check(script)
    assert system.jobs() == []


def test_cancelling_jobs_that_are_gone_is_no_error(slurm, tmp_path):
    system = QueueSystem(DFT)
    job_id = submit(DFT, tmp_path, "pass")
    wait_until(system, job_id, QueueJobState.ENDED)
    system.cancel([job_id, "999999"])
    system.cancel([])


def test_a_controller_that_is_away_is_told_from_a_refusal(slurm, tmp_path):
    slurm.stop_controller()
    with pytest.raises(QueueUnavailable) as caught:
        submit(DFT, tmp_path, "pass")
    assert not isinstance(caught.value, QueueRefused)
    slurm.start_controller()
    assert QueueSystem(DFT).jobs() == []


def test_programs_that_are_missing_or_hang_are_unavailable(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(QueueUnavailable, match="squeue is not on the PATH"):
        QueueSystem(DFT).jobs()
    hanging = tmp_path / "squeue"
    hanging.write_text("#!/bin/sh\nwhile :; do :; done\n")
    hanging.chmod(0o755)
    monkeypatch.setitem(queue_base.ask.__kwdefaults__, "timeout_s", 0.2)
    with pytest.raises(QueueUnavailable, match="did not answer"):
        QueueSystem(DFT).jobs()


# -- without a Slurm ------------------------------------------------------------------------------


def test_the_request_of_a_queue_stands_in_the_script():
    queue = Queue(
        partition="cpu",
        account="ab12",
        qos="long",
        nodes=2,
        ranks=64,
        cores_per_rank=2,
        gpus=4,
        memory_MiB=64000,
        walltime_s=36 * 3600,
        environment=["module load qe/7.2"],
        directives=["#SBATCH --exclusive"],
    )
    command = ["/venv/bin/python", "-m", "otf_workflows.engine.worker", "--role", "dft"]
    text = QueueSystem(queue).script(
        name="otf-dft-1f", folder=Path("/scratch/x y"), command=command, environment={"A": "b c"}
    )
    lines = [line for line in text.splitlines() if line and not line.startswith("# ")]
    assert lines == [
        "#!/bin/bash",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks=64",
        "#SBATCH --cpus-per-task=2",
        "#SBATCH --gres=gpu:4",
        "#SBATCH --qos=long",
        "#SBATCH --time=36:00:00",
        "#SBATCH --partition=cpu",
        "#SBATCH --account=ab12",
        "#SBATCH --job-name=otf-dft-1f",
        "#SBATCH --output=otf-dft-1f-%j.out",
        "#SBATCH --error=otf-dft-1f-%j.error",
        "#SBATCH --signal=B:USR1@120",
        "#SBATCH --mem=64000M",
        "#SBATCH --no-requeue",
        "#SBATCH --exclusive",
        "trap '' USR1",
        "module load qe/7.2",
        "export A='b c'",
        "cd '/scratch/x y' || exit 2",
        "exec /venv/bin/python -m otf_workflows.engine.worker --role dft",
    ]


def test_a_job_may_ask_for_time_and_memory_of_its_own_and_a_short_one_is_not_warned():
    asked = {"walltime_s": 90.5, "memory_MiB": 7}
    text = QueueSystem(DFT).script(
        name="otf-a", folder=Path("/x"), command=["true"], environment={}, **asked
    )
    assert "#SBATCH --time=0:01:31" in text
    assert "#SBATCH --mem=7M" in text
    assert "--signal" not in text


@pytest.mark.parametrize(
    ("state", "exit_code", "cause"),
    [
        ("COMPLETED", "0:0", None),
        ("TIMEOUT", "0:0", FailureCause.WALLTIME),
        ("OUT_OF_MEMORY", "0:125", FailureCause.MEMORY),
        ("NODE_FAIL", "0:0", FailureCause.NODE),
        ("PREEMPTED", "0:15", FailureCause.KILLED),
        ("CANCELLED by 1000", "0:15", FailureCause.KILLED),
        ("FAILED", "0:9", FailureCause.KILLED),
        ("FAILED", "1:0", FailureCause.UNKNOWN),
        ("SOMETHING_NEW", "0:0", FailureCause.UNKNOWN),
    ],
)
def test_states_of_the_accounts_have_causes(state, exit_code, cause):
    found = fate(state, exit_code=exit_code, node="n1", elapsed_s=12.0)
    assert found.cause is cause
    assert found.sentence.startswith(f"Slurm says {state} on n1 after 12 s")


def test_a_record_with_blanks_in_its_values_is_read():
    record = _fields(
        "JobId=7 JobName=a b JobState=TIMEOUT Reason=TimeLimit ExitCode=0:15 RunTime=1-00:01:20 "
        "ReqB:S:C:T=0:0:*:* NodeList=n[1-2] BatchHost=n1 StdErr=/a b/c=d.error StdIn=/dev/null"
    )
    assert record["JobName"] == "a b"
    assert record["StdErr"] == "/a b/c=d.error"
    found = _fate_of_record(record)
    assert found.sentence == "Slurm says TIMEOUT on n1 after 86480 s"
    assert _fate_of_record({**record, "JobState": "PENDING"}) is None


SACCT = """\
11|COMPLETED|0:0|n1|00:01:00
11.batch|COMPLETED|0:0|n1|00:01:00
12|CANCELLED by 1000|0:0|n1|00:00:07
12.batch|CANCELLED|0:15|n1|00:00:08
13|FAILED|1:0|n2|1-00:00:05
13.batch|FAILED|1:0|n2|1-00:00:05
13.0|OUT_OF_MEMORY|0:125|n2|1-00:00:01
14|RUNNING|0:0|n2|00:00:09
15|TIMEOUT|0:0|None assigned|00:00:00
"""
"""What sacct prints with accounting, steps included."""


def test_accounts_tell_of_jobs_that_the_controller_has_forgotten(monkeypatch):
    asked = []

    def answer(command, **_):
        asked.append(command[:2])
        if command[0] == "scontrol":
            said = "slurm_load_jobs error: Invalid job id specified"
            return subprocess.CompletedProcess(command, 1, stdout="", stderr=said)
        return subprocess.CompletedProcess(command, 0, stdout=SACCT, stderr="")

    monkeypatch.setattr(queue_slurm, "ask", answer)
    fates = QueueSystem(DFT).fates(["11", "12", "13", "14", "15", "16"])
    assert {job_id: fate.cause for job_id, fate in fates.items()} == {
        "11": None,
        "12": FailureCause.KILLED,
        "13": FailureCause.MEMORY,  # a step says so, the job only that it failed
        "15": FailureCause.WALLTIME,
    }
    assert fates["12"].sentence == "Slurm says CANCELLED by 1000 on n1 after 7 s"
    assert fates["15"].sentence == "Slurm says TIMEOUT"
    assert asked.count(["sacct", "-n"]) == 1
    assert ["sacct", "--completion"] not in asked


def test_without_any_accounts_nobody_knows(monkeypatch):
    def answer(command, **_):
        if command[0] == "scontrol":
            said = "slurm_load_jobs error: Invalid job id specified"
            return subprocess.CompletedProcess(command, 1, stdout="", stderr=said)
        said = "Slurm accounting storage is disabled"
        return subprocess.CompletedProcess(command, 1, stdout="", stderr=said)

    monkeypatch.setattr(queue_slurm, "ask", answer)
    assert QueueSystem(DFT).fates(["11"]) == {}


def test_a_state_that_is_not_known_is_taken_for_alive():
    job = _queue_job("7|SOMETHING_NEW|None|n1|otf-dft-a|b")
    assert job.state is QueueJobState.RUNNING
    assert job.name == "otf-dft-a|b"
    assert _fate_of_record({"JobState": "SOMETHING_NEW"}) is None


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ("sbatch: error: Batch job submission failed: Invalid qos specification", True),
        ("sbatch: error: Batch job submission failed: Job violates accounting/QOS policy", True),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv", False),
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", False),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", False),
        ("", False),
    ],
)
def test_only_a_clear_answer_is_a_refusal(said, refused):
    error = _complaint(said, where="sbatch")
    assert isinstance(error, QueueRefused) is refused
    assert error.exit_code == 5
