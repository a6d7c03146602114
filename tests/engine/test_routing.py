"""The category of a job follows its stage, also for jobs that are made later."""

import json

import pytest
from jobflow import Flow, Job
from monty.json import MontyDecoder, jsanitize

from otf_workflows.engine.base import ROLE_OF_STAGE
from otf_workflows.engine.routing import role_of, route
from otf_workflows.errors import InputError
from otf_workflows.testing.jobs import report, spawn, staged
from otf_workflows.types import Role, Stage

KEY = {"campaign": "c", "cycle": 2, "kind": "cycle"}


def through_the_database(job):
    """Return the job as a worker reads it."""
    document = json.loads(json.dumps(jsanitize(job.as_dict())))
    return MontyDecoder().process_decoded(document)


def spec(job):
    return {**job.config.manager_config, **job.metadata}


@pytest.mark.parametrize("stage", list(Stage))
def test_every_stage_goes_to_its_role(stage):
    made = staged(report(), stage)
    route(Flow([made]), **KEY)
    assert spec(made)["_category"] == str(ROLE_OF_STAGE.get(stage, Role.CONTROL))
    assert role_of(made.metadata) == ROLE_OF_STAGE.get(stage, Role.CONTROL)
    assert {name: made.metadata[name] for name in KEY} == KEY


def test_jobs_made_later_are_routed_by_their_own_stage(memory_store):
    select = staged(spawn(["a", "b"]), Stage.SELECT)
    route(Flow([select]), **KEY)
    response = through_the_database(select).run(memory_store)
    made = {job.name: through_the_database(job) for job, _ in response.replace.iterflow()}
    assert spec(made["report"])["_category"] == "dft"
    assert spec(made["report"])["campaign"] == "c"
    assert spec(made["store_inputs"])["_category"] == "control"
    assert made["report"].config.pass_manager_config is False


def test_the_end_of_a_replacement_is_control_whoever_made_it(memory_store):
    explorer = staged(spawn(["a"]), Stage.EXPLORE)
    route(Flow([explorer]), **KEY)
    response = explorer.run(memory_store)
    end = next(job for job, _ in response.replace.iterflow() if job.name == "store_inputs")
    assert spec(end)["_category"] == "control"


def test_routing_reaches_two_generations_down(memory_store):
    from otf_workflows.testing.jobs import spawn_later

    first = staged(spawn_later(["a"]), Stage.SELECT)
    route(Flow([first]), **KEY)
    second = next(j for j, _ in first.run(memory_store).replace.iterflow() if j.name == "spawn")
    third = next(j for j, _ in second.run(memory_store).replace.iterflow() if j.name == "report")
    assert spec(second)["_category"] == "control"
    assert spec(third)["_category"] == "dft"


def test_an_unknown_stage_is_refused():
    made = report()
    made.metadata["stage"] = "lable"
    with pytest.raises(InputError, match="unknown stage 'lable'"):
        route(Flow([made]), **KEY)


def test_a_job_keeps_its_own_configuration():
    from jobflow import JobConfig, OnMissing

    made: Job = staged(report(), Stage.GATHER)
    made.config = JobConfig(on_missing_references=OnMissing.NONE, expose_store=True)
    route(Flow([made]), **KEY)
    assert made.config.on_missing_references is OnMissing.NONE
    assert made.config.expose_store is True
