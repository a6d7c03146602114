"""Synthetic trajectories where jobs would have stored theirs: lattices that vibrate, no physics."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.connection import BLOBS, OUTPUTS
from otf_workflows.exploration.trajectory import encode_arrays

if TYPE_CHECKING:
    from numpy.random import Generator
    from pymongo.database import Database

    from otf_workflows.schemas import Frame

AMPLITUDE_A = 0.18


def synthetic_trajectory(
    rng: Generator,
    start: Frame,
    *,
    supercell: tuple[int, int, int] = (1, 1, 1),
    n_frames: int = 60,
    steps_between: int = 10,
    first_step: int = 0,
) -> str:
    """Return an encoded trajectory of atoms that swing about their places.

    Parameters
    ----------
    rng
        Of phases and directions.
    start
        Structure to repeat.
    supercell
        Repeats.
    n_frames, steps_between, first_step
        How many frames, and their MD steps.
    """
    atoms = start.to_atoms().repeat(supercell)
    time = np.arange(n_frames)[:, None, None]
    shape = (1, len(atoms), 3)
    period = rng.uniform(9.0, 16.0, shape)
    phase = rng.uniform(0.0, 2 * np.pi, shape)
    swing = AMPLITUDE_A * np.sin(2 * np.pi * time / period + phase)
    return encode_arrays(
        numbers=atoms.numbers,
        steps=first_step + steps_between * np.arange(n_frames),
        cells_A=np.repeat(atoms.cell.array[None], n_frames, axis=0),
        positions_A=atoms.positions[None] + swing,
    )


def store_output(database: Database[dict[str, Any]], uuid: str, blob: dict[str, Any]) -> str:
    """Write the large part of a job's output as jobflow's store does, and return the job's id.

    Parameters
    ----------
    database
        The site's database.
    uuid
        Id of the job.
    blob
        What the job returned under ``blob``.
    """
    from gridfs import GridFS

    job = {"job_uuid": uuid, "job_index": 1}
    reference = {"@class": "", "@module": "", "blob_uuid": f"blob-{uuid}"}
    content = json.dumps({**reference, "data": blob, **job}).encode()
    GridFS(database, BLOBS).put(content, metadata={**job, "blob_uuid": reference["blob_uuid"]})
    output = {"blob": {**reference, "store": "data"}}
    database[OUTPUTS].insert_one({"uuid": uuid, "index": 1, "output": output})
    return uuid
