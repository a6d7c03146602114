"""How to reach MongoDB: the one place that knows addresses and passwords.

Every collection of a site lives in one database: FireWorks' launch pad, jobflow's outputs and our
own. Stores made here hold an open connection and no credentials, so that a password can never
reach a job, a document or a file on disk.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from otf_workflows.errors import ConfigurationError, DatabaseError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from jobflow import JobStore
    from pymongo import MongoClient
    from pymongo.database import Database

    from otf_workflows.settings import Site

OUTPUTS = "jobflow_outputs"
"""Collection of job outputs."""
BLOBS = "jobflow_data"
"""GridFS collection of the large parts of job outputs."""
PATIENCE_S = 3.0
"""How long a command waits for a server that does not answer (s)."""

_WRONG_CREDENTIALS = {13, 18}  # Unauthorized, AuthenticationFailed


@dataclass(frozen=True)
class Address:
    """Where a database is and who we are there; the password is left out of its text form."""

    host: str
    port: int
    name: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    auth_source: str | None = None
    tls: bool = False
    tls_ca_file: Path | None = None
    embedded: bool = False

    def __str__(self) -> str:
        """Return what a person needs to recognise it."""
        who = f"{self.username}@" if self.username else ""
        return f"mongodb://{who}{self.host}:{self.port}/{self.name}"

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments for a MongoDB client, credentials included."""
        # A write counts as done once it is in the journal: without that, a killed server forgets
        # the last tenth of a second, and FireWorks' documents contradict each other.
        options: dict[str, Any] = {
            "tz_aware": True,
            "journal": True,
            "directConnection": self.embedded,
        }
        if self.username:
            options |= {
                "username": self.username,
                "password": self.password,
                "authSource": self.auth_source or self.name,
            }
        if self.tls:
            options["tls"] = True
            if self.tls_ca_file is not None:
                options["tlsCAFile"] = str(self.tls_ca_file)
        return options


def address(site: Site) -> Address:
    """Return where the database of a site is.

    Raises
    ------
    DatabaseError
        If it is an embedded one that was never started.
    """
    database = site.database
    if database.mode == "embedded":
        from otf_workflows.engine.mongod import EmbeddedMongod

        return EmbeddedMongod(site.resolved_state_dir, database=database.name).address()
    return Address(
        host=database.host,
        port=database.port,
        name=database.name,
        username=database.username,
        password=site.password.get_secret_value() if site.password else None,
        auth_source=database.auth_source,
        tls=database.tls,
        tls_ca_file=database.tls_ca_file,
    )


def mongo_client(site: Site, *, patience_s: float = PATIENCE_S) -> MongoClient[dict[str, Any]]:
    """Return a client of the site's server; it connects when it is first used.

    Parameters
    ----------
    site
        The site.
    patience_s
        How long to wait for a server that does not answer (s). Workers wait longer than
        commands, so that a finished job survives a restart of the server.
    """
    from pymongo import MongoClient

    where = address(site)
    wait_ms = int(patience_s * 1000)
    return MongoClient(
        where.host,
        where.port,
        serverSelectionTimeoutMS=wait_ms,
        connectTimeoutMS=wait_ms,
        appname="otf-workflows",
        **where.options,
    )


def connect(site: Site, *, patience_s: float = PATIENCE_S) -> Database[dict[str, Any]]:
    """Return the site's database, after it has answered.

    Raises
    ------
    DatabaseError
        If it does not answer, or refuses user or password.
    """
    client = mongo_client(site, patience_s=patience_s)
    database = client[site.database.name]
    try:
        with translated(site):
            database.command("ping")
            # "ping" needs no login on a server without authentication, a count always does.
            database["otf_campaigns"].estimated_document_count()
    except DatabaseError:
        client.close()
        raise
    return database


