"""A biased walker crosses a barrier that a plain one does not, and is kept out of all averages."""

import json

import numpy as np
import pytest
from ase import Atoms
from pydantic import ValidationError

from otf_workflows.campaign import Bias, Exploration
from otf_workflows.errors import InputError
from otf_workflows.exploration import explore
from otf_workflows.exploration.bias import BiasedCalculator, UncertaintyBias
from otf_workflows.potentials.base import Prediction
from otf_workflows.potentials.calculator import PotentialCalculator
from otf_workflows.schemas import Calibration, Frame, Origin
from otf_workflows.testing.potential import ToyPotential
from otf_workflows.types import StopReason

LEFT_A, RIGHT_A, BARRIER_EV = 3.0, 4.5, 0.5
SPREADS = np.array([-1.2, -0.3, 0.4, 1.1])


class DoubleWell:
    """Two atoms at two possible distances; its heads agree at the shorter one only."""

    name = "double-well"
    heads = SPREADS[:, None]

    def predict(self, atoms, *, uncertainty=False):
        energy, slope, _, _ = self._along(atoms)
        sigma = np.full(2, 0.15 if atoms.positions[1, 0] - atoms.positions[0, 0] > 3.75 else 0.0)
        return self._prediction(atoms, energy, slope, sigma if uncertainty else None)

    def predict_tilted(self, atoms, slopes):
        energy, slope, unknown, unknown_slope = self._along(atoms)
        head_energies = SPREADS * unknown
        slope += slopes(head_energies) @ SPREADS * unknown_slope
        return self._prediction(atoms, energy, slope, None), head_energies

    def features(self, structures):
        return np.array([[atoms.get_distance(0, 1)] for atoms in structures])

    def calculator(self):
        return PotentialCalculator(self)

    @staticmethod
    def _along(atoms):
        """Return energy and what heads do not know of the distance, with their derivatives."""
        distance = atoms.positions[1, 0] - atoms.positions[0, 0]
        half = (RIGHT_A - LEFT_A) / 2
        away = (distance - LEFT_A - half) / half
        energy = BARRIER_EV * (away**2 - 1) ** 2
        slope = 4 * BARRIER_EV * (away**2 - 1) * away / half
        return energy, slope, (distance - LEFT_A) ** 2, 2 * (distance - LEFT_A)

    @staticmethod
    def _prediction(atoms, energy, slope, sigma):
        across = np.zeros((2, 3))
        across[:, 1:] = (atoms.positions - atoms.positions.mean(axis=0))[:, 1:]
        forces = -5.0 * across
        forces[:, 0] = [slope, -slope]
        return Prediction(energy + 2.5 * np.sum(across**2), forces, np.zeros((3, 3)), sigma)


def pair():
    return Atoms("Cu2", positions=[[1, 5, 5], [1 + LEFT_A, 5, 5]], cell=[12, 10, 10], pbc=True)


def walk(potential=None, *, walker=1, scratch=None, **rules):
    values = {
        "steps_per_cycle": 1000,
        "check_every": 20,
        "walkers_per_temperature": 2,
        "bias": {"strength_eV": 0.6, "width_eV": 0.15},
        **rules,
    }
    return explore(
        Frame.from_atoms(pair()),
        potential or DoubleWell(),
        walker=walker,
        model_id="m",
        rules=Exploration(**values),
        temperature_K=300.0,
        tolerance_eV_A=0.1,
        calibration=Calibration(),
        seed=4,
        n_pool=5,
        origin=Origin(),
        scratch=scratch,
    )


def test_the_bias_is_bounded_and_its_slopes_are_those_of_its_energy():
    bias = UncertaintyBias(strength_eV=0.7, width_eV=0.2)
    rng = np.random.default_rng(0)
    assert bias.energy_eV(rng.normal(size=5)) == 0.0
    assert np.all(bias.slopes(rng.normal(size=5)) == 0)
    for _ in range(20):
        bias.watch(rng.normal(0, 0.01, 5))
    bias.settle()
    for size in (0.05, 0.2, 0.5):
        energies = rng.normal(0, size, 5)
        assert -0.7 < bias.energy_eV(energies) < 0
        numerical = [
            (bias.energy_eV(energies + step) - bias.energy_eV(energies - step)) / 2e-6
            for step in 1e-6 * np.identity(5)
        ]
        assert bias.slopes(energies) == pytest.approx(numerical, abs=1e-6)
    # Heads that move together disagree no more than before.
    assert bias.slopes(energies).sum() == pytest.approx(0, abs=1e-12)
    assert bias.energy_eV(rng.normal(0, 100, 5)) == pytest.approx(-0.7)


def test_without_a_width_it_is_that_of_thermal_motion_times_three():
    bias = UncertaintyBias(strength_eV=1.0)
    rng = np.random.default_rng(0)
    for _ in range(4000):
        bias.watch(np.array([3.0, -2.0, 0.0]) + rng.normal(0, 0.02, 3))
    bias.settle()
    assert bias.width_eV == pytest.approx(0.06, rel=0.05)
    assert bias.energy_eV(np.array([3.0, -2.0, 0.0])) == pytest.approx(0, abs=1e-4)
    assert bias.energy_eV(np.array([4.0, 4.0, 5.0])) == pytest.approx(-1, abs=1e-4)


