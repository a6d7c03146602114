"""Everything at a glance: campaigns, the launch pad in numbers, what failed lately."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from otf_workflows.dashboard.queries.reader import LaunchPadReader
from otf_workflows.engine.records import STATES
from otf_workflows.progress import campaign_progress
from otf_workflows.types import Role

if TYPE_CHECKING:
    from datetime import datetime

    from pymongo.database import Database

    from otf_workflows.dashboard.backend import Backend
    from otf_workflows.progress import CampaignProgress


@dataclass(frozen=True)
class CampaignRow:
    """One campaign in the table."""

    progress: CampaignProgress
    tolerance_eV_A: float
    rmse_eV_A: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Glance:
    """The whole page."""

    campaigns: list[CampaignRow]
    roles: dict[Role, dict[str, int]]
    since: datetime


def glance(backend: Backend, *, since: datetime) -> Glance:
    """Return what the first page shows.

    Parameters
    ----------
    backend
        The database.
    since
        Failures after this moment are news.
    """
    with backend.reading() as database:
        reader = LaunchPadReader(database)
        rows = []
        for document in backend.store.campaigns():
            progress = campaign_progress(
                backend.store,
                reader,
                document.name,
                dft_workers=backend.dft_workers,  # type: ignore[arg-type]
            )
            rows.append(
                CampaignRow(
                    progress=progress,
                    tolerance_eV_A=document.campaign["tolerance_eV_A"],
                    rmse_eV_A=fresh_errors(progress),
                )
            )
        return Glance(campaigns=rows, roles=role_counts(database), since=since)


def fresh_errors(progress: CampaignProgress) -> list[float]:
    """Return the force RMSE (eV/Å) of each cycle's model on labels it had not seen."""
    found = [cycle.errors.get("incumbent/fresh") for cycle in progress.errors]
    return [item.force_rmse_eV_A for item in found if item is not None]


def role_counts(database: Database[dict[str, Any]]) -> dict[Role, dict[str, int]]:
    """Return how many jobs of each role are in each of our states."""
    counts: dict[Role, dict[str, int]] = {role: {} for role in Role}
    groups = database.fireworks.aggregate(
        [
            {"$match": {"state": {"$ne": "ARCHIVED"}}},
            {"$group": {"_id": {"s": "$state", "r": "$spec._category"}, "n": {"$sum": 1}}},
        ]
    )
    for group in groups:
        role = group["_id"].get("r")
        state = STATES.get(group["_id"]["s"])
        if role in set(Role) and state is not None:
            mine = counts[Role(role)]
            mine[str(state)] = mine.get(str(state), 0) + group["n"]
    return counts
