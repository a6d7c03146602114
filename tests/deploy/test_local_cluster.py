"""deploy/local_cluster.sh, run for real: Slurm, MongoDB with a password, and a site file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from otf_workflows.connection import connect
from otf_workflows.database_checks import rights
from otf_workflows.engine.queues.checks import acceptance
from otf_workflows.settings import load_site
from otf_workflows.testing import local_cluster
from otf_workflows.types import Role

SCRIPT = Path(__file__).parents[2] / "deploy/local_cluster.sh"
HERE = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def run(*words, path=HERE):
    command = [str(SCRIPT), *map(str, words)]
    environment = {**os.environ, "PATH": path}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=600
    )


@pytest.fixture
def folder(slurm_programs):
    """A folder with a short path, as munge's socket needs it; nothing runs in it afterwards."""
    made = Path(tempfile.mkdtemp(prefix="otf-c-"))
    yield made / "cluster"
    run("down", made / "cluster")
    shutil.rmtree(made)


def test_it_comes_up_with_a_site_that_its_queues_accept_and_goes_down(folder, monkeypatch):
    up = run("up", folder)
    assert up.returncode == 0, up.stderr
    assert "cpu1 idle" in up.stdout
    monkeypatch.delenv("OTF_STATE_DIR")
    shown = subprocess.run(
        ["bash", "-c", f'. "{folder}/env.sh" && echo "$SLURM_CONF:$OTF_SITE_FILE"'],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    slurm_conf, _, site_file = shown.partition(":")
    monkeypatch.setenv("SLURM_CONF", slurm_conf)
    site = load_site(Path(site_file))
    assert Path(site_file) == folder / "site.yaml"
    assert set(site.queues) | set(site.workers) == set(Role)
    assert all(check.ok for check in acceptance(site))
    right = rights(site)
    assert right.detail == "otf may read and write 'otf'"
    assert right.hint is None
    database = connect(site)
    database.otf_events.insert_one({"what": "kept"})
    database.client.close()

    again = run("up", "--cpus", "2", folder)  # it is up: nothing changes
    assert again.returncode == 0
    assert load_site(Path(site_file)) == site
    assert run("status", folder).returncode == 0

    assert run("down", folder).returncode == 0
    status = run("status", folder)
    assert status.returncode == 1
    assert "Slurm is down" in status.stdout
    assert "MongoDB is down" in status.stdout

    assert run("up", folder).returncode == 0
    database = connect(load_site(Path(site_file)))
    assert database.otf_events.count_documents({}) == 1
    database.client.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Usage:"),
        (["sideways"], "Unknown action: sideways"),
        (["up", "--cpus", "many"], "wants a number"),
        (["up", "--cpsu"], "Unknown option: --cpsu"),
    ],
)
def test_wrong_usage_is_refused_before_anything_starts(words, said):
    refused = run(*words)
    assert refused.returncode == 2
    assert said in refused.stderr


def test_without_the_package_the_command_that_installs_it_is_named(tmp_path):
    if (SCRIPT.parents[1] / ".venv/bin/python").exists():
        pytest.skip("this checkout has its own environment")
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python3").chmod(0o755)
    refused = run("up", tmp_path / "c", path=f"{tmp_path}:/usr/bin:/bin")
    assert refused.returncode == 5
    assert "deploy/setup.sh" in refused.stderr


def test_a_missing_slurm_is_one_sentence_with_a_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("otf_workflows.testing.slurm._find_program", lambda _: None)
    assert local_cluster.main(["up", str(tmp_path / "c")]) == 5
    assert "apt-get install" in capsys.readouterr().err
