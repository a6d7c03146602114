"""Pages of the science in a real browser: plots, zoom over updates, structures, no JavaScript."""

import io
import time

import numpy as np
import pytest

pytestmark = pytest.mark.slow

NAME = "synthetic-licl"
PATIENCE_MS = 90_000
"""Software rendering on a busy machine is slow; nothing here waits longer than it must."""


_written = {}


@pytest.fixture
def campaign(store):
    """A finished campaign; made once, and copied for the other tests."""
    from otf_workflows.testing.campaigns import synthetic_campaign

    if not _written:
        synthetic_campaign(store)
        for name in store.database.list_collection_names():
            _written[name] = list(store.database[name].find())
        return
    for name, documents in _written.items():
        if documents:
            store.database[name].insert_many(documents)


def wait_until(page, expression):
    """Wait for a JavaScript expression; Playwright's own way is refused by the pages' policy."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(100)


@pytest.fixture
def open_page(chromium, serve, settings, campaign):
    """Return a function that opens a page for somebody who has the token."""
    base = serve()
    contexts, trouble = [], []

    def look(path, **options):
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("console", lambda said: trouble.append(said.text) if said.type == "error" else None)
        page.goto(f"{base}/login?token={settings.token}")
        page.get_by_text("You are in").or_(page.locator("nav")).first.wait_for()
        page.goto(base + path)
        return page

    yield look
    for context in contexts:
        context.close()
    # Refused scripts and styles are errors on the console as well.
    assert trouble == []


def picture(locator):
    """Return what an element looks like as an array (height, width, 3)."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB"), dtype=int)


def drawn(page, name):
    """Scroll to a figure and wait until it is drawn."""
    figure = page.locator(f"#plot-{name}-figure")
    figure.scroll_into_view_if_needed()
    page.locator(f"#plot-{name}-figure[data-drawn]").wait_for()
    return figure


def test_every_figure_of_a_campaign_is_drawn(open_page):
    page = open_page(f"/campaigns/{NAME}")
    for name in ("timeline", "errors", "above", "costs"):
        figure = drawn(page, name)
        assert figure.locator(".main-svg").count() >= 1
        assert len(np.unique(picture(figure).reshape(-1, 3), axis=0)) > 10
    legend = page.locator("#plot-errors .legend").bounding_box()
    plot = page.locator("#plot-errors .plotbg, #plot-errors .gridlayer").first.bounding_box()
    assert legend["y"] + legend["height"] <= plot["y"] + 1, "the legend lies on the data"


def what_is_shown(page):
    """Return the ends of both axes of a figure, and which of its curves are visible."""
    return page.evaluate(
        """() => {
          const { _fullLayout, _fullData } = document.getElementById("plot-errors");
          return { x: _fullLayout.xaxis.range, y: _fullLayout.yaxis.range,
                   shown: _fullData.map((trace) => trace.visible) };
        }"""
    )


def test_zoom_and_hidden_curves_stay_when_new_numbers_arrive(open_page, store):
    page = open_page(f"/campaigns/{NAME}")
    drawn(page, "errors")
    page.get_by_text("live", exact=True).wait_for()
    whole = what_is_shown(page)
    area = page.locator("#plot-errors .nsewdrag").first.bounding_box()
    page.mouse.move(area["x"] + 0.3 * area["width"], area["y"] + 0.3 * area["height"])
    page.mouse.down()
    page.mouse.move(area["x"] + 0.8 * area["width"], area["y"] + 0.8 * area["height"], steps=6)
    page.mouse.up()
    page.locator("#plot-errors .legendtoggle").nth(1).click()
    wait_until(page, "document.getElementById('plot-errors')._fullData[1].visible !== true")
    chosen = what_is_shown(page)
    assert chosen["x"] != whole["x"]
    assert chosen["y"] != whole["y"]
    document = store.cycle(NAME, 3)
    changed = document.errors["challenger/audit"].model_copy(update={"force_rmse_eV_A": 0.0333})
    store.set_cycle(NAME, 3, errors={**document.errors, "challenger/audit": changed})
    store.event("a number was changed by a test", campaign=NAME)
    wait_until(page, "document.getElementById('plot-errors').data[2].y.includes(0.0333)")
    assert what_is_shown(page) == chosen
    # The rest of the page came with it.
    page.get_by_text("A number was changed by a test.").wait_for()


