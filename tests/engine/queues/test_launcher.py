"""The launcher against a batch system in memory: nothing is lost, doubled or left unexplained."""

from datetime import timedelta

import pytest
from fireworks import FWorker
from jobflow import Flow

from otf_workflows.engine import FireWorksEngine, JobState
from otf_workflows.engine.identity import WorkerName
from otf_workflows.engine.queues import judge
from otf_workflows.engine.queues.jobs import BatchState, QueueJobs
from otf_workflows.engine.queues.launcher import Launcher
from otf_workflows.engine.queues.system import Fate
from otf_workflows.errors import DatabaseError
from otf_workflows.settings import Queue
from otf_workflows.store import Store
from otf_workflows.testing.jobs import collect, report, staged
from otf_workflows.testing.queue import FakeQueue
from otf_workflows.types import FailureCause, Role, Stage

KEY = {"campaign": "c", "cycle": 0, "kind": "cycle"}
WORKER = WorkerName(Role.DFT, "cpu1", 4711)


@pytest.fixture
def queue():
    return FakeQueue()


@pytest.fixture
def book(database, queue):
    made = QueueJobs(database)
    made.queue = queue
    return made


@pytest.fixture
def make(site, engine, queue, monkeypatch):
    """Make a launcher with these settings of the dft queue; each is a new process, so to speak."""

    def make(**fields):
        section = Queue(**{"walltime_s": 600, "max_jobs": 2, **fields})
        queued = site.model_copy(update={"queues": {Role.DFT: section}})
        engine.site = queued
        return Launcher(queued, engine, systems={Role.DFT: queue})

    monkeypatch.setattr("otf_workflows.engine.queues.submitter.STILLBORN_PAUSE_S", 0.0)
    return make


@pytest.fixture(autouse=True)
def two_labels(engine):
    labels = [staged(report(), Stage.LABEL, label_key=key) for key in ("a", "b")]
    engine.submit(Flow([*labels, staged(collect([x.output for x in labels]), Stage.GATHER)]), **KEY)


def states(engine):
    return sorted(str(job.state) for job in engine.jobs(campaign="c") if job.name == "report")


def begin(engine, book, batch, worker=WORKER):
    """Play the worker of a batch job up to the middle of its label."""
    assert book.begin(batch.token, worker=str(worker), job_id=batch.job_id, node=worker.host)
    fworker = FWorker(name=str(worker), category="dft")
    return engine.launchpad.checkout_fw(fworker, "/nowhere", batch.fw_id)


def open_jobs(book, launcher):
    return book.open(launcher.home)


def test_pilots_are_submitted_for_ready_jobs_and_no_more_than_allowed(make, queue, engine):
    launcher = make(max_jobs=1, partition="cpu")
    (sentence,) = launcher.look()
    assert "a pilot, 600 s" in sentence
    assert launcher.look() == []
    assert len(queue.listed) == 1
    command = queue.asked[0]["command"]
    assert "--token" in command
    assert "--firework" not in command
    assert states(engine) == ["ready", "ready"]


def test_one_batch_job_per_label_reserves_it(make, queue, engine, book):
    launcher = make(packing="one")
    assert len(launcher.look()) == 2
    firework = {
        d["fw_id"]: d["state"] for d in engine.launchpad.fireworks.find({}) if d["name"] == "report"
    }
    assert set(firework.values()) == {"RESERVED"}
    assert {str(i) for i in firework} == {
        asked["command"][asked["command"].index("--firework") + 1] for asked in queue.asked
    }
    first = open_jobs(book, launcher)[0]
    begin(engine, book, first)
    launches = list(engine.launchpad.launches.find({"fw_id": first.fw_id}))
    assert [launch["state"] for launch in launches] == ["RUNNING"]


@pytest.mark.parametrize("packing", ["pilot", "one"])
def test_nothing_is_submitted_twice_after_a_kill_between_sbatch_and_its_answer(
    make, queue, book, packing
):
    queue.lost_answers = 1
    first = make(packing=packing, max_jobs=1)
    assert any("did not answer" in sentence for sentence in first.look())
    (batch,) = open_jobs(book, first)
    assert batch.state is BatchState.SUBMITTING
    second = make(packing=packing, max_jobs=1)  # the first one was killed
    assert any("found in the queue" in sentence for sentence in second.look())
    (batch,) = open_jobs(book, second)
    assert (batch.state, batch.job_id) == (BatchState.QUEUED, "1")
    assert len(queue.listed) == 1


