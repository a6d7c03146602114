"""What the labels of a campaign cost, cycle by cycle, reckoned again only where something changed.

A pass over all labels of a campaign takes longer with every cycle, while all but the last cycle
stay as they are.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from otf_workflows.dashboard.queries.campaign import LabelLedger, label_ledgers

if TYPE_CHECKING:
    from datetime import datetime

    from otf_workflows.store import Store


@dataclass
class _Kept:
    """Ledgers of one campaign, and the last change of a label that they know of."""

    ledgers: dict[int, LabelLedger] = field(default_factory=dict)
    known: datetime | None = None


class LedgerCache:
    """Remembers the ledgers of every campaign that somebody has looked at."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}

    def of(self, store: Store, campaign: str) -> dict[int, LabelLedger]:
        """Return the ledger of each cycle of a campaign.

        Parameters
        ----------
        store
            Our collections.
        campaign
            Name of the campaign.
        """
        with self._lock:
            kept = self._kept.get(campaign, _Kept())
        labels = store.database.otf_labels
        mine = {"wanted_by.campaign": campaign}
        newest = labels.find_one(mine, {"updated": 1}, sort=[("updated", -1)])
        if newest is None:
            return {}
        ledgers = dict(kept.ledgers)
        if kept.known is None:
            ledgers = label_ledgers(store, campaign)
        else:
            # A change in the same millisecond as the last one known is seen as well.
            changed = labels.distinct("wanted_by", {**mine, "updated": {"$gte": kept.known}})
            cycles = {int(w["cycle"]) for w in changed if w["campaign"] == campaign}
            ledgers |= label_ledgers(store, campaign, cycles=sorted(cycles))
            # Asking for a label that another campaign has asked for changes no date.
            if labels.count_documents(mine) != sum(item.n_labels for item in ledgers.values()):
                ledgers = label_ledgers(store, campaign)
        with self._lock:
            self._kept[campaign] = _Kept(ledgers, newest["updated"])
        return dict(sorted(ledgers.items()))
