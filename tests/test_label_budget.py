"""What a campaign may still spend, and what it then asks for: dear frames cost more."""

import numpy as np
import pytest

from otf_workflows.campaign import Budget, Campaign, SelectionRules
from otf_workflows.jobs.select import choose, fingerprints
from otf_workflows.label_budget import Allowance, Prices, allowance
from otf_workflows.labelers import parse_recipe
from otf_workflows.labelers.cost import CostModel
from otf_workflows.schemas import Attempt, Frame, LabelResult, Origin, WalkerSegment
from otf_workflows.store import Store
from otf_workflows.types import LabelState, Purpose, StopReason

RECIPE = {"code": "ase", "calculator": "emt"}
POTENTIAL = "toy-lj"


def cell(n, step=0, *, sigma=0.2, shift=0.0, features_of=POTENTIAL, seed=None):
    """Return a cell of n copper atoms with features of its own."""
    rng = np.random.default_rng(seed if seed is not None else [n, step])
    positions = [[2.5 * i, 0.02 * float(rng.normal()), 0.0] for i in range(n)]
    return Frame(
        numbers=[29] * n,
        cell_A=[[2.5 * n, 0, 0], [0, 4.0, 0], [0, 0, 4.0]],
        positions_A=positions,
        origin=Origin(walker=0, step=step),
        sigma_eV_A=sigma,
        features=(rng.normal(size=6) + shift).tolist(),
        features_of=features_of,
    )


def walked(candidates, pool=()):
    return WalkerSegment(
        walker=0,
        temperature_K=300,
        model_id="m",
        first_step=0,
        n_steps=0,
        n_steps_run=10,
        n_checked=10,
        n_above=0,
        stop_reason=StopReason.COMPLETED,
        candidates=list(candidates),
        pool=list(pool),
        seconds=1.0,
    )


def campaign(name="mine", **changes):
    fields = {
        "structure": cell(2),
        "potential": POTENTIAL,
        "labels": RECIPE,
        "selection": SelectionRules(labels_per_cycle=6, audit_per_cycle=1, min_labels=1),
        **changes,
    }
    return Campaign(name=name, **fields)


@pytest.fixture
def store(database):
    store = Store(database)
    store.ensure_indexes()
    return store


def want(store, frame, who, cycle=0):
    from otf_workflows.ledger import request

    (label,), _ = request(store, [frame], campaign=who, cycle=cycle)
    return label


def finish(store, frame, who, *, hours=1.0, cycle=0):
    """Book a label of a campaign as done at a cost."""
    label = want(store, frame, who, cycle)
    recipe = parse_recipe(RECIPE)
    level = recipe.level_of_theory(frame.numbers)
    store.record_result(
        LabelResult(
            key=label.key,
            frame=frame,
            energy_eV=-1.0,
            forces_eV_A=[[0.0] * 3] * frame.n_atoms,
            fingerprint=recipe.fingerprint(frame.numbers),
            settings_as_run=level,
            attempts=[Attempt(number=1, seconds=3600 * hours)],
            core_hours=hours,
        )
    )
    return label.key


class Counts:
    """A recipe that counts electrons and k-points."""

    def n_electrons(self, numbers):
        return 11 * len(numbers)

    def n_kpoints(self, _):
        return 1


def test_larger_frames_cost_more_where_the_code_counts_electrons():
    model = CostModel(scale=1.0, power=2.0)
    small, large = Prices(Counts(), model, 9.0).of([cell(2), cell(8)])
    assert large == pytest.approx(16 * small)
    assert Prices(parse_recipe(RECIPE), None, 9.0).of([cell(2), cell(8)]).tolist() == [9, 9]


def test_only_the_beginning_of_a_list_is_paid_for():
    prices = Prices(Counts(), CostModel(scale=1.0, power=1.0), 1.0)
    costs = prices.of([cell(2), cell(8)])
    allowed = Allowance(5, costs.sum() * 0.9, prices)
    kept, left = allowed.spend([cell(2), cell(8), cell(2, 1)])
    assert [frame.n_atoms for frame in kept] == [2], "a cheap one behind a dear one waits as well"
    assert left.n_labels == 4
    assert left.core_hours == pytest.approx(allowed.core_hours - costs[0])


def test_as_long_as_nothing_is_finished_core_hours_are_no_limit():
    kept, left = Allowance(2).spend([cell(2, i) for i in range(5)])
    assert len(kept) == 2
    assert left.n_labels == 0
    assert left.core_hours == np.inf


