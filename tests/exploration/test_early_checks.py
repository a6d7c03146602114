"""Novelty, known at every step, calls for a check before it is due."""

from dataclasses import replace
from functools import cache

import numpy as np
from ase.build import bulk

from otf_workflows.campaign import Exploration, Ramp
from otf_workflows.exploration import explore
from otf_workflows.potentials.calculator import PotentialCalculator
from otf_workflows.schemas import Calibration, Frame, Origin
from otf_workflows.testing.potential import ToyPotential

COPPER = Frame.from_atoms(bulk("Cu", cubic=True, a=3.62))
HEATING = Ramp(to_K=2500, steps=200)


class Aware:
    """A toy whose calculator knows the novelty at every step: the size of the forces."""

    name = "aware"

    def __init__(self, *, deaf=False):
        self.toy = ToyPotential(sigma_per_force=0.05)
        self.deaf = deaf

    def predict(self, atoms, *, uncertainty=False):
        prediction = self.toy.predict(atoms, uncertainty=uncertainty)
        novelty = np.linalg.norm(prediction.forces_eV_A, axis=1)
        return replace(prediction, novelty=novelty)

    def features(self, structures):
        return self.toy.features(structures)

    def calculator(self):
        return self.toy.calculator() if self.deaf else PotentialCalculator(self)


def walk(potential=None, *, scratch=None, tolerance_eV_A=0.1, n_pool=50, **rules):
    values = {"steps_per_cycle": 200, "check_every": 50, **rules}
    return explore(
        COPPER,
        potential or Aware(),
        walker=0,
        model_id="m",
        rules=Exploration(**values),
        temperature_K=100.0,
        tolerance_eV_A=tolerance_eV_A,
        calibration=Calibration(),
        seed=2,
        n_pool=n_pool,
        origin=Origin(),
        scratch=scratch,
    )


@cache
def heated(*, early_checks=True, tolerance_eV_A=10.0):
    return walk(ramp=HEATING, early_checks=early_checks, tolerance_eV_A=tolerance_eV_A)


def first_above(segment, tolerance_eV_A=0.1):
    return next(
        step
        for step, sigma in zip(segment.steps, segment.sigmas_eV_A, strict=True)
        if sigma > tolerance_eV_A
    )


def test_a_walker_that_leaves_what_it_knows_is_noticed_before_the_next_check_is_due():
    watched = heated(tolerance_eV_A=0.1)
    unwatched = heated(tolerance_eV_A=0.1, early_checks=False)
    assert unwatched.n_extra == 0
    assert first_above(unwatched) % 50 == 0
    assert first_above(watched) % 50 != 0
    assert first_above(watched) < first_above(unwatched)
    assert watched.n_extra_above >= 1
    assert watched.candidates[0].origin.step == first_above(watched)


def test_early_checks_are_in_no_average_and_in_no_random_sample():
    segment = heated()
    assert segment.n_extra > 0
    assert segment.n_checked == 5
    assert len(segment.steps) == 5 + segment.n_extra
    assert [frame.origin.step for frame in segment.pool] == [50, 200]


def test_a_walker_in_equilibrium_makes_few_of_them_and_never_two_in_a_row():
    segment = walk(steps_per_cycle=400, tolerance_eV_A=10.0, n_pool=1)
    early = [step for step in segment.steps if step % 50]
    assert 0 < segment.n_extra == len(early) <= 6
    waited = np.diff(segment.steps)[[step % 50 > 0 for step in segment.steps[1:]]]
    assert waited.min() >= 10


def test_where_the_calculator_does_not_know_the_novelty_checks_are_made_when_due():
    segment = walk(Aware(deaf=True), ramp=HEATING, tolerance_eV_A=10.0, steps_per_cycle=60)
    assert segment.n_extra == 0


def test_early_checks_change_no_step_of_the_trajectory():
    assert heated().blob["checkpoint"] == heated(early_checks=False).blob["checkpoint"]


def test_interrupted_walker_with_early_checks_resumes_to_the_same_bits(tmp_path, killed_at):
    rules = {"ramp": HEATING, "tolerance_eV_A": 10.0, "steps_per_cycle": 125}
    whole = walk(**rules)
    with killed_at(120):
        walk(scratch=tmp_path, **rules)
    resumed = walk(scratch=tmp_path, **rules)
    assert resumed.n_extra > 0
    left, right = (s.model_dump(mode="json", exclude={"seconds"}) for s in (resumed, whole))
    assert left == right
