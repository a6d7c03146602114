from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otf_workflows.errors import InputError
from otf_workflows.uncertainty import (
    bootstrap_heads,
    directions_of_heads,
    disagreement,
    latent_statistics,
    sigma_of_directions,
    sigma_of_heads,
    subsample,
    worst_of,
)


@pytest.fixture
def linear_problem():
    """Return Jacobians of 12 structures and residuals that one weight vector explains."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=5)
    jacobians = [rng.normal(size=(3 * n, 5)) for n in rng.integers(2, 6, size=12)]
    return truth, jacobians, [j @ truth for j in jacobians]


def test_heads_find_the_weights_that_explain_the_residuals(linear_problem):
    truth, jacobians, residuals = linear_problem
    heads = bootstrap_heads(jacobians, residuals, n_heads=6, seed=1, ridge=1e-10)
    np.testing.assert_allclose(heads, np.tile(truth, (6, 1)), atol=1e-6)


def test_heads_spread_as_noise_does(linear_problem):
    _, jacobians, residuals = linear_problem
    rng = np.random.default_rng(2)

    def spread(noise):
        noisy = [r + noise * rng.normal(size=r.shape) for r in residuals]
        return bootstrap_heads(jacobians, noisy, n_heads=200, seed=1).std(axis=0).mean()

    assert spread(0.2) == pytest.approx(10 * spread(0.02), rel=0.3)


def test_one_head_is_the_ridge_solution_for_its_bootstrap_sample(linear_problem):
    _, jacobians, residuals = linear_problem
    ridge = 0.03
    heads = bootstrap_heads(jacobians, residuals, n_heads=2, seed=9, ridge=ridge)
    draw = np.random.default_rng(9).integers(12, size=(2, 12))[0]
    rows = np.concatenate([jacobians[i] for i in draw])
    target = np.concatenate([residuals[i] for i in draw])
    gram = rows.T @ rows
    expected = np.linalg.solve(gram + ridge * np.trace(gram) / 5 * np.eye(5), rows.T @ target)
    np.testing.assert_allclose(heads[0], expected)


def test_heads_repeat_with_the_seed_only(linear_problem):
    _, jacobians, residuals = linear_problem
    residuals = [r + 0.1 * np.sin(np.arange(len(r))) for r in residuals]
    first, again, other = (bootstrap_heads(jacobians, residuals, seed=s) for s in (3, 3, 4))
    assert (first == again).all()
    assert not np.allclose(first, other)


def test_residuals_may_have_the_shape_of_forces(linear_problem):
    _, jacobians, residuals = linear_problem
    shaped = [r.reshape(-1, 3) for r in residuals]
    assert (
        bootstrap_heads(jacobians, shaped, seed=0) == bootstrap_heads(jacobians, residuals, seed=0)
    ).all()


@pytest.mark.parametrize(("n", "heads"), [(1, 8), (12, 1)])
def test_a_bootstrap_without_spread_is_refused(linear_problem, n, heads):
    _, jacobians, residuals = linear_problem
    with pytest.raises(InputError, match="no spread"):
        bootstrap_heads(jacobians[:n], residuals[:n], n_heads=heads, seed=0)


def test_shapes_that_do_not_match_are_refused(linear_problem):
    _, jacobians, residuals = linear_problem
    with pytest.raises(InputError, match="12 Jacobians but 11"):
        bootstrap_heads(jacobians, residuals[:-1], seed=0)
    with pytest.raises(InputError, match="do not fit a Jacobian"):
        bootstrap_heads(jacobians, [residuals[0][:-1], *residuals[1:]], seed=0)


def test_sigma_is_the_length_of_the_component_spreads():
    forces = np.zeros((3, 2, 3))
    forces[:, 0, 0] = [-1.0, 0.0, 1.0]
    forces[:, 0, 2] = [2.0, 0.0, -2.0]
    np.testing.assert_allclose(sigma_of_heads(forces), [np.sqrt(5), 0])


def test_sigma_does_not_change_under_rotation():
    rng = np.random.default_rng(0)
    forces = rng.normal(size=(4, 7, 3))
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    np.testing.assert_allclose(sigma_of_heads(forces @ rotation), sigma_of_heads(forces))


def test_disagreement_is_a_distance():
    assert disagreement(np.array([[3.0, 0, 0]]), np.array([[0, 4.0, 0]])) == pytest.approx(5)


def test_training_atoms_have_novelty_one_in_the_mean_square():
    features = np.random.default_rng(0).normal(size=(300, 6)) * [1, 2, 3, 4, 5, 100]
    novelty = latent_statistics(features).novelty(features)
    assert np.sqrt(np.mean(novelty**2)) == pytest.approx(1)


def test_novelty_sees_the_direction_in_which_training_atoms_do_not_vary():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 3)) * [10.0, 10.0, 0.1]
    statistics = latent_statistics(features)
    along, across = statistics.novelty(np.array([[10.0, 0, 0], [0, 0, 10.0]]))
    assert along < 1.5
    assert across > 5 * along


def test_features_that_do_not_vary_are_refused():
    with pytest.raises(InputError, match="same latent features"):
        latent_statistics(np.ones((5, 3)))
    with pytest.raises(InputError, match="two atoms"):
        latent_statistics(np.ones((1, 3)))


@given(n=st.integers(0, 300), seed=st.integers(0, 5))
def test_a_subsample_holds_each_structure_once_and_not_too_many(n, seed):
    chosen = subsample(n, seed=seed)
    assert len(chosen) == min(n, 100)
    assert len(set(chosen)) == len(chosen)
    assert (np.diff(chosen) > 0).all()
    assert set(chosen) <= set(range(n))
    assert (chosen == subsample(n, seed=seed)).all()


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8), st.integers(min_value=1, max_value=8))
def test_worst_of_some_atoms_is_the_mean_over_all_subsets(values, n_atoms):
    subsets = list(combinations(values, min(n_atoms, len(values))))
    expected = np.mean([max(subset) for subset in subsets])
    assert worst_of(values, n_atoms) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_worst_of_thousands_of_atoms_is_finite_and_of_none_is_refused():
    values = np.linspace(0, 1, 20_001)
    assert worst_of(values, 8) == pytest.approx(8 / 9, abs=1e-3)
    assert np.isnan(worst_of([0.1, float("nan"), 0.2], 2))
    for wrong in ([], 8), ([0.1], 0):
        with pytest.raises(InputError):
            worst_of(*wrong)


def test_all_directions_of_heads_give_their_spread_exactly():
    rng = np.random.default_rng(0)
    heads, jacobian = rng.normal(size=(6, 9)), rng.normal(size=(30, 9))
    expected = sigma_of_heads((jacobian @ heads.T).T.reshape(6, 10, 3))
    directions = directions_of_heads(heads)
    assert directions.shape == (5, 9)
    sigma = sigma_of_directions((jacobian @ directions.T).T.reshape(5, 10, 3))
    np.testing.assert_allclose(sigma, expected)


def test_directions_that_move_no_force_are_left_out():
    rng = np.random.default_rng(1)
    heads, jacobian = rng.normal(size=(8, 9)), rng.normal(size=(30, 9))
    jacobian[:, 2:] *= 1e-3
    directions = directions_of_heads(heads, [jacobian], keep=0.98)
    assert len(directions) == 2
    expected = sigma_of_heads((jacobian @ heads.T).T.reshape(8, 10, 3))
    sigma = sigma_of_directions((jacobian @ directions.T).T.reshape(2, 10, 3))
    np.testing.assert_allclose(sigma, expected, rtol=1e-3)


def test_what_is_left_out_is_given_to_the_rest_so_that_sigma_is_right_on_average():
    rng = np.random.default_rng(2)
    heads, jacobians = rng.normal(size=(8, 9)), rng.normal(size=(5, 30, 9))
    directions = directions_of_heads(heads, jacobians, keep=0.5)
    assert len(directions) < 5
    rows = jacobians.reshape(-1, 9)
    expected = sigma_of_heads((rows @ heads.T).T.reshape(8, 50, 3))
    sigma = sigma_of_directions((rows @ directions.T).T.reshape(-1, 50, 3))
    assert np.mean(sigma**2) == pytest.approx(np.mean(expected**2))
