"""Folded grids: the same k-points of the crystal, whatever the cell."""

import numpy as np
import pytest
from ase.build import bulk

from otf_workflows.exploration.cells import cell_shapes
from otf_workflows.labelers.kpoints import folded_points, folding, same_points
from otf_workflows.schemas import Frame

CUBIC = bulk("LiCl", "rocksalt", a=5.14, cubic=True)
PRIMITIVE = bulk("LiCl", "rocksalt", a=5.14).cell.array
SHAPES = [np.array(f.cell_A) for f in cell_shapes(Frame.from_atoms(CUBIC), 9)]
GRID = (2, 2, 2)


def unfolded(cell_A, *, shifted):
    """Return all points of a folded grid in the zone of the primitive cell, both signs."""
    points, _ = folded_points(folding(cell_A, CUBIC.cell.array, GRID), shifted=shifted)
    reciprocal = np.linalg.inv(cell_A).T
    shell = np.array([[i, j, k] for i in range(-3, 4) for j in range(-3, 4) for k in range(-3, 4)])
    everything = np.concatenate([sign * points[:, None] + shell[None] for sign in (1, -1)])
    fractional = everything.reshape(-1, 3) @ reciprocal @ PRIMITIVE.T
    return {tuple(row) for row in np.round(fractional % 1 % (1 - 1e-7), 5)}


@pytest.mark.parametrize("shifted", [False, True])
def test_every_shape_has_the_same_points_of_the_crystal(shifted):
    usual = unfolded(SHAPES[0], shifted=shifted)
    assert len(usual) == 32
    assert all(unfolded(cell, shifted=shifted) == usual for cell in SHAPES[1:])


@pytest.mark.parametrize("shifted", [False, True])
def test_weights_add_up_to_the_whole_grid(shifted):
    for cell in SHAPES:
        _, weights = folded_points(folding(cell, CUBIC.cell.array, GRID), shifted=shifted)
        assert weights.sum() == 8


def test_in_the_usual_cell_a_folded_grid_is_the_grid():
    points, weights = folded_points(folding(SHAPES[0], CUBIC.cell.array, GRID), shifted=True)
    quarter = np.array([[1, 1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1]]) / 4
    assert same_points(points, weights, quarter, np.full(4, 2))


def test_strain_does_not_change_how_a_grid_folds():
    strain = np.eye(3) * 1.06 + 0.03 * np.array([[0, 1, -1], [1, 0, 1], [-1, 1, 0]])
    for cell in SHAPES:
        plain = folding(cell, CUBIC.cell.array, GRID)
        assert np.array_equal(folding(cell @ strain, CUBIC.cell.array, GRID), plain)


@pytest.mark.parametrize(
    "cell", [PRIMITIVE * 1.5, np.diag([3.0, 5.14, 5.14]), bulk("Ti").cell.array]
)
def test_a_cell_that_is_no_supercell_of_the_crystal_has_no_folded_grid(cell):
    assert folding(cell, CUBIC.cell.array, GRID) is None


def test_lists_of_points_are_compared_without_order_and_sign():
    points = np.array([[0.25, 0.25, 0.0], [0.0, 0.25, 0.5]])
    weights = np.array([2, 1])
    assert same_points(-points[::-1] + 1, weights[::-1] / 3, points, weights)
    assert not same_points(points, np.array([1, 2]), points, weights)
    assert not same_points(points + 0.01, weights, points, weights)
    assert not same_points(points[:1], weights[:1], points, weights)
