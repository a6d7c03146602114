"""FireWorks' launch pad on our database: quiet, indexed, and without a password in it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from otf_workflows.connection import PATIENCE_S, address, translated
from otf_workflows.log import quieten_libraries

if TYPE_CHECKING:
    from otf_workflows.engine.lean_launchpad import LeanLaunchPad
    from otf_workflows.settings import Site

_LAST_INDEX = "state_-1__id_-1"
"""What ``tuneup`` makes last, on the workflows: all is done when it is there."""
_FIREWORK_KEYS = ("spec.stage", "spec.label_key", "spec._priority")
_COMPOUND_KEYS = {
    "fireworks": [("spec.campaign", 1), ("spec.cycle", 1), ("spec.kind", 1)],
    "workflows": [("metadata.campaign", 1), ("metadata.cycle", 1), ("metadata.kind", 1)],
}


def launchpad(site: Site, *, patience_s: float = PATIENCE_S) -> LeanLaunchPad:
    """Return the site's launch pad, set up if it is new.

    Parameters
    ----------
    site
        The site.
    patience_s
        How long to wait for a server that does not answer (s).

    Raises
    ------
    DatabaseError
        If the server does not answer or refuses us.
    """
    from fireworks.fw_config import ROCKET_STREAM_LOGLEVEL
    from fireworks.utilities.fw_utilities import get_fw_logger

    from otf_workflows.engine.lean_launchpad import LeanLaunchPad

    quieten_libraries()
    where = address(site)
    options: dict[str, Any] = where.options
    # FireWorks compares and writes naive times; ours are read through our own client.
    options["tz_aware"] = False
    wait_ms = int(patience_s * 1000)
    options |= {"serverSelectionTimeoutMS": wait_ms, "connectTimeoutMS": wait_ms}
    pad = LeanLaunchPad(
        where.host,
        where.port,
        where.name,
        username=options.pop("username", None),
        password=options.pop("password", None),
        authsource=options.pop("authSource", None),
        strm_lvl="CRITICAL",
        mongoclient_kwargs=options,
    )
    # Made now, these loggers write to this process' stdout, not to the file that stands in for it
    # while a job runs and is closed afterwards.
    for level in ("CRITICAL", ROCKET_STREAM_LOGLEVEL):
        get_fw_logger("rocket.launcher", stream_level=level)
    # The connection is made; what is left here would be written out by to_dict().
    pad.password = None
    pad.mongoclient_kwargs = {}
    with translated(site):
        _prepare(pad)
    return pad


def _prepare(pad: LeanLaunchPad) -> None:
    """Make counters and indexes unless they are there; never removes anything."""
    from pymongo.errors import DuplicateKeyError

    if _LAST_INDEX in pad.workflows.index_information() and pad.fw_id_assigner.find_one():
        return
    counters = {"next_fw_id": 1, "next_launch_id": 1}
    with suppress(DuplicateKeyError):  # somebody else did it at the same moment
        pad.fw_id_assigner.update_one({"_id": -1}, {"$setOnInsert": counters}, upsert=True)
    for name, keys in _COMPOUND_KEYS.items():
        pad.db[name].create_index(keys)
    for key in _FIREWORK_KEYS:
        pad.fireworks.create_index(key)
    pad.tuneup()
