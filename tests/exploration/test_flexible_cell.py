"""A cell of free shape fluctuates as its elastic constants say, and comes back bit by bit."""

import json

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.fd import calculate_numerical_stress
from ase.stress import full_3x3_to_voigt_6_stress

from otf_workflows.exploration.dynamics import Dynamics, Ensemble, first_checkpoint
from otf_workflows.exploration.health import Guards
from otf_workflows.exploration.integrator import Integrator
from otf_workflows.schemas import Checkpoint
from otf_workflows.testing.potential import ToyPotential
from otf_workflows.types import CellMotion, StopReason

LITHIUM_CHLORIDE = bulk("LiCl", "rocksalt", a=5.13, cubic=True)


class Elastic(Calculator):
    """Atoms bound to their places in a cell with isotropic elastic constants (Green strain)."""

    implemented_properties = ("energy", "forces", "stress")
    stiffness_eV_A2 = 2.0
    bulk_modulus_eV_A3 = 0.5
    shear_modulus_eV_A3 = 0.3

    def __init__(self, atoms):
        super().__init__()
        self.fractions = atoms.get_scaled_positions(wrap=False)
        self.reference = atoms.copy()

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        away = atoms.positions - self.fractions @ atoms.cell.array
        deformation = np.linalg.solve(self.reference.cell.array, atoms.cell.array)
        strain = green_strain(deformation)
        stress = 2 * self.shear_modulus_eV_A3 * strain + np.identity(3) * np.trace(strain) * (
            self.bulk_modulus_eV_A3 - 2 / 3 * self.shear_modulus_eV_A3
        )
        volume = self.reference.get_volume()
        virial = volume * deformation.T @ stress @ deformation
        virial += self.stiffness_eV_A2 * away.T @ away
        self.results = {
            "energy": 0.5 * self.stiffness_eV_A2 * np.sum(away**2)
            + 0.5 * volume * np.sum(stress * strain),
            "forces": -self.stiffness_eV_A2 * away,
            "stress": full_3x3_to_voigt_6_stress(virial / atoms.get_volume()),
        }


class ElasticPotential:
    name = "elastic"

    def __init__(self, atoms):
        self.atoms = atoms

    def calculator(self):
        return Elastic(self.atoms)


def green_strain(deformation):
    return (deformation @ deformation.T - np.identity(3)) / 2


def ensemble(**changes):
    values = {
        "temperature_K": 300.0,
        "timestep_fs": 8.0,
        "friction_per_fs": 0.02,
        "pressure_GPa": 0.0,
        "cell": CellMotion.FLEXIBLE,
    }
    return Ensemble(**(values | changes))


def start(atoms, *, temperature_K=300.0):
    return first_checkpoint(atoms, temperature_K=temperature_K, seed=(0,))


def test_the_test_calculator_has_the_stress_of_its_energy():
    atoms = LITHIUM_CHLORIDE.copy()
    atoms.rattle(0.05, seed=1)
    shear = np.random.default_rng(0).normal(0, 0.03, (3, 3))
    atoms.set_cell(atoms.cell.array @ (np.identity(3) + shear), scale_atoms=True)
    atoms.calc = Elastic(LITHIUM_CHLORIDE)
    numerical = calculate_numerical_stress(atoms, eps=1e-5, force_consistent=False)
    assert np.allclose(atoms.get_stress(), numerical, atol=1e-8)


@pytest.mark.slow
def test_strain_temperature_and_pressure_fluctuate_as_statistical_mechanics_says():
    atoms = LITHIUM_CHLORIDE
    dynamics = Dynamics(start(atoms), ElasticPotential(atoms), ensemble())
    kelvins, strains, volumes, pressures = [], [], [], []
    for _ in range(5000):
        dynamics.advance()
        now = dynamics.structure()
        deformation = np.linalg.solve(atoms.cell.array, now.cell.array)
        kelvins.append(dynamics.temperature_K)
        strains.append(green_strain(deformation)[np.triu_indices(3, k=1)])
        volumes.append(now.get_volume())
        pressures.append(-np.trace(dynamics.stress_eV_A3) / 3 * volumes[-1])
    kT, volume = units.kB * 300, atoms.get_volume()
    strains, volumes = np.array(strains)[500:], np.array(volumes)[500:]
    # 40 ps are some 80 correlation times of the cell; three shears together scatter by a tenth.
    assert np.mean(kelvins) == pytest.approx(300, rel=0.05)
    shear = strains.var(axis=0).mean() / (kT / (4 * Elastic.shear_modulus_eV_A3 * volume))
    assert shear == pytest.approx(1, abs=0.3)
    assert volumes.var() / (kT * volume / Elastic.bulk_modulus_eV_A3) == pytest.approx(1, abs=0.4)
    # The virial theorem at zero pressure, the motion of 3n - 3 degrees of freedom included:
    # <P_virial V> + (n - 1) kT = -kT or so, for a volume that fluctuates as well.
    assert np.mean(pressures[500:]) / kT == pytest.approx(-(len(atoms) - 1), abs=3)
    # It neither turned away nor drifted into a slant.
    assert np.abs(strains.mean(axis=0)).max() < 0.01
    deformation = np.linalg.solve(atoms.cell.array, dynamics.structure().cell.array)
    assert np.abs(deformation - deformation.T).max() < 0.1


