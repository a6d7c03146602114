"""The project file that jobflow-remote reads, and the login that it uses."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from unittest.mock import patch

import pytest
import yaml
from jobflow import Flow

from otf_workflows.errors import ConfigurationError
from otf_workflows.testing.jobs import report, staged
from otf_workflows.types import Role, Stage

KEY = {"campaign": "c", "cycle": 0, "kind": "cycle"}


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
    fabric = pytest.importorskip("fabric", reason="fabric comes with jobflow-remote")
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
