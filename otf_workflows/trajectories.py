"""Trajectories of walkers and production runs, out of the job store.

A walker is one trajectory over all cycles: each segment holds what was kept of it up to the state
it was rewound to, and the next one goes on from there with the next model. Read with pymongo alone.
"""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

from otf_workflows.connection import BLOBS, OUTPUTS
from otf_workflows.errors import InputError, NotFoundError
from otf_workflows.exploration.trajectory import decode_trajectory
from otf_workflows.types import Stage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ase import Atoms

    from otf_workflows.store import Store

PARTS = {"main": "trajectory", "audit": "audit_trajectory"}
"""Trajectories of a production run, and where its output has them."""


def walker_frames(
    store: Store, campaign: str, walker: int, *, cycles: Sequence[int] | None = None
) -> list[Atoms]:
    """Return what was kept of one walker, through all cycles, oldest first.

    Parameters
    ----------
    store
        Our collections.
    campaign
        Name of the campaign.
    walker
        Index of the walker.
    cycles
        Only of these cycles.

    Returns
    -------
    list[ase.Atoms]
        Checked frames; ``info`` has ``campaign``, ``walker``, ``cycle``, ``model``, ``step`` (over
        all cycles) and ``time_ps``. Positions are not wrapped into the cell.

    Raises
    ------
    NotFoundError
        If the campaign has no such walker, or nothing of it is in the job store.
    """
    timestep_fs = store.campaign(campaign).campaign["exploration"]["timestep_fs"]
    name = f"{Stage.EXPLORE}/{walker}"
    frames = []
    for cycle in store.cycles(campaign):
        if name not in cycle.outputs or (cycles and cycle.cycle not in cycles):
            continue
        try:
            text = job_blob(store, cycle.outputs[name])["trajectory"]
        except NotFoundError:
            # The walker is still on its way, or its output was cleaned up.
            continue
        origin = {"walker": walker, "cycle": cycle.cycle, "model": cycle.incumbent_id}
        frames += _labelled(text, timestep_fs, campaign=campaign, **origin)
    if not frames:
        raise NotFoundError(
            f"nothing is stored of walker {walker} of campaign '{campaign}'",
            hint=f"otf status {campaign}",
        )
    return frames


def newest_run(store: Store, campaign: str) -> dict[str, Any]:
    """Return model, time step and job of the newest production run, without its curves.

    Raises
    ------
    NotFoundError
        If there was no such run.
    """
    found = store.database.otf_properties.find_one(
        {"campaign": campaign, "kind": "production"},
        {"trajectory_uuid": 1, "model_id": 1, "conditions.timestep_fs": 1},
        sort=[("created", -1)],
    )
    if found is None:
        raise NotFoundError(
            f"campaign '{campaign}' has no production run yet", hint=f"otf status {campaign}"
        )
    return found


def production_frames(store: Store, campaign: str, *, part: str = "main") -> list[Atoms]:
    """Return every frame of the newest production run, or of the audit run beside it.

    Parameters
    ----------
    store
        Our collections.
    campaign
        Name of the campaign.
    part
        A key of :data:`PARTS`.

    Raises
    ------
    NotFoundError
        If there was no such run.
    """
    run = newest_run(store, campaign)
    text = job_blob(store, run["trajectory_uuid"])[PARTS[part]]
    timestep_fs = run["conditions"]["timestep_fs"]
    frames = _labelled(text, timestep_fs, campaign=campaign, model=run["model_id"])
    if not frames:
        raise NotFoundError(f"the production run of campaign '{campaign}' has no part '{part}'")
    return frames


def job_blob(store: Store, place: str, *, max_bytes: int | None = None) -> dict[str, Any]:
    """Return the large part of a job's output.

    Parameters
    ----------
    store
        Our collections; the job store lives in the same database.
    place
        jobflow id of the job; ``id/part`` for a part of its output.
    max_bytes
        Refuse to unpack more than this.

    Raises
    ------
    NotFoundError
        If the output is gone, or not there yet.
    InputError
        If it is too large.
    """
    from gridfs import GridFS

    uuid, *part = place.split("/")
    path = ["output", *part, "blob"]
    found = store.database[OUTPUTS].find_one(
        {"uuid": uuid}, {".".join(path): 1}, sort=[("index", -1)]
    )
    reference: Any = found or {}
    for key in path:
        reference = reference.get(key) or {}
    file = GridFS(store.database, BLOBS).find_one(
        {"metadata.blob_uuid": reference.get("blob_uuid", "")}
    )
    if file is None:
        raise NotFoundError("the output of this run is not in the job store", where=f"job {uuid}")
    if max_bytes is not None and file.length > max_bytes:
        raise InputError(
            f"the output of this run ({file.length / 1e6:.0f} MB) is too large to unpack here",
            where=f"job {uuid}",
            hint="otf trajectory writes trajectories of any size to a file",
        )
    content = file.read()
    if (file.metadata or {}).get("compression") == "zlib":
        content = zlib.decompress(content)
    return json.loads(content)["data"]


def write_trajectory(path: Path, frames: Sequence[Atoms]) -> None:
    """Write frames in the format of the ending.

    Parameters
    ----------
    path
        ``.json`` for pymatgen's ``Trajectory`` (``monty.serialization.loadfn`` reads it); any
        other ending is one of ASE's: ``.extxyz``, ``.traj``, ``.xyz``, ``XDATCAR`` …
    frames
        Frames of one system.

    Raises
    ------
    InputError
        If ASE knows no such format.
    """
    if path.suffix == ".json":
        from monty.serialization import dumpfn

        from otf_workflows.exploration.trajectory import to_pymatgen

        dumpfn(to_pymatgen(frames), path)
        return
    from ase.io import write
    from ase.io.formats import UnknownFileTypeError

    try:
        write(path, list(frames))
    except UnknownFileTypeError as error:
        raise InputError(
            f"there is no format for the ending of {path.name}",
            hint="use .extxyz, .traj or .json (pymatgen)",
        ) from error


def _labelled(text: str, timestep_fs: float, **origin: Any) -> list[Atoms]:
    frames = decode_trajectory(text)
    for atoms in frames:
        time_ps = atoms.info["step"] * timestep_fs / 1000
        atoms.info |= {**origin, "time_ps": round(time_ps, 9)}
    return frames
