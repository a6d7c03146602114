"""Radial distribution functions and coordination numbers.

ASE has :func:`ase.geometry.rdf.get_rdf`, without error bars and for radii up to half the cell only.
Cells that were labelled with DFT are small, so periodic images are counted here at any radius; up
to half the cell both agree.
"""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.analysis.blocks import N_BLOCKS, block_mean
from otf_workflows.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase import Atoms

SMOOTHING_A = 0.1
"""Width (Å) of the filter before the first minimum is looked for."""


def radial_distribution(
    frames: Sequence[Atoms],
    *,
    r_max_A: float,
    n_bins: int = 120,
    pairs: Sequence[tuple[str, str]] | None = None,
    n_blocks: int = N_BLOCKS,
) -> dict[str, Any]:
    """Return g(r) of every pair of elements and of all atoms, averaged over frames.

    Normalised with the mean density, so that it tends to 1 far away. Errors are standard errors
    from blocks of consecutive frames.

    Parameters
    ----------
    frames
        Periodic frames of one system; the cell may change.
    r_max_A
        Largest distance (Å).
    n_bins
        Number of bins.
    pairs
        Pairs of elements; all by default.
    n_blocks
        Number of blocks for the errors.

    Returns
    -------
    dict
        ``r_A``: centres of the bins (Å); ``pairs``: for each ``"Cl-Li"`` (in alphabetical order)
        and for ``"total"`` a dictionary with ``g``, ``error`` (None for a single frame),
        ``first_minimum_A`` (None if g has no minimum after its first peak) and ``coordination``:
        for each element of the pair, the mean number of the other around it up to that minimum.

    Raises
    ------
    InputError
        Without frames, for a radius that is not positive, or for an element that is not there.
    """
    if not frames or r_max_A <= 0 or n_bins < 1:
        raise InputError("A radial distribution needs frames, bins and a positive radius.")
    symbols = np.array(frames[0].get_chemical_symbols())
    elements = sorted(set(symbols.tolist()))
    wanted = [
        tuple(sorted(pair)) for pair in (pairs or list(combinations_with_replacement(elements, 2)))
    ]
    absent = {element for pair in wanted for element in pair} - set(elements)
    if absent:
        raise InputError(f"There is no {', '.join(sorted(absent))} in these frames.")
    counts = {element: int(np.sum(symbols == element)) for element in elements}
    edges_A = np.linspace(0, r_max_A, n_bins + 1)
    shells_A3 = 4 / 3 * np.pi * np.diff(edges_A**3)
    codes = np.searchsorted(elements, symbols)
    # Shape (frames, element, element, bins): neighbours summed over the atoms of an element.
    found = np.array([_histogram(atoms, codes, len(elements), edges_A) for atoms in frames])
    volumes_A3 = np.array([atoms.get_volume() for atoms in frames])

    def curve(numbers: np.ndarray, n_first: int, n_second: int) -> dict[str, Any]:
        return _curve(
            numbers / n_first,
            density_A3=n_second / volumes_A3,
            edges_A=edges_A,
            shells_A3=shells_A3,
            n_blocks=n_blocks,
        )

    result = {}
    for first, second in wanted:
        i, j = elements.index(first), elements.index(second)
        entry = curve(found[:, i, j], counts[first], counts[second])
        around = entry.pop("neighbours")
        entry["coordination"] = {first: around, second: None}
        entry["coordination"][second] = (
            None if around is None else around * counts[first] / counts[second]
        )
        result[f"{first}-{second}"] = entry
    total = curve(found.sum(axis=(1, 2)), len(symbols), len(symbols))
    total["coordination"] = {"total": total.pop("neighbours")}
    return {
        "r_A": ((edges_A[:-1] + edges_A[1:]) / 2).tolist(),
        "pairs": result | {"total": total},
    }


def _histogram(atoms: Atoms, codes: np.ndarray, n_elements: int, edges_A: np.ndarray) -> np.ndarray:
    """Count ordered pairs of atoms, periodic images included, by elements and distance."""
    from ase.neighborlist import primitive_neighbor_list

    n_bins = len(edges_A) - 1
    first, second, distance_A = primitive_neighbor_list(
        "ijd", (True, True, True), atoms.cell.array, atoms.get_positions(), float(edges_A[-1])
    )
    bins = np.minimum((distance_A / edges_A[1]).astype(int), n_bins - 1)
    flat = (codes[first] * n_elements + codes[second]) * n_bins + bins
    counts = np.bincount(flat, minlength=n_elements**2 * n_bins)
    return counts.reshape(n_elements, n_elements, n_bins)


def _curve(
    neighbours: np.ndarray,
    *,
    density_A3: np.ndarray,
    edges_A: np.ndarray,
    shells_A3: np.ndarray,
    n_blocks: int,
) -> dict[str, Any]:
    """Return g(r), its error, the first minimum and the neighbours up to it.

    ``neighbours`` is the number around one atom in each shell, shape (frames, bins).
    """
    mean, error = block_mean(
        neighbours / (density_A3[:, None] * shells_A3), n_blocks=min(n_blocks, len(neighbours))
    )
    minimum = _first_minimum(mean, edges_A[1])
    inside = neighbours.mean(axis=0)
    return {
        "g": mean.tolist(),
        "error": error.tolist() if np.isfinite(error).all() else None,
        "first_minimum_A": None if minimum is None else float(edges_A[minimum]),
        "neighbours": None if minimum is None else float(inside[:minimum].sum()),
    }


def _first_minimum(g: np.ndarray, width_A: float) -> int | None:
    """Return the edge at the minimum between the first two peaks, or None."""
    from scipy.ndimage import gaussian_filter1d
    from scipy.signal import find_peaks

    smooth = gaussian_filter1d(g, SMOOTHING_A / width_A, mode="nearest")
    peaks, _ = find_peaks(smooth, prominence=0.2)
    if len(peaks) < 2:
        return None
    valley = smooth[peaks[0] : peaks[1]]
    # Between the shells of a crystal g is flat zero; take the middle of that.
    lowest = np.flatnonzero(valley <= valley.min() + 1e-3)
    return int(peaks[0] + round(float(lowest.mean())))
