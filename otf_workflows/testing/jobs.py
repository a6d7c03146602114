"""Toy jobs that any worker can import, to test engines and sites in seconds."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from jobflow import Flow, Job, JobConfig, OnMissing, Response, job

from otf_workflows.errors import LabelFailed
from otf_workflows.schemas import Attempt
from otf_workflows.types import FailureCause, Stage


@job
def report(*_after: Any) -> dict[str, Any]:
    """Return who ran this job, after whatever was passed in."""
    return {
        "worker": os.environ.get("OTF_WORKER", ""),
        "pid": os.getpid(),
        "directory": str(Path.cwd()),
        "command": sys.argv[0],
    }


@job
def shout(text: str) -> None:
    """Print a text, as chatty libraries do."""
    sys.stdout.write(text)


@job(data=["blob"])
def report_with_blob(n: int) -> dict[str, Any]:
    """Return ``n`` numbers as a large part."""
    return {"n": n, "blob": {"numbers": list(range(n))}}


@job
def spawn(names: list[str]) -> Response:
    """Replace this job by label jobs with these names, as ``select`` does."""
    labels: list[Flow | Job] = [staged(report(name), Stage.LABEL, label_key=name) for name in names]
    return Response(replace=Flow(labels, output=[label.output for label in labels]))


@job
def spawn_later(names: list[str]) -> Response:
    """Replace this job by one that does :func:`spawn`: jobs of the second generation."""
    made = staged(spawn(names), Stage.SELECT)
    return Response(replace=Flow([made], output=made.output))


@job(config=JobConfig(on_missing_references=OnMissing.NONE))
def collect(results: list[Any]) -> int:
    """Count the results that are there, as ``gather`` does when labels failed."""
    return sum(result is not None for result in results)


@job
def fail_label(key: str) -> None:
    """Fail as a label does, with a cause and one attempt."""
    raise LabelFailed(
        f"label {key} did not converge",
        cause=FailureCause.SCF,
        attempts=[Attempt(number=1, message="no convergence in 80 steps").model_dump(mode="json")],
        where=str(Path.cwd()),
    )


@job
def fail_once(flag: str) -> str:
    """Fail until the file ``flag`` exists."""
    if not Path(flag).exists():
        msg = f"{flag} is not there"
        raise RuntimeError(msg)
    return flag


@job
def nap(seconds: float, started: str, proof: str = "") -> int:
    """Write the process id to ``started``, sleep in a child process, then return.

    The sleep is a program of its own, as a DFT code is; its process id goes into ``proof``.
    """
    import subprocess

    with subprocess.Popen(["sleep", str(seconds)], start_new_session=True) as child:
        if proof:
            Path(proof).write_text(str(child.pid), encoding="utf-8")
        with Path(started).open("a", encoding="utf-8") as stream:
            stream.write(f"{os.getpid()}\n")
        while child.poll() is None:
            time.sleep(0.02)
    return os.getpid()


def staged(made: Job, stage: Stage, *, label_key: str | None = None) -> Job:
    """Return the job with the metadata that engines route and search by."""
    made.metadata["stage"] = str(stage)
    if label_key is not None:
        made.metadata["label_key"] = label_key
    return made


def cycle() -> tuple[Flow, Job]:
    """Return a flow shaped like a cycle, two labels in it, and its last job."""
    explore = staged(report(), Stage.EXPLORE)
    chosen = staged(spawn(["a", "b"]), Stage.SELECT)
    train = staged(report(chosen.output, explore.output), Stage.FINETUNE)
    train.name = "train"
    return Flow([explore, chosen, train]), train
