"""The errors a user can meet: one root, each with an exit code and a next step.

A message has up to three parts: what happened, where, and the command that helps. The command
line prints them on three lines; nothing here ever becomes a traceback for a user's mistake.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from otf_workflows.types import FailureCause


class OtfError(Exception):
    """Root of all errors raised on purpose by this package.

    Parameters
    ----------
    what
        One sentence: what is wrong.
    where
        File, field, host or document concerned.
    hint
        What to do next, if possible as a command to copy.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        """Return the parts on one line each."""
        parts = [self.what]
        if self.where:
            parts.append(f"where: {self.where}")
        if self.hint:
            parts.append(f"next: {self.hint}")
        return "\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return the parts as JSON data; FireWorks keeps it beside the traceback of a job."""
        return {"message": self.what, "where": self.where, "hint": self.hint}


class InputError(OtfError, ValueError):
    """The user's input (campaign, structure, option) is wrong: exit code 2."""

    exit_code = 2


class NotFoundError(OtfError, LookupError):
    """Nothing matches what was asked for: exit code 3."""

    exit_code = 3


class DatabaseError(OtfError, ConnectionError):
    """The database does not answer or refuses us: exit code 4."""

    exit_code = 4


class ConfigurationError(OtfError, RuntimeError):
    """The site (machines, programs, files) is not set up: exit code 5."""

    exit_code = 5


class PartialError(OtfError, RuntimeError):
    """Some of what was asked for was done, some refused: exit code 6."""

    exit_code = 6


class AlignmentError(OtfError, ValueError):
    """Labels do not fit the model's level of theory or units; training on them is refused."""


class PotentialError(OtfError, ValueError):
    """A potential cannot treat a structure: exploded, collapsed, or an element it does not know."""


class LabelFailed(OtfError, RuntimeError):  # noqa: N818 - reads as the event it is
    """A DFT label could not be computed, after every permitted retry.

    FireWorks stores ``to_dict()`` beside the traceback of a fizzled firework, which is how cause
    and attempts reach the label's document.

    Parameters
    ----------
    what
        One sentence for a person.
    cause
        Class of the failure, for grouping and for choosing what to rerun.
    attempts
        Serialised :class:`~otf_workflows.schemas.Attempt` documents, oldest first.
    """

    def __init__(
        self,
        what: str,
        *,
        cause: FailureCause,
        attempts: list[dict[str, Any]] | None = None,
        where: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what, where=where, hint=hint)
        self.cause = cause
        self.attempts = attempts or []

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data: message, cause, attempts, folder."""
        return {
            "message": self.what,
            "cause": str(self.cause),
            "attempts": self.attempts,
            "directory": self.where,
        }
