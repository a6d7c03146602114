"""One job in full: what it is, where it ran, how it ended, what its folder says."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otf_workflows.dashboard.queries.jobs import JobRow, job_rows
from otf_workflows.engine.records import STATES, failure, utc
from otf_workflows.errors import NotFoundError

if TYPE_CHECKING:
    from datetime import datetime

    from pymongo.database import Database

LOG_BYTES = 16_384
"""The end of a log that is shown."""
LOGS = ("job.out", "FW_job.error", "FW_job.out")
"""What workers and queue systems write into a launch folder."""
MOST_FILES = 40
MOST_RELATIVES = 60
SPEC_CHARACTERS = 20_000
LONG_LIST = 8
_SECRET = re.compile(r"passw|secret|token|credential", re.IGNORECASE)

_FIREWORK = {"_id": 0}
_LAUNCH = {
    "_id": 0,
    "launch_id": 1,
    "fw_id": 1,
    "state": 1,
    "host": 1,
    "launch_dir": 1,
    "time_start": 1,
    "time_end": 1,
    "fworker.name": 1,
    "state_history.state": 1,
    "state_history.reservation_id": 1,
    "state_history.updated_on": 1,
    "action.stored_data._exception": 1,
}


@dataclass(frozen=True)
class Launch:
    """One try of a job."""

    launch_id: int
    state: str
    host: str
    worker: str
    folder: str
    queue_id: str | None
    started: datetime | None
    finished: datetime | None
    last_sign: datetime | None

    @property
    def seconds(self) -> float | None:
        """How long it took (s), if it has ended."""
        if self.started is None or self.finished is None:
            return None
        return max((self.finished - self.started).total_seconds(), 0.0)


@dataclass(frozen=True)
class Folder:
    """What a launch folder holds, as far as this machine can see it."""

    visible: bool
    files: list[tuple[str, int]] = field(default_factory=list)
    log_name: str = ""
    log_tail: str = ""


@dataclass(frozen=True)
class JobDetail:
    """One job with everything that its page shows."""

    row: JobRow
    firework_state: str
    workflow_id: int
    workflow_name: str
    functions: list[str]
    uuid: str | None
    priority: int | None
    launches: list[Launch]
    parents: list[JobRow]
    children: list[JobRow]
    n_parents: int
    n_children: int
    traceback: str
    hint: str
    spec: str
    folder: Folder

    @property
    def launch(self) -> Launch | None:
        """The latest try."""
        return self.launches[0] if self.launches else None


def job_detail(database: Database[dict[str, Any]], fw_id: int) -> JobDetail:
    """Return one job.

    Parameters
    ----------
    database
        The site's database.
    fw_id
        Id of the firework.

    Raises
    ------
    NotFoundError
        If there is none.
    """
    firework = database.fireworks.find_one({"fw_id": fw_id}, _FIREWORK)
    if firework is None:
        raise NotFoundError(f"There is no job {fw_id} on this launch pad.", hint="lpad get_fws")
    row = job_rows(database, [firework])[0]
    ids = [*(firework.get("launches") or []), *(firework.get("archived_launches") or [])]
    found = list(database.launches.find({"launch_id": {"$in": ids}}, _LAUNCH))
    found.sort(key=lambda item: -item["launch_id"])
    workflow = database.workflows.find_one({"nodes": fw_id}, {"links": 1, "name": 1, "nodes": 1})
    links = {int(k): v for k, v in ((workflow or {}).get("links") or {}).items()}
    parents = sorted(parent for parent, children in links.items() if fw_id in children)
    children = sorted(links.get(fw_id, []))
    latest = found[0] if found else {}
    why = failure({**firework, "spec": firework.get("spec") or {}}, latest) or {}
    tasks = (firework.get("spec") or {}).get("_tasks") or []
    launches = [_launch(database, item) for item in found]
    return JobDetail(
        row=row,
        firework_state=firework["state"],
        workflow_id=min(workflow["nodes"]) if workflow else fw_id,
        workflow_name=str(workflow["name"]) if workflow else "",
        functions=[_function(task) for task in tasks],
        uuid=next((task["job"].get("uuid") for task in tasks if _is_job(task)), None),
        priority=(firework.get("spec") or {}).get("_priority"),
        launches=launches,
        parents=_rows(database, parents),
        children=_rows(database, children),
        n_parents=len(parents),
        n_children=len(children),
        traceback=_traceback(why, latest),
        hint=str(why.get("hint") or ""),
        spec=spec_text(firework.get("spec") or {}),
        folder=look_into(launches[0].folder if launches else ""),
    )


def _rows(database: Database[dict[str, Any]], ids: list[int]) -> list[JobRow]:
    query = {"fw_id": {"$in": ids[:MOST_RELATIVES]}}
    leave = {"_id": 0, "spec._tasks": 0}
    return job_rows(database, database.fireworks.find(query, leave).sort("fw_id", 1))


def _launch(database: Database[dict[str, Any]], document: dict[str, Any]) -> Launch:
    history = document.get("state_history") or [{}]
    worker = str((document.get("fworker") or {}).get("name") or "")
    reserved = next((h["reservation_id"] for h in history if h.get("reservation_id")), None)
    return Launch(
        launch_id=document["launch_id"],
        state=str(STATES.get(document.get("state", ""), document.get("state"))),
        host=str(document.get("host") or ""),
        worker=worker,
        folder=str(document.get("launch_dir") or ""),
        queue_id=str(reserved) if reserved else _batch_job(database, worker),
        started=utc(document.get("time_start")),
        finished=utc(document.get("time_end")),
        last_sign=utc(history[-1].get("updated_on")),
    )


def _batch_job(database: Database[dict[str, Any]], worker: str) -> str | None:
    """Return the id of the batch job in which a worker ran."""
    if not worker:
        return None
    found = database.otf_queue_jobs.find_one({"workers": worker}, {"job_id": 1})
    return found.get("job_id") if found else None


def _function(task: dict[str, Any]) -> str:
    """Return what a task calls, as ``module.function``."""
    if _is_job(task):
        function = task["job"].get("function")
        if isinstance(function, dict):
            return f"{function.get('@module', '')}.{function.get('@callable', '')}"
        return str(function)
    return str(task.get("_fw_name", "unknown"))


def _is_job(task: dict[str, Any]) -> bool:
    return isinstance(task.get("job"), dict)


def _traceback(why: dict[str, Any], launch: dict[str, Any]) -> str:
    if why.get("traceback"):
        return str(why["traceback"])
    stored = (launch.get("action") or {}).get("stored_data") or {}
    return str((stored.get("_exception") or {}).get("_stacktrace") or "")[-LOG_BYTES:]


# -- specification ---------------------------------------------------------------------------------


def spec_text(spec: dict[str, Any]) -> str:
    """Return a specification as short JSON: long lists abridged, secrets left out."""
    text = json.dumps(abridged(spec), indent=1, default=str, ensure_ascii=False)
    if len(text) <= SPEC_CHARACTERS:
        return text
    return f"{text[:SPEC_CHARACTERS]}\n… {len(text) - SPEC_CHARACTERS} characters more"


def abridged(value: Any) -> Any:
    """Return JSON data with long lists cut and whatever looks like a secret masked."""
    if isinstance(value, dict):
        return {
            str(key): "(not shown)" if _SECRET.search(str(key)) and item else abridged(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        if len(value) <= LONG_LIST:
            return [abridged(item) for item in value]
        return [*(abridged(item) for item in value[:2]), f"… {len(value) - 2} more"]
    return value


# -- launch folder -------------------------------------------------------------------------------


def look_into(folder: str) -> Folder:
    """Return the files of a launch folder and the end of its log.

    Only logs of fixed names are opened, and only if they are ordinary files: a path in a database
    must not become a way to read something else.

    Parameters
    ----------
    folder
        Path on the machine that ran the job, perhaps on a disk that this one shares.
    """
    path = Path(folder)
    if not folder or not path.is_absolute():
        return Folder(visible=False)
    try:
        files = sorted(
            (entry.name, entry.stat(follow_symlinks=False).st_size)
            for entry in os.scandir(path)
            if entry.is_file(follow_symlinks=False)
        )
    except OSError:
        return Folder(visible=False)
    for name in LOGS:
        tail = tail_of(path / name)
        if tail:
            return Folder(True, files[:MOST_FILES], name, tail)
    return Folder(True, files[:MOST_FILES])


def tail_of(file: Path) -> str:
    """Return the end of an ordinary file; nothing for anything else."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    with os.fdopen(handle, "rb") as stream:
        info = os.fstat(stream.fileno())
        if not stat.S_ISREG(info.st_mode):
            return ""
        stream.seek(max(info.st_size - LOG_BYTES, 0))
        text = stream.read(LOG_BYTES).decode(errors="replace")
    return text if info.st_size <= LOG_BYTES else text.partition("\n")[2]
