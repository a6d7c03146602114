"""Work that takes much memory, sent to a process of its own that ends with the answer.

Reading structures takes ASE's and SciPy's megabytes, submitting takes jobflow's and FireWorks'; the
dashboard, which stays on a login node all week, keeps none of them. Started as
``python -m otf_workflows.dashboard.errands ERRAND [SITE]`` with the order as JSON on stdin; prints
JSON.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from otf_workflows.errors import OtfError

if TYPE_CHECKING:
    from otf_workflows.settings import Site

PATIENCE_S = 600.0
"""An errand that takes longer is ended (s)."""
_one_at_a_time = threading.Lock()


class Errand(StrEnum):
    """What can be sent away."""

    CHECK = "check"
    SUBMIT = "submit"
    RERUN = "rerun"


class Problem(BaseModel):
    """An error of ours, in its three parts."""

    what: str
    where: str | None = None
    hint: str | None = None


class Answer(BaseModel):
    """What came back: a result as JSON, or a problem."""

    result: str = ""
    problem: Problem | None = None


def send(errand: Errand, order: str, *, site: Site) -> Answer:
    """Send an order away and wait for the answer; one is under way at a time.

    Parameters
    ----------
    errand
        What to do.
    order
        With what, as JSON or as a folder.
    site
        The site; its file is named to the process.
    """
    words = [sys.executable, "-m", "otf_workflows.dashboard.errands", str(errand)]
    words += [str(site.source)] if site.source else []
    try:
        with _one_at_a_time:
            done = subprocess.run(
                words, input=order, capture_output=True, text=True, check=False, timeout=PATIENCE_S
            )
    except subprocess.TimeoutExpired:
        return Answer(problem=Problem(what=f"it took longer than {PATIENCE_S:g} s: given up"))
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        return Answer(problem=Problem(what=f"it could not be done: {said[-1]}", hint="otf doctor"))
    return Answer.model_validate_json(done.stdout)


def run(errand: Errand, order: str, *, site: Site) -> BaseModel:
    """Do an errand in this process.

    Raises
    ------
    OtfError
        Whatever stands in its way.
    """
    from otf_workflows.dashboard import draft_errands, rerun_errand

    if errand is Errand.RERUN:
        return rerun_errand.rerun(rerun_errand.RerunOrder.model_validate_json(order), site)
    todo = draft_errands.check if errand is Errand.CHECK else draft_errands.submit
    return todo(Path(order), site)


def main(words: list[str]) -> None:
    """Do one errand and print the answer."""
    from otf_workflows.log import quieten_libraries
    from otf_workflows.settings import load_site

    quieten_libraries()
    try:
        site = load_site(Path(words[1]) if len(words) > 1 else None)
        found = run(Errand(words[0]), sys.stdin.read(), site=site)
        answer = Answer(result=found.model_dump_json())
    except OtfError as error:
        answer = Answer(problem=Problem(what=error.what, where=error.where, hint=error.hint))
    sys.stdout.write(answer.model_dump_json())


if __name__ == "__main__":
    main(sys.argv[1:])
