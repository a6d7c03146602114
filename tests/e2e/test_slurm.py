"""A campaign whose roles run through real sbatch on two partitions; then the same in trouble."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import yaml

from otf_workflows import Store, load_site
from otf_workflows.campaign import (
    Budget,
    Campaign,
    Exploration,
    Seeding,
    SelectionRules,
    TrainingRules,
)
from otf_workflows.control import submit
from otf_workflows.engine.queue_jobs import BatchState, QueueJobs
from otf_workflows.schemas import Frame
from otf_workflows.settings import Queue
from otf_workflows.types import CampaignState, LabelState, Role

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

PATIENCE_S = 900


@pytest.fixture
def campaign():
    """Two atoms of silicon, labelled by pw.x in a few seconds each."""
    from ase.build import bulk

    return Campaign(
        name="si",
        structure=Frame.from_atoms(bulk("Si", a=5.47)),
        tolerance_eV_A=0.05,
        labels={"code": "espresso", "cutoff_Ry": 16, "kpoints": [2, 2, 2]},
        seeding=Seeding(n_frames=2),
        exploration=Exploration(temperatures_K=[600], steps_per_cycle=40, check_every=10),
        selection=SelectionRules(labels_per_cycle=2, audit_per_cycle=1, min_labels=1),
        training=TrainingRules(epochs=2),
        budget=Budget(max_cycles=1, max_labels=20),
        production=None,
    )


@pytest.fixture
def queued_site(site, slurm):
    """The site with all its roles in queues: labels one by one, everything else in pilots."""
    common = {"walltime_s": 900, "max_idle_s": 20, "environment": ["export OMP_NUM_THREADS=1"]}
    cpu = {**common, "partition": "dft", "memory_MiB": 1500, "max_memory_MiB": 3000}
    gpu = {**common, "partition": "gpu", "memory_MiB": 3000, "max_jobs": 1}
    queues = {
        Role.CONTROL: Queue(**{**cpu, "max_idle_s": 60}, max_jobs=1),
        Role.DFT: Queue(**cpu, max_jobs=3, packing="one"),
        Role.MD: Queue(**gpu, gpus=1),
        Role.TRAIN: Queue(**gpu),
    }
    changed = site.model_copy(update={"queues": queues})
    site.source.write_text(yaml.safe_dump(changed.model_dump(mode="json")), encoding="utf-8")
    return load_site()


class Launch:
    """``otf launch`` as a process."""

    def __init__(self, site):
        self.log = site.source.parent / "launch.log"
        self.process = None
        self.start()

    def start(self):
        command = [sys.executable, "-m", "otf_workflows.cli.main", "launch"]
        with self.log.open("a", encoding="utf-8") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture
def launch(queued_site):
    launched = Launch(queued_site)
    yield launched
    launched.end()


def wait_for(what, condition, launch=None):
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        if launch is not None and launch.process.poll() is not None:
            pytest.fail(f"otf launch ended during {what}:\n{launch.log.read_text()}")
        time.sleep(0.5)
    said = launch.log.read_text() if launch else ""
    return pytest.fail(f"waited {PATIENCE_S} s in vain for {what}\n{said}")


def assert_each_label_was_computed_once(database):
    outputs = database.jobflow_outputs.aggregate(
        [
            {"$match": {"output.key": {"$exists": True}}},
            {"$group": {"_id": "$output.key", "n": {"$sum": 1}}},
        ]
    )
    assert {row["n"] for row in outputs} == {1}
    done = {"spec.stage": "label", "state": "COMPLETED", "name": {"$ne": "store_inputs"}}
    jobs = Counter(item["spec"]["label_key"] for item in database.fireworks.find(done))
    assert set(jobs.values()) == {1}


def test_a_campaign_runs_through_slurm_on_two_partitions(campaign, queued_site, database, launch):
    store, book = Store(database), QueueJobs(database)
    submit(campaign, store)
    wait_for("the campaign", lambda: store.campaign("si").state.terminal, launch)

    document = store.campaign("si")
    assert document.state is CampaignState.BUDGET_EXHAUSTED, document.reason
    counts = store.label_counts("si")
    assert counts[LabelState.DONE] == sum(counts.values()) >= 3
    assert_each_label_was_computed_once(database)

    jobs = book.all()
    assert {job.role for job in jobs} == set(Role)
    nodes = {role: {job.node for job in jobs if job.role is role and job.workers} for role in Role}
    assert all(nodes.values())
    alone = [job for job in jobs if job.role is Role.DFT]
    assert all(job.fw_id is not None for job in alone)
    assert len(alone) == counts[LabelState.DONE]
    for label in store.labels(campaign="si"):
        assert label.attempts[-1].queue_id in {job.job_id for job in alone}

    wait_for("idle pilots to end", lambda: all(job.state is BatchState.ENDED for job in book.all()))
    assert not [job.sentence for job in book.all() if job.cause is not None]
    assert not database.launches.count_documents({"state": {"$in": ["RUNNING", "RESERVED"]}})
    assert launch.end() == 0
    assert os.path.getsize(launch.log) > 0  # noqa: PTH202
