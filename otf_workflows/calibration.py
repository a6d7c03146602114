r"""What makes an uncertainty honest: factor and floor, fitted to labels never trained on.

Per frame there is one error (the largest \|ΔF\| of an atom) and one raw σ (the largest of an
atom). Split conformal prediction (Vovk et al., *Algorithmic Learning in a Random World*, 2005;
Angelopoulos and Bates, arXiv:2107.07511) turns them into a scale such that a share ``nominal``
of new frames *of the same kind* has an error below the calibrated σ. MD drifts, and selected
frames are the uncertain ones, so the promise is checked on every fresh batch and tightened if it
fails.

σ of heads shrinks with every label, the errors do not: what the network cannot express, and the
noise of DFT, stay. Where the labels show it, the calibrated σ is √((factor σ)² + floor²).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.errors import InputError
from otf_workflows.schemas import Calibration
from otf_workflows.uncertainty import worst_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike

RESOLUTION_EV_A = 0.01
"""Errors below this are noise of DFT itself. In a symmetric crystal forces and σ vanish together,
and their ratio would be noise over noise: such a frame counts as covered, whatever its σ."""

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Shares at which reliability is read."""

MIN_FOR_FLOOR = 4
"""With fewer labels nothing can be said about a floor."""

CAUTION = 0.5
"""A floor is as small as it can be without being worse than the best by more than this many
standard errors: a smaller floor leaves a steeper σ, which is the safer one for new frames."""

FLOOR_STEPS = 24


@dataclass(frozen=True)
class FramePairs:
    """One error, one raw σ and one force of each frame, as calibration needs them (eV/Å).

    Attributes
    ----------
    errors_eV_A, sigmas_eV_A, forces_eV_A
        Of the worst atom among ``n_atoms``, shape (n,).
    n_atoms
        Number of atoms that the worst one is the worst of; None without frames.
    """

    errors_eV_A: np.ndarray
    sigmas_eV_A: np.ndarray
    forces_eV_A: np.ndarray
    n_atoms: int | None


