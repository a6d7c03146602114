"""The campaign as a model: its identity and the budgets it refuses."""

import pytest
from pydantic import ValidationError

from otf_workflows.campaign import Campaign

CELL = [[5.14, 0, 0], [0, 5.14, 0], [0, 0, 5.14]]
FRAME = {"numbers": [3, 17], "cell_A": CELL, "positions_A": [[0, 0, 0], [2.57, 2.57, 2.57]]}


def make(**fields):
    return Campaign(**{"name": "c", "structure": FRAME, "labels": {"code": "ase"}, **fields})


def test_two_names_of_the_same_campaign_have_one_digest():
    assert make(name="a").digest == make(name="b").digest


def test_any_other_change_changes_the_digest():
    assert make().digest != make(seed=1).digest
    assert make().digest != make(tolerance_eV_A=0.2).digest


def test_walkers_are_counted_over_temperatures():
    campaign = make(exploration={"temperatures_K": [300, 600, 900], "walkers_per_temperature": 4})
    assert campaign.n_walkers == 12


def test_a_budget_below_one_cycle_is_refused_with_the_numbers():
    with pytest.raises(ValidationError, match=r"max_labels is 3.*needs at least 6"):
        make(budget={"max_labels": 3})


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "x" * 64])
def test_names_that_break_files_or_shells_are_refused(name):
    with pytest.raises(ValidationError):
        make(name=name)
