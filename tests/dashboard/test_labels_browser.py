"""Labels in a real browser, on a real launch pad: fail, look, preview, run again, become done."""

import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import jobflow
import pytest

from otf_workflows import control
from otf_workflows.campaign import Budget, Campaign, Exploration, Seeding, SelectionRules
from otf_workflows.dashboard import live
from otf_workflows.engine.base import JobState
from otf_workflows.engine.worker import Worker
from otf_workflows.reconcile import reconcile
from otf_workflows.schemas import Attempt, Frame
from otf_workflows.testing.campaigns import synthetic_campaign
from otf_workflows.testing.labelers import FailingCalculator
from otf_workflows.types import CampaignState, FailureCause, LabelState, Role

pytestmark = [pytest.mark.integration, pytest.mark.slow]

TOKEN = "a-token-for-tests-of-thirty-characters"
PATIENCE_MS = 60_000
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>\'"{{ 7*7 }}'
STAYS = "window.sameDocument = true"


@pytest.fixture
def browse(chromium, monkeypatch):
    """Return a function that opens a page which is let in; whatever goes wrong in it fails."""
    monkeypatch.setattr(live, "LOOK_S", 0.3)
    wrong, contexts = [], []

    def open_page(base, *, width=1280, scripts=True):
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, java_script_enabled=scripts
        )
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "console",
            lambda message: (
                wrong.append(message.text)
                if message.type == "error" and "status of 4" not in message.text
                else None
            ),
        )
        page.goto(f"{base}/login?token={TOKEN}")
        page.wait_for_url(re.compile(r"/(?!login)"))
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def toy(store):
    """A campaign with a toy potential, some of whose labels fail."""
    from ase.build import bulk

    labels = {
        "code": "ase",
        "calculator": "otf_workflows.testing.labelers.FailingCalculator",
        "kwargs": {"calculator": "emt", "share": 0.5},
    }
    campaign = Campaign(
        name="toy",
        structure=Frame.from_atoms(bulk("Cu", cubic=True)),
        potential="toy-lj",
        labels=labels,
        seeding=Seeding(n_frames=2),
        exploration=Exploration(temperatures_K=[300], steps_per_cycle=20, check_every=5),
        selection=SelectionRules(
            labels_per_cycle=5, audit_per_cycle=1, min_labels=2, duplicate_distance=0.0
        ),
        budget=Budget(max_cycles=1, max_labels=40),
        production=None,
    )
    control.submit(campaign, store)
    return campaign.name


@pytest.fixture
def work(site, store, engine, monkeypatch, tmp_path):
    """Run jobs of the roles named in this process, and write down what they found."""
    monkeypatch.setattr(jobflow.SETTINGS, "JOB_STORE", jobflow.SETTINGS.JOB_STORE)
    monkeypatch.chdir(tmp_path)
    workers = {role: Worker(site, role, reconcile=False) for role in Role}

    def run(*roles, one=False):
        done = 0
        while True:
            n = sum(workers[role].run_one() for role in roles)
            done += n
            if one or not n:
                break
        reconcile(store, engine, "toy")
        return done

    yield run
    for worker in workers.values():
        worker.engine.close()


def until_a_label_fails(work, store):
    """Compute labels one by one; another is still to come, so that the cycle waits."""
    work(Role.MD, Role.CONTROL)
    while not (found := store.labels(states=[LabelState.FAILED], light=True)):
        assert work(Role.DFT, one=True), "no label failed"
    assert store.labels(states=[LabelState.PENDING], light=True)
    return found[0].key


