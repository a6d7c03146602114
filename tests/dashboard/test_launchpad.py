"""Jobs and workflows as the pages show them: filters, pages, drawings, one job in full."""

import pytest

from otf_workflows.dashboard.queries.graph import Box, grouped, lay_out, workflow_graph
from otf_workflows.dashboard.queries.job_detail import job_detail
from otf_workflows.dashboard.queries.jobs import (
    PAGE_SIZE,
    JobFilter,
    job_page,
    role_counts,
    workflow_page,
)
from otf_workflows.engine.base import JobState
from otf_workflows.errors import NotFoundError
from otf_workflows.testing.launchpad import SyntheticLaunchPad
from otf_workflows.types import Role


def job(fw_id, name, state="COMPLETED", stage=None):
    return {"fw_id": fw_id, "name": name, "state": state, "spec": {"stage": stage or name}}


def test_jobs_are_narrowed_by_every_filter_and_counted(database, at_work):
    def ids(**wanted):
        listing = job_page(database, JobFilter(**wanted))
        assert listing.total == len(listing.rows)
        return {row.fw_id for row in listing.rows}

    everything = list(database.fireworks.find({}))
    failed = {f["fw_id"] for f in everything if f["state"] == "FIZZLED"}
    assert ids(state=JobState.FAILED) == failed
    assert ids(role=Role.TRAIN) == {f["fw_id"] for f in everything if f["name"] == "finetune"}
    assert ids(state=JobState.RUNNING, role=Role.DFT, campaign=at_work, cycle=2)
    assert ids(campaign="another") == set()
    newest = max(f["fw_id"] for f in everything)
    assert ids(text=str(newest)) == {newest}
    assert ids(text="FINETUNE") == ids(role=Role.TRAIN)
    assert ids(text=".*") == set()  # text, not a pattern
    workflow = workflow_page(database, JobFilter(cycle=2)).rows[0].workflow_id
    assert len(ids(workflow=workflow)) == workflow_page(database, JobFilter(cycle=2)).rows[0].n_jobs


def test_a_long_list_comes_in_pages_newest_first(database):
    pad = SyntheticLaunchPad(database)
    from otf_workflows.schemas import now
    from otf_workflows.types import LabelState

    pad.cycle("c", 0, [(f"{i:064x}", LabelState.DONE) for i in range(70)], started=now())
    pad.write()
    first = job_page(database, JobFilter())
    second = job_page(database, JobFilter(page=2))
    shown = [row.fw_id for row in [*first.rows, *second.rows]]
    assert len(first.rows) == PAGE_SIZE
    assert first.total == len(shown) == 77
    assert shown == sorted(shown, reverse=True)


def test_counts_by_role_and_state_are_those_of_the_collection(database, at_work):
    counts = role_counts(database)
    for role in Role:
        mine = {"spec._category": str(role)}
        assert sum(counts[str(role)].values()) == database.fireworks.count_documents(mine)
    assert counts["dft"][JobState.FAILED] == database.fireworks.count_documents(
        {"state": "FIZZLED"}
    )


def test_jobs_of_others_on_the_same_launch_pad_are_shown_too(database, client):
    database.fireworks.insert_one(
        {
            "fw_id": 900, "name": None, "state": "READY", "launches": [],
            "spec": {"_tasks": [{"_fw_name": "ScriptTask", "script": "echo"}]},
            "created_on": "2026-01-01T00:00:00", "updated_on": "2026-01-01T00:00:00",
        }
    )  # fmt: skip
    row = job_page(database, JobFilter()).rows[0]
    assert (row.fw_id, row.name, row.campaign, row.role) == (900, "unnamed", None, None)
    assert role_counts(database)["other"] == {JobState.READY: 1}
    assert "this job is not ours" in client.get("/jobs/900").text


def test_one_job_says_what_failed_where_and_what_depends_on_it(database, at_work):
    fw_id = database.fireworks.find_one({"state": "FIZZLED"})["fw_id"]
    database.otf_queue_jobs.insert_one(
        {"token": "t", "job_id": "4711", "workers": [job_detail(database, fw_id).launch.worker]}
    )
    found = job_detail(database, fw_id)
    assert found.row.state is JobState.FAILED
    assert found.row.message == "no convergence in 80 steps (synthetic)"
    assert "LabelFailed" in found.traceback
    assert found.launch.queue_id == "4711"
    assert found.functions == ["otf_workflows.jobs.label.label"]
    assert [parent.name for parent in found.parents] == ["select"]
    assert [child.name for child in found.children] == ["store_inputs"]
    assert not found.folder.visible


