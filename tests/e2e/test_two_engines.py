"""The same campaign on both engines, through the services that users start: the same labels."""

from __future__ import annotations

import time

import pytest
import yaml
from ase.build import bulk

from otf_workflows import control
from otf_workflows.campaign import (
    Budget,
    Campaign,
    Exploration,
    Seeding,
    SelectionRules,
    TrainingRules,
)
from otf_workflows.connection import connect
from otf_workflows.engine import Supervisor, open_engine
from otf_workflows.schemas import Frame
from otf_workflows.settings import load_site
from otf_workflows.store import Store
from otf_workflows.testing.mongo import fresh_site
from otf_workflows.types import LabelState, Role

pytest.importorskip(
    "jobflow_remote", reason="jobflow-remote is not installed: pip install 'otf-workflows[remote]'"
)
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]

PATIENCE_S = 1500.0


@pytest.fixture
def campaign():
    return Campaign(
        name="both",
        structure=Frame.from_atoms(bulk("Cu", cubic=True)),
        tolerance_eV_A=0.05,
        labels={"code": "ase", "calculator": "emt"},
        seeding=Seeding(n_frames=2),
        exploration=Exploration(
            temperatures_K=[300, 600, 900],
            walkers_per_job=2,  # one job for two of them, and one for the third
            steps_per_cycle=20,
            check_every=5,
            supercell=(1, 1, 1),
        ),
        selection=SelectionRules(labels_per_cycle=3, audit_per_cycle=2, min_labels=2),
        training=TrainingRules(epochs=2),
        budget=Budget(max_cycles=1, max_labels=20),
        production=None,
    )


def run(campaign, site):
    """Run a campaign with the services of a site; return what it found, and who ran each job."""
    database = connect(site)
    store = Store(database)
    control.submit(campaign, store)
    deadline = time.monotonic() + PATIENCE_S
    with Supervisor(site):
        while not store.campaign(campaign.name).state.terminal:
            assert time.monotonic() < deadline, "the campaign does not end"
            time.sleep(1.0)
    engine = open_engine(site)
    jobs = engine.jobs(campaign=campaign.name)
    labels = store.labels(campaign=campaign.name)
    assert {label.state for label in labels} == {LabelState.DONE}
    ended = store.campaign(campaign.name)
    last = store.cycles(campaign.name)[-1]
    found = {
        "labels": {label.key: label.result.energy_eV for label in labels},
        "forces": {label.key: label.result.forces_eV_A for label in labels},
        "dataset": store.latest_dataset(campaign.name).hash,
        "walkers": [(w["n_steps_run"], w["sigmas_eV_A"]) for w in last.walkers],
        "outcome": (ended.state, ended.reason, ended.incumbent_id),
        "verdict": (last.verdict.promoted, last.verdict.decision, last.verdict.sentences),
        "n_jobs": len(jobs),
    }
    engine.close()
    database.client.close()
    return found, jobs


def test_a_campaign_gives_the_same_labels_and_outcome_on_both(campaign, mongod, tmp_path):
    results = {}
    for kind in ("fireworks", "jobflow-remote"):
        folder = tmp_path / kind
        folder.mkdir()
        with fresh_site(mongod, folder) as made:
            document = yaml.safe_load(made.source.read_text())
            document |= {"engine": kind, "remote": {"poll_s": 0.5}}
            made.source.write_text(yaml.safe_dump(document))
            results[kind], jobs = run(campaign, load_site())
    assert results["jobflow-remote"]["labels"] == results["fireworks"]["labels"]
    assert len(results["fireworks"]["labels"]) >= 3
    assert results["jobflow-remote"] == results["fireworks"]
    assert {job.worker for job in jobs} == {str(role) for role in Role}
