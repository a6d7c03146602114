"""Everything at a glance: campaigns, the launch pad in numbers, what failed, what is healthy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from otf_workflows.dashboard.queries.health import Check, brief
from otf_workflows.dashboard.queries.news import Happening, News, happenings, news
from otf_workflows.types import CampaignState

if TYPE_CHECKING:
    from datetime import datetime

    from pymongo.database import Database

    from otf_workflows.dashboard.backend import Backend
    from otf_workflows.engine.base import JobState
    from otf_workflows.progress import CampaignProgress

MOST_ENDED = 8
"""Campaigns that are over, newest first; the others are on a page of their own."""


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
    n_more: int
    roles: dict[str, dict[JobState, int]]
    news: News
    health: list[Check]
    happenings: list[Happening]


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
        rows, n_more = campaign_rows(backend, database)
        roles = backend.roles.of(database)
        return Glance(
            campaigns=rows,
            n_more=n_more,
            roles=roles,
            news=news(database, since=since),
            health=brief(backend.site, database, roles),
            happenings=happenings(database),
        )


def campaign_rows(
    backend: Backend, database: Database[dict[str, Any]]
) -> tuple[list[CampaignRow], int]:
    """Return campaigns at work, then those that are over; and how many are left out."""
    fields = {"_id": 0, "name": 1, "state": 1, "campaign.tolerance_eV_A": 1}
    found = list(database.otf_campaigns.find({}, fields).sort("created", -1))
    at_work = [item for item in found if not CampaignState(item["state"]).terminal]
    ended = [item for item in found if CampaignState(item["state"]).terminal]
    rows = []
    for document in [*at_work, *ended[:MOST_ENDED]]:
        progress = backend.progress.of(backend, document["name"])
        rows.append(
            CampaignRow(
                progress=progress,
                tolerance_eV_A=document["campaign"]["tolerance_eV_A"],
                rmse_eV_A=fresh_errors(progress),
            )
        )
    return rows, max(len(ended) - MOST_ENDED, 0)


def fresh_errors(progress: CampaignProgress) -> list[float]:
    """Return the force RMSE (eV/Å) of each cycle's model on labels it had not seen."""
    found = [cycle.errors.get("incumbent/fresh") for cycle in progress.errors]
    return [item.force_rmse_eV_A for item in found if item is not None]
