"""Physical guards of MD, independent of any uncertainty.

The spread of an ensemble can level off or fall while errors grow far outside the training set
(arXiv:2508.06456), so distances, volume, temperature and forces are guarded on their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from otf_workflows.selection import geometry_problem
from otf_workflows.types import StopReason

if TYPE_CHECKING:
    from ase import Atoms

MAX_FORCE_eV_A = 50.0
"""A force beyond this (eV/Å) is not thermal at any temperature of condensed matter."""

RARE = 1e-9
"""Probability, per step and in equilibrium, that the temperature guard trips by chance."""

TEMPERATURE_MARGIN_K = 300.0
"""Allowance for the energy that an unrelaxed start structure turns into heat (K)."""


@dataclass(frozen=True)
class Guards:
    """What MD may not do.

    Attributes
    ----------
    n_atoms
        Number of atoms.
    reference_volume_A3
        Volume that ratios refer to (Å³).
    min_distance_ratio
        Least distance in units of the sum of covalent radii.
    max_volume_ratio
        Largest volume ratio; its inverse is the smallest.
    reference_cell_A
        Cell that strains refer to, rows (Å), shape (3, 3); None if the shape cannot change.
    """

    n_atoms: int
    reference_volume_A3: float
    min_distance_ratio: float
    max_volume_ratio: float
    reference_cell_A: np.ndarray | None = None

    @cached_property
    def _temperature_ratio(self) -> float:
        """Kinetic temperature taken for a runaway, in units of the target.

        Three, or what the canonical distribution with 3n - 3 degrees of freedom (χ²) exceeds once
        in 1e9: small cells fluctuate far beyond three times their mean.
        """
        from scipy.stats import chi2

        freedom = 3 * self.n_atoms - 3
        return max(3.0, float(chi2.isf(RARE, freedom)) / freedom)

    def motion_problem(
        self, *, temperature_K: float, target_K: float, forces_eV_A: np.ndarray
    ) -> tuple[StopReason, str] | None:
        """Return what is wrong with temperature or forces; cheap enough for every step.

        Parameters
        ----------
        temperature_K, target_K
            Kinetic temperature, and that of the thermostat now (K).
        forces_eV_A
            Forces (eV/Å), shape (n, 3).
        """
        if not np.isfinite(forces_eV_A).all():
            return StopReason.FORCE, "A force is not a finite number."
        largest = float(np.linalg.norm(forces_eV_A, axis=1).max())
        if largest > MAX_FORCE_eV_A:
            return StopReason.FORCE, f"The largest force is {largest:.1f} eV/Å."
        # Written so that a NaN trips it.
        if not temperature_K <= self._temperature_ratio * target_K + TEMPERATURE_MARGIN_K:
            message = f"The temperature ran away to {temperature_K:.0f} K from {target_K:.0f} K."
            return StopReason.TEMPERATURE, message
        return None

    def structure_problem(self, atoms: Atoms) -> tuple[StopReason, str] | None:
        """Return what is wrong with cell or distances."""
        ratio = atoms.get_volume() / self.reference_volume_A3
        if not 1 / self.max_volume_ratio <= ratio <= self.max_volume_ratio:
            return StopReason.VOLUME, f"The volume is {ratio:.2f} times the reference."
        problem = self._shape_problem(atoms.cell.array)
        if problem:
            return StopReason.VOLUME, problem
        problem = geometry_problem(
            atoms.numbers,
            atoms.cell.array,
            atoms.get_positions(),
            min_distance_ratio=self.min_distance_ratio,
        )
        return (StopReason.DISTANCE, problem) if problem else None

    def _shape_problem(self, cell_A: np.ndarray) -> str | None:
        """Return what is wrong with the shape: a length grown or shrunk beyond the volume ratio.

        Principal stretches do not depend on how the cell is turned. A liquid does not hold the
        shape of its cell, so without a limit a free shape goes to sheets and needles.
        """
        if self.reference_cell_A is None:
            return None
        deformation = np.linalg.solve(self.reference_cell_A, cell_A)
        stretches = np.linalg.svd(deformation, compute_uv=False)
        least, most = float(stretches.min()), float(stretches.max())
        if 1 / self.max_volume_ratio <= least and most <= self.max_volume_ratio:
            return None
        return f"The cell is deformed: its principal stretches are {least:.2f} to {most:.2f}."
