"""What a label will cost, learned from the labels that are finished. Pure NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

REFERENCE_ELECTRONS = 40.0
PRIOR_MEAN = np.array([np.log(6e-4), 2.0])
PRIOR_SPREAD = np.array([2.5, 0.5])
NOISE = 0.3
"""Belief before any label: 40 electrons cost about two core-seconds per k-point (LiCl, eight
atoms, 50 Ry, Quantum ESPRESSO 6.7), give or take a factor of twelve, and cost grows with the
square of the size, give or take half a power. Equal labels scatter by a third."""


@dataclass(frozen=True)
class FinishedCost:
    """What one finished label cost.

    Attributes
    ----------
    n_electrons
        Valence electrons.
    n_kpoints
        k-points computed.
    core_hours
        Core-hours of all tries.
    """

    n_electrons: float
    n_kpoints: int
    core_hours: float


def estimate_core_hours(
    n_electrons: float, n_kpoints: int, *, history: Sequence[FinishedCost]
) -> float:
    """Return the core-hours that a label is expected to cost.

    The model is ``core_hours = a · n_kpoints · n_electrons^p``. Both constants are fitted to the
    logarithms by Bayesian linear regression, so that one finished label already sets the scale,
    while the exponent leaves its prior only when sizes differ.

    Parameters
    ----------
    n_electrons
        Valence electrons of the frame.
    n_kpoints
        k-points that will be computed.
    history
        Finished labels of the same recipe; may be empty, and the answer is then an order of
        magnitude at best.
    """
    sizes = np.array([[1.0, np.log(c.n_electrons / REFERENCE_ELECTRONS)] for c in history])
    costs = np.array([np.log(max(c.core_hours, 1e-9) / c.n_kpoints) for c in history])
    sizes = sizes.reshape(-1, 2)
    precision = np.diag(PRIOR_SPREAD**-2.0) + sizes.T @ sizes / NOISE**2
    information = PRIOR_MEAN / PRIOR_SPREAD**2 + sizes.T @ costs / NOISE**2
    scale, power = np.linalg.solve(precision, information)
    return float(n_kpoints * np.exp(scale + power * np.log(n_electrons / REFERENCE_ELECTRONS)))
