"""What ``otf doctor`` asks of the database: encryption, rights, room, indexes. It only reads."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from typing import TYPE_CHECKING, Any

from otf_workflows.errors import OtfError
from otf_workflows.preflight import Check

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pymongo.database import Database

    from otf_workflows.settings import DatabaseSettings, Site

MIN_DATABASE_BYTES = 2 * 1024**3
"""Least free disk on the database server: a model takes 2 MB, a trajectory tens of MB."""
NEEDED_ACTIONS = frozenset({"find", "insert", "update", "remove", "createIndex"})
"""What a user may do who has MongoDB's role readWrite on a database."""
_HANDSHAKE_S = 5.0


def tls(site: Site, *, answers: bool) -> Check:
    """Tell whether data cross the network in the clear, and whether TLS is why nobody answers.

    Parameters
    ----------
    site
        The site.
    answers
        Whether the database was reached as the site file says.
    """
    name = "encryption"
    database = site.database
    if database.mode == "embedded":
        return Check(name=name, ok=True, detail="not needed: the database is on this machine")
    if not answers:
        return _tls_in_the_way(database)
    if database.tls:
        return Check(name=name, ok=True, detail=f"TLS to {database.host}, certificate verified")
    if is_loopback(database.host):
        return Check(name=name, ok=True, detail="not needed: the database is on this machine")
    return Check(
        name=name,
        ok=True,
        detail=f"data cross the network to {database.host} in the clear",
        hint="let the server speak TLS, then set database.tls: true (docs/how-to/administer.md)",
    )


def _tls_in_the_way(database: DatabaseSettings) -> Check:
    """Shake hands with a server that did not answer, to tell a wrong setting from silence."""
    name = "encryption"
    found = handshake(database.host, database.port, ca_file=database.tls_ca_file)
    if isinstance(found, ssl.SSLCertVerificationError) and database.tls:
        return Check(
            name=name,
            ok=False,
            detail=f"the server's certificate is not accepted: {found.verify_message}",
            hint="name the authority as database.tls_ca_file, and the host as the certificate does",
            exit_code=4,
        )
    speaks = found is None or isinstance(found, ssl.SSLCertVerificationError)
    if speaks and not database.tls:
        return Check(
            name=name,
            ok=False,
            detail="the server wants TLS, the site file has none",
            hint="set database.tls: true",
            exit_code=4,
        )
    if isinstance(found, ssl.SSLError) and database.tls:
        return Check(
            name=name,
            ok=False,
            detail="the site file asks for TLS, which the server does not speak",
            hint="set database.tls: false, or let the server speak TLS",
            exit_code=4,
        )
    return Check(name=name, ok=True, detail="not known: nobody answers there")


def handshake(host: str, port: int, *, ca_file: Path | None) -> OSError | None:
    """Return why no encrypted connection came about; None if it did.

    Parameters
    ----------
    host, port
        The server.
    ca_file
        Certificate authority; the system's if none.
    """
    context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    try:
        with (
            socket.create_connection((host, port), timeout=_HANDSHAKE_S) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return None
    except OSError as error:  # ssl's errors are of this kind
        # A server that wants something else just hangs up.
        hung_up = isinstance(error, ConnectionResetError)
        return ssl.SSLError(str(error)) if hung_up else error


def is_loopback(host: str) -> bool:
    """Tell whether a host name means the machine it is used on."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def rights(site: Site) -> Check:
    """Compare what the database user may do with what it needs."""

    def look(database: Database[Any]) -> Check:
        answer = database.command("connectionStatus", showPrivileges=True)["authInfo"]
        if not answer["authenticatedUsers"]:
            return Check(
                name="database user",
                ok=True,
                detail="the server asks for no password: anybody who reaches it may do anything",
                hint="start mongod with --auth (docs/how-to/administer.md)",
            )
        user = answer["authenticatedUsers"][0]["user"]
        missing = NEEDED_ACTIONS - _allowed(answer["authenticatedUserPrivileges"], database.name)
        if missing:
            return Check(
                name="database user",
                ok=False,
                detail=f"{user} may not {', '.join(sorted(missing))} in '{database.name}'",
                hint=f"let the administrator run: db.grantRolesToUser('{user}', "
                f"[{{role: 'readWrite', db: '{database.name}'}}])",
                exit_code=4,
            )
        roles = answer["authenticatedUserRoles"]
        more = [role for role in roles if role["role"] != "readWrite"]
        least = f"{user} may read and write '{database.name}'"
        if not more:
            return Check(name="database user", ok=True, detail=least)
        words = ", ".join(f"{role['role']} on {role['db']}" for role in more)
        return Check(
            name="database user",
            ok=True,
            detail=f"{least}, and has more than it needs: {words}",
            hint="a user with readWrite on this database is enough (docs/how-to/administer.md)",
        )

    return _of_database(site, "database user", look)


def _allowed(privileges: list[dict[str, Any]], database: str) -> set[str]:
    """Return the actions allowed on the collections of a database."""
    allowed: set[str] = set()
    for privilege in privileges:
        resource, actions = privilege["resource"], set(privilege["actions"])
        if resource.get("anyResource") or (
            resource.get("db") in {"", database} and resource.get("collection") == ""
        ):
            allowed |= actions | (NEEDED_ACTIONS if "anyAction" in actions else set())
    return allowed


def room(site: Site) -> Check:
    """Check the free disk of the database server, and tell what is used."""

    def look(database: Database[Any]) -> Check:
        stats = database.command("dbStats")
        used_MB = (stats["storageSize"] + stats["indexSize"]) / 1e6
        blobs = sum(
            item["length"]
            for name in database.list_collection_names(filter={"name": {"$regex": r"\.files$"}})
            for item in database[name].aggregate(
                [{"$group": {"_id": None, "length": {"$sum": "$length"}}}]
            )
        )
        detail = f"{used_MB:.0f} MB used, GridFS holds {blobs / 1e6:.0f} MB"
        if not stats.get("fsTotalSize"):  # also of a database that holds nothing yet
            return Check(name="database room", ok=True, detail=detail)
        free = stats["fsTotalSize"] - stats["fsUsedSize"]
        enough = free >= MIN_DATABASE_BYTES
        return Check(
            name="database room",
            ok=enough,
            detail=f"{detail}; {free / 1e9:.0f} GB are free on the server",
            hint=None if enough else "free some disk on the database server, or move its data",
            exit_code=4,
        )

    return _of_database(site, "database room", look)


def indexes(site: Site) -> Check:
    """Check that the collections have their indexes, once there is a campaign."""

    def look(database: Database[Any]) -> Check:
        from otf_workflows.store import Store

        missing = Store(database).missing_indexes()
        if not missing:
            return Check(name="indexes", ok=True, detail="all there")
        campaign = database["otf_campaigns"].find_one({}, {"name": 1})
        if campaign is None:
            return Check(name="indexes", ok=True, detail="made at the first submit")
        return Check(
            name="indexes",
            ok=False,
            detail=f"missing in {', '.join(missing)}: pages and queries are slow, and nothing "
            "keeps keys unique",
            hint="submit a campaign that is there already once more: otf submit CAMPAIGN.YAML",
            exit_code=4,
        )

    return _of_database(site, "indexes", look)


def _of_database(site: Site, name: str, look: Callable[[Database[Any]], Check]) -> Check:
    """Return what ``look`` finds in the database, or the error that it met."""
    from otf_workflows.connection import connect, translated

    try:
        database = connect(site)
        with database.client, translated(site):
            found = look(database)
    except OtfError as error:
        return Check(name=name, ok=False, detail=error.what, hint=error.hint, exit_code=4)
    return found
