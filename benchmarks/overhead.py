"""What orchestration costs per label: from ready to running to recorded, the science left out.

Run it as ``python benchmarks/overhead.py [N ...] [--per-cycle 50]``; by default 10, 100 and 1000
label jobs in one campaign (10000 takes some ten minutes). Labels come from a Lennard-Jones
calculator, so that all the time is ours; a private mongod is started. One worker runs all jobs in
this process. ``--idle`` measures instead how long real dft workers stand idle while labels wait,
with labels that take ``--label-s`` seconds.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import bson
import numpy as np
from jobflow import Flow
from pymongo import monitoring

from otf_workflows.campaign import Campaign
from otf_workflows.control import submit
from otf_workflows.engine import FireWorksEngine, Supervisor
from otf_workflows.engine.records import utc
from otf_workflows.engine.worker import Worker
from otf_workflows.jobs.label import label as label_job
from otf_workflows.ledger import request
from otf_workflows.reconcile import book_labels
from otf_workflows.schemas import CycleDocument, Frame
from otf_workflows.settings import Worker as WorkerSettings
from otf_workflows.store import Store
from otf_workflows.testing.mongo import ephemeral_mongod, fresh_site
from otf_workflows.types import CycleState, LabelState, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otf_workflows.settings import Site

NAME = "overhead"


class Journeys(monitoring.CommandListener):
    """Counts what is asked of the database, by whatever thread of this process."""

    n = 0

    def started(self, _event: monitoring.CommandStartedEvent) -> None:
        """Count one."""
        self.n += 1

    def succeeded(self, _event: monitoring.CommandSucceededEvent) -> None:
        """Nothing more to count."""

    def failed(self, _event: monitoring.CommandFailedEvent) -> None:
        """Nothing more to count."""


TARGET_MS = 100.0
SLOW = "otf_workflows.testing.slow.SlowCalculator"


def structures(n: int) -> list[Frame]:
    """Return ``n`` rattled copper cells of eight atoms."""
    from ase.build import bulk

    base = bulk("Cu", cubic=True).repeat((2, 1, 1))
    rng = np.random.default_rng(n)
    frames = []
    for _ in range(n):
        atoms = base.copy()
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        frames.append(Frame.from_atoms(atoms, features=rng.normal(size=64).tolist()))
    return frames


def campaign(frame: Frame, recipe: dict[str, object]) -> Campaign:
    """Return a campaign that asks for labels by a recipe."""
    return Campaign(name=NAME, structure=frame, potential="toy-lj", labels=recipe)


def ask(
    store: Store, engine: FireWorksEngine, frames: Sequence[Frame], asked: Campaign, cycle: int
) -> None:
    """Open a cycle and submit the label jobs of its frames as one workflow."""
    _, labels = request(store, frames, campaign=asked, cycle=cycle)
    jobs = []
    for label in labels:
        job = label_job(label.frame, key=label.key, recipe=label.recipe)
        job.metadata["label_key"] = label.key
        jobs.append(job)
    store.open_cycle(
        CycleDocument(campaign=NAME, cycle=cycle, state=CycleState.RUNNING, incumbent_id="toy-lj")
    )
    engine.submit(
        Flow(jobs, name=f"{NAME} cycle {cycle}"), campaign=NAME, cycle=cycle, kind="cycle"
    )


def measure(site: Site, n: int, per_cycle: int, journeys: Journeys) -> dict[str, float]:
    """Return seconds per label of each step, and bytes per label, for ``n`` labels."""
    engine = FireWorksEngine(site)
    store = Store(engine.database)
    frames = structures(n)
    asked = campaign(frames[0], {"code": "ase", "calculator": "lj"})
    submit(asked, store)
    worker = Worker(site, Role.DFT, reconcile=False)
    spent = dict.fromkeys(("ask", "run", "book"), 0.0)
    last: dict[str, float] = {}

    def timed(name: str, action: Callable[[], object]) -> None:
        begun = time.perf_counter()
        action()
        last[name] = time.perf_counter() - begun
        spent[name] += last[name]

    empty, cpu_s, journeys.n = _bytes(engine), time.process_time(), 0
    for cycle, start in enumerate(range(0, n, per_cycle)):
        batch = frames[start : start + per_cycle]
        timed("ask", lambda b=batch, c=cycle: ask(store, engine, b, asked, c))
        timed("run", lambda: _drain(worker))
        timed("book", lambda: book_labels(store, engine, NAME))
    cpu_s, n_journeys = time.process_time() - cpu_s, journeys.n
    counts = store.label_counts(NAME)
    if counts[LabelState.DONE] != n:
        raise SystemExit(f"{counts[LabelState.DONE]} labels are done of {n}")
    science = sum(
        attempt.seconds or 0.0
        for label in store.labels(campaign=NAME)
        for attempt in label.attempts
    )
    found = {f"{name} (ms)": 1000 * value / n for name, value in spent.items()}
    found["science (ms)"] = 1000 * science / n
    found["overhead (ms)"] = 1000 * (sum(spent.values()) - science) / n
    # On a busy machine this says more than the clock; the database's share is not in it.
    found["CPU of Python (ms)"] = 1000 * cpu_s / n
    found["journeys to the database"] = n_journeys / n
    in_last = min(per_cycle, n - (n - 1) // per_cycle * per_cycle)
    found["  of the last cycle"] = 1000 * sum(last.values()) / in_last - found["science (ms)"]
    begun = time.perf_counter()
    book_labels(store, engine, NAME)
    found["idle look (ms)"] = 1000 * (time.perf_counter() - begun)
    found["database (kB)"] = (_bytes(engine) - empty) / n / 1000
    document = engine.database.otf_cycles.find_one({})
    found["cycle (kB)"] = len(bson.encode(document)) / 1000
    worker.engine.close()
    engine.close()
    return found


def measure_idle(site: Site, n: int, label_s: float, n_workers: int) -> dict[str, float]:
    """Return how real workers spent their time while labels waited for them."""
    site = site.model_copy(update={"workers": {Role.DFT: WorkerSettings(count=n_workers)}})
    engine = FireWorksEngine(site)
    store = Store(engine.database)
    frames = structures(n)
    recipe = {"code": "ase", "calculator": SLOW, "kwargs": {"seconds": label_s}}
    asked = campaign(frames[0], recipe)
    submit(asked, store)
    ask(store, engine, frames, asked, 0)
    with Supervisor(site, reconcile=False):
        while any(str(job.state) != "done" for job in engine.jobs(campaign=NAME)):
            time.sleep(0.5)
    jobs = engine.jobs(campaign=NAME)
    starts = sorted(utc(job.started) for job in jobs)
    # Labels could have been ready until the last one was taken; workers come up first.
    span_s = (starts[-1] - starts[0]).total_seconds()
    busy_s = sum(
        min(label_s, max((starts[-1] - start).total_seconds(), 0.0)) for start in starts[:-1]
    )
    engine.close()
    share = 1 - busy_s / (span_s * n_workers) if span_s else 0.0
    return {"span (s)": span_s, "workers": n_workers, "label (s)": label_s, "idle share": share}


def _drain(worker: Worker) -> None:
    while worker.run_one():
        pass


def _bytes(engine: FireWorksEngine) -> float:
    stats = engine.database.command("dbStats")
    return float(stats["dataSize"] + stats["indexSize"])


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", type=int, default=[10, 100, 1000])
    parser.add_argument("--per-cycle", type=int, default=50, help="labels of one workflow")
    parser.add_argument("--idle", action="store_true", help="measure idle workers instead")
    parser.add_argument("--label-s", type=float, default=1.0, help="with --idle: time of a label")
    parser.add_argument("--workers", type=int, default=2, help="with --idle: dft workers")
    options = parser.parse_args()
    columns = []
    journeys = Journeys()
    monitoring.register(journeys)
    with ephemeral_mongod() as mongod:
        for n in options.sizes:
            with tempfile.TemporaryDirectory() as name, fresh_site(mongod, Path(name)) as site:
                if options.idle:
                    columns.append(measure_idle(site, n, options.label_s, options.workers))
                else:
                    columns.append(measure(site, n, options.per_cycle, journeys))
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; per label:")
    print(f"{'':26}" + "".join(f"{n:>10}" for n in options.sizes) + f"{'growth':>10}")
    for step in columns[0]:
        cells = "".join(f"{column[step]:10.2f}" for column in columns)
        growth = columns[-1][step] / columns[0][step] if columns[0][step] else float("nan")
        print(f"{step:26}{cells}{growth:9.1f}x")
    if not options.idle:
        worst = max(column["overhead (ms)"] for column in columns)
        met = "met" if worst <= TARGET_MS else "NOT met"
        print(f"target of {TARGET_MS:.0f} ms per label: {met} ({worst:.0f} ms)")


if __name__ == "__main__":
    main()
