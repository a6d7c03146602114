"""The first page: campaigns, news since the last visit, health; and what it costs to make."""

from dataclasses import replace
from datetime import timedelta

import pytest

from otf_workflows.dashboard.backend import Backend
from otf_workflows.dashboard.pages.glance import NEW_VISIT, Visit
from otf_workflows.dashboard.queries import progress as module
from otf_workflows.dashboard.queries.glance import glance
from otf_workflows.dashboard.queries.indexes import ensure_indexes, missing_indexes
from otf_workflows.dashboard.queries.news import news
from otf_workflows.schemas import now
from otf_workflows.types import CampaignState


@pytest.fixture
def backend(site, database):
    made = Backend(site)
    yield made
    made.close()


def test_campaigns_at_work_come_before_those_that_are_over(backend, finished, at_work):
    view = glance(backend, since=now())
    assert [row.progress.name for row in view.campaigns] == [at_work, finished]
    row = view.campaigns[0]
    assert row.progress.sentence.startswith("cycle 2: labelling with DFT, 3 of 8 done")
    assert len(row.rmse_eV_A) == 2


def test_failures_are_news_until_they_are_rerun(database, store, at_work):
    found = news(database, since=now() - timedelta(days=1))
    assert found.n_failures == found.n_labels > 0
    assert found.n_jobs == 0  # the job of a failed label is told as a label
    store.reset_label(found.labels[0].key)
    assert news(database, since=now() - timedelta(days=1)).n_labels == found.n_labels - 1
    assert news(database, since=now() + timedelta(minutes=1)).n_failures == 0
    database.fireworks.update_one(
        {"name": "finetune"}, {"$set": {"state": "FIZZLED", "updated_on": now().isoformat()}}
    )
    assert [job.name for job in news(database, since=now() - timedelta(days=1)).jobs] == [
        "finetune"
    ]


def test_progress_is_reckoned_again_only_when_something_has_changed(
    backend, store, finished, monkeypatch
):
    reckoned = []
    original = module.campaign_progress
    monkeypatch.setattr(
        module, "campaign_progress", lambda *a, **k: reckoned.append(1) or original(*a, **k)
    )
    for _ in range(3):
        glance(backend, since=now())
    assert len(reckoned) == 1
    store.set_campaign(finished, state=CampaignState.STALLED, reason="for a test")
    view = glance(backend, since=now())
    assert len(reckoned) == 2
    assert view.campaigns[0].progress.state is CampaignState.STALLED


def test_a_page_that_stays_open_keeps_its_news_and_the_next_visit_begins_anew():
    start = now()
    first = Visit.read(None, when=start)
    assert first.first
    later = Visit.read(str(first), when=start + timedelta(minutes=20))
    assert abs(later.before - first.before) < timedelta(seconds=1)
    tomorrow = Visit.read(str(later), when=later.last + NEW_VISIT + timedelta(hours=9))
    assert not tomorrow.first
    assert abs(tomorrow.before - later.last) < timedelta(seconds=1)
    for nonsense in ("x", "1.2", "-1.-1.first", "9" * 40, "1.2.3.4"):
        assert Visit.read(nonsense, when=start).first


def test_an_empty_database_says_what_to_do_next(client):
    assert "otf init" in client.get("/").text
    assert "otf submit campaign.yaml" in client.get("/jobs").text
    assert "otf up" in client.get("/health").text


def test_jobs_that_nobody_takes_are_a_failure_of_health(client, database):
    database.fireworks.insert_one(
        {"fw_id": 1, "name": "label", "state": "READY", "launches": [],
         "spec": {"_category": "dft"}, "updated_on": "2026-01-01T00:00:00+00:00"}
    )  # fmt: skip
    page = client.get("/health").text
    assert "nobody takes the jobs that are ready: 1 dft" in page


def test_a_database_that_is_away_is_said_on_the_page_and_found_again(visit, mongod, monkeypatch):
    client = visit()
    assert client.get("/").status_code == 200
    client.app.state.backend.close()
    address = mongod.address()
    nobody = type(address)("127.0.0.1", 1, "x")
    monkeypatch.setattr("otf_workflows.connection.address", lambda _site: nobody)
    monkeypatch.setattr("otf_workflows.connection.PATIENCE_S", 0.2)
    page = client.get("/")
    assert page.status_code == 503
    assert "MongoDB does not answer" in page.text
    monkeypatch.undo()
    assert client.get("/").status_code == 200


def test_indexes_are_made_once_and_missed_when_they_are_gone(database):
    assert ensure_indexes(database)
    assert missing_indexes(database) == []
    database.otf_labels.drop_indexes()
    assert any(line.startswith("otf_labels") for line in missing_indexes(database))


def test_ledgers_follow_labels_that_change_arrive_and_are_shared(backend, store, at_work):
    from otf_workflows.dashboard.queries.campaign import label_ledgers

    def agree():
        kept = backend.ledgers.of(store, at_work)
        counted = label_ledgers(store, at_work)
        hours = {cycle: ledger.core_hours for cycle, ledger in counted.items()}
        # A sum in another order differs in its last bit.
        assert {cycle: ledger.core_hours for cycle, ledger in kept.items()} == pytest.approx(hours)
        assert {c: replace(ledger, core_hours=hours[c]) for c, ledger in kept.items()} == counted
        return sum(ledger.n_labels for ledger in kept.values())

    n_labels = agree()
    failed = store.labels(campaign=at_work, states=["failed"], light=True)[0]
    store.reset_label(failed.key)
    assert agree() == n_labels
    other = store.labels(campaign=at_work, limit=1)[0]
    store.database.otf_labels.update_one(
        {"key": other.key}, {"$set": {"wanted_by": [{"campaign": "another", "cycle": 0}]}}
    )
    # Wanting a label that is there already leaves no date behind.
    wish = {"campaign": at_work, "cycle": 1, "purpose": "audit"}
    store.database.otf_labels.update_one({"key": other.key}, {"$push": {"wanted_by": wish}})
    assert agree() == n_labels
    wish = {"campaign": at_work, "cycle": 2, "purpose": "audit"}
    copy = store.database.otf_labels.find_one({"key": other.key}, {"_id": 0})
    copy |= {"key": "f" * 64, "wanted_by": [{"campaign": "another", "cycle": 0}]}
    store.database.otf_labels.insert_one(copy)
    assert agree() == n_labels
    store.database.otf_labels.update_one({"key": "f" * 64}, {"$push": {"wanted_by": wish}})
    assert agree() == n_labels + 1


def test_numbers_of_jobs_follow_the_launch_pad(backend, database, at_work):
    before = backend.roles.of(database)["control"]
    assert backend.roles.of(database)["control"] is before
    database.fireworks.update_one(
        {"name": "assess", "state": "WAITING"},
        {"$set": {"state": "READY", "updated_on": now().isoformat()}},
    )
    assert backend.roles.of(database)["control"] != before
