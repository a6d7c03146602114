"""`otf run` with FireWorks, mongod and workers of its own, killed on the way and run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from otf_workflows import Store, load_site
from otf_workflows.connection import connect
from otf_workflows.engine.mongod import EmbeddedMongod
from otf_workflows.settings import STATE_DIR_VARIABLE
from otf_workflows.types import LabelState

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]

PATIENCE_S = 1200


@pytest.fixture
def campaign_file(small_campaign, tmp_path):
    from ase.io import write

    write(tmp_path / "POSCAR", small_campaign.structure.to_atoms())
    content = small_campaign.model_dump(mode="json", exclude={"structure"})
    file = tmp_path / "campaign.yaml"
    file.write_text(yaml.safe_dump({**content, "structure": "POSCAR"}), encoding="utf-8")
    return file


@pytest.fixture
def state_dir(tmp_path, monkeypatch):
    folder = tmp_path / "state"
    monkeypatch.setenv(STATE_DIR_VARIABLE, str(folder))
    return folder


def otf_run(campaign_file):
    command = [sys.executable, "-m", "otf_workflows.cli.main", "run", str(campaign_file)]
    log = (campaign_file.parent / "run.log").open("a", encoding="utf-8")
    return subprocess.Popen(
        [*command, "--report", str(campaign_file.parent / "report.html")],
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def processes_of(state_dir):
    """Every process that was started for this state folder and still lives."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ", "status"]):
        if process.info["status"] == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
            continue
        environment = process.info["environ"] or {}
        if environment.get(STATE_DIR_VARIABLE) == str(state_dir):
            found.append(process)
    return found


def command_of(process):
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def wait_for(what, condition, running=None):
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if condition():
            return
        if running is not None and running.poll() is not None:
            pytest.fail(f"otf run ended while the test waited for {what}")
        time.sleep(0.3)
    pytest.fail(f"waited {PATIENCE_S} s in vain for {what}")


def busy(state_dir, role):
    """Processes of workers of a role that run a job just now."""
    from pymongo.errors import PyMongoError

    from otf_workflows.errors import OtfError

    try:
        database = connect(load_site())
        launches = list(database.launches.find({"state": "RUNNING"}, {"fworker.name": 1}))
        database.client.close()
    except (OtfError, PyMongoError):
        return []
    names = [launch["fworker"]["name"] for launch in launches]
    pids = {int(name.rsplit("-", 1)[1]) for name in names if name.startswith(role)}
    return [process for process in processes_of(state_dir) if process.pid in pids]


def kill_one_that_is_busy(state_dir, role, running):
    victims = []

    def found():
        victims[:] = busy(state_dir, role)
        return bool(victims)

    wait_for(f"a busy {role} worker", found, running)
    victims[0].send_signal(signal.SIGKILL)


def test_a_campaign_survives_kill_9_of_everything_and_computes_no_label_twice(
    campaign_file, state_dir
):
    first = otf_run(campaign_file)
    kill_one_that_is_busy(state_dir, "md", first)
    kill_one_that_is_busy(state_dir, "train", first)
    server = next(p for p in processes_of(state_dir) if "mongod" in command_of(p).split()[0])
    server.send_signal(signal.SIGKILL)
    wait_for("a new mongod", lambda: EmbeddedMongod(state_dir).is_running(), first)
    kill_one_that_is_busy(state_dir, "md", first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    wait_for(
        "the workers to notice that nobody looks after them",
        lambda: not any("engine.worker" in command_of(p) for p in processes_of(state_dir)),
    )

    second = otf_run(campaign_file)
    assert second.wait(timeout=PATIENCE_S) == 0, (campaign_file.parent / "run.log").read_text()

    assert (campaign_file.parent / "report.html").stat().st_size > 10_000
    wait_for("all processes to end", lambda: not processes_of(state_dir))
    with EmbeddedMongod(state_dir):
        database = connect(load_site())
        store = Store(database)
        document = store.campaign("teacher")
        assert document.state.terminal
        counts = store.label_counts("teacher")
        assert counts[LabelState.DONE] == sum(counts.values())
        assert [c.kind for c in store.cycles("teacher")] == ["cycle", "cycle", "production"]
        computed = database.jobflow_outputs.aggregate(
            [
                {"$match": {"output.key": {"$exists": True}}},
                {"$group": {"_id": "$output.key", "n": {"$sum": 1}}},
            ]
        )
        assert {row["n"] for row in computed} == {1}, "a label was computed twice"
        workflows = database.workflows.count_documents({"metadata.campaign": "teacher"})
        assert workflows == 3, "a cycle was emitted twice"
        database.client.close()
