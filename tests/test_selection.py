"""Selection: sane, uncertain, new, and unlike each other, whatever the input."""

import numpy as np
import pytest
from ase.build import bulk, molecule
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from otf_workflows.errors import InputError
from otf_workflows.schemas import Frame
from otf_workflows.selection import frame_problem, geometry_problem, select_frames


def problem(atoms, ratio=0.6):
    return geometry_problem(
        atoms.numbers, atoms.cell.array, atoms.positions, min_distance_ratio=ratio
    )


def select(features, sigmas, **changes):
    arguments = {
        "existing_features": None,
        "n_select": 8,
        "threshold": 0.1,
        "min_labels": 0,
        "duplicate_distance": 0.01,
        "seed": 0,
    }
    return select_frames(np.asarray(features), np.asarray(sigmas), **(arguments | changes))


@pytest.mark.parametrize(
    "atoms",
    [
        bulk("Si"),
        bulk("LiCl", "rocksalt", a=5.13, cubic=True),
        bulk("Cs"),
        bulk("Mg"),
        bulk("C", cubic=True),
    ],
    ids=str,
)
def test_crystals_are_fit_for_dft(atoms):
    assert problem(atoms) is None
    atoms.positions += 30.0
    assert frame_problem(Frame.from_atoms(atoms), min_distance_ratio=0.6) is None


def test_molecule_in_vacuum_is_fit_for_dft():
    atoms = molecule("H2O", vacuum=6.0, pbc=True)
    assert problem(atoms) is None


def test_near_atoms_are_named_with_their_distance():
    atoms = bulk("LiCl", "rocksalt", a=5.13, cubic=True)
    atoms.positions[1] = atoms.positions[0] + [0.0, 0.8, 0.0]
    assert "0 (Li) and 1 (Cl) are 0.800 Å apart" in problem(atoms)


def test_near_atoms_are_found_across_the_cell_boundary():
    atoms = bulk("LiCl", "rocksalt", a=5.13, cubic=True)
    atoms.positions[1] = atoms.positions[0] + [5.13 - 0.8, 2 * 5.13, 0.0]
    assert "0.800 Å apart" in problem(atoms)


def test_atom_near_its_own_image_is_found():
    assert "Atoms 0 (Li) and 0 (Li)" in geometry_problem(
        [3], np.diag([1.0, 10.0, 10.0]), [[0, 0, 0]], min_distance_ratio=0.6
    )


def test_absurd_cells_are_refused():
    atoms = bulk("LiCl", "rocksalt", a=5.13, cubic=True)
    squeezed, skewed, huge, broken = (atoms.copy() for _ in range(4))
    squeezed.set_cell(atoms.cell.array * 0.5, scale_atoms=True)
    assert "too little" in problem(squeezed)
    skewed.set_cell([6, 6, 30, 90, 90, 12], scale_atoms=False)
    assert "too skewed" in problem(skewed)
    huge.set_cell(atoms.cell.array * 10, scale_atoms=False)
    assert "per atom" in problem(huge)
    broken.positions[0, 0] = np.nan
    assert "not finite" in problem(broken)
    flat = geometry_problem([3], np.zeros((3, 3)), [[0, 0, 0]], min_distance_ratio=0.6)
    assert "too little" in flat


def test_trusted_frames_are_not_labelled_unless_too_few_remain():
    features = np.arange(10.0)[:, None]
    sigmas = np.array([0.3, 0.05, 0.04, 0.03, 0.2, 0.09, 0.0, 0.0, 0.0, 0.0])
    assert set(select(features, sigmas).indices) == {0, 4}
    outcome = select(features, sigmas, min_labels=4)
    assert outcome.indices == [0, 4, 5, 1]
    assert outcome.n_trusted_dropped == 6
    assert any("below the threshold" in sentence for sentence in outcome.sentences)


def test_copies_of_labels_and_of_each_other_are_dropped_the_most_uncertain_staying():
    features = np.array([[0.0, 0], [0.001, 0], [5.0, 1], [9.0, 2], [9.001, 2]])
    outcome = select(features, [0.2, 0.3, 0.4, 0.5, 0.4], existing_features=np.array([[5.0, 1.0]]))
    assert sorted(outcome.indices) == [1, 3]
    assert outcome.n_duplicates == 3


