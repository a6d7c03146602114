"""Acting from a page: previewed, with what was seen as the condition, recorded, or refused."""

import re
import threading

import pytest
from fastapi.testclient import TestClient

from otf_workflows.dashboard import actions
from otf_workflows.dashboard.app import create_app
from otf_workflows.dashboard.backend import Backend
from otf_workflows.dashboard.queries.indexes import ensure_indexes
from otf_workflows.dashboard.queries.label_filter import LabelFilter
from otf_workflows.dashboard.settings import DashboardSettings
from otf_workflows.errors import InputError, NotFoundError
from otf_workflows.schemas import Attempt
from otf_workflows.store import Store
from otf_workflows.testing.campaigns import synthetic_campaign
from otf_workflows.types import CampaignState, FailureCause, LabelState

NAME = "synthetic-licl"
HOSTILE = "<script>alert('x')</script>{{ 7*7 }}"


_written = {}


@pytest.fixture
def store(database):
    """A running campaign with two failed labels; written once, and copied for the other tests."""
    store = Store(database)
    store.ensure_indexes()
    ensure_indexes(database)
    for name, documents in _written.items():
        database[name].insert_many(documents)
    if not _written:
        synthetic_campaign(store, n_cycles=3, production=False)
        for name in ("otf_campaigns", "otf_cycles", "otf_labels", "otf_models", "otf_events"):
            _written[name] = list(database[name].find())
    return store


@pytest.fixture
def here(site, engine):
    opened = Backend(site)
    yield opened
    opened.close()


@pytest.fixture
def dashboard(site):
    made = []

    def start(*, allow_actions=True):
        settings = DashboardSettings(site=site, token="t", allow_actions=allow_actions)
        app = create_app(settings)
        made.append(app.state.backend)
        headers = {"authorization": "Bearer t", "accept": "text/html"}
        return TestClient(app, base_url="http://localhost", headers=headers)

    yield start
    for backend in made:
        backend.close()


def failed(store):
    return store.labels(states=[LabelState.FAILED], light=True)


def hidden(html, name):
    return re.findall(rf'name="{name}" value="([^"]*)"', html)


def wish(*keys, **changes):
    return actions.RerunWish(LabelFilter(keys=keys), **changes)


def seen(preview):
    return [line.seen for line in preview.lines if line.item.mode != "refused"]


# -- rerun -----------------------------------------------------------------------------------------


def test_a_preview_changes_nothing_and_says_what_would_run(store, here, database):
    def picture():
        names = [n for n in database.list_collection_names() if n.startswith(("otf_", "fire"))]
        return {name: list(database[name].find()) for name in names}

    here.engine.find(campaign=NAME, cycle=0, kind="cycle")
    before = picture()
    preview = actions.preview_rerun(here, actions.RerunWish(LabelFilter(campaign=NAME)))
    assert picture() == before
    assert {line.item.key for line in preview.detached} == {label.key for label in failed(store)}
    assert preview.in_place == []
    assert preview.refused == []
    assert preview.command == f"otf labels rerun --failed --campaign {NAME}"
    assert preview.core_hours == pytest.approx(sum(label.core_hours for label in failed(store)))


