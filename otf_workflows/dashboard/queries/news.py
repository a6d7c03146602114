"""What has happened lately: failures since a moment, and the newest events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from otf_workflows.dashboard.queries.jobs import JobRow, job_rows
from otf_workflows.engine.routing import HELPER
from otf_workflows.types import LabelState, Stage

if TYPE_CHECKING:
    from datetime import datetime

    from pymongo.database import Database

MOST = 6
MOST_COUNTED = 1000
"""Beyond this many, the exact number does not matter to a person."""
_LABEL = {
    "_id": 0,
    "key": 1,
    "cause": 1,
    "reason": 1,
    "updated": 1,
    "wanted_by": {"$slice": 1},
}


@dataclass(frozen=True)
class FailedLabel:
    """A label that failed."""

    key: str
    cause: str
    reason: str
    campaign: str | None
    cycle: int | None
    updated: datetime


@dataclass(frozen=True)
class Happening:
    """An event."""

    when: datetime
    who: str
    what: str
    campaign: str | None
    cycle: int | None


@dataclass(frozen=True)
class News:
    """Failures after a moment, newest first, and how many there are."""

    since: datetime
    labels: list[FailedLabel]
    n_labels: int
    jobs: list[JobRow]
    n_jobs: int

    @property
    def n_failures(self) -> int:
        """Labels and jobs together."""
        return self.n_labels + self.n_jobs


def news(database: Database[dict[str, Any]], *, since: datetime) -> News:
    """Return what failed after a moment; a failure that was rerun is no news any more.

    Parameters
    ----------
    database
        The site's database.
    since
        The moment.
    """
    failed = {"state": str(LabelState.FAILED), "updated": {"$gt": since}}
    labels = database.otf_labels.find(failed, _LABEL).sort("updated", -1).limit(MOST)
    # A failed label is reported once, as a label. FireWorks writes this time as text.
    jobs = {
        "state": "FIZZLED",
        "updated_on": {"$gt": since.isoformat()},
        "spec.stage": {"$ne": str(Stage.LABEL)},
        "name": {"$ne": HELPER},
    }
    fireworks = database.fireworks.find(jobs, {"_id": 0, "spec._tasks": 0})
    return News(
        since=since,
        labels=[_label(document) for document in labels],
        n_labels=database.otf_labels.count_documents(failed, limit=MOST_COUNTED),
        jobs=job_rows(database, fireworks.sort("updated_on", -1).limit(MOST)),
        n_jobs=database.fireworks.count_documents(jobs, limit=MOST_COUNTED),
    )


def causes_since(database: Database[dict[str, Any]], *, since: datetime) -> dict[str, int]:
    """Return how many labels failed after a moment, by cause."""
    failed = {"state": str(LabelState.FAILED), "updated": {"$gt": since}}
    groups = database.otf_labels.aggregate(
        [
            {"$match": failed},
            {"$group": {"_id": "$cause", "n": {"$sum": 1}}},
            # MongoDB gives groups in any order, and the page must not jump.
            {"$sort": {"n": -1, "_id": 1}},
        ]
    )
    return {str(group["_id"] or "unknown"): group["n"] for group in groups}


def happenings(database: Database[dict[str, Any]], *, limit: int = 8) -> list[Happening]:
    """Return the newest events."""
    found = database.otf_events.find({}, {"_id": 0}).sort("when", -1).limit(limit)
    return [
        Happening(
            when=event["when"],
            who=str(event.get("who", "")),
            what=str(event.get("what", "")),
            campaign=event.get("campaign"),
            cycle=event.get("cycle"),
        )
        for event in found
    ]


def _label(document: dict[str, Any]) -> FailedLabel:
    wish = (document.get("wanted_by") or [{}])[0]
    return FailedLabel(
        key=document["key"],
        cause=str(document.get("cause") or "unknown"),
        reason=str(document.get("reason") or ""),
        campaign=wish.get("campaign"),
        cycle=wish.get("cycle"),
        updated=document["updated"],
    )
