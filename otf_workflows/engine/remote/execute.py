"""What runs on a compute node: one job in its folder, without any database.

``python -m otf_workflows.engine.remote.execute FOLDER``; control jobs, which run beside the runner,
add ``--with-database``.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import socket
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from otf_workflows.engine.remote.failures import note
from otf_workflows.errors import OtfError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LOCK = "otf.lock"
RESULT = "jfremote_out.json"
PATIENCE_S = 120.0
"""How long a control job waits for a database that is being restarted (s)."""


def execute(folder: Path) -> bool:
    """Run the job of a folder unless it has run; return whether it was run now.

    A runner that dies while it submits a job submits it a second time. The second one waits here
    until the first is done, and finds the result.

    Parameters
    ----------
    folder
        Made by the runner; holds the job and will hold its result.
    """
    from jobflow_remote.jobs.run import run_remote_job

    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if has_ended(folder):
            return False
        with _telling_more():
            run_remote_job(folder)
    return True


def has_ended(folder: Path) -> bool:
    """Tell whether the job of a folder has written down its result or its error."""
    try:
        written = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(written.get("response") or written.get("error"))


@contextmanager
def _telling_more() -> Iterator[None]:
    """Tell the host, and put the data of our errors under the traceback.

    A traceback is all that jobflow-remote keeps of a failure.
    """
    from jobflow import Job

    original = Job.run

    def run(job: Job, *args: Any, **kwargs: Any) -> Any:
        try:
            response = original(job, *args, **kwargs)
        except OtfError as error:
            error.add_note(note(error))
            raise
        response.stored_data = {**(response.stored_data or {}), "host": socket.gethostname()}
        return response

    with patch.object(Job, "run", run):
        yield


@contextmanager
def _patient_database() -> Iterator[None]:
    """Give a control job a connection that outlasts a restart of the server."""
    from otf_workflows.connection import connect
    from otf_workflows.settings import load_site
    from otf_workflows.store import Store, using

    database = connect(load_site(), patience_s=PATIENCE_S)
    with using(Store(database)):
        yield
    database.client.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job as a program.

    Parameters
    ----------
    arguments
        Command line, without the program.
    """
    parser = argparse.ArgumentParser(prog="python -m otf_workflows.engine.remote.execute")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--with-database", action="store_true", help="for control jobs")
    options = parser.parse_args(arguments)
    with _patient_database() if options.with_database else nullcontext():
        if not execute(options.folder):
            sys.stdout.write("The job has run already; its result stands.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
