"""Which labels a page shows: read from its address, written back into it, and as a Mongo query.

Only these fields ever reach the database, each checked against its own type; text is matched as
it stands, never as a pattern.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self, TypeVar

from otf_workflows.errors import InputError
from otf_workflows.schemas import now
from otf_workflows.types import FailureCause, LabelState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

E = TypeVar("E", bound=StrEnum)

MOST_KEYS = 200
"""At most so many labels are shown, or run again, by their keys at once."""

_KEY = re.compile(r"[0-9a-f]{4,64}")
_AGO = re.compile(r"(\d{1,6})\s*([mhdw])")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LONGEST_TEXT = 200


@dataclass(frozen=True)
class LabelFilter:
    """What a person asked to see.

    Attributes
    ----------
    states, causes
        Only these; all if empty. A cause belongs to a failed label.
    campaign, cycle
        Only labels that this campaign (this cycle of it) asked for.
    since, until
        Last changed in this time, as typed: ``2d``, ``12h`` ago, or a date.
    text
        Only with this text in the reason, or whose key begins with it.
    keys
        Only these labels, by the beginnings of their keys.
    """

    states: tuple[LabelState, ...] = ()
    causes: tuple[FailureCause, ...] = ()
    campaign: str | None = None
    cycle: int | None = None
    since: str = ""
    until: str = ""
    text: str = ""
    keys: tuple[str, ...] = ()

    @classmethod
    def from_address(cls, fields: Mapping[str, Sequence[str]]) -> Self:
        """Return the filter in an address.

        Parameters
        ----------
        fields
            ``state``, ``cause`` and ``key`` (each any number of times), ``campaign``, ``cycle``,
            ``since``, ``until``, ``q``; empty ones count as not given.

        Raises
        ------
        InputError
            If one of them makes no sense.
        """
        given = {name: [text.strip() for text in found] for name, found in fields.items()}

        def one(name: str) -> str:
            return next((text for text in given.get(name, []) if text), "")

        made = cls(
            states=_members(LabelState, given.get("state", []), "state"),
            causes=_members(FailureCause, given.get("cause", []), "cause"),
            campaign=one("campaign") or None,
            cycle=_whole(one("cycle"), "cycle"),
            since=one("since"),
            until=one("until"),
            text=one("q")[:_LONGEST_TEXT],
            keys=_keys(given.get("key", [])),
        )
        if made.cycle is not None and made.campaign is None:
            raise InputError("a cycle belongs to a campaign; choose one", where="campaign")
        # A wrong time is refused here, not when the database is asked.
        moment(made.since)
        moment(made.until)
        return made

    def address(self) -> list[tuple[str, str]]:
        """Return the query fields of an address that gives this filter again."""
        single = {
            "campaign": self.campaign,
            "cycle": self.cycle,
            "since": self.since,
            "until": self.until,
            "q": self.text,
        }
        return [
            *(("state", str(state)) for state in self.states),
            *(("cause", str(cause)) for cause in self.causes),
            *((name, str(value)) for name, value in single.items() if value not in {None, ""}),
            *(("key", key) for key in self.keys),
        ]

    @property
    def text_may_be_key(self) -> bool:
        """Whether the text could be the beginning of a key."""
        return _KEY.fullmatch(self.text.lower()) is not None

    def failed(self, cause: FailureCause | None = None) -> LabelFilter:
        """Return the same filter for failed labels only, or for those of one cause."""
        causes = (cause,) if cause else self.causes
        return replace(self, states=(LabelState.FAILED,), causes=causes)

    def matching(self) -> dict[str, Any]:
        """Return the query for MongoDB; every shape of it has an index."""
        query = self.matching_any_state()
        states = self.states or ((LabelState.FAILED,) if self.causes else ())
        if states:
            query["state"] = {"$in": [str(state) for state in states]}
        if self.causes:
            query["cause"] = {"$in": [str(cause) for cause in self.causes]}
        return query

    def matching_any_state(self) -> dict[str, Any]:
        """Return the query without states and causes, to count those."""
        query: dict[str, Any] = {}
        if self.cycle is None:
            if self.campaign:
                query["wanted_by.campaign"] = self.campaign
        else:
            query["wanted_by"] = {"$elemMatch": {"campaign": self.campaign, "cycle": self.cycle}}
        bounds = {"$gte": moment(self.since), "$lte": moment(self.until)}
        if times := {sign: when for sign, when in bounds.items() if when is not None}:
            query["updated"] = times
        conditions = [_begins(self.keys)] if self.keys else []
        if self.text:
            conditions.append(self._contains_text())
        if conditions:
            query["$and"] = conditions
        return query

    def list_command(self) -> str | None:
        """Return the command that lists the same labels; None if there is none."""
        if self.since or self.until or self.keys:
            return None
        words = [
            "otf labels list",
            *self._options(),
            *(f"--state {state}" for state in self.states),
        ]
        if self.text:
            words.append(f"--grep {shlex.quote(re.escape(self.text))}")
        return " ".join(words)

    def rerun_command(self, keys: Sequence[str], *, changes: Sequence[str] = ()) -> str:
        """Return the command that runs the same labels again.

        Parameters
        ----------
        keys
            Labels to name if the filter cannot be said in options.
        changes
            ``--set`` and other options, ready for a shell.
        """
        by_filter = not (self.since or self.until or self.text or self.keys)
        which = ["--failed", *self._options()] if by_filter else [key[:12] for key in keys]
        return " ".join(["otf labels rerun", *which, *changes])

    def _contains_text(self) -> dict[str, Any]:
        # The type is the condition of the partial index on reasons, which it makes usable.
        words = {"$regex": re.escape(self.text), "$options": "i", "$type": "string"}
        if not self.text_may_be_key:
            return {"reason": words}
        return {"$or": [{"reason": words}, _begins([self.text.lower()])]}

    def _options(self) -> list[str]:
        words = [f"--campaign {shlex.quote(self.campaign)}"] if self.campaign else []
        words += [f"--cycle {self.cycle}"] if self.cycle is not None else []
        return [*words, *(f"--cause {cause}" for cause in self.causes)]


def moment(text: str) -> datetime | None:
    """Return the time behind ``2d``, ``12h`` (ago) or a date in UTC; None for nothing.

    Raises
    ------
    InputError
        If it is neither.
    """
    if not text:
        return None
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return now() - timedelta(seconds=int(ago.group(1)) * _SECONDS[ago.group(2)])
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(
            f"'{text}' is no time", where="since, until", hint="write 12h, 2d, 1w or 2026-01-31"
        ) from error
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _begins(keys: Sequence[str]) -> dict[str, Any]:
    """Return the query for keys that begin so; ranges, so that the unique index serves."""
    whole = [key for key in keys if len(key) == 64]
    ranges: list[dict[str, Any]] = [
        {"key": {"$gte": key, "$lt": key + "g"}} for key in keys if len(key) < 64
    ]
    return {"$or": [*([{"key": {"$in": whole}}] if whole else []), *ranges]}


def _members(enum: type[E], texts: Sequence[str], name: str) -> tuple[E, ...]:
    known = {str(member): member for member in enum}
    for text in texts:
        if text and text not in known:
            raise InputError(
                f"'{text}' is no {name}", where=name, hint=f"one of {', '.join(known)}"
            )
    return tuple(dict.fromkeys(known[text] for text in texts if text))


def _keys(texts: Sequence[str]) -> tuple[str, ...]:
    keys = tuple(dict.fromkeys(text.lower() for text in texts if text))
    for key in keys:
        if not _KEY.fullmatch(key):
            raise InputError(f"'{key[:80]}' is no key of a label", where="key")
    if len(keys) > MOST_KEYS:
        raise InputError(f"{len(keys)} labels are more than {MOST_KEYS} at once", where="key")
    return keys


def _whole(text: str, name: str) -> int | None:
    if not text:
        return None
    if not text.isdecimal() or len(text) > 6:
        raise InputError(f"'{text[:80]}' is no number of a {name}", where=name)
    return int(text)
