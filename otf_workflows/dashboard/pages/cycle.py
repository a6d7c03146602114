"""One cycle: walkers, what they met, what DFT said, and what became of the new model."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from otf_workflows.dashboard.backend import Backend, backend
from otf_workflows.dashboard.figures.cycle import figures
from otf_workflows.dashboard.pages.campaign import chosen
from otf_workflows.dashboard.queries.cycle import CycleView, cycle_view, frames_of
from otf_workflows.dashboard.queries.trajectories import walker_trajectory
from otf_workflows.dashboard.rendering import page
from otf_workflows.dashboard.stills import still

router = APIRouter()
Here = Annotated[Backend, Depends(backend)]

STRUCTURES = 12
"""Structures on one page; a browser has few 3D canvases to give."""


@router.get("/campaigns/{name}/cycles/{cycle}", name="cycle")
def show(request: Request, here: Here, name: str, cycle: int, part: int = 1) -> Response:
    """Show one cycle."""
    view = _view(here, name, cycle)
    first = STRUCTURES * (max(part, 1) - 1)
    drawn = view.picks[first : first + STRUCTURES]
    with here.reading():
        frames = frames_of(here.store, [pick.key for pick in drawn])
    return page(
        request,
        "cycle.html.jinja",
        section="campaigns",
        campaign=name,
        view=view,
        figures=figures(view),
        drawn=drawn,
        stills={
            key: still(frame, name=f"still-{key[:16]}", words=f"Frame {key[:10]}")
            for key, frame in frames.items()
        },
        part=max(part, 1),
        n_parts=-(-len(view.picks) // STRUCTURES),
    )


@router.get("/campaigns/{name}/cycles/{cycle}/figures/{figure}.json", name="cycle_figure")
def figure(here: Here, name: str, cycle: int, figure: str) -> JSONResponse:
    """Return one figure of a cycle for Plotly."""
    return chosen(figures(_view(here, name, cycle)), figure)


@router.get("/campaigns/{name}/cycles/{cycle}/walkers/{walker}", name="walker")
def walker(request: Request, here: Here, name: str, cycle: int, walker: int) -> Response:
    """Show the trajectory of one walker in one cycle."""
    view = _view(here, name, cycle)
    found = next((w for w in view.walkers if w.walker == walker), None)
    return page(
        request,
        "walker.html.jinja",
        section="campaigns",
        campaign=name,
        view=view,
        walker=walker,
        segment=found,
    )


@router.get("/campaigns/{name}/cycles/{cycle}/walkers/{walker}/frames.json", name="walker_frames")
def walker_frames(here: Here, name: str, cycle: int, walker: int) -> JSONResponse:
    """Return frames of one walker for the player."""
    with here.reading():
        found = walker_trajectory(here.store, name, cycle, walker)
    return JSONResponse(found.to_json())


def _view(here: Backend, name: str, cycle: int) -> CycleView:
    with here.reading():
        return cycle_view(here.store, name, cycle)
