"""What a test job looks at where it runs: the answer to "would a worker be happy here?".

``python -m otf_workflows.engine.queues.probe --role dft --site site.yaml --answer answer.json``
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from otf_workflows import __version__
from otf_workflows.errors import OtfError
from otf_workflows.preflight import (
    DEFAULT_POTENTIAL,
    MIN_FREE_BYTES,
    Check,
    clock,
    database,
    job_modules,
    labeler,
    potential,
    potential_loads,
)
from otf_workflows.settings import EngineKind, Site, load_site
from otf_workflows.types import Role

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from otf_workflows.campaign import Campaign


def look_around(site: Site, role: Role, *, campaign: Campaign | None = None) -> Iterator[Check]:
    """Yield what a worker of a role would find on this machine.

    Parameters
    ----------
    site
        The site.
    role
        Role of the worker.
    campaign
        Look for the data files and the potential of this campaign as well.
    """
    from otf_workflows.site_checks import gpu, programs

    yield interpreter()
    yield job_modules()
    if site.engine is EngineKind.FIREWORKS:
        yield from _database(site)
    if role is Role.DFT:
        if campaign is not None:
            yield from labeler(campaign, site)
        yield from programs(site)
        yield from scratch(site)
    if role in {Role.MD, Role.TRAIN}:
        name = campaign.potential if campaign else DEFAULT_POTENTIAL
        installed = potential(name)
        yield potential_loads(name) if installed.ok else installed
    if site.queues[role].gpus:
        yield gpu(wanted=True)


def interpreter() -> Check:
    """Tell which Python runs, and with which version of ours."""
    cores = len(os.sched_getaffinity(0))
    detail = f"{sys.executable} ({platform.python_version()}), otf-workflows {__version__}"
    return Check(name="interpreter", ok=True, detail=f"{detail}, {cores} cores")


def _database(site: Site) -> Iterator[Check]:
    """Yield whether the database is reached from here, and whether the clocks agree."""
    answer = database(site)
    if answer.ok:
        yield answer
        yield clock(site)
        return
    hint = (
        "open the way from compute nodes to the server, or set engine: jobflow-remote, which "
        "needs none (docs/how-to/compute_nodes_without_database.md)"
    )
    yield answer.model_copy(update={"hint": hint})


def scratch(site: Site) -> Iterator[Check]:
    """Yield whether the scratch folders are there and have room."""
    for folder in sorted({r.scratch_dir for r in site.codes.values() if r.scratch_dir}):
        path = Path(os.path.expandvars(folder)).expanduser()
        name = f"scratch folder {folder}"
        if not path.is_dir() or not os.access(path, os.W_OK):
            yield Check(
                name=name,
                ok=False,
                detail="not there, or not writable",
                hint="name another scratch_dir under codes in the site file",
            )
            continue
        free = shutil.disk_usage(path).free
        yield Check(
            name=name,
            ok=free >= MIN_FREE_BYTES,
            detail=f"{free // 1024**2} MB are free",
            hint=None if free >= MIN_FREE_BYTES else "free some space there",
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Look around and write the answer, whole or not at all.

    Parameters
    ----------
    arguments
        Command line, without the program.
    """
    from otf_workflows.campaign import Campaign
    from otf_workflows.engine.host import write_private

    parser = argparse.ArgumentParser(prog="python -m otf_workflows.engine.queues.probe")
    parser.add_argument("--role", type=Role, required=True)
    parser.add_argument("--site", type=Path, required=True)
    parser.add_argument("--answer", type=Path, required=True)
    parser.add_argument("--campaign", type=Path)
    options = parser.parse_args(arguments)
    campaign = None
    if options.campaign is not None:
        campaign = Campaign.model_validate_json(options.campaign.read_text(encoding="utf-8"))
    try:
        found = list(look_around(load_site(options.site), options.role, campaign=campaign))
    except OtfError as error:  # the site file, or what it names, is not the same here
        found = [Check(name="site file", ok=False, detail=error.what, hint=error.hint)]
    checks = [check.model_dump(mode="json") for check in found]
    answer = {"node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(), "checks": checks}
    write_private(options.answer, json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
