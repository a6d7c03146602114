"""Why a job failed: carried through jobflow-remote, which keeps a traceback and nothing else.

A job that fails with one of our errors leaves its data as a note under the traceback. A job that
vanished leaves nothing; then the last words of the batch system say why.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from otf_workflows.engine.records import TRACEBACK_LINES
from otf_workflows.types import FailureCause

if TYPE_CHECKING:
    from otf_workflows.errors import OtfError

MARK = "otf-failure: "
GIVEN_UP = {"message": "given up by a person before it started", "traceback": ""}

_LAST_WORDS = {
    FailureCause.WALLTIME: r"DUE TO TIME LIMIT|exceeded limit.*walltime|walltime .* exceeded",
    FailureCause.MEMORY: r"oom[-_ ]?kill|out of memory|exceeded.*memory limit|OUT_OF_MEMORY",
    FailureCause.NODE: r"DUE TO NODE FAILURE|DUE TO PREEMPTION|NODE_FAIL|node fail",
}


def note(error: OtfError) -> str:
    """Return the data of an error as one line to put under its traceback."""
    return MARK + json.dumps(error.to_dict(), default=str)


def cause_of_loss(last_words: str | None) -> FailureCause:
    """Return why a job vanished, from what the batch system wrote to its error file.

    The words are those of Slurm and PBS; a job that was killed by anything else leaves none.
    """
    for cause, pattern in _LAST_WORDS.items():
        if re.search(pattern, last_words or "", flags=re.IGNORECASE):
            return cause
    return FailureCause.KILLED


def failure_of(document: dict[str, Any]) -> dict[str, Any]:
    """Return the failure of a failed job of jobflow-remote in our words.

    Parameters
    ----------
    document
        From its ``jobs`` collection.
    """
    remote = document.get("remote") or {}
    text = str(document.get("error") or remote.get("error") or "").rstrip()
    lines = text.splitlines()
    said = next((line for line in reversed(lines) if line.startswith(MARK)), None)
    if said is not None:
        return json.loads(said.removeprefix(MARK))
    end = "\n".join(lines[-TRACEBACK_LINES:])
    if text.startswith("Traceback"):
        last = next((line for line in reversed(lines) if line and not line.startswith(" ")), "")
        return {"message": last, "traceback": end}
    cause = cause_of_loss(remote.get("queue_err"))
    words = (remote.get("queue_err") or "").strip().splitlines()
    what = "it vanished before it could write its result" if _is_loss(text) else first_line(text)
    return {
        "message": f"{what}: {words[-1]}" if words else what,
        "cause": str(cause),
        "attempts": [],
        "directory": document.get("run_dir"),
        "traceback": end,
    }


def first_line(text: str) -> str:
    """Return the first line of a text, for a sentence."""
    return text.splitlines()[0] if text else "no message"


def _is_loss(text: str) -> bool:
    return "killed before completing" in text or "was not present in the download" in text
