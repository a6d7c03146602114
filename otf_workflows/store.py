"""The only reader and writer of our MongoDB collections; labels and models in modules beside it.

Every write is one atomic update with a precondition, so that any process may die at any moment
and two may race: a done label is never overwritten, a cycle is opened once, an event is only
added.
"""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from otf_workflows.errors import InputError, NotFoundError
from otf_workflows.schemas import CampaignDocument, CycleDocument, Event, Selection, now
from otf_workflows.store_documents import parse, plain
from otf_workflows.store_labels import LabelCollection
from otf_workflows.store_models import ModelCollection
from otf_workflows.types import CampaignState, CycleState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pymongo.database import Database

_INDEXES: dict[str, list[tuple[list[tuple[str, int]], bool]]] = {
    "otf_campaigns": [([("name", 1)], True), ([("state", 1)], False)],
    "otf_cycles": [([("campaign", 1), ("cycle", 1)], True)],
    "otf_labels": [
        ([("key", 1)], True),
        ([("wanted_by.campaign", 1), ("wanted_by.cycle", 1), ("state", 1)], False),
        ([("state", 1), ("cause", 1), ("updated", -1)], False),
        ([("recipe_fingerprint", 1), ("state", 1), ("updated", -1)], False),
    ],
    "otf_datasets": [([("campaign", 1), ("hash", 1)], True)],
    "otf_models": [([("model_id", 1)], True), ([("campaign", 1), ("cycle", 1)], False)],
    "otf_properties": [([("campaign", 1), ("kind", 1), ("model_id", 1)], True)],
    "otf_events": [([("campaign", 1), ("when", 1)], False), ([("when", 1)], False)],
}

_current: ContextVar[Store | None] = ContextVar("otf_store", default=None)


def current_store() -> Store:
    """Return the store in use: the one set by :func:`using`, else the site's."""
    store = _current.get()
    if store is not None:
        return store
    from otf_workflows.connection import connect
    from otf_workflows.settings import load_site

    return Store(connect(load_site()))


@contextmanager
def using(store: Store) -> Iterator[Store]:
    """Make ``store`` the one that jobs of this process use."""
    token = _current.set(store)
    try:
        yield store
    finally:
        _current.reset(token)


def whoami() -> str:
    """Return who acts, for events and leases: user@host:pid."""
    import getpass

    return f"{getpass.getuser()}@{socket.gethostname()}:{os.getpid()}"