@contextmanager
def translated(site: Site) -> Iterator[None]:
    """Turn errors of the MongoDB driver into ours inside a ``with`` block.

    Raises
    ------
    DatabaseError
        In place of any ``pymongo`` error, saying what to do next.
    """
    from pymongo import errors

    try:
        yield
    except errors.OperationFailure as error:
        if error.code not in _WRONG_CREDENTIALS:
            raise DatabaseError(
                f"MongoDB refuses a request: {_reason(error)}", where=_where(site)
            ) from error
        raise DatabaseError(
            "MongoDB refuses user or password."
            if error.code == 18
            else "The database user may not read or write this database.",
            where=_where(site),
            hint="check database.username, password_file and auth_source in the site file",
        ) from error
    except errors.ConnectionFailure as error:
        hint = (
            "otf up"
            if site.database.mode == "embedded"
            else "check database.host and port in the site file, and that the server runs"
        )
        raise DatabaseError("MongoDB does not answer.", where=_where(site), hint=hint) from error
    except errors.PyMongoError as error:
        raise DatabaseError(f"MongoDB: {_reason(error)}", where=_where(site)) from error


def job_store(site: Site, database: Database[dict[str, Any]] | None = None) -> JobStore:
    """Return jobflow's store: outputs as documents, their large parts in GridFS.

    Parameters
    ----------
    site
        The site.
    database
        An open database to share the connection of; made if not given.
    """
    import gridfs
    from jobflow import JobStore
    from maggma.stores import GridFSStore, MongoStore

    if database is None:
        database = connect(site)
    outputs = database[OUTPUTS]
    outputs.create_index([("uuid", 1), ("index", -1)])
    outputs.create_index("completed_at")
    outputs.create_index("output.key", sparse=True)
    blobs = GridFSStore(database.name, BLOBS, key="blob_uuid")
    # As MongoStore.from_collection does: a connected store needs, and holds, no credentials.
    blobs._coll = gridfs.GridFS(database, BLOBS)  # noqa: SLF001
    blobs._files_collection = database[f"{BLOBS}.files"]  # noqa: SLF001
    blobs._chunks_collection = database[f"{BLOBS}.chunks"]  # noqa: SLF001
    files = MongoStore.from_collection(database[f"{BLOBS}.files"])
    files.last_updated_field = f"metadata.{blobs.last_updated_field}"
    files.key = blobs.key
    blobs._fs = files  # type: ignore[assignment]  # noqa: SLF001
    database[f"{BLOBS}.files"].create_index("metadata.blob_uuid")
    return JobStore(MongoStore.from_collection(outputs), additional_stores={"data": blobs})


def use_job_store(store: JobStore) -> None:
    """Make jobflow use this store for every job of this process.

    Raises
    ------
    ConfigurationError
        If it would forget everything at the end of the process.
    """
    import jobflow

    require_persistent(store)
    jobflow.SETTINGS.JOB_STORE = store


def require_persistent(store: JobStore) -> None:
    """Refuse a store that lives in memory only: results paid for would be lost.

    Raises
    ------
    ConfigurationError
        If documents or any of the large parts would be kept in memory.
    """
    from maggma.stores import MemoryStore

    large: dict[str, Any] = store.additional_stores  # type: ignore[has-type]
    kept_in = {"documents": store.docs_store, **large}
    for what, part in kept_in.items():
        # JSONStore and MontyStore are subclasses of MemoryStore or of MongoStore that write files.
        if type(part) is MemoryStore:
            raise ConfigurationError(
                f"jobflow would keep its {what} in memory and forget them when a worker ends.",
                where="JOB_STORE of jobflow's settings (JOBFLOW_CONFIG_FILE, ~/.jobflow.yaml)",
                hint="start workers with 'otf up', or name a MongoStore in jobflow's settings",
            )


def require_persistent_jobflow_settings() -> None:
    """Refuse if jobflow itself, started outside our workers, would use a store in memory.

    Workers started by ``rlaunch`` or ``qlaunch`` read jobflow's own settings.

    Raises
    ------
    ConfigurationError
        If these settings lead to a store in memory.
    """
    import jobflow

    require_persistent(jobflow.SETTINGS.JOB_STORE)


def _where(site: Site) -> str:
    """Return the address in words, also when there is none yet."""
    try:
        return str(address(site))
    except DatabaseError:
        return "embedded mongod"


def _reason(error: Exception) -> str:
    """Return the first sentence of a driver's error, which may go on for a page."""
    return str(error).split(", full error")[0].splitlines()[0][:300]
