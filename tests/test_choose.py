"""Which frames a cycle asks for, given what its walkers met."""

from __future__ import annotations

import numpy as np
import pytest

from otf_workflows.campaign import Budget, Campaign, SelectionRules
from otf_workflows.exploration import ProductionRun
from otf_workflows.jobs.produce import audit
from otf_workflows.jobs.select import choose
from otf_workflows.schemas import CycleDocument, Frame, Origin, WalkerSegment
from otf_workflows.store import Store, using
from otf_workflows.store_labels import KnownFeatures
from otf_workflows.types import CycleState, Purpose, StopReason

CELL = [[5.0, 0, 0], [0, 5.0, 0], [0, 0, 5.0]]


class EmptyStore:
    """A campaign that has asked for nothing yet."""

    def labels(self, **_):
        return []

    newest_done_labels = labels

    def count_labels(self, *_, **__):
        return 0

    def label_costs(self, _):
        return 0, 0.0

    def features_of_campaign(self, *_, **__):
        return KnownFeatures([], np.empty((0, 0)))

    features_of_level = features_of_campaign


def frame(step, sigma, walker=0):
    rng = np.random.default_rng([walker, step])
    positions = np.array([[0, 0, 0], [2.5, 2.5, 2.5]]) + 0.1 * rng.normal(size=(2, 3))
    return Frame(
        numbers=[3, 17],
        cell_A=CELL,
        positions_A=positions.tolist(),
        origin=Origin(walker=walker, step=step),
        sigma_eV_A=sigma,
        features=rng.normal(size=4).tolist(),
    )


def segment(candidates, pool, walker=0):
    return WalkerSegment(
        walker=walker,
        temperature_K=300,
        model_id="m",
        first_step=0,
        n_steps=0,
        n_steps_run=10,
        n_checked=10,
        n_above=0,
        stop_reason=StopReason.COMPLETED,
        candidates=candidates,
        pool=pool,
        seconds=1.0,
    )


@pytest.fixture
def campaign():
    return Campaign(
        name="c",
        structure=Frame(numbers=[3, 17], cell_A=CELL, positions_A=[[0] * 3, [2.5] * 3]),
        labels={"code": "ase", "calculator": "lj"},
        tolerance_eV_A=0.1,
        selection=SelectionRules(labels_per_cycle=4, audit_per_cycle=2, min_labels=2),
    )


def ask(campaign, *segments):
    return choose(segments, [], campaign=campaign, cycle=1, store=EmptyStore())


def test_uncertain_frames_are_chosen_and_random_ones_audited(campaign):
    frames, _ = ask(
        campaign, segment([frame(i, 0.2) for i in range(6)], [frame(i, 0.01) for i in range(6, 12)])
    )
    purposes = [f.purpose for f in frames]
    assert purposes.count(Purpose.AUDIT) == 2
    assert purposes.count(Purpose.UNCERTAIN) == 4
    assert all(f.sigma_eV_A == 0.2 for f in frames if f.purpose is Purpose.UNCERTAIN)


def test_a_frame_that_is_audited_is_never_trained_on_as_well(campaign):
    both = [frame(i, 0.2) for i in range(3)]
    frames, _ = ask(campaign, segment(both, both))
    steps = [f.origin.step for f in frames]
    assert len(steps) == len(set(steps)) == 3


def test_when_all_is_trusted_the_least_number_is_labelled(campaign):
    frames, numbers = ask(campaign, segment([], [frame(i, 0.01 * i) for i in range(8)]))
    assert len([f for f in frames if f.purpose is not Purpose.AUDIT]) == 2
    assert any("below the threshold" in s for s in numbers["sentences"])


def test_walkers_that_met_nothing_but_audit_frames_leave_nothing_to_train_on(campaign):
    frames, _ = ask(campaign, segment([], [frame(1, 0.5)]))
    assert [f.purpose for f in frames] == [Purpose.AUDIT]


def test_an_absurd_frame_never_reaches_dft_and_is_counted(campaign):
    crushed = frame(3, 0.5).model_copy(update={"positions_A": [[0, 0, 0], [0.1, 0, 0]]})
    frames, numbers = ask(campaign, segment([crushed, frame(4, 0.5)], []))
    assert numbers["n_unphysical"] == 1
    assert [f.origin.step for f in frames] == [4]


