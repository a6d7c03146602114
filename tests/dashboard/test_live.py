"""Open pages hear what has changed: names of topics, once, and nothing that was not asked for."""

import asyncio
import contextlib
import threading

import httpx
import pytest

from otf_workflows.dashboard import live
from otf_workflows.dashboard.backend import Backend
from otf_workflows.dashboard.live import Live, Topic
from otf_workflows.dashboard.queries.changes import stamps
from otf_workflows.errors import DatabaseError
from otf_workflows.types import CampaignState


def test_a_look_that_finds_another_stamp_tells_every_subscriber():
    seen = {Topic.LABELS: 1, Topic.JOBS: 1}
    teller = Live(lambda: dict(seen))

    async def story():
        await teller.look_once()
        with teller.subscribed() as one, teller.subscribed() as two:
            await teller.look_once()
            quiet = await one.wait(0.01)
            seen[Topic.LABELS] = 2
            await teller.look_once()
            return quiet, await one.wait(1), await two.wait(1), await one.wait(0.01)

    assert asyncio.run(story()) == (set(), {Topic.LABELS}, {Topic.LABELS}, set())


def test_a_database_that_went_away_is_told_once_and_everything_when_it_is_back():
    state = {"up": True}

    def look():
        if not state["up"]:
            raise DatabaseError("MongoDB does not answer.")
        return {Topic.LABELS: 1}

    teller = Live(look)

    async def story():
        await teller.look_once()
        with teller.subscribed() as viewer:
            state["up"] = False
            await teller.look_once()
            gone = await viewer.wait(1)
            await teller.look_once()
            still_gone = await viewer.wait(0.01)
            state["up"] = True
            await teller.look_once()
            return gone, still_gone, await viewer.wait(1)

    assert asyncio.run(story()) == ({Topic.DATABASE}, set(), set(Topic))


def test_a_viewer_who_does_not_read_costs_no_memory():
    seen = {Topic.LABELS: 0}
    teller = Live(lambda: dict(seen))

    async def story():
        with teller.subscribed() as viewer:
            for number in range(200):
                seen[Topic.LABELS] = number
                await teller.look_once()
            assert len(viewer._topics) == 1
            assert teller.n_viewers == 1
        return teller.n_viewers

    assert asyncio.run(story()) == 0


def test_closing_ends_every_stream_at_once():
    teller = Live(dict)

    async def story():
        stream = teller.stream()
        assert await anext(stream) == "retry: 3000\n\n"
        asyncio.get_running_loop().call_later(0.05, teller.close)
        return [part async for part in stream]

    assert asyncio.run(asyncio.wait_for(story(), 5)) == [": still here\n\n"]


def test_stamps_change_with_what_they_stand_for(site, store, database, at_work):
    backend = Backend(site)
    before = stamps(backend)
    assert stamps(backend) == before

    def changed(*, by):
        nonlocal before
        by()
        after = stamps(backend)
        topics = {topic for topic in Topic if before[topic] != after[topic]}
        before = after
        return topics

    assert changed(by=lambda: store.set_campaign(at_work, state=CampaignState.PAUSED)) == {
        Topic.CAMPAIGNS
    }
    failed = database.otf_labels.find_one({"state": "failed"})["key"]
    assert changed(by=lambda: store.reset_label(failed)) == {Topic.LABELS}
    # FireWorks writes this time as text in one collection and as a date in the other.
    text = {"$set": {"updated_on": "2999-01-01T00:00:00+00:00"}}
    assert changed(by=lambda: database.fireworks.update_one({}, text)) == {Topic.JOBS}
    date = [{"$set": {"updated_on": {"$add": ["$$NOW", 10**9]}}}]
    assert changed(by=lambda: database.workflows.update_one({}, date)) == {Topic.JOBS}
    assert changed(by=lambda: database.otf_models.insert_one({"model_id": "x"})) == {Topic.MODELS}
    backend.close()


def test_a_change_in_the_database_reaches_an_open_stream(serve, store, at_work, monkeypatch):
    monkeypatch.setattr(live, "LOOK_S", 0.1)
    origin = serve()
    heard = []
    ready = threading.Event()

    def listen():
        headers = {"authorization": "Bearer a-token-for-tests-of-thirty-characters"}
        with (
            contextlib.suppress(httpx.HTTPError),
            httpx.stream("GET", f"{origin}/events", headers=headers, timeout=300) as answer,
        ):
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["x-accel-buffering"] == "no"
            for line in answer.iter_lines():
                ready.set()
                heard.append(line)
                if line == "event: campaigns":
                    return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    assert ready.wait(300)
    store.set_campaign(at_work, state=CampaignState.PAUSED)
    listener.join(300)
    assert "event: campaigns" in heard
    assert not [line for line in heard if line.startswith("data: ")]


@pytest.mark.parametrize("method", ["post", "delete"])
def test_the_stream_can_only_be_read(client, method):
    assert getattr(client, method)("/events").status_code in {403, 405}
