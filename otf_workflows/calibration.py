r"""How honest is the uncertainty? Factor, coverage and ranking, on labels never trained on.

Per frame there is one error (the largest \|ΔF\| of an atom) and one raw σ (the largest of an
atom). Split conformal prediction (Vovk et al., *Algorithmic Learning in a Random World*, 2005;
Angelopoulos and Bates, arXiv:2107.07511) turns them into a factor such that a share ``nominal``
of new frames *of the same kind* has an error below factor × σ. MD drifts, and selected frames are
the uncertain ones, so the promise is checked on every fresh batch and tightened if it fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from otf_workflows.errors import InputError
from otf_workflows.schemas import Calibration

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

RESOLUTION_EV_A = 0.01
"""Errors below this are noise of DFT itself. In a symmetric crystal forces and σ vanish together,
and their ratio would be noise over noise: such a frame counts as covered, whatever its σ."""

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Shares of the normal distribution at which reliability is read."""


def conformal_factor(
    errors_eV_A: ArrayLike,
    sigmas_eV_A: ArrayLike,
    *,
    nominal: float = 0.9,
    resolution_eV_A: float = RESOLUTION_EV_A,
) -> Calibration:
    """Return the factor that makes σ cover a share ``nominal`` of errors.

    The factor is the ⌈(n + 1) nominal⌉-th smallest ratio of error and σ. For n too small for that
    (below 9 at 0.9) it is the largest ratio, whose expected coverage is only n / (n + 1). If
    nearly all errors are below the resolution, any factor covers them, and the median ratio is
    used to keep σ on the scale of the errors.

    Parameters
    ----------
    errors_eV_A, sigmas_eV_A
        Worst-atom error and worst-atom raw uncertainty of each frame (eV/Å), shape (n,).
    nominal
        Share of frames whose error is to lie below the calibrated σ.
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
    errors, sigmas = _pair(errors_eV_A, sigmas_eV_A)
    if not 0 < nominal < 1:
        raise InputError(f"The nominal coverage must be between 0 and 1, not {nominal:g}.")
    n = len(errors)
    if n == 0:
        return Calibration(nominal=nominal)
    scores = _scores(errors, sigmas, resolution_eV_A)
    # The tolerance keeps 0.9 × 10 = 9.000000000000002 from counting as 10.
    rank = min(int(np.ceil((n + 1) * nominal - 1e-9)), n)
    factor = float(np.sort(scores)[rank - 1])
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
    factor: float,
    *,
    resolution_eV_A: float = RESOLUTION_EV_A,
) -> float | None:
    """Return the share of frames whose error is below factor × σ; None without frames."""
    errors, sigmas = _pair(errors_eV_A, sigmas_eV_A)
    if not len(errors):
        return None
    return float((_scores(errors, sigmas, resolution_eV_A) <= factor).mean())


def check_drift(
    calibration: Calibration,
    errors_eV_A: ArrayLike,
    sigmas_eV_A: ArrayLike,
    *,
    significance: float = 0.05,
) -> tuple[Calibration, str]:
    """Check a calibration on a fresh batch, and tighten it if it promised too much.

    One-sided binomial test: if so few covered frames would be seen with a probability below
    ``significance`` although the promise holds, the factor becomes that of the fresh batch (never
    smaller than before). A factor that is too large is left: it costs labels, not trust.

    Parameters
    ----------
    calibration
        What was promised when the batch was chosen.
    errors_eV_A, sigmas_eV_A
        Worst-atom error and raw σ of the fresh frames, by the model that chose them.
    significance
        Level of the test.

    Returns
    -------
    tuple
        The calibration to use with ``measured`` filled in, and a sentence for a person.
    """
    errors, sigmas = _pair(errors_eV_A, sigmas_eV_A)
    measured = coverage(errors, sigmas, calibration.factor)
    if measured is None:
        return calibration, "No fresh labels: the uncertainty was not checked."
    n = len(errors)
    checked = calibration.model_copy(update={"measured": measured})
    seen = (
        f"{round(measured * n)} of {n} fresh errors were below the calibrated uncertainty "
        f"({calibration.nominal:.0%} promised)"
    )
    test = stats.binomtest(round(measured * n), n, calibration.nominal, alternative="less")
    if test.pvalue >= significance:
        return checked, f"{seen}: the calibration stands."
    fresh = conformal_factor(errors, sigmas, nominal=calibration.nominal)
    factor = max(calibration.factor, fresh.factor)
    return (
        checked.model_copy(update={"factor": factor}),
        f"{seen}: over-confident, the factor grows from {calibration.factor:.2f} to {factor:.2f}.",
    )


def reliability(
    errors_eV_A: ArrayLike, sigmas_eV_A: ArrayLike, factor: float, *, nominal: float = 0.9
) -> dict[str, float]:
    """Return expected (%) → measured share of errors below multiples of the calibrated σ.

    If errors scattered normally around zero, and factor × σ held a share ``nominal`` of them,
    other multiples would hold the shares in :data:`LEVELS`. Far from the diagonal the *shape* of
    the errors differs, although the one calibrated share may be right.
    """
    errors, sigmas = _pair(errors_eV_A, sigmas_eV_A)
    if not len(errors):
        return {}
    unit = stats.halfnorm.ppf(nominal)
    return {
        f"{100 * level:.0f}": float(
            (errors <= factor * sigmas * stats.halfnorm.ppf(level) / unit).mean()
        )
        for level in LEVELS
    }


def spearman(errors: ArrayLike, scores: ArrayLike) -> float | None:
    """Return the rank correlation of scores with errors; None if it is not defined."""
    errors, scores = np.asarray(errors, dtype=float), np.asarray(scores, dtype=float)
    if len(errors) < 3 or np.ptp(errors) == 0 or np.ptp(scores) == 0:
        return None
    return float(stats.spearmanr(errors, scores).statistic)


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
    statistic = stats.mannwhitneyu(scores[worst], scores[~worst]).statistic
    return float(statistic / (n_worst * (n - n_worst)))


def report(
    errors_eV_A: ArrayLike,
    sigmas_eV_A: ArrayLike,
    worst_forces_eV_A: ArrayLike,
    *,
    factor: float,
    nominal: float = 0.9,
) -> dict[str, float]:
    r"""Return all that is known of an uncertainty on a batch, beside the plain \|F\| baseline.

    Where errors are mostly softening, they grow with the force, and \|F\| ranks as well as any
    σ; a σ that does not beat it adds nothing. What is not defined for so few frames is left out.

    Parameters
    ----------
    errors_eV_A, sigmas_eV_A, worst_forces_eV_A
        Largest \|ΔF\|, raw σ and predicted \|F\| of an atom, for each frame (eV/Å), (n,).
    factor
        Calibration factor.
    nominal
        Share it was made for.
    """
    values = {
        "n": float(len(np.atleast_1d(errors_eV_A))),
        "nominal": nominal,
        "coverage": coverage(errors_eV_A, sigmas_eV_A, factor),
        "spearman": spearman(errors_eV_A, sigmas_eV_A),
        "spearman_baseline_force": spearman(errors_eV_A, worst_forces_eV_A),
        "auroc_worst": auroc_worst(errors_eV_A, sigmas_eV_A),
        "auroc_worst_baseline_force": auroc_worst(errors_eV_A, worst_forces_eV_A),
    }
    shares = reliability(errors_eV_A, sigmas_eV_A, factor, nominal=nominal)
    values |= {f"reliability_{level}": share for level, share in shares.items()}
    return {name: value for name, value in values.items() if value is not None}


def _pair(errors: ArrayLike, sigmas: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
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
