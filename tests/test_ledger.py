"""Which labels are asked for, booked and trained on, on a real mongod."""

from __future__ import annotations

import pytest

from otf_workflows.campaign import Campaign
from otf_workflows.hashing import label_key
from otf_workflows.labelers import parse_recipe
from otf_workflows.labelers.base import fingerprint
from otf_workflows.ledger import draw_dataset, request, settle
from otf_workflows.schemas import Frame, LabelResult
from otf_workflows.store import Store
from otf_workflows.types import LabelState, Purpose, Split

pytestmark = pytest.mark.integration

RECIPE = {"code": "ase", "calculator": "emt"}


@pytest.fixture
def store(database):
    store = Store(database)
    store.ensure_indexes()
    return store


def frame(x, purpose=Purpose.UNCERTAIN):
    cell = [[3.6, 0, 0], [0, 3.6, 0], [0, 0, 3.6]]
    return Frame(numbers=[29, 29], cell_A=cell, positions_A=[[x, 0, 0], [1.8] * 3], purpose=purpose)


def campaign(name="one"):
    return Campaign(name=name, structure=frame(0.0), labels=RECIPE)


def answer(label, **fields):
    recipe = parse_recipe(RECIPE)
    level = recipe.level_of_theory(label.frame.numbers)
    return LabelResult(
        key=label.key,
        frame=label.frame,
        energy_eV=-1.0,
        forces_eV_A=[[0.0] * 3] * 2,
        **{"fingerprint": fingerprint(level), "settings_as_run": level, **fields},
    )


def test_equal_frames_are_one_label(store):
    frames = [frame(0.1), frame(0.1), frame(0.1 + 3.6)]
    wanted, mine = request(store, frames, campaign=campaign(), cycle=0)
    assert len(wanted) == len(mine) == 1


def test_a_second_campaign_needs_no_job_for_what_exists(store):
    frames = [frame(0.1), frame(0.2)]
    wanted, mine = request(store, frames, campaign=campaign("one"), cycle=0)
    assert len(mine) == 2
    settle(store, answer(wanted[0]))
    again, mine = request(store, frames, campaign=campaign("two"), cycle=0)
    assert [label.state for label in again] == [LabelState.DONE, LabelState.PENDING]
    # A job of its own for what is on its way: the other campaign may be stopped any moment.
    assert [label.key for label in mine] == [wanted[1].key]


def test_a_cycle_that_was_killed_after_asking_asks_for_the_same_again(store):
    frames = [frame(0.1), frame(0.2)]
    request(store, frames, campaign=campaign(), cycle=0)
    _, mine = request(store, frames, campaign=campaign(), cycle=0)
    assert len(mine) == 2, "nobody else will compute them"


def test_a_result_at_another_level_of_theory_is_quarantined_with_the_difference(store):
    (label,), _ = request(store, [frame(0.1)], campaign=campaign(), cycle=0)
    level = {**label.recipe, "calculator": "lj"}
    other = answer(label, fingerprint=fingerprint(level), settings_as_run=level)
    settle(store, other)
    booked = store.label(label.key)
    assert booked.state is LabelState.QUARANTINED
    assert "calculator" in booked.reason
    _, frames = draw_dataset(store, campaign=campaign(), cycle=0)
    assert frames == [], "a quarantined label is not trained on"


def test_splits_are_for_ever_and_audits_are_never_trained_on(store):
    one = campaign()
    first = [frame(0.01 * i) for i in range(1, 11)] + [frame(0.5, Purpose.AUDIT)]
    for label in request(store, first, campaign=one, cycle=0)[0]:
        settle(store, answer(label))
    _, before = draw_dataset(store, campaign=one, cycle=0)
    more = [frame(0.01 * i) for i in range(11, 21)]
    for label in request(store, more, campaign=one, cycle=1)[0]:
        settle(store, answer(label))
    document, after = draw_dataset(store, campaign=one, cycle=1)
    splits = {item.key: item.split for item in after}
    assert all(splits[item.key] is item.split for item in before)
    assert list(splits.values()).count(Split.AUDIT) == 1
    n_validation = list(splits.values()).count(Split.VALIDATION)
    assert n_validation == int(0.15 * 20)
    assert document.parent_hash is not None
    again, _ = draw_dataset(store, campaign=one, cycle=1)
    assert again.hash == document.hash, "a rerun of gather draws the same data set"


def test_a_late_label_joins_the_next_data_set(store):
    one = campaign()
    wanted, _ = request(store, [frame(0.1), frame(0.2)], campaign=one, cycle=0)
    settle(store, answer(wanted[0]))
    assert len(draw_dataset(store, campaign=one, cycle=0)[1]) == 1
    settle(store, answer(wanted[1]))
    assert len(draw_dataset(store, campaign=one, cycle=1)[1]) == 2


def test_the_key_depends_on_structure_and_level_of_theory():
    recipe = parse_recipe(RECIPE)
    mark = recipe.fingerprint([29, 29])
    assert label_key(frame(0.1), mark) != label_key(frame(0.2), mark)
    assert label_key(frame(0.1), mark) != label_key(frame(0.1), "other")
