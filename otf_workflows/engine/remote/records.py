"""jobflow-remote's documents read as job records: states, times and failures in our words."""

from __future__ import annotations

from typing import Any

from otf_workflows.engine.base import JobRecord, JobState
from otf_workflows.engine.records import utc
from otf_workflows.engine.remote.failures import GIVEN_UP, failure_of
from otf_workflows.engine.routing import HELPER, role_of
from otf_workflows.types import Role, Stage

STATES = {
    "WAITING": JobState.WAITING,
    "READY": JobState.READY,
    "CHECKED_OUT": JobState.READY,
    "UPLOADED": JobState.READY,
    "SUBMITTED": JobState.READY,
    "BATCH_SUBMITTED": JobState.READY,
    "RUNNING": JobState.RUNNING,
    "BATCH_RUNNING": JobState.RUNNING,
    "RUN_FINISHED": JobState.RUNNING,
    "DOWNLOADED": JobState.RUNNING,
    "COMPLETED": JobState.DONE,
    "FAILED": JobState.FAILED,
    "REMOTE_ERROR": JobState.FAILED,
    "STOPPED": JobState.FAILED,
    "USER_STOPPED": JobState.FAILED,
    "PAUSED": JobState.PAUSED,
}
"""jobflow-remote's states in ours; what waits in a batch queue has not started."""

ACTIVE = ["CHECKED_OUT", "UPLOADED", "SUBMITTED", "RUNNING", "RUN_FINISHED", "DOWNLOADED"]
"""States between the runner's taking a job and writing down how it ended."""
NOT_STARTED = ["WAITING", "READY"]
STOPPED = {"STOPPED", "USER_STOPPED"}

FIELDS = [
    "db_id",
    "uuid",
    "index",
    "state",
    "worker",
    "run_dir",
    "start_time",
    "end_time",
    "updated_on",
    "created_on",
    "error",
    "remote.error",
    "remote.queue_err",
    "stored_data",
    "job.name",
    "job.metadata",
]


def job_record(document: dict[str, Any]) -> JobRecord:
    """Return what one document, read with :data:`FIELDS`, says about a job."""
    metadata = document["job"]["metadata"]
    helper = is_helper(document)
    state = STATES[document["state"]]
    stopped = document["state"] in STOPPED
    failure = None
    if state is JobState.FAILED:
        failure = dict(GIVEN_UP) if stopped else failure_of(document)
    # A job that failed has been tried, even where it was lost before it could say when it began.
    began = document.get("start_time")
    if state is JobState.FAILED:
        began = None if stopped else began or document["updated_on"]
    stage = metadata.get("stage")
    taken = document["state"] not in {*NOT_STARTED, "PAUSED"}
    return JobRecord(
        engine_id=document["db_id"],
        uuid=document["uuid"],
        name=document["job"]["name"],
        state=state,
        role=role_in(document),
        stage=Stage(stage) if stage and not helper else None,
        campaign=metadata["campaign"],
        cycle=metadata["cycle"],
        kind=metadata["kind"],
        label_key=None if helper else metadata.get("label_key"),
        worker=document["worker"] if taken else None,
        host=(document.get("stored_data") or {}).get("host"),
        directory=document.get("run_dir"),
        started=utc(began),
        finished=utc(document.get("end_time")),
        failure=failure,
    )


def is_helper(document: dict[str, Any]) -> bool:
    """Tell whether a job is jobflow's own, which inherits the metadata of the job it ends."""
    return document["job"]["name"] == HELPER


def role_in(document: dict[str, Any]) -> Role:
    """Return the role that runs a job."""
    return Role.CONTROL if is_helper(document) else role_of(document["job"]["metadata"])
