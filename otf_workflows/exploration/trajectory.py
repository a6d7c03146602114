"""MD records in memory, on disk and as text.

A record is what is kept of one checked step. On disk records are appended as raw bytes, so the
cost of saving does not grow with the length of a run; as text (in documents) they are compressed.
"""

from __future__ import annotations

import base64
import io
import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ase import Atoms
    from pymatgen.core.trajectory import Trajectory


GRID_A = 1e-5
"""Positions in an encoded trajectory are multiples of this (Å), a thousandth of a thermal step
between frames; forces change by less than 1e-3 eV/Å over it."""


def record_type(n_atoms: int) -> np.dtype:
    """Return the layout of one record: geometry in float32, scalars exactly."""
    return np.dtype(
        [
            ("step", "<i8"),
            ("temperature_K", "<f8"),
            ("energy_eV", "<f8"),
            ("sigma_eV_A", "<f8"),
            ("bias_eV", "<f8"),
            ("cell_A", "<f4", (3, 3)),
            ("positions_A", "<f4", (n_atoms, 3)),
        ]
    )


class Recorder:
    """Records of a run, mirrored to a file if one is given.

    Parameters
    ----------
    n_atoms
        Number of atoms.
    path
        File to append to; None keeps the records in memory only.
    n_keep
        Records of the file that are valid; later ones, written just before a kill, are cut off.
    """

    def __init__(self, n_atoms: int, *, path: Path | None, n_keep: int = 0) -> None:
        self._type = record_type(n_atoms)
        self._path = path
        self._chunks: list[np.ndarray] = []
        self._n_saved = 0
        if path is None:
            return
        if n_keep:
            kept = np.fromfile(path, dtype=self._type, count=n_keep)
            self._chunks = [kept]
            self._n_saved = len(kept)
        with path.open("ab") as file:
            file.truncate(n_keep * self._type.itemsize)

    def append(
        self,
        *,
        step: int,
        temperature_K: float,
        energy_eV: float,
        sigma_eV_A: float,
        atoms: Atoms,
        bias_eV: float = 0.0,
    ) -> None:
        """Add one record."""
        record = np.zeros(1, dtype=self._type)
        record["step"] = step
        record["temperature_K"] = temperature_K
        record["energy_eV"] = energy_eV
        record["sigma_eV_A"] = sigma_eV_A
        record["bias_eV"] = bias_eV
        record["cell_A"] = atoms.cell.array
        record["positions_A"] = atoms.get_positions()
        self._chunks.append(record)

    def save(self) -> int:
        """Append what is new to the file, through to the disk; return the number of records."""
        records = self.records()
        if self._path is not None and len(records) > self._n_saved:
            with self._path.open("ab") as file:
                file.write(records[self._n_saved :].tobytes())
                file.flush()
                os.fsync(file.fileno())
        self._n_saved = len(records)
        return len(records)

    def records(self) -> np.ndarray:
        """Return all records as one structured array."""
        if not self._chunks:
            return np.zeros(0, dtype=self._type)
        if len(self._chunks) > 1:
            self._chunks = [np.concatenate(self._chunks)]
        return self._chunks[0]


def encode_trajectory(frames: Sequence[Atoms]) -> str:
    """Return frames of one system as compact text.

    Positions are rounded to :data:`GRID_A` and written as differences from frame to frame, which
    are small numbers, byte-shuffled and deflated, in base64: about 8 bytes per atom and frame of
    MD at 20 fs between frames, where float32 takes 15. ``info["step"]`` is kept too.

    Parameters
    ----------
    frames
        Frames with the same atoms in the same order. Positions are not wrapped into the cell.
    """
    if not frames:
        return ""
    return encode_arrays(
        numbers=frames[0].numbers,
        steps=np.array([int(atoms.info.get("step", i)) for i, atoms in enumerate(frames)]),
        cells_A=np.array([atoms.cell.array for atoms in frames]),
        positions_A=np.array([atoms.get_positions() for atoms in frames]),
    )


def encode_records(numbers: Sequence[int] | np.ndarray, records: np.ndarray) -> str:
    """Return the geometry of records as compact text; see :func:`encode_trajectory`."""
    if len(records) == 0:
        return ""
    return encode_arrays(
        numbers=np.asarray(numbers),
        steps=records["step"],
        cells_A=records["cell_A"],
        positions_A=records["positions_A"],
    )


