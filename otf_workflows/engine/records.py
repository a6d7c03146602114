"""FireWorks' documents read as job records: states, times and failures in our words."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from otf_workflows.engine.base import JobRecord, JobState
from otf_workflows.engine.routing import CATEGORY, HELPER, role_of
from otf_workflows.types import Role, Stage

STATES = {
    "WAITING": JobState.WAITING,
    "READY": JobState.READY,
    "RESERVED": JobState.READY,
    "OFFLINE-RUNNING": JobState.RUNNING,
    "RUNNING": JobState.RUNNING,
    "COMPLETED": JobState.DONE,
    "FIZZLED": JobState.FAILED,
    "DEFUSED": JobState.FAILED,
    "PAUSED": JobState.PAUSED,
}
"""FireWorks' states in ours; a defused job was given up by a person, as its failure says."""

FIREWORK_FIELDS = {
    "_id": 0,
    "fw_id": 1,
    "name": 1,
    "state": 1,
    "launches": 1,
    f"spec.{CATEGORY}": 1,
    "spec.campaign": 1,
    "spec.cycle": 1,
    "spec.kind": 1,
    "spec.stage": 1,
    "spec.label_key": 1,
    "spec._exception_details": 1,
    "spec._tasks.job.uuid": 1,
}
LAUNCH_FIELDS = {
    "_id": 0,
    "launch_id": 1,
    "fw_id": 1,
    "state": 1,
    "host": 1,
    "launch_dir": 1,
    "time_start": 1,
    "time_end": 1,
    "fworker.name": 1,
    "action.stored_data._exception": 1,
}
TRACEBACK_LINES = 30


def job_record(firework: dict[str, Any], launch: dict[str, Any] | None) -> JobRecord:
    """Return what two documents, read with the projections above, say about one job.

    Parameters
    ----------
    firework
        From the ``fireworks`` collection.
    launch
        Its latest launch, if there is one.
    """
    spec = firework["spec"]
    launch = launch or {}
    helper = firework["name"] == HELPER
    category = spec.get(CATEGORY)
    tasks = spec.get("_tasks") or [{}]
    return JobRecord(
        engine_id=firework["fw_id"],
        uuid=tasks[0].get("job", {}).get("uuid"),
        name=firework["name"],
        state=STATES[firework["state"]],
        role=Role(category) if category in set(Role) else role_of(spec),
        stage=Stage(spec["stage"]) if spec.get("stage") and not helper else None,
        campaign=spec["campaign"],
        cycle=spec["cycle"],
        kind=spec["kind"],
        label_key=None if helper else spec.get("label_key"),
        worker=launch.get("fworker", {}).get("name"),
        host=launch.get("host"),
        directory=launch.get("launch_dir"),
        started=utc(launch.get("time_start")),
        finished=utc(launch.get("time_end")),
        failure=failure(firework, launch),
    )


def failure(firework: dict[str, Any], launch: dict[str, Any]) -> dict[str, Any] | None:
    """Return why a job failed: what its error says of itself, else the end of the traceback."""
    if firework["state"] == "DEFUSED":
        return {"message": "given up by a person before it started", "traceback": ""}
    if firework["state"] != "FIZZLED":
        return None
    unreadable = firework["spec"].get("_exception_details")
    stored = (launch.get("action") or {}).get("stored_data") or {}
    exception = stored.get("_exception") or unreadable or {}
    details = exception.get("_details")
    if isinstance(details, dict) and "message" in details:
        return details
    lines = str(exception.get("_stacktrace") or "").rstrip().splitlines()
    said = next((line for line in reversed(lines) if line and not line.startswith(" ")), "")
    return {
        "message": said or "the worker was lost before it could say why",
        "traceback": "\n".join(lines[-TRACEBACK_LINES:]),
    }


def utc(value: str | datetime | None) -> datetime | None:
    """Return an aware UTC time from what FireWorks wrote: a string or a naive time, in UTC."""
    if value is None:
        return None
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
