"""Langevin dynamics that can be put down and taken up again, to the last bit.

One integrator serves constant volume and constant pressure: BAOAB (Leimkuhler and Matthews,
J. Chem. Phys. 138, 174102, 2013), whose sampling of configurations has a smaller time-step error
than other splittings, with the Langevin-Hoover barostat of Quigley and Probert (J. Chem. Phys.
120, 11432, 2004), both as implemented in ASE. The centre of mass is held, so there are 3n - 3
degrees of freedom; in cells of a few atoms the difference matters.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.errors import InputError
from otf_workflows.schemas import Checkpoint, Frame

if TYPE_CHECKING:
    from ase import Atoms

    from otf_workflows.potentials.base import Potential

BAROSTAT_RATIO = 10.0
"""Period of the barostat in units of the thermostat's relaxation time."""


@dataclass(frozen=True)
class Ensemble:
    """The thermodynamic conditions, and how they are imposed.

    Attributes
    ----------
    temperature_K
        Thermostat temperature (K).
    timestep_fs
        MD time step (fs).
    friction_per_fs
        Langevin friction (1/fs).
    pressure_GPa
        Barostat pressure (GPa), the volume changing at constant shape; None for constant volume.
    """

    temperature_K: float
    timestep_fs: float
    friction_per_fs: float
    pressure_GPa: float | None = None


def first_checkpoint(atoms: Atoms, *, temperature_K: float, seed: tuple[int, ...]) -> Checkpoint:
    """Return a start with Maxwell-Boltzmann velocities and no total momentum.

    Parameters
    ----------
    atoms
        Structure; not changed.
    temperature_K
        Temperature of the velocities (K).
    seed
        Of the velocities and of the thermostat afterwards.

    Raises
    ------
    InputError
        If there are fewer than two atoms: nothing can move but the centre of mass.
    """
    from ase import units
    from ase.constraints import FixCom
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

    if len(atoms) < 2:
        raise InputError(
            f"Molecular dynamics needs at least two atoms, the cell has {len(atoms)}.",
            hint="set exploration.supercell, for instance to [2, 2, 2]",
        )
    rng = np.random.default_rng(seed)
    image = bare(atoms)
    image.set_constraint(FixCom())
    MaxwellBoltzmannDistribution(image, temperature_K=temperature_K, rng=rng)
    return Checkpoint(
        frame=Frame.from_atoms(image),
        velocities_A_fs=(image.get_velocities() * units.fs).tolist(),
        step=0,
        rng_state=rng_state(rng),
    )


def bare(atoms: Atoms) -> Atoms:
    """Return a periodic copy without calculator, constraints and momenta."""
    from ase import Atoms

    return Atoms(
        numbers=atoms.numbers, cell=atoms.cell.array, positions=atoms.get_positions(), pbc=True
    )


def rng_state(rng: np.random.Generator) -> dict[str, Any]:
    """Return the state of a PCG64 generator; its 128-bit integers as text, for MongoDB."""
    state: dict[str, Any] = dict(rng.bit_generator.state)
    state["state"] = {name: str(value) for name, value in state["state"].items()}
    return state


def rng_from_state(state: dict[str, Any]) -> np.random.Generator:
    """Return the generator that :func:`rng_state` described."""
    rng = np.random.default_rng()
    rng.bit_generator.state = {
        **state,
        "state": {name: int(value) for name, value in state["state"].items()},
    }
    return rng


class Dynamics:
    """MD from a checkpoint.

    Taking a checkpoint and starting anew from it is not the same, in the last bits, as going on:
    velocities are converted, and a calculator may keep a neighbour list with its own history. Who
    wants a resumed run equal to an uninterrupted one starts anew at every checkpoint in both.

    Parameters
    ----------
    checkpoint
        Where to start.
    potential
        Gives the forces.
    ensemble
        Conditions.
    """

    def __init__(self, checkpoint: Checkpoint, potential: Potential, ensemble: Ensemble) -> None:
        from ase import units
        from ase.constraints import FixCom
        from ase.md.langevinbaoab import LangevinBAOAB

        self.step_count = checkpoint.step
        self._rng = rng_from_state(checkpoint.rng_state)
        self._atoms = checkpoint.frame.to_atoms()
        self._atoms.set_constraint(FixCom())
        self._atoms.set_velocities(np.array(checkpoint.velocities_A_fs) / units.fs)
        self._atoms.calc = potential.calculator()
        relaxation = units.fs / ensemble.friction_per_fs
        barostat: dict[str, Any] = {}
        if ensemble.pressure_GPa is not None:
            # ASE's stress is positive in tension, a pressure is not.
            barostat = {
                "externalstress": -ensemble.pressure_GPa * units.GPa,
                "hydrostatic": True,
                "P_tau": BAROSTAT_RATIO * relaxation,
            }
        with warnings.catch_warnings():
            # It announces its choice of barostat mass and that constraints were not tested;
            # our tests check temperature, momentum and pressure with FixCom.
            warnings.simplefilter("ignore", UserWarning)
            self._integrator = LangevinBAOAB(
                self._atoms,
                ensemble.timestep_fs * units.fs,
                temperature_K=ensemble.temperature_K,
                T_tau=relaxation,
                rng=self._rng,
                **barostat,
            )
        self._variable_cell = bool(barostat)
        if self._variable_cell:
            self._integrator.p_eps = float(checkpoint.thermostat.get("cell_momentum", 0.0))

    def advance(self) -> None:
        """Make one MD step.

        Raises
        ------
        PotentialError
            If the potential cannot treat the new positions.
        """
        self._integrator.step()
        self.step_count += 1

    def checkpoint(self) -> Checkpoint:
        """Return all that is needed to go on from here."""
        from ase import units

        thermostat = {}
        if self._variable_cell:
            thermostat["cell_momentum"] = float(self._integrator.p_eps)
        return Checkpoint(
            frame=Frame.from_atoms(self._atoms),
            velocities_A_fs=(self._atoms.get_velocities() * units.fs).tolist(),
            step=self.step_count,
            rng_state=rng_state(self._rng),
            thermostat=thermostat,
        )

    def structure(self) -> Atoms:
        """Return the present structure as bare atoms."""
        return bare(self._atoms)

    @property
    def temperature_K(self) -> float:
        """Kinetic temperature (K), of 3n - 3 degrees of freedom."""
        return float(self._atoms.get_temperature())

    @property
    def forces_eV_A(self) -> np.ndarray:
        """Present forces (eV/Å), shape (n, 3)."""
        return self._atoms.get_forces(apply_constraint=False)

    @property
    def energy_eV(self) -> float:
        """Present potential energy (eV)."""
        return float(self._atoms.get_potential_energy())
