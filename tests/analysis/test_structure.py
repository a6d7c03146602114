"""g(r) of an ideal gas and of a crystal, whose values are known."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.geometry.rdf import get_rdf

from otf_workflows.analysis import block_mean, radial_distribution
from otf_workflows.errors import InputError


def gas(n_frames, n_atoms=90, side_A=12.0):
    rng = np.random.default_rng(0)
    symbols = ["Li"] * (n_atoms // 3) + ["Cl"] * (n_atoms - n_atoms // 3)
    return [
        Atoms(symbols, positions=rng.uniform(0, side_A, (n_atoms, 3)), cell=[side_A] * 3, pbc=True)
        for _ in range(n_frames)
    ]


def crystal(n_frames, width_A=0.1, repeats=2):
    rng = np.random.default_rng(0)
    ideal = bulk("LiCl", "rocksalt", a=5.13, cubic=True).repeat(repeats)
    frames = [ideal.copy() for _ in range(n_frames)]
    for atoms in frames:
        atoms.positions += rng.normal(scale=width_A, size=atoms.positions.shape)
    return frames


def test_ideal_gas_is_one_everywhere_within_its_error():
    rdf = radial_distribution(gas(40), r_max_A=5.9, n_bins=20)
    assert set(rdf["pairs"]) == {"Cl-Cl", "Cl-Li", "Li-Li", "total"}
    for curve in rdf["pairs"].values():
        g, error = np.array(curve["g"])[8:], np.array(curve["error"])[8:]
        assert np.abs(g - 1).max() < 0.2
        # Error bars are of the right size: deviations are of order one standard error.
        assert 0.4 < np.sqrt(np.mean(((g - 1) / error) ** 2)) < 2.5
        assert curve["first_minimum_A"] is None


def test_crystal_has_the_neighbours_of_rock_salt():
    rdf = radial_distribution(crystal(5), r_max_A=6.0)
    curves, r = rdf["pairs"], np.array(rdf["r_A"])
    assert r[np.argmax(curves["Cl-Li"]["g"])] == pytest.approx(5.13 / 2, abs=0.1)
    assert curves["Cl-Li"]["coordination"] == pytest.approx({"Cl": 6.0, "Li": 6.0})
    assert curves["Li-Li"]["coordination"] == pytest.approx({"Li": 12.0})


def test_images_count_beyond_half_the_cell():
    small = radial_distribution(crystal(40, repeats=1), r_max_A=6.0)["pairs"]["Cl-Li"]
    assert small["coordination"]["Li"] == pytest.approx(6.0, abs=0.05)


def test_coordination_is_counted_around_each_element():
    atoms = bulk("CaF2", "fluorite", a=5.46, cubic=True)
    curve = radial_distribution([atoms], r_max_A=6.0)["pairs"]["Ca-F"]
    assert curve["coordination"] == pytest.approx({"Ca": 8.0, "F": 4.0})
    assert curve["error"] is None


def test_agrees_with_ase_up_to_half_the_cell():
    frames = gas(3)
    ours = radial_distribution(frames, r_max_A=5.5, n_bins=11, pairs=[("Li", "Cl")])
    theirs = get_rdf(frames, 5.5, 11, elements=("Cl", "Li"), no_dists=True)
    assert ours["pairs"]["Cl-Li"]["g"] == pytest.approx(theirs)


def test_absent_element_is_refused():
    with pytest.raises(InputError, match="no Na"):
        radial_distribution(crystal(1), r_max_A=4.0, pairs=[("Na", "Cl")])


def test_block_errors_see_correlation():
    rng = np.random.default_rng(1)
    noise = rng.normal(size=5000)
    slow = np.convolve(rng.normal(size=5200), np.ones(200) / np.sqrt(200), mode="valid")[:5000]
    _, white = block_mean(noise, n_blocks=10)
    _, correlated = block_mean(slow, n_blocks=10)
    assert white == pytest.approx(1 / np.sqrt(5000), rel=0.6)
    assert correlated > 4 / np.sqrt(5000)
