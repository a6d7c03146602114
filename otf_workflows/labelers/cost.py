"""What a label will cost, learned from the labels that are finished. Pure NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.labelers.base import Recipe
    from otf_workflows.schemas import Frame

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


@dataclass(frozen=True)
class CostModel:
    """``core_hours = scale · n_kpoints · (n_electrons / 40)^power``.

    Attributes
    ----------
    scale
        Core-hours of 40 electrons at one k-point.
    power
        How cost grows with size.
    """

    scale: float
    power: float

    @classmethod
    def fit(cls, history: Sequence[FinishedCost]) -> CostModel:
        """Return the model that finished labels of one recipe suggest.

        Both constants are fitted to the logarithms by Bayesian linear regression, so that one
        finished label already sets the scale, while the exponent leaves its prior only when sizes
        differ. Without any label the model is an order of magnitude at best.
        """
        sizes = np.array([[1.0, np.log(c.n_electrons / REFERENCE_ELECTRONS)] for c in history])
        costs = np.array([np.log(max(c.core_hours, 1e-9) / c.n_kpoints) for c in history])
        sizes = sizes.reshape(-1, 2)
        precision = np.diag(PRIOR_SPREAD**-2.0) + sizes.T @ sizes / NOISE**2
        information = PRIOR_MEAN / PRIOR_SPREAD**2 + sizes.T @ costs / NOISE**2
        log_scale, power = np.linalg.solve(precision, information)
        return cls(float(np.exp(log_scale)), float(power))

    def core_hours(self, n_electrons: float, n_kpoints: int) -> float:
        """Return the core-hours that a label is expected to cost."""
        return self.scale * n_kpoints * (n_electrons / REFERENCE_ELECTRONS) ** self.power


def estimate_core_hours(
    n_electrons: float, n_kpoints: int, *, history: Sequence[FinishedCost]
) -> float:
    """Return the core-hours that a label is expected to cost, by :class:`CostModel`.

    Parameters
    ----------
    n_electrons
        Valence electrons of the frame.
    n_kpoints
        k-points that will be computed.
    history
        Finished labels of the same recipe; may be empty.
    """
    return CostModel.fit(history).core_hours(n_electrons, n_kpoints)


def label_size(recipe: Recipe, frame: Frame) -> tuple[float, int] | None:
    """Return electrons and k-points of a label; None for codes that count neither."""
    if not (hasattr(recipe, "n_electrons") and hasattr(recipe, "n_kpoints")):
        return None
    return float(recipe.n_electrons(frame.numbers)), int(recipe.n_kpoints(frame))
