"""What stands below the table of campaigns: jobs by role, failures of the last day, health.

The same as on the first page of the dashboard, for those without a tunnel.
"""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pymongo.database import Database

    from otf_workflows.settings import Site

LOOK_BACK = timedelta(days=1)
_SIGNS = {"ok": "✔", "failed": "✘", "paused": "!", "unknown": "·"}
_TOLD = ("running", "ready", "waiting", "paused", "failed")


def surroundings(site: Site, database: Database[dict[str, Any]]) -> list[str]:
    """Return lines on the launch pad, on failures and on health.

    Parameters
    ----------
    site
        The site.
    database
        Its database.
    """
    from otf_workflows.dashboard.queries.health import brief
    from otf_workflows.dashboard.queries.jobs import role_counts
    from otf_workflows.dashboard.queries.news import causes_since, news
    from otf_workflows.schemas import now

    roles = role_counts(database)
    told = [
        f"{role}: {', '.join(parts)}"
        for role, counts in roles.items()
        if (parts := [f"{counts[state]} {state}" for state in _TOLD if counts.get(state)])  # type: ignore[index, call-overload]
    ]
    since = now() - LOOK_BACK
    found = news(database, since=since)
    causes = Counter(causes_since(database, since=since))
    failures = [f"{n} labels ({cause})" for cause, n in causes.most_common()]
    failures += [f"job {job.fw_id} {job.name}" for job in found.jobs]
    lines = [
        f"{'jobs':<12} {'; '.join(told) or 'none waiting or running'}",
        f"{'failed today':<12} {', '.join(failures) or 'nothing'}",
    ]
    lines += [
        f"{check.name:<12} {_SIGNS.get(check.state, '·')} {check.sentence}"
        + (f" (next: {check.hint})" if check.hint else "")
        for check in brief(site, database, roles)
    ]
    return lines
