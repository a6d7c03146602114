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
    from otf_workflows.engine.queues.batch import Batch

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
    only
        Id of the one job to take, which is reserved for this worker; none for any of the role.
    """

    def __init__(
        self, site: Site, role: Role, *, reconcile: bool = True, only: int | None = None
    ) -> None:
        from otf_workflows.connection import use_job_store
        from otf_workflows.engine.fireworks_engine import FireWorksEngine

        self.name = WorkerName.mine(role)
        self.role = role
        self.engine: FireWorksEngine = FireWorksEngine(site, patience_s=PATIENCE_S)
        use_job_store(self.engine.job_store)
        self.launches = site.resolved_state_dir / "launches"
        self.reconcile = reconcile
        self.only = only
        self.batch: Batch | None = None
        self.jobs_run = 0
        self.stopping = threading.Event()
        self.at_rest = threading.Event()
        self._uncertain = False
        self._busy = False
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
        idle_since = time.monotonic()
        while not self.stopping.is_set() and (self.batch is None or self.batch.has_time()):
            self.at_rest.clear()
            ran = self._turn()
            self.at_rest.set()
            if ran:
                self.jobs_run += 1
            if ran is not False:
                idle_since = time.monotonic()
            if self.only is not None and ran is not None:
                break
            if max_idle_s is not None and time.monotonic() - idle_since > max_idle_s:
                break
            if not ran:
                self.stopping.wait(IDLE_S if ran is False else AFTER_ERROR_S)
        return self.jobs_run

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
            fworker = FWorker(name=str(self.name), category=str(self.role), query=self._query())
            query = fworker.query
            # After a job there is likely another; then the look would only be made twice.
            if not (self._is_free(self.only) if self.only else self._busy or self._finds(query)):
                return False
            folder = self._launch_folder()
            with self._inside(folder):
                ran = bool(launch_rocket(pad, fworker, self.only, strm_lvl="CRITICAL"))
            launch = self._last_launch()
        self._busy = ran
        if not ran:  # there was no other, or another worker was faster
            shutil.rmtree(folder)
            return False
        self._tell(launch)
        if launch:
            self.engine.apply_hold(launch["campaign"])
        return True

    def _query(self) -> dict[str, Any]:
        """Return which jobs of our role are not for us."""
        held = self.engine.held()
        query: dict[str, Any] = {"spec.campaign": {"$nin": held}} if held else {}
        return query | self.batch.foreign() if self.batch else query

    def _finds(self, query: dict[str, Any]) -> bool:
        """Tell whether a job waits for us; ``run_exists`` would read all of it as well."""
        ready = {**query, "state": "READY"}
        return self.engine.launchpad.fireworks.find_one(ready, {"_id": 1}) is not None

    def _is_free(self, fw_id: int) -> bool:
        """Tell whether the job that is reserved for us may start, its campaign not being held."""
        query = {"fw_id": fw_id, "state": {"$in": ["READY", "RESERVED"]}}
        found = self.engine.launchpad.fireworks.find_one(query, {"spec.campaign": 1})
        return found is not None and found["spec"].get("campaign") not in self.engine.held()

    def end(self) -> None:
        """Begin to end; for signal handlers."""
        if self.batch is not None:
            self.batch.ending.set()
        self.stopping.set()

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
            _log_all(reconcile_campaigns(self.engine))

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
        """Return what became of the job that was taken just now."""
        pad = self.engine.launchpad
        if pad.taken is None:
            return None
        firework, launch_id = pad.taken
        fields = {"fw_id": 1, "state": 1, "runtime_secs": 1, "launch_dir": 1}
        launch = pad.launches.find_one({"launch_id": launch_id}, fields)
        if launch is None:
            return None
        campaign = firework.spec.get("campaign", "")
        return {**launch, "name": firework.name, "campaign": campaign}

    def _tell(self, launch: dict[str, Any] | None) -> None:
        if launch is None:
            return
        ended = "done" if launch["state"] == "COMPLETED" else str(launch["state"]).lower()
        seconds = launch.get("runtime_secs") or 0.0
        what = "Job %s '%s' of campaign %s: %s after %.1f s, in %s"
        details = (launch["fw_id"], launch["name"], launch["campaign"], ended, seconds)
        logger.info(what, *details, launch["launch_dir"])


def reconcile_campaigns(engine: FireWorksEngine) -> list[str]:
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
        if worker.batch is not None and worker.batch.closing:
            logger.info("Worker %s: the batch job ends soon.", worker.name)
            worker.batch.put_back_in_time(worker.at_rest)
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
    if worker.batch is not None:
        worker.batch.wait_for_writing(worker.at_rest)
        worker.batch.leave("told to end", worker.jobs_run)
        return
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
    inside = parser.add_argument_group("inside a batch job")
    inside.add_argument("--token", help="key of the batch job in otf_queue_jobs")
    inside.add_argument("--walltime", type=float, metavar="S", help="time that it was given")
    inside.add_argument("--firework", type=int, metavar="ID", help="run this job, then end")
    inside.add_argument("--side-by-side", type=int, default=1, metavar="N", help="workers at once")
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(words)
    if options.side_by_side > 1:
        from otf_workflows.engine.queues.batch import run_side_by_side

        return run_side_by_side([*words, "--side-by-side", "1"], options.side_by_side)
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
        worker = Worker(site, role, reconcile=not options.no_reconcile, only=options.firework)
    except DatabaseError as error:
        logger.error("Worker %s cannot start: %s", name, error.what)  # noqa: TRY400
        raise
    stop = worker.stopping
    signal.signal(signal.SIGTERM, lambda *_: worker.end())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor
    watcher = threading.Thread(
        target=watch, args=(worker,), kwargs={"parent": options.parent}, daemon=True
    )
    if options.token and not _enter_batch(worker, options):
        return 0
    watcher.start()
    logger.info("Worker %s is ready.", name)
    worker.run(max_idle_s=options.max_idle)
    if stop.is_set() or (worker.batch and worker.batch.closing):
        watcher.join()
    if worker.batch is not None:
        worker.batch.leave("nothing more to do here", worker.jobs_run)
    logger.info("Worker %s ended.", name)
    return 0


def _enter_batch(worker: Worker, options: argparse.Namespace) -> bool:
    """Register in the batch job that this process runs in; False if it was given up."""
    from otf_workflows.engine.queues.batch import Batch
    from otf_workflows.engine.queues.packing import limits_of

    queue = worker.engine.site.queues[worker.role]
    worker.batch = Batch(
        worker.engine,
        token=options.token,
        worker=str(worker.name),
        role=worker.role,
        walltime_s=options.walltime or float(queue.walltime_s),
        limits=limits_of(queue),
    )
    worker.batch.listen()
    if worker.batch.begin():
        return True
    logger.warning("Worker %s: this batch job was given up before it started.", worker.name)
    return False


if __name__ == "__main__":
    sys.exit(main())
