"""What follows when a batch job took one of our jobs down with it. Pure: no clock, no database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from otf_workflows.types import FailureCause

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_LOSSES = 3
"""A job that was lost more often through no fault of its own is given up: it may have one."""
GROWTH = 2.0
"""Factor on time or memory for the next try."""

_NO_FAULT = {FailureCause.NODE, FailureCause.UNKNOWN}


@dataclass(frozen=True)
class Grant:
    """What a batch job may use.

    Attributes
    ----------
    walltime_s
        Time (s).
    memory_MiB
        Memory per node (MiB); None for whatever the queue gives.
    """

    walltime_s: float
    memory_MiB: int | None = None


@dataclass(frozen=True)
class Limits:
    """The most that a queue gives.

    Attributes
    ----------
    walltime_s
        Time (s).
    memory_MiB
        Memory per node (MiB); None if that is not known.
    """

    walltime_s: float
    memory_MiB: int | None = None


@dataclass(frozen=True)
class Verdict:
    """What is to be done with a job.

    Attributes
    ----------
    again
        Run it again by itself; otherwise it has failed.
    needs
        What it must be given next time, in a batch job of its own; None for the usual.
    sentence
        The same for a person.
    """

    again: bool
    needs: Grant | None
    sentence: str


def decide(
    cause: FailureCause,
    *,
    earlier: Sequence[FailureCause],
    had: Grant,
    limits: Limits,
    progressed: bool = False,
) -> Verdict:
    """Return what follows from the loss of a job.

    Parameters
    ----------
    cause
        Why its batch job ended.
    earlier
        Causes of its losses before this one.
    had
        What it was given.
    limits
        The most that it could be given.
    progressed
        Whether it has written a checkpoint in the time that it had; then it needs no more time.
    """
    if cause is FailureCause.KILLED:
        return Verdict(
            again=False, needs=None, sentence="a person cancelled it; it waits for a person"
        )
    if cause is FailureCause.WALLTIME:
        return _more_time(had, limits, progressed=progressed)
    if cause is FailureCause.MEMORY:
        return _more_memory(had, limits)
    n_lost = 1 + sum(item in _NO_FAULT for item in earlier)
    if cause not in _NO_FAULT or n_lost > MAX_LOSSES:
        return Verdict(again=False, needs=None, sentence=f"lost {n_lost} times, given up")
    return Verdict(again=True, needs=None, sentence=f"again (loss {n_lost} of {MAX_LOSSES})")


def _more_time(had: Grant, limits: Limits, *, progressed: bool) -> Verdict:
    if progressed:
        return Verdict(again=True, needs=None, sentence="again, from its checkpoint")
    if had.walltime_s >= limits.walltime_s:
        return Verdict(
            again=False,
            needs=None,
            sentence=f"{had.walltime_s:.0f} s are the most that the queue gives",
        )
    needs = Grant(min(GROWTH * had.walltime_s, limits.walltime_s), had.memory_MiB)
    return Verdict(again=True, needs=needs, sentence=f"again with {needs.walltime_s:.0f} s")


def _more_memory(had: Grant, limits: Limits) -> Verdict:
    most = limits.memory_MiB
    if most is None:
        return Verdict(
            again=False, needs=None, sentence="set memory_MiB of the queue in the site file"
        )
    if had.memory_MiB is not None and had.memory_MiB >= most:
        return Verdict(
            again=False,
            needs=None,
            sentence=f"{had.memory_MiB} MiB are the most that the queue gives",
        )
    memory = min(int(GROWTH * had.memory_MiB), most) if had.memory_MiB else most
    return Verdict(
        again=True, needs=Grant(had.walltime_s, memory), sentence=f"again with {memory} MiB"
    )
