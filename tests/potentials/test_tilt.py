"""A bias made of head energies has the forces and the stress of its energy, at no extra price."""

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress

from otf_workflows.errors import InputError
from otf_workflows.exploration.bias import BiasedCalculator, UncertaintyBias
from otf_workflows.potentials import load_potential
from otf_workflows.potentials.base import Tiltable


@pytest.fixture(scope="module")
def potential():
    from otf_workflows.potentials.chgnet import CHGNetPotential

    shipped = load_potential("chgnet-0.3.0")
    heads = np.random.default_rng(0).normal(0, 0.2, (4, 64))
    return CHGNetPotential(shipped.model, name=shipped.name, heads=heads)


@pytest.fixture
def atoms():
    atoms = bulk("LiCl", "rocksalt", a=5.13, cubic=True)
    atoms.rattle(0.08, seed=3)
    return atoms


def settled_bias(potential, atoms):
    bias = UncertaintyBias(strength_eV=0.8, width_eV=0.1)
    rng = np.random.default_rng(1)
    for _ in range(8):
        image = atoms.copy()
        image.positions += rng.normal(0, 0.05, (len(atoms), 3))
        _, energies = potential.predict_tilted(image, bias.slopes)
        bias.watch(energies)
    bias.settle()
    return bias


def test_without_slopes_a_tilted_prediction_is_the_plain_one(potential, atoms):
    plain = potential.predict(atoms)
    tilted, energies = potential.predict_tilted(atoms, np.zeros_like)
    assert isinstance(potential, Tiltable)
    assert energies.shape == (4,)
    assert tilted.energy_eV == pytest.approx(plain.energy_eV, abs=1e-5)
    assert np.allclose(tilted.forces_eV_A, plain.forces_eV_A, atol=1e-5)
    assert np.allclose(tilted.stress_eV_A3, plain.stress_eV_A3, atol=1e-6)


def test_one_slope_adds_the_force_of_that_head(potential, atoms):
    def first(energies):
        return np.eye(len(energies))[0]

    plain, _ = potential.predict_tilted(atoms, np.zeros_like)
    tilted, _ = potential.predict_tilted(atoms, first)
    step_A = 1e-3
    energies = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[2, 1] += sign * step_A
        energies.append(potential.predict_tilted(moved, np.zeros_like)[1][0])
    numerical = -(energies[0] - energies[1]) / (2 * step_A)
    added = tilted.forces_eV_A - plain.forces_eV_A
    assert abs(numerical) > 0.01
    assert added[2, 1] == pytest.approx(numerical, abs=5e-3)


def test_forces_and_stress_of_the_biased_calculator_are_slopes_of_its_energy(potential, atoms):
    bias = settled_bias(potential, atoms)
    calculator = BiasedCalculator(potential, bias)
    atoms.positions[0] += [0.3, 0.15, 0.0]
    atoms.calc = calculator
    forces, stress = atoms.get_forces(), atoms.get_stress()
    plain = potential.predict(atoms)
    assert -0.8 < calculator.bias_energy_eV < -0.2
    assert np.abs(forces - plain.forces_eV_A).max() > 1
    # Single precision: a step of 0.01 Å leaves 1e-3 eV/Å of noise.
    assert calculate_numerical_forces(atoms, eps=0.01, iatoms=[0, 3]) == pytest.approx(
        forces[[0, 3]], abs=0.03
    )
    volume = atoms.get_volume()
    assert calculate_numerical_stress(atoms, eps=2e-3) * volume == pytest.approx(
        stress * volume, abs=0.1
    )


def test_a_model_without_heads_cannot_be_biased(atoms):
    with pytest.raises(InputError, match="heads"):
        load_potential("chgnet-0.3.0").predict_tilted(atoms, np.zeros_like)
