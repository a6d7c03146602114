"""Pages of campaigns, cycles, models and production: right without JavaScript, with their files."""

import hashlib
import io
import re

import pytest
from ase.io import read

_written = {}


@pytest.fixture
def campaign(store):
    """A finished campaign; made once, and copied for the other tests."""
    from otf_workflows.testing.campaigns import synthetic_campaign

    if not _written:
        synthetic_campaign(store)
        for name in store.database.list_collection_names():
            _written[name] = list(store.database[name].find())
    else:
        for name, documents in _written.items():
            if documents:
                store.database[name].insert_many(documents)
    return "synthetic-licl"


def tables(html):
    """Return the number of body rows of the table of every figure, by the name of the figure."""
    found = re.findall(r'<details id="numbers-([\w-]+)">(.*?)</details>', html, flags=re.DOTALL)
    return {name: body.count("<tr>") - 1 for name, body in found}


def test_every_page_and_every_address_on_it_answers(client, campaign, store):
    digest = store.latest_dataset(campaign).hash
    pages = [
        "/campaigns",
        f"/campaigns/{campaign}",
        f"/campaigns/{campaign}/cycles/1",
        f"/campaigns/{campaign}/cycles/4",
        f"/campaigns/{campaign}/cycles/1/walkers/1",
        "/models",
        f"/models?campaign={campaign}",
        f"/models/{store.models(campaign)[-1].model_id}",
        "/models/chgnet-0.3.0",
        f"/datasets/{campaign}/{digest}",
        "/production",
        f"/campaigns/{campaign}/production",
        f"/campaigns/{campaign}/production?part=audit",
    ]
    addresses = set()
    for page in pages:
        answer = client.get(page)
        assert answer.status_code == 200, page
        assert "Undefined" not in answer.text
        main = answer.text.partition("<main")[2]
        addresses |= set(re.findall(r'(?:data-[a-z]+|href)="(/[^"]+)"', main))
    addresses = {a.replace("&amp;", "&") for a in addresses if not a.startswith("/static")}
    assert len(addresses) > 40
    figures = [address for address in addresses if address.endswith(".json")]
    assert len(figures) > 15
    for address in sorted(addresses):
        assert client.get(address).status_code == 200, address
    for address in figures:
        drawn = client.get(address).json()
        assert drawn.get("data") or drawn.get("frames"), address


def test_numbers_of_every_figure_stand_in_the_page(client, campaign):
    shown = tables(client.get(f"/campaigns/{campaign}").text)
    assert shown == {"timeline": 30, "errors": 4, "above": 4, "costs": 5}
    shown = tables(client.get(f"/campaigns/{campaign}/cycles/1").text)
    assert shown.keys() == {
        "uncertainty", "calibration", "reliability", "training", "forces", "energies", "elements",
    }  # fmt: skip
    shown = tables(client.get(f"/campaigns/{campaign}/production").text)
    assert {"msd", "diffusion", "rdf", "sigma", "temperature"} <= shown.keys()


def test_a_campaign_says_what_it_does_and_what_it_cost_in_words(client, campaign, store):
    html = client.get(f"/campaigns/{campaign}").text
    assert store.campaign(campaign).reason in html
    assert "DFT runs avoided" in html
    assert "Quantum ESPRESSO" in html
    assert f"otf report {campaign}" in html
    cycle = client.get(f"/campaigns/{campaign}/cycles/2").text
    for sentence in store.cycle(campaign, 2).verdict.sentences:
        assert sentence in cycle
    assert "new model not promoted" in cycle


def test_a_campaign_that_was_only_submitted_says_the_next_command(client, store):
    from otf_workflows.testing.campaigns import synthetic_campaign

    name = synthetic_campaign(store, n_cycles=0, production=False).name
    html = client.get(f"/campaigns/{name}").text
    assert "otf up" in html
    assert "No cycle has been judged yet." in html
    assert client.get(f"/campaigns/{name}/production").status_code == 404
    assert client.get(f"/campaigns/{name}/cycles/0").status_code == 404
    assert client.get(f"/campaigns/{name}/figures/nothing.json").status_code == 404


