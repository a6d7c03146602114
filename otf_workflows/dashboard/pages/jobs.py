"""``/jobs``: the launch pad, as jobs, as workflows, one workflow drawn, one job in full."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import Response

from otf_workflows.dashboard.backend import Backend, backend
from otf_workflows.dashboard.queries.graph import BOX_HEIGHT, BOX_WIDTH, workflow_graph
from otf_workflows.dashboard.queries.job_detail import job_detail
from otf_workflows.dashboard.queries.jobs import (
    PAGE_SIZE,
    JobFilter,
    job_page,
    workflow_page,
    workflow_row,
)
from otf_workflows.dashboard.rendering import page
from otf_workflows.engine.base import JobState
from otf_workflows.types import Role, Stage

router = APIRouter()
Here = Annotated[Backend, Depends(backend)]
JobId = Annotated[int, Path(ge=1, le=10**12)]


def job_filter(
    *,
    state: JobState | str | None = None,
    role: Role | str | None = None,
    campaign: Annotated[str | None, Query(max_length=63)] = None,
    cycle: Annotated[int | str | None, Query()] = None,
    stage: Stage | str | None = None,
    workflow: Annotated[int | str | None, Query()] = None,
    text: Annotated[str | None, Query(max_length=100)] = None,
    number: Annotated[int, Query(alias="page", ge=1, le=100_000)] = 1,
) -> JobFilter:
    """Return the filter in an address; what a form leaves empty does not matter."""
    return JobFilter(
        state=JobState(state) if state in set(JobState) else None,
        role=Role(role) if role in set(Role) else None,
        campaign=campaign or None,
        cycle=_whole(cycle),
        stage=str(stage) if stage in set(Stage) else None,
        workflow=_whole(workflow),
        text="".join(filter(str.isprintable, text or "")).strip() or None,
        page=number,
    )


def _whole(value: int | str | None) -> int | None:
    text = str(value) if value is not None else ""
    return int(text) if text.isdigit() and len(text) < 12 else None


@router.get("/jobs", name="jobs")
def show_jobs(
    request: Request, here: Here, wanted: Annotated[JobFilter, Depends(job_filter)]
) -> Response:
    """List jobs."""
    with here.reading() as database:
        listing = job_page(database, wanted)
        roles = here.roles.of(database)
    return page(
        request, "jobs.html.jinja", wanted=wanted, listing=listing, roles=roles, size=PAGE_SIZE,
        states=list(JobState), all_roles=list(Role), stages=list(Stage),
    )  # fmt: skip


@router.get("/jobs/workflows", name="workflows")
def show_workflows(
    request: Request, here: Here, wanted: Annotated[JobFilter, Depends(job_filter)]
) -> Response:
    """List workflows."""
    with here.reading() as database:
        listing = workflow_page(database, wanted)
    return page(
        request, "workflows.html.jinja", wanted=wanted, listing=listing, size=PAGE_SIZE,
        states=list(JobState),
    )  # fmt: skip


@router.get("/jobs/workflows/{fw_id}", name="workflow")
def show_workflow(request: Request, here: Here, fw_id: JobId) -> Response:
    """Draw one workflow and list its jobs."""
    with here.reading() as database:
        graph = workflow_graph(database, fw_id)
        row = workflow_row(database.workflows.find_one({"nodes": fw_id}) or {})
        wanted = JobFilter(workflow=fw_id)
        listing = job_page(database, wanted)
    return page(
        request, "workflow.html.jinja", graph=graph, row=row, listing=listing, size=PAGE_SIZE,
        box=(BOX_WIDTH, BOX_HEIGHT),
    )  # fmt: skip


@router.get("/jobs/{fw_id}", name="job")
def show_job(request: Request, here: Here, fw_id: JobId) -> Response:
    """Show one job."""
    with here.reading() as database:
        job = job_detail(database, fw_id)
    return page(request, "job.html.jinja", job=job)
