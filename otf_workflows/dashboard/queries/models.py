"""Models and data sets, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from otf_workflows.schemas import ModelDocument, PropertyDocument
from otf_workflows.store_documents import parse
from otf_workflows.types import LabelState, Split

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from otf_workflows.store import Store

LABELS_SHOWN = 200
"""Labels of a lineage or a data set on one page; the download has them all."""
MAX_GENERATIONS = 50


@dataclass(frozen=True)
class DatasetLine:
    """One data set in a list."""

    hash: str
    campaign: str
    cycle: int
    created: datetime
    splits: dict[Split, int]
    parent_hash: str | None
    fingerprint: str

    @property
    def n_labels(self) -> int:
        """Labels of all splits."""
        return sum(self.splits.values())


@dataclass(frozen=True)
class LabelLine:
    """One label of a data set and its origin, without arrays."""

    key: str
    state: LabelState
    split: Split | None
    purpose: str
    cycle: int | None
    walker: int | None
    step: int | None
    temperature_K: float | None
    model_id: str | None
    note: str | None
    core_hours: float


@dataclass(frozen=True)
class ModelsView:
    """The list of models and data sets."""

    models: Sequence[ModelDocument]
    datasets: Sequence[DatasetLine]
    campaigns: Sequence[str]
    incumbents: dict[str, str] = field(default_factory=dict)

    def status(self, model: ModelDocument) -> str:
        """Return what became of a model: pretrained, in use, promoted or rejected."""
        if model.campaign is None:
            return "pretrained"
        if self.incumbents.get(model.campaign) == model.model_id:
            return "in use"
        return "promoted" if model.promoted else "rejected"


@dataclass(frozen=True)
class ModelView:
    """One model and its lineage."""

    model: ModelDocument
    status: str
    ancestors: Sequence[ModelDocument]
    children: Sequence[str]
    dataset: DatasetLine | None
    labels: Sequence[LabelLine]
    properties: Sequence[PropertyDocument]


@dataclass(frozen=True)
class DatasetView:
    """One data set."""

    dataset: DatasetLine
    models: Sequence[str]
    labels: Sequence[LabelLine]
    n_by_purpose: dict[str, int]


def models_view(store: Store, *, campaign: str | None = None) -> ModelsView:
    """Return all models and data sets, newest first, or those of one campaign."""
    query: dict[str, Any] = {"campaign": campaign} if campaign else {}
    wanted = {"$or": [query, {"campaign": None}]} if campaign else {}
    found = store.database.otf_models.find(wanted, {"history": 0, "alignment": 0})
    campaigns = store.database.otf_campaigns.find({}, {"name": 1, "incumbent_id": 1, "_id": 0})
    incumbents = {item["name"]: item["incumbent_id"] for item in campaigns.sort("name", 1)}
    return ModelsView(
        models=[parse(ModelDocument, item) for item in found.sort("created", -1)],
        datasets=_datasets(store, query),
        campaigns=list(incumbents),
        incumbents=incumbents,
    )


def model_view(store: Store, model_id: str) -> ModelView:
    """Return one model with its ancestors, data set, labels and properties.

    Raises
    ------
    NotFoundError
        If there is no such model.
    """
    model = store.model(model_id)
    dataset, labels = None, []
    if model.campaign and model.dataset_hash:
        found = _datasets(store, {"campaign": model.campaign, "hash": model.dataset_hash})
        dataset = found[0] if found else None
        labels = _labels(store, model.campaign, model.dataset_hash)
    properties = store.database.otf_properties.find({"model_id": model_id})
    kept = {"status": "pretrained"}
    if model.campaign:
        incumbent = store.database.otf_campaigns.find_one(
            {"name": model.campaign}, {"incumbent_id": 1}
        )
        in_use = bool(incumbent and incumbent["incumbent_id"] == model_id)
        kept["status"] = "in use" if in_use else "promoted" if model.promoted else "rejected"
    children = store.database.otf_models.find({"parent_id": model_id}, {"model_id": 1})
    return ModelView(
        model=model,
        status=kept["status"],
        ancestors=_ancestors(store, model),
        children=[item["model_id"] for item in children.sort("created", 1)],
        dataset=dataset,
        labels=labels,
        properties=[parse(PropertyDocument, item) for item in properties.sort("created", 1)],
    )


def dataset_view(store: Store, campaign: str, hash_: str) -> DatasetView:
    """Return one data set.

    Raises
    ------
    NotFoundError
        If there is no such data set.
    """
    document = store.dataset(campaign, hash_)
    line = _datasets(store, {"campaign": campaign, "hash": document.hash})[0]
    trained = store.database.otf_models.find(
        {"campaign": campaign, "dataset_hash": hash_}, {"model_id": 1}
    )
    keys = [entry["key"] for entry in document.entries]
    purposes = store.database.otf_labels.aggregate(
        [
            {"$match": {"key": {"$in": keys}}},
            {"$unwind": "$wanted_by"},
            {"$match": {"wanted_by.campaign": campaign}},
            {"$group": {"_id": "$wanted_by.purpose", "n": {"$sum": 1}}},
            {"$sort": {"_id": 1}},
        ]
    )
    return DatasetView(
        dataset=line,
        models=[item["model_id"] for item in trained.sort("created", 1)],
        labels=_labels(store, campaign, hash_),
        n_by_purpose={row["_id"]: row["n"] for row in purposes},
    )


def _datasets(store: Store, query: dict[str, Any]) -> list[DatasetLine]:
    """Return data sets without their entries, newest first; the server counts the splits."""
    counts = {
        str(split): {
            "$size": {
                "$filter": {"input": "$entries", "cond": {"$eq": ["$$this.split", str(split)]}}
            }
        }
        for split in Split
    }
    rows = store.database.otf_datasets.aggregate(
        [{"$match": query}, {"$sort": {"created": -1}}, {"$addFields": counts},
         {"$project": {"entries": 0}}]
    )  # fmt: skip
    return [
        DatasetLine(
            hash=row["hash"],
            campaign=row["campaign"],
            cycle=row["cycle"],
            created=row["created"],
            splits={split: row[str(split)] for split in Split},
            parent_hash=row.get("parent_hash"),
            fingerprint=row["recipe_fingerprint"],
        )
        for row in rows
    ]


def _ancestors(store: Store, model: ModelDocument) -> list[ModelDocument]:
    """Return parents, the nearest first."""
    found: list[ModelDocument] = []
    parent = model.parent_id
    while parent is not None and len(found) < MAX_GENERATIONS:
        item = store.database.otf_models.find_one({"model_id": parent}, {"history": 0})
        if item is None:
            break
        found.append(parse(ModelDocument, item))
        parent = found[-1].parent_id
    return found


def _labels(store: Store, campaign: str, hash_: str) -> list[LabelLine]:
    """Return the first labels of a data set with their origin."""
    document = store.dataset(campaign, hash_)
    splits = {entry["key"]: Split(entry["split"]) for entry in document.entries}
    fields = {
        "_id": 0, "key": 1, "state": 1, "core_hours": 1, "wanted_by": 1, "frame.origin": 1,
    }  # fmt: skip
    shown = sorted(splits)[:LABELS_SHOWN]
    rows = []
    for item in store.database.otf_labels.find({"key": {"$in": shown}}, fields):
        origin = item["frame"].get("origin", {})
        wish: dict[str, Any] = next((w for w in item["wanted_by"] if w["campaign"] == campaign), {})
        rows.append(
            LabelLine(
                key=item["key"],
                state=LabelState(item["state"]),
                split=splits[item["key"]],
                purpose=wish.get("purpose", ""),
                cycle=wish.get("cycle"),
                core_hours=item.get("core_hours", 0.0),
                **{
                    name: origin.get(name)
                    for name in ("walker", "step", "temperature_K", "model_id", "note")
                },
            )
        )
    return sorted(rows, key=lambda row: (row.cycle or 0, row.walker or 0, row.step or 0, row.key))