def frame_pairs(arrays: Mapping[str, Any], *, n_atoms: int | None = None) -> FramePairs:
    """Return what an evaluation says of each frame, in cells brought to one size.

    Parameters
    ----------
    arrays
        ``Evaluation.arrays`` with uncertainty.
    n_atoms
        Size to bring frames to, see :func:`~otf_workflows.uncertainty.worst_of`; the median size
        of the frames by default. Smaller frames stay as they are.
    """
    sizes = [len(sigma) for sigma in arrays["sigma_eV_A"]]
    if n_atoms is None and sizes:
        n_atoms = sorted(sizes)[(len(sizes) - 1) // 2]
    errors, sigmas, forces = [], [], []
    for sigma, dft, predicted in zip(
        arrays["sigma_eV_A"], arrays["force_dft"], arrays["force_predicted"], strict=True
    ):
        found = np.asarray(predicted, dtype=float)
        errors.append(worst_of(np.linalg.norm(found - np.asarray(dft), axis=1), n_atoms))
        sigmas.append(worst_of(sigma, n_atoms))
        forces.append(worst_of(np.linalg.norm(found, axis=1), n_atoms))
    return FramePairs(np.array(errors), np.array(sigmas), np.array(forces), n_atoms)


def calibrate(
    errors_eV_A: ArrayLike,
    sigmas_eV_A: ArrayLike,
    *,
    nominal: float = 0.9,
    n_atoms: int | None = None,
    resolution_eV_A: float = RESOLUTION_EV_A,
) -> Calibration:
    """Return factor and floor that make σ cover a share ``nominal`` of errors.

    First the shape: the ratio r of floor and factor for which error / √(σ² + r²) scatters least,
    in logarithms, where each frame is compared with the others only (leave-one-out). It is 0
    unless a floor describes frames better that it has not seen. Then the scale, as in
    :func:`conformal_factor`. Each score is computed with the shape that the other frames give
    (the jackknife+ idea of Barber et al., *Ann. Stat.* 49, 486, 2021), so that choosing a shape
    on the same labels does not eat up the coverage.

    Parameters
    ----------
    errors_eV_A, sigmas_eV_A
        Error and raw uncertainty of each frame (eV/Å), shape (n,).
    nominal
        Share of frames whose error is to lie below the calibrated σ.
    n_atoms
        Size of the cells that these are of; copied into the result.
    resolution_eV_A
        Errors below this count as covered.

    Returns
    -------
    Calibration
        With ``n`` = 0 and factor 1 if there are no frames.

    Raises
    ------
    InputError
        If the two do not match, or are not numbers of the right sign.
    """
    errors, sigmas = checked_pair(errors_eV_A, sigmas_eV_A)
    ratio = floor_ratio(errors, sigmas, resolution_eV_A=resolution_eV_A)
    if ratio == 0:
        found = conformal_factor(errors, sigmas, nominal=nominal, resolution_eV_A=resolution_eV_A)
        return found.model_copy(
            update={
                "n_atoms": n_atoms if found.n else None,
                "usual_sigma_eV_A": float(np.median(sigmas)) if found.n else None,
                "multiples": _multiples(_scores(errors, sigmas, resolution_eV_A), found.factor),
            }
        )
    shape = np.hypot(sigmas, ratio)
    scales = _left_out(errors, sigmas, shape, resolution_eV_A)
    scores = np.where(errors <= resolution_eV_A, 0.0, errors / scales)
    factor = _quantile(scores, nominal)
    return Calibration(
        factor=factor,
        floor_eV_A=factor * ratio,
        nominal=nominal,
        n=len(errors),
        n_atoms=n_atoms,
        usual_sigma_eV_A=float(np.median(sigmas)),
        multiples=_multiples(scores, factor),
    )


def floor_ratio(
    errors_eV_A: np.ndarray, sigmas_eV_A: np.ndarray, *, resolution_eV_A: float = RESOLUTION_EV_A
) -> float:
    """Return floor / factor (eV/Å), 0 if the labels do not ask for a floor.

    Among ratios up to the largest σ (a floor beyond all that σ has shown would leave nothing of
    it) the smallest is taken whose leave-one-out error is within :data:`CAUTION` standard errors
    of the best (the one-standard-error rule of Breiman et al., *Classification and Regression
    Trees*, 1984).

    Parameters
    ----------
    errors_eV_A, sigmas_eV_A
        Error and raw uncertainty of each frame (eV/Å), shape (n,).
    resolution_eV_A
        Errors below this are noise, and their logarithms would be wild.
    """
    n = len(errors_eV_A)
    top = float(sigmas_eV_A.max()) if n else 0.0
    # Only if nearly all errors are above the resolution is there something to learn a shape from.
    if n < MIN_FOR_FLOOR or top == 0 or np.mean(errors_eV_A > resolution_eV_A) < 0.5:
        return 0.0
    ratios = np.concatenate([[0.0], np.geomspace(0.05 * top, top, FLOOR_STEPS)])
    sigmas = np.maximum(sigmas_eV_A, 1e-3 * top)
    logs = np.log(np.maximum(errors_eV_A, resolution_eV_A)) - 0.5 * np.log(
        sigmas**2 + ratios[:, None] ** 2
    )
    others = (logs.sum(axis=1, keepdims=True) - logs) / (n - 1)
    losses = (logs - others) ** 2
    best = int(losses.mean(axis=1).argmin())
    worse = losses - losses[best]
    allowed = CAUTION * worse.std(axis=1, ddof=1) / np.sqrt(n)
    return float(ratios[int(np.argmax(worse.mean(axis=1) <= allowed))])


def _left_out(
    errors: np.ndarray, sigmas: np.ndarray, shape: np.ndarray, resolution_eV_A: float
) -> np.ndarray:
    """Return √(σ² + r²) of each frame with the r of the others, on the scale of ``shape``."""
    found = np.empty(len(errors))
    for i in range(len(errors)):
        kept = np.arange(len(errors)) != i
        ratio = floor_ratio(errors[kept], sigmas[kept], resolution_eV_A=resolution_eV_A)
        other = np.hypot(sigmas, ratio)
        # Without a floor a σ of zero has no logarithm; the median is as good a common scale.
        found[i] = other[i] * np.median(shape[other > 0] / other[other > 0])
    return np.maximum(found, 1e-12)


def conformal_factor(
    errors_eV_A: ArrayLike,
    sigmas_eV_A: ArrayLike,
    *,
    nominal: float = 0.9,
    resolution_eV_A: float = RESOLUTION_EV_A,
) -> Calibration:
    """Return the factor alone that makes σ cover a share ``nominal`` of errors.

    The factor is the (n + 1) nominal-th smallest ratio of error and σ, interpolated between two of
    them. For n too small for that (below 9 at 0.9) it is the largest ratio, whose expected
    coverage is only n / (n + 1). If
    nearly all errors are below the resolution, any factor covers them, and the median ratio is
    used to keep σ on the scale of the errors.

    Parameters, what is returned without frames, and what is raised are those of :func:`calibrate`.
    """
    errors, sigmas = checked_pair(errors_eV_A, sigmas_eV_A)
    if not 0 < nominal < 1:
        raise InputError(f"The nominal coverage must be between 0 and 1, not {nominal:g}.")
    n = len(errors)
    if n == 0:
        return Calibration(nominal=nominal)
    factor = _quantile(_scores(errors, sigmas, resolution_eV_A), nominal)
    if factor == 0:
        factor = float(np.median(_ratios(errors, sigmas)))
    if not np.isfinite(factor) or factor <= 0:
        raise InputError(
            "The uncertainty is zero where the error is not: it cannot be calibrated.",
            where=f"{int((sigmas == 0).sum())} of {n} frames",
            hint="fit the uncertainty heads to the training labels first",
        )
    return Calibration(factor=factor, nominal=nominal, n=n)


def coverage(
    errors_eV_A: ArrayLike,
    sigmas_eV_A: ArrayLike,
    calibration: Calibration,
    *,
    resolution_eV_A: float = RESOLUTION_EV_A,
) -> float | None:
    """Return the share of frames whose error is below the calibrated σ; None without frames."""
    errors, sigmas = checked_pair(errors_eV_A, sigmas_eV_A)
    if not len(errors):
        return None
    covered = (errors <= resolution_eV_A) | (errors <= calibration.calibrated(sigmas))
    return float(covered.mean())


def floor_warning(calibration: Calibration, tolerance_eV_A: float) -> str | None:
    """Return what to do about a floor that no frame can get below, or None if there is none."""
    if calibration.floor_eV_A < tolerance_eV_A:
        return None
    return (
        f"However small the uncertainty is, errors of {calibration.floor_eV_A:.3f} eV/Å are to be "
        f"expected, more than the tolerance of {tolerance_eV_A:g} eV/Å: every check will be above "
        "it. More labels may lower this floor; if they do not, a larger tolerance_eV_A or another "
        "potential will."
    )


def checked_pair(errors: ArrayLike, sigmas: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return both as arrays, or raise."""
    first, second = np.asarray(errors, dtype=float), np.asarray(sigmas, dtype=float)
    if first.ndim != 1 or first.shape != second.shape:
        raise InputError(f"Errors {first.shape} and uncertainties {second.shape} do not match.")
    for name, values in (("errors", first), ("uncertainties", second)):
        if not np.isfinite(values).all() or (values < 0).any():
            raise InputError(f"The {name} must be finite and not negative.")
    return first, second


def _ratios(errors: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Return error over σ; infinite where only σ vanishes, 0 where both do."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(errors == 0, 0.0, errors / sigmas)


def _scores(errors: np.ndarray, sigmas: np.ndarray, resolution_eV_A: float) -> np.ndarray:
    """Return the smallest factor that covers each frame."""
    return np.where(errors <= resolution_eV_A, 0.0, _ratios(errors, sigmas))


def _quantile(scores: np.ndarray, share: float) -> float:
    """Return the (n + 1) share-th smallest score, between two of them if need be, or the largest.

    The k-th smallest of n scores has an expected coverage of k / (n + 1). Between two of them the
    coverage is interpolated to second order in 1 / n (Hutson, J. Appl. Stat. 26, 343, 1999).
    Rounding k up instead would make one frame in 15, the worst, decide how all others are read.
    """
    rank = min((len(scores) + 1) * share, len(scores))
    return float(np.interp(rank, np.arange(1, len(scores) + 1), np.sort(scores)))


def _multiples(scores: np.ndarray, factor: float) -> dict[str, float]:
    """Return level (%) → multiple of the calibrated σ that covers this share."""
    if not len(scores):
        return {}
    return {f"{100 * level:.0f}": _quantile(scores, level) / factor for level in LEVELS}
