"""Templates: one environment, the words and addresses that every page uses, the answer."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context

from otf_workflows.report.words import calibration, scale
from otf_workflows.schemas import now

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fastapi import APIRouter, Request
    from jinja2.runtime import Context

    from otf_workflows.progress import CampaignProgress

NAVIGATION = [
    ("glance", "Glance"),
    ("campaigns", "Campaigns"),
    ("labels", "Labels"),
    ("jobs", "Jobs"),
    ("models", "Models"),
    ("production", "Production"),
    ("health", "Health"),
    ("new_campaign", "New campaign"),
]
"""Route names in the order of the menu; those without a route are left out."""

ACTING = {"new_campaign"}
"""Pages that do nothing but act: not in the menu of a dashboard that only looks."""

KEYS = {"glance": "h", "campaigns": "c", "labels": "l", "jobs": "j", "models": "m", "health": "s"}
"""The key that opens a page, after ``g``."""

ICONS = {
    "done": "✔", "converged": "✔", "completed": "✔", "promoted": "✔", "ok": "✔",
    "running": "▶", "producing": "▶", "emitting": "▶",
    "pending": "○", "waiting": "○", "ready": "◔", "reserved": "◔",
    "failed": "✘", "fizzled": "✘", "stalled": "✘", "missing": "✘",
    "quarantined": "!", "unknown": "?",
    "paused": "‖", "budget_exhausted": "■", "stopped": "■", "defused": "■", "archived": "■",
}  # fmt: skip
"""A sign per state; the word and a colour always stand beside it."""

TONES = {
    "done": "good", "converged": "good", "completed": "good", "promoted": "good", "ok": "good",
    "running": "busy", "producing": "busy", "emitting": "busy", "ready": "busy", "reserved": "busy",
    "failed": "bad", "fizzled": "bad", "stalled": "bad", "missing": "bad",
    "quarantined": "warn", "paused": "warn", "budget_exhausted": "warn",
}  # fmt: skip
"""Colour class per state; grey for the rest."""


class Addresses:
    """Paths of routes by name, with the proxy's prefix; never absolute.

    Parameters
    ----------
    routers
        All routers of the application.
    root_path
        Prefix of a proxy.
    """

    def __init__(self, routers: Iterable[APIRouter], root_path: str) -> None:
        self.root_path = root_path
        routes: list[Any] = [route for router in routers for route in router.routes]
        self._routes = {route.name: route for route in routes}

    def knows(self, name: str) -> bool:
        """Tell whether there is a route of this name."""
        return name in self._routes

    def __call__(self, route: str, /, **values: Any) -> str:
        """Return the path of a route; values that are not part of it become its query.

        Values that are None or empty are left out of the query; lists are repeated.
        """
        found = self._routes[route]
        places = found.param_convertors
        path = found.path_format
        for key in places:
            safe = "/" if type(places[key]).__name__ == "PathConvertor" else ""
            path = path.replace("{" + key + "}", quote(str(values[key]), safe=safe))
        query = {key: value for key, value in values.items() if key not in places}
        return self.root_path + path + query_string(query)

    def static(self, name: str) -> str:
        """Return the path of a static file; its version makes it cacheable for ever."""
        return f"{self.root_path}/static/{name}?v={_version(name)}"


def query_string(values: Mapping[str, Any]) -> str:
    """Return ``?a=1&b=2`` without empty values, or nothing."""
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        several = value if isinstance(value, list | tuple | set) else [value]
        pairs += [(key, str(item)) for item in several if item not in {None, ""}]
    return "?" + urlencode(pairs) if pairs else ""


@lru_cache
def _version(name: str) -> str:
    import hashlib

    content = files("otf_workflows.dashboard").joinpath("static", *name.split("/")).read_bytes()
    return hashlib.sha256(content).hexdigest()[:12]


def environment() -> Environment:
    """Return the templates' environment: everything is escaped, nothing may be undefined."""
    made = Environment(
        loader=PackageLoader("otf_workflows.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        cache_size=100,
    )
    made.filters.update(
        ago=ago, utc_text=utc_text, iso=iso, duration=duration, words=words, compact=compact,
        plural=plural, scale=scale, calibration=calibration,
    )  # fmt: skip
    made.globals.update(
        icon=icon,
        tone=tone,
        job_parts=job_parts,
        sentence_of=sentence_of,
        url=_url,
        knows=_knows,
        static=_static,
        here=_here,
        now=now,
    )
    return made


def page(request: Request, template: str, *, status: int = 200, **context: Any) -> HTMLResponse:
    """Render a template as the answer to a request.

    Parameters
    ----------
    request
        The request; templates see it as ``request``.
    template
        Name of the template.
    status
        HTTP status.
    **context
        What the template shows.
    """
    app = request.app
    addresses: Addresses = app.state.addresses
    settings = app.state.settings
    html = app.state.templates.get_template(template).render(
        request=request,
        menu_keys=KEYS,
        menu=[
            (name, text)
            for name, text in NAVIGATION
            if addresses.knows(name) and (settings.allow_actions or name not in ACTING)
        ],
        allow_actions=settings.allow_actions,
        **context,
    )
    return HTMLResponse(html, status_code=status)


@pass_context
def _url(context: Context, route: str, /, **values: Any) -> str:
    return context["request"].app.state.addresses(route, **values)


@pass_context
def _knows(context: Context, route: str) -> bool:
    return context["request"].app.state.addresses.knows(route)


@pass_context
def _static(context: Context, name: str) -> str:
    return context["request"].app.state.addresses.static(name)


@pass_context
def _here(context: Context, **changes: Any) -> str:
    """Return the address of this page with some of its filters changed, all others kept."""
    request = context["request"]
    values: dict[str, Any] = {
        key: request.query_params.getlist(key) for key in request.query_params
    }
    values.update(changes)
    root = request.app.state.addresses.root_path
    return root + quote(request.scope["path"].removeprefix(root)) + query_string(values)


# -- words ----------------------------------------------------------------------------------------


def icon(state: object) -> str:
    """Return the sign of a state."""
    return ICONS.get(str(state).lower().replace("-", "_"), "·")


def tone(state: object) -> str:
    """Return the colour class of a state."""
    return TONES.get(str(state).lower().replace("-", "_"), "calm")


def job_parts(counts: Mapping[Any, int]) -> list[tuple[str, int, str]]:
    """Return what a bar of jobs is made of: colour class, number, word."""
    order = ("done", "running", "failed", "paused", "ready", "waiting")
    waits = {"ready": "calm", "waiting": "calm"}
    return [
        (waits.get(state, tone(state)), counts.get(state, 0), state)
        for state in order
        if counts.get(state)
    ]


def sentence_of(progress: CampaignProgress) -> str:
    """Return what a campaign does, without the state that stands beside it already."""
    sentence = progress.sentence.removeprefix(f"{words(progress.state)}: ")
    return sentence[:1].upper() + sentence[1:]


def words(value: object) -> str:
    """Return an enum value as words: ``budget exhausted``."""
    return str(value).replace("_", " ")


def aware(moment: datetime) -> datetime:
    """Return a moment with its zone; MongoDB gives UTC without saying so."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def iso(moment: datetime) -> str:
    """Return a moment for the ``datetime`` attribute."""
    return aware(moment).astimezone(UTC).isoformat(timespec="seconds")


def utc_text(moment: datetime) -> str:
    """Return ``2026-01-15 20:40:00 UTC``."""
    return f"{aware(moment).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def ago(moment: datetime) -> str:
    """Return ``12 s ago``, ``3 min ago``, ``5 h ago`` or ``4 d ago``."""
    seconds = (now() - aware(moment)).total_seconds()
    if seconds < -1:
        return f"in {_short(-seconds)}"
    return f"{_short(max(seconds, 0))} ago"


def duration(seconds: float | None) -> str:
    """Return ``1 h 05 min``, ``3 min 20 s`` or ``12 s``; a dash if unknown."""
    from otf_workflows.cli.output import duration as in_words

    return "–" if seconds is None else in_words(seconds)


def _short(seconds: float) -> str:
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{round(seconds / size)} {unit}"
    return f"{round(seconds / 86_400)} d"


def compact(value: float | None, digits: int = 3) -> str:
    """Return a number with so many significant digits; thousands apart; a dash if unknown."""
    if value is None:
        return "–"
    if isinstance(value, int) or (abs(value) >= 1000 and float(value).is_integer()):
        return f"{int(value):,}".replace(",", "\u202f")
    return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}".replace(",", "\u202f")


def plural(n: int, one: str, many: str | None = None) -> str:
    """Return ``1 label`` or ``3 labels``."""
    return f"{compact(n)} {one if n == 1 else many or one + 's'}"
