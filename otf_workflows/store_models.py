"""Data sets, models, properties and large files in MongoDB, and the lineage through them."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from otf_workflows.errors import NotFoundError
from otf_workflows.schemas import DatasetDocument, ModelDocument, PropertyDocument
from otf_workflows.store_documents import parse

if TYPE_CHECKING:
    from pymongo.database import Database


class ModelCollection:
    """Reads and writes data sets, models, properties; part of the store."""

    database: Database

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
        return parse(DatasetDocument, found)

    def latest_dataset(self, campaign: str, *, cycle: int | None = None) -> DatasetDocument | None:
        """Return the newest data set of a campaign, or of one cycle of it."""
        query = {"campaign": campaign} if cycle is None else {"campaign": campaign, "cycle": cycle}
        found = self.database.otf_datasets.find_one(query, sort=[("cycle", -1), ("created", -1)])
        return parse(DatasetDocument, found) if found else None

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
        return parse(ModelDocument, found)

    def models(self, campaign: str | None = None) -> list[ModelDocument]:
        """Return models, oldest first."""
        query = {"campaign": campaign} if campaign else {}
        found = self.database.otf_models.find(query).sort("created", 1)
        return [parse(ModelDocument, item) for item in found]

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

    def add_preview(self, uuid: str, trajectory: str) -> None:
        """Store some frames of the trajectory of a job, small enough for pages to show."""
        self.put_file(f"preview/{uuid}", trajectory.encode())

    def preview(self, uuid: str) -> str | None:
        """Return some frames of the trajectory of a job, encoded; None if none were stored."""
        content = self.get_file(f"preview/{uuid}")
        return content.decode() if content else None

    def add_property(self, document: PropertyDocument) -> None:
        """Insert or replace a property of a model."""
        key = document.model_dump(include={"campaign", "kind", "model_id"})
        self.database.otf_properties.replace_one(
            key, document.model_dump(mode="python"), upsert=True
        )

    def properties(self, campaign: str) -> list[PropertyDocument]:
        """Return the properties of a campaign, oldest first."""
        found = self.database.otf_properties.find({"campaign": campaign}).sort("created", 1)
        return [parse(PropertyDocument, item) for item in found]

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

    @property
    def _files(self) -> Any:
        from gridfs import GridFS

        return GridFS(self.database, collection="otf_files")
