"""Stamps by which the poller sees that something has changed; a few indexed look-ups in all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otf_workflows.dashboard.live import Topic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pymongo.database import Database

    from otf_workflows.dashboard.backend import Backend

NEWEST_CYCLES = 200
_CAMPAIGN = {"_id": 0, "name": 1, "state": 1, "reason": 1, "incumbent_id": 1, "totals": 1}
_CYCLE = {"_id": 1, "state": 1, "stages": 1, "challenger_id": 1, "verdict.decision": 1,
          "selection.threshold_eV_A": 1}  # fmt: skip


def stamps(backend: Backend) -> Mapping[Topic, object]:
    """Return a stamp for each topic.

    Raises
    ------
    DatabaseError
        If the database does not answer.
    """
    with backend.reading() as database:
        return {
            Topic.CAMPAIGNS: _campaigns(database),
            Topic.LABELS: _labels(database),
            Topic.JOBS: _jobs(database),
            Topic.MODELS: _models(database),
            Topic.DATABASE: True,
        }


def _campaigns(database: Database[dict[str, Any]]) -> object:
    """Campaigns and cycles carry no time of change, but they are few and small."""
    campaigns = list(database.otf_campaigns.find({}, _CAMPAIGN).sort("name", 1))
    cycles = database.otf_cycles.find({}, _CYCLE).sort("_id", -1).limit(NEWEST_CYCLES)
    newest = database.otf_events.find_one({}, {"_id": 1}, sort=[("when", -1)])
    return hash(repr((campaigns, list(cycles), newest)))


def _labels(database: Database[dict[str, Any]]) -> object:
    labels = database.otf_labels
    newest = labels.find_one({}, {"_id": 1, "updated": 1}, sort=[("updated", -1)])
    return repr(newest), labels.estimated_document_count()


def _jobs(database: Database[dict[str, Any]]) -> object:
    # FireWorks writes this time as text, and as a date in some of its versions.
    found = [
        collection.find_one(
            {"updated_on": {"$type": kind}}, {"_id": 1, "updated_on": 1}, sort=[("updated_on", -1)]
        )
        for collection in (database.fireworks, database.workflows)
        for kind in ("string", "date")
    ]
    return repr(found), database.fireworks.estimated_document_count()


def _models(database: Database[dict[str, Any]]) -> object:
    return tuple(
        database[name].estimated_document_count()
        for name in ("otf_models", "otf_datasets", "otf_properties")
    )