def test_what_was_previewed_runs_and_is_recorded(store, here, engine):
    one = failed(store)[0]
    asked = wish(one.key[:16], settings="mixing_beta=0.2\n", walltime="4h")
    preview = actions.preview_rerun(here, asked)
    assert preview.command == (
        f"otf labels rerun {one.key[:12]} --set mixing_beta=0.2 --walltime 4h"
    )
    batch = actions.confirm_rerun(here, asked, seen=seen(preview))
    assert store.label(one.key).state is LabelState.PENDING
    spec = engine.launchpad.fireworks.find_one({"spec.label_key": one.key})["spec"]
    given = spec["_tasks"][0]["job"]["function_kwargs"]
    assert given["numerics"] == {"mixing_beta": 0.2}
    assert given["walltime_s"] == 14400
    event = store.events(limit=1)[0]
    assert event.label_key == one.key
    assert event.who.endswith("(dashboard)")
    assert event.details == {
        "numerics": {"mixing_beta": 0.2}, "walltime_s": 14400, "batch": batch, "asked": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({"settings": "cutoff_Ry=30"}, "cutoff_Ry"),
        ({"settings": "mixing_beta"}, "KEY=VALUE"),
        ({"settings": "mixing_beta=7"}, "mixing_beta"),
        ({"walltime": "soon"}, "duration"),
        ({"walltime": "-1h"}, "duration"),
    ],
)
def test_what_the_command_line_refuses_is_refused_in_its_words(store, here, capsys, typed, words):
    from otf_workflows.cli import main as cli

    one = failed(store)[0]
    asked = wish(one.key, **typed)
    with pytest.raises(InputError, match=words) as refused:
        actions.preview_rerun(here, asked)
    command = ["labels", "rerun", one.key, *_as_words(typed), "--dry-run"]
    with pytest.raises(SystemExit):
        cli.main(command)
    said = capsys.readouterr().err
    assert refused.value.what in said
    assert (refused.value.where or "") in said
    with pytest.raises(InputError):
        actions.confirm_rerun(here, asked, seen=seen(actions.preview_rerun(here, wish(one.key))))
    assert store.label(one.key).state is LabelState.FAILED


def _as_words(typed):
    options = {"settings": "--set", "walltime": "--walltime"}
    return [f"{options[name]}={value}" for name, value in typed.items()]


def _run_meanwhile(store, key):
    store.reset_label(key)


def _fail_again_meanwhile(store, key):
    store.reset_label(key)
    store.record_failure(key, cause=FailureCause.NODE, reason="x", attempts=[Attempt(number=1)])


@pytest.mark.parametrize("meanwhile", [_run_meanwhile, _fail_again_meanwhile])
def test_labels_that_changed_since_the_preview_are_not_run(store, here, engine, meanwhile):
    first, second = failed(store)
    asked = actions.RerunWish(LabelFilter(campaign=NAME))
    preview = actions.preview_rerun(here, asked)
    meanwhile(store, first.key)
    with pytest.raises(actions.ChangedError, match="1 of 2"):
        actions.confirm_rerun(here, asked, seen=seen(preview))
    assert store.label(second.key).state is LabelState.FAILED
    assert engine.jobs(campaign=NAME) == []


def test_a_label_that_failed_since_the_preview_is_not_run_with_it(store, here):
    first, second = failed(store)
    asked = actions.RerunWish(LabelFilter(campaign=NAME, causes=(first.cause,)))
    preview = actions.preview_rerun(here, asked)
    store.database.otf_labels.update_one({"key": second.key}, {"$set": {"cause": str(first.cause)}})
    actions.confirm_rerun(here, asked, seen=seen(preview))
    assert store.label(first.key).state is LabelState.PENDING
    assert store.label(second.key).state is LabelState.FAILED


