"""Running the server: port, token, tunnel line, and the note by which ``url`` finds it again."""

from __future__ import annotations

import asyncio
import getpass
import json
import secrets
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from otf_workflows.dashboard.settings import EVERYWHERE, LOOPBACK
from otf_workflows.engine.host import free_port, is_free, write_private
from otf_workflows.errors import ConfigurationError, InputError, NotFoundError, OtfError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from otf_workflows.dashboard.backend import Backend
    from otf_workflows.dashboard.settings import DashboardSettings

USUAL_PORT = 8700
NOTE = "dashboard.json"


@dataclass(frozen=True)
class Note:
    """Where the last dashboard of a state folder listens, and its token; a file of mode 0600."""

    token: str
    host: str = "127.0.0.1"
    port: int = 0
    uds: str = ""
    root_path: str = ""
    pid: int = 0
    machine: str = ""

    @classmethod
    def read(cls, folder: Path) -> Note | None:
        """Return the note in a folder, or None if there is none that can be read."""
        try:
            return cls(**json.loads((folder / NOTE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Write it, readable by its owner only."""
        write_private(folder / NOTE, json.dumps(asdict(self), indent=1))

    @property
    def url(self) -> str:
        """The address to open, with the token in it."""
        port = self.port or USUAL_PORT  # of the near end of a tunnel to a socket
        host = "127.0.0.1" if self.uds or self.host in EVERYWHERE else self.host
        name = f"[{host}]" if ":" in host else host
        return f"http://{name}:{port}{self.root_path}/login?{urlencode({'token': self.token})}"

    @property
    def tunnel(self) -> str:
        """The command that brings the dashboard to a machine at home.

        Names of login nodes often stand for several machines; this one is named in full.
        """
        port = self.port or USUAL_PORT
        far = self.uds or f"127.0.0.1:{port}"
        return f"ssh -N -L {port}:{far} {getpass.getuser()}@{socket.getfqdn()}"


def new_token() -> str:
    """Return a secret that nobody guesses."""
    return secrets.token_urlsafe(32)


def choose_port(wanted: int | None, before: Note | None) -> int:
    """Return a port: the one asked for, the one used before, the usual one, or any free one.

    Raises
    ------
    ConfigurationError
        If the port asked for is taken.
    """
    if wanted:
        if not is_free(wanted):
            raise ConfigurationError(
                f"Port {wanted} is in use on this machine.",
                hint="otf dashboard   (it finds a free one, and says which)",
            )
        return wanted
    likely = [before.port if before else 0, USUAL_PORT]
    return next((port for port in likely if port and is_free(port)), None) or free_port()


def check_address(*, host: str, allow_remote: bool) -> None:
    """Refuse to listen to other machines unless that was asked for in so many words.

    Raises
    ------
    InputError
        If the host is not this machine's loopback interface.
    """
    if host not in LOOPBACK and not allow_remote:
        raise InputError(
            f"--host {host} lets other machines in, without encryption.",
            hint="use the ssh tunnel that otf dashboard prints, or add --allow-remote",
        )


def check_socket(path: Path) -> Path:
    """Return a socket's absolute path; its folder must be private.

    Raises
    ------
    ConfigurationError
        If others could enter the folder, or something else is in the way.
    """
    from otf_workflows.settings import private_folder

    path = path.expanduser().absolute()
    private_folder(path.parent)
    if len(str(path)) > 100:
        raise ConfigurationError(
            "The path of the socket is too long (100 characters at most).", where=str(path)
        )
    if path.exists():
        if not path.is_socket():
            raise ConfigurationError("There is a file of that name already.", where=str(path))
        from otf_workflows.engine.host import accepts

        if accepts(path):
            raise ConfigurationError("A dashboard listens there already.", where=str(path))
        path.unlink()
    return path


def last_note(folder: Path) -> Note:
    """Return the note of a dashboard that is running.

    Raises
    ------
    NotFoundError
        If none is.
    """
    import psutil

    note = Note.read(folder)
    here = note is not None and note.machine == socket.gethostname()
    if note is None or (here and not psutil.pid_exists(note.pid)):
        raise NotFoundError("No dashboard is running.", hint="otf dashboard")
    return note


def serve(settings: DashboardSettings, *, on_ready: Callable[[], None]) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Parameters
    ----------
    settings
        Options.
    on_ready
        Called once requests are answered.
    """
    import uvicorn

    from otf_workflows.dashboard.app import create_app

    app = create_app(settings)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                on_ready()
                # The first look at many campaigns takes a while; its reader need not wait for it.
                asyncio.get_running_loop().run_in_executor(None, _look_ahead, app.state.backend)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.state.live.close()  # open streams would hold the server up
            await super().shutdown(sockets)

    Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            uds=str(settings.uds) if settings.uds else None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_graceful_shutdown=3,
        )
    ).run()


def _look_ahead(backend: Backend) -> None:
    """Reckon what the first page shows, so that it is there when it is asked for."""
    from otf_workflows.dashboard.queries.glance import glance
    from otf_workflows.schemas import now

    with suppress(OtfError):  # whoever opens the page is told
        glance(backend, since=now())


def note_of(settings: DashboardSettings) -> Note:
    """Return the note of a dashboard with these settings in this process."""
    import os

    return Note(
        token=settings.token,
        host=settings.host,
        port=settings.port,
        uds=str(settings.uds or ""),
        root_path=settings.root_path,
        pid=os.getpid(),
        machine=socket.gethostname(),
    )


def clean_prefix(root_path: str) -> str:
    """Return ``/proxy/8700`` for ``proxy/8700/``; nothing for nothing.

    Raises
    ------
    InputError
        If it is more than a path.
    """
    bare = root_path.strip("/")
    if not bare:
        return ""
    if not all(part and part not in {".", ".."} for part in bare.split("/")) or any(
        sign in bare for sign in "?#:\\\"' "
    ):
        raise InputError(f"--root-path {root_path} is not a path", hint="--root-path /proxy/8700")
    return f"/{bare}"


def own_names(host: str, named: list[str]) -> tuple[str, ...]:
    """Return the names under which browsers may come: this machine's, and those named."""
    mine = [socket.getfqdn(), socket.gethostname()] if host not in LOOPBACK else []
    return (*mine, *named)


def open_browser(url: str) -> None:
    """Open a browser if this machine has a screen; say nothing otherwise."""
    import os
    import sys
    import webbrowser

    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform == "darwin":
        webbrowser.open(url)
