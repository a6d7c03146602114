"""Mean square displacement, and the diffusion coefficient where there is diffusion.

A straight line can be fitted to the displacement of any solid; its slope is then noise. So a
coefficient is reported only if three tests are passed, and an upper bound otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.analysis.blocks import N_BLOCKS
from otf_workflows.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase import Atoms

MAX_LAGS = 200
"""Most time lags computed."""

FIT_FROM = 0.2
"""The line is fitted from this share of the largest lag on, past the vibrations."""

EXPONENTS = (0.6, 1.4)
"""Slope of log(MSD) against log(time) that is taken for diffusion: 1 in theory, 0 on a plateau,
2 for free flight."""

LINDEMANN = 0.1
"""An MSD below this × (nearest-neighbour distance)² may be vibration: a crystal melts when the
amplitude is about 0.15 of that distance, the MSD being twice the amplitude's square."""

A2_FS_IN_CM2_S = 0.1
"""1 Å²/fs in cm²/s."""


def mean_square_displacement(
    frames: Sequence[Atoms],
    *,
    dt_fs: float,
    species: str | Sequence[str] | None = None,
    n_blocks: int = N_BLOCKS,
) -> dict[str, Any]:
    """Return the mean square displacement of each element and what it says about diffusion.

    Positions are unwrapped by the nearest image from frame to frame, so frames must be so close in
    time that no atom moves by half a cell. The drift of the centre of mass of all atoms is
    removed. Lags go up to a fifth of the trajectory and are averaged over all time origins; the
    errors come from consecutive groups of time origins.

    Parameters
    ----------
    frames
        Frames of one system at equal time intervals.
    dt_fs
        Time between frames (fs).
    species
        Element or elements; all by default.
    n_blocks
        Number of groups of time origins.

    Returns
    -------
    dict
        ``time_fs``: lags; ``elements``: per element ``msd_A2``, ``error_A2`` (None if too short),
        ``slope_cm2_s`` and ``slope_error_cm2_s`` (of the MSD / 6, whatever it means),
        ``exponent``, ``is_diffusive``, ``diffusivity_cm2_s`` (None unless diffusive),
        ``diffusivity_upper_cm2_s`` (95 % bound) and ``sentence``; ``is_diffusive``: whether any
        element is; ``sentence``: all in words.

    Raises
    ------
    InputError
        Without frames, for a time step that is not positive, or for an element that is not there.
    """
    if not frames or dt_fs <= 0:
        raise InputError(
            "A mean square displacement needs frames and a positive time between them."
        )
    symbols = np.array(frames[0].get_chemical_symbols())
    chosen = [species] if isinstance(species, str) else list(species or sorted(set(symbols)))
    absent = sorted(set(chosen) - set(symbols.tolist()))
    if absent:
        raise InputError(f"There is no {', '.join(absent)} in these frames.")
    paths_A = unwrapped_paths(frames)
    max_lag = (len(frames) - 1) // n_blocks
    lags = np.unique(np.linspace(0, max_lag, min(max_lag, MAX_LAGS) + 1).round().astype(int))
    near_A = _nearest_distance(frames[0])
    elements = {}
    for element in chosen:
        groups_A2 = _displacements(paths_A[:, symbols == element], lags, n_blocks)
        elements[str(element)] = _verdict(str(element), groups_A2, lags * dt_fs, near_A)
    return {
        "time_fs": (lags * dt_fs).tolist(),
        "elements": elements,
        "is_diffusive": any(entry["is_diffusive"] for entry in elements.values()),
        "sentence": " ".join(entry["sentence"] for entry in elements.values()),
    }


def unwrapped_paths(frames: Sequence[Atoms]) -> np.ndarray:
    """Return continuous positions relative to the centre of mass (Å), shape (frames, n, 3).

    In a changing cell the fractional displacements are scaled with the mean cell, so that its
    breathing is no diffusion.
    """
    cells = np.array([atoms.cell.array for atoms in frames])
    fractions = np.array([atoms.get_scaled_positions(wrap=False) for atoms in frames])
    steps = np.diff(fractions, axis=0)
    steps -= np.round(steps)
    paths = np.concatenate([fractions[:1], steps]).cumsum(axis=0) @ cells.mean(axis=0)
    masses = frames[0].get_masses()
    centre = np.einsum("i,tix->tx", masses / masses.sum(), paths)
    return paths - centre[:, None, :]


