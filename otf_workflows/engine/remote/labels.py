"""Every label exactly once, where the label job itself sees no database.

The runner does for the job what the job does for itself under FireWorks
(:mod:`otf_workflows.claims`): before a label leaves for a compute node, its result is looked up,
and its key is claimed. The claim lives as long as the runner keeps renewing it, and is settled by
what becomes of the job.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from otf_workflows.claims import COLLECTION, OF_THE_MACHINE, Claims
from otf_workflows.engine.remote.failures import MARK, failure_of
from otf_workflows.engine.remote.records import ACTIVE, is_helper
from otf_workflows.errors import NotFoundError
from otf_workflows.types import LabelState

if TYPE_CHECKING:
    from jobflow import JobStore
    from jobflow_remote import JobController
    from pymongo.database import Database

LEASE_S = 3600.0
"""How long a claim outlives the runner: its jobs go on without it (s)."""


class Turn(StrEnum):
    """What may become of a label job that is ready."""

    GO = "go"
    WAIT = "wait"
    OVER = "over"
    """It is done or failed by now, without having run."""


class LabelGate:
    """Decides which label jobs may leave for a compute node.

    Parameters
    ----------
    database
        Ours.
    controller
        jobflow-remote's.
    job_store
        Where outputs are.
    """

    def __init__(
        self, database: Database[dict[str, Any]], controller: JobController, job_store: JobStore
    ) -> None:
        self.database = database
        self.controller = controller
        self.job_store = job_store
        self.claims = Claims(database)

    def turn(self, document: dict[str, Any]) -> Turn:
        """Return what a label job that is ready may do; end it if it need not run.

        Parameters
        ----------
        document
            The job, with its whole content.
        """
        key, by = key_of(document), document["uuid"]
        result = self.known(key)
        if result is None and self._take(key, by):
            # Between the look and the claim another one may have finished.
            result = self.known(key)
            if result is None:
                return Turn.GO
            self.claims.release(key, by=by)
        if result is not None:
            return Turn.OVER if self._finish(document, result) else Turn.WAIT
        failure = self.claims.failure_for(key, by=by)
        if failure is None:
            return Turn.WAIT
        return Turn.OVER if self._fail(document, failure) else Turn.WAIT

    def known(self, key: str) -> dict[str, Any] | None:
        """Return a finished result as stored JSON: a booked label, or the output of a job."""
        from monty.json import jsanitize

        from otf_workflows.store import Store

        try:
            booked = Store(self.database).label(key)
        except NotFoundError:
            booked = None
        if booked is not None and booked.state is LabelState.DONE and booked.result is not None:
            return jsanitize(booked.result, strict=True, enum_values=True)
        found = self.job_store.docs_store.query_one({"output.key": key}, {"output": 1})
        return found["output"] if found else None

    def renew(self) -> None:
        """Keep the claims of all label jobs that are on their way."""
        query = {"state": {"$in": ACTIVE}, "job.metadata.label_key": {"$ne": None}}
        fields = ["uuid", "job.name", "job.metadata.label_key"]
        for document in self.controller.jobs.find(query, fields):
            if not is_helper(document):
                self.claims.take(key_of(document), by=document["uuid"], seconds=LEASE_S)

    def settle(self, document: dict[str, Any]) -> None:
        """Settle the claim of a label job that is not on its way (any more).

        A claim of a label that is done stays: its result is what everybody finds.
        """
        if document["state"] in {*ACTIVE, "COMPLETED", "REMOTE_ERROR"}:
            return
        key, by = key_of(document), document["uuid"]
        failure = failure_of(document) if document["state"] == "FAILED" else {}
        cause = failure.get("cause")
        if cause is None or cause in OF_THE_MACHINE:
            self.claims.release(key, by=by)
        else:
            self.claims.fail(key, by=by, failure=failure)

    def _take(self, key: str, by: str) -> bool:
        """Claim a key; first settle what its holder may have left behind."""
        if self.claims.take(key, by=by, seconds=LEASE_S):
            return True
        claim = self.database[COLLECTION].find_one({"_id": key, "failure": None})
        holder = claim and self.controller.jobs.find_one({"uuid": claim["by"]})
        if not holder:
            return False
        self.settle(holder)
        return self.claims.take(key, by=by, seconds=LEASE_S)

    def _finish(self, document: dict[str, Any], result: dict[str, Any]) -> bool:
        """End a job with a result that is known; False if its workflow is busy just now."""
        from jobflow.core.schemas import JobStoreDocument

        job = document["job"]
        output = JobStoreDocument(
            uuid=document["uuid"],
            index=document["index"],
            output=result,
            completed_at=_now().isoformat(),
            metadata={**job["metadata"], "db_id": document["db_id"]},
            hosts=job["hosts"],
            name=job["name"],
        )
        self.job_store.docs_store.update(output.model_dump(), key=["uuid", "index"])
        nothing: dict[str, Any] = dict.fromkeys(("replace", "addition", "detour", "stored_data"))
        nothing |= {"stop_children": False, "stop_jobflow": False}
        return self.check_in(document, response=nothing)

    def _fail(self, document: dict[str, Any], failure: dict[str, Any]) -> bool:
        """Fail a job as the one it waited for has failed; False if its workflow is busy."""
        import json

        said = f"{failure['message']}\n{MARK}{json.dumps(failure, default=str)}"
        return self.check_in(document, response=None, error=said)

    def check_in(
        self, document: dict[str, Any], *, response: dict[str, Any] | None, error: str | None = None
    ) -> bool:
        """Write down the end of a job that did not run to it; False if its workflow is busy."""
        controller = self.controller
        host = document["job"]["hosts"][-1]
        with controller.lock_flow(filter={"jobs": document["uuid"]}) as lock:
            if lock.locked_document is None:
                return False
            times = {name: document.get(name) or _now() for name in ("start_time", "end_time")}
            controller.checkin_job(
                document, lock.locked_document, response=response, error=error, doc_update=times
            )
            controller.update_flow_state(host)
        return True


def key_of(document: dict[str, Any]) -> str:
    """Return the content hash that a label job computes."""
    return document["job"]["metadata"]["label_key"]


def _now() -> Any:
    from datetime import UTC, datetime

    return datetime.now(UTC)
