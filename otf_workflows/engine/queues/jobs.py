"""Our batch jobs, one document each, written before the batch system is asked for anything.

The key of a document is a random token that is also part of the job's name. Whoever dies between
``sbatch`` and the note of its answer leaves a job in the queue that carries the token, and the
next look at the queue finds it by that; nothing is ever submitted twice.
"""

from __future__ import annotations

import re
import secrets
from contextlib import contextmanager
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from pydantic import Field

from otf_workflows.schemas import Document, now
from otf_workflows.store import whoami
from otf_workflows.store_documents import parse, plain
from otf_workflows.types import FailureCause, Role

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pymongo.database import Database

COLLECTION = "otf_queue_jobs"
LEASES = "otf_launchers"
LEASE_S = 60.0
"""A launcher that was silent for so long is taken for gone."""
N_WAITS = 20
"""So many of the newest jobs tell how long one waits in the queue."""

_NAME = re.compile(r"otf-(?P<role>[a-z]+)-(?P<token>[0-9a-f]{12})\Z")


class BatchState(StrEnum):
    """Where one of our batch jobs stands."""

    SUBMITTING = "submitting"
    """Written down; whether the batch system has it is not known yet."""
    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


class BatchJob(Document):
    """One batch job of ours in ``otf_queue_jobs``."""

    token: str = Field(description="Random; part of the job's name. Unique.")
    home: str = Field(description="State folder that it was submitted for, by its random id.")
    role: Role = Field(description="Jobs that it runs.")
    state: BatchState = Field(BatchState.SUBMITTING, description="Where it stands.")
    fw_id: int | None = Field(None, description="The one job it is for; none for a pilot.")
    launch_id: int | None = Field(None, description="Reservation of that job.")
    job_id: str | None = Field(None, description="Id given by the batch system.")
    folder: str = Field(description="Where its script and output are.")
    walltime_s: float = Field(description="Time asked for (s).")
    memory_MiB: int | None = Field(None, description="Memory asked for (MiB per node).")
    cores: int = Field(1, description="Cores asked for.")
    node: str | None = Field(None, description="Where it runs.")
    reason: str = Field("", description="Why the batch system lets it wait.")
    workers: list[str] = Field(default_factory=list, description="Workers that began in it.")
    said: str = Field("", description="How its workers say that it ended.")
    jobs_run: int = Field(0, description="Jobs that its workers ran.")
    withdrawn: str | None = Field(None, description="Why we cancelled it ourselves, if we did.")
    cause: FailureCause | None = Field(None, description="Why it failed; none if it ended well.")
    sentence: str = Field("", description="What the batch system says of its end.")
    created: datetime = Field(default_factory=now, description="Written down (UTC).")
    submitted: datetime | None = Field(None, description="Accepted by the batch system (UTC).")
    started: datetime | None = Field(None, description="First worker began (UTC).")
    missing_since: datetime | None = Field(None, description="In no list since (UTC).")
    ended: datetime | None = Field(None, description="Found to be over (UTC).")

    @property
    def name(self) -> str:
        """Name of the job in the batch system."""
        return f"otf-{self.role}-{self.token}"


def new_token() -> str:
    """Return a token that nobody else has."""
    return secrets.token_hex(6)


def token_in(name: str) -> str | None:
    """Return the token in the name of a batch job; None if it is not one of ours."""
    found = _NAME.match(name)
    return found["token"] if found else None


def home_id(state_dir: Path) -> str:
    """Return the random id of a state folder, made on first use.

    Two clusters may share a database, and both call their partition ``cpu``. Nobody judges the
    jobs of a folder that is not his own.
    """
    file = state_dir / "home-id"
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(secrets.token_hex(8))
    except FileExistsError:
        pass
    return file.read_text(encoding="utf-8").strip()


