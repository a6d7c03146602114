"""How fast the dashboard answers with 10,000 fireworks and 100,000 labels, and what it takes.

    python benchmarks/dashboard.py [--labels 100000] [--fireworks 10000] [--repeats 30]

A real mongod is filled with synthetic documents; a real server process answers one request after
the other, each page in turn, while one page is open and a campaign is at work (every second a label
changes), so that little is answered from memory. Both processes share this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path

import httpx
import psutil

from otf_workflows.connection import connect
from otf_workflows.dashboard.queries.indexes import ensure_indexes
from otf_workflows.engine.host import free_port
from otf_workflows.engine.launchpad import launchpad
from otf_workflows.schemas import now
from otf_workflows.store import Store
from otf_workflows.testing.campaigns import synthetic_campaign
from otf_workflows.testing.launchpad import (
    SyntheticLaunchPad,
    synthetic_running_cycle,
)
from otf_workflows.testing.mongo import ephemeral_mongod, fresh_site
from otf_workflows.types import LabelState

TOKEN = "-".join(["benchmark"] * 4)
SERVER = """
import sys
from pathlib import Path
from otf_workflows.dashboard import serve
from otf_workflows.dashboard.settings import DashboardSettings
from otf_workflows.settings import load_site
site = load_site(Path(sys.argv[1]))
settings = DashboardSettings(
    site=site, token=sys.argv[3], port=int(sys.argv[2]), allow_actions=True
)
serve.serve(settings, on_ready=lambda: print("ready", flush=True))
"""
N_CAMPAIGNS = 46
NAMES = [f"campaign-{number}" for number in range(N_CAMPAIGNS)]
"""What a group has after some years. The first has five times more labels than the others, the
last one is at work."""
LABELS_PER_CYCLE = 100


def fill(store: Store, *, n_labels: int, n_fireworks: int) -> None:
    """Write campaigns, then multiply their cycles, labels and workflows."""
    for number, name in enumerate(NAMES):
        last = name == NAMES[-1]
        synthetic_campaign(
            store, name=name, seed=number, n_cycles=3 if last else 4, production=not last
        )
    synthetic_running_cycle(store, NAMES[-1])
    each = n_labels // (N_CAMPAIGNS + 4)
    for name in NAMES:
        multiply(store, name, n_labels=each * (5 if name == NAMES[0] else 1))
    pad = SyntheticLaunchPad(store.database)
    left, cycle = n_fireworks, 10
    while left > 0:
        keys = [(f"{cycle:04x}{i:060x}", LabelState.DONE) for i in range(LABELS_PER_CYCLE)]
        keys[0] = (keys[0][0], LabelState.FAILED)
        started = now() - timedelta(hours=cycle)
        pad.cycle(NAMES[cycle % (N_CAMPAIGNS - 1)], cycle, keys, started=started)
        left -= len(keys) + 7
        cycle += 1
    pad.write()


def multiply(store: Store, name: str, *, n_labels: int) -> None:
    """Give a finished campaign more cycles with more labels, like those it has."""
    labels, cycles = store.database.otf_labels, store.database.otf_cycles
    examples = list(labels.find({"wanted_by.campaign": name}, {"_id": 0}))
    if name != NAMES[-1]:
        example = cycles.find_one({"campaign": name, "cycle": 3}, {"_id": 0})
        first, n_cycles = 4, n_labels // LABELS_PER_CYCLE
        cycles.update_one({"campaign": name, "kind": "production"}, {"$set": {"cycle": n_cycles}})
        cycles.insert_many([{**example, "cycle": number} for number in range(first, n_cycles)])
    made = []
    for number in range(n_labels - len(examples)):
        label = dict(examples[number % len(examples)])
        label["key"] = f"{number:08x}{NAMES.index(name):04x}{label['key'][12:]}"
        label["updated"] = now() - timedelta(seconds=number * 30)
        cycle = number // LABELS_PER_CYCLE if name != NAMES[-1] else number % 3
        label["wanted_by"] = [{**label["wanted_by"][0], "cycle": cycle}]
        if label["state"] in {"running", "pending"}:
            label["state"] = "done"
        made.append(label)
    labels.insert_many(made)


def disturb(store: Store, stop: threading.Event) -> None:
    """Let a label of the campaign at work change every second."""
    query = {"wanted_by": {"$elemMatch": {"campaign": NAMES[-1], "cycle": 3}}}
    key = store.database.otf_labels.find_one(query)["key"]
    while not stop.wait(1.0):
        store.database.otf_labels.update_one({"key": key}, {"$set": {"updated": now()}})
        store.database.fireworks.update_one(
            {"spec.campaign": NAMES[-1]}, {"$set": {"updated_on": now().isoformat()}}
        )


def addresses(client: httpx.Client, store: Store) -> list[str]:
    """Return every page, with filters and late pages of lists, and the figures they load."""
    big, busy = NAMES[0], NAMES[-1]
    fizzled = store.database.fireworks.find_one({"state": "FIZZLED"})["fw_id"]
    huge = store.database.fireworks.find_one({}, sort=[("fw_id", -1)])["fw_id"]
    label = store.database.otf_labels.find_one({"state": "failed"})["key"]
    model = store.database.otf_models.find_one({"campaign": big})["model_id"]
    pages = [
        "/", "/jobs", "/jobs?state=failed", "/jobs?role=dft&state=done", "/jobs?page=150",
        f"/jobs?campaign={NAMES[1]}", "/jobs?text=finetune", "/jobs/workflows",
        f"/jobs/workflows/{huge}", f"/jobs/{fizzled}", "/health",
        "/campaigns", f"/campaigns/{big}", f"/campaigns/{busy}", f"/campaigns/{big}/cycles/1",
        "/labels", "/labels?state=failed", f"/labels?campaign={big}",
        f"/labels?campaign={big}&state=failed",
        f"/labels/{label}", "/models", f"/models/{model}", "/production",
    ]  # fmt: skip
    for path in list(pages):
        text = client.get(path).text
        pages += re.findall(r'data-figure="([^"]+)"', text)[:4]
        pages += re.findall(r'data-structure="([^"]+)"', text)[:1]
    pages = [path.replace("&amp;", "&") for path in pages]
    return [path for path in dict.fromkeys(pages) if client.get(path).status_code == 200]


def watch(url: str, stop: threading.Event) -> None:
    """Keep a page open."""
    with (
        contextlib.suppress(httpx.HTTPError),
        httpx.stream("GET", f"{url}/events", headers=headers(), timeout=3600) as stream,
    ):
        for _ in stream.iter_lines():
            if stop.is_set():
                return


def headers() -> dict[str, str]:
    return {"authorization": f"Bearer {TOKEN}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=int, default=100_000)
    parser.add_argument("--fireworks", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--minutes", type=float, default=0.0, help="go on for so long")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    options = parser.parse_args()
    with ephemeral_mongod() as mongod, tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o700)
        with fresh_site(mongod, Path(folder)) as site:
            database = connect(site)
            store = Store(database)
            began = time.perf_counter()
            launchpad(site)  # with FireWorks' own indexes
            fill(store, n_labels=options.labels, n_fireworks=options.fireworks)
            ensure_indexes(database)
            print(
                f"{database.otf_labels.estimated_document_count()} labels, "
                f"{database.fireworks.estimated_document_count()} fireworks, "
                f"written in {time.perf_counter() - began:.0f} s"
            )
            pid = mongod.status().pid
            measure(store, Path(folder) / "site.yaml", pid, options)


def measure(store: Store, site_file: Path, mongod_pid: int, options: argparse.Namespace) -> None:
    port = free_port()
    command = [sys.executable, "-c", SERVER, str(site_file), str(port), TOKEN]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    stop = threading.Event()
    try:
        began = time.perf_counter()
        server.stdout.readline()
        print(f"ready after {time.perf_counter() - began:.1f} s")
        url = f"http://127.0.0.1:{port}"
        process = psutil.Process(server.pid)
        memory = [process.memory_info().rss / 1024**2]
        threads = [
            threading.Thread(target=watch, args=(url, stop), daemon=True),
            threading.Thread(target=disturb, args=(store, stop), daemon=True),
        ]
        for thread in threads:
            thread.start()
        client = httpx.Client(base_url=url, headers=headers(), timeout=60)
        pages = addresses(client, store)
        times: dict[str, list[float]] = {path: [] for path in pages}
        work: dict[str, list[float]] = {path: [] for path in pages}
        mongod = psutil.Process(mongod_pid)
        until = time.monotonic() + 60 * options.minutes
        rounds = 0
        while rounds < options.repeats or time.monotonic() < until:
            for path in pages:
                before = cpu_ms(process) + cpu_ms(mongod)
                start = time.perf_counter()
                client.get(path).raise_for_status()
                times[path].append(1000 * (time.perf_counter() - start))
                work[path].append(cpu_ms(process) + cpu_ms(mongod) - before)
            rounds += 1
            memory.append(process.memory_info().rss / 1024**2)
        report(times, work, memory, options.json)
    finally:
        stop.set()
        server.terminate()
        server.wait(20)


def cpu_ms(process: psutil.Process) -> float:
    """Return the processor time that a process has taken so far (ms)."""
    spent = process.cpu_times()
    return 1000 * (spent.user + spent.system)


def report(
    times: dict[str, list[float]],
    work: dict[str, list[float]],
    memory: list[float],
    file: Path | None,
) -> None:
    # The processor time of server and mongod is what remains on a machine with nothing else to do.
    print(f"{'p50 ms':>8} {'p95 ms':>8} {'CPU ms':>8}  page")
    rows = {}
    for path, taken in times.items():
        p50, p95 = statistics.median(taken), statistics.quantiles(taken, n=20)[18]
        cpu = statistics.fmean(work[path])
        rows[path] = {"p50_ms": round(p50, 1), "p95_ms": round(p95, 1), "cpu_ms": round(cpu, 1)}
        print(f"{p50:8.1f} {p95:8.1f} {cpu:8.1f}  {path}")
    everything = [value for taken in times.values() for value in taken]
    print(f"all GETs: p95 {statistics.quantiles(everything, n=20)[18]:.0f} ms")
    print(
        f"memory: {memory[0]:.0f} MiB at the start, {memory[-1]:.0f} at the end, "
        f"{max(memory):.0f} at most"
    )
    if file:
        file.write_text(json.dumps({"pages": rows, "memory_MiB": memory}, indent=1))


if __name__ == "__main__":
    main()
