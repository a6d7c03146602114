"""What a worker inside a batch job has to observe: a token, an end, a warning before it.

The worker is not the judge of its own death. When it is told to end it leaves its job as it is,
and the launcher, who can ask the batch system for the reason, decides what follows. Only when the
warning before the end of the walltime comes is there time to put the job back in good order.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from otf_workflows.engine.queues.packing import WARNING_S
from otf_workflows.labelers.outcome import queue_id
from otf_workflows.types import FailureCause, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from otf_workflows.engine.fireworks_engine import FireWorksEngine
    from otf_workflows.engine.queues.retries import Limits

logger = logging.getLogger("otf_workflows.engine.queues.batch")

WARNING_SIGNAL = signal.SIGUSR1
RESERVE_S = 20.0
"""Put back so long before the end at the latest (s)."""
WRITE_S = 3.0
"""A job that ended just now is given so long to be written down (s)."""
SIGNAL_S = 5.0
"""A DFT code that was killed may have heard of the end of the batch job before we did (s)."""
LOOK_S = 0.5
WORKER_COMMAND = [sys.executable, "-m", "otf_workflows.engine.worker"]
END_VARIABLE = "SLURM_JOB_END_TIME"
"""Set by Slurm 23.02 and later; seconds since 1970."""


def warning_s(walltime_s: float) -> float:
    """Return how long before its end a batch job is warned (s): a quarter of a short one."""
    return min(WARNING_S, walltime_s / 4)


class Batch:
    """The batch job that this worker runs in.

    Parameters
    ----------
    engine
        Where jobs are.
    token
        Key of the batch job.
    worker
        Name of the worker.
    role
        Of the worker.
    walltime_s
        Time that the batch job was given (s).
    limits
        The most that its queue gives.
    """

    def __init__(
        self,
        engine: FireWorksEngine,
        *,
        token: str,
        worker: str,
        role: Role,
        walltime_s: float,
        limits: Limits,
    ) -> None:
        from otf_workflows.engine.queues.incidents import Incidents
        from otf_workflows.engine.queues.jobs import QueueJobs
        from otf_workflows.engine.queues.label_costs import LabelCosts
        from otf_workflows.store import Store

        self.token = token
        self.worker = worker
        self.role = role
        self.limits = limits
        self.warning_s = warning_s(walltime_s)
        self.until = _end(walltime_s)
        self.warned = threading.Event()
        self.ending = threading.Event()
        self._costs = LabelCosts(Store(engine.database), engine.site)
        self._engine = engine
        self._jobs = QueueJobs(engine.database)
        self._incidents = Incidents(
            engine.launchpad, engine.database, state_dir=engine.site.resolved_state_dir
        )
        self._fence()

    def begin(self) -> bool:
        """Say that we are here; False if the batch job was given up before it started."""
        return self._jobs.begin(
            self.token, worker=self.worker, job_id=queue_id(), node=socket.gethostname()
        )

    def leave(self, said: str, jobs_run: int) -> None:
        """Say why we end."""
        self._jobs.leave(self.token, said=said, jobs_run=jobs_run)

    def listen(self) -> None:
        """Take the warning signal of the batch system."""
        signal.signal(WARNING_SIGNAL, lambda *_: self.warned.set())

    @property
    def closing(self) -> bool:
        """Whether the end is near: the warning has come, or should have."""
        return self.warned.is_set() or self.left_s <= 0

    @property
    def left_s(self) -> float:
        """Time until the warning comes (s)."""
        return self.until - self.warning_s - time.time()

    def has_time(self) -> bool:
        """Tell whether one more job of the usual length would end before the warning."""
        if self.closing:
            return False
        return self.role is not Role.DFT or self.left_s > self._costs.longest_s()

    def foreign(self) -> dict[str, Any]:
        """Return the query that keeps jobs away that need more than a pilot has."""
        special = self._incidents.special()
        return {"fw_id": {"$nin": special}} if special else {}

    def put_back_in_time(self, at_rest: threading.Event) -> None:
        """After the warning: wait for the end of the job or its next checkpoint, then put it back.

        Parameters
        ----------
        at_rest
            Set while no job runs.
        """
        deadline = min(self.until, time.time() + self.warning_s) - RESERVE_S
        launches = self._incidents.running(self.worker)
        before = {item["fw_id"]: self._incidents.checkpointed(item["fw_id"]) for item in launches}
        while time.time() < deadline and not at_rest.is_set():
            if any(self._saved_since(fw_id, then) for fw_id, then in before.items()):
                break
            time.sleep(LOOK_S)
        if at_rest.is_set():
            return
        self.ending.set()
        batch = self._jobs.get(self.token)
        for launch in self._incidents.running(self.worker):
            if batch is None:
                return
            goes_on = self.role is not Role.DFT
            sentence = (
                self._incidents.hand_over(launch, batch=batch)
                if goes_on
                else self._incidents.lose(
                    launch,
                    batch=batch,
                    cause=FailureCause.WALLTIME,
                    sentence=f"not finished when the {batch.walltime_s:.0f} s of batch job "
                    f"{batch.job_id} were over",
                    limits=self.limits,
                )
            )
            if sentence:
                logger.warning(sentence)

    def wait_for_writing(self, at_rest: threading.Event) -> None:
        """Let a job be written down that has just ended; the batch system is about to kill us."""
        at_rest.wait(WRITE_S)

    def _saved_since(self, fw_id: int, then: datetime | None) -> bool:
        return then is not None and (self._incidents.checkpointed(fw_id) or then) > then

    def _fence(self) -> None:
        """Let no failure be written down that is only the end, or the size, of the batch job.

        The signal that ends us ends the DFT code as well; its labeler would report a failure of
        the label before this process is gone. And where only the DFT code was killed for its
        memory, the label runs again with more.
        """
        pad = self._engine.launchpad
        write: Callable[..., Any] = pad.complete_launch

        def complete(launch_id: int, action: Any = None, state: str = "COMPLETED") -> Any:
            if state == "FIZZLED" and _cause(action) == FailureCause.KILLED:
                self.ending.wait(SIGNAL_S)  # the same signal may be on its way to us
            if state == "FIZZLED" and self.ending.is_set():
                threading.Event().wait()  # the process ends in a moment
            if state == "FIZZLED" and self._repeats(launch_id, action):
                return {}
            return write(launch_id, action, state)

        pad.complete_launch = complete

    def _repeats(self, launch_id: int, action: Any) -> bool:
        """Run a job again that failed for want of memory, if the queue has more of it."""
        batch = self._jobs.get(self.token)
        if _cause(action) != FailureCause.MEMORY or batch is None:
            return False
        launches = self._incidents.running(self.worker)
        launch = next((item for item in launches if item["launch_id"] == launch_id), None)
        if launch is None:
            return False
        sentence = self._incidents.repeat(
            launch,
            batch=batch,
            cause=FailureCause.MEMORY,
            sentence=str(_details(action).get("message")),
            limits=self.limits,
        )
        if sentence:
            logger.warning(sentence)
        return sentence is not None


def _details(action: Any) -> dict[str, Any]:
    """Return what the error of a failed job says of itself."""
    stored = (action.stored_data if action else None) or {}
    return (stored.get("_exception") or {}).get("_details") or {}


def _cause(action: Any) -> str | None:
    return _details(action).get("cause")


def _end(walltime_s: float) -> float:
    """Return when this batch job ends (seconds since 1970)."""
    import psutil

    told = os.environ.get(END_VARIABLE, "")
    return float(told) if told.isdigit() else psutil.Process().create_time() + walltime_s


def run_side_by_side(arguments: Sequence[str], n: int) -> int:
    """Run ``n`` workers in this batch job and pass the batch system's signals on to them.

    Parameters
    ----------
    arguments
        Command line of one worker.
    n
        How many.

    Returns
    -------
    int
        The largest exit code.
    """
    command = [*WORKER_COMMAND, *arguments, "--parent", str(os.getpid())]
    children = [subprocess.Popen(command) for _ in range(n)]

    def pass_on(number: int, _frame: object) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    for number in (WARNING_SIGNAL, signal.SIGTERM):
        signal.signal(number, pass_on)
    return max(child.wait() for child in children)
