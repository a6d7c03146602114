"""What one dashboard process was started with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from otf_workflows.settings import Site

LOOPBACK = ("localhost", "127.0.0.1", "::1")
EVERYWHERE = frozenset({"0.0.0.0", "::"})  # noqa: S104  named to be told apart, not used


@dataclass(frozen=True)
class DashboardSettings:
    """Options of a dashboard.

    Attributes
    ----------
    site
        Whose database is shown.
    token
        Secret that lets a browser in.
    allow_actions
        Whether the page may change anything; otherwise every write is refused.
    host, port
        Where it listens, unless ``uds`` is given.
    uds
        Socket file to listen on instead of a port.
    root_path
        Prefix under which a proxy serves it, such as ``/proxy/8700``.
    allowed_hosts
        Names under which browsers may reach it, besides those of the loopback interface.
    """

    site: Site
    token: str = field(repr=False)
    allow_actions: bool = False
    host: str = "127.0.0.1"
    port: int = 0
    uds: Path | None = None
    root_path: str = ""
    allowed_hosts: tuple[str, ...] = ()

    @property
    def hosts(self) -> frozenset[str]:
        """All names under which it may be reached, in lower case, without ports."""
        named = (*LOOPBACK, self.host, *self.allowed_hosts)
        return frozenset(name.strip("[]").lower() for name in named) - EVERYWHERE

    @property
    def cookie_suffix(self) -> str:
        """Ending of cookie names; browsers do not tell ports apart, and tunnels move them."""
        return str(self.port or "socket")
