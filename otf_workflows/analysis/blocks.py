"""Mean and standard error of correlated series, by blocks."""

from __future__ import annotations

import numpy as np

N_BLOCKS = 5
"""Blocks of a series; each should be longer than its correlation time."""


def block_mean(values: np.ndarray, *, n_blocks: int = N_BLOCKS) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard error of a time series.

    The series is cut into consecutive blocks, whose means are nearly independent (Flyvbjerg and
    Petersen, J. Chem. Phys. 91, 461, 1989).

    Parameters
    ----------
    values
        Series along the first axis, shape (n, ...).
    n_blocks
        Number of blocks; fewer if the series is shorter.

    Returns
    -------
    tuple[numpy.ndarray, numpy.ndarray]
        Mean and its standard error, shape (...). The error is NaN for fewer than two values.
    """
    series = np.asarray(values, dtype=float)
    blocks = np.array_split(series, max(1, min(n_blocks, len(series))))
    means = np.array([block.mean(axis=0) for block in blocks])
    if len(means) < 2:
        return series.mean(axis=0), np.full(series.shape[1:], np.nan)
    return series.mean(axis=0), means.std(axis=0, ddof=1) / np.sqrt(len(means))
