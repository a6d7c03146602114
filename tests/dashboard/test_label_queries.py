"""Lists of labels: filters that survive the address, pages that lose nothing, honest counts."""

import dataclasses
from datetime import timedelta

import pytest

from otf_workflows.dashboard.queries import labels
from otf_workflows.dashboard.queries.indexes import ensure_indexes, missing_indexes
from otf_workflows.dashboard.queries.label_detail import label_detail, settings
from otf_workflows.dashboard.queries.label_filter import LabelFilter, moment
from otf_workflows.dashboard.queries.labels import (
    ADVICE,
    OverviewCache,
    cause_groups,
    failed_keys,
    label_counts,
    label_page,
)
from otf_workflows.errors import InputError, NotFoundError
from otf_workflows.schemas import now
from otf_workflows.store import Store
from otf_workflows.testing.campaigns import synthetic_campaign
from otf_workflows.types import FailureCause, LabelState

FIELDS = {
    "state": ["failed", "done"],
    "cause": ["scf"],
    "campaign": ["li cl"],
    "cycle": ["3"],
    "since": ["2d"],
    "until": ["2026-01-31"],
    "q": ["not (yet) converged"],
    "key": ["abcd", "00ff"],
}


def address_fields(chosen):
    fields = {}
    for name, value in chosen.address():
        fields.setdefault(name, []).append(value)
    return fields


