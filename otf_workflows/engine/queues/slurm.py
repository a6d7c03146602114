"""Slurm: what its programs are asked, and what their answers mean.

States and formats are those of squeue(1), sacct(1) and scontrol(1); seen on Slurm 22.05.
"""

from __future__ import annotations

import os
import re
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
)
from otf_workflows.types import FailureCause

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_PENDING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD"}
_CAUSES = {
    "COMPLETED": None,
    "TIMEOUT": FailureCause.WALLTIME,
    "DEADLINE": FailureCause.WALLTIME,
    "OUT_OF_MEMORY": FailureCause.MEMORY,
    "NODE_FAIL": FailureCause.NODE,
    "BOOT_FAIL": FailureCause.NODE,
    "LAUNCH_FAILED": FailureCause.NODE,
    "RECONFIG_FAIL": FailureCause.NODE,
    "CANCELLED": FailureCause.KILLED,
    "PREEMPTED": FailureCause.KILLED,
    "REVOKED": FailureCause.KILLED,
}
"""State of an ended job → cause."""
_ENDED = {*_CAUSES, "FAILED"}
"""Whatever else Slurm may say, the job is somebody's business still: not lost, not replaced."""

_TRANSIENT = re.compile(
    r"unable to contact|unable to establish|timed out|connection refused|connect failure|"
    r"temporarily|try again|zero bytes|communication|not responding|socket|munge|in the process of",
    re.IGNORECASE,
)
"""Words of a controller that is away or busy; a rejected job is told otherwise."""
_UNKNOWN_JOB = re.compile(r"invalid job id", re.IGNORECASE)
# Without cgroups (jobacct_gather's OverMemoryKill) such a job is only FAILED, by signal 9.
_OUT_OF_MEMORY = re.compile(r"slurmstepd\S*: .*(?:memory limit|oom.?kill)", re.IGNORECASE)
_HINTS = {
    "partition": "sinfo -s   (then set partition of this queue in the site file)",
    "account": "sacctmgr show assoc user=$USER format=account,partition,qos",
    "qos": "sacctmgr show assoc user=$USER format=account,partition,qos",
    "node configuration": "sinfo -o '%P %D %c %m %G %t'   (cores, MiB, GPUs and state of nodes)",
    "node count": "sinfo -o '%P %D %c %m %G %t'",
    "time limit": "sinfo -o '%P %l'   (then lower walltime_s of this queue)",
}
"""What to look at when a job is refused, by words of the refusal."""


class Slurm:
    """Slurm, through sbatch, squeue, scontrol, sacct and scancel."""

    def submit(self, script: Path, *, name: str) -> str:
        """Submit a script under a name and return the job's id."""
        command = ["sbatch", "--parsable", f"--job-name={name}", str(script)]
        done = ask(command, timeout_s=SUBMIT_S, folder=script.parent)
        if done.returncode:
            raise _complaint(done.stderr, where=str(script))
        found = re.match(r"(\d+)", done.stdout.strip())
        if found is None:
            raise QueueUnavailable(
                f"sbatch named no job id, but: {last_words(done.stdout)}", where=str(script)
            )
        return found.group(1)

    def check(self, script: Path) -> str:
        """Return when and where a script would run."""
        command = ["sbatch", "--test-only", str(script)]
        done = ask(command, timeout_s=SUBMIT_S, folder=script.parent)
        if done.returncode:
            raise _complaint(done.stderr, where=str(script))
        return last_words(done.stderr or done.stdout).removeprefix("sbatch: ")

    def longest_s(self, partition: str | None) -> float | None:
        """Return the longest walltime of a partition (s), the default one if it has no name.

        A job that asks for more is taken by most clusters, and waits for ever.
        """
        done = ask(["scontrol", "-o", "show", "partition", *([partition] if partition else [])])
        if done.returncode:
            raise _complaint(done.stderr, where="scontrol")
        records = [_fields(line) for line in done.stdout.splitlines() if line.strip()]
        for record in records:
            if partition or record.get("Default") == "YES":
                return seconds(record.get("MaxTime"))  # None for UNLIMITED
        return None

    def jobs(self) -> list[QueueJob]:
        """Return this user's jobs, those that ended within the last minutes included."""
        form = "%A|%T|%r|%N|%j"  # the name last: it may hold the separator
        done = ask(["squeue", "-h", "-t", "all", "-u", str(os.getuid()), "-o", form])
        if done.returncode:
            raise _complaint(done.stderr, where="squeue")
        return [_queue_job(line) for line in done.stdout.splitlines() if line.count("|") >= 4]

    def fates(self, job_ids: Sequence[str]) -> dict[str, Fate]:
        """Return how jobs ended, from the controller's memory, else from the accounts.

        The controller knows a job for some minutes (``MinJobAge``) and names its error file, where
        an exceeded memory limit is written; accounting may be switched off.
        """
        fates, forgotten = {}, []
        for job_id in job_ids:
            done = ask(["scontrol", "-o", "show", "job", job_id])
            if done.returncode == 0:
                fate = _fate_of_record(_fields(done.stdout))
                if fate is not None:
                    fates[job_id] = fate
            elif _UNKNOWN_JOB.search(done.stderr):
                forgotten.append(job_id)
            else:
                raise _complaint(done.stderr, where="scontrol")
        return fates | _fates_from_accounts(forgotten)

    def cancel(self, job_ids: Sequence[str]) -> None:
        """End jobs: SIGTERM, and SIGKILL after Slurm's KillWait."""
        if not job_ids:
            return
        done = ask(["scancel", *job_ids])
        if done.returncode and not _UNKNOWN_JOB.search(done.stderr):
            raise _complaint(done.stderr, where="scancel")