def test_a_stretched_cell_relaxes_to_its_own_shape_and_a_fixed_shape_does_not():
    stretched = LITHIUM_CHLORIDE.copy()
    stretched.set_cell(stretched.cell.array * [1.05, 1.0, 0.95], scale_atoms=True)
    lengths = {}
    for cell in CellMotion:
        conditions = ensemble(temperature_K=20.0, friction_per_fs=0.05, cell=cell)
        dynamics = Dynamics(
            start(stretched, temperature_K=20.0), ElasticPotential(LITHIUM_CHLORIDE), conditions
        )
        for _ in range(400):
            dynamics.advance()
        lengths[cell] = dynamics.structure().cell.lengths()
    flexible, isotropic = lengths[CellMotion.FLEXIBLE], lengths[CellMotion.ISOTROPIC]
    assert flexible == pytest.approx([5.13] * 3, rel=0.015)
    assert isotropic / isotropic[1] == pytest.approx([1.05, 1.0, 0.95])


def test_growth_alone_slows_atoms_alike_in_all_directions():
    atoms = LITHIUM_CHLORIDE.copy()
    atoms.calc = Elastic(atoms)
    integrator = Integrator(
        atoms,
        timestep_fs=1.0,
        friction_per_fs=0.01,
        temperature_K=300.0,
        pressure_GPa=0.0,
        cell=CellMotion.FLEXIBLE,
        rng=np.random.default_rng(0),
    )
    integrator.cell_momentum = np.identity(3).tolist()
    drag = integrator._barostat_BAOAB_OU_gamma_mod()
    expected = (1 + 3 / (3 * len(atoms))) / integrator.barostat_mass
    assert drag == pytest.approx(expected * np.identity(3))


def test_checkpoint_of_a_free_shape_survives_json_and_gives_the_same_bits():
    atoms = bulk("Cu", cubic=True, a=3.62)
    conditions = ensemble(timestep_fs=2.0, pressure_GPa=1.0)
    dynamics = Dynamics(start(atoms), ToyPotential(), conditions)
    for _ in range(10):
        dynamics.advance()
    checkpoint = dynamics.checkpoint()
    momentum = np.array(checkpoint.thermostat["cell_momentum"])
    assert momentum.shape == (3, 3)
    assert np.allclose(momentum, momentum.T)
    assert np.abs(momentum[0, 1]) > 0
    text = json.dumps(checkpoint.model_dump(mode="json"))
    twins = [
        Dynamics(begin, ToyPotential(), conditions)
        for begin in (checkpoint, Checkpoint.model_validate(json.loads(text)))
    ]
    for _ in range(5):
        for twin in twins:
            twin.advance()
    assert twins[0].checkpoint() == twins[1].checkpoint()


def test_a_shape_far_from_the_first_one_stops_however_it_is_turned():
    atoms = LITHIUM_CHLORIDE.copy()
    guards = Guards(
        n_atoms=8,
        reference_volume_A3=atoms.get_volume(),
        min_distance_ratio=0.1,
        max_volume_ratio=1.5,
        reference_cell_A=atoms.cell.array,
    )
    turned = atoms.copy()
    turned.rotate(40, (1, 2, 3), rotate_cell=True)
    assert guards.structure_problem(turned) is None
    turned.set_cell(turned.cell.array * [[1.6], [1.0], [0.625]], scale_atoms=True)
    reason, message = guards.structure_problem(turned)
    assert reason is StopReason.VOLUME
    assert "to 1.60" in message
