"""The database behind the pages: connected when first asked, and again after it was away."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fastapi import Request  # noqa: TC002  FastAPI reads it at run time

from otf_workflows.dashboard.queries.labels import OverviewCache
from otf_workflows.dashboard.queries.ledgers import LedgerCache
from otf_workflows.dashboard.queries.progress import ProgressCache, RoleCounts
from otf_workflows.dashboard.queries.reader import jobs_reader
from otf_workflows.errors import DatabaseError
from otf_workflows.store import Store
from otf_workflows.types import Role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pymongo.database import Database

    from otf_workflows.engine.base import Engine
    from otf_workflows.settings import Site


class Backend:
    """One connection for all requests and the poller.

    Parameters
    ----------
    site
        The site.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self._lock = threading.Lock()
        self._database: Database[dict[str, Any]] | None = None
        self._engine: Engine | None = None
        self.progress = ProgressCache()
        self.ledgers = LedgerCache()
        self.roles = RoleCounts()
        self.label_overviews = OverviewCache()

    @property
    def database(self) -> Database[dict[str, Any]]:
        """The site's database.

        Raises
        ------
        DatabaseError
            If it does not answer; the next call tries again.
        """
        with self._lock:
            if self._database is None:
                from otf_workflows.connection import connect

                self._database = connect(self.site)
            return self._database

    @property
    def store(self) -> Store:
        """Our collections."""
        return Store(self.database)

    @property
    def reader(self) -> Engine:
        """What tells about jobs: the engine's ``jobs``, without what it takes to act."""
        return jobs_reader(self.site, self.database)

    @property
    def engine(self) -> Engine:
        """What runs the jobs; for actions only, since it imports FireWorks."""
        with self._lock:
            if self._engine is None:
                from otf_workflows.engine.choice import open_engine

                self._engine = open_engine(self.site)
            return self._engine

    @property
    def dft_workers(self) -> int:
        """Labels computed at once on this site."""
        worker = self.site.workers.get(Role.DFT)
        return worker.count if worker else 0

    @contextmanager
    def reading(self) -> Iterator[Database[dict[str, Any]]]:
        """Yield the database; a driver's error becomes ours, and the connection is made anew.

        Raises
        ------
        DatabaseError
            In place of any error of the driver.
        """
        from otf_workflows.connection import translated

        try:
            with translated(self.site):
                yield self.database
        except DatabaseError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections; the next use opens others."""
        with self._lock:
            database, self._database, self._engine = self._database, None, None
        if database is not None:
            database.client.close()


def backend(request: Request) -> Backend:
    """Return the backend of the running application; a FastAPI dependency."""
    return request.app.state.backend
