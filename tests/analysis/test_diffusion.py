"""Known random walks give their diffusivity; solids give none."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from otf_workflows.analysis import mean_square_displacement
from otf_workflows.analysis.diffusion import unwrapped_paths
from otf_workflows.errors import InputError

SIDE_A = 10.26


def trajectory(paths, symbols, *, wrap=True, side_A=SIDE_A):
    frames = [Atoms(symbols, positions=p, cell=[side_A] * 3, pbc=True) for p in paths]
    if wrap:
        for atoms in frames:
            atoms.wrap()
    return frames


def solid(n_frames, rng, *, correlation=10, width_A=0.12):
    ideal = bulk("LiCl", "rocksalt", a=5.13, cubic=True).repeat(2)
    away = np.zeros((n_frames, len(ideal), 3))
    decay = np.exp(-1 / correlation)
    for step in range(1, n_frames):
        away[step] = decay * away[step - 1] + rng.normal(
            scale=width_A * np.sqrt(1 - decay**2), size=(len(ideal), 3)
        )
    return ideal, ideal.positions + away


def test_random_walk_gives_its_diffusivity_within_the_error():
    rng = np.random.default_rng(0)
    step_A, dt_fs = 0.3, 20.0
    start = rng.uniform(0, SIDE_A, (64, 3))
    paths = start + np.cumsum(rng.normal(scale=step_A, size=(1500, 64, 3)), axis=0)
    result = mean_square_displacement(trajectory(paths, "Li64"), dt_fs=dt_fs)["elements"]["Li"]
    # <r²> = 3 step² per frame = 6 D dt; removing the centre of mass takes 1/64 away.
    expected = step_A**2 / (2 * dt_fs) * 0.1 * 63 / 64
    assert result["is_diffusive"]
    assert result["exponent"] == pytest.approx(1, abs=0.2)
    assert abs(result["diffusivity_cm2_s"] - expected) < 3 * result["slope_error_cm2_s"]
    assert result["slope_error_cm2_s"] < 0.25 * expected
    assert "D = (" in result["sentence"]


def test_solid_has_no_diffusivity_but_an_upper_bound_and_says_so():
    for seed in range(3):
        ideal, paths = solid(600, np.random.default_rng(seed))
        result = mean_square_displacement(trajectory(paths, ideal.symbols), dt_fs=20.0)
        for entry in result["elements"].values():
            assert not entry["is_diffusive"]
            assert entry["diffusivity_cm2_s"] is None
            assert entry["diffusivity_upper_cm2_s"] > 0
            assert "no diffusion coefficient" in entry["sentence"]
        # The plateau of the MSD is twice the mean square amplitude.
        plateau = np.mean(result["elements"]["Li"]["msd_A2"][-20:])
        assert plateau == pytest.approx(6 * 0.12**2, rel=0.1)


def test_soft_solid_with_large_amplitude_is_not_taken_for_a_liquid():
    ideal, paths = solid(600, np.random.default_rng(0), width_A=0.4)
    result = mean_square_displacement(trajectory(paths, ideal.symbols), dt_fs=20.0)
    assert not result["is_diffusive"]


def test_free_flight_is_not_diffusion():
    velocities = np.random.default_rng(0).normal(size=(64, 3))
    paths = np.arange(200)[:, None, None] * 0.1 * velocities
    paths = paths + np.random.default_rng(1).uniform(0, SIDE_A, (64, 3))
    entry = mean_square_displacement(trajectory(paths, "Li64"), dt_fs=5.0)["elements"]["Li"]
    assert entry["exponent"] == pytest.approx(2, abs=0.05)
    assert not entry["is_diffusive"]


def test_mobile_element_in_a_rigid_frame_is_told_from_it():
    rng = np.random.default_rng(2)
    ideal, paths = solid(1000, rng)
    mobile = ideal.symbols == "Li"
    paths[:, mobile] = ideal.positions[mobile] + np.cumsum(
        rng.normal(scale=0.2, size=(1000, 32, 3)), axis=0
    )
    result = mean_square_displacement(trajectory(paths, ideal.symbols), dt_fs=20.0)
    assert result["elements"]["Li"]["is_diffusive"]
    assert list(
        mean_square_displacement(trajectory(paths, ideal.symbols), dt_fs=20.0, species="Li")[
            "elements"
        ]
    ) == ["Li"]


def test_drift_of_the_whole_is_removed():
    ideal, paths = solid(300, np.random.default_rng(0))
    still = mean_square_displacement(trajectory(paths, ideal.symbols), dt_fs=10.0)
    drift = np.arange(300)[:, None, None] * np.array([0.05, 0.02, 0.0])
    moved = mean_square_displacement(trajectory(paths + drift, ideal.symbols), dt_fs=10.0)
    assert moved["elements"]["Li"]["msd_A2"] == pytest.approx(
        still["elements"]["Li"]["msd_A2"], abs=1e-9
    )


def test_paths_are_continuous_across_boundaries_of_a_skewed_cell():
    cell = np.array([[6.0, 0, 0], [3.0, 5.2, 0], [1.0, 1.0, 7.0]])
    rng = np.random.default_rng(3)
    paths = np.cumsum(rng.normal(scale=0.3, size=(400, 8, 3)), axis=0)
    frames = [Atoms("Li8", positions=p, cell=cell, pbc=True) for p in paths]
    for atoms in frames:
        atoms.wrap()
    expected = paths - paths.mean(axis=1, keepdims=True)
    found = unwrapped_paths(frames)
    assert found - found[:1] == pytest.approx(expected - expected[:1])


def test_too_short_a_run_says_so():
    ideal, paths = solid(8, np.random.default_rng(0))
    result = mean_square_displacement(trajectory(paths, ideal.symbols), dt_fs=10.0)
    assert "too few frames" in result["sentence"]
    one = mean_square_displacement(trajectory(paths[:1], ideal.symbols), dt_fs=10.0)
    assert one["time_fs"] == [0.0]


def test_absent_element_is_refused():
    with pytest.raises(InputError, match="no Na"):
        mean_square_displacement([bulk("Li")], dt_fs=1.0, species="Na")
