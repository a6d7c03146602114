"""The same k-points in cells of several shapes: a grid in one cell, folded into another.

Energies of one crystal, computed in two cells, differ by the error of their k-point grids. Grids
of equal spacing are not equal: for rock-salt LiCl in six cells of eight atoms, shifted grids of
0.62/Å gave energies up to 9 meV/atom apart. A grid in the primitive lattice folds exactly into
every supercell whose lattice contains the grid's period, and then the energies are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.lattices import representatives

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_ROUNDING = 0.35
"""A strained cell has the period of the grid at nearly integer multiples; beyond, none."""

MAX_STRAIN = 0.25
"""Largest strain of a cell against the one that the grid was made for."""

SAME_POINT = 1e-5
"""k-points nearer than this (fractional) are one."""


def folding(cell_A: Any, grid_cell_A: Any, grid: Sequence[int]) -> np.ndarray | None:
    """Return the integer matrix that makes the period of a grid out of a cell.

    Parameters
    ----------
    cell_A
        Lattice vectors of a supercell of the same crystal as rows (Å), strained or not.
    grid_cell_A
        Cell that the grid divides, as rows (Å).
    grid
        Divisions of its reciprocal vectors.

    Returns
    -------
    numpy.ndarray or None
        Rows m with ``m @ cell = diag(grid) @ grid_cell`` but for the strain; None if there are
        none, so that the points cannot be folded.
    """
    period_A = np.diag(grid) @ np.asarray(grid_cell_A, dtype=float)
    cell = np.asarray(cell_A, dtype=float)
    exact = period_A @ np.linalg.inv(cell)
    rows = np.rint(exact).astype(int)
    if np.abs(exact - rows).max() > MAX_ROUNDING or round(np.linalg.det(rows)) == 0:
        return None
    deformation = np.linalg.solve(period_A, rows @ cell)
    return rows if np.abs(deformation - np.eye(3)).max() < MAX_STRAIN else None


def folded_points(rows: np.ndarray, *, shifted: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the points of a grid in a cell it was folded into, one of each pair ±k.

    Parameters
    ----------
    rows
        From :func:`folding`.
    shifted
        Whether the grid is shifted by half a step along each of its vectors.

    Returns
    -------
    points, weights
        Fractional coordinates of the cell's reciprocal vectors, shape (n, 3); how many points of
        the whole grid each stands for, shape (n,): 1 or 2.
    """
    steps = representatives(rows.T) + 0.5 * shifted
    points = steps @ np.linalg.inv(rows).T
    kept: list[np.ndarray] = []
    weights: list[int] = []
    for point in points:
        partner = next((i for i, other in enumerate(kept) if _same(-point, other)), None)
        if partner is None:
            kept.append(_near_zero(point))
            weights.append(1)
        else:
            weights[partner] += 1
    return np.array(kept), np.array(weights)


def same_points(
    found: np.ndarray, found_weights: np.ndarray, wanted: np.ndarray, wanted_weights: np.ndarray
) -> bool:
    """Return whether two lists of fractional k-points are one set, but for signs and order."""
    if len(found) != len(wanted):
        return False
    shares = np.asarray(found_weights) / np.sum(found_weights)
    for point, share in zip(wanted, wanted_weights / np.sum(wanted_weights), strict=True):
        partners = [i for i, k in enumerate(found) if _same(k, point) or _same(-k, point)]
        if len(partners) != 1 or abs(shares[partners[0]] - share) > SAME_POINT:
            return False
    return True


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    difference = one - other
    return bool(np.abs(difference - np.rint(difference)).max() < SAME_POINT)


def _near_zero(point: np.ndarray) -> np.ndarray:
    """Return the image of a point with coordinates from -1/2 (left out) to 1/2."""
    rounded = point - np.ceil(point - 0.5 - SAME_POINT)
    return rounded + 0.0