def _nearest_distance(atoms: Atoms) -> float:
    """Return the mean distance (Å) of each atom to its nearest neighbour."""
    from ase.neighborlist import primitive_neighbor_list

    # A sphere that holds several atoms of mean density.
    radius_A = 2.0 * (atoms.get_volume() / len(atoms)) ** (1 / 3)
    first, distance_A = primitive_neighbor_list(
        "id", (True, True, True), atoms.cell.array, atoms.get_positions(), radius_A
    )
    nearest = np.full(len(atoms), radius_A)
    np.minimum.at(nearest, first, distance_A)
    return float(nearest.mean())


def _displacements(paths_A: np.ndarray, lags: np.ndarray, n_groups: int) -> np.ndarray:
    """Return the MSD (Å²) of each group of time origins, shape (groups, lags)."""
    result = np.zeros((n_groups, len(lags)))
    for column, lag in enumerate(lags):
        moved = paths_A[lag:] - paths_A[: len(paths_A) - lag]
        square = np.sum(moved**2, axis=2).mean(axis=1)
        result[:, column] = [
            part.mean() if len(part) else np.nan for part in np.array_split(square, n_groups)
        ]
    return result


def _verdict(
    element: str, groups_A2: np.ndarray, time_fs: np.ndarray, near_A: float
) -> dict[str, Any]:
    """Fit a line to the MSD of one element and judge it."""
    from scipy.stats import t as student

    msd_A2 = np.nanmean(groups_A2, axis=0)
    fitted = time_fs >= FIT_FROM * time_fs[-1]
    entry: dict[str, Any] = {
        "msd_A2": msd_A2.tolist(),
        "error_A2": None,
        "slope_cm2_s": None,
        "slope_error_cm2_s": None,
        "exponent": None,
        "is_diffusive": False,
        "diffusivity_cm2_s": None,
        "diffusivity_upper_cm2_s": None,
    }
    if fitted.sum() < 4 or len(groups_A2) < 2 or not np.isfinite(groups_A2).all():
        return entry | {"sentence": f"{element}: too few frames to tell whether it diffuses."}
    n = len(groups_A2)
    entry["error_A2"] = (groups_A2.std(axis=0, ddof=1) / np.sqrt(n)).tolist()
    slopes = np.polyfit(time_fs[fitted], groups_A2[:, fitted].T, deg=1)[0] / 6 * A2_FS_IN_CM2_S
    slope, error = float(slopes.mean()), float(slopes.std(ddof=1) / np.sqrt(n))
    margin = float(student.ppf(0.975, n - 1)) * error
    moving = bool((msd_A2[fitted] > 0).all())
    exponent = (
        float(np.polyfit(np.log(time_fs[fitted]), np.log(msd_A2[fitted]), deg=1)[0])
        if moving
        else 0.0
    )
    entry |= {
        "slope_cm2_s": slope,
        "slope_error_cm2_s": error,
        "exponent": exponent,
        "diffusivity_upper_cm2_s": max(slope, 0.0) + margin,
    }
    reason = _objection(slope, margin, exponent, msd_A2[-1] / near_A**2)
    if reason:
        return entry | {
            "sentence": f"{element}: no diffusion coefficient, {reason}; if there is diffusion it "
            f"is below {entry['diffusivity_upper_cm2_s']:.1e} cm²/s."
        }
    return entry | {
        "is_diffusive": True,
        "diffusivity_cm2_s": slope,
        "sentence": f"{element}: D = ({slope:.2e} ± {error:.0e}) cm²/s.",
    }


def _objection(slope: float, margin: float, exponent: float, relative_msd: float) -> str | None:
    """Return why a line through the MSD is no diffusion, or None."""
    if relative_msd < LINDEMANN:
        return "the atoms move no farther than vibrations do"
    if slope <= margin:
        return "the slope does not differ from zero beyond its error"
    if not EXPONENTS[0] <= exponent <= EXPONENTS[1]:
        return f"the displacement grows as time to the {exponent:.2f}, not in proportion"
    return None
