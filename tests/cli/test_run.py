"""`otf run` continues what is there, ends with a report, and can be interrupted."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from otf_workflows.types import CampaignState

SILICON = Path(__file__).parents[2] / "flows" / "si_teacher" / "campaign.yaml"
TOY = ["--set", "labels={code: ase, calculator: lj}", "--set", "potential=toy-lj"]


@pytest.fixture
def idle_site(site, monkeypatch):
    """The site without any workers: nothing moves by itself."""
    content = yaml.safe_load(site.source.read_text())
    content["workers"] = {role: {"count": 0} for role in ("control", "md", "dft", "train")}
    file = site.source.with_name("idle.yaml")
    file.write_text(yaml.safe_dump(content))
    monkeypatch.setenv("OTF_SITE_FILE", str(file))
    return file


def test_a_dry_run_starts_and_writes_nothing(otf, store, idle_site):
    done = otf("run", SILICON, "--dry-run", *TOY)
    assert done.code == 0
    database = store.database
    names = database.list_collection_names()
    assert [name for name in names if database[name].count_documents({})] == []


def test_bad_input_starts_nothing(otf, store, idle_site):
    assert otf("run", SILICON, *TOY, "--set", "budget.max_labels=1").code == 2
    assert store.database.list_collection_names() == []


@pytest.fixture
def as_finished(otf, store, idle_site, tmp_path):
    """Run a campaign that has ended in a given state."""
    from otf_workflows.testing.campaigns import synthetic_campaign

    name = synthetic_campaign(store).name
    # The file that this campaign came from, as far as its name and digest go.
    assert otf("submit", SILICON, *TOY, "--name", "probe").code == 0
    store.set_campaign(name, digest=store.campaign("probe").digest)

    def run(state):
        store.set_campaign(name, state=state)
        return otf("run", SILICON, *TOY, "--name", name, "--report", tmp_path / "r.html")

    return run


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (CampaignState.CONVERGED, 0),
        (CampaignState.BUDGET_EXHAUSTED, 0),
        (CampaignState.STALLED, 1),
        (CampaignState.FAILED, 1),
    ],
)
def test_a_campaign_that_has_ended_is_reported_again_with_its_exit_code(
    as_finished, tmp_path, state, code
):
    done = as_finished(state)
    assert done.code == code, done.err
    assert (tmp_path / "r.html").exists()
    assert str(tmp_path / "r.html") in done.out
    assert "force RMSE" in done.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_the_workers_and_says_how_to_continue(site, store, number):
    command = [sys.executable, "-m", "otf_workflows.cli.main", "run", str(SILICON), *TOY]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        while not (store.campaigns() and workers_of(site)):
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)
        process.send_signal(number)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "To continue: otf run" in err
    assert "Traceback" not in err
    assert out == ""
    assert workers_of(site) == []


def workers_of(site):
    """Return the processes that work for a site."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "otf_workflows.engine.worker" in words and str(site.source) in words:
            found.append(process.pid)
    return found
