"""The private Slurm is a real one: it runs jobs, loses nodes, and leaves nothing behind."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from otf_workflows.errors import ConfigurationError
from otf_workflows.testing import slurm as module
from otf_workflows.testing.slurm import LocalSlurm
from otf_workflows.testing.waiting import wait_for


def submit(slurm, folder, lines, *options):
    script = folder / "job.sh"
    script.write_text("\n".join(["#!/bin/bash", *lines]) + "\n")
    return slurm.run("sbatch", "--parsable", "--chdir", str(folder), *options, str(script)).strip()


def test_jobs_run_on_both_partitions_and_a_node_that_is_down_takes_none(slurm, tmp_path):
    submit(slurm, tmp_path, ["hostname > cpu", "echo $SLURMD_NODENAME >> cpu"], "--partition=dft")
    submit(
        slurm, tmp_path, ["echo gpu$CUDA_VISIBLE_DEVICES > gpu"], "--partition=gpu", "--gres=gpu:1"
    )
    wait_for((tmp_path / "gpu").exists)
    wait_for(lambda: not slurm.run("squeue", "-h").strip())
    assert "cpu1" in (tmp_path / "cpu").read_text()
    assert (tmp_path / "gpu").read_text() == "gpu0\n"
    slurm.node_down("cpu1")
    assert slurm.node_state("cpu1").startswith("down")
    submit(slurm, tmp_path, ["touch late"])
    time.sleep(1)
    assert slurm.run("squeue", "-h", "-t", "PENDING").strip()
    slurm.node_up("cpu1")
    wait_for((tmp_path / "late").exists)


def test_stopping_kills_the_jobs_and_removes_the_folder(slurm, tmp_path):
    submit(slurm, tmp_path, ["echo $$ > pid", "trap '' TERM", "sleep 1500"])
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    job = psutil.Process(pid)
    folder = slurm.folder
    slurm.stop()
    wait_for(lambda: not job.is_running() or job.status() == psutil.STATUS_ZOMBIE)
    assert not slurm.is_running()
    assert not folder.exists()


def test_jobs_survive_a_restart_of_the_controller(slurm, tmp_path):
    job = submit(slurm, tmp_path, ["sleep 1500"])
    wait_for(lambda: slurm.run("squeue", "-h", "-t", "RUNNING").strip())
    slurm.restart_controller()
    assert slurm.run("squeue", "-h", "-t", "RUNNING", "-o", "%i").strip() == job


def test_missing_programs_are_named_with_the_command_that_installs_them(monkeypatch):
    monkeypatch.setattr(module, "_find_program", lambda _: None)
    with pytest.raises(ConfigurationError, match="slurmctld") as caught, LocalSlurm():
        pass
    assert "apt-get install" in caught.value.hint


@pytest.mark.parametrize("name", ["a blank", "x" * 80])
def test_a_path_that_slurm_cannot_use_is_refused(slurm_programs, tmp_path, name):
    with pytest.raises(ConfigurationError, match="too long, or has blanks"):
        LocalSlurm(tmp_path / name).start()
    assert not (tmp_path / name).exists()


def test_a_cluster_by_hand_is_found_again_and_ended(slurm, capsys):
    assert module.main(["up", str(slurm.folder)]) == 0  # it is up: nothing is started twice
    assert "cpu1" in capsys.readouterr().out
    assert module.main(["status", str(slurm.folder)]) == 0
    assert module.main(["down", str(slurm.folder)]) == 0
    assert module.main(["status", str(slurm.folder)]) == 1


def test_a_command_runs_with_a_cluster_which_ends_with_it(slurm, tmp_path):
    slurm.stop()
    program = "import os, signal; os.kill(os.getppid(), signal.SIGTERM); signal.pause()"
    words = [sys.executable, "-m", module.__name__, "run", str(slurm.folder), "--"]
    nodes = [*words, "sinfo", "-h", "-N", "-o", "%N"]
    ran = subprocess.run(nodes, capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["cpu1", "gpu1"]
    ended = subprocess.run([*words, sys.executable, "-c", program], check=False)
    assert ended.returncode == -signal.SIGTERM % 256
    assert not slurm.is_running()
