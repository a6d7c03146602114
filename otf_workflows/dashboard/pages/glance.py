"""``/``: everything at a glance."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from otf_workflows.dashboard.backend import Backend, backend
from otf_workflows.dashboard.queries.glance import glance
from otf_workflows.dashboard.rendering import page
from otf_workflows.engine.base import JobState
from otf_workflows.schemas import now

router = APIRouter()

NEW_VISIT = timedelta(minutes=30)
"""Who comes back after this long begins a new visit."""
FIRST_LOOK_BACK = timedelta(days=1)
"""Who was never here sees the failures of so long."""
YEAR_S = 365 * 86_400


@router.get("/", name="glance")
def show(request: Request, here: Annotated[Backend, Depends(backend)]) -> Response:
    """Show all campaigns, and what failed since the last visit."""
    settings = request.app.state.settings
    cookie = f"otf_visit_{settings.cookie_suffix}"
    visit = Visit.read(request.cookies.get(cookie), when=now())
    view = glance(here, since=visit.before)
    response = page(
        request, "glance.html.jinja", view=view, states=list(JobState), first=visit.first
    )
    response.set_cookie(
        cookie,
        str(visit),
        max_age=YEAR_S,
        path=settings.root_path or "/",
        httponly=True,
        samesite="strict",
    )
    return response


class Visit:
    """When somebody was here last, and when before that.

    A page that stays open is one long visit: what failed meanwhile stays news until its reader has
    been away for a while.

    Parameters
    ----------
    before
        Last moment of the visit before this one.
    last
        Now.
    first
        Whether there was no visit before.
    """

    def __init__(self, before: datetime, last: datetime, *, first: bool) -> None:
        self.before = before
        self.last = last
        self.first = first

    def __str__(self) -> str:
        """Return the text that the browser keeps."""
        mark = "first" if self.first else "again"
        return f"{self.before.timestamp():.0f}.{self.last.timestamp():.0f}.{mark}"

    @classmethod
    def read(cls, text: str | None, *, when: datetime) -> Visit:
        """Return the visit that goes on, or a new one.

        Parameters
        ----------
        text
            What the browser has kept, if it is ours.
        when
            Now.
        """
        parts = (text or "").split(".")
        if len(parts) != 3 or not all(part.isdigit() and len(part) < 12 for part in parts[:2]):
            return cls(when - FIRST_LOOK_BACK, when, first=True)
        before, last = (datetime.fromtimestamp(int(part), UTC) for part in parts[:2])
        if when - last > NEW_VISIT:
            return cls(last, when, first=False)
        return cls(before, when, first=parts[2] == "first")
