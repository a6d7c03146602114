"""Batches within a budget, and what paid labels take the place of."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otf_workflows.diversity import HourBudget, PaidLabels
from otf_workflows.selection import select_frames


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


def budget(hours, prices, atoms=None):
    prices = np.asarray(prices, dtype=float)
    atoms = np.ones(len(prices)) if atoms is None else np.asarray(atoms)
    return HourBudget(core_hours=hours, price=lambda rows: prices[rows], n_atoms=atoms)


def cloud(n, d=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.uniform(0.11, 0.4, n)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 40),
    n_select=st.integers(0, 12),
    hours=st.floats(0, 30),
    seed=st.integers(0, 99),
    with_paid=st.booleans(),
)
def test_a_batch_never_costs_more_than_the_hours_and_never_exceeds_the_count(
    n, n_select, hours, seed, with_paid
):
    x, sigmas = cloud(n, seed=seed)
    prices = np.random.default_rng(seed).choice([0.5, 2.0, 9.0], size=n)
    paid = PaidLabels(cloud(20, seed=seed + 1)[0], 0.5) if with_paid else None
    outcome = select(x, sigmas, n_select=n_select, budget=budget(hours, prices), paid=paid)
    computed = [i for i in outcome.indices if i not in outcome.adopted]
    assert prices[computed].sum() <= hours + 1e-9
    assert len(outcome.indices) <= n_select
    dropped = outcome.n_duplicates + outcome.n_trusted_dropped + outcome.n_over_capacity
    assert len(outcome.indices) + dropped == n


def test_hours_that_suffice_change_nothing():
    x, sigmas = cloud(60)
    free = select(x, sigmas)
    assert select(x, sigmas, budget=budget(8.0, np.ones(60))).indices == free.indices


def test_equal_prices_are_a_smaller_batch_of_the_same_kind():
    x, sigmas = cloud(60)
    limited = select(x, sigmas, budget=budget(3.0, np.ones(60)))
    assert limited.indices == select(x, sigmas, n_select=3).indices


def test_what_no_hours_suffice_for_leaves_its_place_to_what_fits():
    x, _ = cloud(30)
    prices = np.where(np.arange(30) < 20, 50.0, 1.0)
    sigmas = np.linspace(0.3, 0.11, 30)
    outcome = select(x, sigmas, n_select=5, budget=budget(4.0, prices))
    assert outcome.indices[0] == 20, "the most uncertain of those that can be paid for"
    assert len(outcome.indices) == 4
    assert min(outcome.indices) >= 20


def test_hours_left_over_go_to_what_teaches_most_for_each_of_them():
    """Three of the dear frames do not fit, two do; beside them only the two cheap ones would."""
    x, _ = cloud(12)
    sigmas = np.linspace(0.3, 0.2, 12)
    prices = np.array([4.0] * 10 + [1.0, 1.0])
    outcome = select(x, sigmas, n_select=3, budget=budget(9.9, prices))
    assert (prices[outcome.indices] == [4.0, 4.0, 1.0]).all()
    assert outcome.indices[-1] == 10, "of two that cost the same, the more uncertain one"


def test_many_atoms_are_worth_a_higher_price():
    x, _ = cloud(12)
    atoms = np.where(np.arange(12) < 6, 8, 64)
    prices = np.where(atoms == 8, 1.0, 6.0)
    outcome = select(x, np.full(12, 0.2), n_select=2, budget=budget(6.0, prices, atoms))
    assert (atoms[outcome.indices] == 64).any()


def test_a_frame_near_a_paid_label_is_exchanged_for_it_and_costs_nothing():
    x, _ = cloud(6)
    sigmas = np.linspace(0.3, 0.2, 6)
    paid = PaidLabels(x[[5, 2]] + 1e-4, 0.05)
    outcome = select(x, sigmas, paid=paid, budget=budget(4.0, np.ones(6)))
    assert outcome.adopted == {5: 0, 2: 1}
    assert sorted(outcome.indices) == list(range(6)), "four are paid for, two are free"
    assert any("2 of the chosen are exchanged" in sentence for sentence in outcome.sentences)


def test_a_frame_chosen_for_one_atom_is_exchanged_for_a_copy_only():
    x, _ = cloud(9)
    sigmas = np.linspace(0.3, 0.2, 9)
    near, copy = PaidLabels(x[[0]] + 0.05, 0.2), PaidLabels(x[[0]] + 1e-5, 0.2)
    assert select(x, sigmas, n_select=9, paid=near).adopted == {}
    assert select(x, sigmas, n_select=9, paid=copy).adopted == {0: 0}


def test_a_paid_label_that_copies_what_is_known_is_not_used():
    """What is known includes the frames that judge: nothing near them may be trained on."""
    x, sigmas = cloud(6)[0], np.linspace(0.3, 0.2, 6)
    judge = x[[3]] + 0.03
    paid = PaidLabels(judge + 1e-5, 0.1)
    assert select(x, sigmas, paid=paid).adopted == {3: 0}
    assert select(x, sigmas, paid=paid, existing_features=judge).adopted == {}


def test_two_frames_near_one_paid_label_are_one():
    x = np.array([[0.0, 0], [0.1, 0], [5, 1], [9, 3]])
    paid = PaidLabels(np.array([[0.05, 0.0]]), 0.5)
    outcome = select(x, [0.2] * 4, n_select=4, paid=paid)
    assert len(outcome.adopted) == 1
    assert len(outcome.indices) == 3
    assert outcome.n_duplicates == 1


def test_labels_of_others_do_not_set_the_scale():
    """A melt in the database must not make the frames of a crystal copies of each other."""
    x, sigmas = cloud(20)
    far = PaidLabels(1e6 * cloud(50, seed=3)[0], 0.05)
    assert select(x, sigmas, paid=far).indices == select(x, sigmas).indices


def test_paid_labels_of_another_model_are_refused():
    from otf_workflows.errors import InputError

    with pytest.raises(InputError, match="paid labels have shape"):
        select(np.zeros((2, 3)), [0.2, 0.3], paid=PaidLabels(np.zeros((4, 5)), 0.1))
