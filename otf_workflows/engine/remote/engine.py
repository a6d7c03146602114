"""The engine for compute nodes that cannot reach the database: flows run through jobflow-remote.

The runner (:mod:`otf_workflows.engine.remote.runner`) carries inputs and outputs as files; here is
what commands, pages and the loop ask of it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from otf_workflows.connection import connect, job_store, require_persistent, translated
from otf_workflows.engine.base import RELABEL
from otf_workflows.engine.hold import HoldsCampaigns
from otf_workflows.engine.remote.controller import open_controller
from otf_workflows.engine.remote.records import FIELDS, NOT_STARTED, job_record
from otf_workflows.engine.routing import check_stages
from otf_workflows.errors import InputError, NotFoundError, PartialError
from otf_workflows.types import Role

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from jobflow import Flow, JobStore

    from otf_workflows.engine.base import JobRecord
    from otf_workflows.settings import Site

PATIENCE = timedelta(seconds=30)
"""How long a workflow must look half-added before it is removed."""
LOCK_WAIT_S = 60
"""How long to wait for the runner to let go of a workflow (s)."""

_ENDED = {"COMPLETED", "FAILED"}
_FAILED = {"FAILED", "REMOTE_ERROR"}


class JobflowRemoteEngine(HoldsCampaigns):
    """Runs flows through jobflow-remote.

    Parameters
    ----------
    site
        The site; its database holds jobflow-remote's collections, outputs and our own.
    patience_s
        How long to wait for a server that does not answer (s).

    Raises
    ------
    ConfigurationError
        If jobflow-remote is not installed.
    DatabaseError
        If the server does not answer or refuses us.
    """

    not_started = NOT_STARTED
    given_up = "USER_STOPPED"

    def __init__(self, site: Site, *, patience_s: float = 3.0) -> None:
        self.site = site
        self.database = connect(site, patience_s=patience_s)
        self.job_store: JobStore = job_store(site, self.database)
        require_persistent(self.job_store)
        with translated(site):
            self.controller = open_controller(site, self.database, self.job_store)

    def close(self) -> None:
        """Close the connections."""
        self.database.client.close()

    # Submitting and finding

    def submit(self, flow: Flow, *, campaign: str, cycle: int, kind: str) -> list[int | str]:
        """Add a flow; return its id. Jobs are routed when the runner takes them.

        Raises
        ------
        InputError
            If the flow has no jobs, or one of an unknown stage.
        """
        if not flow.jobs:
            raise InputError("The flow has no jobs.", where=flow.name)
        check_stages(flow)
        key = {"campaign": campaign, "cycle": cycle, "kind": kind}
        flow.update_metadata(dict(key), dynamic=True)
        flow.metadata = dict(key)
        with translated(self.site):
            self.lift_cancellation(campaign)
            self.controller.add_flow(flow, worker=str(Role.CONTROL), allow_external_references=True)
            self.apply_hold(campaign)
        return [flow.uuid]

    def find(self, *, campaign: str, cycle: int, kind: str) -> list[int | str]:
        """Return the ids of the workflows submitted under this key, oldest first.

        One that was added only half-way does not count: whoever added it will do it again.
        """
        key = {"campaign": campaign, "cycle": cycle, "kind": kind}
        query = {f"metadata.{name}": value for name, value in key.items()}
        with translated(self.site):
            flows = self.controller.flows.find(query, {"uuid": 1, "ids": 1}).sort("_id", 1)
            return [flow["uuid"] for flow in flows if self._is_whole(flow)]

    # Reading

    def jobs(
        self,
        *,
        campaign: str,
        cycle: int | None = None,
        kind: str | None = None,
        label_keys: Collection[str] | None = None,
    ) -> list[JobRecord]:
        """Return all jobs of a campaign, or of some of its workflows, oldest first."""
        query: dict[str, Any] = {"job.metadata.campaign": campaign}
        if cycle is not None:
            query["job.metadata.cycle"] = cycle
        if kind is not None:
            query["job.metadata.kind"] = kind
        if label_keys is not None:
            query["job.metadata.label_key"] = {"$in": list(label_keys)}
        with translated(self.site):
            found = list(self.controller.jobs.find(query, FIELDS).sort("_id", 1))
        return [job_record(document) for document in found]

    def output(self, uuid: str) -> Any | None:
        """Return the output of a finished job, its large parts loaded, or None."""
        from jobflow import OnMissing, OutputReference

        with translated(self.site):
            return OutputReference(uuid).resolve(self.job_store, on_missing=OnMissing.NONE)

    # Acting

    def rerun(self, engine_ids: Sequence[int | str]) -> None:
        """Run failed jobs again whose dependants have not started.

        Raises
        ------
        NotFoundError
            If an id is unknown; nothing is rerun then.
        PartialError
            If some were refused; the others are running again.
        """
        ids = [str(engine_id) for engine_id in engine_ids]
        with translated(self.site):
            found = self.controller.jobs.find({"db_id": {"$in": ids}}, ["db_id", "state"])
            states = {document["db_id"]: document["state"] for document in found}
            unknown = [db_id for db_id in ids if db_id not in states]
            if unknown:
                raise NotFoundError(f"There is no job {unknown[0]}.", hint="otf status")
            refused = {
                db_id: reason for db_id in ids if (reason := self._rerun_one(db_id, states[db_id]))
            }
        if refused:
            reasons = "; ".join(f"job {db_id} {reason}" for db_id, reason in refused.items())
            raise PartialError(
                f"{len(refused)} of {len(ids)} jobs were not run again: {reasons}.",
                hint="compute such a label in a workflow of its own: otf labels rerun",
            )

    def let_go(self, engine_ids: Sequence[int | str]) -> list[int | str]:
        """Let what waits for these jobs go on without them; return those that had not ended."""
        wanted = {"db_id": {"$in": [str(i) for i in engine_ids]}, "state": {"$nin": list(_ENDED)}}
        with translated(self.site):
            found = list(self.controller.jobs.find(wanted, ["db_id", "uuid"]))
            gone = [job for job in found if self._let_go_one(job["db_id"], job["uuid"])]
        return sorted(job["db_id"] for job in gone)

    def recover(self) -> list[str]:
        """Remove workflows that were added only half-way; return sentences.

        Lost jobs are the runner's business: it alone talks to the machines they run on.
        """
        before = (datetime.now(UTC) - PATIENCE).replace(tzinfo=None)
        sentences = []
        with translated(self.site):
            young = {"created_on": {"$lt": before}, "state": "READY"}
            for flow in self.controller.flows.find(young, {"uuid": 1, "ids": 1, "name": 1}):
                if self._is_whole(flow):
                    continue
                ids = [entry[0] for entry in flow["ids"]]
                self.controller.jobs.delete_many({"db_id": {"$in": ids}})
                self.controller.flows.delete_one({"uuid": flow["uuid"]})
                sentences.append(f"Removed '{flow['name']}', which was added only half-way.")
        return sentences

    # Helpers

    def _is_whole(self, flow: dict[str, Any]) -> bool:
        """Tell whether all jobs of a flow are there; the flow itself is written first."""
        ids = [entry[0] for entry in flow["ids"]]
        return self.controller.jobs.count_documents({"db_id": {"$in": ids}}) == len(ids)

    def _released(self, campaign: str) -> None:
        for flow in self.controller.flows.find({"metadata.campaign": campaign}, {"jobs": 1}):
            self.controller.refresh_children(flow["jobs"])

    def _move(self, campaign: str, states: Sequence[str], to: str) -> int:
        """Move jobs from one of these states to another, at once; return how many were moved."""
        moved = self.controller.jobs.update_many(
            {"job.metadata.campaign": campaign, "state": {"$in": list(states)}},
            {"$set": {"state": to, "updated_on": datetime.now(UTC)}},
        )
        return moved.modified_count

    def _rerun_one(self, db_id: str, state: str) -> str | None:
        """Run one failed job again, or return why not."""
        from jobflow_remote.utils.db import LockedDocumentError

        if state not in _FAILED:
            return f"has not failed (it is {state})"
        try:
            self.controller.rerun_job(db_id=db_id, wait=LOCK_WAIT_S)
        except LockedDocumentError:
            return "is being worked on by the runner; ask again in a minute"
        except ValueError:
            return "failed, but what depends on it has gone on without it"
        self.controller.jobs.update_one({"db_id": db_id}, {"$unset": {"otf_returns": ""}})
        document = self.controller.jobs.find_one({"db_id": db_id}, ["job.metadata"])
        self.apply_hold(document["job"]["metadata"].get("campaign", ""))
        return None

    def _let_go_one(self, db_id: str, uuid: str) -> bool:
        """Cut the links from one job to what waits for it; return whether it had not ended."""
        controller = self.controller
        with controller.lock_flow(
            filter={"jobs": uuid}, sleep=1, max_wait=LOCK_WAIT_S, get_locked_doc=True
        ) as lock:
            flow = lock.locked_document
            job = controller.jobs.find_one({"db_id": db_id}, ["state"])
            if flow is None or job is None or job["state"] in _ENDED:
                return False
            links = {
                f"parents.{child}.{index}": [parent for parent in parents if parent != uuid]
                for child, indexes in flow["parents"].items()
                for index, parents in indexes.items()
                if uuid in parents
            }
            if links:
                lock.update_on_release = {"$set": links}
            controller.jobs.update_many({"parents": uuid}, {"$pull": {"parents": uuid}})
            # Last: whoever dies before this finds it by its old kind, and cuts nothing twice.
            controller.jobs.update_one({"db_id": db_id}, {"$set": {"job.metadata.kind": RELABEL}})
            controller.refresh_children(flow["jobs"])
        return True
