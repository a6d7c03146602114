"""``/``: everything at a glance."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from otf_workflows.dashboard.backend import Backend, backend
from otf_workflows.dashboard.queries.glance import glance
from otf_workflows.dashboard.rendering import page
from otf_workflows.schemas import now

router = APIRouter()


@router.get("/", name="glance")
def show(request: Request, here: Annotated[Backend, Depends(backend)]) -> Response:
    """Show all campaigns."""
    view = glance(here, since=now() - timedelta(days=1))
    return page(request, "glance.html.jinja", view=view)
