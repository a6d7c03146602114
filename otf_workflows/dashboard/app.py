"""The application: gates, pages, templates and the poller put together."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.staticfiles import StaticFiles

from otf_workflows.dashboard.backend import Backend
from otf_workflows.dashboard.live import Live
from otf_workflows.dashboard.pages import (
    campaign,
    campaign_actions,
    cycle,
    events,
    glance,
    health,
    jobs,
    labels,
    login,
    models,
    new_campaign,
    production,
)
from otf_workflows.dashboard.pages.errors import (
    on_http_error,
    on_invalid,
    on_otf_error,
    on_unexpected,
)
from otf_workflows.dashboard.queries.changes import stamps
from otf_workflows.dashboard.rendering import Addresses, environment
from otf_workflows.dashboard.security import Doorkeeper, Guard
from otf_workflows.errors import OtfError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, MutableMapping
    from typing import Any

    from starlette.responses import Response

    from otf_workflows.dashboard.settings import DashboardSettings

ROUTERS = [
    login.router,
    events.router,
    glance.router,
    jobs.router,
    health.router,
    labels.router,
    campaign_actions.router,
    campaign.router,
    cycle.router,
    models.router,
    production.router,
    new_campaign.router,
]
"""One router per page; the menu shows those that :data:`rendering.NAVIGATION` names."""

THREADS = 6
"""Requests answered at once; each thread has memory and a connection of its own."""


class VersionedFiles(StaticFiles):
    """Static files that a browser keeps for ever, since their address holds their version."""

    async def get_response(self, path: str, scope: MutableMapping[str, Any]) -> Response:
        """Return a file, with a cache header that fits its address."""
        response = await super().get_response(path, scope)
        versioned = b"v=" in scope.get("query_string", b"")
        response.headers["cache-control"] = (
            "public, max-age=31536000, immutable" if versioned else "no-cache"
        )
        return response


def create_app(settings: DashboardSettings) -> FastAPI:
    """Return the application.

    Parameters
    ----------
    settings
        Options it was started with.
    """
    app = FastAPI(
        title="OTF Workflows",
        lifespan=_lifespan,
        # The generated pages load scripts from elsewhere, and nobody needs them.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    backend = Backend(settings.site)
    doorkeeper = Doorkeeper(settings)
    app.state.settings = settings
    app.state.backend = backend
    app.state.doorkeeper = doorkeeper
    app.state.templates = environment()
    app.state.addresses = Addresses(ROUTERS, settings.root_path)
    app.state.live = Live(lambda: stamps(backend))
    for router in ROUTERS:
        app.include_router(router)
    static = files("otf_workflows.dashboard") / "static"
    app.mount("/static", VersionedFiles(directory=str(static)), name="static")
    app.add_exception_handler(OtfError, on_otf_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(Exception, on_unexpected)
    app.add_middleware(GZipMiddleware, minimum_size=2000, compresslevel=5)
    # Added last, so that it stands first.
    app.add_middleware(Guard, settings=settings, doorkeeper=doorkeeper)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    import anyio.to_thread

    anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
    live: Live = app.state.live
    looking = asyncio.create_task(live.run())
    try:
        yield
    finally:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
        app.state.backend.close()
