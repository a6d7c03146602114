"""Run a DFT code under custodian: one ladder of retries, one record of every try.

A code describes itself as a :class:`Program`: how to prepare a try, what went wrong with it, and
which numerical settings to change next. This module does the rest: start it on a leash, wait
without polling, let custodian walk up the ladder, and write down every try.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from custodian.custodian import Custodian, CustodianError, ErrorHandler, Job, Validator

from otf_workflows.labelers import leash
from otf_workflows.labelers.outcome import Diagnosis, failed, host_name, last_lines, queue_id
from otf_workflows.schemas import Attempt, now

if TYPE_CHECKING:
    from otf_workflows.labelers.base import Resources
    from otf_workflows.types import FailureCause

MPI_LAUNCHERS = {"mpirun", "mpiexec", "srun", "prun", "orterun", "aprun", "jsrun"}
"""With one of these the cores are for ranks, without they are for threads."""


class Program(Protocol):
    """What supervision needs to know of a code."""

    causes: tuple[FailureCause, ...]
    """Causes that this code has a ladder for."""

    def prepare(self, numerics: dict[str, Any], *, number: int, seconds_left: float) -> list[str]:
        """Write the input of try ``number`` and return the command line."""

    def output_files(self, number: int) -> tuple[Path, Path]:
        """Return the files for standard output and standard error of a try."""

    def diagnose(self, *, number: int, status: int) -> Diagnosis:
        """Say how a finished try ended, from its files and the exit status of the leash."""

    def telling_output(self, number: int) -> str:
        """Return what a try printed, without what tells nothing about a failure."""

    def climb(
        self, cause: FailureCause, numerics: dict[str, Any], *, times: int
    ) -> dict[str, Any] | None:
        """Return all numerical settings of the next try, or None at the end of the ladder.

        ``times`` counts the earlier tries that failed of the same cause.
        """


def supervise(
    program: Program,
    *,
    directory: Path,
    resources: Resources,
    numerics: dict[str, Any],
) -> list[Attempt]:
    """Run a program until it succeeds or its ladder ends.

    Parameters
    ----------
    program
        The code.
    directory
        Folder of inputs and outputs; exists.
    resources
        Cores and walltime; the walltime is for all tries together.
    numerics
        Numerical settings of the first try.

    Returns
    -------
    list of Attempt
        All tries; the last one succeeded.

    Raises
    ------
    LabelFailed
        With the cause of the last try.
    """
    job = SupervisedJob(program, directory=directory, resources=resources, numerics=numerics)
    custodian = Custodian(
        handlers=[LadderHandler(job, cause) for cause in program.causes],
        jobs=[job],
        validators=[SuccessValidator(job)],
        max_errors=100,
        directory=str(directory),
        terminate_on_nonzero_returncode=False,
    )
    try:
        custodian.run()
    except CustodianError:
        ending = job.diagnose()
    except BaseException:
        job.terminate()
        raise
    else:
        ending = job.diagnose()
    if ending.cause is None:
        return job.attempts
    tries = len(job.attempts)
    raise failed(
        f"{ending.message} (after {tries} {'try' if tries == 1 else 'tries'})",
        cause=ending.cause,
        attempts=job.attempts,
        directory=directory,
        hint=ending.hint,
    )


class SupervisedJob(Job):
    """One label as custodian's job: started on a leash, each try diagnosed and recorded once."""

    def __init__(
        self, program: Program, *, directory: Path, resources: Resources, numerics: dict[str, Any]
    ) -> None:
        self.program = program
        self.directory = directory
        self.resources = resources
        self.numerics = dict(numerics)
        self.attempts: list[Attempt] = []
        self.diagnoses: list[Diagnosis] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._clock = time.monotonic
        self._begun = self._clock()
        self._try_begun = self._begun

    def as_dict(self) -> dict[str, Any]:
        """Return what custodian writes into its log."""
        return {"job": type(self.program).__name__, "numerics": self.numerics}

    def setup(self, directory: str = "./") -> None:
        """Do nothing; every try prepares itself."""

    def postprocess(self, directory: str = "./") -> None:
        """Do nothing; the labeler reads the output."""

    def run(self, directory: str = "./") -> subprocess.Popen[bytes]:  # noqa: ARG002
        """Start the next try."""
        self._try_begun = self._clock()
        number = len(self.attempts) + 1
        limit_s = self.resources.walltime_s
        left_s = max(limit_s - (self._try_begun - self._begun), 1.0) if limit_s else 0.0
        command = self.program.prepare(
            self.numerics, number=number, seconds_left=left_s or float("inf")
        )
        self.attempts.append(
            Attempt(
                number=number,
                command=" ".join(command),
                host=host_name(),
                queue_id=queue_id(),
                directory=str(self.directory),
                started=now(),
                cores=self.resources.cores,
                changes=dict(self.numerics),
            )
        )
        out, err = self.program.output_files(number)
        with out.open("wb") as stdout, err.open("wb") as stderr:
            self._process = subprocess.Popen(
                # -I and -S: the leash needs no packages, and must not import this one.
                [
                    sys.executable,
                    "-I",
                    "-S",
                    leash.__file__,
                    str(os.getpid()),
                    str(left_s),
                    *command,
                ],
                cwd=self.directory,
                env=_environment(command, self.resources.cores),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )
        return self._process

    def terminate(self, directory: str = "./") -> None:  # noqa: ARG002
        """End the running try with all its processes, and nobody else's."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(4 * leash.GRACE_S)
        if self._process.poll() is None:
            self._process.kill()

    def diagnose(self) -> Diagnosis:
        """Return how the latest try ended; the first call records it."""
        if len(self.diagnoses) < len(self.attempts):
            number = len(self.attempts)
            status = self._process.returncode if self._process else leash.NOT_STARTED
            # A negative status is the leash's own death by a signal.
            ending = self.program.diagnose(number=number, status=abs(status) + 128 * (status < 0))
            self.attempts[-1] = self.attempts[-1].model_copy(
                update={
                    "seconds": round(self._clock() - self._try_begun, 3),
                    "cause": ending.cause,
                    "message": ending.message,
                    "last_lines": last_lines(self.program.telling_output(number))
                    if ending.cause
                    else [],
                }
            )
            self.diagnoses.append(ending)
        return self.diagnoses[-1]

    def climb(self, cause: FailureCause) -> dict[str, Any] | None:
        """Take the next rung for a cause; None if there is none left."""
        times = sum(attempt.cause == cause for attempt in self.attempts[:-1])
        numerics = self.program.climb(cause, self.numerics, times=times)
        if numerics is not None:
            self.numerics = numerics
        return numerics


class LadderHandler(ErrorHandler):
    """Retries one cause of failure with other numerical settings."""

    def __init__(self, job: SupervisedJob, cause: FailureCause) -> None:
        self.job = job
        self.cause = cause

    def as_dict(self) -> dict[str, Any]:
        """Return what custodian writes into its log."""
        return {"handler": type(self).__name__, "cause": str(self.cause)}

    def check(self, directory: str = "./") -> bool:  # noqa: ARG002
        """Return whether the latest try failed of this cause."""
        return self.job.diagnose().cause == self.cause

    def correct(self, directory: str = "./") -> dict[str, Any]:  # noqa: ARG002
        """Take the next rung of the ladder."""
        message = self.job.diagnose().message
        numerics = self.job.climb(self.cause)
        return {
            "errors": [message],
            "actions": None if numerics is None else [{"numerics": numerics}],
        }


class SuccessValidator(Validator):
    """Stops at any failure that no ladder has claimed."""

    def __init__(self, job: SupervisedJob) -> None:
        self.job = job

    def as_dict(self) -> dict[str, Any]:
        """Return what custodian writes into its log."""
        return {"validator": type(self).__name__}

    def check(self, directory: str = "./") -> bool:  # noqa: ARG002
        """Return whether the latest try is bad (custodian's sense of True)."""
        return self.job.diagnose().cause is not None


def _environment(command: list[str], cores: int) -> dict[str, str]:
    """Return our environment with one thread per core that is not taken by an MPI rank."""
    threads = 1 if Path(command[0]).name in MPI_LAUNCHERS else cores
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads))}