def encode_arrays(
    *, numbers: np.ndarray, steps: np.ndarray, cells_A: np.ndarray, positions_A: np.ndarray
) -> str:
    """Return a trajectory given as arrays as compact text; see :func:`encode_trajectory`."""
    places = np.rint(np.asarray(positions_A, dtype=float) / GRID_A).astype(np.int64)
    moves = np.diff(places, axis=0).ravel()
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        numbers=np.asarray(numbers, dtype="<i2"),
        steps=np.asarray(steps, dtype="<i8"),
        cells=np.asarray(cells_A, dtype="<f4"),
        first=places[:1],
        # The sign in the lowest bit, and equal bytes of all numbers beside each other: the upper
        # ones are zero.
        moves=np.ascontiguousarray(
            ((moves << 1) ^ (moves >> 63)).astype("<u4").reshape(-1, 1).view(np.uint8).T
        ),
    )
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def decode_trajectory(text: str) -> list[Atoms]:
    """Return the frames of an encoded trajectory, with ``info["step"]``, as periodic atoms."""
    from ase import Atoms

    if not text:
        return []
    arrays = decode_arrays(text)
    frames = zip(arrays["steps"], arrays["cells_A"], arrays["positions_A"], strict=True)
    return [
        Atoms(
            numbers=arrays["numbers"].astype(int),
            cell=cell.astype(float),
            positions=position.astype(float),
            pbc=True,
            info={"step": int(step)},
        )
        for step, cell, position in frames
    ]


def decode_arrays(text: str) -> dict[str, np.ndarray]:
    """Return an encoded trajectory as arrays, for whoever wants a few of its frames only.

    Parameters
    ----------
    text
        What :func:`encode_trajectory` returned; not empty.

    Returns
    -------
    dict
        ``numbers`` (n,), ``steps`` (frames,), ``cells_A`` (frames, 3, 3) and ``positions_A``
        (frames, n, 3).
    """
    with np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False) as data:
        numbers, steps, cells = data["numbers"], data["steps"], data["cells"]
        if "moves" in data:
            positions = _positions(data["first"], data["moves"], len(steps))
        else:
            # As written before version 0.1.0 was released.
            single = np.ascontiguousarray(data["positions"].T).view("<f4")
            positions = single.reshape(len(steps), len(numbers), 3)
    return {"numbers": numbers, "steps": steps, "cells_A": cells, "positions_A": positions}


def _positions(first: np.ndarray, moves: np.ndarray, n_frames: int) -> np.ndarray:
    """Return positions (Å), shape (frames, n, 3), from the first ones and shuffled differences."""
    coded = np.ascontiguousarray(moves.T).view("<u4").ravel().astype(np.int64)
    steps = (coded >> 1) ^ -(coded & 1)
    places = np.concatenate([first, steps.reshape(n_frames - 1, *first.shape[1:])])
    return places.cumsum(axis=0) * GRID_A


def to_pymatgen(frames: Sequence[Atoms]) -> Trajectory:
    """Return frames as pymatgen's trajectory, with ``step`` and the like as frame properties.

    Parameters
    ----------
    frames
        Frames of one system with the same ``info`` keys, as :func:`decode_trajectory` gives them.
        Positions stay unwrapped.
    """
    from pymatgen.core.trajectory import Trajectory

    cells = np.array([atoms.cell.array for atoms in frames])
    fixed = bool((cells == cells[0]).all())
    return Trajectory(
        species=frames[0].get_chemical_symbols(),
        coords=np.array([atoms.get_scaled_positions(wrap=False) for atoms in frames]),
        lattice=cells[0] if fixed else cells,
        constant_lattice=fixed,
        frame_properties=[dict(atoms.info) for atoms in frames],
    )


def thin_trajectory(text: str, *, n_most: int) -> str:
    """Return an encoded trajectory with at most so many frames, the first and the last included.

    Parameters
    ----------
    text
        What :func:`encode_trajectory` returned.
    n_most
        Most frames to keep, at least 2.
    """
    if not text:
        return text
    arrays = decode_arrays(text)
    n_frames = len(arrays["steps"])
    chosen = np.unique(np.linspace(0, n_frames - 1, min(n_frames, n_most)).round().astype(int))
    kept = {name: arrays[name][chosen] for name in ("steps", "cells_A", "positions_A")}
    return encode_arrays(numbers=arrays["numbers"], **kept)
