"""A token in the address or in a form becomes a cookie."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response

from otf_workflows.dashboard.rendering import page
from otf_workflows.dashboard.security import SESSION_SECONDS, Doorkeeper

router = APIRouter()


@router.get("/login", name="login")
def ask(request: Request, token: str | None = None) -> Response:
    """Take the token from the address and strip it off; without one, ask for it."""
    if token is None:
        return page(request, "login.html.jinja", problem="", done=False)
    return _enter(request, token)


@router.post("/login", name="enter")
def enter(request: Request, token: Annotated[str, Form(max_length=200)]) -> Response:
    """Take the token that a person has pasted."""
    return _enter(request, token.strip())


def _enter(request: Request, token: str) -> Response:
    doorkeeper: Doorkeeper = request.app.state.doorkeeper
    if doorkeeper.tired:
        problem = "Too many wrong tokens. Wait a minute, then try again."
        return page(request, "login.html.jinja", status=429, problem=problem, done=False)
    if not doorkeeper.token_is_right(token):
        return page(
            request, "login.html.jinja", status=401, problem="This token is not right.", done=False
        )
    # A page that goes on by itself, not a redirect: after a link from elsewhere, browsers send a
    # strict cookie only with what our own page asks for.
    response = page(request, "login.html.jinja", problem="", done=True)
    response.set_cookie(
        doorkeeper.cookie_name,
        doorkeeper.cookie_value,
        max_age=SESSION_SECONDS,
        path=request.app.state.settings.root_path or "/",
        httponly=True,
        samesite="strict",
    )
    return response
