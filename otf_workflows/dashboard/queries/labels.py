"""Labels as the pages show them: lists, counts, failures by cause; never whole documents.

A list is read one page at a time from the key where the last one ended, so that the thousandth page
costs as much as the first.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from otf_workflows.engine.records import utc
from otf_workflows.errors import InputError
from otf_workflows.types import FailureCause, LabelState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from otf_workflows.dashboard.queries.label_filter import LabelFilter
    from otf_workflows.store import Store

PAGE = 50
"""Labels on one page."""
FRESH_S = 20.0
"""How long an overview is believed (s)."""
MOST_KEPT = 100
"""Overviews remembered at once."""

ADVICE = {
    FailureCause.SCF: "A smaller mixing_beta or more steps often help; metals need smearing in "
    "the recipe, which is another campaign.",
    FailureCause.WALLTIME: "Give it more time, or a worker with more cores.",
    FailureCause.MEMORY: "Give it a worker with more memory.",
    FailureCause.GEOMETRY: "The frame is unphysical; leave it.",
    FailureCause.INPUT: "Correct the recipe or the site file first.",
    FailureCause.PARSE: "The output could not be read; look at its last lines.",
    FailureCause.NODE: "The machine failed, not the calculation: run it again.",
    FailureCause.KILLED: "It was killed from outside: run it again.",
    FailureCause.UNKNOWN: "Nothing known fits; look at the last lines.",
}
"""What usually helps."""

_ROW = {
    "_id": 0,
    "key": 1,
    "state": 1,
    "cause": 1,
    "reason": 1,
    "wanted_by": 1,
    "updated": 1,
    "core_hours": 1,
    "frame.numbers": 1,
    "frame.sigma_eV_A": 1,
    "frame.origin.temperature_K": 1,
    "recipe.code": 1,
    "attempts": 1,
    "earlier.seconds": 1,
    "imported.source": 1,
}
_BY_REASON = "reason_1_updated_-1"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class LabelRow:
    """One line of a list.

    Attributes
    ----------
    key, state, cause, reason
        As in the label's document.
    campaign, cycle, purpose
        Who asked first, or the campaign that was filtered for; None for an imported label.
    formula, n_atoms
        Of the structure.
    temperature_K
        Thermostat of the walker that met it (K).
    sigma_eV_A
        Worst-atom uncertainty when it was met (eV/Å).
    seconds
        Wall time of all tries (s).
    core_hours
        Of all tries.
    n_tries
        Tries so far, those before a rerun included.
    host, queue_id, directory
        Of the last try.
    last_lines
        End of the output of the last try.
    updated
        Last change.
    code
        DFT code.
    imported
        File that an imported label comes from.
    """

    key: str
    state: LabelState
    cause: FailureCause | None
    reason: str | None
    campaign: str | None
    cycle: int | None
    purpose: str | None
    formula: str
    n_atoms: int
    temperature_K: float | None
    sigma_eV_A: float | None
    seconds: float | None
    core_hours: float
    n_tries: int
    host: str
    queue_id: str | None
    directory: str
    last_lines: tuple[str, ...]
    updated: datetime
    code: str
    imported: str | None


@dataclass(frozen=True)
class LabelPage:
    """A page of a list: newest changes first, and where the next page begins."""

    rows: tuple[LabelRow, ...]
    older: str | None


@dataclass(frozen=True)
class LabelCounts:
    """How many labels are in each state, and how many failed for each cause."""

    states: Mapping[LabelState, int]
    causes: Mapping[FailureCause, int]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.states.values())


@dataclass(frozen=True)
class CauseGroup:
    """Failed labels of one cause, and the newest of them as an example."""

    cause: FailureCause
    n: int
    newest: LabelRow
    advice: str


@dataclass(frozen=True)
class Overview:
    """What stands above a list: how many there are, and why some failed."""

    counts: LabelCounts
    groups: tuple[CauseGroup, ...]


class OverviewCache:
    """Remembers overviews until a label changes; counting 100,000 labels takes a while.

    A label that another campaign asks for as well does not count as changed, so that what is
    remembered is also forgotten after :data:`FRESH_S`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[LabelFilter, tuple[object, float, Overview]] = {}

    def of(self, store: Store, chosen: LabelFilter) -> Overview:
        """Return counts and groups of the labels that match, whatever their state."""
        labels = store.database.otf_labels
        newest = labels.find_one({}, {"updated": 1}, sort=[("updated", -1)])
        stamp = (repr(newest), labels.estimated_document_count())
        with self._lock:
            kept = self._kept.get(chosen)
        if kept and kept[0] == stamp and time.monotonic() - kept[1] < FRESH_S:
            return kept[2]
        counts = label_counts(store, chosen)
        made = Overview(counts, cause_groups(store, chosen, counts))
        with self._lock:
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            self._kept[chosen] = (stamp, time.monotonic(), made)
        return made


def label_page(
    store: Store, chosen: LabelFilter, *, before: str | None = None, limit: int = PAGE
) -> LabelPage:
    """Return one page of labels, those changed last first.

    Parameters
    ----------
    store
        Our collections.
    chosen
        What to show.
    before
        ``LabelPage.older`` of the page before this one.
    limit
        Rows of a page.

    Raises
    ------
    InputError
        If ``before`` was not made by this function.
    """
    query = chosen.matching()
    if before:
        query = {"$and": [query, *_after(before)]}
    found = store.database.otf_labels.find(query, _ROW, **_hint(store, chosen))
    found = found.sort([("updated", -1), ("key", 1)])
    rows = [label_row(document, chosen.campaign) for document in found.limit(limit + 1)]
    last = rows[limit - 1] if len(rows) > limit else None
    return LabelPage(rows=tuple(rows[:limit]), older=_cursor(last) if last else None)


