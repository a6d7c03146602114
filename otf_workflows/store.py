"""The only reader and writer of our MongoDB collections.

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
from typing import TYPE_CHECKING, Any, TypeVar

from otf_workflows.claims import Claims
from otf_workflows.errors import InputError, NotFoundError
from otf_workflows.schemas import (
    Attempt,
    CampaignDocument,
    CycleDocument,
    DatasetDocument,
    Document,
    Event,
    Frame,
    LabelDocument,
    LabelResult,
    ModelDocument,
    PropertyDocument,
    Selection,
    core_hours,
    now,
)
from otf_workflows.types import CampaignState, CycleState, FailureCause, LabelState, Purpose

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pymongo.database import Database

D = TypeVar("D", bound=Document)

_INDEXES: dict[str, list[tuple[list[tuple[str, int]], bool]]] = {
    "otf_campaigns": [([("name", 1)], True), ([("state", 1)], False)],
    "otf_cycles": [([("campaign", 1), ("cycle", 1)], True)],
    "otf_labels": [
        ([("key", 1)], True),
        ([("wanted_by.campaign", 1), ("wanted_by.cycle", 1), ("state", 1)], False),
        ([("state", 1), ("cause", 1), ("updated", -1)], False),
    ],
    "otf_datasets": [([("campaign", 1), ("hash", 1)], True)],
    "otf_models": [([("model_id", 1)], True), ([("campaign", 1), ("cycle", 1)], False)],
    "otf_properties": [([("campaign", 1), ("kind", 1), ("model_id", 1)], True)],
    "otf_events": [([("campaign", 1), ("when", 1)], False), ([("when", 1)], False)],
}

GIVEN_UP = "given up before it started"
"""Reason of a label that nobody computes: its campaign was stopped."""

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


class Store:
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
        return _parse(CampaignDocument, found)

    def campaigns(self, *, states: Sequence[CampaignState] | None = None) -> list[CampaignDocument]:
        """Return campaigns, newest first."""
        query = {"state": {"$in": [str(s) for s in states]}} if states else {}
        found = self.database.otf_campaigns.find(query).sort("created", -1)
        return [_parse(CampaignDocument, item) for item in found]

    def set_campaign(self, name: str, **fields: Any) -> None:
        """Set fields of a campaign."""
        self.database.otf_campaigns.update_one({"name": name}, {"$set": _plain(fields)})

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
        return _parse(CycleDocument, found)

    def closed_cycle(self, campaign: str, cycle: int) -> CycleDocument | None:
        """Return a cycle if it is over; None if it is running or was never opened."""
        query = {"campaign": campaign, "cycle": cycle, "state": str(CycleState.DONE)}
        found = self.database.otf_cycles.find_one(query)
        return _parse(CycleDocument, found) if found else None

    def selection(self, campaign: str, cycle: int) -> Selection | None:
        """Return what a cycle chose to label; None if it has not yet."""
        query = {"campaign": campaign, "cycle": cycle}
        found = self.database.otf_cycles.find_one(query, {"selection": 1}) or {}
        return Selection.model_validate(found["selection"]) if found.get("selection") else None

    def cycles(self, campaign: str) -> list[CycleDocument]:
        """Return the cycles of a campaign in order, the production run last."""
        found = self.database.otf_cycles.find({"campaign": campaign}).sort("cycle", 1)
        return [_parse(CycleDocument, item) for item in found]

    def set_cycle(self, campaign: str, cycle: int, **fields: Any) -> None:
        """Set fields of a cycle."""
        self.database.otf_cycles.update_one(
            {"campaign": campaign, "cycle": cycle}, {"$set": _plain(fields)}
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

    # -- labels ------------------------------------------------------------------------------

    def want_label(
        self,
        key: str,
        frame: Frame,
        *,
        recipe: dict[str, Any],
        fingerprint: str,
        campaign: str,
        cycle: int,
    ) -> LabelDocument:
        """Ask for a label; it is created only if nobody ever asked for it."""
        wish = {"campaign": campaign, "cycle": cycle, "purpose": str(frame.purpose)}
        document = LabelDocument(
            key=key,
            state=LabelState.PENDING,
            frame=frame,
            recipe_fingerprint=fingerprint,
            recipe=recipe,
            wanted_by=[wish],
        )
        labels = self.database.otf_labels
        labels.update_one(
            {"key": key}, {"$setOnInsert": document.model_dump(mode="python")}, upsert=True
        )
        labels.update_one(
            {"key": key, "wanted_by.campaign": {"$ne": campaign}}, {"$push": {"wanted_by": wish}}
        )
        labels.update_one(
            {"key": key, "state": str(LabelState.FAILED), "reason": GIVEN_UP},
            {"$set": {"state": str(LabelState.PENDING), "cause": None, "reason": None}},
        )
        return self.label(key)

    def label(self, key: str) -> LabelDocument:
        """Return one label by its key or the beginning of it.

        Raises
        ------
        NotFoundError
            If none or more than one begins so.
        """
        found = list(
            self.database.otf_labels.find({"key": {"$gte": key, "$lt": key + "g"}}).limit(2)
        )
        if len(found) != 1:
            what = f"no label key begins with '{key}'" if not found else f"'{key}' is ambiguous"
            raise NotFoundError(what, hint="otf labels list")
        return _parse(LabelDocument, found[0])

    def labels(
        self,
        *,
        campaign: str | None = None,
        cycle: int | None = None,
        states: Sequence[LabelState] | None = None,
        causes: Sequence[FailureCause] | None = None,
        keys: Sequence[str] | None = None,
        limit: int = 0,
        light: bool = False,
    ) -> list[LabelDocument]:
        """Return labels, oldest first.

        Parameters
        ----------
        campaign, cycle
            Only labels that this campaign (this cycle of it) asked for.
        states, causes, keys
            Only these.
        limit
            At most so many; 0 for all.
        light
            Leave forces and other results out, for lists.
        """
        query: dict[str, Any] = {}
        wish = {k: v for k, v in (("campaign", campaign), ("cycle", cycle)) if v is not None}
        if wish:
            query["wanted_by"] = {"$elemMatch": wish}
        if states:
            query["state"] = {"$in": [str(s) for s in states]}
        if causes:
            query["cause"] = {"$in": [str(c) for c in causes]}
        if keys is not None:
            query["key"] = {"$in": list(keys)}
        projection = {"result": 0, "frame.features": 0} if light else None
        found = self.database.otf_labels.find(query, projection).sort([("created", 1), ("key", 1)])
        return [_parse(LabelDocument, item) for item in found.limit(limit)]

    def label_counts(self, campaign: str, *, cycle: int | None = None) -> dict[LabelState, int]:
        """Return how many labels of a campaign (of one cycle) are in each state."""
        wish = {"campaign": campaign} if cycle is None else {"campaign": campaign, "cycle": cycle}
        rows = self.database.otf_labels.aggregate(
            [
                {"$match": {"wanted_by": {"$elemMatch": wish}}},
                {"$group": {"_id": "$state", "n": {"$sum": 1}}},
            ]
        )
        counts = dict.fromkeys(LabelState, 0)
        counts.update({LabelState(row["_id"]): row["n"] for row in rows})
        return counts

    def campaigns_with_open_labels(self) -> set[str]:
        """Return campaigns that wait for a label, running or finished themselves."""
        waiting = {"state": {"$in": [str(LabelState.PENDING), str(LabelState.RUNNING)]}}
        return set(self.database.otf_labels.distinct("wanted_by.campaign", waiting))

    def label_costs(self, campaign: str) -> tuple[int, float]:
        """Return how many labels this campaign was the first to ask for, and their core-hours."""
        rows = list(
            self.database.otf_labels.aggregate(
                [
                    {"$match": {"wanted_by.0.campaign": campaign, "imported": None}},
                    {"$group": {"_id": None, "n": {"$sum": 1}, "hours": {"$sum": "$core_hours"}}},
                ]
            )
        )
        return (rows[0]["n"], rows[0]["hours"]) if rows else (0, 0.0)

    def label_seconds(self, fingerprints: Sequence[str], *, limit: int = 50) -> list[float]:
        """Return wall times (s) of the newest done labels of these levels of theory."""
        found = self.database.otf_labels.find(
            {"recipe_fingerprint": {"$in": list(fingerprints)}, "state": str(LabelState.DONE)},
            {"attempts.seconds": 1},
        )
        newest = found.sort("updated", -1).limit(limit)
        return [sum(a.get("seconds") or 0.0 for a in item.get("attempts", [])) for item in newest]

    def mark_label_running(self, key: str, attempt: Attempt) -> None:
        """Note that a worker has begun."""
        self.database.otf_labels.update_one(
            {"key": key, "state": {"$in": [str(LabelState.PENDING), str(LabelState.FAILED)]}},
            {
                "$set": _plain(
                    {"state": LabelState.RUNNING, "attempts": [attempt], "updated": now()}
                )
            },
        )

    def record_result(self, result: LabelResult, *, quarantine: str | None = None) -> bool:
        """Store a result, unless the label is done already; return whether it was stored.

        Parameters
        ----------
        result
            What the label job returned.
        quarantine
            Why it must not be trained on, if so.
        """
        state = LabelState.QUARANTINED if quarantine else LabelState.DONE
        fields = {
            "state": state,
            "result": result,
            "attempts": result.attempts,
            "core_hours": result.core_hours + self._earlier_hours(result.key),
            "cause": None,
            "reason": quarantine,
            "updated": now(),
        }
        settled = [str(LabelState.DONE), str(LabelState.QUARANTINED)]
        stored = self.database.otf_labels.update_one(
            {"key": result.key, "state": {"$nin": settled}}, {"$set": _plain(fields)}
        )
        return stored.modified_count == 1

    def record_failure(
        self, key: str, *, cause: FailureCause, reason: str, attempts: Sequence[Attempt] = ()
    ) -> bool:
        """Store a failure, unless the label is settled; return whether it was stored."""
        fields = {
            "state": LabelState.FAILED,
            "cause": cause,
            "reason": reason,
            "attempts": list(attempts),
            "core_hours": core_hours(attempts) + self._earlier_hours(key),
            "updated": now(),
        }
        stored = self.database.otf_labels.update_one(
            {"key": key, "state": {"$in": [str(LabelState.PENDING), str(LabelState.RUNNING)]}},
            {"$set": _plain(fields)},
        )
        return stored.modified_count == 1

    def import_label(self, document: LabelDocument) -> bool:
        """Enter a finished label of others; return False if there is a result already.

        A label that somebody waits for is settled by it.
        """
        labels = self.database.otf_labels
        plain = document.model_dump(mode="python")
        added = labels.update_one({"key": document.key}, {"$setOnInsert": plain}, upsert=True)
        if added.upserted_id is not None:
            return True
        names = ("state", "result", "imported", "cause", "reason", "updated")
        settled = [str(LabelState.DONE), str(LabelState.QUARANTINED)]
        stored = labels.update_one(
            {"key": document.key, "state": {"$nin": settled}},
            {"$set": {name: plain[name] for name in names}},
        )
        return stored.modified_count == 1

    def reset_label(self, key: str) -> bool:
        """Put a failed label back to pending before a rerun; its tries are kept."""
        earlier = {"$concatArrays": [{"$ifNull": ["$earlier", []]}, "$attempts"]}
        fields: dict[str, Any] = {"state": LabelState.PENDING, "cause": None, "attempts": []}
        stored = self.database.otf_labels.update_one(
            {"key": key, "state": str(LabelState.FAILED)},
            [{"$set": {"earlier": earlier}}, {"$set": _plain({**fields, "updated": now()})}],
        )
        if stored.modified_count:
            Claims(self.database).forget_failure(key)
        return stored.modified_count == 1

    def claim_adoption(self, key: str, campaign: str, *, seconds: float = 600.0) -> bool:
        """Claim the right to submit a job for a pending label that has none; one gets it."""
        free = {"$or": [{"adopted": None}, {"adopted.until": {"$lt": now()}}]}
        adopted = {"campaign": campaign, "until": now() + timedelta(seconds=seconds)}
        claimed = self.database.otf_labels.update_one(
            {"key": key, "state": str(LabelState.PENDING), **free}, {"$set": {"adopted": adopted}}
        )
        return claimed.modified_count == 1

    def _earlier_hours(self, key: str) -> float:
        """Return the core-hours of the tries before a rerun; they do not change any more."""
        found = self.database.otf_labels.find_one({"key": key}, {"earlier": 1}) or {}
        return core_hours([Attempt.model_validate(a) for a in found.get("earlier", [])])

    def purpose_of(self, label: LabelDocument, campaign: str) -> tuple[Purpose, int]:
        """Return why, and in which cycle, a campaign asked for a label."""
        wish = next(w for w in label.wanted_by if w["campaign"] == campaign)
        return Purpose(wish["purpose"]), int(wish["cycle"])

    # -- data sets, models, properties ----------------------------------------------------------

    def add_dataset(self, document: DatasetDocument) -> None:
        """Insert a data set; the same one again changes nothing."""
        self.database.otf_datasets.update_one(
            {"campaign": document.campaign, "hash": document.hash},
            {"$setOnInsert": document.model_dump(mode="python")},
            upsert=True,
        )

    def dataset(self, campaign: str, hash_: str) -> DatasetDocument:
        """Return one data set."""
        found = self.database.otf_datasets.find_one({"campaign": campaign, "hash": hash_})
        if found is None:
            raise NotFoundError(f"campaign '{campaign}' has no data set {hash_}")
        return _parse(DatasetDocument, found)

    def latest_dataset(self, campaign: str, *, cycle: int | None = None) -> DatasetDocument | None:
        """Return the newest data set of a campaign, or of one cycle of it."""
        query = {"campaign": campaign} if cycle is None else {"campaign": campaign, "cycle": cycle}
        found = self.database.otf_datasets.find_one(query, sort=[("cycle", -1), ("created", -1)])
        return _parse(DatasetDocument, found) if found else None

    def add_model(self, document: ModelDocument, *, weights: bytes | None = None) -> None:
        """Insert a model and its weights; the same one again changes nothing."""
        if weights is not None and not self._files.find_one({"filename": document.sha256}):
            self._files.put(weights, filename=document.sha256)
        self.database.otf_models.update_one(
            {"model_id": document.model_id},
            {"$setOnInsert": document.model_dump(mode="python")},
            upsert=True,
        )

    def model(self, model_id: str) -> ModelDocument:
        """Return one model by its id.

        Raises
        ------
        NotFoundError
            With the nearest id.
        """
        found = self.database.otf_models.find_one({"model_id": model_id})
        if found is None:
            near = get_close_matches(model_id, self.database.otf_models.distinct("model_id"), n=1)
            raise NotFoundError(
                f"no model is called '{model_id}'"
                + (f"; did you mean '{near[0]}'?" if near else ""),
                hint="otf models list",
            )
        return _parse(ModelDocument, found)

    def models(self, campaign: str | None = None) -> list[ModelDocument]:
        """Return models, oldest first."""
        query = {"campaign": campaign} if campaign else {}
        found = self.database.otf_models.find(query).sort("created", 1)
        return [_parse(ModelDocument, item) for item in found]

    def weights(self, model: ModelDocument) -> bytes | None:
        """Return the weights of a model; None for a pretrained one."""
        if model.sha256 is None:
            return None
        found = self._files.find_one({"filename": model.sha256})
        if found is None:
            raise NotFoundError(f"the weights of model '{model.model_id}' are missing in GridFS")
        return found.read()

    def put_file(self, name: str, content: bytes) -> None:
        """Store a large object in GridFS under a name, once."""
        if not self._files.find_one({"filename": name}):
            self._files.put(content, filename=name)

    def get_file(self, name: str) -> bytes | None:
        """Return a large object, or None."""
        found = self._files.find_one({"filename": name})
        return found.read() if found else None

    def add_property(self, document: PropertyDocument) -> None:
        """Insert or replace a property of a model."""
        key = document.model_dump(include={"campaign", "kind", "model_id"})
        self.database.otf_properties.replace_one(
            key, document.model_dump(mode="python"), upsert=True
        )

    def properties(self, campaign: str) -> list[PropertyDocument]:
        """Return the properties of a campaign, oldest first."""
        found = self.database.otf_properties.find({"campaign": campaign}).sort("created", 1)
        return [_parse(PropertyDocument, item) for item in found]

    def lineage(self, model_id: str) -> dict[str, Any]:
        """Return a model with its ancestors, data sets, labels and properties: one query.

        Labels come without arrays: key, state, purpose, origin (walker, step, temperature, the
        model that drove the walker), level of theory, core-hours and folder of the last attempt.
        """
        self.model(model_id)
        pipeline: list[dict[str, Any]] = [
            {"$match": {"model_id": model_id}},
            {
                "$graphLookup": {
                    "from": "otf_models",
                    "startWith": "$parent_id",
                    "connectFromField": "parent_id",
                    "connectToField": "model_id",
                    "as": "ancestors",
                    "depthField": "generation",
                }
            },
            {
                "$lookup": {
                    "from": "otf_datasets",
                    "let": {"c": "$campaign", "h": "$dataset_hash"},
                    "pipeline": [
                        {
                            "$match": {
                                "$expr": {
                                    "$and": [
                                        {"$eq": ["$campaign", "$$c"]},
                                        {"$eq": ["$hash", "$$h"]},
                                    ]
                                }
                            }
                        }
                    ],
                    "as": "dataset",
                }
            },
            {
                "$lookup": {
                    "from": "otf_labels",
                    "localField": "dataset.entries.key",
                    "foreignField": "key",
                    "pipeline": [
                        {
                            "$project": {
                                "_id": 0,
                                "key": 1,
                                "state": 1,
                                "recipe_fingerprint": 1,
                                "core_hours": 1,
                                "wanted_by": 1,
                                "frame.origin": 1,
                                "frame.purpose": 1,
                                "frame.sigma_eV_A": 1,
                                "directory": {"$last": "$attempts.directory"},
                            }
                        },
                        {"$sort": {"key": 1}},
                    ],
                    "as": "labels",
                }
            },
            {
                "$lookup": {
                    "from": "otf_properties",
                    "localField": "model_id",
                    "foreignField": "model_id",
                    "pipeline": [{"$project": {"_id": 0, "values": 0}}],
                    "as": "properties",
                }
            },
            {"$project": {"_id": 0, "ancestors._id": 0, "dataset._id": 0, "history": 0}},
        ]
        return next(iter(self.database.otf_models.aggregate(pipeline)))

    # -- events ------------------------------------------------------------------------------

    def event(self, what: str, *, who: str | None = None, **fields: Any) -> None:
        """Append an event: what happened, in a sentence."""
        document = Event(who=who or whoami(), what=what, **fields)
        self.database.otf_events.insert_one(document.model_dump(mode="python"))

    def events(self, campaign: str | None = None, *, limit: int = 0) -> list[Event]:
        """Return events, newest first."""
        query = {"campaign": campaign} if campaign else {}
        found = self.database.otf_events.find(query).sort("when", -1).limit(limit)
        return [_parse(Event, item) for item in found]

    @property
    def _files(self) -> Any:
        from gridfs import GridFS

        return GridFS(self.database, collection="otf_files")


def _parse(model: type[D], found: dict[str, Any]) -> D:
    found.pop("_id", None)
    return model.model_validate(found)


def _plain(value: Any) -> Any:
    """Return BSON-ready data: documents become dictionaries, enums their values."""
    if isinstance(value, Document):
        return value.model_dump(mode="python")
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
