"""What became of our batch jobs: the batch system's list, our book and the launch pad compared."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from otf_workflows.engine.identity import WorkerName, kill_programs_of
from otf_workflows.engine.queues.jobs import BatchState, token_in
from otf_workflows.engine.queues.packing import limits_of
from otf_workflows.engine.queues.system import QueueJobState
from otf_workflows.engine.recovery import put_back
from otf_workflows.schemas import now
from otf_workflows.types import FailureCause

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from otf_workflows.engine.fireworks_engine import FireWorksEngine
    from otf_workflows.engine.queues.incidents import Incidents
    from otf_workflows.engine.queues.jobs import BatchJob, QueueJobs
    from otf_workflows.engine.queues.system import Fate, QueueJob, QueueSystem
    from otf_workflows.types import Role

GRACE = timedelta(seconds=60)
"""A submission that was never answered may still arrive for so long."""
MISSING = timedelta(seconds=15)
"""A job that nobody knows any more is given up after so long."""
TAKEN_BACK = {"PREEMPTED", "REVOKED"}
"""Not a person's wish: such a job runs again."""


class Judge:
    """Finds out what became of batch jobs, and of the jobs that they ran.

    Parameters
    ----------
    home
        Whose batch jobs.
    engine
        FireWorks.
    jobs
        Our book.
    incidents
        Writes down what was lost, and decides what follows.
    """

    def __init__(
        self, home: str, engine: FireWorksEngine, *, jobs: QueueJobs, incidents: Incidents
    ) -> None:
        self._home = home
        self._engine = engine
        self._pad = engine.launchpad
        self._jobs = jobs
        self._incidents = incidents

    def judge(self, role: Role, system: QueueSystem, listed: Sequence[QueueJob]) -> list[str]:
        """Bring the book of a role up to date; return what happened, in sentences.

        Parameters
        ----------
        role
            The role.
        system
            Its batch system.
        listed
            All our jobs that it lists.

        Raises
        ------
        QueueUnavailable
            If the batch system does not say how jobs ended; nothing is judged then.
        """
        seen = {token: job for job in listed if (token := token_in(job.name))}
        sentences, gone = [], []
        for batch in self._jobs.open(self._home, role):
            job = seen.pop(batch.token, None)
            if job is not None and job.state is not QueueJobState.ENDED:
                sentences += self._present(batch, job)
                if batch.withdrawn:
                    system.cancel([job.job_id])
            elif batch.job_id or job is not None:
                gone.append(
                    batch.model_copy(update={"job_id": job.job_id if job else batch.job_id})
                )
            else:
                sentences += self._never_seen(batch)
        ids = [batch.job_id for batch in gone if batch.job_id]
        fates = system.fates(ids) if ids else {}
        for batch in gone:
            sentences += self._gone(batch, fates.get(batch.job_id or ""))
        return sentences + self._cancel_strays(role, system, seen)

    def release_stale_reservations(self) -> list[str]:
        """Put jobs back that are reserved for a batch job that is over, or was never written."""
        query = {"state": "RESERVED", "fworker.name": {"$regex": "^otf-"}}
        sentences = []
        for launch in self._pad.launches.find(query, {"fw_id": 1, "launch_id": 1, "fworker": 1}):
            batch = self._jobs.get(token_in(launch["fworker"]["name"]) or "")
            if batch is not None and (
                batch.state is not BatchState.ENDED or batch.home != self._home
            ):
                continue
            if put_back(self._pad, launch["fw_id"], launch["launch_id"]):
                sentences.append(f"Job {launch['fw_id']} was reserved for nobody and is ready.")
        return sentences

    # One batch job

    def _present(self, batch: BatchJob, job: QueueJob) -> list[str]:
        """Note how a job in the list stands."""
        sentences = []
        if batch.job_id is None:
            self._jobs.submitted(batch.token, job.job_id)
            sentences.append(f"Batch job {job.job_id} ({batch.name}) was found in the queue.")
        if job.state is QueueJobState.PENDING:
            if batch.workers:
                # The batch system began it anew by itself, against our wish.
                sentences += self._lose_all(
                    batch, FailureCause.NODE, f"batch job {job.job_id} was put back into the queue"
                )[1]
                self._jobs.change(batch.token, workers=[])
            changes: dict[str, Any] = {"state": BatchState.QUEUED, "reason": job.reason}
        else:
            changes = {"state": BatchState.RUNNING, "node": job.node or batch.node, "reason": ""}
        changes["missing_since"] = None
        if any(getattr(batch, name) != value for name, value in changes.items()):
            self._jobs.change(batch.token, **changes)
        return sentences

    def _never_seen(self, batch: BatchJob) -> list[str]:
        """Give up a submission of which nothing was heard."""
        if now() - batch.created < GRACE:
            return []
        self._jobs.end(batch.token, cause=None, sentence="never seen in the queue")
        self._release(batch)
        return [f"The submission of {batch.name} never reached the queue."]

    def _gone(self, batch: BatchJob, fate: Fate | None) -> list[str]:
        """Write down how a batch job ended, and what that means for its jobs."""
        if fate is None:
            if not _is_past(batch.missing_since, MISSING):
                self._jobs.change(batch.token, missing_since=batch.missing_since or now())
                return []
            sentence = f"the batch system knows nothing of batch job {batch.job_id}"
            cause = FailureCause.NODE if batch.said == "" else None
        else:
            cause, sentence = _blame(fate), f"batch job {batch.job_id}: {fate.sentence}"
        settled, sentences = self._lose_all(batch, cause, sentence)
        if not settled:
            return sentences
        if batch.withdrawn:
            cause, sentence = None, batch.withdrawn
        self._jobs.change(batch.token, job_id=batch.job_id)
        self._jobs.end(batch.token, cause=cause, sentence=sentence)
        if cause is not None and not sentences:
            sentences.append(f"{sentence[0].upper()}{sentence[1:]}; no job was lost with it.")
        return sentences

    def _lose_all(
        self, batch: BatchJob, cause: FailureCause | None, sentence: str
    ) -> tuple[bool, list[str]]:
        """Deal with every job that a batch job had begun or was to begin.

        Returns
        -------
        settled
            Whether all is written down; else it is tried again at the next look.
        sentences
            What was done.
        """
        settled, sentences = True, []
        begun = [item for worker in batch.workers for item in self._incidents.running(worker)]
        for launch in begun + self._incidents.reserved(batch):
            if batch.withdrawn or (cause is None and launch not in begun):
                settled &= self._incidents.release(launch)
                continue
            limits = limits_of(self._engine.site.queues[batch.role])
            said = self._incidents.lose(
                launch,
                batch=batch,
                cause=cause or FailureCause.UNKNOWN,
                sentence=sentence,
                limits=limits,
            )
            settled &= said is not None
            sentences += [said] if said else []
        for worker in batch.workers:
            name = WorkerName.parse(worker)
            if name is not None and name.host == socket.gethostname():
                kill_programs_of(worker)
        return settled, sentences

    def _release(self, batch: BatchJob) -> None:
        for launch in self._incidents.reserved(batch):
            self._incidents.release(launch)

    def _cancel_strays(
        self, role: Role, system: QueueSystem, seen: dict[str, QueueJob]
    ) -> list[str]:
        """Cancel what arrived in the queue after it had been given up."""
        ours = [b for b in self._jobs.ended(list(seen)) if b.home == self._home and b.role is role]
        living = [
            seen[batch.token].job_id
            for batch in ours
            if seen[batch.token].state is not QueueJobState.ENDED
        ]
        if not living:
            return []
        system.cancel(living)
        return [f"Batch jobs {', '.join(living)} had been given up and are cancelled."]


def _blame(fate: Fate) -> FailureCause | None:
    """Return the cause of an end, as far as what follows depends on it."""
    if fate.state in TAKEN_BACK:
        return FailureCause.NODE
    if fate.cause is FailureCause.KILLED and fate.state == "FAILED":
        return FailureCause.UNKNOWN  # ended by a signal that the batch system did not send
    return fate.cause


def _is_past(moment: datetime | None, patience: timedelta) -> bool:
    return moment is not None and now() - moment > patience
