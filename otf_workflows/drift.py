"""What fresh labels do to a promise: the uncertainty is read larger where it promised too much."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from otf_workflows.calibration import conformal_factor, coverage

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from otf_workflows.schemas import Calibration


def check_drift(
    calibration: Calibration,
    errors_eV_A: ArrayLike,
    sigmas_eV_A: ArrayLike,
    *,
    significance: float = 0.05,
) -> tuple[Calibration, str]:
    """Check a calibration on a fresh batch, and tighten it if it promised too much.

    One-sided binomial test: if so few covered frames would be seen with a probability below
    ``significance`` although the promise holds, the calibrated σ is stretched, factor and floor
    alike, until it covers the fresh batch as promised. One that is too large is left: it costs
    labels, not trust.

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
    measured = coverage(errors_eV_A, sigmas_eV_A, calibration)
    if measured is None:
        return calibration, "No fresh labels: the uncertainty was not checked."
    n = len(np.atleast_1d(errors_eV_A))
    checked = calibration.model_copy(update={"measured": measured})
    seen = (
        f"{round(measured * n)} of {n} fresh errors were below the calibrated uncertainty "
        f"({calibration.nominal:.0%} promised)"
    )
    test = stats.binomtest(round(measured * n), n, calibration.nominal, alternative="less")
    if test.pvalue >= significance:
        return checked, f"{seen}: the calibration stands."
    honest = np.asarray(calibration.calibrated(sigmas_eV_A))
    stretch = conformal_factor(errors_eV_A, honest, nominal=calibration.nominal).factor
    return (
        stretched(checked, stretch),
        f"{seen}: over-confident, every uncertainty is read {max(stretch, 1.0):.2f} times larger.",
    )


def stretched(calibration: Calibration, times: float) -> Calibration:
    """Return a calibration whose σ is ``times`` larger, factor and floor alike; never smaller."""
    times = max(times, 1.0)
    return calibration.model_copy(
        update={
            "factor": calibration.factor * times,
            "floor_eV_A": calibration.floor_eV_A * times,
        }
    )


def inherit_drift(challenger: Calibration, before: Calibration, after: Calibration) -> Calibration:
    """Return a new model's calibration, widened by as much as its forerunner's had to be.

    Both were calibrated in the same way, on labels of trusted and validation frames. If that way
    promised too much on the frames that MD met next, it does so again.

    Parameters
    ----------
    challenger
        Of the new model.
    before, after
        Of the model it replaces: as promised, and as :func:`check_drift` left it.
    """
    if not before.n or not before.factor > 0:
        return challenger
    return stretched(challenger, after.factor / before.factor)
