"""Every page in a real browser: it loads clean, fits, follows the keyboard, and stays fresh."""

import re
from dataclasses import replace

import pytest

from otf_workflows.dashboard import live
from otf_workflows.schemas import now
from otf_workflows.types import CampaignState, FailureCause

pytestmark = pytest.mark.slow

PATIENCE_MS = 60_000


@pytest.fixture
def enter(chromium, serve, settings, monkeypatch):
    """Return a function that opens a page for somebody who has the token."""
    monkeypatch.setattr(live, "LOOK_S", 0.2)
    opened, trouble = [], []

    def look(path="/", *, chosen=settings, **options):
        base = serve(chosen)
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(PATIENCE_MS)
        opened.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: trouble.append(str(error)))
        # Whatever the policy of the page refuses is an error on the console, too.
        page.on("console", lambda said: trouble.append(said.text) if said.type == "error" else None)
        page.on(
            "request",
            lambda asked: (
                None
                if asked.url.startswith((base, "data:", "blob:"))
                else trouble.append(f"asked for {asked.url}")
            ),
        )
        page.goto(f"{base}/login?token={settings.token}")
        page.wait_for_url(f"{base}/")
        if path != "/":
            page.goto(base + path)
        return page

    yield look, trouble
    for context in opened:
        context.close()


def addresses(page):
    """Return every address that the menu and the links of this page lead to."""
    found = page.eval_on_selector_all("nav a, main a", "links => links.map(l => l.href)")
    origin = re.match(r"https?://[^/]+", page.url)[0]
    return {link.split("#")[0] for link in found if link.startswith(origin)}


@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_of_the_menu_loads_clean_and_fits(enter, acting, finished, at_work, width):
    look, trouble = enter
    page = look(chosen=acting, viewport={"width": width, "height": 840}, color_scheme="dark")
    waiting = sorted(addresses(page))
    menu = set(page.eval_on_selector_all("header nav a", "links => links.map(l => l.href)"))
    for address in sorted(menu | set(waiting[:12])):
        answer = page.goto(address)
        if "attachment" in (answer.headers.get("content-disposition") or ""):
            continue
        assert answer.status == 200, address
        page.locator("[data-live-sign].on").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, address
        assert page.locator("h1").count() == 1, address
    assert trouble == []


def test_a_failure_appears_without_reloading_and_nothing_is_lost(enter, store, at_work):
    look, trouble = enter
    page = look("/jobs")
    page.evaluate("window.sameDocument = true")
    page.locator("[data-live-sign].on").wait_for()
    search = page.get_by_label("Name or number")
    search.fill("not sent yet")
    row = store.database.fireworks.find_one({"state": "RUNNING"})
    chip = page.locator(f"#job-{row['fw_id']} .chip")
    assert chip.inner_text().endswith("running")
    store.database.fireworks.update_one(
        {"fw_id": row["fw_id"]},
        {"$set": {"state": "FIZZLED", "updated_on": now().isoformat()}},
    )
    page.locator(f"#job-{row['fw_id']} .chip.bad").wait_for()
    assert search.input_value() == "not sent yet"
    assert page.evaluate("document.activeElement.name") == "text"
    assert page.evaluate("window.sameDocument")
    assert trouble == []


def test_the_glance_follows_a_campaign(enter, store, at_work):
    look, trouble = enter
    page = look()
    page.evaluate("window.sameDocument = true")
    page.locator("[data-live-sign].on").wait_for()
    row = page.locator(f"#campaign-{at_work}")
    assert "running" in row.inner_text()
    running = store.labels(campaign=at_work, states=["running"], light=True)[0]
    store.record_failure(running.key, cause=FailureCause.MEMORY, reason="out of memory (a test)")
    page.get_by_text("out of memory (a test)").wait_for()
    store.set_campaign(at_work, state=CampaignState.PAUSED, reason="for a test")
    row.locator(".chip.warn").wait_for()
    assert page.evaluate("window.sameDocument")
    assert trouble == []


