"""A worker: one long-lived process that takes the jobs of one role and runs them.

``python -m otf_workflows.engine.worker --role dft --site site.yaml``

It stays alive between jobs, since importing torch takes longer than many a job. It ends on
SIGTERM, or when its supervisor is gone, and puts back the job it was at.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
import threading
import time
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otf_workflows.engine.identity import WORKER_VARIABLE, WorkerName
from otf_workflows.errors import DatabaseError, OtfError
from otf_workflows.log import log_to_file
from otf_workflows.settings import SITE_FILE_VARIABLE, STATE_DIR_VARIABLE, Site, load_site
from otf_workflows.types import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.engine.fireworks_engine import FireWorksEngine

logger = logging.getLogger("otf_workflows.engine.worker")  # also when run as a program

IDLE_S = 0.5
"""Pause between two looks at an empty queue (s)."""
AFTER_ERROR_S = 3.0
"""Pause after an error outside of a job, of the database for instance (s)."""
PATIENCE_S = 120.0
"""How long a worker waits for a database that is being restarted (s)."""
LEAVE_S = 15.0
"""How long a worker that is told to end may take to write down what it has just finished (s)."""
RECOVERY_INTERVAL_S = 30.0
"""How often an idle control worker looks for jobs that other workers have lost (s)."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Worker:
    """Runs the jobs of one role, one after the other.

    Parameters
    ----------
    site
        The site.
    role
        Which jobs to take.
    reconcile
        Whether a control worker also brings campaigns forward; without it, it only runs jobs.
    """

    def __init__(self, site: Site, role: Role, *, reconcile: bool = True) -> None:
        from otf_workflows.connection import use_job_store
        from otf_workflows.engine.fireworks_engine import FireWorksEngine

        self.name = WorkerName.mine(role)
        self.role = role
        self.engine: FireWorksEngine = FireWorksEngine(site, patience_s=PATIENCE_S)
        use_job_store(self.engine.job_store)
        self.launches = site.resolved_state_dir / "launches"
        self.reconcile = reconcile
        self.stopping = threading.Event()
        self.at_rest = threading.Event()
        self._uncertain = False
        self._recovered = time.monotonic()

    def run(self, *, max_idle_s: float | None = None) -> int:
        """Take jobs until told to stop.

        Parameters
        ----------
        max_idle_s
            End after so many seconds without a job; none for never.

        Returns
        -------
        int
            Number of jobs run.
        """
        jobs, idle_since = 0, time.monotonic()
        while not self.stopping.is_set():
            self.at_rest.clear()
            ran = self._turn()
            self.at_rest.set()
            if ran:
                jobs += 1
            if ran is not False:
                idle_since = time.monotonic()
            if max_idle_s is not None and time.monotonic() - idle_since > max_idle_s:
                break
            if not ran:
                self.stopping.wait(IDLE_S if ran is False else AFTER_ERROR_S)
        return jobs

    def _turn(self) -> bool | None:
        """Run one job and what follows from it; return None if that went wrong."""
        try:
            self._give_up_what_was_interrupted()
            ran = self.run_one()
            if self.role is Role.CONTROL:
                self._control(busy=ran)
        except OtfError as error:
            logger.error("Worker %s: %s", self.name, error.what)  # noqa: TRY400
        except Exception:  # a worker outlives the trouble of one job; the log has the traceback
            logger.exception("Worker %s met an unexpected error and goes on.", self.name)
        else:
            return ran
        self._uncertain = True
        return None

    def run_one(self) -> bool:
        """Run the next job of our role; return False if there was none."""
        from fireworks.core.fworker import FWorker
        from fireworks.core.rocket_launcher import launch_rocket

        from otf_workflows.connection import translated

        pad = self.engine.launchpad
        with translated(self.engine.site):
            held = self.engine.held()
            query: dict[str, Any] = {"spec.campaign": {"$nin": held}} if held else {}
            fworker = FWorker(name=str(self.name), category=str(self.role), query=query)
            if not pad.run_exists(fworker):
                return False
            folder = self._launch_folder()
            with self._inside(folder):
                ran = bool(launch_rocket(pad, fworker, strm_lvl="CRITICAL"))
            launch = self._last_launch()
        if not ran:  # another worker was faster
            shutil.rmtree(folder)
            return False
        self._tell(launch)
        if launch:
            self.engine.apply_hold(launch["campaign"])
        return True

    def put_back(self) -> str | None:
        """Make the job this worker is at ready again; return a sentence, or None if idle.

        Uses connections of its own, for the main thread may be in the middle of anything.
        """
        from otf_workflows.engine.launchpad import launchpad
        from otf_workflows.engine.recovery import put_back

        pad = launchpad(self.engine.site)
        mine = {"state": "RUNNING", "fworker.name": str(self.name)}
        launch = pad.launches.find_one(mine, {"fw_id": 1, "launch_id": 1})
        if launch is None or not put_back(pad, launch["fw_id"], launch["launch_id"]):
            return None
        return f"Job {launch['fw_id']} was put back by {self.name}."

    def _give_up_what_was_interrupted(self) -> None:
        """Put a job back whose end could not be written down, as while the database was away.

        Everybody else takes it for running, for this process lives.
        """
        if self._uncertain:
            sentence = self.put_back()
            if sentence:
                logger.warning(sentence)
            self._uncertain = False

    def _control(self, *, busy: bool) -> None:
        """Bring campaigns forward; now and then look after what other workers lost."""
        if not busy and time.monotonic() - self._recovered > RECOVERY_INTERVAL_S:
            self._recovered = time.monotonic()
            _log_all(self.engine.recover())
        if self.reconcile:
            _log_all(_reconcile(self.engine))

    def _launch_folder(self) -> Path:
        now = datetime.now(UTC)
        name = f"{now:%H%M%S-%f}-{self.role}-{os.getpid()}"
        folder = self.launches / f"{now:%Y-%m-%d}" / name
        folder.mkdir(parents=True)
        return folder

    def _inside(self, folder: Path) -> ExitStack:
        """Work in a folder, with one store, and with what a job prints going to a file there."""
        from otf_workflows.store import Store, using

        stack = ExitStack()
        stack.enter_context(using(Store(self.engine.database)))
        before = Path.cwd()
        os.chdir(folder)
        stack.callback(os.chdir, before)
        printed = stack.enter_context((folder / "job.out").open("a", encoding="utf-8"))
        stack.enter_context(redirect_stdout(printed))
        stack.enter_context(redirect_stderr(printed))
        return stack

    def _last_launch(self) -> dict[str, Any] | None:
        pad = self.engine.launchpad
        fields = {"fw_id": 1, "state": 1, "runtime_secs": 1, "launch_dir": 1}
        launch = pad.launches.find_one(
            {"fworker.name": str(self.name)}, fields, sort=[("launch_id", -1)]
        )
        if launch is None:
            return None
        firework = pad.fireworks.find_one(
            {"fw_id": launch["fw_id"]}, {"name": 1, "spec.campaign": 1}
        )
        if firework is None:
            return None
        campaign = firework["spec"].get("campaign", "")
        return {**launch, "name": firework["name"], "campaign": campaign}

    def _tell(self, launch: dict[str, Any] | None) -> None:
        if launch is None:
            return
        ended = "done" if launch["state"] == "COMPLETED" else str(launch["state"]).lower()
        seconds = launch.get("runtime_secs") or 0.0
        what = "Job %s '%s' of campaign %s: %s after %.1f s, in %s"
        details = (launch["fw_id"], launch["name"], launch["campaign"], ended, seconds)
        logger.info(what, *details, launch["launch_dir"])


