"""Talking to our own ``mongod`` while it is being set up: short waits, one server, its users."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pymongo import MongoClient


def set_user(
    client: MongoClient[dict[str, Any]], user: str, password: str, *, database: str
) -> None:
    """Make a user, or set one right who is there already."""
    from pymongo.errors import OperationFailure

    entry: dict[str, Any] = {"pwd": password, "roles": [{"role": "readWrite", "db": database}]}
    try:
        client.admin.command("createUser", user, **entry)
    except OperationFailure as error:
        if error.code != 51003:  # user exists
            raise
        client.admin.command("updateUser", user, **entry)


def direct_client(host: str, **options: Any) -> MongoClient[dict[str, Any]]:
    """Return a client of this one server; ``host`` may be the quoted path of a socket."""
    from pymongo import MongoClient

    if "%2F" in host:
        host = f"mongodb://{host}"
    patience = {"serverSelectionTimeoutMS": 5000, "connectTimeoutMS": 5000}
    return MongoClient(host, **{"directConnection": True, **patience, **options})
