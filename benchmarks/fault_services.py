"""Faults that need processes of their own: a killed worker, a killed mongod, a full disk.

Part of ``python benchmarks/faults.py``. The worker is a real one under a real supervisor, the disk
a tmpfs too small for the label; without the right to mount one, that row says so.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psutil

from otf_workflows.campaign import Campaign
from otf_workflows.engine import FireWorksEngine, JobState, Supervisor
from otf_workflows.engine.base import RELABEL
from otf_workflows.flow import relabel
from otf_workflows.labelers.base import Resources
from otf_workflows.ledger import draw_dataset, request
from otf_workflows.reconcile import book_labels
from otf_workflows.settings import Worker
from otf_workflows.store import Store
from otf_workflows.types import LabelState, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from otf_workflows.engine.mongod import EmbeddedMongod
    from otf_workflows.schemas import Frame
    from otf_workflows.settings import Site

PATIENCE_S = 300.0
SLOW_S = 6
"""How long pw.x is held up, so that the fault strikes in the middle of a label (s)."""


@contextmanager
def small_disk(folder: Path, *, kilobytes: int) -> Iterator[Path | None]:
    """Mount a tmpfs for the time of a block; yield None where that is not allowed."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], check=False, capture_output=True)
    try:
        yield folder if mounted.returncode == 0 else None
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", str(folder)], check=True)


def kill_worker(starts: Path, supervisor: Supervisor, mongod: EmbeddedMongod) -> None:  # noqa: ARG001
    """Kill the only worker with kill -9, and wait for its successor."""
    (before,) = supervisor.workers
    os.kill(int(before.rsplit("-", 1)[1]), signal.SIGKILL)
    wait_for(lambda: supervisor.workers and supervisor.workers[0] != before, "a new worker")


def kill_mongod(starts: Path, supervisor: Supervisor, mongod: EmbeddedMongod) -> None:  # noqa: ARG001
    """Kill mongod with kill -9, and start it again while the label is computed."""
    psutil.Process(mongod.status().pid).kill()
    wait_for(lambda: not mongod.is_running(), "mongod to be gone")
    mongod.start()


STRIKES: dict[str, Callable[[Path, Supervisor, EmbeddedMongod], None]] = {
    "kill -9 of the worker": kill_worker,
    "kill -9 of mongod, started again": kill_mongod,
}
N_STARTS = {"kill -9 of the worker": 2, "kill -9 of mongod, started again": 1}
"""How often pw.x has to be started: a lost calculation once more, any other never twice."""


def strike(name: str, site: Site, mongod: EmbeddedMongod, frame: Frame, folder: Path) -> dict:
    """Compute a label with a worker, let something die meanwhile, and return what was recorded."""
    folder.mkdir()
    starts, script = folder / "starts", folder / "pw.x.sh"
    script.write_text(f'#!/bin/bash\necho $$ >> {starts}\nsleep {SLOW_S}\nexec pw.x "$@"\n')
    script.chmod(0o755)
    site = with_worker(site, script)
    recipe = {"code": "espresso", "cutoff_Ry": 24, "kpoints": [2, 2, 2]}
    campaign = Campaign(
        name=f"fault-{folder.name}", structure=frame, potential="toy-lj", labels=recipe
    )
    engine = FireWorksEngine(site)
    store = Store(engine.database)
    (label,), _ = request(store, [frame], campaign=campaign, cycle=0)
    flow = relabel(label, campaign=campaign.name)
    engine.submit(flow, campaign=campaign.name, cycle=0, kind=RELABEL)
    with Supervisor(site, reconcile=False) as supervisor:
        wait_for(starts.exists, "pw.x to start")
        STRIKES[name](starts, supervisor, mongod)
        wait_for(lambda: _ended(engine, campaign.name), "the label")
    book_labels(store, engine, campaign.name)
    booked = store.label(label.key)
    _, frames = draw_dataset(store, campaign=campaign, cycle=0)
    engine.close()
    n_starts = len(starts.read_text().split())
    return {
        "fault": name,
        "recorded": str(booked.cause or booked.state),
        "tries": n_starts,
        "in data set": len(frames),
        "as expected": booked.state is LabelState.DONE
        and len(frames) == 1
        and n_starts == N_STARTS[name],
        "reason": booked.reason or f"pw.x was started {n_starts}×",
    }


def with_worker(site: Site, script: Path) -> Site:
    """Return the site with one DFT worker that runs a script, written where workers find it."""
    import yaml

    changed = site.model_copy(
        update={
            "workers": {Role.DFT: Worker()},
            "codes": {"espresso": Resources(command=str(script))},
        }
    )
    if site.source is None:
        raise RuntimeError("the site has no file")
    site.source.write_text(yaml.safe_dump(changed.model_dump(mode="json")), encoding="utf-8")
    return changed


def wait_for(condition: Callable[[], Any], what: str) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_S:.0f} s in vain for {what}")
        time.sleep(0.2)


def _ended(engine: FireWorksEngine, campaign: str) -> bool:
    jobs = engine.jobs(campaign=campaign)
    return bool(jobs) and all(job.state in {JobState.DONE, JobState.FAILED} for job in jobs)