def test_an_unknown_job_is_not_found(database):
    with pytest.raises(NotFoundError, match="no job 5"):
        job_detail(database, 5)
    with pytest.raises(NotFoundError, match="job 5"):
        workflow_graph(database, 5)


def test_a_cycle_is_drawn_as_its_stages_from_left_to_right(database, at_work):
    newest = database.fireworks.find_one({}, sort=[("fw_id", -1)])["fw_id"]
    graph = workflow_graph(database, newest)
    places = sorted((box.x, box.title) for box in graph.boxes)
    assert [title for _, title in places] == [
        "explore", "select", "label", "gather", "finetune", "assess",
    ]  # fmt: skip
    assert len(graph.edges) == 5
    label = next(box for box in graph.boxes if box.title == "label")
    assert label.counts == {
        JobState.DONE: 3, JobState.FAILED: 1, JobState.RUNNING: 2, JobState.READY: 2,
    }  # fmt: skip
    assert label.state is JobState.RUNNING


def test_helper_jobs_are_left_out_and_what_they_connect_stays_connected():
    jobs = [job(1, "select"), job(2, "store_inputs", stage="select"), job(3, "gather")]
    boxes, edges = grouped(jobs, {1: [2], 2: [3], 3: []})
    assert set(boxes) == {"select", "gather"}
    assert edges == {("select", "gather")}


def test_boxes_never_overlap_and_shortcuts_are_not_drawn():
    keys = "abcdef"
    boxes = {key: Box(key, key, None, None) for key in keys}
    edges = {("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("a", "d"), ("d", "e"), ("f", "e")}
    paths, width, height = lay_out(boxes, edges)
    assert len(paths) == len(edges) - 1
    spots = {(box.x, box.y) for box in boxes.values()}
    assert len(spots) == len(keys)
    assert all(0 <= x < width and 0 <= y < height for x, y in spots)
    assert boxes["a"].x < boxes["b"].x == boxes["c"].x < boxes["d"].x < boxes["e"].x


def test_stages_that_depend_on_each_other_in_a_circle_do_not_hang_the_drawing():
    boxes = {key: Box(key, key, None, None) for key in "ab"}
    paths, *_ = lay_out(boxes, {("a", "b"), ("b", "a")})
    assert len(paths) <= 2


def test_a_huge_workflow_of_others_is_drawn_by_state():
    jobs = [job(n, f"job {n}", stage=None) | {"spec": {}} for n in range(300)]
    boxes, _ = grouped(jobs, {})
    assert list(boxes) == ["done"]


@pytest.mark.parametrize(
    "address",
    [
        "/jobs?state=nonsense&role=&cycle=x&workflow=-1&stage=1&page=3",
        "/jobs?text=%00%FF&campaign=a%22b",
        "/jobs/workflows?state=done&text=12",
    ],
)
def test_strange_filters_are_no_error(client, at_work, address):
    assert client.get(address).status_code == 200


@pytest.mark.parametrize(
    ("address", "status"),
    [("/jobs/0", 422), ("/jobs/99999999999999999999", 422), ("/jobs?page=0", 422), ("/x", 404)],
)
def test_wrong_addresses_get_a_page_that_says_so(client, address, status):
    page = client.get(address)
    assert page.status_code == status
    assert "<h1>" in page.text


def test_a_site_of_the_other_engine_is_told_where_its_jobs_are(visit, settings, database, at_work):
    from dataclasses import replace

    from otf_workflows.types import EngineKind

    site = settings.site.model_copy(update={"engine": EngineKind.JOBFLOW_REMOTE})
    client = visit(replace(settings, site=site))
    assert "jf job list" in client.get("/jobs").text
    assert "jf job list" in client.get("/jobs/workflows").text
    database.jf_jobs.insert_one(
        {
            "db_id": "1", "uuid": "u", "index": 1, "state": "RUNNING", "worker": "w",
            "job": {"name": "explore 0", "metadata": {
                "campaign": at_work, "cycle": 2, "kind": "cycle", "stage": "explore"}},
        }
    )  # fmt: skip
    assert "xploring with MD" in client.get("/").text
