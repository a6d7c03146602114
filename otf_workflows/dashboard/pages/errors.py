"""What a person sees when something is not there or does not answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otf_workflows.dashboard.rendering import page
from otf_workflows.dashboard.security import HEADERS
from otf_workflows.errors import DatabaseError, InputError, NotFoundError, OtfError, PartialError

if TYPE_CHECKING:
    from fastapi import Request
    from fastapi.responses import Response

_STATUS = [(NotFoundError, 404), (DatabaseError, 503), (InputError, 422), (PartialError, 409)]
_TITLES = {
    404: "Not found",
    405: "Not possible here",
    409: "Done in part",
    422: "Not understood",
    503: "The database does not answer",
}


async def on_otf_error(request: Request, error: Exception) -> Response:
    """Show one of our errors: what, where, next."""
    if not isinstance(error, OtfError):
        raise error
    status = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
    return _show(request, status, error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Show an address that is not there."""
    status = getattr(error, "status_code", 500)
    what = "There is no such page." if status == 404 else str(getattr(error, "detail", error))
    return _show(request, status, OtfError(what))


async def on_invalid(request: Request, error: Exception) -> Response:
    """Show which value in an address or a form is not understood."""
    problems = error.errors() if hasattr(error, "errors") else []
    sentences = [f"{item['loc'][-1]}: {item['msg'].lower()}" for item in problems]
    return _show(request, 422, InputError("; ".join(sentences) or "The request is not valid."))


async def on_unexpected(request: Request, error: Exception) -> Response:
    """Show a mistake of ours; the traceback goes to the log of the server, not to the reader."""
    what = f"unexpected {type(error).__name__}: a mistake in otf-workflows"
    hint = "look at the terminal of 'otf dashboard', and report the traceback there"
    response = _show(request, 500, OtfError(what, where=request.url.path, hint=hint))
    response.headers.update(HEADERS)  # this answer does not pass the guard
    return response


def _show(request: Request, status: int, error: OtfError) -> Response:
    title = _TITLES.get(status, "Something went wrong")
    return page(request, "error.html.jinja", status=status, title=title, error=error)
