"""Walkers that share a job do what they do alone, and go on after a kill as if there was none."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from ase.build import bulk

from otf_workflows.campaign import Bias, Exploration
from otf_workflows.errors import InputError, PotentialError
from otf_workflows.exploration import Walker, explore, explore_together, loop
from otf_workflows.exploration.flock import Kept, newest_common
from otf_workflows.potentials.base import Prediction
from otf_workflows.potentials.calculator import PotentialCalculator
from otf_workflows.schemas import Calibration, Checkpoint, Frame, Origin
from otf_workflows.types import StopReason

COPPER = Frame.from_atoms(bulk("Cu", cubic=True, a=3.62))
SMALLER = Frame.from_atoms(bulk("Cu", a=3.60) * (2, 1, 1))


@dataclass(frozen=True)
class Toy:
    """Atoms in an egg box with hollows at the sites of copper; σ grows with the force.

    ``lost_after`` makes the uncertainty of two-atom cells large from that reading on;
    ``touch_eV_A`` adds to forces what depends on their batch, as rounding does.
    """

    name = "egg-box"
    lost_after: int | None = None
    touch_eV_A: float = 0.0
    sigma_per_force: float = 0.1
    batches: list = field(default_factory=list, compare=False)
    readings: list = field(default_factory=list, compare=False)

    def predict(self, atoms, *, uncertainty=False):
        phases = 2 * np.pi * atoms.positions / 1.81
        forces = -1.4 * np.sin(phases)
        sigma = self.sigma_per_force * np.linalg.norm(forces, axis=1) if uncertainty else None
        if sigma is not None and len(atoms) == 2:
            sigma *= 3
        energy = 0.4 * float((1 - np.cos(phases)).sum())
        return Prediction(energy, forces, 1e-3 * np.eye(3), sigma)

    def features(self, structures):
        return np.array([[np.cos(atoms.positions).mean()] for atoms in structures])

    def calculator(self):
        return PotentialCalculator(self)

    def predict_many(self, structures, *, uncertainty=False):
        self.batches.append(("sigma" if uncertainty else "forces", len(structures)))
        return [
            self._touched(self._read(self.predict(atoms, uncertainty=uncertainty)), i, structures)
            for i, atoms in enumerate(structures)
        ]

    def _touched(self, prediction, place, structures):
        touch = self.touch_eV_A * (place + 1) * sum(len(atoms) for atoms in structures)
        return replace(prediction, forces_eV_A=prediction.forces_eV_A + touch)

    def _read(self, prediction):
        sigma = prediction.sigma_eV_A
        if self.lost_after is None or sigma is None or len(sigma) > 2:
            return prediction
        self.readings.append("sigma")
        lost = len(self.readings) > self.lost_after
        return replace(prediction, sigma_eV_A=np.full(2, 9.0 if lost else 0.0))


WALKERS = [
    Walker(COPPER, 0, temperature_K=300.0, seed=7),
    Walker(SMALLER, 1, temperature_K=300.0, seed=8),
    Walker(COPPER, 2, temperature_K=600.0, seed=9),
]


def shared(*, n_steps=60, **changes):
    rules = {"steps_per_cycle": n_steps, "check_every": 10, **changes.pop("rules", {})}
    arguments = {
        "rules": Exploration(**rules),
        "model_id": "m",
        "tolerance_eV_A": 0.1,
        "calibration": Calibration(),
        "n_pool": 3,
        "origin": Origin(campaign="c", cycle=2),
    }
    return arguments | changes


def contents(segments):
    return [segment.model_dump(mode="json", exclude={"seconds"}) for segment in segments]


@pytest.mark.parametrize("pressure_GPa", [None, 1.0])
def test_each_walker_does_what_it_does_alone(pressure_GPa):
    arguments = shared(rules={"pressure_GPa": pressure_GPa}, n_steps=120)
    alone = [explore(**vars(w), potential=Toy(), **arguments) for w in WALKERS]
    together = explore_together(WALKERS, Toy(), **arguments)
    assert contents(together) == contents(alone)
    assert len({segment.blob["trajectory"] for segment in together}) == 3


def test_a_segment_continues_where_the_last_one_ended():
    first = explore_together(WALKERS, Toy(), **shared())
    starts = [
        replace(walker, checkpoint=Checkpoint.model_validate(segment.blob["checkpoint"]))
        for walker, segment in zip(WALKERS, first, strict=True)
    ]
    second = explore_together(starts, Toy(), **shared())
    assert [segment.first_step for segment in second] == [60, 60, 60]
    alone = [explore(**vars(w), potential=Toy(), **shared()) for w in starts]
    assert contents(second) == contents(alone)


def test_one_call_of_the_potential_serves_a_step_of_all():
    toy = Toy(sigma_per_force=0.0)
    explore_together(WALKERS, toy, **shared())
    assert toy.batches.count(("sigma", 3)) == 7
    assert toy.batches.count(("forces", 3)) == 61
    assert len(toy.batches) == 68


def test_a_walker_that_stops_leaves_the_others():
    toy = Toy(lost_after=3, sigma_per_force=0.0)
    segments = explore_together(WALKERS, toy, **shared())
    assert [s.stop_reason for s in segments] == [
        StopReason.COMPLETED,
        StopReason.UNCERTAIN,
        StopReason.COMPLETED,
    ]
    assert [s.n_steps_run for s in segments] == [60, 30, 60]
    assert toy.batches.count(("forces", 3)) == 31
    assert toy.batches.count(("forces", 2)) == 30


def test_a_structure_that_cannot_be_treated_stops_its_own_walker_only():
    class Picky(Toy):
        def predict(self, atoms, *, uncertainty=False):
            if len(atoms) == 2 and len(self.batches) > 20:
                raise PotentialError("The graph has an isolated atom.")
            return super().predict(atoms, uncertainty=uncertainty)

    segments = explore_together(WALKERS, Picky(), **shared())
    assert segments[1].stop_reason == StopReason.FORCE
    assert "isolated atom" in segments[1].stop_message
    others = [WALKERS[0], WALKERS[2]]
    alone = [explore(**vars(w), potential=Toy(), **shared()) for w in others]
    assert contents([segments[0], segments[2]]) == contents(alone)


def test_an_error_of_one_walker_is_the_error_of_the_job():
    walkers = [*WALKERS, Walker(Frame.from_atoms(bulk("Cu")), 3, temperature_K=300.0, seed=1)]
    with pytest.raises(InputError, match="at least two atoms"):
        explore_together(walkers, Toy(), **shared())


def test_wall_time_is_shared_out_by_steps():
    segments = explore_together(WALKERS, Toy(lost_after=3, sigma_per_force=0.0), **shared())
    shares = [segment.seconds / segment.n_steps_run for segment in segments]
    assert shares == pytest.approx([shares[0]] * 3)
    assert shares[0] > 0


def test_biased_walkers_go_in_step_with_plain_ones():
    class Tiltable(Toy):
        heads = np.ones((3, 1))

        def predict_tilted(self, atoms, slopes):
            self.readings.append("tilted")
            own = np.array([-1.0, 0.0, 1.0]) * self.predict(atoms).energy_eV
            assert slopes(own).shape == (3,)
            return self.predict(atoms), own

    rules = {
        "steps_per_cycle": 200,
        "walkers_per_temperature": 2,
        "bias": Bias(strength_eV=0.1, width_eV=0.5),
    }
    toy = Tiltable()
    segments = explore_together(WALKERS, toy, **shared(rules=rules))
    assert [bool(segment.bias_eV) for segment in segments] == [False, True, False]
    assert len(toy.readings) == toy.batches.count(("forces", 2)) > 200


# -- saved states --------------------------------------------------------------------------------

TOUCHY = Toy(touch_eV_A=1e-5)
HOT = [WALKERS[0], replace(WALKERS[1], temperature_K=900.0), WALKERS[2]]


class Killed(BaseException):
    """Stands for a kill at a certain moment."""


def killed_at_save(monkeypatch, number, walkers, **arguments):
    """Run a flock until a certain save of any walker, which is not made any more."""
    saves, write_state = [], loop.write_state

    def write_or_die(*given):
        saves.append(1)
        if len(saves) > number:
            raise Killed
        write_state(*given)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_state", write_or_die)
        with pytest.raises(Killed):
            explore_together(walkers, TOUCHY, **arguments)


@pytest.fixture
def often(monkeypatch):
    """Save every 50 steps."""
    monkeypatch.setattr(loop, "SAVE_EVERY", 50)


@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_killed_flock_goes_on_to_the_same_bits_whoever_had_saved(
    tmp_path, monkeypatch, often, number
):
    arguments = shared(n_steps=130)
    whole = explore_together(WALKERS, TOUCHY, **arguments)
    killed_at_save(monkeypatch, number, WALKERS, **arguments, scratch=tmp_path)
    resumed = replace(TOUCHY, batches=[])
    again = explore_together(WALKERS, resumed, **arguments, scratch=tmp_path)
    assert contents(again) == contents(whole)
    steps_left = 130 - 50 * (number // 3)
    assert steps_left < resumed.batches.count(("forces", 3)) <= steps_left + 3


@pytest.mark.parametrize("number", [4, 7, 8])
def test_a_walker_that_had_ended_takes_part_again_only_where_it_did(
    tmp_path, monkeypatch, often, number
):
    arguments = shared(n_steps=220, tolerance_eV_A=0.14)
    whole = explore_together(HOT, TOUCHY, **arguments)
    assert [s.n_steps_run for s in whole] == [220, 120, 220]
    killed_at_save(monkeypatch, number, HOT, **arguments, scratch=tmp_path)
    again = explore_together(HOT, TOUCHY, **arguments, scratch=tmp_path)
    assert contents(again) == contents(whole)


def test_a_flock_that_had_ended_asks_nothing_again(tmp_path):
    first = explore_together(WALKERS, TOUCHY, **shared(), scratch=tmp_path)
    fresh = replace(TOUCHY, batches=[])
    again = explore_together(WALKERS, fresh, **shared(), scratch=tmp_path)
    assert contents(again) == contents(first)
    assert fresh.batches == []


def test_states_of_another_flock_are_not_taken_up(tmp_path):
    explore_together(WALKERS, TOUCHY, **shared(), scratch=tmp_path)
    fewer = explore_together(WALKERS[:2], TOUCHY, **shared(), scratch=tmp_path)
    assert contents(fewer) == contents(explore_together(WALKERS[:2], TOUCHY, **shared()))


def test_what_is_in_a_batch_matters_in_these_tests():
    three = explore_together(WALKERS, TOUCHY, **shared())
    two = explore_together(WALKERS[:2], TOUCHY, **shared())
    assert three[0].blob["checkpoint"]["frame"] != two[0].blob["checkpoint"]["frame"]


@pytest.mark.parametrize(
    ("saved", "ended", "expected"),
    [
        ([[100], [100]], [None, None], 100),
        ([[100, 200], [100]], [None, None], 100),
        ([[100, 200], [200, 300]], [None, None], 200),
        ([[100], []], [None, None], 0),
        ([[200, 300], []], [None, 57], 300),
        ([[], []], [None, 57], 0),
        ([[100, 200], [100]], [None, 157], 200),
        ([[100], [100]], [None, 157], 100),
        ([[100], [100]], [110, 57], 110),
        ([[], []], [0, 0], 0),
    ],
)
def test_a_flock_is_taken_up_at_the_newest_step_that_all_know(tmp_path, saved, ended, expected):
    kept = [
        Kept(dict.fromkeys(steps, tmp_path), end) for steps, end in zip(saved, ended, strict=True)
    ]
    assert newest_common(kept) == expected


def test_a_flock_killed_with_sigkill_resumes_to_the_same_bits(tmp_path):
    script = tmp_path / "walk.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        from pathlib import Path
        from ase.build import bulk
        from otf_workflows.campaign import Exploration
        from otf_workflows.exploration import Walker, explore_together
        from otf_workflows.schemas import Calibration, Frame, Origin
        from otf_workflows.testing.potential import ToyPotential

        copper = Frame.from_atoms(bulk("Cu", cubic=True, a=3.62))
        segments = explore_together(
            [Walker(copper, n, temperature_K=300.0 * (n + 1), seed=n) for n in range(2)],
            ToyPotential(), model_id="m", rules=Exploration(steps_per_cycle=130),
            tolerance_eV_A=0.3, calibration=Calibration(), n_pool=2, origin=Origin(),
            scratch=Path(sys.argv[1]),
        )
        for segment in segments:
            print(segment.model_dump_json(exclude={"seconds"}))
        """)
    )
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([sys.executable, script, killed], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (killed / "1" / "state.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    outputs = [
        subprocess.run([sys.executable, script, folder], capture_output=True, check=True).stdout
        for folder in (killed, whole)
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0].count(b'"n_steps_run":130') == 2


def test_chgnet_walkers_agree_with_those_alone_to_single_precision(monkeypatch):
    import torch

    from otf_workflows.potentials import chgnet_fused as fused
    from otf_workflows.potentials import load_potential

    torch.set_num_threads(1)
    licl = bulk("LiCl", "rocksalt", a=5.13, cubic=True)
    labels = [licl.copy() for _ in range(3)]
    for seed, atoms in enumerate(labels):
        atoms.rattle(0.1, seed=seed)
    forces = [np.random.default_rng(seed).normal(0, 0.1, (8, 3)) for seed in range(3)]
    potential = load_potential("chgnet-0.3.0").fit_uncertainty(labels, forces, seed=0)
    walkers = [
        Walker(Frame.from_atoms(licl), 0, temperature_K=300.0, seed=1),
        Walker(Frame.from_atoms(bulk("MgO", "rocksalt", a=4.21)), 1, temperature_K=600.0, seed=2),
        Walker(Frame.from_atoms(licl), 2, temperature_K=600.0, seed=3),
    ]
    # a model of LiCl knows nothing of MgO, and must not stop here
    arguments = shared(n_steps=20, tolerance_eV_A=100.0, n_pool=0, rules={"early_checks": False})
    alone = [explore(**vars(walker), potential=potential, **arguments) for walker in walkers]
    passes, real = [], fused.Forward
    monkeypatch.setattr(
        fused, "Forward", lambda network, graph: passes.append(graph) or real(network, graph)
    )
    together = explore_together(walkers, potential, **arguments)
    for one, other in zip(together, alone, strict=True):
        ends = [s.blob["checkpoint"]["frame"]["positions_A"] for s in (one, other)]
        np.testing.assert_allclose(*ends, atol=1e-5)
        # in the ideal crystal at the start σ is rounding, times a novelty of about ten
        np.testing.assert_allclose(one.sigmas_eV_A, other.sigmas_eV_A, rtol=1e-4, atol=1e-5)
        assert one.n_steps == 20
    # One for each step of all, none for the readings of the uncertainty.
    assert [graph.n_structures for graph in passes] == [3] * 21
