"""Cell shapes: the same crystal and size, other wave vectors, and no shape twice."""

import numpy as np
import pytest
from ase.build import bulk

from otf_workflows.errors import InputError
from otf_workflows.exploration.cells import cell_shapes
from otf_workflows.lattices import contains
from otf_workflows.schemas import Frame

LICL = Frame.from_atoms(bulk("LiCl", "rocksalt", a=5.14, cubic=True))
PRIMITIVE = bulk("LiCl", "rocksalt", a=5.14).cell.array


def wave_vectors(frame, period_A):
    """Return the wave vectors of a period that fit into a cell, as a set."""
    reciprocal = np.linalg.inv(np.array(frame.cell_A)).T
    steps = np.array([[i, j, k] for i in range(-4, 5) for j in range(-4, 5) for k in range(-4, 5)])
    # In units of the period's reciprocal vectors, modulo those of the primitive cell.
    primitive = steps @ reciprocal @ PRIMITIVE.T
    return {tuple(row) for row in np.round(primitive % 1 % (1 - 1e-9), 6)}


def test_the_first_shape_is_the_usual_cell():
    assert cell_shapes(LICL, 1) == [LICL]
    assert cell_shapes(LICL, 5)[0] == LICL
    doubled = cell_shapes(LICL, 2, supercell=(1, 1, 2))[0]
    assert doubled.to_atoms().cell.lengths() == pytest.approx([5.14, 5.14, 10.28])


def test_all_shapes_are_the_same_crystal_at_the_same_size():
    neighbours = bulk("LiCl", "rocksalt", a=5.14).repeat(4).get_all_distances(mic=True)[0]
    nearest = np.sort(neighbours)[1:7]
    for frame in cell_shapes(LICL, 9):
        atoms = frame.to_atoms()
        assert sorted(frame.numbers) == [3] * 4 + [17] * 4
        assert atoms.get_volume() == pytest.approx(5.14**3)
        assert np.linalg.det(atoms.cell.array) > 0
        found = atoms.repeat(3).get_all_distances(mic=True)[0]
        assert np.sort(found)[1:7] == pytest.approx(nearest)


def test_rock_salt_has_five_shapes_of_eight_atoms_within_the_doubled_cell():
    frames = cell_shapes(LICL, 9)
    assert len(frames) == 5
    assert all(contains(np.array(frame.cell_A), 2 * 5.14 * np.eye(3)) for frame in frames)


def test_no_rotation_makes_two_shapes_the_same():
    gram = [np.array(f.cell_A) @ np.array(f.cell_A).T for f in cell_shapes(LICL, 9)]
    lengths = [tuple(np.round(np.sort(np.sqrt(np.diag(g))), 3)) for g in gram]
    assert len(set(lengths)) == len(lengths)


def test_each_shape_adds_wave_vectors_that_the_usual_cell_does_not_hold():
    frames = cell_shapes(LICL, 4)
    period = 2 * 5.14 * np.eye(3)
    usual = wave_vectors(frames[0], period)
    assert len(usual) == 4
    for frame in frames[1:]:
        assert wave_vectors(frame, period) - usual


def test_a_wider_grid_holds_more_shapes():
    assert len(cell_shapes(LICL, 12, grid=(4, 4, 4))) > len(cell_shapes(LICL, 12))
    assert len(cell_shapes(LICL, 12, grid=(1, 1, 1))) == 1


def test_the_orientation_of_the_structure_is_kept():
    turned = bulk("LiCl", "rocksalt", a=5.14, cubic=True)
    turned.rotate(20, (1, 2, 3), rotate_cell=True)
    for frame in cell_shapes(Frame.from_atoms(turned), 5):
        assert contains(np.array(frame.cell_A), 2 * turned.cell.array)


def test_a_structure_without_symmetry_has_shapes_of_its_repeats_only():
    rattled = bulk("LiCl", "rocksalt", a=5.14, cubic=True)
    rattled.rattle(0.05, seed=1)
    assert len(cell_shapes(Frame.from_atoms(rattled), 4)) == 1
    frames = cell_shapes(Frame.from_atoms(rattled), 3, supercell=(2, 1, 1))
    assert len(frames) == 3
    assert all(frame.n_atoms == 16 for frame in frames)


def test_shapes_of_huge_cells_are_refused_with_a_way_out():
    with pytest.raises(InputError, match="108 primitive cells"):
        cell_shapes(LICL, 2, supercell=(3, 3, 3))
