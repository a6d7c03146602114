"""Our collections on a real mongod: unique keys, settled labels, one lineage query."""

from __future__ import annotations

import threading

import pytest

from otf_workflows.errors import InputError, NotFoundError
from otf_workflows.schemas import (
    Attempt,
    CampaignDocument,
    CycleDocument,
    DatasetDocument,
    Frame,
    LabelResult,
    ModelDocument,
    PropertyDocument,
)
from otf_workflows.store import Store
from otf_workflows.types import CampaignState, CycleState, FailureCause, LabelState, Purpose

pytestmark = pytest.mark.integration


@pytest.fixture
def store(database):
    store = Store(database)
    store.ensure_indexes()
    return store


def frame(x=0.0, purpose=Purpose.UNCERTAIN):
    cell = [[4.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0]]
    return Frame(numbers=[3, 17], cell_A=cell, positions_A=[[x, 0, 0], [2, 2, 2]], purpose=purpose)


def want(store, key="a" * 64, campaign="c", cycle=0, purpose=Purpose.UNCERTAIN):
    return store.want_label(
        key,
        frame(purpose=purpose),
        recipe={"code": "ase", "calculator": "lj"},
        fingerprint="f",
        campaign=campaign,
        cycle=cycle,
    )


def result(key="a" * 64, energy_eV=-1.0):
    return LabelResult(
        key=key,
        frame=frame(),
        energy_eV=energy_eV,
        forces_eV_A=[[0.0, 0, 0], [0, 0, 0]],
        fingerprint="f",
        attempts=[Attempt(number=1, seconds=36, cores=2)],
        core_hours=0.02,
    )


def campaign(name="c", digest="d"):
    return CampaignDocument(
        name=name, state=CampaignState.RUNNING, campaign={}, digest=digest, incumbent_id="m"
    )


def test_the_same_campaign_again_is_found_and_another_under_its_name_is_refused(store):
    assert store.add_campaign(campaign()) is True
    assert store.add_campaign(campaign()) is False
    with pytest.raises(InputError, match="other settings"):
        store.add_campaign(campaign(digest="other"))


def test_a_mistyped_campaign_is_answered_with_the_nearest_name(store):
    store.add_campaign(campaign("licl"))
    with pytest.raises(NotFoundError, match="did you mean 'licl'"):
        store.campaign("licI")


def test_a_cycle_is_opened_by_exactly_one_of_many(store):
    document = CycleDocument(campaign="c", cycle=0, state=CycleState.EMITTING, incumbent_id="m")
    opened = []
    threads = [
        threading.Thread(target=lambda: opened.append(store.open_cycle(document))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened.count(True) == 1
    assert len(store.cycles("c")) == 1


def test_two_campaigns_share_a_label_and_the_first_one_computes_it(store):
    want(store, campaign="one", cycle=0)
    shared = want(store, campaign="two", cycle=3, purpose=Purpose.AUDIT)
    assert [w["campaign"] for w in shared.wanted_by] == ["one", "two"]
    assert store.database.otf_labels.count_documents({}) == 1
    assert store.label_costs("two") == (0, 0.0)
    assert store.purpose_of(shared, "two") == (Purpose.AUDIT, 3)
    again = want(store, campaign="two", cycle=5)
    assert store.purpose_of(again, "two") == (Purpose.AUDIT, 3), "a purpose is for ever"


def test_a_done_label_is_never_changed(store):
    want(store)
    assert store.record_result(result()) is True
    assert store.record_result(result(energy_eV=-99.0)) is False
    assert store.record_failure("a" * 64, cause=FailureCause.SCF, reason="late") is False
    assert store.reset_label("a" * 64) is False
    label = store.label("a" * 64)
    assert label.state is LabelState.DONE
    assert label.result.energy_eV == -1.0


def test_a_failure_keeps_cause_and_cost_and_can_be_reset(store):
    want(store)
    attempts = [Attempt(number=1, seconds=1800, cores=4)]
    store.record_failure("a" * 64, cause=FailureCause.SCF, reason="no", attempts=attempts)
    label = store.label("aaaa")
    assert (label.state, label.cause, label.core_hours) == (
        LabelState.FAILED,
        FailureCause.SCF,
        2.0,
    )
    assert store.reset_label(label.key) is True
    assert store.label(label.key).state is LabelState.PENDING
    assert store.record_result(result()) is True
    done = store.label(label.key)
    assert [a.seconds for a in done.tries] == [1800, 36], "no try is forgotten"
    assert done.core_hours == pytest.approx(2.02)


def test_a_short_key_finds_its_label_unless_it_is_ambiguous(store):
    want(store, key="ab" + "0" * 62)
    want(store, key="ab" + "1" * 62)
    assert store.label("ab0").key.startswith("ab0")
    with pytest.raises(NotFoundError, match="ambiguous"):
        store.label("ab")


def test_a_lease_is_held_by_one_and_freed_after(store, monkeypatch):
    store.add_campaign(campaign())
    with store.lease("c") as mine:
        assert mine
        monkeypatch.setattr("otf_workflows.store.whoami", lambda: "somebody else")
        with store.lease("c") as theirs:
            assert not theirs
        monkeypatch.undo()
    with store.lease("c") as again:
        assert again


def test_a_lease_left_by_a_killed_holder_runs_out(store, monkeypatch):
    store.add_campaign(campaign())
    with store.lease("c", seconds=-1) as mine:
        assert mine
        monkeypatch.setattr("otf_workflows.store.whoami", lambda: "somebody else")
        with store.lease("c") as theirs:
            assert theirs


def test_weights_come_back_as_they_went_in(store):
    weights = bytes(range(256)) * 10_000
    model = ModelDocument(model_id="m1", potential="p", sha256="s1")
    store.add_model(model, weights=weights)
    store.add_model(model, weights=weights)
    assert store.weights(store.model("m1")) == weights
    assert store.database["otf_files.files"].count_documents({}) == 1


def test_lineage_leads_from_a_property_to_every_label_in_one_query(store):
    want(store, campaign="c", cycle=1)
    store.record_result(result())
    store.add_dataset(
        DatasetDocument(
            hash="h",
            campaign="c",
            cycle=1,
            entries=[{"key": "a" * 64, "split": "train"}],
            recipe_fingerprint="f",
        )
    )
    store.add_model(ModelDocument(model_id="base", potential="base"))
    trained = {"campaign": "c", "cycle": 1, "parent_id": "base", "dataset_hash": "h"}
    store.add_model(ModelDocument(model_id="m1", potential="base", **trained))
    store.add_property(
        PropertyDocument(
            campaign="c",
            model_id="m1",
            kind="production",
            conditions={"temperature_K": 300},
            values={"big": list(range(100))},
            trajectory_uuid="u",
        )
    )
    lineage = store.lineage("m1")
    assert [a["model_id"] for a in lineage["ancestors"]] == ["base"]
    assert lineage["dataset"][0]["hash"] == "h"
    assert [item["key"] for item in lineage["labels"]] == ["a" * 64]
    assert lineage["properties"][0]["trajectory_uuid"] == "u"
    assert "result" not in lineage["labels"][0], "arrays stay out of a lineage"


def test_events_are_appended_with_who_and_when(store):
    store.event("first", campaign="c")
    store.event("second", campaign="c", who="me")
    events = store.events("c")
    assert [e.what for e in events] == ["second", "first"]
    assert events[0].who == "me"
    assert "@" in events[1].who
