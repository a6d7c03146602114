"""The launch pad with fewer journeys writes what FireWorks writes, and starts no job twice."""

from datetime import UTC, datetime

import pytest
from fireworks import FWAction, FWorker, LaunchPad
from jobflow import Flow
from pymongo.monitoring import CommandListener

from otf_workflows.engine import FireWorksEngine
from otf_workflows.engine.lean_launchpad import LeanLaunchPad
from otf_workflows.engine.worker import Worker
from otf_workflows.testing.jobs import collect, fail_label, report, spawn, staged
from otf_workflows.types import Role, Stage

KEY = {"campaign": "c", "cycle": 0, "kind": "cycle"}
MOST_JOURNEYS = 26
DFT = FWorker(name="dft-elsewhere-1", category="dft")


def submitted(engine, n=1):
    return engine.submit(Flow([staged(report(), Stage.LABEL) for _ in range(n)]), **KEY)[0]


def shape(document):
    """The document without what differs from run to run: times, ids, folders."""
    if isinstance(document, dict) and all(key.lstrip("-").isdigit() for key in document):
        return sorted(map(repr, map(shape, document.values())))  # by numbers of fireworks
    if isinstance(document, dict):
        return {key: shape(document[key]) for key in sorted(document)}
    if isinstance(document, list):
        return [shape(item) for item in document]
    return document if isinstance(document, bool) else type(document).__name__


def states_of(pad):
    return {
        "fireworks": sorted((f["name"], f["state"]) for f in pad.fireworks.find()),
        "workflows": [(w["state"], sorted(w["fw_states"].values())) for w in pad.workflows.find()],
        "launches": sorted((x["fw_id"], x["state"]) for x in pad.launches.find()),
    }


@pytest.fixture
def plain(site):
    """FireWorks' own launch pad on the same database."""
    from otf_workflows.engine.launchpad import launchpad

    pad = launchpad(site)
    pad.__class__ = LaunchPad
    yield pad
    pad.connection.close()


def test_it_writes_what_fireworks_writes(engine, plain, site, monkeypatch):
    import jobflow

    monkeypatch.setattr(jobflow.SETTINGS, "JOB_STORE", jobflow.SETTINGS.JOB_STORE)
    written = []
    for pad in (engine.launchpad, plain):
        for name in ("fireworks", "workflows", "launches"):
            plain.db[name].delete_many({})
        broken = staged(fail_label("k"), Stage.LABEL)
        select = staged(spawn(["a", "b"]), Stage.SELECT)
        gather = staged(collect([broken.output]), Stage.GATHER)
        engine.submit(Flow([broken, select, gather]), **KEY)
        workers = [Worker(site, role, reconcile=False) for role in (Role.DFT, Role.CONTROL)]
        for worker in workers:
            worker.engine.launchpad.connection.close()
            worker.engine.launchpad = pad
        if pad is plain:
            pad.taken = None
        while any(worker.run_one() for worker in workers):
            pass
        written.append(
            {
                "states": {k: v for k, v in states_of(plain).items() if k != "launches"},
                "fireworks": [shape(f) for f in plain.fireworks.find().sort("fw_id", 1)],
                "launches": [shape(x) for x in plain.launches.find().sort("launch_id", 1)],
                "workflow": shape(plain.workflows.find_one()),
            }
        )
        for worker in workers:
            worker.engine.database.client.close()
    lean, theirs = written
    assert lean["states"] == theirs["states"]
    assert "COMPLETED" in str(lean["states"])
    assert "FIZZLED" in str(lean["states"])
    assert lean["workflow"] == theirs["workflow"]
    assert lean["fireworks"] == theirs["fireworks"]
    assert lean["launches"] == theirs["launches"]


