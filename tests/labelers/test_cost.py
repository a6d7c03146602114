"""The cost of a label is learned from finished labels."""

import numpy as np
import pytest

from otf_workflows.labelers.cost import FinishedCost, estimate_core_hours


def truth(n_electrons, n_kpoints, power=2.6, scale=3e-8):
    return scale * n_kpoints * n_electrons**power


def test_without_history_it_is_a_positive_order_of_magnitude():
    assert 1e-4 < estimate_core_hours(40, 8, history=[]) < 1e-1


def test_one_label_sets_the_scale():
    history = [FinishedCost(40, 8, 2.0)]
    assert estimate_core_hours(40, 8, history=history) == pytest.approx(2.0, rel=0.15)
    assert estimate_core_hours(40, 16, history=history) == pytest.approx(4.0, rel=0.15)


def test_equal_labels_do_not_invent_an_exponent():
    history = [FinishedCost(40, 8, 0.1)] * 20
    ratio = estimate_core_hours(80, 8, history=history) / estimate_core_hours(
        40, 8, history=history
    )
    assert ratio == pytest.approx(4.0, rel=0.01)


def test_sizes_teach_the_exponent():
    rng = np.random.default_rng(0)
    history = [
        FinishedCost(n, k, truth(n, k) * np.exp(rng.normal(scale=0.1)))
        for n in (8, 20, 40, 80, 160)
        for k in (1, 4, 14)
    ]
    assert estimate_core_hours(320, 2, history=history) == pytest.approx(truth(320, 2), rel=0.25)


def test_bigger_is_dearer():
    history = [FinishedCost(40, 8, 0.01)]
    costs = [estimate_core_hours(n, 4, history=history) for n in (8, 40, 200)]
    assert costs == sorted(costs)
