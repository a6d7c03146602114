"""``/production``: long MD runs, the properties drawn from them, and the run itself to look at."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from otf_workflows.dashboard.backend import Backend, backend
from otf_workflows.dashboard.figures.production import figures
from otf_workflows.dashboard.pages.campaign import chosen
from otf_workflows.dashboard.queries.production import (
    ProductionView,
    production_view,
    productions,
)
from otf_workflows.dashboard.queries.trajectories import production_trajectory
from otf_workflows.dashboard.rendering import page

router = APIRouter()
Here = Annotated[Backend, Depends(backend)]


class Part(StrEnum):
    """Which run of a production: the long one, or the one whose frames DFT has checked."""

    MAIN = "main"
    AUDIT = "audit"


@router.get("/production", name="production")
def list_productions(request: Request, here: Here) -> Response:
    """List all production runs, newest first."""
    with here.reading():
        lines = productions(here.store)
    return page(request, "productions.html.jinja", section="production", lines=lines)


@router.get("/campaigns/{name}/production", name="production_run")
def show(request: Request, here: Here, name: str, part: Part = Part.MAIN) -> Response:
    """Show the production run of a campaign."""
    view = _view(here, name)
    return page(
        request,
        "production.html.jinja",
        section="production",
        view=view,
        values=view.document.values,
        conditions=view.document.conditions,
        figures=figures(view),
        part=part,
        parts=list(Part),
    )


@router.get("/campaigns/{name}/production/figures/{figure}.json", name="production_figure")
def figure(here: Here, name: str, figure: str) -> JSONResponse:
    """Return one figure of a production run for Plotly."""
    return chosen(figures(_view(here, name)), figure)


@router.get("/campaigns/{name}/production/{part}.json", name="production_frames")
def frames(here: Here, name: str, part: Part) -> JSONResponse:
    """Return frames of a production run for the player."""
    with here.reading():
        found = production_trajectory(here.store, name, part=part)
    return JSONResponse(found.to_json())


@router.get("/campaigns/{name}/production/{part}.extxyz", name="production_file")
def file(here: Here, name: str, part: Part) -> PlainTextResponse:
    """Return the same frames as extended XYZ."""
    with here.reading():
        found = production_trajectory(here.store, name, part=part)
    header = {"content-disposition": f'attachment; filename="{name}-production-{part}.extxyz"'}
    return PlainTextResponse(found.to_extxyz(), headers=header)


def _view(here: Backend, name: str) -> ProductionView:
    with here.reading():
        return production_view(here.store, name)
