"""Where each campaign stands, and how many jobs there are, reckoned again only after a change.

Every viewer and every figure asks for the same few things; a campaign that ended last year takes
four indexed look-ups, not a walk over its labels.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from otf_workflows.dashboard.queries.campaign import LabelLedger
from otf_workflows.dashboard.queries.jobs import role_counts
from otf_workflows.progress import campaign_progress
from otf_workflows.store import Store
from otf_workflows.types import CampaignState

if TYPE_CHECKING:
    from pymongo.database import Database

    from otf_workflows.dashboard.backend import Backend
    from otf_workflows.engine.base import JobState
    from otf_workflows.progress import CampaignProgress
    from otf_workflows.types import LabelState

FRESH_S = 5.0
"""What is said of a campaign at work is at most this old, since times run on (s)."""
COUNTS_FRESH_S = 30.0
"""The same for numbers of jobs, should somebody have changed one without leaving a time (s)."""


class ProgressCache:
    """Remembers where each campaign stands until something about it has changed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[str, float, CampaignProgress]] = {}

    def of(self, backend: Backend, name: str) -> CampaignProgress:
        """Return where a campaign stands.

        Parameters
        ----------
        backend
            The database.
        name
            The campaign.
        """
        stamp = _stamp(backend.database, name)
        with self._lock:
            kept = self._kept.get(name)
        if kept is not None and kept[0] == stamp:
            progress = kept[2]
            if progress.state.terminal or time.monotonic() - kept[1] < FRESH_S:
                return progress
        store = _LedgerStore(backend)
        progress = campaign_progress(store, backend.reader, name, dft_workers=backend.dft_workers)
        with self._lock:
            self._kept[name] = (stamp, time.monotonic(), progress)
        return progress


class _LedgerStore(Store):
    """Our collections; numbers of labels come from the ledgers that are kept."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend.database)
        self._ledgers = backend.ledgers

    def label_counts(self, campaign: str, *, cycle: int | None = None) -> dict[LabelState, int]:
        """Return how many labels of a campaign (of one cycle) are in each state."""
        ledgers = self._ledgers.of(self, campaign)
        if cycle is not None:
            return ledgers.get(cycle, LabelLedger()).counts
        return sum(ledgers.values(), LabelLedger()).counts

    def label_costs(self, campaign: str) -> tuple[int, float]:
        """Return how many labels this campaign was the first to ask for, and their core-hours."""
        total = sum(self._ledgers.of(self, campaign).values(), LabelLedger())
        return total.n_own, total.core_hours


class RoleCounts:
    """Remembers how many jobs of each role are in each state."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: tuple[str, float, dict[str, dict[JobState, int]]] | None = None

    def of(self, database: Database[dict[str, Any]]) -> dict[str, dict[JobState, int]]:
        """Return jobs by role and state.

        Parameters
        ----------
        database
            The site's database.
        """
        newest = database.fireworks.find_one({}, {"updated_on": 1}, sort=[("updated_on", -1)])
        stamp = repr((newest, database.fireworks.estimated_document_count()))
        with self._lock:
            kept = self._kept
        if kept and kept[0] == stamp and time.monotonic() - kept[1] < COUNTS_FRESH_S:
            return kept[2]
        counts = role_counts(database)
        with self._lock:
            self._kept = (stamp, time.monotonic(), counts)
        return counts


def _stamp(database: Database[dict[str, Any]], name: str) -> str:
    """Return a text that changes when anything that progress is made of changes."""
    campaign = database.otf_campaigns.find_one(
        {"name": name}, {"state": 1, "reason": 1, "totals": 1, "incumbent_id": 1, "finished": 1}
    )
    label = database.otf_labels.find_one(
        {"wanted_by.campaign": name}, {"updated": 1}, sort=[("updated", -1)]
    )
    if campaign is None or CampaignState(campaign["state"]).terminal:
        return repr((campaign, label))  # only a rerun of a label changes anything now
    cycle = database.otf_cycles.find_one(
        {"campaign": name},
        {"cycle": 1, "state": 1, "stages": 1, "errors": 1, "verdict": 1},
        sort=[("cycle", -1)],
    )
    job = database.fireworks.find_one(
        {"spec.campaign": name}, {"updated_on": 1}, sort=[("updated_on", -1)]
    )
    return repr((campaign, cycle, label, job))
