"""The launch pad: jobs and workflows by state, role and campaign, one page at a time."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from otf_workflows.engine.base import JobState
from otf_workflows.engine.records import STATES, failure, utc
from otf_workflows.engine.routing import CATEGORY, HELPER
from otf_workflows.types import Role

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from pymongo.database import Database

PAGE_SIZE = 50
FIREWORKS_OF = {
    state: [theirs for theirs, ours in STATES.items() if ours is state] for state in JobState
}
"""FireWorks' states behind each of ours."""

_JOB = {
    "_id": 0,
    "fw_id": 1,
    "name": 1,
    "state": 1,
    "launches": 1,
    "updated_on": 1,
    f"spec.{CATEGORY}": 1,
    "spec.campaign": 1,
    "spec.cycle": 1,
    "spec.kind": 1,
    "spec.stage": 1,
    "spec.label_key": 1,
    "spec._exception_details": 1,
}
_LAUNCH = {
    "_id": 0,
    "fw_id": 1,
    "host": 1,
    "time_start": 1,
    "time_end": 1,
    "fworker.name": 1,
    "action.stored_data._exception": 1,
}
_WORKFLOW = {
    "_id": 0,
    "name": 1,
    "state": 1,
    "metadata": 1,
    "fw_states": 1,
    "created_on": 1,
    "updated_on": 1,
}


@dataclass(frozen=True)
class JobFilter:
    """What a list of jobs or workflows is narrowed to; what is None does not matter."""

    state: JobState | None = None
    role: Role | None = None
    campaign: str | None = None
    cycle: int | None = None
    stage: str | None = None
    workflow: int | None = None
    text: str | None = None
    page: int = 1

    @property
    def is_everything(self) -> bool:
        """Whether nothing is left out."""
        return self == JobFilter(page=self.page)


@dataclass(frozen=True)
class JobRow:
    """One job in a list; ours or anybody's on this launch pad."""

    fw_id: int
    name: str
    state: JobState
    role: str | None
    campaign: str | None
    cycle: int | None
    kind: str | None
    stage: str | None
    label_key: str | None
    worker: str | None
    host: str | None
    started: datetime | None
    finished: datetime | None
    updated: datetime | None
    message: str | None

    @property
    def seconds(self) -> float | None:
        """How long it ran (s), if it has ended."""
        if self.started is None or self.finished is None:
            return None
        return max((self.finished - self.started).total_seconds(), 0.0)


