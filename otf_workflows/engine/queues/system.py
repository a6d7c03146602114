"""The batch system of one queue section: scripts, jobs, and how jobs ended.

It knows nothing about campaigns, remembers nothing, and never tries anything twice: whoever calls
it decides what follows (:class:`QueueUnavailable` means later, :class:`QueueRefused` never so).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from otf_workflows.engine.queues.base import (
    JOB_PREFIX,
    BatchSystem,
    Fate,
    QueueJob,
    QueueJobState,
    QueueRefused,
    QueueUnavailable,
)
from otf_workflows.engine.queues.pbs import Pbs
from otf_workflows.engine.queues.script import WARNING_S, WARNING_SIGNAL, render
from otf_workflows.engine.queues.sge import Sge
from otf_workflows.engine.queues.slurm import Slurm
from otf_workflows.types import QueueKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from otf_workflows.settings import Queue

__all__ = [
    "JOB_PREFIX",
    "WARNING_S",
    "WARNING_SIGNAL",
    "Fate",
    "QueueJob",
    "QueueJobState",
    "QueueRefused",
    "QueueSystem",
    "QueueUnavailable",
]

_SYSTEMS: dict[QueueKind, type[BatchSystem]] = {
    QueueKind.SLURM: Slurm,
    QueueKind.PBS: Pbs,
    QueueKind.SGE: Sge,
}


class QueueSystem:
    """The batch system that one queue section of the site file speaks of.

    Parameters
    ----------
    queue
        The section.
    """

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self._system = _SYSTEMS[queue.kind]()

    def script(
        self,
        *,
        name: str,
        folder: Path,
        command: Sequence[str],
        environment: Mapping[str, str],
        walltime_s: float | None = None,
        memory_MiB: int | None = None,
    ) -> str:
        """Return the script of one batch job; what it prints goes to files beside the script.

        Jobs of ten minutes and more on Slurm get ``WARNING_SIGNAL`` (SIGUSR1) ``WARNING_S``
        seconds before their time is up, or up to a minute earlier. PBS and SGE have no such
        warning that would spare the ranks of a DFT code: there a worker watches its own clock.

        Parameters
        ----------
        name
            Name of the job, beginning with ``JOB_PREFIX``.
        folder
            Where the command runs.
        command
            Program and arguments; it takes the place of the shell.
        environment
            Variables for the command.
        walltime_s
            Time of this job (s); the queue's if none.
        memory_MiB
            Memory per node of this job (MiB); the queue's if none.

        Raises
        ------
        ConfigurationError
            If the batch system wants to know something that the site file does not say.
        """
        return render(
            self.queue,
            name=name,
            folder=folder,
            command=command,
            walltime_s=walltime_s,
            memory_MiB=memory_MiB,
            environment=environment,
        )

    def submit(self, script: Path, *, name: str) -> str:
        """Submit a script and return the queue's id of the job.

        Parameters
        ----------
        script
            File with the script.
        name
            Name of the job, by which it can be found again if the id gets lost.

        Raises
        ------
        QueueRefused
            If the job is not taken: nothing was submitted.
        QueueUnavailable
            If there was no (clear) answer: look for the job by its name before another try.
        """
        return self._system.submit(script, name=name)

    def check(self, script: Path) -> str:
        """Return what the queue would do with a script, in its own words; submits nothing.

        Raises
        ------
        QueueRefused
            If it would not take the job.
        QueueUnavailable
            If it does not answer.
        """
        return self._system.check(script)

    def longest_s(self) -> float | None:
        """Return the longest walltime that the queue gives (s); None if it does not tell.

        Raises
        ------
        QueueRefused
            If there is no such partition.
        QueueUnavailable
            If the batch system does not answer.
        """
        return self._system.longest_s(self.queue.partition)

    def jobs(self) -> list[QueueJob]:
        """Return all jobs of ours that the queue knows, of every role and site of this user.

        Slurm lists those that ended within the last minutes as well.

        Raises
        ------
        QueueUnavailable
            If the batch system does not answer.
        """
        return [job for job in self._system.jobs() if job.name.startswith(JOB_PREFIX)]

    def fates(self, job_ids: Sequence[str]) -> dict[str, Fate]:
        """Return how jobs ended.

        Parameters
        ----------
        job_ids
            Ids of jobs.

        Returns
        -------
        dict
            Job id → fate. A job that has not ended, or that nobody remembers, is left out.

        Raises
        ------
        QueueUnavailable
            If the batch system does not answer.
        """
        return self._system.fates(job_ids)

    def cancel(self, job_ids: Sequence[str]) -> None:
        """End jobs, waiting or running; those that are gone already are passed over.

        Raises
        ------
        QueueUnavailable
            If the batch system does not answer.
        """
        self._system.cancel(job_ids)