def test_a_walker_that_has_left_the_bias_behind_is_pushed_on():
    rng = np.random.default_rng(0)
    own, given = UncertaintyBias(strength_eV=1.0), UncertaintyBias(strength_eV=1.0, width_eV=0.05)
    for bias in (own, given):
        for size in (0.01, 0.5, 0.1):
            for _ in range(400):
                bias.watch(rng.normal(0, size, 4))
            bias.settle()
    assert own.width_eV == pytest.approx(0.5, rel=0.1)
    assert given.width_eV == 0.05
    far = np.array([0.5, -0.5, 0.5, -0.5])
    assert np.abs(own.slopes(far)).max() > 0.1
    assert np.abs(given.slopes(far)).max() < 1e-10


def test_forces_of_the_biased_calculator_are_slopes_of_its_energy():
    bias = UncertaintyBias(strength_eV=0.5, width_eV=0.4)
    atoms = pair()
    atoms.calc = BiasedCalculator(DoubleWell(), bias)
    atoms.get_forces()
    bias.settle()
    atoms.positions[1] += [0.4, 0.1, 0.0]
    forces = atoms.get_forces()
    assert atoms.calc.bias_energy_eV < -0.05
    energies = []
    for step in (1e-5, -1e-5):
        moved = atoms.copy()
        moved.positions[1, 0] += step
        moved.calc = BiasedCalculator(DoubleWell(), bias)
        energies.append(moved.get_potential_energy())
    assert forces[1, 0] == pytest.approx(-(energies[0] - energies[1]) / 2e-5, abs=1e-6)


def test_a_biased_walker_crosses_a_barrier_that_a_plain_one_does_not():
    plain, biased = walk(walker=0), walk(walker=1)
    assert plain.stop_reason == biased.stop_reason == StopReason.COMPLETED
    assert (plain.n_above, plain.candidates, plain.bias_eV) == (0, [], [])
    assert biased.candidates
    last = biased.candidates[-1].to_atoms()
    assert last.positions[1, 0] - last.positions[0, 0] == pytest.approx(RIGHT_A, abs=0.5)
    assert min(biased.bias_eV) < -0.3


def test_checks_of_a_biased_walker_are_in_no_average_and_no_random_sample():
    segment = walk(steps_per_cycle=300)
    assert (segment.n_checked, segment.n_above, segment.pool) == (0, 0, [])
    assert segment.n_extra == len(segment.steps) == len(segment.bias_eV) == 16
    assert len(walk(walker=0, steps_per_cycle=300).pool) == 5


def test_the_first_hundred_steps_are_those_of_a_plain_walker():
    segment = walk(steps_per_cycle=300)
    assert segment.bias_eV[:6] == [0.0] * 6
    assert segment.bias_eV[6] < 0
    plain = walk(steps_per_cycle=300, bias=None)
    assert segment.temperatures_K[:6] == plain.temperatures_K[:6]
    assert segment.temperatures_K[6] != plain.temperatures_K[6]


def test_uncertainty_and_frames_are_those_of_the_model_without_the_bias():
    segment = walk()
    assert set(segment.sigmas_eV_A) <= {0.0, 0.15}


def test_interrupted_biased_walker_resumes_to_the_same_bits(tmp_path, killed_at):
    whole = walk(steps_per_cycle=430)
    with killed_at(350):
        walk(steps_per_cycle=430, scratch=tmp_path)
    saved = json.loads((tmp_path / "state.json").read_text())
    assert (saved["n_steps_run"], saved["bias"]["width_eV"]) == (300, 0.15)
    resumed = walk(steps_per_cycle=430, scratch=tmp_path)
    left, right = (s.model_dump(mode="json", exclude={"seconds"}) for s in (resumed, whole))
    assert left == right


def test_a_model_without_heads_walks_plainly_and_says_so():
    potential = DoubleWell()
    potential.heads = None
    segment = walk(potential, steps_per_cycle=200)
    assert "no uncertainty heads yet" in segment.stop_message
    assert segment.n_checked == 11


def test_a_potential_that_cannot_be_biased_is_refused():
    with pytest.raises(InputError, match=r"exploration\.bias"):
        walk(ToyPotential())


def test_the_last_walkers_of_each_temperature_are_biased():
    rules = Exploration(
        temperatures_K=[300, 600], walkers_per_temperature=3, bias=Bias(strength_eV=0.2, walkers=2)
    )
    assert [rules.is_biased(walker) for walker in range(6)] == [False, True, True] * 2


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"walkers_per_temperature": 1}, "fewer than walkers_per_temperature"),
        ({"walkers_per_temperature": 2, "steps_per_cycle": 150}, "200 or more"),
    ],
)
def test_a_bias_leaves_walkers_for_the_averages_and_time_to_act(values, problem):
    with pytest.raises(ValidationError, match=problem):
        Exploration(bias={"strength_eV": 0.3}, **values)