def test_a_submission_that_never_arrived_is_given_up_and_its_job_released(
    make, queue, engine, book, monkeypatch
):
    queue.trouble = {"submit"}
    launcher = make(packing="one", max_jobs=1)
    launcher.look()
    assert states(engine) == ["ready", "ready"]  # one of them is reserved, which is not running
    assert engine.launchpad.fireworks.count_documents({"state": "RESERVED"}) == 1
    monkeypatch.setattr(judge, "GRACE", timedelta(0))
    assert any("never reached the queue" in sentence for sentence in launcher.look())
    assert engine.launchpad.fireworks.count_documents({"state": "RESERVED"}) == 0
    assert open_jobs(book, launcher) == []


def test_what_arrives_after_it_was_given_up_is_cancelled_and_its_worker_refused(
    make, queue, book, monkeypatch
):
    queue.lost_answers = 1
    launcher = make(max_jobs=1)
    launcher.look()
    held_back, queue.listed = queue.listed, {}
    monkeypatch.setattr(judge, "GRACE", timedelta(0))
    launcher.look()
    (batch,) = book.all()
    queue.listed = held_back
    assert any("had been given up" in sentence for sentence in launcher.look())
    assert queue.cancelled == ["1"]
    assert not book.begin(batch.token, worker="dft-cpu1-1", job_id="1", node="cpu1")


@pytest.mark.parametrize(
    ("cause", "state"),
    [
        (FailureCause.NODE, "ready"),
        (FailureCause.UNKNOWN, "ready"),
        (FailureCause.WALLTIME, "ready"),
        (FailureCause.MEMORY, "ready"),
        (FailureCause.KILLED, "failed"),
        (None, "ready"),
    ],
)
def test_a_vanished_batch_job_leaves_its_cause_and_its_label_follows_the_policy(
    make, engine, book, cause, state
):
    queue = book.queue
    launcher = make(max_jobs=1, memory_MiB=500)
    launcher.look()
    (batch,) = open_jobs(book, launcher)
    queue.start("1")
    firework, _ = begin(engine, book, batch)
    launcher.look()
    assert states(engine) == ["ready", "running"]
    queue.end("1", cause, "Slurm says something")
    queue.trouble = {"submit"}
    said = " ".join(launcher.look())
    assert "Slurm says something" in said
    (job,) = (j for j in engine.jobs(campaign="c") if j.engine_id == firework.fw_id)
    assert job.state == state
    (event,) = Store(engine.database).events("c")
    assert event.details["cause"] == str(cause or FailureCause.UNKNOWN)
    assert event.label_key in {"a", "b"}
    assert book.get(batch.token).cause == cause
    if state == "failed":
        assert job.failure["cause"] == "killed"
        assert job.failure["attempts"][0]["queue_id"] == "1"
        assert "Slurm says" in job.failure["attempts"][0]["message"]
    # What waits for the labels must not have begun without them.
    assert {j.state for j in engine.jobs(campaign="c") if j.stage is Stage.GATHER} == {
        JobState.WAITING
    }


def test_a_preempted_job_runs_again_though_the_batch_system_says_killed(make, queue, engine, book):
    launcher = make(max_jobs=1)
    launcher.look()
    (batch,) = open_jobs(book, launcher)
    queue.start("1")
    begin(engine, book, batch)
    queue.end("1", FailureCause.KILLED, "PREEMPTED")
    launcher.look()
    assert states(engine) == ["ready", "ready"]


def test_after_a_lack_of_time_a_label_gets_more_in_a_batch_job_of_its_own(
    make, queue, engine, book
):
    launcher = make(max_jobs=2, max_walltime_s=900)
    launcher.look()
    batch = open_jobs(book, launcher)[0]
    queue.start(batch.job_id)
    firework, _ = begin(engine, book, batch)
    queue.end(batch.job_id, FailureCause.WALLTIME, "TIMEOUT")
    launcher.look()
    alone = [b for b in open_jobs(book, launcher) if b.fw_id is not None]
    assert [(b.fw_id, b.walltime_s) for b in alone] == [(firework.fw_id, 900.0)]


def test_jobs_lost_too_often_are_given_up(make, queue, engine, book):
    launcher = make(max_jobs=1, packing="one")
    engine.launchpad.fireworks.update_many(
        {"spec.label_key": "b"}, {"$set": {"spec._category": "elsewhere"}}
    )
    for _ in range(4):
        launcher.look()
        (batch,) = open_jobs(book, launcher)
        queue.start(batch.job_id)
        begin(engine, book, batch)
        queue.end(batch.job_id, FailureCause.NODE, "NODE_FAIL")
    launcher.look()
    assert states(engine) == ["failed", "ready"]