class QueueJobs:
    """Reads and writes ``otf_queue_jobs``.

    Parameters
    ----------
    database
        The site's database.
    """

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        self._jobs = database[COLLECTION]
        self._leases = database[LEASES]

    def ensure_indexes(self) -> None:
        """Create keys and indexes; safe to call at any time."""
        self._jobs.create_index("token", unique=True)
        self._jobs.create_index([("home", 1), ("role", 1), ("state", 1), ("ended", -1)])
        self._jobs.create_index([("home", 1), ("role", 1), ("created", -1)])

    # Reading

    def get(self, token: str) -> BatchJob | None:
        """Return one job, or None."""
        found = self._jobs.find_one({"token": token})
        return parse(BatchJob, found) if found else None

    def open(self, home: str, role: Role | None = None) -> list[BatchJob]:
        """Return the jobs that are not over, oldest first."""
        query: dict[str, Any] = {"home": home, "state": {"$ne": str(BatchState.ENDED)}}
        if role is not None:
            query["role"] = str(role)
        return [parse(BatchJob, item) for item in self._jobs.find(query).sort("created", 1)]

    def ended(self, tokens: list[str]) -> list[BatchJob]:
        """Return those of these jobs that we take for over."""
        query = {"token": {"$in": tokens}, "state": str(BatchState.ENDED)}
        return [parse(BatchJob, item) for item in self._jobs.find(query)]

    def all(self, *, limit: int = 0) -> list[BatchJob]:
        """Return jobs of every home, newest first."""
        found = self._jobs.find({}).sort("created", -1).limit(limit)
        return [parse(BatchJob, item) for item in found]

    def workers(self) -> set[str]:
        """Return the workers in jobs that are not over; only the batch system judges them."""
        found = self._jobs.find({"state": {"$ne": str(BatchState.ENDED)}}, {"workers": 1})
        return {name for item in found for name in item["workers"]}

    def waits_s(self, home: str, role: Role) -> list[float]:
        """Return how long the newest jobs of a role waited in the queue (s)."""
        query = {"home": home, "role": str(role), "started": {"$ne": None}}
        fields = {"created": 1, "started": 1}
        found = self._jobs.find(query, fields).sort("created", -1).limit(N_WAITS)
        return [(item["started"] - item["created"]).total_seconds() for item in found]

    def stillborn(self, home: str, role: Role) -> list[BatchJob]:
        """Return the newest jobs of a role, back to the last one in which a worker began.

        They were accepted, were not cancelled, and came to nothing: a wrong path or module in the
        site file, for instance.
        """
        query = {"home": home, "role": str(role), "state": str(BatchState.ENDED)}
        found = self._jobs.find(query).sort("ended", -1).limit(N_WAITS)
        newest = [parse(BatchJob, item) for item in found]
        return list(takewhile(lambda job: job.job_id and job.cause and not job.workers, newest))

    # Writing, for launchers

    def add(self, job: BatchJob) -> None:
        """Write a job down, before it is submitted."""
        self._jobs.insert_one(plain(job))

    def change(self, token: str, **fields: Any) -> bool:
        """Set fields of a job that is not over; return whether there was one."""
        query = {"token": token, "state": {"$ne": str(BatchState.ENDED)}}
        return self._jobs.update_one(query, {"$set": plain(fields)}).matched_count == 1

    def submitted(self, token: str, job_id: str) -> None:
        """Note that the batch system has a job; a worker may have been faster to say so."""
        fields = {"job_id": job_id, "submitted": now()}
        self._jobs.update_one({"token": token}, {"$set": fields})
        waiting = {"token": token, "state": str(BatchState.SUBMITTING)}
        self._jobs.update_one(waiting, {"$set": {"state": str(BatchState.QUEUED)}})

    def end(self, token: str, *, cause: FailureCause | None, sentence: str) -> bool:
        """Note that a job is over; return False if somebody has done so already."""
        return self.change(
            token, state=BatchState.ENDED, cause=cause, sentence=sentence, ended=now()
        )

    @contextmanager
    def lease(self, home: str) -> Iterator[bool]:
        """Hold the right to submit for a state folder; yields False if somebody else has it.

        It is kept after the block, so that a second launcher waits until the first has been
        silent for :data:`LEASE_S`; :meth:`release` gives it back at once.
        """
        from pymongo.errors import DuplicateKeyError

        me = whoami()
        free = {"_id": home, "$or": [{"owner": me}, {"until": {"$lt": now()}}]}
        mine = {"$set": {"owner": me, "until": now() + timedelta(seconds=LEASE_S)}}
        try:
            self._leases.update_one(free, mine, upsert=True)
        except DuplicateKeyError:
            yield self._take_from_the_dead(home, mine)
        else:
            yield True

    def release(self, home: str) -> None:
        """Give the right to submit back."""
        self._leases.delete_one({"_id": home, "owner": whoami()})

    def _take_from_the_dead(self, home: str, mine: dict[str, Any]) -> bool:
        """Take the right over if its owner was a process of this machine that is gone."""
        found = self._leases.find_one({"_id": home})
        if found is None or not _is_dead_here(found["owner"]):
            return False
        taken = self._leases.update_one({"_id": home, "owner": found["owner"]}, mine)
        return taken.modified_count == 1

    # Writing, for workers

    def begin(self, token: str, *, worker: str, job_id: str | None, node: str) -> bool:
        """Note that a worker has begun in a job; False if the job was given up meanwhile."""
        fields: dict[str, Any] = {"state": str(BatchState.RUNNING), "node": node}
        if job_id:
            fields["job_id"] = job_id
        found = self._jobs.find_one_and_update(
            {"token": token, "state": {"$ne": str(BatchState.ENDED)}, "withdrawn": None},
            {"$set": fields, "$addToSet": {"workers": worker}},
        )
        if found is not None and found.get("started") is None:
            self._jobs.update_one({"token": token}, {"$set": {"started": now()}})
        return found is not None

    def leave(self, token: str, *, said: str, jobs_run: int) -> None:
        """Note why a worker ends, and how many jobs it ran."""
        self._jobs.update_one(
            {"token": token}, {"$set": {"said": said}, "$inc": {"jobs_run": jobs_run}}
        )


def _is_dead_here(owner: str) -> bool:
    """Tell whether ``user@host:pid`` names a process of this machine that has ended."""
    import socket

    import psutil

    host, _, pid = owner.rpartition("@")[2].rpartition(":")
    return host == socket.gethostname() and pid.isdigit() and not psutil.pid_exists(int(pid))