@pytest.mark.parametrize("left_out", [None, *FIELDS])
def test_a_filter_survives_the_address(left_out):
    fields = {name: value for name, value in FIELDS.items() if name != left_out}
    if left_out == "campaign":
        del fields["cycle"]
    chosen = LabelFilter.from_address(fields)
    assert address_fields(chosen) == fields
    assert LabelFilter.from_address(address_fields(chosen)) == chosen


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("state", "gone"),
        ("cause", "$ne"),
        ("cycle", "-1"),
        ("cycle", "1e3"),
        ("since", "yesterday"),
        ("key", "$where"),
        ("key", "abc"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(name, value):
    with pytest.raises(InputError):
        LabelFilter.from_address({"campaign": ["c"], name: [value]})


def test_a_cycle_without_a_campaign_is_refused():
    with pytest.raises(InputError, match="campaign"):
        LabelFilter.from_address({"cycle": ["1"]})


def test_empty_fields_of_a_form_count_as_not_given():
    empty = {name: ["", "  "] for name in FIELDS}
    assert LabelFilter.from_address(empty) == LabelFilter()


def test_a_time_is_so_long_ago_or_a_date():
    assert abs(now() - moment("2d") - timedelta(days=2)) < timedelta(minutes=5)
    assert moment("2026-01-31").isoformat() == "2026-01-31T00:00:00+00:00"
    assert moment("") is None


def test_the_command_line_says_the_same_or_names_the_labels():
    by_cause = LabelFilter(campaign="a b", cycle=2, causes=(FailureCause.SCF,)).failed()
    assert by_cause.rerun_command([]) == (
        "otf labels rerun --failed --campaign 'a b' --cycle 2 --cause scf"
    )
    assert LabelFilter(text="x").rerun_command(["a" * 64]) == f"otf labels rerun {'a' * 12}"
    assert LabelFilter(text="a.b").list_command() == "otf labels list --grep 'a\\.b'"
    assert LabelFilter(since="1d").list_command() is None


_written = {}


@pytest.fixture
def store(database):
    """Two campaigns; written document by document once, and copied for the other tests."""
    store = Store(database)
    ensure_indexes(database)
    for name, documents in _written.items():
        database[name].insert_many(documents)
    if not _written:
        synthetic_campaign(store, n_cycles=3, production=False)
        synthetic_campaign(store, name="other", seed=3, n_cycles=2, production=False)
        for name in ("otf_campaigns", "otf_labels", "otf_events"):
            _written[name] = list(database[name].find())
    return store


def everything(store, chosen, **options):
    rows, before = [], None
    while True:
        page = label_page(store, chosen, before=before, **options)
        rows += page.rows
        before = page.older
        if before is None:
            return rows


def test_pages_together_hold_every_label_once(store):
    collection = store.database.otf_labels
    collection.update_many({}, {"$set": {"updated": now().replace(microsecond=0)}})
    some = collection.find({}, {"key": 1}).limit(20)
    for i, label in enumerate(some):
        later = {"updated": now() + timedelta(seconds=i // 2)}
        collection.update_one({"key": label["key"]}, {"$set": later})
    rows = everything(store, LabelFilter(), limit=7)
    assert len(rows) == collection.count_documents({})
    assert len({row.key for row in rows}) == len(rows)
    assert [row.updated for row in rows] == sorted((r.updated for r in rows), reverse=True)


@pytest.mark.parametrize(
    "chosen",
    [
        LabelFilter(),
        LabelFilter(campaign="other"),
        LabelFilter(campaign="other", cycle=1),
        LabelFilter(text="CONVERGE"),
        LabelFilter(since="1h"),
        LabelFilter(until="2020-01-01"),
    ],
)
def test_counts_are_those_of_the_lists(store, chosen):
    counts = label_counts(store, chosen)
    rows = everything(store, chosen)
    assert counts.total == len(rows)
    for state in LabelState:
        assert counts.states[state] == sum(row.state is state for row in rows)
    failed = [row.cause for row in rows if row.state is LabelState.FAILED]
    assert dict(counts.causes) == {cause: failed.count(cause) for cause in set(failed)}


def test_text_is_no_pattern_and_finds_keys_too(store):
    one = everything(store, LabelFilter())[0]
    assert [row.key for row in everything(store, LabelFilter(text=one.key[:12]))] == [one.key]
    assert everything(store, LabelFilter(text="converge.*")) == []
    assert everything(store, LabelFilter(text="did not converge"))


def test_causes_that_are_as_frequent_stand_in_one_order(store):
    chosen = LabelFilter()
    counts = label_counts(store, chosen)
    names = list(counts.causes)
    orders = [
        [
            group.cause
            for group in cause_groups(
                store, chosen, dataclasses.replace(counts, causes=dict.fromkeys(found, 1))
            )
        ]
        for found in (names, names[::-1])
    ]
    assert orders[0] == orders[1]
    assert len(orders[0]) > 1


def test_failures_are_grouped_by_cause_with_their_newest_label(store):
    chosen = LabelFilter()
    groups = cause_groups(store, chosen, label_counts(store, chosen))
    assert {group.cause for group in groups} == {FailureCause.SCF, FailureCause.WALLTIME}
    for group in groups:
        same = everything(store, chosen.failed(group.cause))
        assert group.n == len(same)
        assert group.newest == same[0]
        assert group.newest.last_lines
        assert group.advice == ADVICE[group.cause]
    assert set(failed_keys(store, chosen, limit=10)) == {
        row.key for row in everything(store, chosen.failed())
    }


def test_an_overview_is_remembered_until_a_label_changes(store, monkeypatch):
    asked = []

    def count(*words):
        asked.append(words)
        return label_counts(*words)

    monkeypatch.setattr(labels, "label_counts", count)
    cache, chosen = OverviewCache(), LabelFilter()
    first = cache.of(store, chosen)
    assert cache.of(store, LabelFilter()) == first
    assert len(asked) == 1
    store.reset_label(failed_keys(store, chosen, limit=1)[0])
    second = cache.of(store, chosen)
    assert second.counts.states[LabelState.PENDING] == 1
    assert second.counts.states[LabelState.FAILED] == first.counts.states[LabelState.FAILED] - 1
    monkeypatch.setattr(labels, "FRESH_S", 0.0)
    assert cache.of(store, chosen) == second
    assert len(asked) == 3


def test_every_cause_has_advice():
    assert set(ADVICE) == set(FailureCause)


def test_one_label_with_all_that_hangs_on_it(store):
    done = label_page(store, LabelFilter(states=(LabelState.DONE,)), limit=1).rows[0]
    detail = label_detail(store, done.key[:12])
    assert detail.label.key == done.key
    assert detail.row == label_page(store, LabelFilter(keys=(done.key,))).rows[0]
    assert detail.numbers.energy_eV == detail.label.result.energy_eV
    assert detail.numbers.largest_force_eV_A > 0
    failed = label_page(store, LabelFilter().failed(), limit=1).rows[0]
    detail = label_detail(store, failed.key)
    assert detail.numbers is None
    assert detail.advice
    assert [event.label_key for event in detail.events] == [failed.key]
    with pytest.raises(NotFoundError):
        label_detail(store, "0" * 64)


def test_settings_asked_for_stand_beside_those_of_the_output():
    found = {s.name: (s.asked, s.as_run) for s in settings({"a": 1, "b": None}, {"a": 2, "c": 3})}
    assert found == {"a": (1, 2), "c": (None, 3)}


def test_indexes_are_made_and_missed(database):
    assert missing_indexes(database)
    assert ensure_indexes(database)
    assert missing_indexes(database) == []


@pytest.mark.parametrize(
    "chosen",
    [
        LabelFilter(),
        LabelFilter(states=(LabelState.FAILED,)),
        LabelFilter(causes=(FailureCause.SCF,)),
        LabelFilter(campaign="other"),
        LabelFilter(campaign="other", states=(LabelState.DONE,)),
        LabelFilter(text="converge"),
        LabelFilter(since="3d"),
    ],
)
def test_no_list_reads_the_whole_collection(store, chosen):
    found = store.database.otf_labels.find(chosen.matching()).sort([("updated", -1), ("key", 1)])
    plan = str(found.limit(50).explain()["queryPlanner"]["winningPlan"])
    assert "IXSCAN" in plan
    assert "COLLSCAN" not in plan
    assert chosen.text or "'stage': 'SORT'" not in plan
