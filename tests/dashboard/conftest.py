"""A dashboard on a real database: in this process for most tests, on a port for the others."""

import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from otf_workflows.dashboard.settings import DashboardSettings
from otf_workflows.engine.host import free_port

TOKEN = "a-token-for-tests-of-thirty-characters"
ORIGIN = "http://127.0.0.1"


@pytest.fixture
def store(database):
    from otf_workflows.store import Store

    return Store(database)


@pytest.fixture
def settings(site):
    """A dashboard that only looks."""
    return DashboardSettings(site=site, token=TOKEN, port=8700)


@pytest.fixture
def acting(settings):
    """The same with --allow-actions."""
    return replace(settings, allow_actions=True)


@pytest.fixture
def visit(settings, database):
    """Return a function that opens a client of an application; closed at the end."""
    from starlette.testclient import TestClient

    from otf_workflows.dashboard.app import create_app
    from otf_workflows.dashboard.queries.indexes import ensure_indexes

    ensure_indexes(database)
    opened = []

    def open_client(chosen=settings, *, token=TOKEN, **options):
        client = TestClient(create_app(chosen), base_url=ORIGIN, follow_redirects=False, **options)
        if token:
            client.headers["authorization"] = f"Bearer {token}"
        client.__enter__()
        opened.append(client)
        return client

    yield open_client
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def client(visit):
    """A client that may look."""
    return visit()


@pytest.fixture
def finished(store):
    """The name of a finished synthetic campaign, with its launch pad."""
    from otf_workflows.testing.campaigns import synthetic_campaign
    from otf_workflows.testing.launchpad import synthetic_launchpad

    name = synthetic_campaign(store).name
    synthetic_launchpad(store, name)
    return name


@pytest.fixture
def at_work(store):
    """The name of a synthetic campaign in the middle of its labels."""
    from otf_workflows.testing.campaigns import synthetic_campaign
    from otf_workflows.testing.launchpad import synthetic_launchpad, synthetic_running_cycle

    name = synthetic_campaign(store, name="at-work", n_cycles=2, production=False).name
    synthetic_launchpad(store, name)
    synthetic_running_cycle(store, name)
    return name


@pytest.fixture
def serve(settings, database):
    """Return a function that serves a dashboard on a port until the test ends."""
    import uvicorn

    from otf_workflows.dashboard.app import create_app
    from otf_workflows.dashboard.queries.indexes import ensure_indexes

    ensure_indexes(database)
    running = []

    def start(chosen=settings):
        chosen = replace(chosen, port=free_port())
        app = create_app(chosen)
        config = uvicorn.Config(
            app, host="127.0.0.1", port=chosen.port, log_level="error", ws="none",
            timeout_graceful_shutdown=2,
        )  # fmt: skip
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        running.append((app, server, thread))
        return f"http://127.0.0.1:{chosen.port}"

    yield start
    for app, server, thread in running:
        app.state.live.close()
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def chromium():
    """Debian's Chromium; where it is missing the tests are left out, on CI they fail."""
    program = os.environ.get("OTF_CHROMIUM") or shutil.which("chromium")
    if program is None or not Path(program).exists():
        if os.environ.get("CI"):
            pytest.fail("chromium is missing: apt-get install chromium")
        pytest.skip("chromium is missing: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=program,
            # A container has no graphics card, and its root user no sandbox.
            args=["--no-sandbox", "--enable-unsafe-swiftshader"],
        )
        yield browser
        browser.close()
