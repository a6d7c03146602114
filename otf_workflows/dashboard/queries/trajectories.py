"""Trajectories out of the job store, thinned and wrapped for a viewer.

Read with pymongo alone: jobflow, which wrote them, stays out of this process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.errors import InputError, NotFoundError
from otf_workflows.exploration.trajectory import decode_arrays
from otf_workflows.trajectories import PARTS, job_blob, newest_run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.store import Store

MAIN = PARTS["main"]
"""Key of a job's own trajectory; a long one has been thinned for us when the run ended."""
MAX_FRAMES = 200
MAX_ATOMS = 5000
"""More atoms than this are a burden for a browser and show nothing."""
MAX_COORDINATES = 400_000
"""Atoms × frames sent at most, about 8 MB of text before compression."""
MAX_BLOB_BYTES = 40 * 1024**2
"""Larger outputs are not unpacked here: this process stays small on a shared login node."""


@dataclass(frozen=True)
class Trajectory:
    """Some frames of an MD run, equally spaced in time.

    Attributes
    ----------
    symbols
        One per atom.
    steps
        MD step of each frame.
    time_ps
        Time of each frame (ps).
    cells_A
        Cell of each frame (Å), shape (frames, 3, 3).
    positions_A
        Wrapped into the cell of its frame (Å), shape (frames, n, 3).
    n_recorded
        Frames that were recorded, of which these are some.
    """

    symbols: Sequence[str]
    steps: Sequence[int]
    time_ps: Sequence[float]
    cells_A: np.ndarray
    positions_A: np.ndarray
    n_recorded: int

    def to_json(self) -> dict[str, Any]:
        """Return what the viewer reads; lengths in Å with three decimals."""
        return {
            "symbols": list(self.symbols),
            "n_recorded": self.n_recorded,
            "frames": [
                {
                    "step": int(step),
                    "time_ps": round(float(time), 6),
                    "cell": np.round(cell.astype(float).ravel(), 3).tolist(),
                    "positions": np.round(places.astype(float).ravel(), 3).tolist(),
                }
                for step, time, cell, places in zip(
                    self.steps, self.time_ps, self.cells_A, self.positions_A, strict=True
                )
            ],
        }

    def to_extxyz(self) -> str:
        """Return the frames as extended XYZ."""
        lines: list[str] = []
        for step, time, cell, places in zip(
            self.steps, self.time_ps, self.cells_A, self.positions_A, strict=True
        ):
            lattice = " ".join(f"{x:.6f}" for x in cell.ravel())
            head = f'Lattice="{lattice}" Properties=species:S:1:pos:R:3 pbc="T T T"'
            lines += [str(len(self.symbols)), f"{head} step={step} time_ps={time:.6g}"]
            lines += [
                f"{symbol} {x:.6f} {y:.6f} {z:.6f}"
                for symbol, (x, y, z) in zip(self.symbols, places, strict=True)
            ]
        return "\n".join(lines) + "\n"


def production_trajectory(store: Store, campaign: str, *, part: str = "main") -> Trajectory:
    """Return the newest production run of a campaign, or the audit run beside it.

    Parameters
    ----------
    store
        Our collections.
    campaign
        Name of the campaign.
    part
        ``main``: the run in the large cell; ``audit``: the one in the labelled cell.

    Raises
    ------
    NotFoundError
        If there was no such run, or its output is gone.
    InputError
        If it is too large to be shown.
    """
    found = newest_run(store, campaign)
    key = PARTS.get(part)
    if key is None:
        raise NotFoundError(f"a production run has no part '{part}'; it has 'main' and 'audit'")
    return read_trajectory(
        store, found["trajectory_uuid"], key=key, timestep_fs=found["conditions"]["timestep_fs"]
    )


def walker_trajectory(store: Store, campaign: str, cycle: int, walker: int) -> Trajectory:
    """Return what one walker did in one cycle.

    Raises
    ------
    NotFoundError
        If there is no such walker, or it has not finished.
    InputError
        If it is too large to be shown.
    """
    document = store.database.otf_cycles.find_one(
        {"campaign": campaign, "cycle": cycle}, {f"outputs.explore/{walker}": 1}
    )
    uuid = (document or {}).get("outputs", {}).get(f"explore/{walker}")
    if uuid is None:
        raise NotFoundError(f"cycle {cycle} of campaign '{campaign}' has no walker {walker}")
    settings = store.database.otf_campaigns.find_one(
        {"name": campaign}, {"campaign.exploration.timestep_fs": 1}
    )
    timestep_fs = float(settings["campaign"]["exploration"]["timestep_fs"]) if settings else 1.0
    return read_trajectory(store, uuid, key=MAIN, timestep_fs=timestep_fs)


def read_trajectory(store: Store, uuid: str, *, key: str, timestep_fs: float) -> Trajectory:
    """Return frames of a trajectory that a job has stored.

    Parameters
    ----------
    store
        Our collections; the job store lives in the same database.
    uuid
        jobflow id of the job; ``id/part`` for a part of its output.
    key
        Name of the trajectory in the job's ``blob``.
    timestep_fs
        MD time step (fs).

    Raises
    ------
    NotFoundError
        If the output is gone or holds no such trajectory.
    InputError
        If it is too large to be shown.
    """
    text = store.preview(uuid) if key == MAIN else None
    text = text or job_blob(store, uuid, max_bytes=MAX_BLOB_BYTES).get(key)
    if not text:
        raise NotFoundError("this run recorded no frame", where=f"output of job {uuid}")
    arrays = decode_arrays(text)
    return thinned(**arrays, timestep_fs=timestep_fs)


def thinned(
    *,
    numbers: np.ndarray,
    steps: np.ndarray,
    cells_A: np.ndarray,
    positions_A: np.ndarray,
    timestep_fs: float,
) -> Trajectory:
    """Return some frames, the first and the last among them, with all atoms inside the cell.

    Raises
    ------
    InputError
        If there are too many atoms to draw.
    """
    from ase.data import chemical_symbols

    n_atoms = len(numbers)
    if n_atoms > MAX_ATOMS:
        raise InputError(
            f"{n_atoms} atoms are too many to draw here (at most {MAX_ATOMS})",
            hint="otf trajectory writes the whole run to a file",
        )
    n_kept = max(min(MAX_FRAMES, MAX_COORDINATES // n_atoms, len(steps)), 1)
    chosen = np.unique(np.linspace(0, len(steps) - 1, n_kept).round().astype(int))
    cells = cells_A[chosen].astype(float)
    fractions = np.einsum("fai,fij->faj", positions_A[chosen].astype(float), np.linalg.inv(cells))
    # What lies a hair below zero is at zero, not at the other side of the cell.
    fractions -= np.floor(fractions + 1e-7)
    return Trajectory(
        symbols=[chemical_symbols[int(number)] for number in numbers],
        steps=steps[chosen].tolist(),
        time_ps=(steps[chosen] * timestep_fs / 1000).tolist(),
        cells_A=cells,
        positions_A=np.einsum("fai,fij->faj", fractions, cells),
        n_recorded=len(steps),
    )