def test_the_same_walkers_give_the_same_choice(campaign):
    made = segment([frame(i, 0.2) for i in range(20)], [frame(i, 0.01) for i in range(20, 30)])
    first, second = (ask(campaign, made)[0] for _ in range(2))
    assert [f.origin for f in first] == [f.origin for f in second]


def test_a_frame_with_more_electrons_than_the_budget_allows_never_reaches_dft(campaign):
    """Li and Cl have 20 electrons, two Cl 34."""
    limited = campaign.model_copy(update={"budget": Budget(max_electrons=20)})
    large = frame(3, 0.5).model_copy(update={"numbers": [17, 17]})
    frames, numbers = ask(limited, segment([large, frame(4, 0.5)], []))
    assert numbers["n_too_large"] == 1
    assert [f.origin.step for f in frames] == [4]
    assert ask(campaign, segment([large], []))[1]["n_too_large"] == 0


def test_audits_do_not_depend_on_what_is_chosen(campaign):
    """Neither candidates, nor uncertainties, nor the size of the batch move the random frames."""
    pool = [frame(i, 0.01) for i in range(20, 40)]
    unsure = [f.model_copy(update={"sigma_eV_A": 0.5}) for f in pool]
    larger = campaign.model_copy(
        update={"selection": campaign.selection.model_copy(update={"labels_per_cycle": 9})}
    )
    asked = [
        ask(campaign, segment([], pool)),
        ask(campaign, segment([frame(i, 0.3) for i in range(9)], pool)),
        ask(campaign, segment([], unsure)),
        ask(larger, segment([], unsure)),
    ]
    audits = [[f.origin.step for f in frames if f.purpose is Purpose.AUDIT] for frames, _ in asked]
    assert len(audits[0]) == 2
    assert all(steps == audits[0] for steps in audits)


def test_a_copy_of_an_audit_of_this_cycle_is_never_trained_on(campaign):
    pool = [frame(i, 0.01) for i in range(4)]
    audits = [f for f in ask(campaign, segment([], pool))[0] if f.purpose is Purpose.AUDIT]
    copies = [
        f.model_copy(update={"origin": Origin(walker=1, step=7 + i), "sigma_eV_A": 0.9})
        for i, f in enumerate(audits)
    ]
    frames, _ = ask(campaign, segment([*copies, frame(30, 0.5)], pool))
    assert {f.origin.step for f in frames if f.origin.walker == 1} == set()
    assert 30 in {f.origin.step for f in frames}


def test_the_decision_says_what_was_dropped(campaign):
    limited = campaign.model_copy(update={"budget": Budget(max_electrons=20)})
    large = frame(3, 0.5).model_copy(update={"numbers": [17, 17]})
    crushed = frame(4, 0.5).model_copy(update={"positions_A": [[0, 0, 0], [0.1, 0, 0]]})
    sentences = ask(limited, segment([large, crushed, frame(5, 0.5)], []))[1]["sentences"]
    (told,) = [sentence for sentence in sentences if "no DFT" in sentence]
    assert "1 are unphysical and 1 have more electrons" in told
    assert not any(
        "no DFT" in s for s in ask(campaign, segment([frame(5, 0.5)], []))[1]["sentences"]
    )


def test_audits_of_the_production_run_meet_the_same_limits_and_are_counted(campaign, database):
    limited = campaign.model_copy(update={"budget": Budget(max_electrons=20)})
    large = frame(1, 0.5).model_copy(update={"numbers": [17, 17]})
    crushed = frame(2, 0.5).model_copy(update={"positions_A": [[0, 0, 0], [0.1, 0, 0]]})
    run = ProductionRun.model_construct(candidates=[large, frame(3, 0.5), crushed])
    store = Store(database)
    store.open_cycle(
        CycleDocument(
            campaign="c", cycle=1, kind="production", state=CycleState.RUNNING, incumbent_id="m"
        )
    )
    with using(store):
        response = audit.original(run, campaign=limited, cycle=1)
    assert len(response.replace.jobs) == 1
    selection = store.selection("c", 1)
    assert (selection.n_candidates, selection.n_unphysical, selection.n_too_large) == (3, 1, 1)
    assert selection.n_duplicates == 0
    (label,) = store.labels()
    assert label.frame.origin.step == 3
    assert label.frame.purpose is Purpose.AUDIT
