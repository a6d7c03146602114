"""Whether everything that a campaign needs is there: database, workers, batch queue, disk."""

from __future__ import annotations

import os
import shutil
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from otf_workflows.dashboard.queries.indexes import missing_indexes
from otf_workflows.engine.base import JobState
from otf_workflows.engine.identity import WorkerName
from otf_workflows.engine.records import utc
from otf_workflows.engine.supervisor import service_status
from otf_workflows.errors import OtfError
from otf_workflows.preflight import MIN_FREE_BYTES
from otf_workflows.schemas import now

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from pymongo.database import Database

    from otf_workflows.dashboard.backend import Backend
    from otf_workflows.settings import Site

SLOW_MS = 100.0
"""A database that takes longer to answer a ping makes every page slow (ms)."""
RECENT = timedelta(minutes=15)
"""Workers that finished a job since then are counted as present."""
MOST_WORKERS = 200
MOST_BATCH_JOBS = 30
COLLECTIONS = (
    "otf_campaigns", "otf_cycles", "otf_labels", "otf_datasets", "otf_models", "otf_events",
    "fireworks", "launches", "workflows", "jobflow_outputs",
)  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes
    ----------
    name
        What.
    state
        ``ok``, ``unknown``, ``paused`` for what deserves a look, ``failed`` for what is broken.
    sentence
        What was found.
    hint
        The command that helps.
    """

    name: str
    state: str
    sentence: str
    hint: str = ""


@dataclass(frozen=True)
class WorkerRow:
    """A worker that runs a job, or did so lately."""

    name: str
    role: str
    host: str
    fw_id: int | None
    since: datetime | None
    last_sign: datetime | None
    gone: bool


@dataclass(frozen=True)
class BatchRow:
    """One of our jobs in a batch queue."""

    job_id: str | None
    role: str
    state: str
    node: str | None
    reason: str
    cores: int
    created: datetime | None
    ended: datetime | None


@dataclass(frozen=True)
class Health:
    """The whole page."""

    checks: list[Check]
    workers: list[WorkerRow]
    batch: list[BatchRow]
    collections: list[tuple[str, int]]
    server: dict[str, Any]


def health(backend: Backend, roles: Mapping[str, Mapping[JobState, int]]) -> Health:
    """Return everything that the page of health shows.

    Parameters
    ----------
    backend
        The database and the site.
    roles
        Jobs by role and state.
    """
    with backend.reading() as database:
        present = workers(database)
        return Health(
            checks=[*brief(backend.site, database, roles), _indexes(database), _disk(backend.site)],
            workers=present,
            batch=batch_jobs(database),
            collections=[(name, database[name].estimated_document_count()) for name in COLLECTIONS],
            server=_server(database),
        )


def brief(
    site: Site, database: Database[dict[str, Any]], roles: Mapping[str, Mapping[JobState, int]]
) -> list[Check]:
    """Return the three checks that every visitor sees: database, workers, queue.

    Parameters
    ----------
    site
        The site.
    database
        Its database.
    roles
        Jobs by role and state.
    """
    return [_answers(database), _workers(site, database, roles), _queue(database)]


def _answers(database: Database[dict[str, Any]]) -> Check:
    began = time.perf_counter()
    database.command("ping")
    took_ms = 1000 * (time.perf_counter() - began)
    host, port = database.client.address or ("?", 0)
    sentence = f"answers in {took_ms:.0f} ms at {host}:{port}"
    if took_ms > SLOW_MS:
        return Check("database", "paused", f"{sentence}, which is slow")
    return Check("database", "ok", sentence)


def _workers(
    site: Site, database: Database[dict[str, Any]], roles: Mapping[str, Mapping[JobState, int]]
) -> Check:
    """Tell whether somebody takes the jobs that are ready."""
    running = sum(counts.get(JobState.RUNNING, 0) for counts in roles.values())
    waits = {role: counts.get(JobState.READY, 0) for role, counts in roles.items()}
    try:
        status = service_status(site)
    except OtfError as error:
        return Check("workers", "unknown", error.what)
    if status.running:
        here = f"{len(status.workers)} on this machine ({socket.gethostname()})"
        return Check("workers", "ok", f"{here}, {running} jobs running")
    since = (now() - RECENT).isoformat()
    lately = database.launches.find_one({"time_start": {"$gte": since}}, {"_id": 1})
    if running or lately:
        return Check("workers", "ok", f"none on this machine, {running} jobs running elsewhere")
    waiting = [f"{n} {role}" for role, n in waits.items() if n]
    if waiting:
        sentence = f"nobody takes the jobs that are ready: {', '.join(waiting)}"
        return Check("workers", "failed", sentence, "otf up")
    return Check("workers", "unknown", "none on this machine, and nothing to do", "otf up")


def _queue(database: Database[dict[str, Any]]) -> Check:
    counts: dict[str, int] = {}
    for group in database.otf_queue_jobs.aggregate(
        [{"$match": {"state": {"$ne": "ended"}}}, {"$group": {"_id": "$state", "n": {"$sum": 1}}}]
    ):
        counts[str(group["_id"])] = group["n"]
    lease = database.otf_launchers.find_one({}, sort=[("until", -1)])
    if not counts and lease is None:
        return Check("batch queue", "unknown", "not used: jobs are run by local workers")
    words = ", ".join(f"{n} {state}" for state, n in sorted(counts.items())) or "no jobs in it"
    until = utc(lease.get("until")) if lease else None
    if lease is None or until is None or until < now():
        return Check("batch queue", "paused", f"{words}; nobody submits to it", "otf up")
    return Check("batch queue", "ok", f"{words}; {lease.get('owner', '?')} submits")


def _indexes(database: Database[dict[str, Any]]) -> Check:
    from otf_workflows.store import Store

    missing = [*Store(database).missing_indexes(), *missing_indexes(database)]
    if missing:
        sentence = "some are missing, pages may be slow: " + "; ".join(missing)
        return Check("indexes", "paused", sentence, "otf dashboard")
    return Check("indexes", "ok", "all there")


def _disk(site: Site) -> Check:
    folder = site.resolved_state_dir
    free = shutil.disk_usage(folder).free
    sentence = f"{free / 1024**3:.1f} GiB free in {folder}"
    if free < MIN_FREE_BYTES:
        return Check("disk", "failed", sentence, "free some space, or move OTF_STATE_DIR")
    return Check("disk", "ok", sentence)


def _server(database: Database[dict[str, Any]]) -> dict[str, Any]:
    """Return size and version; what this user may not ask is left out."""
    from pymongo.errors import OperationFailure

    try:
        stats = database.command("dbStats", scale=1024**2)
        build = database.command("buildInfo")
    except OperationFailure:
        return {}
    return {
        "version": build.get("version"),
        "data_MiB": stats.get("dataSize"),
        "storage_MiB": stats.get("storageSize"),
        "index_MiB": stats.get("indexSize"),
    }


def workers(database: Database[dict[str, Any]]) -> list[WorkerRow]:
    """Return workers that run a job or have begun one lately, the busy ones first."""
    fields = {
        "fw_id": 1, "state": 1, "host": 1, "fworker.name": 1, "time_start": 1, "time_end": 1,
        "state_history": {"$slice": -1},
    }  # fmt: skip
    since = (now() - RECENT).isoformat()
    busy = database.launches.find({"state": "RUNNING"}, fields).limit(MOST_WORKERS)
    lately = database.launches.find({"time_start": {"$gte": since}}, fields)
    rows: dict[str, WorkerRow] = {}
    for launch in [*busy, *lately.sort("time_start", -1).limit(MOST_WORKERS)]:
        name = str((launch.get("fworker") or {}).get("name") or "unnamed")
        rows.setdefault(name, _worker_row(name, launch))
    return sorted(rows.values(), key=lambda row: (row.fw_id is None, row.name))


def _worker_row(name: str, launch: dict[str, Any]) -> WorkerRow:
    running = launch.get("state") == "RUNNING"
    history = launch.get("state_history") or [{}]
    since = utc(launch.get("time_start"))
    parsed = WorkerName.parse(name)
    return WorkerRow(
        name=name,
        role=str(parsed.role) if parsed else "–",
        host=str(launch.get("host") or ""),
        fw_id=launch["fw_id"] if running else None,
        since=since,
        last_sign=utc(launch.get("time_end")) or utc(history[-1].get("updated_on")) or since,
        gone=parsed.is_dead(since=since) if parsed else False,
    )


def batch_jobs(database: Database[dict[str, Any]]) -> list[BatchRow]:
    """Return our newest jobs in the batch queue."""
    found = database.otf_queue_jobs.find({}, {"_id": 0}).sort("_id", -1).limit(MOST_BATCH_JOBS)
    return [
        BatchRow(
            job_id=job.get("job_id"),
            role=str(job.get("role", "")),
            state=str(job.get("state", "")),
            node=job.get("node"),
            reason=str(job.get("sentence") or job.get("reason") or ""),
            cores=int(job.get("cores") or 1),
            created=utc(job.get("created")),
            ended=utc(job.get("ended")),
        )
        for job in found
    ]


def process_facts() -> dict[str, Any]:
    """Return what this dashboard process itself takes."""
    import psutil

    me = psutil.Process()
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "memory_MiB": me.memory_info().rss / 1024**2,
        "seconds": time.time() - me.create_time(),
    }
