"""The labels in MongoDB: who asked for them, how they stand, what they gave and cost."""

from __future__ import annotations

from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from otf_workflows.claims import Claims
from otf_workflows.errors import NotFoundError
from otf_workflows.schemas import Attempt, Frame, LabelDocument, LabelResult, core_hours, now
from otf_workflows.store_documents import parse, plain
from otf_workflows.types import FailureCause, LabelState, Purpose

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from pymongo.database import Database

GIVEN_UP = "given up before it started"
"""Reason of a label that nobody computes: its campaign was stopped."""


FEATURES_CHUNK = 2000
"""Documents read at once for their features."""


class KnownFeatures(NamedTuple):
    """Latent features of labels: their keys, and one row for each, shape (n, d)."""

    keys: list[str]
    features: np.ndarray


class LabelCollection:
    """Reads and writes ``otf_labels``; part of :class:`~otf_workflows.store.Store`."""

    database: Database

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
        from pymongo import UpdateOne

        wish = {"campaign": campaign, "cycle": cycle, "purpose": str(frame.purpose)}
        document = LabelDocument(
            key=key,
            state=LabelState.PENDING,
            frame=frame,
            recipe_fingerprint=fingerprint,
            recipe=recipe,
            wanted_by=[wish],
        )
        given_up = {"state": str(LabelState.FAILED), "reason": GIVEN_UP}
        again = {"state": str(LabelState.PENDING), "cause": None, "reason": None}
        self.database.otf_labels.bulk_write(  # one journey for three steps, in this order
            [
                UpdateOne(
                    {"key": key}, {"$setOnInsert": document.model_dump(mode="python")}, upsert=True
                ),
                UpdateOne(
                    {"key": key, "wanted_by.campaign": {"$ne": campaign}},
                    {"$push": {"wanted_by": wish}},
                ),
                UpdateOne({"key": key, **given_up}, {"$set": again}),
            ]
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
        return parse(LabelDocument, found[0])

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
        return [parse(LabelDocument, item) for item in found.limit(limit)]

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

    def newest_done_labels(
        self, *, limit: int = 50, fingerprints: Sequence[str] | None = None
    ) -> list[LabelDocument]:
        """Return the labels finished last, of whatever campaign, without their results.

        Parameters
        ----------
        limit
            At most so many.
        fingerprints
            Only of these levels of theory.
        """
        query: dict[str, Any] = {"state": str(LabelState.DONE)}
        if fingerprints is None:
            query["cause"] = None  # in the order of the index
        else:
            query["recipe_fingerprint"] = {"$in": list(fingerprints)}
        found = self.database.otf_labels.find(query, {"result": 0, "frame.features": 0})
        return [parse(LabelDocument, item) for item in found.sort("updated", -1).limit(limit)]

    def features_of_campaign(
        self, campaign: str, *, before_cycle: int, potential: str
    ) -> KnownFeatures:
        """Return latent features of all labels that a campaign asked for before a cycle."""
        wish = {"campaign": campaign, "cycle": {"$lt": before_cycle}}
        return self._features({"wanted_by": {"$elemMatch": wish}}, potential)

    def features_of_level(self, fingerprints: Sequence[str], *, potential: str) -> KnownFeatures:
        """Return latent features of all finished labels of these levels of theory."""
        levels = {"recipe_fingerprint": {"$in": list(fingerprints)}}
        return self._features({**levels, "state": str(LabelState.DONE)}, potential)

    def _features(self, query: dict[str, Any], potential: str) -> KnownFeatures:
        """Return keys and features in the order of the keys, a chunk of documents at a time.

        Features by another potential cannot be compared. A hundred thousand labels take 50 MB.
        """
        import numpy as np

        found = self.database.otf_labels.find(
            {**query, "frame.features_of": potential},
            {"_id": 0, "key": 1, "frame.features": 1},
            batch_size=FEATURES_CHUNK,
        )
        keys: list[str] = []
        blocks: list[np.ndarray] = []
        while chunk := list(islice(found, FEATURES_CHUNK)):
            keys += [item["key"] for item in chunk]
            blocks.append(np.array([item["frame"]["features"] for item in chunk]))
        if not keys:
            return KnownFeatures([], np.empty((0, 0)))
        order = np.argsort(np.array(keys), kind="stable")
        return KnownFeatures([keys[i] for i in order], np.concatenate(blocks)[order])

    def count_labels(self, campaign: str, *, before_cycle: int) -> int:
        """Return how many labels a campaign asked for before a cycle."""
        wish = {"campaign": campaign, "cycle": {"$lt": before_cycle}}
        return self.database.otf_labels.count_documents({"wanted_by": {"$elemMatch": wish}})

    def mark_label_running(self, key: str, attempt: Attempt) -> None:
        """Note that a worker has begun."""
        self.database.otf_labels.update_one(
            {"key": key, "state": {"$in": [str(LabelState.PENDING), str(LabelState.FAILED)]}},
            {"$set": plain({"state": LabelState.RUNNING, "attempts": [attempt], "updated": now()})},
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
            {"key": result.key, "state": {"$nin": settled}}, {"$set": plain(fields)}
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
            {"$set": plain(fields)},
        )
        return stored.modified_count == 1

    def add_lost_try(self, key: str, attempt: Attempt) -> bool:
        """Keep a try that was lost with its batch job and is repeated; once, if told twice."""
        same = {"$elemMatch": {"queue_id": attempt.queue_id, "directory": attempt.directory}}
        stored = self.database.otf_labels.update_one(
            {"key": key, "earlier": {"$not": same}}, {"$push": {"earlier": plain(attempt)}}
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
            [{"$set": {"earlier": earlier}}, {"$set": plain({**fields, "updated": now()})}],
        )
        if stored.modified_count:
            Claims(self.database).forget_failure(key)
        return stored.modified_count == 1

    def reopen_label(self, key: str) -> None:
        """Take back that the old failure was booked again while a rerun was being submitted."""
        fields: dict[str, Any] = {
            "state": LabelState.PENDING,
            "cause": None,
            "reason": None,
            "attempts": [],
        }
        self.database.otf_labels.update_one(
            {"key": key, "state": str(LabelState.FAILED)},
            {"$set": plain({**fields, "updated": now()})},
        )

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
