"""Fixtures for all tests. What asks for `site`, `database` or `engine` needs mongod."""

import os
import signal
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from otf_workflows.settings import SITE_FILE_VARIABLE, STATE_DIR_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pymongo.database import Database

    from otf_workflows.engine import EmbeddedMongod, FireWorksEngine
    from otf_workflows.settings import Site
    from otf_workflows.testing.slurm import LocalSlurm

# Started in the background, a shell lets us ignore SIGINT, and we would hand that on to every
# program under test. A signal that is handled is back to normal in a child.
signal.signal(signal.SIGINT, signal.default_int_handler)

_NEED_SERVICES = {"mongod", "site", "database", "engine", "slurm", "slurm_programs"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a service as an integration test, so that nobody has to remember."""
    for item in items:
        if _NEED_SERVICES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.integration)


@pytest.fixture(autouse=True)
def _own_surroundings(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keep a user's own site, state folder and FireWorks files out of every test."""
    home = tmp_path_factory.mktemp("home")
    home.chmod(0o700)
    monkeypatch.delenv(SITE_FILE_VARIABLE, raising=False)
    monkeypatch.setenv(STATE_DIR_VARIABLE, str(home / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    warnings.filterwarnings("ignore", message="Some jobs are not connected")


@pytest.fixture(scope="session")
def mongod() -> "Iterator[EmbeddedMongod]":
    """One real server for all tests of a session."""
    from otf_workflows.testing.mongo import ephemeral_mongod

    with ephemeral_mongod() as server:
        yield server


@pytest.fixture
def site(
    mongod: "EmbeddedMongod",
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> "Iterator[Site]":
    """A site with a database and a state folder of its own, named by $OTF_SITE_FILE."""
    from otf_workflows.testing.mongo import fresh_site

    folder = Path(tmp_path_factory.mktemp("site"))
    monkeypatch.delenv(STATE_DIR_VARIABLE)
    with fresh_site(mongod, folder) as made:
        yield made


@pytest.fixture
def database(site: "Site") -> "Iterator[Database]":
    """The site's empty database."""
    from otf_workflows.connection import connect

    opened = connect(site)
    yield opened
    opened.client.close()


@pytest.fixture
def engine(site: "Site") -> "Iterator[FireWorksEngine]":
    """FireWorks on the site's database."""
    from otf_workflows.engine import FireWorksEngine

    made = FireWorksEngine(site)
    yield made
    made.close()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of labels that were really computed by an ASE calculator, in order."""
    from otf_workflows.labelers.ase_calculator import AseLabeler

    keys: list[str] = []
    original = AseLabeler.label

    def label(self: AseLabeler, *arguments: Any, key: str, **rest: Any) -> Any:
        keys.append(key)
        return original(self, *arguments, key=key, **rest)

    monkeypatch.setattr(AseLabeler, "label", label)
    return keys


@pytest.fixture
def slurm_programs() -> None:
    """Skip where Slurm is not installed; fail where it has to be."""
    from otf_workflows.testing.slurm import missing_programs

    missing = missing_programs()
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"Slurm is not installed: {', '.join(missing)} not found")
    if missing:
        pytest.skip("Slurm is not installed (deploy/setup.sh --dev does it)")


@pytest.fixture
def slurm(slurm_programs: None, monkeypatch: pytest.MonkeyPatch) -> "Iterator[LocalSlurm]":
    """A real Slurm with two idle nodes, found by sbatch and the others through SLURM_CONF."""
    from otf_workflows.testing.slurm import LocalSlurm

    with LocalSlurm() as cluster:
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        yield cluster