def test_two_people_confirming_at_once_run_a_label_once(store, here, engine):
    one = failed(store)[0]
    words = seen(actions.preview_rerun(here, wish(one.key)))
    outcomes = []

    def confirm():
        try:
            outcomes.append(actions.confirm_rerun(here, wish(one.key), seen=words))
        except (actions.ChangedError, NotFoundError) as error:
            outcomes.append(error)

    threads = [threading.Thread(target=confirm) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 3
    assert len(engine.jobs(campaign=NAME)) == 1


def test_nothing_confirmed_or_made_up_runs_nothing(store, here):
    one = failed(store)[0]
    with pytest.raises(InputError):
        actions.confirm_rerun(here, wish(one.key), seen=[])
    with pytest.raises(actions.ChangedError):
        actions.confirm_rerun(here, wish(one.key), seen=[f"{one.key}:failed:0:detached"])
    with pytest.raises(NotFoundError):
        actions.confirm_rerun(here, wish(one.key), seen=["f" * 64 + ":failed:0:detached"])
    assert store.label(one.key).state is LabelState.FAILED


def test_preview_confirm_and_result_in_pages(store, dashboard, engine):
    page = dashboard()
    listed = page.get("/labels", params={"state": "failed"})
    assert listed.status_code == 200
    one = failed(store)[0]
    shown = page.get("/labels/rerun", params={"key": one.key[:16]})
    assert shown.status_code == 200
    assert "detached" in shown.text
    assert f"otf labels rerun {one.key[:12]}" in shown.text
    fields = {name: hidden(shown.text, name) for name in ("key", "seen", "settings")}
    done = page.post("/labels/rerun", data=fields, follow_redirects=False)
    assert done.status_code == 303
    result = page.get(done.headers["location"])
    assert one.key[:10] in result.text
    assert "pending 1" in result.text
    again = page.post("/labels/rerun", data=fields, follow_redirects=False)
    assert again.status_code == 409
    assert "nothing was done" in again.text
    assert len(engine.jobs(campaign=NAME)) == 1


def test_a_refused_setting_is_said_beside_the_form_and_what_was_typed_stays(store, dashboard):
    one = failed(store)[0]
    params = {"key": one.key, "settings": "cutoff_Ry=30"}
    shown = dashboard().get("/labels/rerun", params=params)
    assert shown.status_code == 422
    assert "cutoff_Ry=30</textarea>" in shown.text
    assert 'role="alert"' in shown.text
    assert hidden(shown.text, "seen") == []


def test_choosing_nothing_by_hand_does_not_mean_everything(store, dashboard):
    shown = dashboard().get("/labels/rerun", params={"by": "hand", "campaign": NAME})
    assert shown.status_code == 422
    assert "no label was chosen" in shown.text


def test_a_text_filter_runs_exactly_what_it_finds(store, here):
    first = failed(store)[0]
    store.database.otf_labels.update_one({"key": first.key}, {"$set": {"reason": "node n12 died"}})
    preview = actions.preview_rerun(here, actions.RerunWish(LabelFilter(text="N12 died")))
    assert [line.item.key for line in preview.lines] == [first.key]
    assert preview.command == f"otf labels rerun {first.key[:12]}"


def test_a_worker_of_the_site_file_can_be_chosen(store, site, dashboard):
    text = site.source.read_text().replace("codes: {}", "codes: {espresso@big: {cores: 32}}")
    site.source.write_text(text)
    from otf_workflows.settings import load_site

    settings = DashboardSettings(site=load_site(), token="t", allow_actions=True)
    page = TestClient(create_app(settings), base_url="http://localhost")
    page.headers["authorization"] = "Bearer t"
    one = failed(store)[0]
    shown = page.get("/labels/rerun", params={"key": one.key, "worker": "big"})
    assert "32 cores" in shown.text
    assert "<option selected>big</option>" in shown.text
    assert page.get("/labels/rerun", params={"key": one.key, "worker": "no"}).status_code == 422


# -- campaigns -------------------------------------------------------------------------------------


def test_pause_resume_and_stop_from_the_page(store, here, dashboard):
    page = dashboard()

    def press(verb, state):
        sent = page.post(f"/campaigns/{NAME}/{verb}", data={"state": state}, follow_redirects=False)
        return sent.status_code, str(store.campaign(NAME).state)

    assert press("pause", "running") == (303, "paused")
    assert press("pause", "running") == (409, "paused")
    assert press("resume", "paused") == (303, "running")
    assert "are given up" in page.get(f"/campaigns/{NAME}/stop").text
    assert str(store.campaign(NAME).state) == "running"
    assert press("stop", "paused") == (409, "running")
    assert press("stop", "running") == (303, "stopped")
    assert press("resume", "stopped") == (409, "stopped")
    assert press("delete", "stopped") == (422, "stopped")
    who = {event.what: event.who for event in store.events(NAME)}
    for what in ("campaign paused", "campaign resumed", "campaign stopped"):
        assert who[what].endswith("(dashboard)")


def test_an_unknown_campaign_is_not_found(store, dashboard):
    assert dashboard().post("/campaigns/nobody/pause", data={"state": "x"}).status_code == 404


def test_every_state_has_its_buttons(store, dashboard):
    page = dashboard()
    source = "{% from '_campaign_actions.html.jinja' import campaign_actions with context %}"
    template = page.app.state.templates.from_string(source + "{{ campaign_actions('x', state) }}")

    class Request:
        app = page.app

    def buttons(state, *, allow_actions=True):
        html = template.render(request=Request, state=str(state), allow_actions=allow_actions)
        return set(re.findall(r"/campaigns/x/(\w+)", html))

    assert buttons(CampaignState.RUNNING) == {"pause", "stop"}
    assert buttons(CampaignState.PAUSED) == {"resume", "stop"}
    assert buttons(CampaignState.FAILED) == {"resume"}
    assert buttons(CampaignState.CONVERGED) == set()
    assert buttons(CampaignState.RUNNING, allow_actions=False) == set()
    assert set(actions.VERBS) == set(actions.CampaignVerb)


# -- who may ---------------------------------------------------------------------------------------


def test_a_page_that_only_looks_has_no_controls_and_refuses(store, dashboard):
    page = dashboard(allow_actions=False)
    one = failed(store)[0]
    for path in ("/labels", f"/labels/{one.key}", f"/labels/rerun?key={one.key}"):
        shown = page.get(path)
        assert shown.status_code == 200, path
        assert 'method="post"' not in shown.text
        assert 'class="button primary"' not in shown.text
        assert 'type="checkbox"' not in shown.text
    words = seen(actions.preview_rerun(page.app.state.backend, wish(one.key)))
    refused = page.post("/labels/rerun", data={"key": one.key, "seen": words})
    assert refused.status_code == 403
    assert page.post(f"/campaigns/{NAME}/stop", data={"state": "running"}).status_code == 403
    assert store.label(one.key).state is LabelState.FAILED
    assert store.campaign(NAME).state is CampaignState.RUNNING


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
    ],
)
def test_a_form_on_another_page_cannot_act(store, dashboard, headers):
    page = dashboard()
    one = failed(store)[0]
    words = seen(actions.preview_rerun(page.app.state.backend, wish(one.key)))
    data = {"key": one.key, "seen": words}
    assert page.post("/labels/rerun", data=data, headers=headers).status_code == 403
    stop = page.post(f"/campaigns/{NAME}/stop", data={"state": "running"}, headers=headers)
    assert stop.status_code == 403
    assert store.label(one.key).state is LabelState.FAILED


