"""The integrator samples the right ensemble, for few atoms too."""

import json

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes

from otf_workflows.exploration.dynamics import Dynamics, Ensemble, first_checkpoint
from otf_workflows.schemas import Checkpoint
from otf_workflows.testing.potential import ToyPotential


class Springs(Calculator):
    """Atoms bound to their places, and a cell with a bulk modulus."""

    implemented_properties = ("energy", "forces", "stress")
    stiffness_eV_A2 = 2.0
    bulk_modulus_eV_A3 = 0.5

    def __init__(self, atoms):
        super().__init__()
        self.fractions = atoms.get_scaled_positions(wrap=False)
        self.volume_A3 = atoms.get_volume()

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        away = atoms.positions - self.fractions @ atoms.cell.array
        strain = atoms.get_volume() / self.volume_A3 - 1
        # Positions scale with the cell, so the springs have a virial.
        virial_eV = self.stiffness_eV_A2 * np.sum(away**2, axis=0)
        pressure = self.bulk_modulus_eV_A3 * strain
        self.results = {
            "energy": 0.5 * self.stiffness_eV_A2 * np.sum(away**2)
            + 0.5 * self.bulk_modulus_eV_A3 * self.volume_A3 * strain**2,
            "forces": -self.stiffness_eV_A2 * away,
            "stress": np.concatenate([pressure + virial_eV / atoms.get_volume(), np.zeros(3)]),
        }


class SpringPotential:
    name = "springs"

    def __init__(self, atoms):
        self.atoms = atoms

    def calculator(self):
        return Springs(self.atoms)


def sample(atoms, potential, ensemble, *, n_steps, seed=0):
    dynamics = Dynamics(
        first_checkpoint(atoms, temperature_K=ensemble.temperature_K, seed=(seed,)),
        potential,
        ensemble,
    )
    for _ in range(n_steps):
        dynamics.advance()
        yield dynamics


@pytest.mark.parametrize("n_atoms", [2, 8])
def test_langevin_samples_the_canonical_ensemble_of_a_harmonic_crystal(n_atoms):
    atoms = bulk("LiCl", "rocksalt", a=5.13, cubic=True)[:n_atoms]
    ensemble = Ensemble(temperature_K=500.0, timestep_fs=4.0, friction_per_fs=0.02)
    runs = sample(atoms, SpringPotential(atoms), ensemble, n_steps=10000)
    kinetic, potential = np.array([(d.temperature_K, d.energy_eV) for d in runs]).T
    freedom = 3 * n_atoms - 3
    # Equipartition for 3n - 3 degrees of freedom, 10 % being about 3 standard errors for n = 2.
    assert kinetic.mean() == pytest.approx(500, rel=0.1)
    assert potential.mean() == pytest.approx(freedom * units.kB * 500 / 2, rel=0.1)
    # Canonical, not only of the right mean: the variance of the kinetic energy is right as well.
    assert kinetic.std() == pytest.approx(500 * np.sqrt(2 / freedom), rel=0.15)


def test_first_velocities_have_the_right_mean_temperature_and_no_momentum():
    atoms = bulk("LiCl", "rocksalt", a=5.13, cubic=True)
    masses = atoms.get_masses()[:, None]
    temperatures = []
    for seed in range(400):
        velocities = first_checkpoint(atoms, temperature_K=300, seed=(seed,)).velocities_A_fs
        momentum = masses * np.array(velocities) / units.fs
        assert np.abs(momentum.sum(axis=0)).max() < 1e-12
        temperatures.append(np.sum(momentum**2 / masses) / units.kB / (3 * len(atoms) - 3))
    # The standard error is 300 K × √(2/21)/√400 = 4.6 K.
    assert np.mean(temperatures) == pytest.approx(300, abs=14)


def test_centre_of_mass_stays():
    atoms = bulk("LiCl", "rocksalt", a=5.13, cubic=True)
    ensemble = Ensemble(temperature_K=500.0, timestep_fs=2.0, friction_per_fs=0.02)
    *_, last = sample(atoms, SpringPotential(atoms), ensemble, n_steps=200)
    assert np.allclose(last.structure().get_center_of_mass(), atoms.get_center_of_mass())


def test_barostat_compresses_a_crystal_as_its_bulk_modulus_says():
    atoms = bulk("LiCl", "rocksalt", a=5.13, cubic=True)
    volumes = {}
    for pressure_GPa in (0.0, 4.0):
        ensemble = Ensemble(
            temperature_K=50.0, timestep_fs=2.0, friction_per_fs=0.05, pressure_GPa=pressure_GPa
        )
        runs = sample(atoms, SpringPotential(atoms), ensemble, n_steps=3000)
        volumes[pressure_GPa] = np.mean([d.structure().get_volume() for d in runs][1000:])
    strain = volumes[4.0] / volumes[0.0] - 1
    assert strain == pytest.approx(-4.0 * units.GPa / Springs.bulk_modulus_eV_A3, rel=0.1)
    assert volumes[0.0] == pytest.approx(atoms.get_volume(), rel=0.02)


def test_checkpoint_survives_json_and_gives_the_same_bits():
    atoms = bulk("Cu", cubic=True, a=3.62)
    ensemble = Ensemble(
        temperature_K=300.0, timestep_fs=2.0, friction_per_fs=0.01, pressure_GPa=0.5
    )
    *_, dynamics = sample(atoms, ToyPotential(), ensemble, n_steps=10)
    checkpoint = dynamics.checkpoint()
    text = json.dumps(checkpoint.model_dump(mode="json"))
    twins = [
        Dynamics(start, ToyPotential(), ensemble)
        for start in (checkpoint, Checkpoint.model_validate(json.loads(text)))
    ]
    for _ in range(5):
        for twin in twins:
            twin.advance()
    assert twins[0].checkpoint() == twins[1].checkpoint()
    assert checkpoint.thermostat["cell_momentum"] != 0


def test_random_state_fits_into_a_mongodb_document():
    checkpoint = first_checkpoint(bulk("Cu", cubic=True), temperature_K=300, seed=(0,))
    assert all(isinstance(v, str) for v in checkpoint.rng_state["state"].values())
    assert abs(checkpoint.rng_state["uinteger"]) < 2**63