def test_what_others_paid_for_the_same_level_tells_the_price(store):
    finish(store, cell(2, 1), campaign("theirs"), hours=2.0)
    me = campaign(budget=Budget(max_core_hours=100))
    levels = fingerprints([cell(2)], campaign=me)
    found = allowance(store, campaign=me, cycle=0, fingerprints=levels)
    assert (found.core_hours, found.n_labels) == (100, 200)
    assert found.price([cell(2)]) == pytest.approx([2.0])


def test_labels_that_still_run_are_paid_for_in_advance(store):
    me = campaign(budget=Budget(max_core_hours=10))
    finish(store, cell(2, 1), me, hours=4.0)
    levels = fingerprints([cell(2)], campaign=me)
    want(store, cell(2, 2), me)
    found = allowance(store, campaign=me, cycle=1, fingerprints=levels)
    assert found.core_hours == pytest.approx(10 - 4.0 - 2.0), "a mean over both asked for"
    assert found.n_labels == 198


def test_a_batch_stays_within_the_core_hours(store):
    me = campaign(budget=Budget(max_core_hours=7.5))
    finish(store, cell(2, 1), me, hours=2.0)
    frames, numbers = choose(
        [walked([cell(2, i) for i in range(10, 30)], [cell(2, 50, sigma=0.01)])],
        [],
        campaign=me,
        cycle=1,
        store=store,
    )
    assert len(frames) == 2, "5.5 hours are left, 2 for each"
    assert numbers["n_over_budget"] >= 4
    assert any("5.5 core-hours are left" in sentence for sentence in numbers["sentences"])


def test_a_near_label_of_another_campaign_is_taken_instead_of_a_new_one(store):
    """Once its features, its level of theory and its potential fit; provenance stays."""
    me, other = campaign(), campaign("theirs")
    mine = [cell(2, i, shift=float(i)) for i in range(5)]
    theirs = mine[3].model_copy(
        update={
            "positions_A": (np.array(mine[3].positions_A) + 0.01).tolist(),
            "origin": Origin(campaign="theirs", walker=4, step=1),
        }
    )
    key = finish(store, theirs, other)
    frames, numbers = choose([walked(mine)], [], campaign=me, cycle=0, store=store)
    assert numbers["adopted_keys"] == [key]
    assert len(frames) == 5
    (adopted,) = [frame for frame in frames if frame.origin.campaign == "theirs"]
    assert adopted.positions_A == theirs.positions_A
    assert adopted.purpose is Purpose.UNCERTAIN
    from otf_workflows.ledger import request

    wanted, new = request(store, frames, campaign=me, cycle=0)
    assert [label.key for label in wanted if label.state is LabelState.DONE] == [key]
    assert len(new) == 4
    assert [w["campaign"] for w in store.label(key).wanted_by] == ["theirs", "mine"]


@pytest.mark.parametrize("why", ["potential", "recipe", "unfinished"])
def test_a_label_that_cannot_be_compared_or_used_is_not_taken(store, why):
    mine = [cell(2, i, shift=float(i)) for i in range(5)]
    theirs = mine[3].model_copy(
        update={"positions_A": (np.array(mine[3].positions_A) + 0.01).tolist()}
    )
    other = campaign("theirs")
    if why == "potential":
        theirs = theirs.model_copy(update={"features_of": "another"})
    if why == "recipe":
        other = campaign("theirs", labels={"code": "ase", "calculator": "lj"})
        want(store, theirs, other)
    elif why == "unfinished":
        want(store, theirs, other)
    else:
        finish(store, theirs, other)
    _, numbers = choose([walked(mine)], [], campaign=campaign(), cycle=0, store=store)
    assert numbers["adopted_keys"] == []


def test_the_same_campaign_under_another_name_asks_for_the_same_frames(store):
    """Although by then labels of later cycles lie around, some of them near its frames."""
    met, pool = [cell(2, i) for i in range(40)], [cell(2, i, sigma=0.05) for i in range(50, 60)]
    first, _ = choose([walked(met, pool)], [], campaign=campaign("one"), cycle=0, store=store)
    for frame in first:
        finish(store, frame, campaign("one"))
    for i, frame in enumerate(met[::7]):
        moved = (np.array(frame.positions_A) + 0.02).tolist()
        near = (np.array(frame.features) + 1e-4).tolist()
        later = frame.model_copy(update={"positions_A": moved, "features": near})
        finish(store, later.model_copy(update={"origin": Origin(step=i)}), campaign("one"), cycle=1)
    second, numbers = choose(
        [walked(met, pool)], [], campaign=campaign("two"), cycle=0, store=store
    )
    assert [f.positions_A for f in second] == [f.positions_A for f in first]
    assert len(numbers["adopted_keys"]) == len([f for f in first if f.purpose is not Purpose.AUDIT])
