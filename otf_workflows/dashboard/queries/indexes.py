"""Indexes that the pages need beyond those of the store and of FireWorks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pymongo.database import Database

INDEXES: dict[str, list[list[tuple[str, int]]]] = {
    "otf_labels": [
        [("updated", -1), ("key", 1)],
        [("state", 1), ("updated", -1), ("key", 1)],
        [("state", 1), ("cause", 1), ("updated", -1), ("key", 1)],
        [("wanted_by.campaign", 1), ("updated", -1), ("key", 1)],
        [("wanted_by.campaign", 1), ("state", 1), ("updated", -1), ("key", 1)],
        [("wanted_by.campaign", 1), ("created", 1), ("key", 1)],
    ],
    "fireworks": [
        [("spec.campaign", 1), ("updated_on", -1)],
        [("spec.campaign", 1), ("fw_id", -1)],
        [("spec._category", 1), ("fw_id", -1)],
        [("state", 1), ("fw_id", -1)],
        [("state", 1), ("updated_on", -1)],
        [("state", 1), ("spec._category", 1)],
    ],
}

PARTIAL: list[tuple[str, list[tuple[str, int]], str]] = [
    ("otf_labels", [("reason", 1), ("updated", -1)], "reason"),
    ("otf_events", [("label_key", 1), ("when", -1)], "label_key"),
    ("otf_events", [("details.batch", 1)], "details.batch"),
]
"""Collection, fields, and the field without whose text a document is left out: most have none."""


def ensure_indexes(database: Database[dict[str, Any]]) -> bool:
    """Make the indexes; return False if this user may not.

    Parameters
    ----------
    database
        The site's database.
    """
    from pymongo.errors import OperationFailure

    try:
        for collection, indexes in INDEXES.items():
            for keys in indexes:
                database[collection].create_index(keys)
        for collection, keys, field in PARTIAL:
            only = {field: {"$type": "string"}}
            database[collection].create_index(keys, partialFilterExpression=only)
    except OperationFailure:
        return False
    return True


def missing_indexes(database: Database[dict[str, Any]]) -> list[str]:
    """Return ``collection: fields`` of indexes that are not there."""
    missing = []
    wanted = {name: list(indexes) for name, indexes in INDEXES.items()}
    for collection, keys, _ in PARTIAL:
        wanted.setdefault(collection, []).append(keys)
    for collection, indexes in wanted.items():
        found = database[collection].index_information().values()
        there = {tuple(index["key"]) for index in found}
        missing += [
            f"{collection}: {', '.join(name for name, _ in keys)}"
            for keys in indexes
            if tuple(keys) not in there
        ]
    return missing
