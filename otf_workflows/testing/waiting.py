"""Waiting in tests: for what has happened, never for a time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

PATIENCE_S = 300.0
"""What takes seconds may take minutes on a machine that does several things at once."""
LOOK_S = 0.1


def wait_for(
    condition: Callable[[], T],
    what: str = "it",
    *,
    seconds: float = PATIENCE_S,
    alive: Callable[[], str | None] | None = None,
) -> T:
    """Return the first true value of a condition.

    Parameters
    ----------
    condition
        Asked again and again.
    what
        What is waited for, in words, for the error.
    seconds
        How long; only a test that fails ever waits so long.
    alive
        Returns a sentence as soon as there is nothing left to wait for.

    Raises
    ------
    AssertionError
        If the time is up, or nothing can come any more.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        over = alive() if alive is not None else None
        if over:
            raise AssertionError(f"{what} cannot happen any more: {over}")
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(LOOK_S)
    return value
