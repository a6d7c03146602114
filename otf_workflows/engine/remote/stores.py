"""Stores that find their database through the site file, so that no password is written down.

jobflow-remote reads its stores from a project file and opens and closes them for every job. These
hold the name of the site file only, and share one connection per process.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maggma.stores import GridFSStore, MongoStore

if TYPE_CHECKING:
    from jobflow import JobStore
    from pymongo.database import Database

PATIENCE_S = 120.0
"""How long the runner waits for a database that is being restarted (s)."""


class SiteDocuments(MongoStore):
    """One collection of the site's database.

    Parameters
    ----------
    site_file
        The site file.
    collection_name
        The collection.
    """

    def __init__(self, site_file: str, collection_name: str, **kwargs: Any) -> None:
        self.site_file = site_file
        super().__init__(database="", collection_name=collection_name, **kwargs)

    def connect(self, force_reset: bool = False) -> None:
        """Use the connection of this process."""
        if self._coll is None or force_reset:
            collection: Any = naive(shared_database(self.site_file))[self.collection_name]
            self._coll = collection

    def close(self) -> None:
        """Let go of the connection; others of this process go on with it."""
        self._coll = None


class SiteBlobs(GridFSStore):
    """The large parts of job outputs in the site's database.

    Parameters
    ----------
    site_file
        The site file.
    """

    def __init__(self, site_file: str, **kwargs: Any) -> None:
        self.site_file = site_file
        super().__init__(database="", collection_name="", **{"key": "blob_uuid", **kwargs})

    def connect(self, force_reset: bool = False) -> None:
        """Use the connection of this process."""
        if self._coll is None or force_reset:
            stores: dict[str, Any] = shared_job_store(self.site_file).additional_stores  # type: ignore[has-type]
            ready = stores["data"]
            names = ("_coll", "_fs", "_files_collection", "_chunks_collection", "collection_name")
            for name in names:
                setattr(self, name, getattr(ready, name))

    def close(self) -> None:
        """Let go of the connection; others of this process go on with it."""
        self._coll = None


@lru_cache(maxsize=4)
def shared_database(site_file: str) -> Database[dict[str, Any]]:
    """Return this process' connection to the database of a site."""
    from otf_workflows.connection import connect
    from otf_workflows.settings import load_site

    return connect(load_site(Path(site_file)), patience_s=PATIENCE_S)


@lru_cache(maxsize=4)
def shared_job_store(site_file: str) -> JobStore:
    """Return the site's store of outputs on this process' connection."""
    from otf_workflows.connection import job_store
    from otf_workflows.settings import load_site

    return job_store(load_site(Path(site_file)), shared_database(site_file))


def naive(database: Database[dict[str, Any]]) -> Database[dict[str, Any]]:
    """Return a database that gives times without zone (UTC), as jobflow-remote expects them."""
    from bson.codec_options import CodecOptions

    return database.with_options(codec_options=CodecOptions(tz_aware=False))