def test_hostile_words_stay_words(store, dashboard):
    one = failed(store)[0]
    attempt = Attempt(
        number=1, host=HOSTILE, directory=HOSTILE, command=HOSTILE, message=HOSTILE,
        cause=FailureCause.SCF, last_lines=[HOSTILE, "</pre></details>" + HOSTILE],
    )  # fmt: skip
    store.database.otf_labels.update_one(
        {"key": one.key},
        {"$set": {
            "reason": HOSTILE,
            "attempts": [attempt.model_dump()],
            "wanted_by": [{"campaign": HOSTILE, "cycle": 0, "purpose": HOSTILE}],
            "frame.origin.note": HOSTILE,
        }},
    )  # fmt: skip
    page = dashboard()
    for path in ("/labels?state=failed", f"/labels/{one.key}", f"/labels/rerun?key={one.key}"):
        shown = page.get(path)
        assert shown.status_code == 200, path
        assert "<script>alert" not in shown.text
        assert "&lt;script&gt;" in shown.text
        assert "{{ 7*7 }}" in shown.text
    shown = page.get("/labels", params={"q": HOSTILE})
    assert "<script>alert" not in shown.text


def test_no_query_of_mongodb_reaches_the_database_from_an_address(store, dashboard):
    page = dashboard()
    everything = page.get("/labels").text
    for name in ("state[$ne]", "$where", "key[$gt]"):
        shown = page.get("/labels", params={name: "1"})
        assert shown.status_code == 200
        assert shown.text.count('id="row-') == everything.count('id="row-')
    assert page.get("/labels", params={"campaign": '{"$gt": ""}'}).text.count('id="row-') == 0