def test_a_campaign_at_work_tells_what_is_going_on_and_what_may_still_come(client, at_work, store):
    html = client.get(f"/campaigns/{at_work}").text
    assert re.search(r"At most \d+ more labels? of [\d.]+ core-hours each", html)
    newest = store.cycles(at_work)[-1]
    assert newest.finished is None
    assert "so far" in html
    drawn = client.get(f"/campaigns/{at_work}/figures/timeline.json").json()
    assert f"cycle {newest.cycle}" in {y for trace in drawn["data"] for y in trace["y"]}
    cycle = client.get(f"/campaigns/{at_work}/cycles/{newest.cycle}").text
    assert "No verdict yet" in cycle
    assert cycle.count('class="still"') == min(len(newest.selection.keys), 12)
    costs = client.get(f"/campaigns/{at_work}/figures/costs.json").json()
    assert "at most" in {trace.get("name") for trace in costs["data"]}


def test_empty_lists_say_the_next_command(client):
    assert "otf init" in client.get("/campaigns").text
    assert "otf submit" in client.get("/models").text
    assert "otf status" in client.get("/production").text


def test_weights_come_whole_and_only_to_those_with_a_token(visit, campaign, store):
    model = store.models(campaign)[-1]
    content = bytes(range(256)) * 4000
    sha256 = hashlib.sha256(content).hexdigest()
    store._files.put(content, filename=sha256)
    store.database.otf_models.update_one({"model_id": model.model_id}, {"$set": {"sha256": sha256}})
    address = f"/models/{model.model_id}/weights"
    answer = visit().get(address)
    assert answer.content == content
    assert answer.headers["content-length"] == str(len(content))
    assert f'filename="{model.model_id}.otfmodel"' in answer.headers["content-disposition"]
    stranger = visit(token="").get(address)
    assert stranger.status_code == 401
    assert content[:100] not in stranger.content
    pretrained = visit().get("/models/chgnet-0.3.0/weights")
    assert pretrained.status_code == 404
    assert "load_potential" in pretrained.text


def test_files_of_labels_and_of_runs_are_read_by_ase(client, campaign, store):
    dataset = store.latest_dataset(campaign)
    text = client.get(f"/datasets/{campaign}/{dataset.hash}/labels.extxyz").text
    assert len(read(io.StringIO(text), ":", format="extxyz")) == len(dataset.entries)
    text = client.get(f"/campaigns/{campaign}/production/audit.extxyz").text
    assert len(read(io.StringIO(text), ":", format="extxyz")) == 30


def test_words_from_the_database_stay_text(client, campaign, store):
    hostile = "<script>alert('x')</script>{{ 7*7 }}"
    store.set_campaign(campaign, reason=hostile)
    store.event(hostile, campaign=campaign, cycle=1)
    verdict = store.cycle(campaign, 1).verdict.model_copy(update={"sentences": [hostile]})
    store.set_cycle(campaign, 1, verdict=verdict)
    for page in (f"/campaigns/{campaign}", f"/campaigns/{campaign}/cycles/1", "/campaigns"):
        html = client.get(page).text
        assert "alert(" in html
        assert "<script>alert" not in html
        assert "{{ 7*7 }}" in html.replace("&#39;", "'")


def test_a_proxy_s_prefix_is_on_every_address(visit, settings, campaign):
    from dataclasses import replace

    client = visit(replace(settings, root_path="/proxy/8700"))
    html = client.get(f"/campaigns/{campaign}").text
    addresses = re.findall(r'(?:href|src|action|data-figure)="(/[^"]*)"', html)
    assert addresses
    assert all(address.startswith("/proxy/8700/") for address in addresses)
