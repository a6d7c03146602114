"""The runner as a program: ended, killed, started twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from jobflow import Flow

from otf_workflows.claims import Claims
from otf_workflows.engine import JobState
from otf_workflows.errors import ConfigurationError
from otf_workflows.testing.jobs import collect, nap, staged
from otf_workflows.testing.waiting import wait_for
from otf_workflows.types import Stage

KEY = {"campaign": "c", "cycle": 0, "kind": "cycle"}


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
        assert service.wait(120) == 0
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
            wait_for(lambda: engine.output(ended.uuid) == 3)
        finally:
            second.terminate()
        assert second.wait(120) == 0
    assert [len(file.read_text().splitlines()) for file in started] == [1, 1, 1]


def test_a_second_runner_for_the_same_database_is_refused(remote_site, database, engine):
    from otf_workflows.engine.remote.service import ONLY_ONE, serve

    assert Claims(database).take(ONLY_ONE, by="another machine")
    with pytest.raises(ConfigurationError, match="Another runner"):
        serve(remote_site, stop=threading.Event())
