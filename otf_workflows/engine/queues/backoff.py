"""Pauses that grow while something keeps failing."""

from __future__ import annotations

import time

LONGEST_S = 300.0


class BackOff:
    """A pause that doubles with every failure in a row.

    Parameters
    ----------
    first_s
        The first pause (s).
    longest_s
        No pause is longer (s).
    """

    def __init__(self, first_s: float, *, longest_s: float = LONGEST_S) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._pause_s = 0.0
        self._until = 0.0

    @property
    def waiting(self) -> bool:
        """Whether the pause is not over."""
        return time.monotonic() < self._until

    def failed(self) -> float:
        """Begin a pause and return its length (s)."""
        self._pause_s = min(max(2 * self._pause_s, self._first_s), self._longest_s)
        self._until = time.monotonic() + self._pause_s
        return self._pause_s

    def worked(self) -> None:
        """Forget the failures."""
        self._pause_s = self._until = 0.0