class Store(LabelCollection, ModelCollection):
    """Our collections in one database.

    Parameters
    ----------
    database
        A connected pymongo database.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def ensure_indexes(self) -> None:
        """Create unique keys and indexes; safe to call at any time."""
        for collection, indexes in _INDEXES.items():
            for keys, unique in indexes:
                self.database[collection].create_index(keys, unique=unique)

    def missing_indexes(self) -> list[str]:
        """Return the collections that lack one of their indexes, for a check-up."""
        missing = []
        for collection, indexes in _INDEXES.items():
            found = self.database[collection].index_information().values()
            there = {tuple(index["key"]) for index in found}
            if any(tuple(keys) not in there for keys, _ in indexes):
                missing.append(collection)
        return missing

    # -- campaigns ---------------------------------------------------------------------------

    def add_campaign(self, document: CampaignDocument) -> bool:
        """Insert a campaign; return False if this very campaign is there already.

        Raises
        ------
        InputError
            If another campaign has the name.
        """
        found = self.database.otf_campaigns.find_one_and_update(
            {"name": document.name},
            {"$setOnInsert": document.model_dump(mode="python")},
            upsert=True,
            projection={"digest": 1},
        )
        if found is None:
            return True
        if found["digest"] != document.digest:
            raise InputError(
                f"a campaign named '{document.name}' exists and has other settings",
                where="field 'name' of the campaign file",
                hint=f"otf submit FILE --name {document.name}-2   (labels are shared by content)",
            )
        return False

    def campaign(self, name: str) -> CampaignDocument:
        """Return one campaign.

        Raises
        ------
        NotFoundError
            With the nearest names.
        """
        found = self.database.otf_campaigns.find_one({"name": name})
        if found is None:
            names = self.database.otf_campaigns.distinct("name")
            near = get_close_matches(name, names, n=1)
            raise NotFoundError(
                f"no campaign is named '{name}'" + (f"; did you mean '{near[0]}'?" if near else ""),
                hint="otf status",
            )
        return parse(CampaignDocument, found)

    def campaigns(self, *, states: Sequence[CampaignState] | None = None) -> list[CampaignDocument]:
        """Return campaigns, newest first."""
        query = {"state": {"$in": [str(s) for s in states]}} if states else {}
        found = self.database.otf_campaigns.find(query).sort("created", -1)
        return [parse(CampaignDocument, item) for item in found]

    def set_campaign(self, name: str, **fields: Any) -> None:
        """Set fields of a campaign."""
        self.database.otf_campaigns.update_one({"name": name}, {"$set": plain(fields)})

    @contextmanager
    def lease(self, name: str, *, seconds: float = 120.0) -> Iterator[bool]:
        """Hold the right to reconcile a campaign; yields False if somebody else holds it.

        The lease runs out by itself, so a killed holder blocks nobody for long.
        """
        owner = whoami()
        free = {"$or": [{"lease": None}, {"lease.until": {"$lt": now()}}, {"lease.owner": owner}]}
        held = self.database.otf_campaigns.update_one(
            {"name": name, **free},
            {"$set": {"lease": {"owner": owner, "until": now() + timedelta(seconds=seconds)}}},
        )
        try:
            yield held.matched_count == 1
        finally:
            self.database.otf_campaigns.update_one(
                {"name": name, "lease.owner": owner}, {"$set": {"lease": None}}
            )

    # -- cycles ------------------------------------------------------------------------------

    def open_cycle(self, document: CycleDocument) -> bool:
        """Insert a cycle; return False if it is open already. Its key is (campaign, cycle)."""
        result = self.database.otf_cycles.update_one(
            {"campaign": document.campaign, "cycle": document.cycle},
            {"$setOnInsert": document.model_dump(mode="python")},
            upsert=True,
        )
        return result.upserted_id is not None

    def cycle(self, campaign: str, cycle: int) -> CycleDocument:
        """Return one cycle."""
        found = self.database.otf_cycles.find_one({"campaign": campaign, "cycle": cycle})
        if found is None:
            raise NotFoundError(f"campaign '{campaign}' has no cycle {cycle}", hint="otf status")
        return parse(CycleDocument, found)

    def closed_cycle(self, campaign: str, cycle: int) -> CycleDocument | None:
        """Return a cycle if it is over; None if it is running or was never opened."""
        query = {"campaign": campaign, "cycle": cycle, "state": str(CycleState.DONE)}
        found = self.database.otf_cycles.find_one(query)
        return parse(CycleDocument, found) if found else None

    def selection(self, campaign: str, cycle: int) -> Selection | None:
        """Return what a cycle chose to label; None if it has not yet."""
        query = {"campaign": campaign, "cycle": cycle}
        found = self.database.otf_cycles.find_one(query, {"selection": 1}) or {}
        return Selection.model_validate(found["selection"]) if found.get("selection") else None

    def cycles(self, campaign: str, *, light: bool = False) -> list[CycleDocument]:
        """Return the cycles of a campaign in order, the production run last.

        Parameters
        ----------
        campaign
            Name of the campaign.
        light
            Leave the curves of the walkers out, for lists.
        """
        curves = dict.fromkeys(
            (
                *("walkers.steps", "walkers.sigmas_eV_A", "walkers.temperatures_K"),
                *("walkers.targets_K", "walkers.bias_eV"),
            ),
            0,
        )
        found = self.database.otf_cycles.find(
            {"campaign": campaign}, curves if light else None
        ).sort("cycle", 1)
        return [parse(CycleDocument, item) for item in found]

    def set_cycle(self, campaign: str, cycle: int, **fields: Any) -> None:
        """Set fields of a cycle."""
        self.database.otf_cycles.update_one(
            {"campaign": campaign, "cycle": cycle}, {"$set": plain(fields)}
        )

    def set_cycle_state(
        self, campaign: str, cycle: int, *, was: CycleState, to: CycleState
    ) -> bool:
        """Move a cycle from one state to another; return False if it was not in the first."""
        moved = self.database.otf_cycles.update_one(
            {"campaign": campaign, "cycle": cycle, "state": str(was)},
            {"$set": {"state": str(to)}},
        )
        return moved.modified_count == 1

    # -- events ------------------------------------------------------------------------------

    def event(self, what: str, *, who: str | None = None, **fields: Any) -> None:
        """Append an event: what happened, in a sentence."""
        document = Event(who=who or whoami(), what=what, **fields)
        self.database.otf_events.insert_one(document.model_dump(mode="python"))

    def events(self, campaign: str | None = None, *, limit: int = 0) -> list[Event]:
        """Return events, newest first."""
        query = {"campaign": campaign} if campaign else {}
        found = self.database.otf_events.find(query).sort("when", -1).limit(limit)
        return [parse(Event, item) for item in found]
