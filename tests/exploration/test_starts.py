"""Walkers start where the campaign says, and find the same starts in every cycle."""

import numpy as np
import pytest
from ase.build import bulk

from otf_workflows.campaign import Campaign
from otf_workflows.errors import InputError
from otf_workflows.exploration.starts import shapes_of, starting_frames
from otf_workflows.schemas import Frame

LICL = Frame.from_atoms(bulk("LiCl", "rocksalt", a=5.14, cubic=True))


def campaign(**exploration):
    return Campaign(
        name="licl",
        structure=LICL,
        labels={"code": "ase", "calculator": "lj"},
        exploration=exploration,
        seed=4,
    )


def starts(*given, **exploration):
    return starting_frames(campaign(starts=list(given), **exploration))


def test_shapes_come_first_then_the_others_in_their_order():
    frames = starts({"vacancy": "Li"}, {"strain": 0.02}, cell_shapes=3)
    assert [frame.n_atoms for frame in frames] == [8, 8, 8, 7, 8]
    assert frames[:3] == shapes_of(campaign(cell_shapes=3))


def test_a_vacancy_is_of_the_element_named():
    made = starts({"vacancy": "Cl"})[1]
    assert sorted(made.numbers) == [3] * 4 + [17] * 3


def test_a_strain_has_the_sign_and_size_given():
    made = starts({"strain": -0.03})[1]
    assert made.to_atoms().cell.lengths() == pytest.approx([5.14 * 0.97] * 3)
    assert made.to_atoms().get_scaled_positions() == pytest.approx(
        LICL.to_atoms().get_scaled_positions()
    )


def test_a_rattle_moves_every_atom_and_no_lattice_vector():
    made = starts({"rattle_A": 0.1})[1]
    moved = np.array(made.positions_A) - np.array(LICL.positions_A)
    assert (np.linalg.norm(moved, axis=1) > 0).all()
    assert made.cell_A == LICL.cell_A


def test_keys_act_together():
    made = starts({"vacancy": "Li", "strain": 0.05, "rattle_A": 0.05})[1]
    assert made.n_atoms == 7
    assert made.to_atoms().get_volume() == pytest.approx((5.14 * 1.05) ** 3)


def test_another_structure_is_taken_as_it_is():
    other = Frame.from_atoms(bulk("LiCl", "cesiumchloride", a=3.2))
    assert starts({"file": other}, supercell=(2, 1, 1))[1].cell_A == other.cell_A


def test_random_choices_are_the_same_in_every_cycle_and_differ_between_starts():
    twice = [{"rattle_A": 0.1}, {"rattle_A": 0.1}]
    assert starts(*twice) == starts(*twice)
    _, first, second = starts(*twice)
    assert first.positions_A != second.positions_A


def test_an_element_that_is_not_there_is_named():
    with pytest.raises(InputError, match="no Na to remove") as caught:
        starts({"strain": 0.1}, {"vacancy": "Na"})
    assert "starts[1]" in str(caught.value)


def test_an_empty_start_is_refused():
    with pytest.raises(ValueError, match="at least one of"):
        campaign(starts=[{}])
