"""SGE and its descendants: what their programs are asked, and what the answers mean.

Formats and codes are those of qstat(1), qacct(1) and sge_status(5). Tested on recorded output only.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from otf_workflows.engine.queues.base import (
    SUBMIT_S,
    Fate,
    QueueJob,
    QueueJobState,
    QueueRefused,
    QueueUnavailable,
    ask,
    last_words,
    sentence,
    user_name,
)
from otf_workflows.types import FailureCause

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_BY_QMASTER = 37
"""``failed``: the master ended the job, for its time."""
_AFTER_START = {0, 12, 13, 14, 15, 16, 17, 20, 24, 25, 30, 100}
"""``failed``: the job had started, so that its exit status means something."""
_SIGNAL_FROM = 128
_UNKNOWN_JOB = re.compile(r"do(?:es)? not exist|not found|already in deletion", re.IGNORECASE)
_TRANSIENT = re.compile(
    r"unable to contact|cannot reach|got no answer|timeout|connection refused|commlib|"
    r"unable to send message",
    re.IGNORECASE,
)
_UNITS = {"": 1.0, "K": 1024.0, "M": 1024.0**2, "G": 1024.0**3, "T": 1024.0**4}


class Sge:
    """SGE, through qsub, qstat, qacct and qdel."""

    def submit(self, script: Path, *, name: str) -> str:
        """Submit a script under a name and return the job's id."""
        command = ["qsub", "-terse", "-N", name, str(script)]
        done = ask(command, timeout_s=SUBMIT_S, folder=script.parent)
        if done.returncode:
            raise _complaint(done.stderr or done.stdout, where=str(script))
        found = re.search(r"^(\d+)(?:\.\S+)?\s*$", done.stdout, re.MULTILINE)
        if found is None:
            raise QueueUnavailable(
                f"qsub named no job id, but: {last_words(done.stdout)}", where=str(script)
            )
        return found.group(1)

    def check(self, script: Path) -> str:
        """Return what SGE finds of a script's request, without submitting it."""
        done = ask(["qsub", "-w", "v", str(script)], timeout_s=SUBMIT_S, folder=script.parent)
        said = last_words(done.stdout or done.stderr)
        if done.returncode or "found suitable queue" not in f"{done.stdout}{done.stderr}":
            raise _complaint(said, where=str(script))
        return said

    def longest_s(self, partition: str | None) -> float | None:  # noqa: ARG002
        """Return None: limits are set in too many places; a job that asks for more is refused."""
        return None

    def jobs(self) -> list[QueueJob]:
        """Return this user's jobs."""
        done = ask(["qstat", "-u", user_name(), "-xml"])
        if done.returncode:
            raise _complaint(done.stderr, where="qstat")
        return parse(done.stdout)

    def fates(self, job_ids: Sequence[str]) -> dict[str, Fate]:
        """Return how jobs ended; the accounts know it some seconds after the end."""
        fates = {}
        for job_id in job_ids:
            done = ask(["qacct", "-j", job_id])
            if done.returncode == 0 and done.stdout.strip():
                fates[job_id] = fate(parse_account(done.stdout))
        return fates

    def cancel(self, job_ids: Sequence[str]) -> None:
        """End jobs."""
        if not job_ids:
            return
        done = ask(["qdel", *job_ids])
        said = done.stderr or done.stdout
        if done.returncode and not _UNKNOWN_JOB.search(said):
            raise _complaint(said, where="qdel")


def parse(text: str) -> list[QueueJob]:
    """Return the jobs in what ``qstat -xml`` prints."""
    try:
        root = ET.fromstring(text)  # noqa: S314 - written by the site's own qstat
    except ET.ParseError as error:
        raise QueueUnavailable(f"qstat printed no XML: {error}", where="qstat -xml") from error
    jobs = []
    for item in root.iter("job_list"):
        word = item.findtext("state", "")
        running = item.get("state") == "running"
        node = item.findtext("queue_name", "").partition("@")[2]
        jobs.append(
            QueueJob(
                job_id=item.findtext("JB_job_number", ""),
                name=item.findtext("JB_name", ""),
                state=QueueJobState.RUNNING if running else QueueJobState.PENDING,
                reason=word,
                node=node or None,
            )
        )
    return jobs


def parse_account(text: str) -> dict[str, str]:
    """Return the last record of what ``qacct -j`` prints: ids are used again after a while."""
    last = re.split(r"^=+$", text.strip(), flags=re.MULTILINE)[-1]
    pairs = (line.split(None, 1) for line in last.splitlines() if len(line.split(None, 1)) > 1)
    return {key: value.strip() for key, value in pairs}


def fate(record: Mapping[str, str]) -> Fate:
    """Return how a job ended.

    Parameters
    ----------
    record
        Its account, as :func:`parse_account` returns it.
    """
    failed = _number(record.get("failed"))
    status = _number(record.get("exit_status"))
    ran_s = _number(record.get("ru_wallclock"))
    asked = dict(re.findall(r"\b(h_rt|h_vmem)=([\d.]+\w?)", record.get("category", "")))
    in_time = "h_rt" not in asked or ran_s < _number(asked["h_rt"])
    limit_bytes = _bytes(asked.get("h_vmem"))
    used_bytes = _bytes(record.get("maxvmem"))
    if failed == 0 and status == 0:
        cause, word, remark = None, "finished", None
    elif failed == _BY_QMASTER or (status > _SIGNAL_FROM and not in_time):
        cause, word, remark = FailureCause.WALLTIME, "killed", "its time was over"
    elif failed not in _AFTER_START:
        cause, word = FailureCause.NODE, "failed"
        remark = f"it could not be run ({record['failed']})"
    elif limit_bytes and used_bytes >= limit_bytes:
        cause, word, remark = FailureCause.MEMORY, "killed", "it used more memory than it asked for"
    elif status > _SIGNAL_FROM:
        cause, word = FailureCause.KILLED, "killed"
        remark = f"by signal {status - _SIGNAL_FROM:.0f}"
    else:
        cause, word, remark = FailureCause.UNKNOWN, "failed", f"exit code {status:.0f}"
    known: dict[str, str | float | None] = {
        "node": record.get("hostname"), "elapsed_s": ran_s, "remark": remark,
    }  # fmt: skip
    return Fate(cause, sentence("SGE", word, known), word, record.get("exit_status"))


def _number(text: str | None) -> float:
    """Return the number a value begins with, as in ``100 : assumedly after job``; 0 if none."""
    found = re.match(r"[\d.]+", text or "")
    return float(found.group()) if found else 0.0


def _bytes(text: str | None) -> float:
    """Return bytes for ``1.500G``; 0 for none."""
    found = re.fullmatch(r"([\d.]+)([KMGT]?)B?", (text or "").upper())
    return float(found.group(1)) * _UNITS[found.group(2)] if found else 0.0


def _complaint(said: str, *, where: str) -> QueueUnavailable:
    words = last_words(said)
    if _TRANSIENT.search(said) or words == "no message":
        return QueueUnavailable(f"SGE does not answer: {words}", where=where, hint="qhost")
    return QueueRefused(f"SGE refuses: {words}", where=where, hint="qstat -g c; qconf -spl")