def test_a_queue_that_does_not_answer_is_neither_judged_nor_filled(make, queue, engine, book):
    launcher = make(max_jobs=1)
    launcher.look()
    (batch,) = open_jobs(book, launcher)
    begin(engine, book, batch)
    queue.listed.clear()
    queue.trouble = {"fates"}
    assert "Asked again" in launcher.look()[0]
    assert states(engine) == ["ready", "running"]
    assert launcher.look() == []  # it pauses
    queue.trouble = set()


def test_a_job_that_nobody_remembers_is_given_up_after_patience(
    make, queue, engine, book, monkeypatch
):
    launcher = make(max_jobs=1)
    launcher.look()
    (batch,) = open_jobs(book, launcher)
    begin(engine, book, batch)
    queue.listed.clear()
    assert launcher.look() == []
    monkeypatch.setattr(judge, "MISSING", timedelta(0))
    assert "knows nothing" in launcher.look()[0]
    assert book.get(batch.token).cause is FailureCause.NODE


def test_a_second_launcher_stands_by(make, queue, engine, database):
    launcher = make(max_jobs=1)
    database.otf_launchers.insert_one(
        {"_id": launcher.home, "owner": "me@elsewhere:1", "until": judge.now() + timedelta(hours=1)}
    )
    assert "stands by" in launcher.look()[0]
    assert launcher.look() == []
    assert queue.listed == {}


def test_a_launcher_takes_over_from_one_that_was_killed_on_this_machine(make, queue, database):
    import socket
    import subprocess

    launcher = make(max_jobs=1)
    with subprocess.Popen(["true"]) as gone:
        pass
    database.otf_launchers.insert_one(
        {
            "_id": launcher.home,
            "owner": f"me@{socket.gethostname()}:{gone.pid}",
            "until": judge.now() + timedelta(hours=1),
        }
    )
    launcher.look()
    assert len(queue.listed) == 1


def test_a_paused_campaign_gives_its_reservations_back(make, queue, engine, book):
    launcher = make(packing="one", max_jobs=1)
    launcher.look()
    engine.pause("c")
    assert any("campaign is held" in sentence for sentence in launcher.look())
    queue.known["1"] = Fate(FailureCause.KILLED, "CANCELLED", "CANCELLED", None)
    launcher.look()
    assert open_jobs(book, launcher) == []
    assert engine.launchpad.fireworks.count_documents({"state": "RESERVED"}) == 0
    engine.resume("c")
    assert states(engine) == ["ready", "ready"]


def test_batch_jobs_in_which_no_worker_begins_are_not_repeated_at_once(make, queue, monkeypatch):
    monkeypatch.setattr("otf_workflows.engine.queues.submitter.STILLBORN_PAUSE_S", 60.0)
    launcher = make(max_jobs=1)
    launcher.look()
    queue.end("1", FailureCause.UNKNOWN, "FAILED exit code 127")
    assert "no job was lost" in launcher.look()[0]
    assert launcher.look() == []
    assert queue.listed == {}


def test_batch_jobs_of_another_state_folder_are_left_alone(make, queue, engine, book, database):
    launcher = make(max_jobs=1)
    launcher.look()
    database.otf_queue_jobs.update_one({}, {"$set": {"home": "another cluster"}})
    queue.listed.clear()
    launcher.look()
    (theirs,) = book.open("another cluster")
    assert theirs.state is BatchState.QUEUED


def test_a_stale_reservation_is_released(make, engine):
    launcher = make(max_jobs=1)
    pad = engine.launchpad
    fw_id = pad.fireworks.find_one({"spec.label_key": "a"})["fw_id"]
    pad.reserve_fw(FWorker(name="otf-dft-0123456789ab", category="dft"), "/nowhere", fw_id=fw_id)
    assert any("reserved for nobody" in sentence for sentence in launcher.look())


def test_a_database_that_is_away_is_an_error_that_says_so(make, site, engine, monkeypatch):
    launcher = make(max_jobs=1)
    broken = FireWorksEngine(site)
    launcher._jobs = QueueJobs(broken.database)
    from pymongo.errors import AutoReconnect

    def away(*_args, **_kwargs):
        raise AutoReconnect("connection closed")

    monkeypatch.setattr(type(launcher._jobs._leases), "update_one", away)
    with pytest.raises(DatabaseError, match="does not answer"):
        launcher.look()
    broken.close()
