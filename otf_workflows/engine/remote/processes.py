"""Processes of jobs on this machine: is it still the one, and its end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import psutil


def runs_in(pid: int, folder: Path) -> bool:
    """Tell whether a process is the one that runs the job of a folder.

    After a restart of the machine its number may be another program's.
    """
    import psutil

    try:
        return any(str(folder) in word for word in _command_line(psutil.Process(pid)))
    except psutil.Error:
        return False


def _command_line(process: psutil.Process, *, patience_s: float = 2.0) -> list[str]:
    """Return a process's words; one that has just been started has none for a moment.

    The kernel closes the descriptors that the parent waits for before it lays
    out the arguments of the new program, so ``Popen`` may return too early.
    """
    import psutil

    end = time.monotonic() + patience_s
    while not (words := process.cmdline()):
        if process.status() == psutil.STATUS_ZOMBIE or time.monotonic() > end:
            break
        time.sleep(0.01)
    return words


def kill_tree(pid: int, folder: Path) -> None:
    """End a job's process and all that it started, unless the number is another program's."""
    import psutil

    if not runs_in(pid, folder):
        return
    root = psutil.Process(pid)
    family = [root]
    try:
        family += root.children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=10)