def _reconcile(engine: FireWorksEngine) -> list[str]:
    """Let the loop decide what comes next; one database connection for all its steps."""
    from otf_workflows.reconcile import reconcile_all
    from otf_workflows.store import Store, using

    with using(Store(engine.database)) as store:
        return reconcile_all(store, engine)


def _log_all(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        logger.info(sentence)


def watch(worker: Worker, *, parent: int | None) -> None:
    """End this process when it is told to, or when its supervisor is gone.

    A thread of its own does it: FireWorks takes an exception raised in a running job, by a signal
    for instance, for a failure of the job. (The kernel's parent-death signal would fire at the
    end of the *thread* that started us, so the parent is looked at instead.)

    Parameters
    ----------
    worker
        The worker.
    parent
        Process id of the supervisor; none if there is none.
    """
    while not worker.stopping.wait(0.5):
        if parent is not None and os.getppid() != parent:
            logger.warning("Worker %s: the supervisor is gone.", worker.name)
            break
    worker.stopping.set()
    try:
        _leave(worker)
        logger.info("Worker %s ended.", worker.name)
    except Exception:  # leaving must end in any case; recovery puts the job back later
        logger.exception("Worker %s could not put its job back.", worker.name)
    finally:
        _kill_children()
        logging.shutdown()
        os._exit(0)


def _leave(worker: Worker) -> None:
    """Put the job back, or wait until the end of one is written down."""
    deadline = time.monotonic() + LEAVE_S
    while not worker.at_rest.wait(0.2) and time.monotonic() < deadline:
        sentence = worker.put_back()
        if sentence:
            logger.info(sentence)
            return


def _kill_children() -> None:
    """Kill the programs we started, whatever process group they are in."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue


def set_threads(threads: int) -> None:
    """Limit the threads of numerical libraries; call it before they are imported."""
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(threads)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker as a program.

    Parameters
    ----------
    arguments
        Command line, without the program.
    """
    parser = argparse.ArgumentParser(prog="python -m otf_workflows.engine.worker")
    parser.add_argument("--role", type=Role, choices=list(Role), required=True)
    parser.add_argument("--site", type=Path, help="site file; found as by otf if not given")
    parser.add_argument("--parent", type=int, help="end when this process is gone")
    parser.add_argument("--no-reconcile", action="store_true", help="run jobs, decide nothing")
    parser.add_argument("--max-idle", type=float, metavar="S", help="end after S idle seconds")
    options = parser.parse_args(arguments)
    try:
        site = load_site(options.site)
        return _serve(site, options)
    except OtfError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


def _serve(site: Site, options: argparse.Namespace) -> int:
    role = options.role
    state_dir = site.resolved_state_dir
    name = WorkerName.mine(role)
    log_to_file(state_dir / "logs" / f"{name}.log")
    # Jobs find the site by themselves, whatever folder they work in.
    os.environ[WORKER_VARIABLE] = str(name)
    os.environ[STATE_DIR_VARIABLE] = str(state_dir)
    if site.source is not None:
        os.environ[SITE_FILE_VARIABLE] = str(site.source)
    if role in site.workers:
        set_threads(site.workers[role].threads)
    try:
        worker = Worker(site, role, reconcile=not options.no_reconcile)
    except DatabaseError as error:
        logger.error("Worker %s cannot start: %s", name, error.what)  # noqa: TRY400
        raise
    stop = worker.stopping
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor
    watcher = threading.Thread(
        target=watch, args=(worker,), kwargs={"parent": options.parent}, daemon=True
    )
    watcher.start()
    logger.info("Worker %s is ready.", name)
    worker.run(max_idle_s=options.max_idle)
    if stop.is_set():
        watcher.join()
    logger.info("Worker %s ended.", name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
