"""One synthetic campaign, written once: the tests only read it."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otf_workflows.store import Store


@pytest.fixture(scope="module")
def store(mongod, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Store]":
    from otf_workflows.connection import connect
    from otf_workflows.store import Store
    from otf_workflows.testing.campaigns import synthetic_campaign
    from otf_workflows.testing.mongo import fresh_site

    with fresh_site(mongod, tmp_path_factory.mktemp("site")) as site:
        database = connect(site)
        written = Store(database)
        synthetic_campaign(written, name="finished")
        synthetic_campaign(written, name="running", seed=8, n_cycles=2, production=False)
        synthetic_campaign(written, name="submitted", n_cycles=0, production=False)
        yield written
        database.client.close()