def test_a_failed_label_is_seen_looked_at_run_again_and_becomes_done(
    serve, acting, browse, *, toy, work, store, engine, monkeypatch
):
    reconcile(store, engine, toy)
    page = browse(serve(acting))
    page.get_by_role("link", name="Labels", exact=True).click()
    page.wait_for_selector(".live-sign.on")
    page.evaluate(STAYS)
    key = until_a_label_fails(work, store)

    # It appears on the open page by itself.
    row = page.locator(f"#row-{key[:16]}")
    row.wait_for()
    assert page.evaluate("window.sameDocument")
    assert "chosen to fail" in page.locator("#cause-unknown").inner_text()
    row.get_by_role("link", name=key[:10]).click()
    page.wait_for_selector("#why")
    assert "this structure was chosen to fail" in page.locator("#why").inner_text()
    assert "RuntimeError" in page.locator("pre").first.inner_text()
    page.wait_for_selector("#structure canvas")

    # The preview says what would run, and which job of the launch pad is touched.
    page.get_by_role("link", name="Run it again…").click()
    page.wait_for_selector("#what-runs")
    jobs = engine.jobs(campaign=toy)
    mine = next(job for job in jobs if job.label_key == key and job.state is JobState.FAILED)
    words = page.locator("main").inner_text()
    assert "1 label in place" in words
    assert f"job {mine.engine_id}" in words
    assert f"otf labels rerun {key[:12]}" in words
    before = {job.engine_id: job.state for job in jobs}
    page.get_by_role("button", name="Run 1 label again").click()
    page.wait_for_url(re.compile("/labels/reruns/"))
    after = {job.engine_id: job.state for job in engine.jobs(campaign=toy)}
    changed = {i for i in after if after[i] != before.get(i)}
    assert changed == {mine.engine_id}, "nothing else was touched"
    assert store.label(key).state is LabelState.PENDING

    # What made it fail is gone; the page follows it to its end without being loaded again.
    page.wait_for_selector(".live-sign.on")
    page.evaluate(STAYS)
    monkeypatch.setattr(FailingCalculator, "fails", lambda *_: False)
    work(Role.DFT)
    assert store.label(key).state is LabelState.DONE
    page.wait_for_selector(".chips .chip.good:has-text('done 1')")
    assert "done" in page.locator(f"#row-{key[:16]}").inner_text()
    assert page.evaluate("window.sameDocument")
    events = [event for event in store.events(toy) if event.label_key == key]
    assert events[0].what == "label rerun (in place)"
    assert events[0].who.endswith("(dashboard)")


def test_pause_and_resume_hold_and_release_the_jobs(
    serve, acting, browse, *, toy, work, store, engine
):
    reconcile(store, engine, toy)
    base = serve(acting)
    page = browse(base)
    page.goto(f"{base}/campaigns/{toy}")
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Resume").wait_for()
    assert store.campaign(toy).state is CampaignState.PAUSED
    assert work(Role.MD, Role.CONTROL, Role.DFT) == 0
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("button", name="Pause").wait_for()
    assert store.campaign(toy).state is CampaignState.RUNNING
    assert work(Role.MD, one=True) == 1
    page.get_by_role("link", name="Stop…").click()
    page.get_by_role("link", name="Cancel").click()
    page.get_by_role("button", name="Pause").wait_for()
    assert store.campaign(toy).state is CampaignState.RUNNING


@pytest.fixture
def failed(store):
    synthetic_campaign(store, n_cycles=3, production=False)
    return [label.key for label in store.labels(states=[LabelState.FAILED], light=True)]


def test_what_is_chosen_stays_chosen_while_the_page_is_refreshed(
    serve, acting, browse, failed, store
):
    base = serve(acting)
    page = browse(base)
    page.goto(f"{base}/labels?state=failed")
    page.wait_for_selector(".live-sign.on")
    page.evaluate(STAYS)
    first, second = failed
    page.locator(f"#pick-{first[:16]}").check()
    page.locator(".output summary").first.click()
    assert "1 chosen" in page.locator("[data-count]").inner_text()
    change = {"$set": {"reason": "changed under our eyes"}, "$currentDate": {"updated": True}}
    store.database.otf_labels.update_one({"key": second}, change)
    page.get_by_text("changed under our eyes").first.wait_for()
    assert page.locator(f"#pick-{first[:16]}").is_checked()
    assert not page.locator(f"#pick-{second[:16]}").is_checked()
    assert "1 chosen" in page.locator("[data-count]").inner_text()
    assert page.locator(".output[open]").count() == 1
    assert page.evaluate("window.sameDocument")
    page.get_by_role("button", name="Run the chosen ones again…").click()
    page.get_by_role("heading", name="Run 1 label again?").wait_for()
    assert first[:10] in page.locator("main").inner_text()


