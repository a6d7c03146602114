"""A campaign whose roles run through real sbatch on two partitions; then the same in trouble."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import psutil
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
from otf_workflows.control import plan_rerun, rerun, resume, submit
from otf_workflows.engine import FireWorksEngine
from otf_workflows.engine.queues.jobs import BatchState, QueueJobs
from otf_workflows.schemas import Frame
from otf_workflows.settings import Queue
from otf_workflows.types import CampaignState, FailureCause, LabelState, Role

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]

PATIENCE_S = 1800


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
        exploration=Exploration(
            temperatures_K=[500, 600], walkers_per_job=2, steps_per_cycle=40, check_every=10
        ),
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
def launch(queued_site, request):
    if "traps" in request.fixturenames:
        request.getfixturevalue("traps")
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


# -- the same in trouble -------------------------------------------------------------------------

HOG = "import time; held = bytearray(b'x') * (1200 * 2**20); time.sleep(120)"


@pytest.fixture
def traps(queued_site, tmp_path):
    """A folder: a file 'hog', 'hang' or 'wait' in it is met by the next label, once.

    It uses too much memory, too much time, or waits to be cancelled.
    """
    program = tmp_path / "pw"
    program.write_text(
        "#!/bin/sh\n"
        f"cd_back=$PWD; cd {tmp_path}\n"
        f'mv hog hog.sprung 2>/dev/null && {sys.executable} -c "{HOG}"\n'
        "mv hang hang.sprung 2>/dev/null && sleep 600\n"
        "mv wait wait.sprung 2>/dev/null && echo $SLURM_JOB_ID > wait.job\n"
        # a further try in the job that is being cancelled must not come through
        '[ "$(cat wait.job 2>/dev/null)" = "$SLURM_JOB_ID" ] && sleep 600\n'
        'cd "$cd_back"; exec pw.x "$@"\n'
    )
    program.chmod(0o755)
    queues = dict(queued_site.queues)
    changes = {"memory_MiB": 1000, "max_memory_MiB": 2000, "walltime_s": 180, "max_walltime_s": 600}
    queues[Role.DFT] = queues[Role.DFT].model_copy(update=changes)
    codes = {"espresso": {"command": str(program)}}
    content = queued_site.model_copy(update={"queues": queues}).model_dump(mode="json")
    queued_site.source.write_text(yaml.safe_dump({**content, "codes": codes}), encoding="utf-8")
    return tmp_path


class Trouble:
    """What happens to clusters, done on purpose at moments drawn from a seeded generator."""

    def __init__(self, *, slurm, mongod, database, launch, traps):
        self.slurm, self.mongod, self.launch, self.traps = slurm, mongod, launch, traps
        self.book, self.database = QueueJobs(database), database
        self.rng = random.Random(4)

    def moment(self, most_s):
        time.sleep(self.rng.uniform(0, most_s))

    def at_work(self, role):
        """The batch jobs of a role that run one of our jobs just now."""
        launches = self.database.launches.find({"state": "RUNNING"}, {"fworker.name": 1})
        names = {item["fworker"]["name"] for item in launches}
        jobs = [job for job in self.book.all() if job.state is BatchState.RUNNING]
        return [j for j in jobs if j.role is role and names & set(j.workers)]

    def busy(self, role):
        """The first batch job of a role that is at work."""

        def found():
            campaign = Store(self.database).campaign("si")
            assert not campaign.state.terminal, campaign.reason
            return self.at_work(role)

        return wait_for(f"a busy {role} job", found, self.launch)[0]

    def node_set_down(self, role, node):
        self.busy(role)
        self.moment(3)
        self.slurm.node_down(node)
        self.moment(5)
        self.slurm.node_up(node)

    def cancelled(self, job_id):
        """Cancel a batch job as a person would; return the cause that is written down."""
        self.slurm.run("scancel", job_id)
        job = next(job for job in self.book.all() if job.job_id == job_id)
        return wait_for(
            f"the cause of {job_id}", lambda: self.book.get(job.token).cause, self.launch
        )

    def training_cancelled(self):
        return self.cancelled(self.busy(Role.TRAIN).job_id)

    def label_cancelled(self):
        self.label_takes_too_much("wait")
        note = self.traps / "wait.job"
        wait_for("its id", lambda: note.exists() and note.read_text().strip(), self.launch)
        return self.cancelled(note.read_text().strip())

    def label_takes_too_much(self, trap):
        (self.traps / trap).touch()
        wait_for(f"'{trap}' to be met", (self.traps / f"{trap}.sprung").exists, self.launch)

    def controller_restarted(self):
        self.slurm.stop_controller()
        self.moment(15)
        self.slurm.restart_controller()

    def launcher_killed(self):
        self.launch.kill()
        self.moment(10)
        self.launch.start()

    def database_killed(self):
        server = psutil.Process(self.mongod.status().pid)
        server.kill()
        server.wait()
        self.moment(10)
        self.mongod.start()


def rerun_failed_labels(store, engine, launch):
    """Do what ``otf labels rerun --cause killed`` does, and wait for the labels."""
    if store.labels(campaign="si", states=[LabelState.FAILED]):
        rerun(plan_rerun(store, engine, campaign="si"), store, engine)
    done = {LabelState.DONE}
    wait_for("all labels", lambda: {x.state for x in store.labels(campaign="si")} == done, launch)


def help_if_stalled(store, engine, launch):
    """Do what a campaign says that stalled for want of labels; return whether it did stall."""
    document = store.campaign("si")
    if document.state is not CampaignState.STALLED:
        return False
    assert "otf labels rerun" in document.reason
    rerun_failed_labels(store, engine, launch)
    resume("si", store, engine)
    return True


def finish(store, engine, launch):
    """Wait for the end; a campaign that stalls once is helped."""
    for _ in range(2):
        wait_for("the campaign", lambda: store.campaign("si").state.terminal, launch)
        if not help_if_stalled(store, engine, launch):
            break
    document = store.campaign("si")
    assert document.state is CampaignState.BUDGET_EXHAUSTED, document.reason


@pytest.fixture
def trouble(traps, slurm, mongod, launch, database):
    return Trouble(slurm=slurm, mongod=mongod, database=database, launch=launch, traps=traps)


@pytest.mark.alone
@pytest.mark.timeout(5400)
def test_a_campaign_survives_what_happens_to_clusters_and_every_incident_has_a_cause(
    campaign, trouble, launch, database
):
    store = Store(database)
    engine = FireWorksEngine(load_site())
    rules = campaign.exploration.model_copy(update={"steps_per_cycle": 80})
    submit(
        campaign.model_copy(update={"exploration": rules, "budget": Budget(max_cycles=2)}), store
    )

    trouble.node_set_down(Role.MD, "gpu1")
    trouble.launcher_killed()
    trouble.label_takes_too_much("hog")
    trouble.label_takes_too_much("hang")
    trouble.database_killed()
    assert trouble.training_cancelled() is FailureCause.KILLED
    wait_for("the campaign to say so", lambda: store.campaign("si").state.terminal, launch)
    assert "CANCELLED" in store.campaign("si").reason
    resume("si", store, engine)
    trouble.controller_restarted()
    assert trouble.label_cancelled() is FailureCause.KILLED
    # One label of few is too many to do without: the campaign stalls, unless the others suffice.
    wait_for(
        "training, or the campaign to say what is missing",
        lambda: store.campaign("si").state.terminal or trouble.at_work(Role.TRAIN),
        launch,
    )
    help_if_stalled(store, engine, launch)
    trouble.node_set_down(Role.TRAIN, "gpu1")
    finish(store, engine, launch)
    failed = store.labels(campaign="si", states=[LabelState.FAILED])
    assert {label.cause for label in failed} <= {FailureCause.KILLED}
    rerun_failed_labels(store, engine, launch)
    assert_each_label_was_computed_once(database)
    tries = [attempt for label in store.labels(campaign="si") for attempt in label.tries]
    causes = {attempt.cause for attempt in tries}
    assert {FailureCause.MEMORY, FailureCause.WALLTIME, FailureCause.KILLED} <= causes
    assert all(attempt.message and attempt.queue_id for attempt in tries if attempt.cause)
    ended = [job for job in trouble.book.all() if job.state is BatchState.ENDED]
    assert FailureCause.NODE in {job.cause for job in ended}
    lost = [event for event in store.events("si") if "was lost" in event.what]
    assert {event.details["cause"] for event in lost} >= {"node", "killed", "memory", "walltime"}
    assert not [event for event in lost if event.details["cause"] == "unknown"], lost
    engine.close()
