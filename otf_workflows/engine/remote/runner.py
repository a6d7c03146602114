"""The runner: the one process that moves jobs between the database and where they run.

It is jobflow-remote's runner with a few things of ours: jobs are routed by role when they are
taken; no label leaves that is known or on its way; jobs that vanished run again by policy; held
campaigns leave the batch queues; and jobs of this machine end with it.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import jobflow_remote
from jobflow_remote.config.base import LogLevel
from jobflow_remote.jobs.data import get_reset_job_base_dict
from jobflow_remote.jobs.runner import Runner
from jobflow_remote.remote.data import get_local_data_path
from qtoolkit.core.data_objects import QState

from otf_workflows.engine.base import RELABEL
from otf_workflows.engine.hold import HOLDS
from otf_workflows.engine.queues.label_costs import LabelCosts
from otf_workflows.engine.queues.packing import limits_of
from otf_workflows.engine.queues.retries import Grant, decide
from otf_workflows.engine.remote.execute import RESULT, has_ended
from otf_workflows.engine.remote.failures import cause_of_loss
from otf_workflows.engine.remote.labels import LabelGate, Turn, key_of
from otf_workflows.engine.remote.processes import kill_tree, runs_in
from otf_workflows.engine.remote.project import (
    FOLDER_VARIABLE,
    PROJECT_VARIABLE,
    surroundings,
    write_project,
)
from otf_workflows.engine.remote.records import ACTIVE, is_helper, role_in
from otf_workflows.engine.remote.resources import batch_options, grant_of
from otf_workflows.engine.remote.ssh import refuse_unknown_hosts
from otf_workflows.engine.routing import LATE, PRIORITIES
from otf_workflows.store import Store
from otf_workflows.types import FailureCause, Role, Stage

if TYPE_CHECKING:
    import threading

    from otf_workflows.engine.remote.engine import JobflowRemoteEngine
    from otf_workflows.settings import Site

logger = logging.getLogger(__name__)

MOST_RETURNS = {FailureCause.WALLTIME: 50, FailureCause.MEMORY: 0}
"""How often a vanished job runs again; walltime is the normal end of long MD and training, which
go on from their checkpoint."""
USUAL_RETURNS = 3
STALE_LOCK = timedelta(seconds=120)
"""Nobody but this process holds one of jobflow-remote's locks for longer."""

_STATES = ["CHECKED_OUT", "UPLOADED", "RUN_FINISHED", "DOWNLOADED"]
"""States from which a turn moves jobs on."""
_TOO_LITTLE = {FailureCause.WALLTIME, FailureCause.MEMORY}
_QUEUED = {QState.QUEUED, QState.QUEUED_HELD}
_HELD = {"paused": "PAUSED", "cancelled": "USER_STOPPED"}
"""What a person's hold makes of a job that has not started."""
_LIGHT = ["db_id", "uuid", "job.name", "job.metadata", "created_on"]


