"""Run one command that can neither outlive its parent nor its time. Standard library only.

Started as a script by :mod:`otf_workflows.labelers.supervised`, between a worker and a DFT code::

    python -I -S leash.py PARENT_PID LIMIT_SECONDS COMMAND ARGUMENT ...

The command gets a process group of its own. If the worker dies, however it dies, the kernel tells
the leash, and the leash ends the whole group, so that MPI ranks die with it; if the leash is
killed, the kernel ends the command. On Linux this is prctl(2), PR_SET_PDEATHSIG; elsewhere only
the time limit and forwarded signals remain.

Exit status: that of the command; 128 + signal if a signal ended it; 124 if its time was up; 125
if the worker was gone before it began; 127 if it could not be started.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1
TIME_UP = 124
ORPHANED = 125
NOT_STARTED = 127
GRACE_S = 3.0
"""Time between asking a process group to end and killing it (s)."""


class _Stop(Exception):  # noqa: N818
    """We were asked to end, or our worker died."""


def _die_with_parent(signal_number: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)


def _stop(signal_number: int, _frame: object) -> None:
    raise _Stop(signal_number)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    # Ranks may ignore SIGTERM although their parent obeyed it.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def main(arguments: list[str]) -> int:
    """Run the command and return the exit status described above."""
    parent, limit_s, command = int(arguments[0]), float(arguments[1]), arguments[2:]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)
    _die_with_parent(signal.SIGTERM)
    if os.getppid() != parent:
        return ORPHANED
    process = None
    try:
        process = subprocess.Popen(
            command,
            start_new_session=True,
            preexec_fn=lambda: _die_with_parent(signal.SIGKILL),  # noqa: PLW1509 - one thread
        )
        status = process.wait(limit_s if limit_s > 0 else None)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return NOT_STARTED
    except subprocess.TimeoutExpired:
        status = TIME_UP
    except _Stop as stop:
        status = 128 + int(stop.args[0])
    finally:
        if process is not None:
            _end_group(process)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
