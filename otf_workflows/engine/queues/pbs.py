"""PBS Professional, OpenPBS and Torque: what their programs are asked, and what answers mean.

Formats and codes are those of qstat(1B) and of the exit status tables of OpenPBS ("job.h",
``JOB_EXEC_…``) and of Torque's administrator guide (section 2.7). Tested on recorded output only.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING

from otf_workflows.engine.queues.base import (
    SUBMIT_S,
    Fate,
    QueueJob,
    QueueJobState,
    QueueRefused,
    QueueUnavailable,
    ask,
    last_words,
    seconds,
    sentence,
    tail,
    user_name,
)
from otf_workflows.types import FailureCause

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_STATES = {
    **dict.fromkeys("QHWT", QueueJobState.PENDING),
    **dict.fromkeys("RESUB", QueueJobState.RUNNING),
    **dict.fromkeys("CFXM", QueueJobState.ENDED),
}
_WALLTIME = {-29, -11}
_MEMORY = {-26, -27, -10}
"""Exit status with which the server itself ended a job: OpenPBS', Torque's."""
_SIGNAL_FROM = 256
"""The exit status of a job that a signal ended is this plus the signal's number."""
_SHELL_SIGNAL_FROM = 128
_KILLED = re.compile(r"PBS: job killed: (\w+)")
_UNKNOWN_JOB = re.compile(r"unknown job|has finished|cannot be found", re.IGNORECASE)
_TRANSIENT = re.compile(
    r"cannot connect|could not connect|connection refused|timed? ?out|communication failure|"
    r"server shutting down|busy|no route|end of file",
    re.IGNORECASE,
)


class Pbs:
    """PBS and Torque, through qsub, qselect, qstat and qdel."""

    @cached_property
    def _is_torque(self) -> bool:
        """Torque's qstat has no history, and another meaning of ``-x``."""
        said = ask(["qstat", "--version"])
        return "pbs_version" not in f"{said.stdout}{said.stderr}"

    def submit(self, script: Path, *, name: str) -> str:
        """Submit a script under a name and return the job's id."""
        done = ask(["qsub", "-N", name, str(script)], timeout_s=SUBMIT_S, folder=script.parent)
        if done.returncode:
            raise _complaint(done.stderr, where=str(script))
        found = re.search(r"^(\d+\S*)\s*$", done.stdout, re.MULTILINE)
        if found is None:
            raise QueueUnavailable(
                f"qsub named no job id, but: {last_words(done.stdout)}", where=str(script)
            )
        return found.group(1)

    def check(self, script: Path) -> str:
        """Return that the queue of a script exists; PBS cannot be asked for more."""
        named = re.search(r"^#PBS -q (\S+)", script.read_text(encoding="utf-8"), re.MULTILINE)
        done = ask(["qstat", "-Q", *([named.group(1)] if named else [])])
        if done.returncode:
            raise _complaint(done.stderr, where=str(script))
        return f"queue {named.group(1)} exists" if named else "the server answers"

    def longest_s(self, partition: str | None) -> float | None:  # noqa: ARG002
        """Return None: limits are set in too many places; a job that asks for more is refused."""
        return None

    def jobs(self) -> list[QueueJob]:
        """Return this user's jobs."""
        mine = ask(["qselect", "-u", user_name()])
        if mine.returncode:
            raise _complaint(mine.stderr, where="qselect")
        records = self._records(["qstat", "-f"], mine.stdout.split())
        return [_queue_job(job_id, record) for job_id, record in records.items()]

    def fates(self, job_ids: Sequence[str]) -> dict[str, Fate]:
        """Return how jobs ended, as far as the server remembers them."""
        command = ["qstat", "-f"] if self._is_torque else ["qstat", "-x", "-f"]
        records = self._records(command, job_ids)
        by_number = {job_id.split(".")[0]: record for job_id, record in records.items()}
        fates = {}
        for job_id in job_ids:
            record = by_number.get(job_id.split(".")[0], {})
            if _STATES.get(record.get("job_state", "")) is QueueJobState.ENDED:
                fates[job_id] = fate(record)
        return fates

    def cancel(self, job_ids: Sequence[str]) -> None:
        """End jobs: SIGTERM, then SIGKILL after the queue's kill delay."""
        if not job_ids:
            return
        done = ask(["qdel", *job_ids])
        if done.returncode and not _UNKNOWN_JOB.search(done.stderr):
            raise _complaint(done.stderr, where="qdel")

    def _records(self, command: list[str], job_ids: Sequence[str]) -> dict[str, dict[str, str]]:
        """Return what qstat tells of jobs; those that it does not know are left out."""
        if not job_ids:
            return {}
        done = ask([*command, *job_ids])
        if done.returncode and not done.stdout and not _UNKNOWN_JOB.search(done.stderr):
            raise _complaint(done.stderr, where="qstat")
        return parse(done.stdout)


