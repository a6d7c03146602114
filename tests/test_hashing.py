"""Equal structures hash equally, different ones never do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otf_workflows.errors import InputError
from otf_workflows.hashing import (
    DISTINCT_A,
    GRID_PHASE,
    RESOLUTION_A,
    label_key,
    structure_hash,
)
from otf_workflows.schemas import Frame, Origin


@st.composite
def frames(draw):
    """Random cells of sensible shape, with up to seven atoms of up to three elements."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    n = draw(st.integers(1, 7))
    cell = np.diag(rng.uniform(2, 12, 3)) + rng.uniform(-1.0, 1.0, (3, 3))
    special = draw(st.booleans())
    fractions = rng.integers(0, 8, (n, 3)) / 8 if special else rng.random((n, 3))
    numbers = rng.choice([3, 8, 17], n)
    return Frame(
        numbers=numbers.tolist(), cell_A=cell.tolist(), positions_A=(fractions @ cell).tolist()
    )


def changed(frame, **arrays):
    return frame.model_copy(update={k: np.asarray(v).tolist() for k, v in arrays.items()})


@settings(max_examples=150, deadline=None)
@given(frame=frames(), data=st.data())
def test_atom_order_and_lattice_translations_do_not_matter(frame, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    order = rng.permutation(frame.n_atoms)
    shifts = rng.integers(-3, 4, (frame.n_atoms, 3))
    positions = np.array(frame.positions_A) + shifts @ np.array(frame.cell_A)
    copy = changed(frame, numbers=np.array(frame.numbers)[order], positions_A=positions[order])
    assert structure_hash(copy) == structure_hash(frame)


@settings(max_examples=100, deadline=None)
@given(frame=frames(), data=st.data())
def test_noise_at_the_wrap_boundary_does_not_matter(frame, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    corners = rng.integers(-1, 2, (frame.n_atoms, 3)) @ np.array(frame.cell_A)
    noise = rng.choice([-1e-12, 0.0, 1e-12], corners.shape)
    assert structure_hash(changed(frame, positions_A=corners + noise)) == structure_hash(
        changed(frame, positions_A=corners)
    )


@settings(max_examples=200, deadline=None)
@given(frame=frames(), data=st.data())
def test_one_moved_atom_changes_the_hash(frame, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    atom = int(rng.integers(frame.n_atoms))
    direction = rng.normal(size=3)
    length = data.draw(st.floats(1.001 * DISTINCT_A, 0.4))
    positions = np.array(frame.positions_A)
    positions[atom] += direction / np.linalg.norm(direction) * length
    assert structure_hash(changed(frame, positions_A=positions)) != structure_hash(frame)


@settings(max_examples=100, deadline=None)
@given(frame=frames(), data=st.data())
def test_a_changed_cell_changes_the_hash_even_at_equal_fractions(frame, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    cell = np.array(frame.cell_A)
    fractions = np.linalg.solve(cell.T, np.array(frame.positions_A).T).T
    cell[rng.integers(3), rng.integers(3)] += 1.001 * DISTINCT_A
    other = changed(frame, cell_A=cell, positions_A=fractions @ cell)
    assert structure_hash(other) != structure_hash(frame)


@settings(max_examples=100, deadline=None)
@given(frame=frames(), data=st.data())
def test_one_changed_element_changes_the_hash(frame, data):
    atom = data.draw(st.integers(0, frame.n_atoms - 1))
    numbers = list(frame.numbers)
    numbers[atom] += 1
    assert structure_hash(changed(frame, numbers=numbers)) != structure_hash(frame)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(frame=frames(), data=st.data())
def test_unwrapped_atoms_a_thousand_cells_away_hash_as_in_the_cell(frame, data):
    """MD does not wrap; that far away positions carry a noise of about 1e-12 Å."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shifts = rng.integers(-1000, 1001, (frame.n_atoms, 3)) @ np.array(frame.cell_A)
    assert structure_hash(
        changed(frame, positions_A=np.array(frame.positions_A) + shifts)
    ) == structure_hash(frame)


CELLS = {
    "cubic": 4.05 * np.eye(3),
    "primitive": 2.57 * (np.ones((3, 3)) - np.eye(3)),
    "hexagonal": np.array([[3.2, 0, 0], [-1.6, 1.6 * 3**0.5, 0], [0, 0, 5.2]]),
    "very skew": np.array([[3.0, 0, 0], [29.0, 4.0, 0], [-17.0, 11.0, 5.0]]),
    "left-handed": np.diag([4.1, 5.2, -6.3]),
}


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
@pytest.mark.parametrize("border", [-0.0, 1.0, -1.0, 2.0, -1e-17, 1e-17, 1 - 1e-16, -1 + 1e-16])
def test_a_coordinate_on_the_border_of_the_cell_is_the_same_on_both_sides(cell, border):
    def at(fraction):
        positions = np.array([[fraction, 0.3, fraction], [0.5, fraction, 0.25]]) @ cell
        return structure_hash(
            Frame(numbers=[3, 17], cell_A=cell.tolist(), positions_A=positions.tolist())
        )

    assert at(border) == at(0.0)


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
def test_tidy_fractions_lie_far_from_the_edges_of_the_grid(cell):
    """Crystals sit on 1/2, 1/3, 1/24 …; noise a hundred times that of doubles must not matter."""
    rng = np.random.default_rng(5)
    for divisor in range(1, 25):
        fractions = rng.integers(0, divisor, (6, 3)) / divisor
        frame = Frame(
            numbers=[14] * 6, cell_A=cell.tolist(), positions_A=(fractions @ cell).tolist()
        )
        noisy = np.array(frame.positions_A) + rng.uniform(-1e-12, 1e-12, (6, 3))
        assert structure_hash(changed(frame, positions_A=noisy)) == structure_hash(frame)


def test_at_an_edge_of_the_grid_two_copies_may_differ_but_only_there():
    """What a grid cannot promise, as the module says: the price is a label computed twice."""
    edge_A = (12_345 - GRID_PHASE) * RESOLUTION_A

    def at(x):
        return structure_hash(
            Frame(numbers=[3], cell_A=(4 * np.eye(3)).tolist(), positions_A=[[x, 0.1, 0.1]])
        )

    assert at(edge_A - 1e-9) != at(edge_A + 1e-9)
    inside = [edge_A + share * RESOLUTION_A for share in (0.01, 0.5, 0.99)]
    assert len({at(x) for x in inside}) == 1


def test_another_cell_of_the_same_crystal_is_another_label():
    """Its k-points differ, so its energy and forces do."""
    primitive = np.array(CELLS["primitive"])
    atoms = [[0, 0, 0], (primitive.sum(axis=0) / 2).tolist()]
    frame = Frame(numbers=[3, 17], cell_A=primitive.tolist(), positions_A=atoms)
    doubled = Frame(
        numbers=[3, 17] * 2,
        cell_A=(np.diag([2, 1, 1]) @ primitive).tolist(),
        positions_A=[*atoms, *(np.array(atoms) + primitive[0]).tolist()],
    )
    sheared = changed(frame, cell_A=[primitive[0], primitive[1], primitive[2] + primitive[0]])
    turned = changed(frame, cell_A=primitive[[1, 2, 0]])
    quarter = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]).T
    rotated = changed(frame, cell_A=primitive @ quarter, positions_A=np.array(atoms) @ quarter)
    shifted = changed(frame, positions_A=np.array(atoms) + 0.25)
    found = [structure_hash(f) for f in (frame, doubled, sheared, turned, rotated, shifted)]
    assert len(set(found)) == len(found)


def test_two_atoms_at_one_place_are_not_one():
    one = Frame(numbers=[3], cell_A=(4 * np.eye(3)).tolist(), positions_A=[[1, 1, 1]])
    two = Frame(numbers=[3, 3], cell_A=(4 * np.eye(3)).tolist(), positions_A=[[1, 1, 1]] * 2)
    assert structure_hash(one) != structure_hash(two)


def test_swapping_two_elements_changes_the_hash():
    frame = Frame(
        numbers=[3, 17, 17],
        cell_A=(4 * np.eye(3)).tolist(),
        positions_A=[[0, 0, 0], [2, 0, 0], [1, 1, 1]],
    )
    assert structure_hash(changed(frame, numbers=[17, 3, 17])) != structure_hash(frame)


def test_origin_and_features_do_not_enter_the_key():
    frame = Frame(numbers=[3], cell_A=(4 * np.eye(3)).tolist(), positions_A=[[0.1, 0, 0]])
    told = frame.model_copy(update={"origin": Origin(walker=3), "features": [1.0]})
    assert label_key(told, "abc") == label_key(frame, "abc")


def test_the_key_depends_on_the_level_of_theory():
    frame = Frame(numbers=[3], cell_A=(4 * np.eye(3)).tolist(), positions_A=[[0.1, 0, 0]])
    assert label_key(frame, "abc") != label_key(frame, "abd")
    assert len(label_key(frame, "abc")) == 64


@pytest.mark.parametrize(
    ("cell", "positions"),
    [
        (np.zeros((3, 3)), [[0, 0, 0]]),
        (4 * np.eye(3), [[0, 0, float("nan")]]),
        (4 * np.eye(3), [[0, 0, 0], [1, 1, 1]]),
        (4 * np.eye(3), [[0, 1e13, 0]]),
        (1e10 * np.eye(3), [[0, 0, 0]]),
    ],
)
def test_impossible_structures_are_refused(cell, positions):
    with pytest.raises(InputError):
        structure_hash(Frame(numbers=[3], cell_A=np.asarray(cell).tolist(), positions_A=positions))


def test_the_hash_is_pinned():
    """A changed hash makes every stored label unfindable, so it must be a decision."""
    frame = Frame(numbers=[3], cell_A=(4 * np.eye(3)).tolist(), positions_A=[[0.1, 0, 0]])
    assert structure_hash(frame).startswith("2a6255f795f273ab")
