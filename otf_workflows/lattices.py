"""Integer matrices that stand for lattices: sublattices of a lattice, and what is between them.

A lattice is given by three rows. Rows that differ by an integer matrix of determinant ±1 span the
same lattice; the Hermite normal form is the one among them that two programs would both write
down (Hart and Forcade, Phys. Rev. B 77, 224115, 2008, list all sublattices by it).
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

NEAR_INTEGER = 1e-6


def hermite(matrix: np.ndarray) -> np.ndarray:
    """Return the Hermite normal form of an integer matrix: the same lattice, upper triangular.

    Parameters
    ----------
    matrix
        Integer lattice vectors as rows, shape (3, 3), of full rank.

    Returns
    -------
    numpy.ndarray
        Upper triangular, positive diagonal, entries above a diagonal element from 0 to below it.
    """
    rows = [[int(x) for x in row] for row in np.asarray(matrix)]
    for column in range(3):
        # Euclid's algorithm on the rows below, until one of them is left.
        while True:
            left = [i for i in range(column, 3) if rows[i][column]]
            pivot = min(left, key=lambda i: abs(rows[i][column]))
            rows[column], rows[pivot] = rows[pivot], rows[column]
            if len(left) == 1:
                break
            for i in range(column + 1, 3):
                _subtract(rows, i, column)
        if rows[column][column] < 0:
            rows[column] = [-x for x in rows[column]]
        for i in range(column):
            _subtract(rows, i, column)
    return np.array(rows)


def _subtract(rows: list[list[int]], target: int, column: int) -> None:
    """Take the pivot row of a column off another row, as often as it fits."""
    times = rows[target][column] // rows[column][column]
    rows[target] = [x - times * y for x, y in zip(rows[target], rows[column], strict=True)]


def sublattices(index: int) -> Iterator[np.ndarray]:
    """Yield every sublattice of so many times the volume, in Hermite normal form."""
    for a in (d for d in range(1, index + 1) if index % d == 0):
        for b in (d for d in range(1, index // a + 1) if (index // a) % d == 0):
            c = index // (a * b)
            for i, j, k in product(range(b), range(c), range(c)):
                yield np.array([[a, i, j], [0, b, k], [0, 0, c]])


def representatives(matrix: np.ndarray) -> np.ndarray:
    """Return one integer vector of each class modulo a sublattice.

    Parameters
    ----------
    matrix
        The sublattice, integer rows, shape (3, 3).

    Returns
    -------
    numpy.ndarray
        Shape (n, 3), n being the absolute determinant.
    """
    diagonal = np.diag(hermite(matrix))
    return np.array(list(product(*(range(n) for n in diagonal))))


def contains(lattice: np.ndarray, other: np.ndarray) -> bool:
    """Return whether every vector of ``other`` is one of ``lattice``; both by rows."""
    found = np.linalg.solve(np.asarray(lattice, dtype=float).T, np.asarray(other, dtype=float).T)
    return bool(np.abs(found - np.rint(found)).max() < NEAR_INTEGER)
