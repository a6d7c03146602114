"""The cycle as a graph: its stages, its edges, and what its jobs carry."""

from __future__ import annotations

import numpy as np
import pytest
from jobflow import OutputReference

from otf_workflows.campaign import Campaign, Exploration
from otf_workflows.flow import CycleMaker, ProductionMaker, outputs
from otf_workflows.schemas import Calibration, Frame, ModelDocument


@pytest.fixture
def campaign():
    cell = [[5.1, 0, 0], [0, 5.1, 0], [0, 0, 5.1]]
    return Campaign(
        name="licl",
        structure=Frame(numbers=[3, 17], cell_A=cell, positions_A=[[0] * 3, [2.5] * 3]),
        labels={"code": "ase", "calculator": "lj"},
        exploration=Exploration(temperatures_K=[300, 600], walkers_per_temperature=2),
    )


@pytest.fixture
def pretrained():
    return ModelDocument(model_id="chgnet-0.3.0", potential="chgnet-0.3.0")


@pytest.fixture
def tuned():
    return ModelDocument(
        model_id="licl-c0-1234",
        potential="chgnet-0.3.0",
        output_uuid="weights-uuid",
        calibration=Calibration(factor=2.0, n=5),
    )


def stages(flow):
    return [job.metadata["stage"] for job in flow.jobs]


def test_a_cycle_is_explore_select_gather_finetune_assess(campaign, tuned):
    flow = CycleMaker(campaign).make(1, tuned, Calibration(), {})
    assert stages(flow) == ["explore"] * 4 + ["select", "gather", "finetune", "assess"]


def test_the_first_cycle_seeds_as_well(campaign, pretrained):
    assert stages(CycleMaker(campaign).make(0, pretrained, Calibration(), {})).count("seed") == 1


def test_every_stage_waits_for_the_one_before(campaign, tuned):
    flow = CycleMaker(campaign).make(1, tuned, Calibration(), {})
    by_stage = {job.metadata["stage"]: job for job in flow.jobs}
    walkers = {job.uuid for job in flow.jobs if job.metadata["stage"] == "explore"}
    assert set(by_stage["select"].input_uuids) == walkers
    for stage, before in [("gather", "select"), ("finetune", "gather"), ("assess", "finetune")]:
        assert by_stage[before].uuid in by_stage[stage].input_uuids


def test_walkers_run_with_the_weights_of_the_incumbent_and_continue_where_they_stood(
    campaign, tuned
):
    previous = {f"explore/{i}": f"walker-{i}" for i in range(4)}
    flow = CycleMaker(campaign).make(2, tuned, Calibration(), previous)
    third = flow.jobs[2]
    assert third.function_kwargs["weights"] == OutputReference("weights-uuid").blob
    assert third.function_kwargs["checkpoint"].uuid == "walker-2"
    assert third.function_kwargs["temperature_K"] == 600


