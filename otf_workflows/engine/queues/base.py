"""What is said about batch jobs, whichever batch system says it, and how one is asked.

Programs are called with argument lists and time limits, never through a shell, and never twice.
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from otf_workflows.errors import OtfError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from otf_workflows.types import FailureCause

JOB_PREFIX = "otf-"
"""What the name of every batch job of ours begins with."""
ASK_S = 10.0
"""How long a question may take (s): a busy controller answers late, a dead one never."""
SUBMIT_S = 30.0
"""How long a submission may take (s); afterwards it may or may not have happened."""
TAIL_BYTES = 20_000
"""How much of a job's error file is read for the reason of its end."""


class QueueJobState(StrEnum):
    """Where a batch job stands."""

    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True)
class QueueJob:
    """A batch job that the queue still knows.

    Attributes
    ----------
    job_id
        Its id in the queue.
    name
        Its name, which begins with :data:`JOB_PREFIX`.
    state
        Where it stands; one that ended a moment ago may be listed still.
    reason
        Why it waits (``Resources``, ``Priority`` …), or the batch system's own word for its state.
    node
        First node it runs or ran on.
    """

    job_id: str
    name: str
    state: QueueJobState
    reason: str
    node: str | None


@dataclass(frozen=True)
class Fate:
    """How a batch job ended.

    Attributes
    ----------
    cause
        Why it failed; None if it ended well.
    sentence
        What the batch system says, for people.
    state
        Its own word: ``COMPLETED``, ``TIMEOUT``, ``NODE_FAIL`` …
    exit_code
        Exit code as it writes it, if it tells one.
    """

    cause: FailureCause | None
    sentence: str
    state: str
    exit_code: str | None


class QueueUnavailable(OtfError, ConnectionError):  # noqa: N818 - says what is, as its subclass does
    """The batch system does not answer, or did not in time: try again later."""

    exit_code = 5


class QueueRefused(QueueUnavailable):
    """The batch system answered that it does not take this job: nothing was submitted."""


class BatchSystem(Protocol):
    """One kind of batch system."""

    def submit(self, script: Path, *, name: str) -> str:
        """Submit a script under a name and return the job's id."""

    def check(self, script: Path) -> str:
        """Return what the queue would do with a script, which is not submitted."""

    def longest_s(self, partition: str | None) -> float | None:
        """Return the longest walltime of a partition (s); None if it has none or does not tell."""

    def jobs(self) -> list[QueueJob]:
        """Return this user's jobs."""

    def fates(self, job_ids: Sequence[str]) -> dict[str, Fate]:
        """Return how jobs ended, as far as it is known."""

    def cancel(self, job_ids: Sequence[str]) -> None:
        """End jobs; those that are gone already are none of its business."""


def ask(
    command: Sequence[str], *, timeout_s: float = ASK_S, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program of the batch system.

    Parameters
    ----------
    command
        Program and arguments.
    timeout_s
        Give up after so long (s).
    folder
        Where to run it.

    Raises
    ------
    QueueUnavailable
        If the program is not there, or does not end in time. What it answers is not judged.
    """
    try:
        return subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout_s,
            # Its words are read by program: English, and one form of times.
            env={**os.environ, "LC_ALL": "C", "SLURM_TIME_FORMAT": "standard"},
        )
    except FileNotFoundError as error:
        raise QueueUnavailable(
            f"The program {command[0]} is not on the PATH.",
            where=command[0],
            hint="work on a login node of the cluster, or load its module",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise QueueUnavailable(
            f"{command[0]} did not answer within {timeout_s:.0f} s.", where=" ".join(command)
        ) from error
    except OSError as error:
        raise QueueUnavailable(
            f"{command[0]} cannot be run: {error.strerror}.", where=" ".join(command)
        ) from error


def user_name() -> str:
    """Return who we are, whatever the environment says."""
    return pwd.getpwuid(os.getuid()).pw_name


def last_words(text: str) -> str:
    """Return the last line of what a program printed, without 'sbatch: error:' before it."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    said = lines[-1] if lines else "no message"
    return re.sub(r"^(?:\w+: )?(?:error|fatal): ", "", said, flags=re.IGNORECASE)


def tail(file: str | None) -> str:
    """Return the end of a job's error file; nothing if it cannot be read from here."""
    if not file:
        return ""
    try:
        with Path(file).open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - TAIL_BYTES))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""


def seconds(duration: str | None) -> float | None:
    """Return seconds for ``[days-][[hours:]minutes:]seconds``; None for anything else."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(?:(\d+):)?(\d+)(?:\.\d+)?", duration or "")
    if found is None:
        return None
    days, first, second, last = found.groups()
    hours, minutes = (first, second) if second else (None, first)
    return (
        86400.0 * int(days or 0) + 3600.0 * int(hours or 0) + 60.0 * int(minutes or 0) + int(last)
    )


def sentence(who: str, state: str, record: Mapping[str, str | float | None]) -> str:
    """Return ``Slurm says TIMEOUT on cpu1 after 61 s``.

    Parameters
    ----------
    who
        Name of the batch system.
    state
        Its word for how the job ended.
    record
        ``node``, ``elapsed_s`` and ``remark``, each if known.
    """
    text = f"{who} says {state}"
    if record.get("node"):
        text += f" on {record['node']}"
    if record.get("elapsed_s") is not None:
        text += f" after {record['elapsed_s']:.0f} s"
    if record.get("remark"):
        text += f": {record['remark']}"
    return text
