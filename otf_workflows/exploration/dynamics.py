"""Langevin dynamics that can be put down and taken up again, to the last bit.

One integrator (:mod:`otf_workflows.exploration.integrator`) serves constant volume, constant
pressure with a fixed or a free shape, and ramps of both temperature and pressure. The centre of
mass is held, so there are 3n - 3 degrees of freedom; in cells of a few atoms the difference
matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.errors import InputError
from otf_workflows.schemas import Checkpoint, Frame
from otf_workflows.types import CellMotion

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

    from otf_workflows.campaign import Ramp
    from otf_workflows.exploration.bias import UncertaintyBias
    from otf_workflows.potentials.base import Potential


@dataclass(frozen=True)
class Ensemble:
    """The thermodynamic conditions, and how they are imposed.

    Attributes
    ----------
    temperature_K
        Thermostat temperature (K), at step 0 if there is a ramp.
    timestep_fs
        MD time step (fs).
    friction_per_fs
        Langevin friction (1/fs).
    pressure_GPa
        Barostat pressure (GPa), at step 0 if there is a ramp; None for constant volume.
    cell
        What the barostat may change.
    ramp
        How temperature and pressure change; None if they do not.
    """

    temperature_K: float
    timestep_fs: float
    friction_per_fs: float
    pressure_GPa: float | None = None
    cell: CellMotion = CellMotion.ISOTROPIC
    ramp: Ramp | None = None

    def temperature_at_K(self, step: int) -> float:
        """Return the thermostat temperature (K) at an MD step, counted over all cycles."""
        if self.ramp is None or self.ramp.to_K is None:
            return self.temperature_K
        return _between(self.temperature_K, self.ramp.to_K, self.ramp.progress(step))

    def pressure_at_GPa(self, step: int) -> float | None:
        """Return the barostat pressure (GPa) at an MD step; None for constant volume."""
        if self.pressure_GPa is None or self.ramp is None or self.ramp.to_GPa is None:
            return self.pressure_GPa
        return _between(self.pressure_GPa, self.ramp.to_GPa, self.ramp.progress(step))


def _between(start: float, end: float, share: float) -> float:
    # Exact at both ends.
    return (1 - share) * start + share * end


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


def biased(potential: Potential, bias: UncertaintyBias) -> Calculator:
    """Return a calculator of a potential with a bias.

    Raises
    ------
    InputError
        If the potential cannot be biased.
    """
    from otf_workflows.exploration.bias import BiasedCalculator
    from otf_workflows.potentials.base import Tiltable

    if not isinstance(potential, Tiltable):
        raise InputError(
            f"The potential {potential.name} cannot be biased.",
            hint="leave out exploration.bias, or choose another potential",
        )
    return BiasedCalculator(potential, bias)


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
    bias
        Added to the potential, which must be a
        :class:`~otf_workflows.potentials.base.Tiltable`; None for none.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        potential: Potential,
        ensemble: Ensemble,
        *,
        bias: UncertaintyBias | None = None,
    ) -> None:
        from ase import units
        from ase.constraints import FixCom

        from otf_workflows.exploration.integrator import Integrator

        self.step_count = checkpoint.step
        self._ensemble = ensemble
        self._rng = rng_from_state(checkpoint.rng_state)
        self._atoms = checkpoint.frame.to_atoms()
        self._atoms.set_constraint(FixCom())
        self._atoms.set_velocities(np.array(checkpoint.velocities_A_fs) / units.fs)
        self._atoms.calc = potential.calculator() if bias is None else biased(potential, bias)
        self._integrator = Integrator(
            self._atoms,
            timestep_fs=ensemble.timestep_fs,
            friction_per_fs=ensemble.friction_per_fs,
            temperature_K=ensemble.temperature_at_K(checkpoint.step),
            pressure_GPa=ensemble.pressure_at_GPa(checkpoint.step),
            cell=ensemble.cell,
            rng=self._rng,
        )
        if ensemble.pressure_GPa is not None:
            self._integrator.cell_momentum = checkpoint.thermostat.get("cell_momentum")

    def advance(self) -> None:
        """Make one MD step.

        Raises
        ------
        PotentialError
            If the potential cannot treat the new positions.
        """
        if self._ensemble.ramp is not None:
            self._follow(self._ensemble)
        self._integrator.step()
        self.step_count += 1

    def _follow(self, ensemble: Ensemble) -> None:
        """Set temperature and pressure as the ramp has them at this step."""
        self._integrator.set_temperature(ensemble.temperature_at_K(self.step_count))
        pressure_GPa = ensemble.pressure_at_GPa(self.step_count)
        if pressure_GPa is not None:
            self._integrator.set_pressure(pressure_GPa)

    def checkpoint(self) -> Checkpoint:
        """Return all that is needed to go on from here."""
        from ase import units

        momentum = self._integrator.cell_momentum
        thermostat = {} if momentum is None else {"cell_momentum": momentum}
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
    def target_K(self) -> float:
        """Thermostat temperature (K) at this step."""
        return self._ensemble.temperature_at_K(self.step_count)

    @property
    def temperature_K(self) -> float:
        """Kinetic temperature (K), of 3n - 3 degrees of freedom."""
        return float(self._atoms.get_temperature())

    @property
    def forces_eV_A(self) -> np.ndarray:
        """Present forces (eV/Å), those of a bias included, shape (n, 3)."""
        return self._atoms.get_forces(apply_constraint=False)

    @property
    def novelty(self) -> float | None:
        """Latent novelty of the worst atom; None where the calculator does not tell."""
        prediction = getattr(self._atoms.calc, "prediction", None)
        if prediction is None or prediction.novelty is None:
            return None
        return float(prediction.novelty.max())

    @property
    def bias_energy_eV(self) -> float:
        """Present energy of the bias (eV); 0 without one."""
        return float(getattr(self._atoms.calc, "bias_energy_eV", 0.0))

    @property
    def stress_eV_A3(self) -> np.ndarray:
        """Present stress without the motion of the atoms (eV/Å³), shape (3, 3)."""
        return self._atoms.get_stress(voigt=False)

    @property
    def energy_eV(self) -> float:
        """Present potential energy (eV), that of a bias included."""
        return float(self._atoms.get_potential_energy())
