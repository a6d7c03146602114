"""Who may talk to the dashboard: host, origin, token, and what a page may load.

A port on the loopback interface of a login node is open to every user of that machine, and a
tunnel end to every web page in one's own browser. So each request passes four gates before any
page code runs: a known Host header (against DNS rebinding), for writes the same origin (against
cross-site requests), a token, and ``--allow-actions`` for everything that changes anything. The
rule for origins is that of Go's ``http.CrossOriginProtection``.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import deque
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from otf_workflows.dashboard.settings import DashboardSettings

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SESSION_SECONDS = 30 * 86_400

MAX_TRIES = 10
TRY_WINDOW_S = 60.0
MAX_BODY_BYTES = 2 * 1024**2
"""A structure file and a form; nothing larger is ever sent to us."""

CONTENT_SECURITY_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    # Plotly and 3Dmol place their elements by style attributes; scripts stay strict.
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "font-src": "'self'",
    "connect-src": "'self'",
    "worker-src": "'self' blob:",
    "form-action": "'self'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
}
HEADERS = {
    "content-security-policy": "; ".join(map(" ".join, CONTENT_SECURITY_POLICY.items())),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class Doorkeeper:
    """Tells whether a secret is right; refuses to be asked too often.

    Parameters
    ----------
    settings
        Of the dashboard.
    clock
        Monotonic seconds.
    """

    def __init__(
        self, settings: DashboardSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._token = settings.token
        self._clock = clock
        self._misses: deque[float] = deque(maxlen=MAX_TRIES)
        self.cookie_name = f"otf_session_{settings.cookie_suffix}"
        # What the browser keeps is derived from the token, so that it outlives a restart and
        # cannot be turned back into the token.
        self.cookie_value = hmac.new(
            settings.token.encode(), b"otf dashboard session", hashlib.sha256
        ).hexdigest()

    @property
    def tired(self) -> bool:
        """Whether too many wrong secrets were given in the last minute."""
        return len(self._misses) == MAX_TRIES and self._clock() - self._misses[0] < TRY_WINDOW_S

    def token_is_right(self, given: str) -> bool:
        """Compare a token in constant time, and count misses."""
        right = hmac.compare_digest(given.encode(), self._token.encode())
        if not right:
            self._misses.append(self._clock())
        return right

    def lets_in(self, headers: dict[str, str]) -> bool:
        """Tell whether a request carries our cookie or the token itself."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return not self.tired and self.token_is_right(given.strip())
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return False
        morsel = cookies.get(self.cookie_name)
        return morsel is not None and hmac.compare_digest(
            morsel.value.encode(), self.cookie_value.encode()
        )


def host_of(value: str) -> str:
    """Return the name in a Host header or an origin's host, without port, in lower case."""
    try:
        return (urlsplit(f"//{value}").hostname or "").lower()
    except ValueError:
        return ""


def same_origin(headers: dict[str, str]) -> bool:
    """Tell whether a writing request comes from our own page, or from no browser at all.

    Browsers say so themselves since 2023; older ones name the origin, which must be our host.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in {"same-origin", "none"}
    origin = headers.get("origin")
    if origin is None:
        return True
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return bool(parts.netloc) and parts.netloc.lower() == headers.get("host", "").lower()


class Guard:
    """ASGI middleware around the whole application.

    Parameters
    ----------
    app
        The application.
    settings
        Of the dashboard.
    doorkeeper
        Knows the token.
    """

    def __init__(
        self, app: ASGIApp, *, settings: DashboardSettings, doorkeeper: Doorkeeper
    ) -> None:
        self.app = app
        self.settings = settings
        self.doorkeeper = doorkeeper

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # we speak no websocket
            return
        headers = {
            key.decode("latin-1").lower(): value.decode("latin-1")
            for key, value in scope["headers"]
        }
        path = self._without_prefix(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {key.lower() for key, _ in message["headers"]}
                extra = dict(HEADERS)
                if not path.startswith("/static/"):
                    extra["cache-control"] = "no-store"
                message["headers"] = [
                    *message["headers"],
                    *(
                        (key.encode(), value.encode())
                        for key, value in extra.items()
                        if key.encode() not in present
                    ),
                ]
            await send(message)

        refusal = self._refusal(scope["method"], path, headers)
        if refusal is None:
            await self.app(scope, _at_most(MAX_BODY_BYTES, receive), send_with_headers)
            return
        status, text = refusal
        wants_page = "text/html" in headers.get("accept", "") and "hx-request" not in headers
        if status == 401 and scope["method"] == "GET" and wants_page:
            status, text = 303, ""
        await _answer(send_with_headers, status, text, location=f"{self.settings.root_path}/login")

    def _without_prefix(self, scope: Scope) -> str:
        """Put the proxy's prefix into the scope; return the path without it.

        Some proxies strip the prefix before they ask us, others do not.
        """
        root = self.settings.root_path
        path: str = scope["path"]
        if root and not (path == root or path.startswith(root + "/")):
            path = root + path
        scope["root_path"] = root
        scope["path"] = path
        return path.removeprefix(root) or "/"

    def _refusal(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str] | None:
        """Return status and sentence if a request may not pass."""
        if host_of(headers.get("host", "")) not in self.settings.hosts:
            return 400, (
                "This dashboard does not answer under that host name. "
                "Start it with --allowed-host NAME if the name is yours."
            )
        if method not in SAFE_METHODS and not same_origin(headers):
            return 403, "Refused: this request comes from another web page."
        if _too_long(headers):
            return 413, "Refused: the request is too large."
        if path == "/login" or path.startswith("/static/"):  # what asks for the token, and how
            return None
        return self._stranger(headers) or self._overreach(method)

    def _stranger(self, headers: dict[str, str]) -> tuple[int, str] | None:
        if self.doorkeeper.lets_in(headers):
            return None
        if self.doorkeeper.tired:
            return 429, "Too many wrong tokens. Wait a minute, then try again."
        return 401, "A token is needed. 'otf dashboard url' prints the address with it."

    def _overreach(self, method: str) -> tuple[int, str] | None:
        if method in SAFE_METHODS or self.settings.allow_actions:
            return None
        return 403, "This dashboard only looks. Start it with --allow-actions to act."


def _too_long(headers: dict[str, str]) -> bool:
    length = headers.get("content-length", "0")
    return not length.isdigit() or int(length) > MAX_BODY_BYTES


def _at_most(limit: int, receive: Receive) -> Receive:
    """Return a channel that ends a body which grows too long without having said so."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return message if seen <= limit else {"type": "http.disconnect"}

    return counted


async def _answer(
    send: Callable[[Message], object], status: int, text: str, *, location: str
) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    if status == 303:
        headers.append((b"location", location.encode()))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})  # type: ignore[misc]
    await send({"type": "http.response.body", "body": text.encode()})  # type: ignore[misc]
