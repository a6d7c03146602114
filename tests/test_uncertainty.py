from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otf_workflows.errors import InputError
from otf_workflows.uncertainty import (
    MAX_DIRECTIONS,
    directions_of_heads,
    disagreement,
    force_share,
    latent_statistics,
    posterior_heads,
    sigma_of_atoms,
    sigma_of_directions,
    sigma_of_heads,
    sigma_of_jacobian,
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


def noisy(residuals, level=0.1, seed=2):
    rng = np.random.default_rng(seed)
    return [r + level * rng.normal(size=r.shape) for r in residuals]


def test_heads_find_the_weights_that_explain_the_residuals(linear_problem):
    truth, jacobians, residuals = linear_problem
    heads = posterior_heads(jacobians, residuals, ridge=1e-10)
    np.testing.assert_allclose(heads, np.tile(truth, (len(heads), 1)), atol=1e-6)


def test_their_spread_is_that_of_bayesian_linear_regression(linear_problem):
    from sklearn.linear_model import BayesianRidge

    _, jacobians, residuals = linear_problem
    rows, targets = np.concatenate(jacobians), np.concatenate(noisy(residuals))
    theirs = BayesianRidge(fit_intercept=False, compute_score=False).fit(rows, targets)
    new = np.random.default_rng(7).normal(size=(20, 5))
    mean, deviation = theirs.predict(new, return_std=True)
    expected = np.sqrt(deviation**2 - 1 / theirs.alpha_)  # that of the function, noise left out
    heads = posterior_heads(jacobians, noisy(residuals), ridge=1e-8, keep=1)
    found = new @ heads.T
    np.testing.assert_allclose(found.mean(axis=1), mean, rtol=0.02, atol=0.01)
    np.testing.assert_allclose(found.std(axis=1, ddof=1), expected, rtol=0.05)


def test_heads_spread_as_noise_does(linear_problem):
    _, jacobians, residuals = linear_problem
    wide, narrow = (
        posterior_heads(jacobians, noisy(residuals, level)).std(axis=0).mean()
        for level in (0.2, 0.02)
    )
    assert wide == pytest.approx(10 * narrow, rel=0.05)


def test_they_differ_most_where_no_label_says_anything(linear_problem):
    _, jacobians, residuals = linear_problem
    weak = [j * [1, 1, 1, 1, 0.05] for j in jacobians]
    spread = posterior_heads(weak, noisy(residuals), keep=1).std(axis=0)
    assert spread[4] > 10 * spread[:4].max()


def test_few_directions_are_kept_and_have_the_variance_of_all():
    rng = np.random.default_rng(3)
    scales = np.array([1, 0.9, 0.8, *[1e-4] * 20])
    jacobians = [rng.normal(size=(9, 23)) * scales for _ in range(40)]
    residuals = [0.1 * rng.normal(size=9) for _ in range(40)]
    rows = np.concatenate(jacobians)

    def variance(keep):
        heads = posterior_heads(jacobians, residuals, ridge=1e-3, keep=keep)
        return len(heads), np.var(rows @ heads.T, axis=1, ddof=1).mean()

    (few, theirs), (many, of_all) = variance(0.9), variance(1)
    assert few == 6
    assert few < many <= 2 * MAX_DIRECTIONS
    assert theirs == pytest.approx(of_all, rel=1e-6)


def test_heads_repeat_bit_by_bit(linear_problem):
    _, jacobians, residuals = linear_problem
    first, again = (posterior_heads(jacobians, noisy(residuals)) for _ in range(2))
    assert (first == again).all()


def test_residuals_may_have_the_shape_of_forces(linear_problem):
    _, jacobians, residuals = linear_problem
    flat = noisy(residuals)
    shaped = [r.reshape(-1, 3) for r in flat]
    assert (posterior_heads(jacobians, shaped) == posterior_heads(jacobians, flat)).all()


def test_labels_that_say_nothing_are_refused(linear_problem):
    _, jacobians, residuals = linear_problem
    with pytest.raises(InputError, match="at least two"):
        posterior_heads(jacobians[:1], residuals[:1])
    with pytest.raises(InputError, match="depends on the last weights"):
        posterior_heads([0 * j for j in jacobians], residuals)


def test_shapes_that_do_not_match_are_refused(linear_problem):
    _, jacobians, residuals = linear_problem
    with pytest.raises(InputError, match="12 Jacobians but 11"):
        posterior_heads(jacobians, residuals[:-1])
    with pytest.raises(InputError, match="do not fit a Jacobian"):
        posterior_heads(jacobians, [residuals[0][:-1], *residuals[1:]])


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


def test_a_pair_of_heads_is_one_direction():
    direction = np.array([[1.0, 2.0, 2.0]])
    heads = 5 + np.concatenate([direction, -direction]) * np.sqrt(0.5)
    found = directions_of_heads(heads)
    assert found.shape == (1, 3)
    np.testing.assert_allclose(np.abs(found), np.abs(direction))


def test_force_share_makes_force_and_heads_equal_on_average():
    rng = np.random.default_rng(4)
    forces, spread = rng.normal(size=(50, 3)), rng.uniform(0.1, 0.3, 50)
    share = force_share(spread, forces)
    assert np.mean((share * np.linalg.norm(forces, axis=1)) ** 2) == pytest.approx(
        np.mean(spread**2)
    )
    assert force_share(spread, np.zeros((50, 3))) == 0


def test_sigma_grows_with_heads_force_and_novelty():
    spread, force = np.array([0.3, 0.3, 0.0]), np.array([[0, 0, 0], [0, 4, 0], [0, 3, 4.0]])
    found = sigma_of_atoms(spread, force, np.array([1, 2, 3.0]), share=0.1)
    np.testing.assert_allclose(found, [0.3, 2 * 0.5, 3 * 0.5])


def test_sigma_of_a_jacobian_is_that_of_its_forces():
    rng = np.random.default_rng(5)
    jacobian, directions = rng.normal(size=(12, 6)), rng.normal(size=(2, 6))
    forces = np.array([(jacobian @ v).reshape(4, 3) for v in directions])
    np.testing.assert_allclose(sigma_of_jacobian(jacobian, directions), sigma_of_directions(forces))
