"""Content hashes: the same structure, the same hash; the same label, the same key.

Two frames hash equally if they hold the same atoms at the same places of the same cell, whatever
the order of the atoms and whichever periodic image of each is written down. Cells are compared as
given: a rotated or re-chosen cell is another frame, because its forces and its k-points differ.

Lengths are counted in steps of :data:`RESOLUTION_A`. Frames whose atoms (or lattice vectors)
differ by more than :data:`DISTINCT_A` never hash equally, and copies that differ by rounding noise
practically always do. A grid has edges, so a copy whose coordinates carry noise ε may fall on the
other side of one, with a probability of about 2 ε / RESOLUTION_A for each coordinate: 2e-6 at
ε = 1e-12 Å. What that costs is a label computed twice, never a wrong label. Tidy numbers (0, 1/4,
1.3575) are kept away from the edges by shifting the grid by an irrational fraction of a step.
"""

from __future__ import annotations

import hashlib
from math import isqrt
from typing import TYPE_CHECKING

import numpy as np

from otf_workflows.errors import InputError

if TYPE_CHECKING:
    from otf_workflows.schemas import Frame

RESOLUTION_A = 1e-6
"""Step of the grid that lengths are counted on (Å)."""

DISTINCT_A = 1e-5
"""Frames that differ by more than this (Å) always have different hashes."""

GRID_PHASE = 0.5 * (5**0.5 - 1)
"""Shift of the grid in steps; irrational, so that no tidy decimal or fraction sits on an edge."""


FARTHEST_A = 1e9
"""Beyond this (Å) doubles are too coarse for the grid, and different frames could hash equally."""


def structure_hash(frame: Frame) -> str:
    """Return the hash of a periodic structure.

    Parameters
    ----------
    frame
        Structure; only atomic numbers, cell and positions count.

    Returns
    -------
    str
        SHA-256 in hexadecimal, equal under atom order and lattice translations of atoms.

    Raises
    ------
    InputError
        If a number is not finite or beyond :data:`FARTHEST_A`, shapes disagree or the cell has
        no volume.
    """
    numbers = np.asarray(frame.numbers, dtype=np.int64)
    cell_A = np.asarray(frame.cell_A, dtype=float)
    positions_A = np.asarray(frame.positions_A, dtype=float)
    if cell_A.shape != (3, 3) or positions_A.shape != (len(numbers), 3):
        raise InputError(
            f"a structure needs a 3×3 cell and one position for each of its {len(numbers)} atoms"
        )
    if not (np.isfinite(cell_A).all() and np.isfinite(positions_A).all()):
        raise InputError("the cell or the positions of a structure are not finite numbers")
    if max(np.abs(cell_A).max(), np.abs(positions_A).max(initial=0.0)) > FARTHEST_A:
        raise InputError(f"a structure reaches farther than {FARTHEST_A:.0e} Å")
    if abs(np.linalg.det(cell_A)) < 1e-6:
        raise InputError("the cell of a structure has no volume")

    cell = np.floor(cell_A / RESOLUTION_A + GRID_PHASE).astype(np.int64)
    # Steps along each lattice vector, from the counted cell: the same integer on every machine.
    steps = np.array([isqrt(sum(int(x) ** 2 for x in row)) for row in cell], dtype=np.int64)
    fractions = np.linalg.solve(cell_A.T, positions_A.T).T
    # Counting before wrapping makes the wrap exact: a lattice vector is a whole number of steps.
    counted = np.floor(fractions * steps + GRID_PHASE).astype(np.int64) % steps
    atoms = np.column_stack([numbers, counted])
    atoms = atoms[np.lexsort(atoms.T[::-1])]

    digest = hashlib.sha256(b"otf-structure-1")
    digest.update(cell.astype("<i8").tobytes())
    digest.update(np.ascontiguousarray(atoms, dtype="<i8").tobytes())
    return digest.hexdigest()


def label_key(frame: Frame, fingerprint: str) -> str:
    """Return the key of a label: structure ⊕ level of theory.

    Parameters
    ----------
    frame
        Structure.
    fingerprint
        Hash of the level of theory, ``recipe.fingerprint(frame.numbers)``.
    """
    return hashlib.sha256(f"{structure_hash(frame)}:{fingerprint}".encode()).hexdigest()
