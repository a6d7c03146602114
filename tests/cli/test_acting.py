"""Commands that change things: idempotent, previewed, and refusing what makes no sense."""

from pathlib import Path

import pytest

from otf_workflows.schemas import Attempt
from otf_workflows.types import CampaignState, FailureCause, LabelState

FLOWS = Path(__file__).parents[2] / "flows"
SILICON = FLOWS / "si_teacher" / "campaign.yaml"
TOY = ["--set", "labels={code: ase, calculator: lj}", "--set", "potential=toy-lj"]


@pytest.fixture
def submitted(otf, site):
    assert otf("submit", SILICON, "--parsable", *TOY).out == "si-teacher\n"
    return "si-teacher"


def test_submitting_twice_enters_one_campaign(otf, submitted, store, engine):
    assert otf("submit", SILICON, *TOY).code == 0
    assert [item.name for item in store.campaigns()] == [submitted]
    assert len(engine.find(campaign=submitted, cycle=0, kind="cycle")) == 1


def test_the_same_name_with_other_settings_is_refused(otf, submitted, store):
    done = otf("submit", SILICON, *TOY, "--set", "seed=5")
    assert done.code == 2
    assert "--name" in done.err
    assert otf("submit", SILICON, *TOY, "--set", "seed=5", "--name", "other").code == 0


def test_a_dry_run_submits_nothing(otf, store):
    assert otf("submit", SILICON, "--dry-run", *TOY).code == 0
    assert store.campaigns() == []


def test_bad_input_writes_nothing(otf, store):
    assert otf("submit", SILICON, *TOY, "--set", "budget.max_labels=0").code == 2
    assert store.database.list_collection_names() == []


def test_pause_resume_and_stop(otf, submitted, store):
    assert otf("pause", submitted).code == 0
    assert store.campaign(submitted).state is CampaignState.PAUSED
    assert otf("resume", submitted).code == 0
    assert store.campaign(submitted).state is CampaignState.RUNNING
    assert otf("stop", submitted).code == 2
    assert otf("stop", submitted, "--dry-run").code == 0
    assert store.campaign(submitted).state is CampaignState.RUNNING
    assert otf("stop", submitted, "--yes").code == 0
    assert store.campaign(submitted).state is CampaignState.STOPPED
    assert otf("stop", submitted, "--yes").code == 2


def test_reconcile_may_be_called_at_any_time(otf, submitted, store):
    assert otf("reconcile").code == 0
    assert otf("reconcile", submitted).code == 0
    assert len(store.cycles(submitted)) == 1
    assert otf("reconcile", "nobody").code == 3


@pytest.fixture
def failed_label(store, finished):
    label = store.labels(campaign=finished, states=[LabelState.FAILED])
    if label:
        return label[0].key
    one = store.labels(campaign=finished, limit=1)[0]
    store.database.otf_labels.update_one({"key": one.key}, {"$set": {"state": "pending"}})
    store.record_failure(
        one.key, cause=FailureCause.SCF, reason="no convergence", attempts=[Attempt(number=1)]
    )
    return one.key


def test_a_rerun_is_previewed_and_needs_a_yes(otf, failed_label, store, site):
    done = otf("labels", "rerun", failed_label, "--dry-run")
    assert done.code == 0
    assert failed_label[:12] in done.err
    assert store.label(failed_label).state is LabelState.FAILED
    assert otf("labels", "rerun", failed_label).code == 2
    done = otf("labels", "rerun", failed_label, "--yes")
    assert done.code == 0
    assert "runs again" in done.out
    assert store.label(failed_label).state is LabelState.PENDING


def test_a_rerun_never_changes_the_physics(otf, failed_label, site):
    done = otf("labels", "rerun", failed_label, "--set", "cutoff_Ry=30", "--dry-run")
    assert done.code == 2
    assert "cutoff_Ry" in done.err


def test_a_rerun_of_labels_that_are_done_is_partial(otf, failed_label, finished, store, site):
    done = store.labels(campaign=finished, states=[LabelState.DONE], limit=1)[0].key
    answer = otf("labels", "rerun", failed_label, done, "--yes")
    assert answer.code == 6
    assert store.label(failed_label).state is LabelState.PENDING


def test_a_rerun_of_nothing_in_particular_is_refused(otf, site):
    assert otf("labels", "rerun").code == 2
    assert otf("labels", "rerun", "--failed").code == 3


def test_a_rerun_with_more_time_on_another_worker_runs_by_itself(
    otf, failed_label, site, engine, store
):
    done = otf("labels", "rerun", failed_label, "--worker", "big", "--yes")
    assert done.code == 5, "no such worker in the site file"
    assert store.label(failed_label).state is LabelState.FAILED
    text = site.source.read_text().replace("codes: {}", "codes: {espresso@big: {cores: 32}}")
    site.source.write_text(text)
    words = ("labels", "rerun", failed_label, "--worker", "big", "--walltime", "4h")
    plan = otf(*words, "--dry-run", "--json").json()["plan"]
    assert (plan["worker"], plan["walltime_s"]) == ("big", 14400)
    assert [item["mode"] for item in plan["items"]] == ["detached"]
    assert otf(*words, "--yes").code == 0
    spec = engine.launchpad.fireworks.find_one({"spec.label_key": failed_label})["spec"]
    asked = spec["_tasks"][0]["job"]["function_kwargs"]
    assert (asked["worker"], asked["walltime_s"]) == ("big", 14400)


@pytest.mark.parametrize("text", ["soon", "-1h", "0"])
def test_a_walltime_must_be_a_duration(otf, failed_label, site, text):
    assert otf("labels", "rerun", failed_label, f"--walltime={text}", "--dry-run").code == 2
