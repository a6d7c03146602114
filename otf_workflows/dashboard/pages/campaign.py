"""``/campaigns``: all campaigns, and one with its cycles, errors, costs and decisions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from otf_workflows.dashboard.backend import Backend, backend
from otf_workflows.dashboard.figures import Figure
from otf_workflows.dashboard.figures.campaign import figures
from otf_workflows.dashboard.queries.campaign import CampaignView, campaign_lines, campaign_view
from otf_workflows.dashboard.rendering import page
from otf_workflows.errors import NotFoundError

router = APIRouter()
Here = Annotated[Backend, Depends(backend)]


@router.get("/campaigns", name="campaigns")
def list_campaigns(request: Request, here: Here) -> Response:
    """List all campaigns, newest first."""
    with here.reading():
        lines = campaign_lines(here.store)
    return page(request, "campaigns.html.jinja", section="campaigns", lines=lines)


@router.get("/campaigns/{name}", name="campaign")
def show(request: Request, here: Here, name: str) -> Response:
    """Show one campaign."""
    view = _view(here, name)
    return page(
        request, "campaign.html.jinja", section="campaigns", view=view, figures=figures(view)
    )


@router.get("/campaigns/{name}/figures/{figure}.json", name="campaign_figure")
def figure(here: Here, name: str, figure: str) -> JSONResponse:
    """Return one figure of a campaign for Plotly."""
    return chosen(figures(_view(here, name)), figure)


def _view(here: Backend, name: str) -> CampaignView:
    with here.reading():
        store = here.store
        store.campaign(name)  # a name that nobody has is said to be so, with the nearest ones
        return campaign_view(
            store,
            here.reader,
            name,
            progress=here.progress.of(here, name),
            ledgers=here.ledgers.of(store, name),
        )


def chosen(made: list[Figure], name: str) -> JSONResponse:
    """Return the figure of a name as JSON.

    Raises
    ------
    NotFoundError
        If the page has no such figure.
    """
    found = next((figure for figure in made if figure.name == name), None)
    if found is None:
        raise NotFoundError(f"this page has no figure '{name}'")
    return JSONResponse(found.to_plotly(), headers={"cache-control": "no-store"})