def test_walkers_take_turns_in_the_cell_shapes_and_stay_in_theirs(tuned):
    cell = (5.14 * np.eye(3)).tolist()
    fractions = [[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]
    sites = [*fractions, *[[x + 1, y, z] for x, y, z in fractions]]
    campaign = Campaign(
        name="licl",
        structure=Frame(
            numbers=[3] * 4 + [17] * 4, cell_A=cell, positions_A=(2.57 * np.array(sites)).tolist()
        ),
        labels={"code": "ase", "calculator": "lj"},
        exploration={
            "temperatures_K": [300, 600],
            "walkers_per_temperature": 2,
            "cell_shapes": 3,
            "starts": [{"strain": 0.01}],
        },
    )

    def cells(cycle):
        flow = CycleMaker(campaign).make(cycle, tuned, Calibration(), {})
        return [j.function_args[0].cell_A for j in flow.jobs if j.metadata["stage"] == "explore"]

    first = cells(1)
    assert first[0] == cell
    assert first[0] != first[1] != first[2] != first[0]
    assert first[3][0][0] == pytest.approx(1.01 * 5.14)
    assert cells(2) == first


def test_a_walker_is_not_given_the_structures_of_the_others(campaign, tuned):
    rules = Exploration(starts=[{"strain": 0.01}])
    flow = CycleMaker(campaign.model_copy(update={"exploration": rules})).make(
        1, tuned, Calibration(), {}
    )
    assert flow.jobs[0].function_kwargs["rules"].starts == []


def test_walkers_have_seeds_of_their_own(campaign, tuned):
    flow = CycleMaker(campaign).make(1, tuned, Calibration(), {})
    seeds = [j.function_kwargs["seed"] for j in flow.jobs if j.metadata["stage"] == "explore"]
    assert len(set(seeds)) == 4


def test_the_campaign_name_changes_no_seed(campaign, tuned):
    def arguments(name):
        flow = CycleMaker(campaign.model_copy(update={"name": name})).make(
            1, tuned, Calibration(), {}
        )
        return [j.function_kwargs["seed"] for j in flow.jobs if j.metadata["stage"] == "explore"]

    assert arguments("one") == arguments("two")


def test_outputs_name_every_job_that_a_later_cycle_needs(campaign, tuned):
    flow = CycleMaker(campaign).make(1, tuned, Calibration(), {})
    names = outputs(flow)
    assert {f"explore/{i}" for i in range(4)} | {"finetune"} <= names.keys()
    assert names["finetune"] == next(j.uuid for j in flow.jobs if j.metadata["stage"] == "finetune")


@pytest.fixture
def sharing(campaign):
    rules = campaign.exploration.model_copy(update={"walkers_per_job": 3})
    return campaign.model_copy(update={"exploration": rules})


def test_walkers_may_share_a_job_and_every_segment_is_selected_from(sharing, tuned):
    flow = CycleMaker(sharing).make(1, tuned, Calibration(), {})
    assert stages(flow) == ["explore"] * 2 + ["select", "gather", "finetune", "assess"]
    first, second, select = flow.jobs[:3]
    assert [one["walker"] for one in first.function_args[0]] == [0, 1, 2]
    assert [one["temperature_K"] for one in first.function_args[0]] == [300, 300, 600]
    assert [one["walker"] for one in second.function_args[0]] == [3]
    assert first.name == "explore 0-2 at 300 and 600 K"
    assert select.function_args[0] == [
        *(first.output[f"walker-{n}"] for n in range(3)),
        second.output["walker-3"],
    ]


def test_walkers_that_share_a_job_are_found_again_one_by_one(sharing, campaign, tuned):
    flow = CycleMaker(sharing).make(1, tuned, Calibration(), {})
    first, second = flow.jobs[:2]
    places = outputs(flow)
    assert [places[f"explore/{n}"] for n in range(4)] == [
        *(f"{first.uuid}/walker-{n}" for n in range(3)),
        f"{second.uuid}/walker-3",
    ]
    # Whoever shared a job before may have one of its own now.
    later = CycleMaker(campaign).make(2, tuned, Calibration(), places)
    segment = getattr(OutputReference(first.uuid), "walker-2")
    assert later.jobs[2].function_kwargs["checkpoint"] == segment.blob.checkpoint


def test_seeds_and_starts_do_not_depend_on_who_shares_a_job(sharing, campaign, tuned):
    alone = CycleMaker(campaign).make(1, tuned, Calibration(), {}).jobs[:4]
    together = CycleMaker(sharing).make(1, tuned, Calibration(), {}).jobs[:2]
    own = [one for job in together for one in job.function_args[0]]
    assert [one["seed"] for one in own] == [job.function_kwargs["seed"] for job in alone]
    assert [one["start"] for one in own] == [job.function_args[0] for job in alone]


def test_production_runs_then_audits_then_compares_all_models(campaign, pretrained, tuned):
    flow = ProductionMaker(campaign).make(4, tuned, Calibration(), [pretrained, tuned])
    assert stages(flow) == ["produce", "audit", "gather", "evaluate", "conclude"]
    compared = flow.jobs[3].function_kwargs["models"]
    assert [model["model_id"] for model in compared] == ["chgnet-0.3.0", "licl-c0-1234"]
    assert compared[0]["weights"] is None


def test_making_a_flow_leaves_the_maker_as_it_was(campaign, tuned):
    maker = CycleMaker(campaign)
    before = maker.as_dict()
    maker.make(1, tuned, Calibration(), {})
    assert maker.as_dict() == before
