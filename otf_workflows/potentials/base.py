"""What the rest of the package needs from a machine-learned potential."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from otf_workflows.errors import PotentialError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from ase import Atoms
    from ase.calculators.calculator import Calculator


__all__ = ["Potential", "PotentialError", "Prediction"]


@dataclass(frozen=True)
class Prediction:
    """Energy, forces and stress of one structure, with uncertainty if it was asked for.

    Attributes
    ----------
    energy_eV
        Total energy (eV).
    forces_eV_A
        Forces (eV/Å), shape (n, 3).
    stress_eV_A3
        Stress (eV/Å³), shape (3, 3), tension positive (ASE's sign).
    sigma_eV_A
        Raw (uncalibrated) force uncertainty of each atom (eV/Å), shape (n,).
    novelty
        Latent distance of each atom from what was trained on, shape (n,); free at every step.
    """

    energy_eV: float
    forces_eV_A: np.ndarray
    stress_eV_A3: np.ndarray
    sigma_eV_A: np.ndarray | None = None
    novelty: np.ndarray | None = None


@runtime_checkable
class Potential(Protocol):
    """A potential with a latent space and an uncertainty.

    ``dump`` and ``load_potential(name, blob)`` are inverse to each other; the blob holds weights,
    uncertainty heads and latent statistics, and is read with ``weights_only=True``.
    """

    name: str
    """Registry name of architecture and pretraining, e.g. ``chgnet-0.3.0``."""

    def predict(self, atoms: Atoms, *, uncertainty: bool = False) -> Prediction:
        """Return energy, forces and stress; σ and novelty as well if asked for."""

    def predict_many(
        self, structures: Sequence[Atoms], *, uncertainty: bool = False
    ) -> list[Prediction]:
        """Return predictions for many structures, batched where that is faster."""

    def features(self, structures: Sequence[Atoms]) -> np.ndarray:
        """Return structure-mean latent features, shape (n_structures, d)."""

    def fit_uncertainty(
        self,
        structures: Sequence[Atoms],
        forces_eV_A: Sequence[np.ndarray],
        *,
        seed: int,
    ) -> Potential:
        """Return a copy whose uncertainty is fitted to these labels; this one stays as it is."""

    def calculator(self) -> Calculator:
        """Return a fast ASE calculator (energy, forces, stress)."""

    def dump(self) -> bytes:
        """Return weights, heads and latent statistics as bytes."""


@runtime_checkable
class Tiltable(Protocol):
    """What a potential needs besides, to be tilted by a function of the energies of its heads."""

    heads: np.ndarray | None
    """Changes of the last weights, shape (n_heads, d); None before they are fitted."""

    def predict_tilted(
        self, atoms: Atoms, slopes: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[Prediction, np.ndarray]:
        """Return energy, and forces and stress with a bias, for the price of a plain prediction.

        Parameters
        ----------
        atoms
            Structure.
        slopes
            Gives the derivative of the bias by each head energy, from the head energies (eV); both
            of shape (n_heads,).

        Returns
        -------
        tuple
            The prediction, whose energy is that without the bias, and the head energies (eV): what
            each head adds to the energy, shape (n_heads,).

        Raises
        ------
        InputError
            If there are no heads.
        PotentialError
            As of ``predict``.
        """


@runtime_checkable
class ColdStart(Protocol):
    """What a potential needs besides, to notice new surroundings before there is any label."""

    def familiar_with(self, structures: Sequence[Atoms]) -> Potential:
        """Return one with the same weights and heads whose novelty is counted from these."""
