"""Walkers on a Lennard-Jones potential whose uncertainty grows with the forces."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from otf_workflows.campaign import Exploration
from otf_workflows.errors import InputError, PotentialError
from otf_workflows.exploration import decode_trajectory, explore
from otf_workflows.exploration.walker import Reservoir
from otf_workflows.potentials.base import Prediction
from otf_workflows.schemas import Calibration, Checkpoint, Frame, Origin
from otf_workflows.testing.potential import ToyPotential
from otf_workflows.types import Purpose, StopReason

COPPER = Frame.from_atoms(bulk("Cu", cubic=True, a=3.62))


@dataclass(frozen=True)
class Scripted(ToyPotential):
    """Uncertainty given by the number of the call, failure at one of them."""

    sigmas: tuple[float, ...] = ()
    error_at: int | None = None
    error: type[Exception] = RuntimeError
    calls: tuple = ()

    def __post_init__(self):
        object.__setattr__(self, "calls", [])

    def predict(self, atoms: Atoms, *, uncertainty: bool = False) -> Prediction:
        self.calls.append(1)
        n = len(self.calls) - 1
        if n == self.error_at:
            if self.error is PotentialError:
                raise PotentialError("The graph has an isolated atom.")
            raise self.error
        prediction = super().predict(atoms, uncertainty=uncertainty)
        sigma = self.sigmas[min(n, len(self.sigmas) - 1)] if self.sigmas else 0.0
        return Prediction(
            prediction.energy_eV,
            prediction.forces_eV_A,
            prediction.stress_eV_A3,
            sigma_eV_A=np.full(len(atoms), sigma),
        )


def walk(potential=None, *, n_steps=60, frame=COPPER, **changes):
    rules = {"steps_per_cycle": n_steps, "check_every": 10, **changes.pop("rules", {})}
    arguments = {
        "walker": 3,
        "model_id": "m",
        "temperature_K": 300.0,
        "tolerance_eV_A": 0.1,
        "calibration": Calibration(),
        "seed": 7,
        "n_pool": 3,
        "origin": Origin(campaign="c", cycle=2),
    }
    return explore(
        frame, potential or Scripted(), rules=Exploration(**rules), **(arguments | changes)
    )


def content(segment):
    return segment.model_dump(mode="json", exclude={"seconds"})


def test_trusted_walker_completes_and_ends_at_its_checkpoint():
    segment = walk()
    checkpoint = Checkpoint.model_validate(segment.blob["checkpoint"])
    assert segment.stop_reason == StopReason.COMPLETED
    assert segment.n_steps == segment.n_steps_run == checkpoint.step == 60
    assert (segment.n_checked, segment.n_above, segment.candidates) == (7, 0, [])
    trajectory = decode_trajectory(segment.blob["trajectory"])
    assert [atoms.info["step"] for atoms in trajectory] == [0, 10, 20, 30, 40, 50, 60]
    assert np.allclose(trajectory[-1].positions, checkpoint.frame.positions_A, atol=1e-5)


def test_frames_between_the_bands_are_collected_with_features_and_origin():
    segment = walk(Scripted(sigmas=(0.0, 0.15, 0.05, 0.12, 0.0)))
    assert segment.stop_reason == StopReason.COMPLETED
    assert segment.n_above == 2
    assert [frame.origin.step for frame in segment.candidates] == [10, 30]
    frame = segment.candidates[0]
    assert frame.purpose == Purpose.UNCERTAIN
    assert frame.sigma_eV_A == pytest.approx(0.15)
    assert len(frame.features) == 8
    assert frame.origin.model_dump(exclude_none=True) == {
        "campaign": "c",
        "cycle": 2,
        "walker": 3,
        "step": 10,
        "temperature_K": 300.0,
        "model_id": "m",
    }


def test_calibration_factor_scales_the_uncertainty():
    segment = walk(Scripted(sigmas=(0.0, 0.03)), calibration=Calibration(factor=5.0))
    assert segment.sigmas_eV_A == pytest.approx([0.0] + [0.15] * 6)


def test_walker_stops_beyond_twice_the_tolerance_and_rewinds_to_the_last_trusted_state():
    segment = walk(Scripted(sigmas=(0.0, 0.0, 0.15, 0.21)))
    checkpoint = Checkpoint.model_validate(segment.blob["checkpoint"])
    assert segment.stop_reason == StopReason.UNCERTAIN
    assert "0.210 eV/Å" in segment.stop_message
    assert (segment.n_steps_run, segment.n_steps, checkpoint.step) == (30, 10, 10)
    assert [frame.origin.step for frame in segment.candidates] == [20, 30]
    assert [a.info["step"] for a in decode_trajectory(segment.blob["trajectory"])] == [0, 10]


def test_walker_of_a_model_that_is_usually_worse_than_the_tolerance_stops_at_the_unusual():
    usual = Calibration(factor=2.0, n=9, usual_sigma_eV_A=0.15)
    frames = walk(Scripted(sigmas=(0.29,)), calibration=usual)
    assert frames.stop_reason == StopReason.COMPLETED
    assert len(frames.candidates) == frames.n_above == 7
    assert frames.n_steps == 0  # nothing was trusted
    segment = walk(Scripted(sigmas=(0.1, 0.1, 0.1, 0.1, 0.1, 0.31)), calibration=usual)
    assert segment.stop_reason == StopReason.UNCERTAIN
    assert segment.n_steps_run == 50
    assert "2 times what is usual of the model, 0.3 eV/Å" in segment.stop_message


def test_walker_that_is_lost_from_the_start_collects_a_few_frames_before_it_stops():
    segment = walk(Scripted(sigmas=(0.5,)))
    assert segment.stop_reason == StopReason.UNCERTAIN
    assert [frame.origin.step for frame in segment.candidates] == [0, 10, 20, 30, 40]
    assert segment.n_steps == 0


def test_walker_that_begins_anew_in_two_cycles_does_not_repeat_itself():
    lost, frames = Checkpoint.model_validate(walk().blob["checkpoint"]), []
    for cycle in (3, 4):
        origin = Origin(campaign="c", cycle=cycle)
        segment = walk(Scripted(sigmas=(0.5,)), checkpoint=lost, origin=origin)
        frames.append(segment.candidates[-1].positions_A)
        lost = Checkpoint.model_validate(segment.blob["checkpoint"])
    assert frames[0] != frames[1]


def test_walker_never_trusted_rewinds_to_its_start():
    segment = walk(Scripted(sigmas=(0.15,)))
    checkpoint = Checkpoint.model_validate(segment.blob["checkpoint"])
    assert segment.stop_reason == StopReason.COMPLETED
    assert (segment.n_steps, checkpoint.step) == (0, 0)
    assert checkpoint.frame.positions_A == COPPER.positions_A


def test_uncalibrated_walker_collects_but_does_not_stop():
    segment = walk(Scripted(sigmas=(5.0,)), stop_on_uncertainty=False)
    assert segment.stop_reason == StopReason.COMPLETED
    assert segment.n_above == 7
    assert len(segment.candidates) == 7


def test_next_segment_continues_the_trajectory_where_the_last_one_was_rewound_to():
    first = walk(Scripted(sigmas=(0.0, 0.0, 0.3)))
    checkpoint = Checkpoint.model_validate(json.loads(json.dumps(first.blob["checkpoint"])))
    second = walk(checkpoint=checkpoint)
    assert (second.first_step, second.n_steps) == (10, 60)
    steps = [
        atoms.info["step"]
        for segment in (first, second)
        for atoms in decode_trajectory(segment.blob["trajectory"])
    ]
    assert steps == [0, 10, 20, 30, 40, 50, 60, 70]
    assert second.blob["checkpoint"]["step"] == 70


def test_rewound_walker_takes_another_path_with_the_same_model():
    start = Checkpoint.model_validate(walk().blob["checkpoint"])
    stopped = walk(Scripted(sigmas=(0.0, 0.0, 0.3)), checkpoint=start)
    again = walk(
        Scripted(sigmas=(0.0, 0.0, 0.3)),
        checkpoint=Checkpoint.model_validate(stopped.blob["checkpoint"]),
    )
    assert stopped.blob["checkpoint"]["frame"] == again.blob["checkpoint"]["frame"]
    assert stopped.candidates[-1].positions_A != again.candidates[-1].positions_A


def test_checkpoint_the_new_model_is_lost_at_is_collected_and_the_walker_begins_anew():
    start = Checkpoint.model_validate(walk().blob["checkpoint"])
    segment = walk(Scripted(sigmas=(0.3, 0.0)), checkpoint=start)
    assert segment.stop_reason == StopReason.COMPLETED
    assert "Begun anew, the checkpoint of step 60" in segment.stop_message
    assert (segment.first_step, segment.n_steps) == (60, 60)
    assert [frame.origin.step for frame in segment.candidates] == [60]
    assert segment.candidates[0].positions_A == start.frame.positions_A
    trajectory = decode_trajectory(segment.blob["trajectory"])
    assert trajectory[0].info["step"] == 60
    assert np.allclose(trajectory[0].positions, COPPER.positions_A)
    # Uncalibrated, such a reading means nothing.
    going_on = walk(Scripted(sigmas=(0.3,)), checkpoint=start, stop_on_uncertainty=False)
    assert going_on.stop_message == ""


def test_same_seed_gives_the_same_segment_and_another_seed_another():
    potential = ToyPotential(sigma_per_force=0.15)
    assert content(walk(potential)) == content(walk(potential))
    assert content(walk(potential)) != content(walk(potential, seed=8))


@pytest.mark.parametrize("pressure_GPa", [None, 1.0])
def test_interrupted_walker_resumes_to_the_same_bits(tmp_path, pressure_GPa):
    rules = {"pressure_GPa": pressure_GPa}
    sigmas = tuple(0.15 if n % 3 else 0.0 for n in range(30))
    whole = walk(Scripted(sigmas=sigmas), n_steps=130, rules=rules)
    with pytest.raises(RuntimeError):
        walk(Scripted(sigmas=sigmas, error_at=12), n_steps=130, rules=rules, scratch=tmp_path)
    assert json.loads((tmp_path / "state.json").read_text())["n_steps_run"] == 100
    # Checks up to step 100 were made before: the script goes on from there.
    resumed = walk(Scripted(sigmas=sigmas[11:]), n_steps=130, rules=rules, scratch=tmp_path)
    assert content(resumed) == content(whole)


def test_walker_killed_with_sigkill_resumes_to_the_same_bits(tmp_path):
    script = tmp_path / "walk.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        from pathlib import Path
        from ase.build import bulk
        from otf_workflows.campaign import Exploration
        from otf_workflows.exploration import explore
        from otf_workflows.schemas import Calibration, Frame, Origin
        from otf_workflows.testing.potential import ToyPotential

        segment = explore(
            Frame.from_atoms(bulk("Cu", cubic=True, a=3.62)), ToyPotential(), walker=0,
            model_id="m", rules=Exploration(steps_per_cycle=150), temperature_K=300.0,
            tolerance_eV_A=0.3, calibration=Calibration(), seed=1, n_pool=2, origin=Origin(),
            scratch=Path(sys.argv[1]),
        )
        print(segment.model_dump_json(exclude={"seconds"}))
        """)
    )
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([sys.executable, script, killed], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (killed / "state.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    outputs = [
        subprocess.run([sys.executable, script, folder], capture_output=True, check=True).stdout
        for folder in (killed, whole)
    ]
    assert outputs[0] == outputs[1]
    assert b'"n_steps_run":150' in outputs[0]


def test_saved_state_of_other_inputs_or_damaged_is_not_resumed(tmp_path):
    walk(n_steps=105, scratch=tmp_path)
    other = walk(n_steps=105, scratch=tmp_path, seed=8)
    assert content(other) == content(walk(n_steps=105, seed=8))
    (tmp_path / "state.json").write_text('{"digest": ')
    assert content(walk(n_steps=105, scratch=tmp_path)) == content(walk(n_steps=105))


def test_saving_does_not_change_the_trajectory(tmp_path):
    assert content(walk(n_steps=105, scratch=tmp_path)) == content(walk(n_steps=105))


def test_failing_potential_stops_the_walker_with_its_words():
    segment = walk(Scripted(error_at=3, error=PotentialError))
    assert segment.stop_reason == StopReason.FORCE
    assert "isolated atom" in segment.stop_message
    assert (segment.n_steps, segment.n_steps_run) == (20, 30)


def test_atoms_too_near_stop_the_walker_and_are_no_candidates():
    atoms = bulk("Cu", cubic=True, a=3.62)
    atoms.positions[1] = atoms.positions[0] + [1.2, 0, 0]
    segment = walk(frame=Frame.from_atoms(atoms))
    assert segment.stop_reason == StopReason.DISTANCE
    assert (segment.n_steps, segment.candidates, segment.pool) == (0, [], [])


def test_large_forces_stop_the_walker_between_checks():
    atoms = bulk("Cu", cubic=True, a=3.62)
    atoms.positions[0] += [0.9, 0.2, 0.0]
    segment = walk(frame=Frame.from_atoms(atoms), rules={"check_every": 50})
    assert segment.stop_reason == StopReason.FORCE
    assert 0 < segment.n_steps_run < 50
    assert segment.n_steps == 0


def test_temperature_runaway_stops_the_walker_between_checks():
    start = walk(n_steps=10, temperature_K=2000.0).blob["checkpoint"]
    start["velocities_A_fs"] = (4 * np.array(start["velocities_A_fs"])).tolist()
    segment = walk(checkpoint=Checkpoint.model_validate(start), temperature_K=100.0)
    assert segment.stop_reason == StopReason.TEMPERATURE
    assert segment.n_steps_run < 10
    assert segment.candidates[-1].origin.step == segment.first_step + segment.n_steps_run


def test_volume_beyond_the_ratio_stops_the_walker():
    segment = walk(rules={"max_volume_ratio": 1.2}, reference_volume_A3=30.0)
    assert segment.stop_reason == StopReason.VOLUME


def test_one_atom_is_refused_with_a_hint():
    with pytest.raises(InputError, match="supercell"):
        walk(frame=Frame.from_atoms(bulk("Cu")))


def test_potential_without_uncertainty_is_refused():
    class Mute(ToyPotential):
        def predict(self, atoms, *, uncertainty=False):
            del uncertainty
            return super().predict(atoms)

    with pytest.raises(InputError, match="no uncertainty"):
        walk(Mute())


def test_pool_frames_are_random_spaced_and_not_the_start():
    pools = [
        walk(n_steps=120, seed=seed, n_pool=4, rules={"check_every": 3}).pool for seed in range(4)
    ]
    steps = [[frame.origin.step for frame in pool] for pool in pools]
    assert len({tuple(s) for s in steps}) > 1
    for chosen in steps:
        assert len(chosen) == 4
        assert 0 not in chosen
        assert np.diff(chosen).min() >= 9


def test_reservoir_gives_every_frame_the_same_chance():
    counts = np.zeros(40)
    for seed in range(400):
        reservoir = Reservoir(8, seed=(seed, 0))
        for step in range(40):
            reservoir.put(COPPER.model_copy(update={"origin": Origin(step=step)}))
        for frame in reservoir.frames():
            counts[frame.origin.step] += 1
    # Each count is binomial: mean 80, standard deviation 8.
    assert counts.sum() == 400 * 8
    assert np.abs(counts - 80).max() < 4 * 8
