"""ASE's BAOAB integrator with a barostat, for one volume, one shape or neither.

BAOAB (Leimkuhler and Matthews, J. Chem. Phys. 138, 174102, 2013) samples configurations with a
smaller time-step error than other splittings. The barostat is that of Quigley and Probert (J.
Chem. Phys. 120, 11432, 2004): the cell has a momentum, which is thermostatted as well. With a free
shape that momentum is a symmetric matrix, so that the cell does not turn.

Imports ASE; reach it from inside functions.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import units
from ase.md.langevinbaoab import LangevinBAOAB

from otf_workflows.types import CellMotion

if TYPE_CHECKING:
    from ase import Atoms

BAROSTAT_RATIO = 10.0
"""Period of the barostat in units of the thermostat's relaxation time."""

SHAPE_MASS = 1 / 3
"""Mass of a cell of free shape in units of that of fixed shape: three equal strains together then
move as one change of the volume does (Quigley and Probert, section II)."""


class Integrator(LangevinBAOAB):
    """Langevin dynamics with temperature and pressure that may change from step to step.

    Parameters
    ----------
    atoms
        With velocities, calculator and the constraint that holds the centre of mass.
    timestep_fs
        MD time step (fs).
    friction_per_fs
        Langevin friction (1/fs).
    temperature_K
        Thermostat temperature (K).
    pressure_GPa
        Barostat pressure (GPa); None for a fixed cell.
    cell
        What the barostat may change.
    rng
        Source of all noise.
    """

    p_eps: Any

    def __init__(
        self,
        atoms: Atoms,
        *,
        timestep_fs: float,
        friction_per_fs: float,
        temperature_K: float,
        pressure_GPa: float | None,
        cell: CellMotion,
        rng: np.random.Generator,
    ) -> None:
        relaxation = units.fs / friction_per_fs
        barostat: dict[str, Any] = {}
        if pressure_GPa is not None:
            whole = cell is CellMotion.ISOTROPIC
            barostat = {
                "externalstress": _stress(pressure_GPa),
                "hydrostatic": whole,
                "P_tau": BAROSTAT_RATIO * relaxation,
                "P_mass_factor": 1.0 if whole else SHAPE_MASS,
            }
        # Asked for in advance: other walkers may move before the answer comes, and the filters of
        # warnings belong to all.
        atoms.get_forces()
        with warnings.catch_warnings():
            # It announces its choice of barostat mass and that constraints were not tested;
            # our tests check temperature, momentum, pressure and strain with FixCom.
            warnings.simplefilter("ignore", UserWarning)
            super().__init__(
                atoms,
                timestep_fs * units.fs,
                temperature_K=temperature_K,
                T_tau=relaxation,
                rng=rng,
                **barostat,
            )

    @property
    def cell_momentum(self) -> float | list[list[float]] | None:
        """Momentum of the cell: a number, a symmetric 3 × 3 matrix, or None if it is fixed."""
        if self.externalstress is None:
            return None
        return float(self.p_eps) if self.hydrostatic else np.asarray(self.p_eps).tolist()

    @cell_momentum.setter
    def cell_momentum(self, value: float | list[list[float]] | None) -> None:
        """Set what was read; None is a cell at rest."""
        if self.hydrostatic:
            self.p_eps = 0.0 if value is None else float(np.asarray(value))
        else:
            self.p_eps = np.zeros((3, 3)) if value is None else np.array(value)

    def set_pressure(self, pressure_GPa: float) -> None:
        """Change the barostat pressure (GPa) from the next forces on the cell on."""
        stress = _stress(pressure_GPa)
        self.externalstress = stress if self.hydrostatic else stress * np.identity(3)

    def _barostat_BAOAB_OU_gamma_mod(self) -> Any:
        """Return the drag of a moving cell on the atoms.

        A growing volume slows atoms down alike in all directions. ASE 3.29 adds the trace to all
        nine elements of the matrix, so that growth would shear the velocities as well.
        """
        if self.hydrostatic:
            return super()._barostat_BAOAB_OU_gamma_mod()
        momentum = np.asarray(self.p_eps)
        mean = np.trace(momentum) / self.Ndof
        return (momentum + mean * np.identity(3)) / self.barostat_mass


def _stress(pressure_GPa: float) -> float:
    """Return a pressure as ASE's stress, which is positive in tension."""
    return -pressure_GPa * units.GPa
