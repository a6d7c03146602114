"""`otf launch --once`, one round of everything for cron; and the launcher beside other services."""

import pytest
import yaml
from jobflow import Flow

from otf_workflows.cli.main import main
from otf_workflows.engine.queues import launcher
from otf_workflows.engine.queues.jobs import QueueJobs
from otf_workflows.engine.queues.launcher_thread import LauncherThread, has_local_control
from otf_workflows.engine.rounds import one_round
from otf_workflows.engine.supervisor import local_workers
from otf_workflows.errors import ConfigurationError, DatabaseError
from otf_workflows.settings import Queue, Site, load_site
from otf_workflows.testing.jobs import report, staged
from otf_workflows.testing.queue import FakeQueue
from otf_workflows.testing.waiting import wait_for
from otf_workflows.types import Role, Stage

KEY = {"campaign": "c", "cycle": 0, "kind": "cycle"}


@pytest.fixture
def queue(monkeypatch):
    fake = FakeQueue()
    monkeypatch.setattr(launcher, "QueueSystem", lambda _section: fake)
    return fake


@pytest.fixture
def queued(site, queue):
    """All roles but control in a queue."""
    queues = {role: Queue(walltime_s=600) for role in Role if role is not Role.CONTROL}
    changed = site.model_copy(update={"queues": queues})
    site.source.write_text(yaml.safe_dump(changed.model_dump(mode="json")))
    return load_site()


def test_roles_in_queues_have_no_local_workers(queued):
    assert local_workers(queued) == {Role.CONTROL: 1}
    assert has_local_control(queued)
    assert not has_local_control(Site(queues={Role.CONTROL: Queue()}))


@pytest.mark.slow
def test_one_round_runs_control_jobs_and_submits_for_what_became_ready(queued, queue, engine):
    first = staged(report(), Stage.GATHER)
    engine.submit(Flow([first, staged(report(first.output), Stage.LABEL)]), **KEY)
    sentences = one_round(queued)
    assert any("submitted for dft" in sentence for sentence in sentences)
    states = {job.stage: str(job.state) for job in engine.jobs(campaign="c")}
    assert states == {Stage.GATHER: "done", Stage.LABEL: "ready"}
    assert len(queue.listed) == 1
    assert not any("submitted" in sentence for sentence in one_round(queued))


def test_one_round_needs_a_database_that_stays_and_queues_for_the_work(queued):
    with pytest.raises(ConfigurationError, match="stays up"):
        one_round(Site())
    without = queued.model_copy(update={"queues": {Role.DFT: Queue()}})
    with pytest.raises(ConfigurationError, match="md, train have no queue"):
        one_round(without)


def test_the_command_refuses_what_cannot_work(queued, capsys):
    changed = queued.model_copy(update={"queues": {}})
    queued.source.write_text(yaml.safe_dump(changed.model_dump(mode="json")))
    with pytest.raises(SystemExit) as ended:
        main(["launch", "--once"])
    assert ended.value.code == 5
    assert "next: " in capsys.readouterr().err.lower()


def test_the_launcher_beside_other_services_submits_and_takes_its_leave(
    queued, queue, engine, monkeypatch
):
    monkeypatch.setattr(launcher, "FILL_S", 0.05)
    engine.submit(Flow([staged(report(), Stage.LABEL)]), **KEY)
    thread = LauncherThread(queued)
    thread.start()
    wait_for(lambda: queue.listed)
    thread.stop(withdraw=True)
    assert queue.cancelled == ["1"]
    (job,) = QueueJobs(engine.database).all()
    assert job.withdrawn == "the services were stopped"
    assert engine.database.otf_launchers.count_documents({}) == 0


def test_a_database_that_goes_away_is_waited_for(queued, queue, engine, monkeypatch):
    monkeypatch.setattr(launcher, "FILL_S", 0.05)
    thread = LauncherThread(queued)
    looks, look = [], thread.launcher.look

    def sometimes(**options):
        looks.append(options)
        if len(looks) == 1:
            raise DatabaseError("MongoDB does not answer.")
        return look(**options)

    monkeypatch.setattr(thread.launcher, "look", sometimes)
    engine.submit(Flow([staged(report(), Stage.LABEL)]), **KEY)
    thread.start()
    wait_for(lambda: queue.listed)
    thread.stop()
    assert len(looks) >= 2
