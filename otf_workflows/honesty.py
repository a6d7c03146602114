r"""How an uncertainty did on labels that its model had not seen: coverage, reliability, ranking.

Each number stands beside the plain \|F\| as a baseline, or beside what chance alone would do.
The dashboard shows them too, so scipy.stats, which takes 50 MB, is not used here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from otf_workflows.calibration import LEVELS, checked_pair, coverage
from otf_workflows.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from otf_workflows.schemas import Calibration


def expected_coverage(
    n: int, *, nominal: float = 0.9, confidence: float = 0.9
) -> tuple[float, float]:
    """Return between which shares the coverage of new frames lies, by the luck of n labels.

    A promise of split conformal prediction holds on average over calibration sets. What one of
    them gives is a random number with the distribution Beta(k, n + 1 − k), if the factor is the
    k-th smallest of its n scores (Vovk, Mach. Learn. 92, 349, 2013, arXiv:1209.2673). Frames must
    be of the same kind; drift comes on top.

    Parameters
    ----------
    n
        Number of labels calibrated on.
    nominal
        Share of frames promised to have an error below σ.
    confidence
        Probability that the coverage is in between; half of the rest on either side.
    """
    if n < 1:
        raise InputError("Without labels nothing can be promised.")
    rank = min((n + 1) * nominal, n)
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = special.betaincinv(rank, n + 1 - rank, tails)
    return float(low), float(high)


def wilson_interval(n_covered: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return between which shares the true one lies if ``n_covered`` of ``n`` were covered.

    The score interval of Wilson (J. Am. Stat. Assoc. 22, 209, 1927): sensible for small n, and
    for none or all of them.
    """
    if n < 1 or not 0 <= n_covered <= n:
        raise InputError(f"{n_covered} of {n} is not a share.")
    z2 = special.ndtri((1 + confidence) / 2) ** 2
    centre = n_covered + z2 / 2
    half = np.sqrt(z2 * (n_covered * (n - n_covered) / n + z2 / 4))
    return max(0.0, float((centre - half) / (n + z2))), min(1.0, float((centre + half) / (n + z2)))


def reliability(
    errors_eV_A: ArrayLike, sigmas_eV_A: ArrayLike, calibration: Calibration
) -> dict[str, float]:
    """Return expected (%) → measured share of errors below multiples of the calibrated σ.

    The multiples are those that held these shares of the calibration labels. A calibration of
    before they were kept has none: then they are what errors that scatter normally would need.
    """
    errors, sigmas = checked_pair(errors_eV_A, sigmas_eV_A)
    if not len(errors):
        return {}
    unit = special.ndtri((1 + calibration.nominal) / 2)
    honest = np.asarray(calibration.calibrated(sigmas))
    shares = {}
    for level in LEVELS:
        name = f"{100 * level:.0f}"
        multiple = calibration.multiples.get(name, special.ndtri((1 + level) / 2) / unit)
        shares[name] = float((errors <= multiple * honest).mean())
    return shares


def spearman(errors: ArrayLike, scores: ArrayLike) -> float | None:
    """Return the rank correlation of scores with errors; None if it is not defined."""
    errors, scores = np.asarray(errors, dtype=float), np.asarray(scores, dtype=float)
    if len(errors) < 3 or np.ptp(errors) == 0 or np.ptp(scores) == 0:
        return None
    return float(np.corrcoef(_ranks(errors), _ranks(scores))[0, 1])


def auroc_worst(errors: ArrayLike, scores: ArrayLike, *, fraction: float = 0.1) -> float | None:
    """Return how well scores find the worst frames: 1 always, 0.5 by chance.

    Probability that one of the worst ``fraction`` (at least one frame) has a higher score than
    one of the others (the Mann-Whitney statistic). None for fewer than three frames.
    """
    errors, scores = np.asarray(errors, dtype=float), np.asarray(scores, dtype=float)
    n = len(errors)
    if n < 3:
        return None
    n_worst = max(1, round(fraction * n))
    worst = np.zeros(n, dtype=bool)
    worst[np.argsort(errors, kind="stable")[-n_worst:]] = True
    statistic = _ranks(scores)[worst].sum() - n_worst * (n_worst + 1) / 2
    return float(statistic / (n_worst * (n - n_worst)))


def report(
    errors_eV_A: ArrayLike,
    sigmas_eV_A: ArrayLike,
    worst_forces_eV_A: ArrayLike,
    *,
    calibration: Calibration,
) -> dict[str, float]:
    r"""Return all that is known of an uncertainty on a batch, beside the plain \|F\| baseline.

    Where errors are mostly softening, they grow with the force, and \|F\| ranks as well as any
    σ; a σ that does not beat it adds nothing. What is not defined for so few frames is left out.

    Parameters
    ----------
    errors_eV_A, sigmas_eV_A, worst_forces_eV_A
        Largest \|ΔF\|, raw σ and predicted \|F\| of an atom, for each frame (eV/Å), (n,).
    calibration
        As it was promised when the frames were chosen.
    """
    values = {
        "n": float(len(np.atleast_1d(errors_eV_A))),
        "nominal": calibration.nominal,
        "coverage": coverage(errors_eV_A, sigmas_eV_A, calibration),
        "spearman": spearman(errors_eV_A, sigmas_eV_A),
        "spearman_baseline_force": spearman(errors_eV_A, worst_forces_eV_A),
        "auroc_worst": auroc_worst(errors_eV_A, sigmas_eV_A),
        "auroc_worst_baseline_force": auroc_worst(errors_eV_A, worst_forces_eV_A),
    }
    shares = reliability(errors_eV_A, sigmas_eV_A, calibration)
    values |= {f"reliability_{level}": share for level, share in shares.items()}
    return {name: value for name, value in values.items() if value is not None}


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