@dataclass(frozen=True)
class WorkflowRow:
    """One workflow in a list. jobflow's own helper jobs count here, for they have no name."""

    workflow_id: int
    name: str
    state: JobState
    campaign: str | None
    cycle: int | None
    kind: str | None
    counts: dict[JobState, int]
    created: datetime | None
    updated: datetime | None

    @property
    def n_jobs(self) -> int:
        """Jobs in it."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class Listing:
    """One page of a list."""

    rows: list[Any]
    total: int
    campaigns: list[str] = field(default_factory=list)


def job_page(database: Database[dict[str, Any]], wanted: JobFilter) -> Listing:
    """Return one page of jobs, newest first.

    Parameters
    ----------
    database
        The site's database.
    wanted
        Which ones.
    """
    query = job_query(database, wanted)
    skip = (wanted.page - 1) * PAGE_SIZE
    found = database.fireworks.find(query, _JOB).sort("fw_id", -1).skip(skip).limit(PAGE_SIZE)
    return Listing(
        rows=job_rows(database, list(found)),
        total=_count(database.fireworks, query),
        campaigns=campaign_names(database),
    )


def job_query(database: Database[dict[str, Any]], wanted: JobFilter) -> dict[str, Any]:
    """Return the query for the fireworks of a filter; text is never a pattern."""
    query: dict[str, Any] = {}
    if wanted.state is not None:
        query["state"] = {"$in": FIREWORKS_OF[wanted.state]}
    exact = {
        f"spec.{CATEGORY}": wanted.role and str(wanted.role),
        "spec.campaign": wanted.campaign,
        "spec.cycle": wanted.cycle,
        "spec.stage": wanted.stage,
    }
    query |= {name: value for name, value in exact.items() if value is not None}
    if wanted.stage is not None:
        query["name"] = {"$ne": HELPER}
    if wanted.workflow is not None:
        found = database.workflows.find_one({"nodes": wanted.workflow}, {"nodes": 1})
        query["fw_id"] = {"$in": found["nodes"] if found else []}
    if wanted.text:
        if wanted.text.isdigit():
            query["fw_id"] = int(wanted.text)
        else:
            query.setdefault("$and", []).append(_like("name", wanted.text))
    return query


def job_rows(
    database: Database[dict[str, Any]], fireworks: Iterable[dict[str, Any]]
) -> list[JobRow]:
    """Return rows for fireworks that were read with the projection of lists."""
    fireworks = list(fireworks)
    newest = [max(firework["launches"]) for firework in fireworks if firework.get("launches")]
    launches = {
        launch["fw_id"]: launch
        for launch in database.launches.find({"launch_id": {"$in": newest}}, _LAUNCH)
    }
    return [_job_row(firework, launches.get(firework["fw_id"])) for firework in fireworks]


def _job_row(firework: dict[str, Any], launch: dict[str, Any] | None) -> JobRow:
    spec = firework.get("spec") or {}
    launch = launch or {}
    helper = firework.get("name") == HELPER
    why = failure({**firework, "spec": spec}, launch)
    return JobRow(
        fw_id=firework["fw_id"],
        name=str(firework.get("name") or "unnamed"),
        state=STATES.get(firework["state"], JobState.FAILED),
        role=_word(spec.get(CATEGORY)),
        campaign=_word(spec.get("campaign")),
        cycle=_number(spec.get("cycle")),
        kind=_word(spec.get("kind")),
        stage=None if helper else _word(spec.get("stage")),
        label_key=None if helper else _word(spec.get("label_key")),
        worker=_word((launch.get("fworker") or {}).get("name")),
        host=_word(launch.get("host")),
        started=utc(launch.get("time_start")),
        finished=utc(launch.get("time_end")),
        updated=utc(firework.get("updated_on")),
        message=str(why["message"]) if why else None,
    )


def workflow_page(database: Database[dict[str, Any]], wanted: JobFilter) -> Listing:
    """Return one page of workflows, newest first.

    Parameters
    ----------
    database
        The site's database.
    wanted
        Which ones; role and stage are those of jobs and do not matter here.
    """
    query: dict[str, Any] = {}
    if wanted.state is not None:
        query["state"] = {"$in": FIREWORKS_OF[wanted.state]}
    exact = {"metadata.campaign": wanted.campaign, "metadata.cycle": wanted.cycle}
    query |= {name: value for name, value in exact.items() if value is not None}
    if wanted.text:
        query |= (
            {"nodes": int(wanted.text)} if wanted.text.isdigit() else _like("name", wanted.text)
        )
    skip = (wanted.page - 1) * PAGE_SIZE
    found = database.workflows.find(query, _WORKFLOW).sort("_id", -1).skip(skip).limit(PAGE_SIZE)
    return Listing(
        rows=[workflow_row(item) for item in found],
        total=_count(database.workflows, query),
        campaigns=campaign_names(database),
    )


def workflow_row(document: dict[str, Any]) -> WorkflowRow:
    """Return the row of a workflow document."""
    states = document.get("fw_states") or {}
    counts: dict[JobState, int] = {}
    for state in states.values():
        ours = STATES.get(state)
        if ours is not None:
            counts[ours] = counts.get(ours, 0) + 1
    metadata = document.get("metadata") or {}
    return WorkflowRow(
        workflow_id=min((int(fw_id) for fw_id in states), default=0),
        name=str(document.get("name") or "unnamed"),
        state=STATES.get(document.get("state", ""), JobState.WAITING),
        campaign=_word(metadata.get("campaign")),
        cycle=_number(metadata.get("cycle")),
        kind=_word(metadata.get("kind")),
        counts=counts,
        created=utc(document.get("created_on")),
        updated=utc(document.get("updated_on")),
    )


def state_counts(database: Database[dict[str, Any]]) -> dict[JobState, int]:
    """Return how many jobs are in each state."""
    return {state: sum(row.values()) for state, row in _by_state(role_counts(database)).items()}


def role_counts(database: Database[dict[str, Any]]) -> dict[str, dict[JobState, int]]:
    """Return how many jobs of each role are in each state; one walk through an index.

    Jobs without one of our roles are counted under ``other``.
    """
    groups = database.fireworks.aggregate(
        [
            {"$match": {"state": {"$in": list(STATES)}}},
            {
                "$group": {
                    "_id": {"state": "$state", "role": f"$spec.{CATEGORY}"},
                    "n": {"$sum": 1},
                }
            },
        ]
    )
    counts: dict[str, dict[JobState, int]] = {str(role): {} for role in Role}
    for group in groups:
        state = STATES.get(group["_id"].get("state"))
        if state is None:  # archived
            continue
        role = group["_id"].get("role")
        mine = counts.setdefault(role if role in counts else "other", {})
        mine[state] = mine.get(state, 0) + group["n"]
    return counts


def campaign_names(database: Database[dict[str, Any]]) -> list[str]:
    """Return the names of all campaigns, newest first."""
    found = database.otf_campaigns.find({}, {"_id": 0, "name": 1}).sort("created", -1)
    return [document["name"] for document in found]


def _by_state(roles: dict[str, dict[JobState, int]]) -> dict[JobState, dict[str, int]]:
    table: dict[JobState, dict[str, int]] = {state: {} for state in JobState}
    for role, counts in roles.items():
        for state, n in counts.items():
            table[state][role] = n
    return table


def _like(name: str, text: str) -> dict[str, Any]:
    return {name: {"$regex": re.escape(text), "$options": "i"}}


def _count(collection: Any, query: dict[str, Any]) -> int:
    if not query:
        return int(collection.estimated_document_count())
    return int(collection.count_documents(query))


def _word(value: object) -> str | None:
    return str(value) if value is not None else None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None