def test_a_rerun_needs_no_scripts(serve, acting, browse, failed, store):
    base = serve(acting)
    page = browse(base, scripts=False)
    page.goto(f"{base}/labels?state=failed")
    page.locator(f"#pick-{failed[0][:16]}").check()
    page.get_by_role("button", name="Run the chosen ones again…").click()
    page.get_by_role("button", name="Run 1 label again").click()
    page.wait_for_url(re.compile("/labels/reruns/"))
    assert "pending 1" in page.locator("main").inner_text()
    assert store.label(failed[0]).state is LabelState.PENDING
    assert store.label(failed[1]).state is LabelState.FAILED


def test_a_page_that_only_looks_refuses(serve, settings, browse, failed, store):
    base = serve(settings)
    page = browse(base)
    for path in ("/labels", f"/labels/{failed[0]}", "/campaigns/synthetic-licl"):
        page.goto(base + path)
        assert page.locator("button:not(.copy):not(.filters button):visible").count() == 0
        assert page.get_by_text("read-only").is_visible()
    status = page.evaluate(
        """async (path) => (await fetch(path, {method: "POST",
             body: new URLSearchParams({state: "running"})})).status""",
        "/campaigns/synthetic-licl/pause",
    )
    assert status == 403
    assert store.campaign("synthetic-licl").state is CampaignState.RUNNING


def test_another_web_page_cannot_act_with_our_cookie(serve, acting, browse, failed, store):
    base = serve(acting)
    page = browse(base)
    form = (
        f'<form method="post" action="{base}/campaigns/synthetic-licl/stop">'
        '<input name="state" value="running"><button>win a prize</button></form>'
    ).encode()

    class Evil(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(form)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Evil)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        # The same machine on another port is the nearest that a stranger can get.
        for host in ("127.0.0.1", "localhost"):
            page.goto(f"http://{host}:{server.server_port}/")
            with page.expect_response(lambda response: "/stop" in response.url) as answer:
                page.get_by_role("button").click()
            assert answer.value.status == 403
    finally:
        server.shutdown()
        server.server_close()
    assert store.campaign("synthetic-licl").state is CampaignState.RUNNING


def test_hostile_words_stay_words_in_every_page(serve, acting, browse, failed, store):
    attempt = Attempt(
        number=1, host=HOSTILE, queue_id=HOSTILE, directory=HOSTILE, command=HOSTILE,
        message=HOSTILE, cause=FailureCause.SCF, last_lines=[HOSTILE, "</pre>" + HOSTILE],
    )  # fmt: skip
    store.database.otf_labels.update_one(
        {"key": failed[0]}, {"$set": {"reason": HOSTILE, "attempts": [attempt.model_dump()]}}
    )
    base = serve(acting)
    page = browse(base)
    paths = ["/labels?state=failed", f"/labels/{failed[0]}", f"/labels/rerun?key={failed[0]}"]
    for path in paths:
        page.goto(base + path)
        page.get_by_text("window.hacked=1").first.wait_for(state="attached")
        assert page.evaluate("window.hacked") is None
        assert page.locator("main img").count() == 0


@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_its_window(serve, acting, browse, failed, width):
    base = serve(acting)
    page = browse(base, width=width)
    paths = ["/labels", f"/labels/{failed[0]}", f"/labels/rerun?key={failed[0]}", "/new"]
    for path in paths:
        page.goto(base + path)
        wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, path


def test_a_campaign_is_written_in_the_form_and_shown_as_a_file(serve, acting, browse, database):
    base = serve(acting)
    page = browse(base)
    page.goto(f"{base}/new")
    assert page.locator("[data-recipe=espresso]").is_visible()
    page.locator("[data-code]").select_option("ase")
    assert not page.locator("[data-recipe=espresso]").is_visible()
    assert page.locator("[data-recipe=ase]").is_visible()
    poscar = Path(__file__).parents[2] / "flows" / "si_teacher" / "POSCAR"
    page.locator("input[type=file]").set_input_files(poscar)
    page.locator("input[name=name]").fill("typed")
    page.get_by_role("button", name="Check and estimate").click()
    page.get_by_text("another look").wait_for()
    assert "calculator" in page.locator("[data-recipe=ase] .problem").inner_text()
    assert page.locator("[data-recipe=ase]").is_visible()
    page.locator("input[name='labels.ase.calculator']").fill("lj")
    page.get_by_role("button", name="Check and estimate").click()
    page.get_by_role("button", name="Submit typed").wait_for()
    assert "calculator: lj" in page.locator("#yaml").inner_text()
