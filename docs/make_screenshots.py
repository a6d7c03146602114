"""Write pictures of every page of the dashboard: ``python docs/make_screenshots.py``.

The pages show synthetic campaigns (no number in them was computed) on a real database. Each is
taken in light, in dark, and as on a phone. Needs chromium, playwright and Pillow, as a development
installation has them.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otf_workflows.dashboard.settings import DashboardSettings
from otf_workflows.engine.host import free_port
from otf_workflows.store import Store
from otf_workflows.testing.campaigns import synthetic_campaign
from otf_workflows.testing.launchpad import synthetic_launchpad, synthetic_running_cycle
from otf_workflows.testing.mongo import ephemeral_mongod, fresh_site

if TYPE_CHECKING:
    from otf_workflows.settings import Site

FOLDER = Path(__file__).parent / "images" / "dashboard"
TOKEN = "-".join(["pictures"] * 4)
FINISHED, AT_WORK = "licl-600K", "li3n-superionic"
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}},
    "narrow": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}},
}
TALLEST = 1500
"""Pictures show the top of long pages (pixels)."""
QUALITY = 72
DRAWN_MS = 60_000


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", metavar="PAGE", action="append", help="such as labels; repeatable"
    )
    parser.add_argument("--look", choices=LOOKS, action="append", help="repeatable")
    parser.add_argument("--output", type=Path, default=FOLDER, help="default: %(default)s")
    options = parser.parse_args()
    program = os.environ.get("OTF_CHROMIUM") or shutil.which("chromium")
    if program is None:
        sys.stderr.write("chromium is missing: apt-get install chromium\n")
        return 5
    options.output.mkdir(parents=True, exist_ok=True)
    with ephemeral_mongod() as mongod, tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o700)
        with fresh_site(mongod, Path(folder)) as site:
            pages = fill(site)
            if options.only:
                pages = {name: path for name, path in pages.items() if name in options.only}
            looks = {name: LOOKS[name] for name in options.look or LOOKS}
            take(serve(site), pages, looks, program, options.output)
    return 0


def fill(site: Site) -> dict[str, str]:
    """Write the campaigns; return the address of each page by its name."""
    from otf_workflows.connection import connect

    database = connect(site)
    store = Store(database)
    synthetic_campaign(store, name=FINISHED)
    synthetic_campaign(store, name=AT_WORK, seed=3, n_cycles=3, production=False)
    for name in (FINISHED, AT_WORK):
        synthetic_launchpad(store, name)
    cycle = synthetic_running_cycle(store, AT_WORK)
    failed = database.otf_labels.find_one({"state": "failed", "attempts.1": {"$exists": True}})
    job = database.fireworks.find_one({"state": "FIZZLED"}, sort=[("fw_id", -1)])
    model = database.otf_models.find_one({"campaign": FINISHED, "promoted": True})
    return {
        "glance": "/",
        "campaign": f"/campaigns/{FINISHED}",
        "cycle": f"/campaigns/{FINISHED}/cycles/{cycle - 2}",
        "labels": "/labels?state=failed",
        "label": f"/labels/{failed['key']}",
        "jobs": "/jobs",
        "workflow": f"/jobs/workflows/{job['fw_id']}",
        "job": f"/jobs/{job['fw_id']}",
        "models": "/models",
        "model": f"/models/{model['model_id']}",
        "production": f"/campaigns/{FINISHED}/production",
        "new_campaign": "/new",
        "health": "/health",
    }


def serve(site: Site) -> str:
    """Serve a dashboard from a thread; return its address."""
    import uvicorn

    from otf_workflows.dashboard.app import create_app

    settings = DashboardSettings(site=site, token=TOKEN, port=free_port(), allow_actions=True)
    config = uvicorn.Config(create_app(settings), port=settings.port, log_level="error", ws="none")
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    return f"http://127.0.0.1:{settings.port}"


def take(
    base: str, pages: dict[str, str], looks: dict[str, Any], program: str, folder: Path
) -> None:
    """Take every page in every look."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--enable-unsafe-swiftshader"]
        )
        for look, options in looks.items():
            context = browser.new_context(**options)
            page = context.new_page()
            page.goto(f"{base}/login?token={TOKEN}")
            page.wait_for_url(f"{base}/")
            for name, path in pages.items():
                answer = page.goto(base + path)
                if answer is None or answer.status != 200:
                    sys.exit(f"{path} answers {answer.status if answer else 'nothing'}")
                settle(page)
                height = min(page.evaluate("document.documentElement.scrollHeight"), TALLEST)
                width = options["viewport"]["width"]
                shot = page.screenshot(
                    full_page=True, clip={"x": 0, "y": 0, "width": width, "height": height}
                )
                file = folder / f"{name}-{look}.webp"
                write(shot, file)
                print(f"{file.name}: {file.stat().st_size // 1024} kB")
            context.close()
        browser.close()


def settle(page: Any) -> None:
    """Wait until the page is live and what can be seen of its figures is drawn."""
    page.locator("[data-live-sign].on").wait_for(timeout=DRAWN_MS)
    page.evaluate(f"window.scrollTo(0, {TALLEST - 900})")
    page.wait_for_timeout(400)
    page.evaluate("window.scrollTo(0, 0)")
    page.wait_for_function(
        f"""() => [...document.querySelectorAll('.plot, .structure')]
            .filter(figure => figure.getBoundingClientRect().top < {TALLEST})
            .every(figure => !figure.querySelector('.waiting'))""",
        timeout=DRAWN_MS,
    )
    page.wait_for_timeout(700)


def write(shot: bytes, file: Path) -> None:
    """Write a picture as small as it can be without looking worse."""
    from PIL import Image

    Image.open(io.BytesIO(shot)).convert("RGB").save(file, "WEBP", quality=QUALITY, method=6)


if __name__ == "__main__":
    sys.exit(main())