def label_counts(store: Store, chosen: LabelFilter) -> LabelCounts:
    """Return how many labels match in each state, whatever state and cause are chosen."""
    match = chosen.matching_any_state()
    group: dict[str, Any] = {"_id": {"state": "$state", "cause": "$cause"}, "n": {"$sum": 1}}
    if chosen.cycle is None and not chosen.text and not chosen.keys:
        # Counting along an index is ten times faster than grouping, and most labels are done.
        states = {state: _count(store, {**match, "state": str(state)}) for state in LabelState}
        match = {**match, "state": str(LabelState.FAILED)}
    else:
        states = dict.fromkeys(LabelState, 0)
    causes: dict[FailureCause, int] = {}
    pipeline = [{"$match": match}, {"$group": group}]
    for row in store.database.otf_labels.aggregate(pipeline, **_hint(store, chosen)):
        state, cause = LabelState(row["_id"]["state"]), row["_id"].get("cause")
        if "state" not in match:
            states[state] += row["n"]
        if state is LabelState.FAILED:
            known = FailureCause(cause) if cause else FailureCause.UNKNOWN
            causes[known] = causes.get(known, 0) + row["n"]
    return LabelCounts(states=states, causes=causes)


def cause_groups(store: Store, chosen: LabelFilter, counts: LabelCounts) -> tuple[CauseGroup, ...]:
    """Return the failures by cause, the most frequent first, each with its newest label."""
    groups = []
    for cause, n in sorted(counts.causes.items(), key=lambda item: (-item[1], item[0])):
        if chosen.causes and cause not in chosen.causes:
            continue
        newest = label_page(store, chosen.failed(cause), limit=1).rows
        if newest:
            groups.append(CauseGroup(cause=cause, n=n, newest=newest[0], advice=ADVICE[cause]))
    return tuple(groups)


def failed_keys(store: Store, chosen: LabelFilter, *, limit: int) -> list[str]:
    """Return the keys of the failed labels that match, those that failed last first."""
    found = store.database.otf_labels.find(chosen.failed().matching(), {"_id": 0, "key": 1})
    newest = found.sort([("updated", -1), ("key", 1)]).limit(limit)
    return [document["key"] for document in newest]


def label_rows(store: Store, keys: Sequence[str], campaign: str | None = None) -> list[LabelRow]:
    """Return the rows of these labels in the order of their keys; missing ones are left out."""
    found = store.database.otf_labels.find({"key": {"$in": list(keys)}}, _ROW)
    rows = {document["key"]: label_row(document, campaign) for document in found}
    return [rows[key] for key in keys if key in rows]


def label_row(document: Mapping[str, Any], campaign: str | None) -> LabelRow:
    """Return the row of one document, read with the projection of lists."""
    wishes = document.get("wanted_by") or []
    wish = next((w for w in wishes if w["campaign"] == campaign), wishes[0] if wishes else {})
    attempts = document.get("attempts") or []
    last = attempts[-1] if attempts else {}
    tries = [*(document.get("earlier") or []), *attempts]
    times = [t["seconds"] for t in tries if t.get("seconds") is not None]
    frame = document["frame"]
    cause = document.get("cause")
    return LabelRow(
        key=document["key"],
        state=LabelState(document["state"]),
        cause=FailureCause(cause) if cause else None,
        reason=document.get("reason"),
        campaign=wish.get("campaign"),
        cycle=wish.get("cycle"),
        purpose=wish.get("purpose"),
        formula=formula(frame["numbers"]),
        n_atoms=len(frame["numbers"]),
        temperature_K=(frame.get("origin") or {}).get("temperature_K"),
        sigma_eV_A=frame.get("sigma_eV_A"),
        seconds=sum(times) if times else None,
        core_hours=document.get("core_hours") or 0.0,
        n_tries=len(tries),
        host=last.get("host") or "",
        queue_id=last.get("queue_id"),
        directory=last.get("directory") or "",
        last_lines=tuple(last.get("last_lines") or ()),
        updated=utc(document["updated"]) or _EPOCH,
        code=(document.get("recipe") or {}).get("code") or "",
        imported=(document.get("imported") or {}).get("source"),
    )


def formula(numbers: Sequence[int]) -> str:
    """Return the chemical formula of these atomic numbers, metals first."""
    from ase.symbols import Symbols

    return Symbols(numbers).get_chemical_formula(mode="metal")


def _count(store: Store, query: dict[str, Any]) -> int:
    return int(store.database.command("count", "otf_labels", query=query)["n"])


def _hint(store: Store, chosen: LabelFilter) -> dict[str, Any]:
    """Return the index for a search in reasons; MongoDB finds the others by itself.

    It would try several plans at length before it sees that few reasons contain the text.
    """
    by_reason = chosen.text and not chosen.text_may_be_key
    there = by_reason and _BY_REASON in store.database.otf_labels.index_information()
    return {"hint": _BY_REASON} if there else {}


def _cursor(row: LabelRow) -> str:
    return f"{(row.updated - _EPOCH) // timedelta(milliseconds=1)}-{row.key}"


def _after(cursor: str) -> list[dict[str, Any]]:
    """Return the conditions for what comes after a row; the first one can use the index."""
    milliseconds, _, key = cursor.partition("-")
    if not milliseconds.isdecimal() or len(milliseconds) > 15 or not key.isalnum():
        raise InputError("this address names no place in the list", where="before")
    when = _EPOCH + timedelta(milliseconds=int(milliseconds))
    return [
        {"updated": {"$lte": when}},
        {"$or": [{"updated": {"$lt": when}}, {"key": {"$gt": key}}]},
    ]