def _queue_job(line: str) -> QueueJob:
    job_id, word, reason, node, name = line.split("|", 4)
    if word in _ENDED:
        state, reason = QueueJobState.ENDED, word
    else:
        state = QueueJobState.PENDING if word in _PENDING else QueueJobState.RUNNING
    return QueueJob(job_id, name, state, reason if reason != "None" else "", node or None)


def _fields(line: str) -> dict[str, str]:
    """Return the fields of ``scontrol -o show job``; values may hold spaces."""
    pairs = re.split(r" (?=[A-Z][\w:/]*=)", line.strip())
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def _fate_of_record(record: Mapping[str, str]) -> Fate | None:
    """Return how a job ended; None if it has not."""
    state = record.get("JobState", "")
    if state not in _ENDED:
        return None
    error_file = record.get("StdErr") if state == "FAILED" else None
    return fate(
        state,
        exit_code=record.get("ExitCode"),
        node=record.get("BatchHost") or record.get("NodeList"),
        elapsed_s=seconds(record.get("RunTime")),
        out_of_memory=bool(_OUT_OF_MEMORY.search(tail(error_file))),
    )


def fate(
    state: str,
    *,
    exit_code: str | None,
    node: str | None,
    elapsed_s: float | None,
    out_of_memory: bool = False,
) -> Fate:
    """Return what Slurm's words mean.

    Parameters
    ----------
    state
        State as sacct writes it, as in ``CANCELLED by 1000``.
    exit_code
        ``exit code:signal``.
    node
        Where it ran.
    elapsed_s
        How long it ran (s).
    out_of_memory
        Whether its error file says that it was killed for its memory.
    """
    word = state.split(maxsplit=1)[0].rstrip("+")
    code, _, number = (exit_code or "").partition(":")
    cause: FailureCause | None
    remark = None
    if out_of_memory:
        cause, remark = FailureCause.MEMORY, "it was killed for using more memory than it asked for"
    elif word in _CAUSES:
        cause = _CAUSES[word]
    elif number not in {"", "0"}:
        cause, remark = FailureCause.KILLED, f"ended by signal {number}"
    else:
        cause, remark = FailureCause.UNKNOWN, f"exit code {code}" if code else None
    known = node if node not in {"", "(null)", "None assigned"} else None
    ran_s = elapsed_s if known else None
    said = sentence("Slurm", state, {"node": known, "elapsed_s": ran_s, "remark": remark})
    return Fate(cause, said, word, exit_code)


def _fates_from_accounts(job_ids: Sequence[str]) -> dict[str, Fate]:
    """Return fates from the accounting database, else from the list of completed jobs."""
    if not job_ids:
        return {}
    fields = ["-n", "-P", "-j", ",".join(job_ids), "-o", "JobID,State,ExitCode,NodeList,Elapsed"]
    for way in (["sacct"], ["sacct", "--completion"]):
        try:
            done = ask([*way, *fields])
        except QueueUnavailable:
            continue  # the accounts are another service than the queue, and optional
        if done.returncode == 0 and done.stdout.strip():
            return _accounted(done)
    return {}


def _accounted(done: subprocess.CompletedProcess[str]) -> dict[str, Fate]:
    """Return the fates in sacct's table; steps are asked for their memory only."""
    rows = [line.split("|") for line in done.stdout.splitlines() if line.count("|") >= 4]
    hungry = {row[0].split(".")[0] for row in rows if row[1].startswith("OUT_OF_ME")}
    fates = {}
    for job_id, state, exit_code, node, elapsed in (row[:5] for row in rows):
        if "." in job_id or state.partition(" ")[0] not in _ENDED:
            continue
        fates[job_id] = fate(
            state,
            exit_code=exit_code,
            node=node,
            elapsed_s=seconds(elapsed),
            out_of_memory=job_id in hungry and not state.startswith(("COMPLETED", "OUT_OF")),
        )
    return fates


def _complaint(said: str, *, where: str) -> QueueUnavailable:
    """Return the error that fits what a program of Slurm complains about."""
    words = last_words(said)
    if _TRANSIENT.search(said) or words == "no message":
        return QueueUnavailable(f"Slurm does not answer: {words}", where=where, hint="sinfo")
    hint = next((hint for word, hint in _HINTS.items() if word in said.lower()), None)
    return QueueRefused(f"Slurm refuses: {words}", where=where, hint=hint)
