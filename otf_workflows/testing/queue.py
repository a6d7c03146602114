"""A batch system in memory, for tests of what looks after one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otf_workflows.engine.queues.system import Fate, QueueJob, QueueJobState, QueueUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from otf_workflows.types import FailureCause


class FakeQueue:
    """Plays the part of :class:`~otf_workflows.engine.queues.system.QueueSystem`.

    Attributes
    ----------
    listed
        Jobs in the queue, by id; a test moves them along.
    known
        How jobs ended, by id.
    trouble
        Operations (``submit``, ``jobs``, ``fates``) that fail for now.
    lost_answers
        How many submissions are to be accepted without their answer arriving.
    """

    def __init__(self) -> None:
        self.listed: dict[str, QueueJob] = {}
        self.known: dict[str, Fate] = {}
        self.trouble: set[str] = set()
        self.lost_answers = 0
        self.cancelled: list[str] = []
        self.asked: list[dict[str, object]] = []
        self._next = 1

    def script(self, **asked: object) -> str:
        """Return the script; what was asked for is kept."""
        self.asked.append(asked)
        return f"#!/bin/sh\n# {asked['name']}\n"

    def submit(self, script: Path, *, name: str) -> str:
        """Take a job into the queue."""
        self._check("submit")
        if not script.exists():
            raise AssertionError(script)
        job_id = str(self._next)
        self._next += 1
        self.listed[job_id] = QueueJob(job_id, name, QueueJobState.PENDING, "Resources", None)
        if self.lost_answers:
            self.lost_answers -= 1
            raise QueueUnavailable("sbatch did not answer within 30 s.")
        return job_id

    def jobs(self) -> list[QueueJob]:
        """Return what is in the queue."""
        self._check("jobs")
        return list(self.listed.values())

    def fates(self, job_ids: Sequence[str]) -> dict[str, Fate]:
        """Return how jobs ended."""
        self._check("fates")
        return {job_id: self.known[job_id] for job_id in job_ids if job_id in self.known}

    def cancel(self, job_ids: Sequence[str]) -> None:
        """Cancel jobs."""
        self.cancelled += job_ids
        for job_id in job_ids:
            self.listed.pop(job_id, None)

    def start(self, job_id: str, node: str = "cpu1") -> None:
        """Let a job begin."""
        name = self.listed[job_id].name
        self.listed[job_id] = QueueJob(job_id, name, QueueJobState.RUNNING, "", node)

    def end(self, job_id: str, cause: FailureCause | None, sentence: str = "COMPLETED") -> None:
        """Let a job end."""
        del self.listed[job_id]
        self.known[job_id] = Fate(cause, sentence, sentence.split(maxsplit=1)[0], None)

    def _check(self, operation: str) -> None:
        if operation in self.trouble:
            raise QueueUnavailable(f"{operation} failed.")
