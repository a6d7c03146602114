"""``/health``: database, workers, batch queue, and this dashboard itself."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from otf_workflows.dashboard.backend import Backend, backend
from otf_workflows.dashboard.queries.health import health, process_facts
from otf_workflows.dashboard.rendering import page

router = APIRouter()


@router.get("/health", name="health")
def show(request: Request, here: Annotated[Backend, Depends(backend)]) -> Response:
    """Show what is up and what is not."""
    from otf_workflows import __version__

    with here.reading() as database:
        roles = here.roles.of(database)
        view = health(here, roles)
    facts = process_facts() | {
        "version": __version__,
        "viewers": request.app.state.live.n_viewers,
    }
    return page(request, "health.html.jinja", view=view, process=facts)
