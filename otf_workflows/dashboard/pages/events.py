"""The stream that tells open pages what has changed."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from otf_workflows.dashboard.live import Live

router = APIRouter()


@router.get("/events", name="events", response_class=StreamingResponse)
async def events(request: Request) -> StreamingResponse:
    """Stream the names of topics that have changed."""
    live: Live = request.app.state.live
    return StreamingResponse(
        live.stream(),
        media_type="text/event-stream",
        # The first keeps nginx from collecting events, the second our own compression.
        headers={"X-Accel-Buffering": "no", "Content-Encoding": "identity"},
    )
