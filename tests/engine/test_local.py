"""The engine without FireWorks answers as the other one does."""

import pytest
from jobflow import Flow

from otf_workflows.engine import JobState, LocalEngine
from otf_workflows.errors import InputError, NotFoundError, PartialError
from otf_workflows.testing.jobs import (
    collect,
    fail_label,
    fail_once,
    report,
    report_with_blob,
    spawn,
    staged,
)
from otf_workflows.types import Role, Stage

KEY = {"campaign": "c", "cycle": 0, "kind": "cycle"}


@pytest.fixture
def local(memory_store, tmp_path):
    return LocalEngine(job_store=memory_store, root=tmp_path / "jobs")


def states(engine):
    return {job.name: str(job.state) for job in engine.jobs(campaign="c")}


def test_a_cycle_with_dynamic_jobs_runs_to_its_end(local):
    explore = staged(report(), Stage.EXPLORE)
    select = staged(spawn(["a", "b"]), Stage.SELECT)
    train = staged(report(select.output, explore.output), Stage.FINETUNE)
    ids = local.submit(Flow([explore, select, train]), **KEY)
    assert local.find(**KEY) == ids
    jobs = local.jobs(campaign="c", cycle=0)
    assert len(jobs) == 6
    assert {job.state for job in jobs} == {JobState.DONE}
    labels = [job for job in jobs if job.stage is Stage.LABEL]
    assert sorted(job.label_key for job in labels) == ["a", "b"]
    assert {job.role for job in labels} == {Role.DFT}
    assert all(job.started <= job.finished for job in jobs)
    assert len({job.directory for job in jobs}) == 6
    assert local.output(train.uuid)["directory"] == next(
        job.directory for job in jobs if job.stage is Stage.FINETUNE
    )


def test_every_job_is_told_when_it_ends(memory_store, tmp_path):
    told = []
    local = LocalEngine(job_store=memory_store, root=tmp_path / "jobs", tell=told.append)
    bad = staged(fail_label("k"), Stage.LABEL, label_key="k")
    gather = staged(collect([bad.output]), Stage.GATHER)
    local.submit(Flow([bad, gather]), **KEY)
    assert len(told) == 2
    assert told[0].startswith("c, cycle 0: fail_label failed: ")
    assert told[1] == "c, cycle 0: collect done, 0 s"


def test_a_failed_label_tells_its_cause_and_the_rest_goes_on(local):
    bad = staged(fail_label("k"), Stage.LABEL, label_key="k")
    gather = staged(collect([bad.output]), Stage.GATHER)
    local.submit(Flow([bad, gather]), **KEY)
    failed, gathered = local.jobs(campaign="c")
    assert failed.failure["cause"] == "scf"
    assert failed.failure["directory"] == failed.directory
    assert gathered.state is JobState.DONE
    with pytest.raises(PartialError):
        local.rerun([failed.engine_id])
    assert local.output(bad.uuid) is None


def test_a_failed_job_runs_again_and_what_waited_goes_on(local, tmp_path):
    flag = tmp_path / "flag"
    first = staged(fail_once(str(flag)), Stage.EXPLORE)
    then = staged(report(first.output), Stage.SELECT)
    local.submit(Flow([first, then]), **KEY)
    assert states(local) == {"fail_once": "failed", "report": "waiting"}
    failed = local.jobs(campaign="c")[0]
    assert failed.failure["message"] == f"RuntimeError: {flag} is not there"
    flag.touch()
    local.rerun([failed.engine_id])
    assert states(local) == {"fail_once": "done", "report": "done"}
    assert len(local.jobs(campaign="c")) == 2


def test_a_paused_campaign_keeps_its_flows(local):
    local.pause("c")
    made = report_with_blob(3)
    local.submit(Flow([made]), **KEY)
    assert states(local) == {"report_with_blob": "paused"}
    assert local.resume("c") == 1
    assert local.output(made.uuid)["blob"]["numbers"] == [0, 1, 2]


def test_a_label_that_is_let_go_runs_by_itself(local):
    first, second = (
        staged(report(), Stage.LABEL, label_key="k"),
        staged(report(), Stage.LABEL, label_key="l"),
    )
    gather = staged(collect([first.output, second.output]), Stage.GATHER)
    local.pause("c")
    local.submit(Flow([first, second, gather]), **KEY)
    ids = {job.label_key: job.engine_id for job in local.jobs(campaign="c")}
    assert local.let_go([ids["k"]]) == [ids["k"]]
    assert [job.label_key for job in local.jobs(campaign="c", kind="relabel")] == ["k"]
    local.resume("c")
    assert {job.state for job in local.jobs(campaign="c")} == {JobState.DONE}
    assert local.let_go([ids["l"]]) == [], "it has ended"
    assert [job.label_key for job in local.jobs(campaign="c", kind="cycle")] == ["l", None]


def test_a_cancelled_campaign_gives_its_flows_up(local):
    local.pause("c")
    local.submit(Flow([report()]), **KEY)
    assert local.cancel("c") == 1
    assert states(local) == {"report": "failed"}
    assert local.resume("c") == 0


def test_wrong_questions_have_clear_answers(local):
    with pytest.raises(InputError):
        local.submit(Flow([]), **KEY)
    with pytest.raises(NotFoundError):
        local.rerun([12])
    assert local.find(**KEY) == []
    assert local.recover() == []


def test_both_engines_offer_the_whole_protocol():
    from otf_workflows.engine import Engine, FireWorksEngine

    wanted = {name for name in vars(Engine) if not name.startswith("_")}
    for engine in (FireWorksEngine, LocalEngine):
        assert wanted <= set(dir(engine))
