"""Processes of jobs on this machine: is it still the one, and its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def runs_in(pid: int, folder: Path) -> bool:
    """Tell whether a process is the one that runs the job of a folder.

    After a restart of the machine its number may be another program's.
    """
    import psutil

    try:
        return any(str(folder) in word for word in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


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
