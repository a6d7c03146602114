"""Fixtures for the engine's tests."""

import jobflow
import pytest
import yaml
from jobflow import JobStore
from maggma.stores import MemoryStore

from otf_workflows.engine.worker import Worker
from otf_workflows.settings import load_site
from otf_workflows.types import Role


@pytest.fixture
def memory_store():
    """Outputs in memory."""
    store = JobStore(MemoryStore(), additional_stores={"data": MemoryStore()})
    store.connect()
    return store


@pytest.fixture
def drain(site, monkeypatch):
    """Run all jobs that can run, in this process, as workers of the roles named would."""
    monkeypatch.setattr(jobflow.SETTINGS, "JOB_STORE", jobflow.SETTINGS.JOB_STORE)
    workers = {}

    def run(*roles, one=False):
        done = 0
        for role in roles or tuple(Role):
            if role not in workers:
                workers[role] = Worker(site, role, reconcile=False)
        while True:
            ran = [workers[role].run_one() for role in roles or tuple(Role)]
            done += sum(ran)
            if one or not any(ran):
                return done

    yield run
    for worker in workers.values():
        worker.engine.close()


@pytest.fixture
def remote_site(site):
    """The site, with jobflow-remote as its engine."""
    pytest.importorskip(
        "jobflow_remote",
        reason="jobflow-remote is not installed: deploy/test_extra.sh remote does it",
    )
    document = yaml.safe_load(site.source.read_text())
    document |= {"engine": "jobflow-remote", "remote": {"poll_s": 0.2}}
    site.source.write_text(yaml.safe_dump(document))
    return load_site()