def test_a_job_that_is_put_back_while_it_is_taken_is_not_started(engine, tmp_path, monkeypatch):
    submitted(engine)
    pad = engine.launchpad
    number = LeanLaunchPad.get_new_launch_id

    def slow(self):
        pad.fireworks.update_many({}, {"$set": {"state": "READY"}})  # as recovery would
        return number(self)

    with monkeypatch.context() as patch:
        patch.setattr(LeanLaunchPad, "get_new_launch_id", slow)
        assert pad.checkout_fw(DFT, str(tmp_path)) == (None, None)
    assert pad.fireworks.find_one()["launches"] == []
    assert pad.launches.count_documents({"state": "RUNNING"}) == 0
    assert pad.checkout_fw(DFT, str(tmp_path))[0] is not None


def test_a_reservation_keeps_its_launch(engine, tmp_path):
    submitted(engine)
    pad = engine.launchpad
    firework, launch_id = pad.reserve_fw(DFT, str(tmp_path))
    pad.set_reservation_id(launch_id, "4711")
    _, again = pad.checkout_fw(DFT, str(tmp_path / "there"), firework.fw_id)
    assert again == launch_id
    launch = pad.launches.find_one()
    assert [item["state"] for item in launch["state_history"]] == ["RESERVED", "RUNNING"]
    assert launch["state_history"][0]["reservation_id"] == "4711"
    assert launch["launch_dir"] == str(tmp_path / "there")
    assert pad.workflows.find_one()["state"] == "RUNNING"


def test_a_ping_is_written_only_on_a_launch_that_runs(engine, tmp_path):
    submitted(engine)
    pad = engine.launchpad
    _, launch_id = pad.checkout_fw(DFT, str(tmp_path))
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    pad.ping_launch(launch_id, moment, checkpoint={"_task_n": 0})
    running = pad.launches.find_one()["state_history"][-1]
    assert running["updated_on"] == moment.isoformat()
    assert running["checkpoint"] == {"_task_n": 0}
    assert pad.get_launch_by_id(launch_id).last_pinged.replace(tzinfo=UTC) == moment
    pad.complete_launch(launch_id, FWAction())
    ended = pad.launches.find_one()
    pad.ping_launch(launch_id)
    assert pad.launches.find_one() == ended


def test_a_workflow_that_somebody_works_on_is_not_written_beside_them(engine, tmp_path):
    submitted(engine)
    pad = engine.launchpad
    fw_id = pad.fireworks.find_one()["fw_id"]
    pad.workflows.update_one({}, {"$set": {"locked": True}})
    assert not pad._note_running(fw_id)
    pad.workflows.update_one({}, {"$unset": {"locked": ""}})
    assert pad._note_running(fw_id)
    assert not pad._note_running(fw_id), "only what has not started starts"


def test_a_lock_is_gone_after_an_error(engine, tmp_path, monkeypatch):
    submitted(engine)
    pad = engine.launchpad
    _, launch_id = pad.checkout_fw(DFT, str(tmp_path))

    def broken(*_):
        raise ValueError("cannot be read back")

    with monkeypatch.context() as patch:
        patch.setattr(LeanLaunchPad, "_upsert_fws", broken)
        with pytest.raises(RuntimeError, match="cannot be read back"):
            pad.complete_launch(launch_id, FWAction())
    workflow = pad.workflows.find_one()
    assert "locked" not in workflow
    assert workflow["state"] == "FIZZLED"


class Journeys(CommandListener):
    n = 0

    def started(self, event):
        self.n += event.command_name not in {"hello", "ping", "endSessions"}

    def succeeded(self, event): ...

    def failed(self, event): ...


def test_a_job_takes_few_journeys_to_the_database(site, monkeypatch):
    import jobflow
    from pymongo import monitoring

    monkeypatch.setattr(jobflow.SETTINGS, "JOB_STORE", jobflow.SETTINGS.JOB_STORE)
    journeys = Journeys()
    monkeypatch.setattr(
        monitoring, "_LISTENERS", monitoring._LISTENERS._replace(command_listeners=[journeys])
    )
    engine = FireWorksEngine(site)
    submitted(engine, 11)
    worker = Worker(site, Role.DFT, reconcile=False)
    assert worker.run_one()  # makes connections
    begun = journeys.n
    for _ in range(10):
        assert worker.run_one()
    assert journeys.n - begun <= 10 * MOST_JOURNEYS
    worker.engine.close()
    engine.close()
