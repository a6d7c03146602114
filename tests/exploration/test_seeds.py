"""Seed frames are strained both ways, rattled, and reproducible."""

import numpy as np
from ase.build import bulk

from otf_workflows.campaign import Seeding
from otf_workflows.exploration import seed_frames
from otf_workflows.schemas import Frame, Origin
from otf_workflows.types import Purpose

DOUBLE = Frame.from_atoms(bulk("LiCl", "rocksalt", a=5.13, cubic=True).repeat((1, 1, 2)))


def seeds(**rules):
    return seed_frames([DOUBLE], rules=Seeding(**rules), seed=3, origin=Origin(campaign="c"))


def test_volumes_go_both_ways_about_the_structure():
    frames = seeds(n_frames=4, strain=0.03)
    reference = 2 * 5.13**3
    ratios = np.array([abs(np.linalg.det(frame.cell_A)) for frame in frames]) / reference
    assert np.allclose(ratios, (1 + np.array([-0.03, -0.01, 0.01, 0.03])) ** 3, atol=1e-3)
    assert all(frame.n_atoms == 16 for frame in frames)


def test_cells_are_sheared_without_rotation():
    for frame in seeds(n_frames=3):
        deformation = np.linalg.solve(np.diag([5.13, 5.13, 10.26]), np.array(frame.cell_A))
        assert np.allclose(deformation, deformation.T)
        assert np.abs(deformation - np.diag(np.diag(deformation))).max() > 1e-4


def test_rattle_has_the_width_asked_for():
    frame = seeds(n_frames=1, rattle_A=0.1, strain=0)[0]
    ideal = DOUBLE.to_atoms().positions
    assert abs((np.array(frame.positions_A) - ideal).std() - 0.1) < 0.03


def test_frames_say_what_they_are_and_repeat():
    frames = seeds(n_frames=3)
    assert frames == seeds(n_frames=3)
    assert {frame.purpose for frame in frames} == {Purpose.SEED}
    assert frames[0].origin.campaign == "c"
    assert "-0.030" in frames[0].origin.note


def test_none_are_made_if_none_are_wanted():
    assert seeds(n_frames=0) == []
