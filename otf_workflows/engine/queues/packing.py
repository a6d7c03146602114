"""How labels come into batch jobs: many in one pilot, or one each. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from otf_workflows.engine.queues.retries import GROWTH, Grant, Limits
from otf_workflows.types import Packing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.settings import Queue

LONG_S = 600.0
"""A label below this is never worth a batch job of its own."""
USUAL_WAIT_S = 300.0
"""Wait in the queue before any was measured (s)."""
WORTH_S = 60.0
"""A pilot starts Python and its libraries; it should have so much to do in any case (s)."""
TIME_MARGIN = 2.0
"""Walltime over expected time. Finished labels of one recipe scatter by a third, and sizes that
were never computed are off by more; a label cut off costs all of its time again."""
MEMORY_POWER = 2.0
"""Plane-wave coefficients times bands grow with the square of the size."""
WARNING_S = 120.0
"""The batch system warns so long before the end."""
START_S = 60.0
"""Modules, Python and libraries take so long to load on a busy file system."""
ROUND_S = 60.0


@dataclass(frozen=True)
class Load:
    """Work of one role, as seen by its launcher.

    Attributes
    ----------
    n_ready
        Jobs that could start now.
    n_running
        Jobs that run in pilots.
    job_s
        How long one takes (s); None if nobody knows.
    wait_s
        How long a batch job waits in the queue (s).
    """

    n_ready: int
    n_running: int
    job_s: float | None
    wait_s: float


def limits_of(queue: Queue) -> Limits:
    """Return the most that a queue gives: what the site file says, or twice the usual."""
    twice = int(GROWTH * queue.memory_MiB) if queue.memory_MiB else None
    return Limits(queue.max_walltime_s or GROWTH * queue.walltime_s, queue.max_memory_MiB or twice)


def usual_wait_s(waits_s: Sequence[float]) -> float:
    """Return how long a batch job waits in the queue (s), from those that have started."""
    return median(waits_s) if waits_s else USUAL_WAIT_S


def packing(queue: Queue, *, label_s: float | None, wait_s: float) -> Packing:
    """Return whether labels get a batch job each, or pilots.

    A pilot pays for the wait in the queue once. A job of its own lets the queue know how long a
    label takes, which is worth it when labels are longer than the wait.

    Parameters
    ----------
    queue
        The site's section.
    label_s
        Expected time of a label (s); None if nobody knows.
    wait_s
        Wait in the queue (s).
    """
    if queue.packing is not Packing.AUTO:
        return queue.packing
    if label_s is not None and label_s > max(wait_s, LONG_S):
        return Packing.ONE
    return Packing.PILOT


def pilots_wanted(queue: Queue, load: Load) -> int:
    """Return how many pilots there should be, waiting ones included.

    One for every job that is ready or running, but none that would have less to do than it waits.
    """
    outstanding = load.n_ready + load.n_running
    if outstanding == 0 or load.n_ready == 0:
        return 0
    seats = math.ceil(outstanding / queue.side_by_side)
    if load.job_s is not None:
        work_s = outstanding * load.job_s / queue.side_by_side
        seats = min(seats, math.ceil(work_s / max(load.wait_s, WORTH_S)))
    return max(1, min(seats, queue.max_jobs))


def grant_for_label(
    queue: Queue, *, label_s: float | None, size_ratio: float | None, limits: Limits
) -> Grant:
    """Return walltime and memory for one label in a batch job of its own.

    Parameters
    ----------
    queue
        The site's section: its walltime stands in for one that is not known, its memory belongs to
        the labels computed so far.
    label_s
        Expected time of the label (s).
    size_ratio
        Electrons over those of the largest label computed so far.
    limits
        The most that the queue gives.
    """
    seconds = float(queue.walltime_s)
    if label_s is not None:
        seconds = TIME_MARGIN * label_s + WARNING_S + START_S
        seconds = math.ceil(seconds / ROUND_S) * ROUND_S
        seconds = min(seconds, limits.walltime_s)
    memory = queue.memory_MiB
    if memory is not None and size_ratio is not None and size_ratio > 1:
        memory = math.ceil(memory * size_ratio**MEMORY_POWER)
        memory = min(memory, limits.memory_MiB or memory)
    return Grant(seconds, memory)
