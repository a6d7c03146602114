"""Pushing a walker to where the model is unsure, when waiting would take too long.

An ion hop or a reaction may be too rare for plain MD, and yet it is what labels are needed of. The
bias of Kulichenko et al. (Nat. Comput. Sci. 3, 230, 2023) lowers the energy where an ensemble
disagrees. Here the ensemble are the heads of the last layer, whose energies are linear in their
weights: the force of any function of the head energies is that of *one* head, the sum of all with
the slopes of that function. So a biased step costs as much as a plain one, and no second
derivative is needed.

What heads say of the energy has an arbitrary zero, as they are fitted to forces. So the spread is
taken of the *changes* of the head energies since a first, unbiased stretch of the segment, which
also says how large the spread is in thermal motion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.potentials.calculator import PredictionCalculator

if TYPE_CHECKING:
    from ase import Atoms

    from otf_workflows.potentials.base import Prediction, Tiltable

WIDTH_RATIO = 3.0
"""Width of the bias in units of the thermal spread of the whole cell: a tenth of the strength is
spent within thermal motion. That spread is the sum over all atoms, so one atom has to move far
before it alone uses up the bias; a width within thermal motion would only shift the minimum."""

MIN_WIDTH_eV = 1e-4
"""Smallest width (eV): below it the spread is rounding."""


class UncertaintyBias:
    """A bounded energy that falls where the heads of a model disagree.

    E = A (exp(−s² / w²) − 1) with s² the variance over heads of (head energy − its mean in the
    unbiased stretch), so E is between 0 and −A.

    Parameters
    ----------
    strength_eV
        A, the most that a barrier can be lowered by (eV).
    width_eV
        w, the spread at which 63 % of A are reached (eV); None for :data:`WIDTH_RATIO` times the
        thermal spread, and later at least the spread of the last stretch: a walker that has left
        the bias behind would no longer be pushed.
    """

    def __init__(self, *, strength_eV: float, width_eV: float | None = None) -> None:
        self.strength_eV = strength_eV
        self.width_eV = width_eV
        self._given = width_eV is not None
        self._centre_eV: np.ndarray | None = None
        self._seen: list[np.ndarray] = []

    @property
    def settled(self) -> bool:
        """Whether the unbiased stretch is over, and the bias acts."""
        return self._centre_eV is not None

    def watch(self, head_energies_eV: np.ndarray) -> None:
        """Take note of head energies (eV), shape (n_heads,), of a stretch under way."""
        self._seen.append(np.array(head_energies_eV))

    def settle(self) -> None:
        """End a stretch: the first one says what is thermal, later ones how far it has come.

        Of each the first half is left out, in which the first start heats up.
        """
        rows = np.array(self._seen[len(self._seen) // 2 :])
        self._seen = []
        if not len(rows):
            return
        if self._centre_eV is None:
            self._centre_eV = rows.mean(axis=0)
        if not self._given:
            spread = float(np.sqrt(np.mean([self._spread(row)[0] for row in rows])))
            thermal = max(WIDTH_RATIO * spread, MIN_WIDTH_eV)
            self.width_eV = thermal if self.width_eV is None else max(self.width_eV, spread)

    def energy_eV(self, head_energies_eV: np.ndarray) -> float:
        """Return the bias energy (eV) of head energies (eV), shape (n_heads,)."""
        if self._centre_eV is None or self.width_eV is None:
            return 0.0
        variance, _ = self._spread(head_energies_eV)
        return self.strength_eV * float(np.expm1(-variance / self.width_eV**2))

    def slopes(self, head_energies_eV: np.ndarray) -> np.ndarray:
        """Return the derivative of the bias energy by each head energy, shape (n_heads,)."""
        if self._centre_eV is None or self.width_eV is None:
            return np.zeros(len(head_energies_eV))
        variance, slope = self._spread(head_energies_eV)
        scale = self.strength_eV / self.width_eV**2
        return -scale * np.exp(-variance / self.width_eV**2) * slope

    def memory(self) -> dict[str, Any]:
        """Return the state as JSON data; that of a stretch under way is not in it."""
        if self._centre_eV is None:
            return {}
        return {"centre_eV": self._centre_eV.tolist(), "width_eV": self.width_eV}

    def recall(self, memory: dict[str, Any]) -> None:
        """Take the state back."""
        if memory:
            self._centre_eV = np.array(memory["centre_eV"])
            self.width_eV = float(memory["width_eV"])

    def _spread(self, head_energies_eV: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the variance of the changes (eV²), and its derivative by each head energy."""
        changes = np.asarray(head_energies_eV) - self._centre_eV
        away = changes - changes.mean()
        freedom = len(away) - 1
        return float(away @ away) / freedom, 2 * away / freedom


class BiasedCalculator(PredictionCalculator):
    """Energy, forces and stress of a potential with a bias.

    Attributes
    ----------
    prediction
        The latest prediction: the energy without the bias, forces and stress with it.
    bias_energy_eV
        The latest bias energy (eV).
    """

    def __init__(self, potential: Tiltable, bias: UncertaintyBias) -> None:
        super().__init__()
        self.potential = potential
        self.bias = bias
        self.bias_energy_eV = 0.0

    def evaluate(self, atoms: Atoms) -> tuple[Prediction, float]:
        """Return the tilted prediction, and the energy with the bias (eV)."""
        prediction, head_energies_eV = self.potential.predict_tilted(atoms, self.bias.slopes)
        self.bias.watch(head_energies_eV)
        self.bias_energy_eV = self.bias.energy_eV(head_energies_eV)
        return prediction, prediction.energy_eV + self.bias_energy_eV