class SiteRunner(Runner):
    """jobflow-remote's runner for one site.

    Parameters
    ----------
    engine
        The engine; its connections are used.
    """

    def __init__(self, engine: JobflowRemoteEngine) -> None:
        self.engine = engine
        self.site: Site = engine.site
        write_project(self.site)
        if self.site.remote.host is not None:
            refuse_unknown_hosts()
        where = surroundings(self.site)
        # Read from the environment at the first import, which may have been for another site.
        jobflow_remote.SETTINGS.projects_folder = where[FOLDER_VARIABLE]
        # It would silence every logger that is there, ours among them.
        with patch("jobflow_remote.jobs.runner.initialize_runner_logger"):
            super().__init__(project_name=where[PROJECT_VARIABLE], log_level=LogLevel.WARN)
        self.job_controller.close()  # type: ignore[has-type]
        self.job_controller = engine.controller
        self._costs = LabelCosts(Store(engine.database), self.site)
        self.gate = LabelGate(engine.database, engine.controller, engine.job_store)

    def turn(self, stop: threading.Event | None = None) -> None:
        """Move every job on as far as it goes now, and take those that may start.

        Parameters
        ----------
        stop
            Looked at between two steps: whoever sets it need not wait for the others.
        """
        for step in (
            self.free_stale_locks,
            self.gate.renew,
            self.check_run_status,
            self.advance,
            self.settle_errors,
            self.withdraw_held,
            self.checkout,
            self.advance,
        ):
            if stop is not None and stop.is_set():
                return
            try:
                step()
            except Exception:  # the next turn comes soon, and the other steps must not wait
                logger.exception("A step of the runner failed: %s", step.__name__)

    def advance(self) -> None:
        """Upload, submit, download and write down, as far as it goes."""
        self.advance_state(_STATES)

    # Taking jobs

    def checkout(self) -> None:
        """Take jobs that are ready, what others wait for first, as many as their role may run."""
        jobs = self.job_controller.jobs
        held = self.engine.held()
        for campaign in held:
            self.engine.apply_hold(campaign)
        query = {"state": "READY", "job.metadata.campaign": {"$nin": held}}
        free = self._free_places()
        for document in sorted(jobs.find(query, _LIGHT), key=_precedence):
            role = role_in(document)
            if free[role] > 0 and self._may_go(document) and self._take(document["db_id"], role):
                free[role] -= 1

    def _free_places(self) -> Counter[Role]:
        """Return how many more jobs of each role may be on their way."""
        places = Counter({role: self._places(role) for role in Role})
        for document in self.job_controller.jobs.find({"state": {"$in": ACTIVE}}, _LIGHT):
            places[role_in(document)] -= 1
        return places

    def _places(self, role: Role) -> int:
        if role in self.site.queues:
            return self.site.queues[role].max_jobs
        worker = self.site.workers.get(role)
        return worker.count if worker else 0

    def _may_go(self, document: dict[str, Any]) -> bool:
        """Tell whether a job may start; a label whose result is known is ended instead."""
        if not is_label(document):
            return True
        whole = self.job_controller.jobs.find_one({"db_id": document["db_id"]})
        return whole is not None and self.gate.turn(whole) is Turn.GO

    def _take(self, db_id: str, role: Role) -> bool:
        """Send a job to the worker of its role; False if somebody held it in the meantime."""
        jobs = self.job_controller.jobs
        grant, queue = self._grant(db_id, role), self.site.queues.get(role)
        resources = batch_options(queue, grant) if queue and grant else None
        change = {"worker": str(role), "resources": resources}
        change["otf_grant"] = asdict(grant) if grant else None
        jobs.update_one({"db_id": db_id, "state": "READY"}, {"$set": change})
        return self.job_controller.checkout_job({"db_id": db_id}) is not None

    def _grant(self, db_id: str, role: Role) -> Grant | None:
        """Return what the batch job of a label may use; None for what its queue section says."""
        queue = self.site.queues.get(role)
        wanted = ["job.name", "job.metadata", "job.function_kwargs.walltime_s", "otf_needs"]
        document = self.job_controller.jobs.find_one({"db_id": db_id}, wanted) if queue else None
        if queue is None or document is None or not is_label(document):
            return None
        if document.get("otf_needs"):
            return Grant(**document["otf_needs"])
        for label in Store(self.engine.database).labels(keys=[key_of(document)]):
            return grant_of(queue, label, self._costs, limit_s=_limit_s(document))
        return None

    def _more(self, document: dict[str, Any], cause: FailureCause) -> bool:
        """Give a label more time or memory next time, up to what its queue gives; False if not."""
        jobs, queue = self.job_controller.jobs, self.site.queues.get(role_in(document))
        wanted = ["otf_grant", "job.function_kwargs.walltime_s"]
        had = jobs.find_one({"db_id": document["db_id"]}, wanted)
        if queue is None or not had.get("otf_grant") or _limit_s(had):
            return False
        grant = Grant(**had["otf_grant"])
        verdict = decide(cause, earlier=[], had=grant, limits=limits_of(queue))
        if verdict.needs is not None:
            needs = {"otf_needs": asdict(verdict.needs)}
            jobs.update_one({"db_id": document["db_id"]}, {"$set": needs})
        return verdict.again

    def withdraw_held(self) -> None:
        """Take jobs of held campaigns out of the batch queues if they have not started there."""
        jobs = self.job_controller.jobs
        holds = {hold["_id"]: hold["state"] for hold in self.engine.database[HOLDS].find()}
        for role in self.site.queues if holds else ():
            waiting = {"$in": list(holds)}
            query = {"worker": role, "state": "SUBMITTED", "job.metadata.campaign": waiting}
            found = {d["remote"]["process_id"]: d for d in jobs.find(query)}
            queue = self.get_queue_manager(role)
            for listed in queue.get_jobs_list(jobs=list(found)) if found else ():
                document = found.get(listed.job_id)
                if document is None or listed.state not in _QUEUED:
                    continue
                queue.cancel(listed.job_id)
                state = _HELD[holds[document["job"]["metadata"]["campaign"]]]
                update = _back(document, counts=False)
                update["$set"]["state"] = state
                jobs.update_one({"db_id": document["db_id"], "state": "SUBMITTED"}, update)
                if is_label(document):
                    self.gate.settle({**document, "state": state})

    # What became of them

    def complete_job(self, lock: Any) -> None:
        """Write down how a job ended; one that vanished runs again by policy."""
        document = lock.locked_document
        folder = Path(
            get_local_data_path(
                project=self.project,
                worker=document["worker"],
                job_id=document["uuid"],
                index=document["index"],
                run_dir=document["run_dir"],
            )
        )
        if not has_ended(folder):
            words = _text(folder / "queue.err")
            if self._put_back(document, cause_of_loss(words)):
                lock.update_on_release = _back(document)
                return
        super().complete_job(lock)
        if is_label(document):
            self.gate.settle(self.job_controller.jobs.find_one({"db_id": document["db_id"]}))

    def settle_errors(self) -> None:
        """Fail jobs that jobflow-remote has given up, so that what waits for them goes on."""
        jobs = self.job_controller.jobs
        for document in jobs.find({"state": "REMOTE_ERROR", "lock_id": None}):
            error = document["remote"]["error"] or "no message"
            lost = document["previous_state"] == "RUN_FINISHED" and RESULT in error
            if lost and self._put_back(document, FailureCause.KILLED):
                jobs.update_one({"db_id": document["db_id"], "lock_id": None}, _back(document))
                continue
            self.gate.check_in(document, response=None, error=error)
            if is_label(document):
                self.gate.settle(jobs.find_one({"db_id": document["db_id"]}))

    def _put_back(self, document: dict[str, Any], cause: FailureCause) -> bool:
        """Decide whether a job that vanished runs again, and say so in the record."""
        returns = document.get("otf_returns", 0)
        most = MOST_RETURNS.get(cause, USUAL_RETURNS)
        again = returns < most
        if is_label(document) and cause in _TOO_LITTLE:
            # With the same it would begin from its start and end the same way.
            again = self._more(document, cause)
        metadata = document["job"]["metadata"]
        then = "runs again" if again else "is given up"
        sentence = f"Job {document['db_id']} '{document['job']['name']}' vanished ({cause})"
        logger.warning("%s and %s.", sentence, then)
        Store(self.engine.database).event(
            f"job vanished and {then}",
            campaign=metadata.get("campaign"),
            cycle=metadata.get("cycle"),
            label_key=metadata.get("label_key"),
            details={
                "job": document["db_id"],
                "cause": str(cause),
                "directory": document["run_dir"],
            },
        )
        return again

    # Beginning and end

    def free_stale_locks(self, patience: timedelta = STALE_LOCK) -> None:
        """Free documents that were locked by a process that is gone.

        Parameters
        ----------
        patience
            How long a lock must have been held.
        """
        before = (datetime.now(UTC) - patience).replace(tzinfo=None)
        stale = {"lock_id": {"$ne": None}, "lock_time": {"$lt": before}}
        for collection in (self.job_controller.jobs, self.job_controller.flows):
            collection.update_many(stale, {"$set": {"lock_id": None, "lock_time": None}})

    def put_back_local(self, *, all_of_them: bool) -> int:
        """Put jobs of this machine back; return how many.

        Parameters
        ----------
        all_of_them
            End those that still run. Otherwise only those whose process is gone, which
            jobflow-remote would mix up with a new process of the same number.
        """
        local = [str(role) for role in Role if role not in self.site.queues]
        query = {"worker": {"$in": local}, "state": {"$in": ["SUBMITTED", "RUNNING"]}}
        jobs, n_back = self.job_controller.jobs, 0
        for document in jobs.find(query):
            pid, folder = int(document["remote"]["process_id"]), Path(document["run_dir"])
            if has_ended(folder) or (runs_in(pid, folder) and not all_of_them):
                continue
            kill_tree(pid, folder)
            same = {"db_id": document["db_id"], "state": document["state"]}
            n_back += jobs.update_one(same, _back(document, counts=False)).modified_count
        return n_back

    def is_busy(self, role: Role | None = None) -> bool:
        """Tell whether a job (of a role) is on its way or could be taken."""
        query = {"state": {"$in": [*ACTIVE, "READY"]}}
        found = self.job_controller.jobs.find(query, _LIGHT)
        return any(role in {None, role_in(document)} for document in found)

    def close(self) -> None:
        """Close connections to other hosts."""
        for host in {id(host): host for host in self.hosts.values()}.values():
            host.close()
        shutil.rmtree(self.project.tmp_dir, ignore_errors=True)


def is_label(document: dict[str, Any]) -> bool:
    """Tell whether a job computes a label."""
    metadata = document["job"]["metadata"]
    named = metadata.get("label_key") and metadata.get("stage") == str(Stage.LABEL)
    return bool(named) and not is_helper(document)


def _limit_s(document: dict[str, Any]) -> float | None:
    """Return the time limit that a person gave a label (s), if one did."""
    return document["job"].get("function_kwargs", {}).get("walltime_s")


def _precedence(document: dict[str, Any]) -> tuple[int, datetime]:
    """Return what sorts jobs: what others wait for first, then the oldest."""
    late = document["job"]["metadata"].get("kind") == RELABEL
    return -(LATE if late else PRIORITIES[role_in(document)]), document["created_on"]


def _back(document: dict[str, Any], *, counts: bool = True) -> dict[str, Any]:
    """Return the update that makes a job ready again, its old folder to be cleared first."""
    fields = {**get_reset_job_base_dict(), "state": "READY", "remote.prerun_cleanup": True}
    update: dict[str, Any] = {"$set": fields}
    if counts:
        update["$set"]["otf_returns"] = document.get("otf_returns", 0) + 1
    return update


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