def test_every_group_is_represented_and_the_most_uncertain_is_among_them():
    rng = np.random.default_rng(0)
    centres = 20 * rng.normal(size=(6, 16))
    group = np.repeat(np.arange(6), [400, 5, 5, 5, 5, 5])
    features = centres[group] + rng.normal(size=(425, 16))
    sigmas = rng.uniform(0.2, 0.3, 425)
    sigmas[17] = 1.0
    outcome = select(features, sigmas, n_select=9)
    assert set(group[outcome.indices]) == set(range(6))
    assert outcome.indices[0] == 17
    # The three places for the largest uncertainty come first.
    assert outcome.indices[:3] == np.argsort(-sigmas)[:3].tolist()


def test_features_that_vary_by_rounding_only_do_not_make_frames_new():
    rng = np.random.default_rng(0)
    features = np.full((50, 8), 3.0) + 1e-7 * rng.normal(size=(50, 8))
    outcome = select(features, np.full(50, 0.2))
    assert len(outcome.indices) == 1
    assert outcome.n_duplicates == 49


def test_nothing_proposed_gives_nothing():
    assert select(np.empty((0, 8)), []).indices == []


def test_wrong_shapes_and_values_are_refused():
    with pytest.raises(InputError, match="3 rows of features but 2"):
        select(np.zeros((3, 2)), [1, 2])
    with pytest.raises(InputError, match="existing labels"):
        select(np.zeros((1, 2)), [1], existing_features=np.zeros((4, 3)))
    with pytest.raises(InputError, match="not finite"):
        select(np.zeros((2, 2)), [1, np.nan])


numbers = st.floats(-1e3, 1e3, width=32)


@st.composite
def problems(draw):
    n, m, d = (draw(st.integers(low, high)) for low, high in ((0, 25), (0, 10), (1, 4)))
    return {
        "features": draw(hnp.arrays(float, (n, d), elements=numbers)),
        "sigmas": draw(hnp.arrays(float, n, elements=st.floats(0, 1))),
        "existing_features": draw(hnp.arrays(float, (m, d), elements=numbers)),
        "n_select": draw(st.integers(0, 12)),
        "min_labels": draw(st.integers(0, 12)),
        "duplicate_distance": draw(st.sampled_from([0.0, 0.01, 0.5, 5.0])),
    }


@settings(max_examples=80, deadline=None, derandomize=True)
@given(problems())
def test_any_input_gives_distinct_frames_within_capacity_and_all_accounted_for(case):
    outcome = select(**case)
    n = len(case["sigmas"])
    assert len(set(outcome.indices)) == len(outcome.indices) <= case["n_select"]
    assert all(0 <= i < n for i in outcome.indices)
    assert (
        len(outcome.indices)
        + outcome.n_duplicates
        + outcome.n_trusted_dropped
        + outcome.n_over_capacity
        == n
    )
    assert select(**case) == outcome


@settings(max_examples=80, deadline=None, derandomize=True)
@given(problems(), st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order_of_frames_or_labels(case, random):
    order, known = list(range(len(case["sigmas"]))), list(range(len(case["existing_features"])))
    random.shuffle(order)
    random.shuffle(known)
    shuffled = {
        "features": case["features"][order],
        "sigmas": case["sigmas"][order],
        "existing_features": case["existing_features"][known],
    }

    def chosen(problem):
        picked = select(**problem).indices
        rows = zip(problem["sigmas"][picked], problem["features"][picked].tolist(), strict=True)
        return [(sigma, tuple(row)) for sigma, row in rows]

    # Frames that are equal in all are interchangeable, so they are compared by content.
    assert chosen(case | shuffled) == chosen(case)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems())
def test_no_chosen_frame_is_a_copy_or_trusted_beyond_need(case):
    outcome = select(**case)
    features, existing, sigmas = (case[k] for k in ("features", "existing_features", "sigmas"))
    everything = np.concatenate([features, existing])
    scale = everything.std(axis=0) if len(everything) else np.ones(features.shape[1])
    scale = np.where(scale > 1e-6 * np.abs(everything).max(initial=0), scale, np.inf)
    scaled = features / scale / np.sqrt(features.shape[1])
    known = existing / scale / np.sqrt(features.shape[1])
    others = np.concatenate([scaled[outcome.indices], known])
    for place, i in enumerate(outcome.indices):
        away = np.linalg.norm(others - scaled[i], axis=1)
        away[place] = np.inf
        assert away.min(initial=np.inf) > case["duplicate_distance"] * 0.99 - 1e-6
    trusted = [i for i in outcome.indices if sigmas[i] <= 0.1]
    if trusted:
        assert len(outcome.indices) <= case["min_labels"]
