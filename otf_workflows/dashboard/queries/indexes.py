"""Indexes that the pages need beyond those of the store and of FireWorks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pymongo.database import Database

INDEXES: dict[str, list[list[tuple[str, int]]]] = {
    "otf_labels": [
        [("updated", -1)],
        [("wanted_by.campaign", 1), ("state", 1)],
        [("wanted_by.0.campaign", 1), ("imported", 1), ("core_hours", 1)],
    ],
    "fireworks": [
        [("spec.campaign", 1), ("state", 1)],
        [("state", 1), ("spec._category", 1)],
    ],
}


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
    except OperationFailure:
        return False
    return True


def missing_indexes(database: Database[dict[str, Any]]) -> list[str]:
    """Return ``collection: fields`` of indexes that are not there."""
    missing = []
    for collection, indexes in INDEXES.items():
        found = database[collection].index_information().values()
        there = {tuple(index["key"]) for index in found}
        missing += [
            f"{collection}: {', '.join(name for name, _ in keys)}"
            for keys in indexes
            if tuple(keys) not in there
        ]
    return missing