def parse(text: str) -> dict[str, dict[str, str]]:
    """Return job id → attributes, keys in lower case, from what ``qstat -f`` prints.

    Long values go on in the next line, which begins with a tab.
    """
    records: dict[str, dict[str, str]] = {}
    for line in re.sub(r"\n\t", "", text).splitlines():
        if line.startswith("Job Id:"):
            records[line.removeprefix("Job Id:").strip()] = current = {}
        elif " = " in line and records:
            key, _, value = line.strip().partition(" = ")
            current[key.lower()] = value
    return records


def fate(record: Mapping[str, str]) -> Fate:
    """Return how an ended job ended.

    Parameters
    ----------
    record
        Its attributes, as :func:`parse` returns them.
    """
    written = record.get("exit_status")
    status = int(written) if written and re.fullmatch(r"-?\d+", written) else None
    said = _KILLED.search(tail(record.get("error_path", "").partition(":")[2]))
    limit = said.group(1) if said else _exceeded(record)
    if status is None:
        cause, word, remark = FailureCause.KILLED, "deleted", "it was deleted before it ran"
    elif status == 0:
        cause, word, remark = None, "finished", None
    elif status < 0 and status not in _WALLTIME | _MEMORY:
        cause, word, remark = FailureCause.NODE, "failed", f"it could not be run ({status})"
    elif status in _MEMORY or (status > 0 and limit and "mem" in limit):
        cause, word, remark = FailureCause.MEMORY, "killed", "it used more memory than it asked for"
    elif status in _WALLTIME or limit == "walltime":
        cause, word, remark = FailureCause.WALLTIME, "killed", "its walltime was over"
    elif status > _SHELL_SIGNAL_FROM:
        base = _SIGNAL_FROM if status > _SIGNAL_FROM else _SHELL_SIGNAL_FROM
        cause, word, remark = FailureCause.KILLED, "killed", f"by signal {status - base}"
    else:
        cause, word, remark = FailureCause.UNKNOWN, "failed", f"exit code {status}"
    used_s = seconds(record.get("resources_used.walltime"))
    known: dict[str, str | float | None] = {
        "node": _node(record), "elapsed_s": used_s, "remark": remark,
    }  # fmt: skip
    return Fate(cause, sentence("PBS", word, known), word, written)


def _exceeded(record: Mapping[str, str]) -> str | None:
    """Return ``walltime`` if a job ran for as long as it might; servers may only say 271."""
    used = seconds(record.get("resources_used.walltime"))
    allowed = seconds(record.get("resource_list.walltime"))
    return "walltime" if used is not None and allowed and used >= allowed else None


def _queue_job(job_id: str, record: Mapping[str, str]) -> QueueJob:
    letter = record.get("job_state", "")
    return QueueJob(
        job_id=job_id,
        name=record.get("job_name", ""),
        # A letter that we do not know is somebody's business still: not lost, not to be replaced.
        state=_STATES.get(letter, QueueJobState.PENDING),
        reason=record.get("comment", letter),
        node=_node(record),
    )


def _node(record: Mapping[str, str]) -> str | None:
    """Return the first node: ``exec_host`` is ``node1/0*4+node2/0*4``."""
    return re.split(r"[/+]", record.get("exec_host", ""))[0] or None


def _complaint(said: str, *, where: str) -> QueueUnavailable:
    words = last_words(said)
    if _TRANSIENT.search(said) or words == "no message":
        return QueueUnavailable(f"PBS does not answer: {words}", where=where, hint="qstat -B")
    return QueueRefused(f"PBS refuses: {words}", where=where, hint="qstat -Q")
