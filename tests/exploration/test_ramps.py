"""Ramps follow the step of a walker, over cycles and rewinds."""

import json

import numpy as np
import pytest
from ase.build import bulk
from pydantic import ValidationError

from otf_workflows.campaign import Exploration, Production, Ramp
from otf_workflows.exploration import explore
from otf_workflows.exploration.dynamics import Dynamics, Ensemble, first_checkpoint
from otf_workflows.schemas import Calibration, Checkpoint, Frame, Origin
from otf_workflows.testing.potential import ToyPotential
from otf_workflows.types import CellMotion, StopReason

COPPER = Frame.from_atoms(bulk("Cu", cubic=True, a=3.62))


def walk(*, checkpoint=None, temperature_K=100.0, sigma=0.0, **rules):
    values = {"steps_per_cycle": 60, "check_every": 20, "friction_per_fs": 0.1, **rules}
    return explore(
        COPPER,
        ToyPotential(sigma_per_force=0.0, sigma_floor_eV_A=sigma),
        walker=0,
        model_id="m",
        rules=Exploration(**values),
        temperature_K=temperature_K,
        tolerance_eV_A=0.1,
        calibration=Calibration(),
        seed=3,
        n_pool=2,
        origin=Origin(),
        checkpoint=checkpoint,
    )


def test_a_ramp_is_held_at_its_end_or_goes_back_and_forth():
    held, back = Ramp(to_K=900, steps=100), Ramp(to_K=900, steps=100, back=True)
    assert [held.progress(n) for n in (0, 25, 100, 250)] == [0, 0.25, 1, 1]
    assert [back.progress(n) for n in (0, 25, 100, 150, 200, 325)] == [0, 0.25, 1, 0.5, 0, 0.75]


def test_temperature_and_pressure_are_exact_at_both_ends():
    conditions = Ensemble(
        temperature_K=300.1,
        timestep_fs=1.0,
        friction_per_fs=0.1,
        pressure_GPa=0.3,
        ramp=Ramp(to_K=1500.7, to_GPa=-0.1, steps=7),
    )
    assert (conditions.temperature_at_K(0), conditions.temperature_at_K(7)) == (300.1, 1500.7)
    assert (conditions.pressure_at_GPa(0), conditions.pressure_at_GPa(9)) == (0.3, -0.1)
    assert np.diff([conditions.temperature_at_K(n) for n in range(8)]) == pytest.approx(
        [1200.6 / 7] * 7
    )


def test_atoms_follow_the_thermostat_up():
    conditions = Ensemble(
        temperature_K=100.0,
        timestep_fs=2.0,
        friction_per_fs=0.2,
        ramp=Ramp(to_K=900, steps=300),
    )
    dynamics = Dynamics(
        first_checkpoint(COPPER.to_atoms().repeat((2, 2, 1)), temperature_K=100.0, seed=(0,)),
        ToyPotential(),
        conditions,
    )
    kelvins = []
    for _ in range(400):
        dynamics.advance()
        kelvins.append(dynamics.temperature_K)
    # 45 degrees of freedom; blocks of 50 steps are about 20 relaxation times.
    assert np.mean(kelvins[:50]) == pytest.approx(165, rel=0.3)
    assert np.mean(kelvins[250:300]) == pytest.approx(835, rel=0.3)
    assert np.mean(kelvins[300:]) == pytest.approx(900, rel=0.25)
    assert dynamics.target_K == 900


def test_pressure_ramp_compresses():
    rules = {"pressure_GPa": 0.0, "ramp": Ramp(to_GPa=20.0, steps=60), "friction_per_fs": 0.2}
    segment = walk(**rules)
    volume_A3 = Checkpoint.model_validate(segment.blob["checkpoint"]).frame.to_atoms().get_volume()
    assert volume_A3 < 0.97 * COPPER.to_atoms().get_volume()
    assert segment.pool[-1].origin.pressure_GPa > 0


def test_a_walker_goes_on_with_its_ramp_in_the_next_cycle_and_says_its_temperature():
    ramp = Ramp(to_K=500, steps=100)
    first = walk(ramp=ramp)
    assert first.temperature_K == 100
    assert first.targets_K == [100, 180, 260, 340]
    checkpoint = Checkpoint.model_validate(json.loads(json.dumps(first.blob["checkpoint"])))
    second = walk(ramp=ramp, checkpoint=checkpoint)
    assert second.steps == [60, 80, 100, 120]
    assert second.targets_K == [340, 420, 500, 500]


def test_frames_carry_the_temperature_of_their_step():
    segment = walk(ramp=Ramp(to_K=500, steps=100), sigma=0.15)
    assert [frame.origin.temperature_K for frame in segment.candidates] == [100, 180, 260, 340]


def test_rewinding_takes_the_ramp_back():
    segment = walk(ramp=Ramp(to_K=500, steps=100), sigma=0.25, check_every=10)
    assert segment.stop_reason == StopReason.UNCERTAIN
    checkpoint = Checkpoint.model_validate(segment.blob["checkpoint"])
    again = walk(ramp=Ramp(to_K=500, steps=100), checkpoint=checkpoint, steps_per_cycle=10)
    assert again.targets_K[0] == 100


def test_interrupted_ramp_with_a_free_shape_resumes_to_the_same_bits(tmp_path, killed_at):
    rules = {
        "steps_per_cycle": 130,
        "pressure_GPa": 0.5,
        "cell": CellMotion.FLEXIBLE,
        "ramp": Ramp(to_K=400, to_GPa=2.0, steps=90, back=True),
    }

    def run(scratch):
        return explore(
            COPPER,
            ToyPotential(sigma_per_force=0.0),
            walker=0,
            model_id="m",
            rules=Exploration(**rules),
            temperature_K=200.0,
            tolerance_eV_A=0.1,
            calibration=Calibration(),
            seed=3,
            n_pool=2,
            origin=Origin(),
            scratch=scratch,
        ).model_dump(mode="json", exclude={"seconds"})

    whole = run(tmp_path / "whole")
    with killed_at(115):
        run(tmp_path / "killed")
    assert run(tmp_path / "killed") == whole


@pytest.mark.parametrize(
    ("section", "values", "problem"),
    [
        (Exploration, {"cell": "flexible"}, "set pressure_GPa"),
        (Production, {"cell": "flexible"}, "set pressure_GPa"),
        (Exploration, {"ramp": {"to_GPa": 1.0, "steps": 10}}, "pressure to start from"),
        (Exploration, {"ramp": {"steps": 10}}, "a ramp needs an end"),
    ],
)
def test_what_does_not_fit_together_is_refused(section, values, problem):
    with pytest.raises(ValidationError, match=problem):
        section(**values)