def test_opened_numbers_stay_open_over_an_update(open_page, store):
    page = open_page(f"/campaigns/{NAME}")
    page.get_by_text("live", exact=True).wait_for()
    details = page.locator("#numbers-errors")
    details.locator("summary").click()
    store.event("something happened", campaign=NAME)
    page.get_by_text("Something happened.").wait_for()
    assert details.get_attribute("open") is not None
    assert details.locator("table").is_visible()


def test_a_trajectory_is_played_by_mouse_and_keyboard(open_page):
    page = open_page(f"/campaigns/{NAME}/production")
    page.locator("#trajectory-figure[data-drawn3d]").wait_for()
    area, told = page.locator("#trajectory"), page.locator(".player output")
    first = picture(area)
    # Balls of lithium (violet) and chlorine (green) in Jmol's colours.
    red, green, blue = first.reshape(-1, 3).T
    assert ((green > red + 60) & (green > blue + 60)).mean() > 0.01
    assert ((blue > green + 40) & (red > green + 20)).mean() > 0.01
    assert "frame 1 of 60" in told.inner_text()
    page.locator("#trajectory-figure").focus()
    page.keyboard.press("ArrowRight")
    assert "frame 2 of 60, 0.020 ps, step 10" in told.inner_text()
    page.keyboard.press("End")
    assert "frame 60 of 60" in told.inner_text()
    assert (picture(area) != first).any(), "the picture follows the frame"
    page.keyboard.press("Home")
    page.get_by_label("One frame on").click()
    assert "frame 2 of 60" in told.inner_text()
    page.get_by_role("slider", name="Frame").fill("30")
    assert "frame 31 of 60" in told.inner_text()
    page.get_by_label("Play").click()
    wait_until(
        page,
        "Number(/frame (\\d+)/.exec(document.querySelector('.player output').textContent)[1]) > 31",
    )
    page.get_by_label("Pause").click()
    assert [item.strip() for item in page.locator(".elements li").all_inner_texts()] == [
        "Li 32", "Cl 32",
    ]  # fmt: skip


def test_a_picked_frame_turns_into_a_3d_view_when_pointed_at(open_page):
    page = open_page(f"/campaigns/{NAME}/cycles/1")
    frame = page.locator("figure[data-still]").first
    frame.scroll_into_view_if_needed()
    assert frame.locator("svg.still").is_visible()
    frame.hover()
    page.locator("figure[data-still][data-drawn3d] canvas").first.wait_for()
    assert len(np.unique(picture(frame).reshape(-1, 3), axis=0)) > 50
    assert page.locator("figure[data-still] canvas").count() == 1, "and only that one"


def test_everything_is_said_without_javascript(open_page):
    page = open_page(f"/campaigns/{NAME}", java_script_enabled=False)
    page.locator("#numbers-errors summary").click()
    assert page.locator("#numbers-errors").get_by_text("eV/Å, n =").first.is_visible()
    page.get_by_role("link", name="cycle 1", exact=True).click()
    assert page.locator("h1").inner_text() == "Cycle 1"
    assert page.locator("svg.still").count() == 10
    page.locator("#numbers-uncertainty summary").click()
    assert page.locator("#numbers-uncertainty td").first.is_visible()
    assert page.get_by_role("link", name="CIF").first.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_of_a_figure_can_be_read_in_light_and_in_dark(open_page, scheme):
    page = open_page(f"/campaigns/{NAME}", color_scheme=scheme)
    drawn(page, "errors")
    contrast = page.evaluate(
        """() => {
          const light = (text) => {
            const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map((v) => {
              const c = v / 255;
              return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const card = getComputedStyle(document.getElementById("card-errors")).backgroundColor;
          const words = [...document.querySelectorAll("#plot-errors text")];
          return Math.min(...words.map((word) => {
            const pair = [light(card), light(getComputedStyle(word).fill)];
            return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
          }));
        }"""
    )
    assert contrast > 4.5, "WCAG 2.2 asks for 4.5 to 1"


def test_a_phone_shows_the_page_without_scrolling_sideways(open_page):
    page = open_page(f"/campaigns/{NAME}/cycles/1", viewport={"width": 390, "height": 844})
    for name in ("uncertainty", "calibration", "forces"):
        drawn(page, name)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