def test_what_is_open_stays_open_and_scrolled(enter, store, at_work):
    look, trouble = enter
    fw_id = store.database.fireworks.find_one({"state": "FIZZLED"})["fw_id"]
    page = look(f"/jobs/{fw_id}")
    page.locator("[data-live-sign].on").wait_for()
    page.get_by_text("Specification, abridged").click()
    page.evaluate("window.scrollTo(0, 200)")
    store.database.fireworks.update_one(
        {"fw_id": fw_id}, {"$set": {"name": "another name", "updated_on": now().isoformat()}}
    )
    page.get_by_role("heading", name="another name").wait_for()
    assert page.locator("details.card").get_attribute("open") is not None
    assert page.evaluate("window.scrollY") > 100
    assert trouble == []


def test_a_hidden_page_gives_its_stream_up_and_takes_it_again(enter, at_work):
    look, trouble = enter
    page = look()
    page.locator("[data-live-sign].on").wait_for()
    page.evaluate("window.sameDocument = true")

    def hide(hidden):
        page.evaluate(
            """hidden => {
                Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});
                document.dispatchEvent(new Event('visibilitychange'));
            }""",
            hidden,
        )

    hide(hidden=True)
    with page.expect_request("**/events"):
        hide(hidden=False)
    page.locator("[data-live-sign].on").wait_for()
    assert trouble == []


def test_pages_work_without_javascript(enter, at_work):
    look, _ = enter
    page = look("/jobs", java_script_enabled=False)
    page.get_by_label("State").select_option("failed")
    page.get_by_role("button", name="Show").click()
    assert "state=failed" in page.url
    assert page.locator(".chip.bad").count() == page.locator("tbody tr[id^=job-]").count() > 0
    page.locator("tbody tr[id^=job-] a").first.click()
    assert page.get_by_text("no convergence in 80 steps").count() > 0


def test_a_person_without_a_mouse_gets_everywhere(enter, at_work):
    look, trouble = enter
    page = look()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Glance"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    page.keyboard.press("Escape")
    page.locator("main").focus()
    page.keyboard.press("g")
    page.keyboard.press("j")
    page.wait_for_url("**/jobs")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.name") == "text"
    page.keyboard.type("finetune")
    page.keyboard.press("Enter")
    page.wait_for_url("**/jobs?text=finetune")
    assert {"finetune"} == set(page.locator("tbody td.wide").all_inner_texts())
    assert trouble == []


def test_the_token_page_lets_in_who_has_it(chromium, serve, settings):
    base = serve()
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{base}/jobs")
    assert page.url == f"{base}/login"
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button").click()
    page.get_by_text("This token is not right").wait_for()
    page.get_by_label("Token").fill(settings.token)
    page.get_by_role("button").click()
    page.wait_for_url(f"{base}/")
    assert "token" not in page.url
    assert page.evaluate("document.cookie") == ""  # no script can read it
    context.close()


def test_states_are_told_apart_in_both_colour_schemes(enter, at_work, settings):
    """Words on chips and on the page stand out by at least 4.5 to 1 (WCAG 2.2, 1.4.3)."""
    look, _ = enter
    script = """() => {
        const rgb = text => text.match(/[\\d.]+/g).map(Number);
        const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
            .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const ground = element => {
            for (let e = element; e; e = e.parentElement) {
                const c = rgb(getComputedStyle(e).backgroundColor);
                if (c.length === 3 || c[3] > 0.99) return c;
            }
            return [255, 255, 255];
        };
        return [...document.querySelectorAll('.chip, .muted, a, td, th, h2, .count')].map(e => {
            const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))];
            return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent.trim()];
        }).filter(([ratio, text]) => text && ratio < 4.5);
    }"""
    for scheme in ("light", "dark"):
        page = look("/jobs", chosen=replace(settings), color_scheme=scheme)
        assert page.evaluate(script) == [], scheme
