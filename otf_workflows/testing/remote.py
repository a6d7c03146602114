"""A runner of jobflow-remote in this process, for tests: its jobs run as they are submitted."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from otf_workflows.types import Role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otf_workflows.engine.base import Engine
    from otf_workflows.engine.remote.engine import JobflowRemoteEngine
    from otf_workflows.engine.remote.runner import SiteRunner


@contextmanager
def runner_here(engine: JobflowRemoteEngine) -> Iterator[SiteRunner]:
    """Have a runner whose jobs run in this process, as soon as they are submitted."""
    from jobflow_remote.remote.queue import QueueManager
    from qtoolkit.core.data_objects import SubmissionResult, SubmissionStatus

    from otf_workflows.engine.remote.execute import execute
    from otf_workflows.engine.remote.runner import SiteRunner

    numbers = itertools.count(4_000_000)  # above all process numbers: they are never found running

    def submit(_self: QueueManager, *, work_dir: str, **_rest: Any) -> SubmissionResult:
        execute(Path(work_dir))
        return SubmissionResult(job_id=str(next(numbers)), status=SubmissionStatus.SUCCESSFUL)

    with patch.object(QueueManager, "submit", submit):
        made = SiteRunner(engine)
        yield made
        made.close()


@contextmanager
def submissions_that_start_nothing() -> Iterator[None]:
    """Let every job vanish that is submitted in this block."""
    from jobflow_remote.remote.queue import QueueManager
    from qtoolkit.core.data_objects import SubmissionResult, SubmissionStatus

    gone = SubmissionResult(job_id="4999999", status=SubmissionStatus.SUCCESSFUL)
    with (
        patch.object(QueueManager, "submit", lambda *_, **__: gone),
        patch.object(QueueManager, "get_jobs_list", lambda *_, **__: []),
    ):
        yield


def drain(runner: SiteRunner) -> None:
    """Let a runner turn until nothing changes any more."""

    def picture() -> list[tuple[Any, ...]]:
        found = runner.job_controller.jobs.find({}, ["db_id", "state", "otf_returns"])
        return [(d["db_id"], d["state"], d.get("otf_returns")) for d in found.sort("_id", 1)]

    before = None
    while picture() != before:
        before = picture()
        runner.turn()


def lose(runner: SiteRunner, db_id: str, words: str = "") -> dict[str, Any]:
    """Let a job leave, vanish with these last words, and turn until that is noticed."""
    jobs = runner.job_controller.jobs
    runner.checkout()
    runner.advance_state(["CHECKED_OUT", "UPLOADED"])
    found = jobs.find_one({"db_id": db_id})
    assert found["state"] == "SUBMITTED"  # noqa: S101 - for tests
    (Path(found["run_dir"]) / "queue.err").write_text(words)
    runner.check_run_status()
    runner.advance_state(["DOWNLOADED"])
    return jobs.find_one({"db_id": db_id})


def let_labels_go(runner: SiteRunner, count: int) -> None:
    """Let so many labels be on their way at once."""
    runner.site.workers[Role.DFT] = runner.site.workers[Role.DFT].model_copy(
        update={"count": count}
    )


def states(engine: Engine, campaign: str = "c") -> dict[str, str]:
    """Return the states of a campaign's jobs by their names."""
    return {job.name: str(job.state) for job in engine.jobs(campaign=campaign)}
