"""A dashboard that is looked at all week stays small."""

import subprocess
import sys

import httpx
import psutil
import pytest

from otf_workflows.engine.host import free_port

TOKEN = "-".join(["memory"] * 6)
SERVER = """
import sys
from otf_workflows.dashboard import serve
from otf_workflows.dashboard.settings import DashboardSettings
from otf_workflows.settings import load_site
settings = DashboardSettings(site=load_site(), token=sys.argv[2], port=int(sys.argv[1]))
serve.serve(settings, on_ready=lambda: print("ready", flush=True))
"""
MOST_MiB = 150
GROWTH_MiB = 8


@pytest.mark.slow
def test_memory_is_small_and_does_not_grow_with_visits(site, database, finished, at_work):
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port), TOKEN], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            headers={"authorization": f"Bearer {TOKEN}"},
            timeout=300,
        )
        failed = database.fireworks.find_one({"state": "FIZZLED"})["fw_id"]
        pages = [
            "/", "/jobs", f"/jobs/{failed}", f"/jobs/workflows/{failed}", "/health", "/labels",
            f"/campaigns/{finished}", f"/campaigns/{finished}/cycles/1", "/models",
            f"/campaigns/{finished}/cycles/1/figures/forces.json",
        ]  # fmt: skip

        def visit(times):
            for _ in range(times):
                for path in pages:
                    assert client.get(path).status_code == 200, path
            return psutil.Process(process.pid).memory_info().rss / 1024**2

        warm = visit(8)
        later = visit(16)
        assert later < MOST_MiB
        assert later - warm < GROWTH_MiB
    finally:
        process.terminate()
        assert process.wait(300) in {0, -15}
