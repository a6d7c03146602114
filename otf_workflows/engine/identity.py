"""Names of workers, from which anybody can tell whether the worker still lives."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from otf_workflows.types import Role

WORKER_VARIABLE = "OTF_WORKER"
"""Environment variable that carries the name of a worker into every program it starts."""

_CLOCK_TOLERANCE = timedelta(seconds=2)
"""The kernel reckons the start of a process from the boot time, which is a little inexact."""


@dataclass(frozen=True)
class WorkerName:
    """Role, machine and process of a worker."""

    role: Role
    host: str
    pid: int

    def __str__(self) -> str:
        """Return the name as FireWorks stores it."""
        return f"{self.role}-{self.host}-{self.pid}"

    @classmethod
    def mine(cls, role: Role) -> WorkerName:
        """Return the name of this process as a worker."""
        return cls(role, socket.gethostname(), os.getpid())

    @classmethod
    def parse(cls, name: str) -> WorkerName | None:
        """Return the parts of a name, or None if it is not one of ours."""
        role, _, rest = name.partition("-")
        host, _, pid = rest.rpartition("-")
        if role not in set(Role) or not host or not pid.isdigit():
            return None
        return cls(Role(role), host, int(pid))

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, on this machine."""
        return self.host == socket.gethostname()

    def is_dead(self, *, since: datetime | None) -> bool:
        """Tell whether the worker is certainly gone; never true for other machines.

        Parameters
        ----------
        since
            When it was last known to live (aware). A process that began later is another one
            that was given the same number.
        """
        import psutil

        if not self.is_here:
            return False
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            began = datetime.fromtimestamp(process.create_time(), UTC)
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False
        return since is not None and began > since + _CLOCK_TOLERANCE


def kill_programs_of(name: str) -> int:
    """Kill what a dead worker of this user has left running; return how many processes.

    A DFT code started by a worker that was killed would go on calculating, beside the rerun.

    Parameters
    ----------
    name
        Name of the worker, which its programs carry in their environment.
    """
    import psutil

    killed = 0
    uid = os.getuid()
    for process in psutil.process_iter(["pid", "uids"]):
        uids = process.info["uids"]
        if process.pid == os.getpid() or uids is None or uids.real != uid:
            continue
        try:
            if process.environ().get(WORKER_VARIABLE) == name:
                process.kill()
                killed += 1
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return killed
