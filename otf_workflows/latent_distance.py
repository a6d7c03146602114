"""Distances between structures in latent space: scale, copies, nearest neighbours. Pure NumPy.

Distances are root mean square differences of standardised features. k-d trees with a small radius
visit few leaves even in 64 dimensions, if their first splits are along the directions of most
variance, so 100,000 structures are compared with 100,000 others in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEAST_DISTANCE = 1e-6
"""Equal structures give features that are equal up to the rounding of float32 only."""

CHUNK = 4096
"""Rows looked up at once: neighbour lists of all of them would not fit into memory."""


@dataclass(frozen=True)
class LatentScale:
    """Zero mean, unit deviation, and principal axes with the largest variance first.

    Attributes
    ----------
    mean
        Mean of the features, shape (d,).
    scale
        Deviation times √d, so that a distance is a root mean square over features; infinite for
        features that vary by rounding only. Shape (d,).
    axes
        Principal axes as columns, shape (d, d). Distances do not depend on them, speed does.
    """

    mean: np.ndarray
    scale: np.ndarray
    axes: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> LatentScale:
        """Return the scale of a set of structures, shape (n, d) with n > 0."""
        mean = features.mean(axis=0)
        deviation = features.std(axis=0)
        # 1e-6 of the largest feature is the rounding noise of float32 models.
        noise = 1e-6 * float(np.abs(features).max(initial=0))
        deviation = np.where(deviation > noise, deviation, np.inf)
        scale = deviation * np.sqrt(max(features.shape[1], 1))
        scaled = (features - mean) / scale
        axes = np.linalg.eigh(scaled.T @ scaled)[1][:, ::-1]
        return cls(mean, scale, axes)

    def apply(self, features: np.ndarray) -> np.ndarray:
        """Return coordinates whose Euclidean distance is the distance, in single precision."""
        return (((features - self.mean) / self.scale) @ self.axes).astype(np.float32)


def without_copies(
    x: np.ndarray, known: np.ndarray, order: np.ndarray, distance: float
) -> np.ndarray:
    """Return the rows of ``order`` that are no copy of a known one or of an earlier row.

    Parameters
    ----------
    x
        Scaled candidates, shape (n, d).
    known
        Scaled structures that are there already, shape (m, d).
    order
        Rows of ``x``, most wanted first.
    distance
        Structures not farther apart than this are copies.
    """
    from scipy.spatial import cKDTree

    distance = max(distance, LEAST_DISTANCE)
    # A tree cannot split equal rows, so they are merged first; the first in the order is kept.
    _, first = np.unique(x[order], axis=0, return_index=True)
    order = order[np.sort(first)]
    if len(known):
        _, away = nearest(x[order], known, within=distance)
        order = order[away > distance]
    rows = x[order]
    tree = cKDTree(rows)
    keep = np.ones(len(order), dtype=bool)
    for start in range(0, len(order), CHUNK):
        block = np.arange(start, min(start + CHUNK, len(order)))
        block = block[keep[block]]
        # Most structures have no copy: one count for all of a block spares their lists.
        counts = tree.query_ball_point(rows[block], distance, return_length=True)
        for row in block[counts > 1]:
            if keep[row]:
                near = np.array(tree.query_ball_point(rows[row], distance), dtype=int)
                keep[near[near > row]] = False
    return order[keep]


def nearest(x: np.ndarray, others: np.ndarray, *, within: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest of ``others`` and its distance for each row; (−1, ∞) if none is near.

    Parameters
    ----------
    x
        Scaled structures, shape (n, d).
    others
        Scaled structures among which to look, shape (m, d). Of equal ones the first is returned.
    within
        Farther ones do not count.

    Returns
    -------
    tuple
        Rows of ``others``, shape (n,), and distances, shape (n,).
    """
    from scipy.spatial import cKDTree

    if not len(others) or not len(x):
        return np.full(len(x), -1), np.full(len(x), np.inf)
    distinct, first = np.unique(others, axis=0, return_index=True)
    # The bound of the tree is exclusive, and rounding must not decide.
    bound = 1.001 * max(within, LEAST_DISTANCE)
    away, found = cKDTree(distinct).query(x, k=1, distance_upper_bound=bound)
    near = np.isfinite(away)
    rows = np.full(len(x), -1)
    rows[near] = first[found[near]]
    return rows, away
