"""The services of a site on this machine: the embedded database and the workers of every role.

Roles that the site sends to a batch queue have no workers here; a launcher looks after them.

``with Supervisor(site):`` keeps them alive and leaves no process behind. ``start_services`` and
``stop_services`` do the same through a process of its own, so that services stay up across
commands.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from otf_workflows.engine.host import write_private
from otf_workflows.engine.identity import WorkerName, kill_programs_of
from otf_workflows.engine.mongod import EmbeddedMongod
from otf_workflows.engine.queues.launcher_thread import LauncherThread
from otf_workflows.errors import ConfigurationError, OtfError
from otf_workflows.log import log_to_file
from otf_workflows.settings import STATE_DIR_VARIABLE, Site, load_site
from otf_workflows.types import EngineKind, Role

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from otf_workflows.engine.fireworks_engine import FireWorksEngine
    from otf_workflows.engine.remote.engine import JobflowRemoteEngine

logger = logging.getLogger("otf_workflows.engine.supervisor")  # also when run as a program

LOOK_S = 0.5
"""Pause between two looks at the workers (s)."""
RECOVERY_INTERVAL_S = 30.0
STOP_S = 20.0
"""How long workers may take to put their jobs back before they are killed (s)."""
START_TIMEOUT_S = 90.0
SHORT_LIFE_S = 20.0
"""A worker that ends sooner is started again only after a growing pause (s)."""
LONGEST_PAUSE_S = 60.0


@dataclass
class _Post:
    """One place for a worker, and the process that fills it at present."""

    role: Role
    number: int
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    pause_s: float = 1.0
    next_start: float = 0.0

    @property
    def name(self) -> str:
        """Name of the worker that fills the place."""
        mine = WorkerName.mine(self.role)
        return str(WorkerName(self.role, mine.host, self.process.pid if self.process else 0))


@dataclass(frozen=True)
class ServiceStatus:
    """What runs for a site on this machine.

    Attributes
    ----------
    running
        Whether a supervisor lives.
    pid
        Its process id.
    workers
        Names of the workers it keeps.
    database
        ``embedded`` or ``server``.
    """

    running: bool
    pid: int | None = None
    workers: list[str] = field(default_factory=list)
    database: str = "embedded"


class Supervisor:
    """Starts the site's database and workers, keeps them alive, and stops them all.

    Parameters
    ----------
    site
        The site.
    reconcile
        Whether control workers bring campaigns forward; without it they only run jobs.
    keep_database
        Leave an embedded database running at the end.

    Raises
    ------
    ConfigurationError
        If another supervisor works in the same state folder.
    """

    def __init__(self, site: Site, *, reconcile: bool = True, keep_database: bool = False) -> None:
        self.site = site
        self.state_dir = site.resolved_state_dir
        self.reconcile = reconcile
        self.keep_database = keep_database
        self._posts = [
            _Post(role, number)
            for role, count in local_workers(site).items()
            for number in range(count)
        ]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="supervisor", daemon=True)
        self._launcher: LauncherThread | None = None
        self._lock: IO[str] | None = None
        self._engine: FireWorksEngine | JobflowRemoteEngine | None = None
        self._recovered = 0.0
        embedded = site.database.mode == "embedded"
        self._mongod = (
            EmbeddedMongod(self.state_dir, database=site.database.name) if embedded else None
        )

    def __enter__(self) -> Self:
        """Start everything."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop everything."""
        self.stop()

    @property
    def workers(self) -> list[str]:
        """Names of the workers that live now."""
        return [
            post.name
            for post in self._posts
            if post.process is not None and post.process.poll() is None
        ]

    def start(self) -> None:
        """Start database and workers, and begin to watch them."""
        self._take_lock()
        try:
            if self._mongod is not None:
                self._mongod.start()
            self._recover()
            if self.site.queues and self.site.engine is EngineKind.FIREWORKS:
                self._launcher = LauncherThread(self.site, reconcile=self.reconcile)
        except BaseException:
            self._stop_database()
            self._release_lock()
            raise
        self._thread.start()
        if self._launcher is not None:
            self._launcher.start()

    def stop(self) -> None:
        """Stop all workers (their jobs are put back), then the database."""
        self._stopping.set()
        self._thread.join()
        if self._launcher is not None:
            self._launcher.stop(withdraw=self._mongod is not None and not self.keep_database)
        self._stop_workers()
        try:
            self._recover()
        except OtfError as error:
            logger.warning("The last look at the database failed: %s", error.what)
        if self._engine is not None:
            self._engine.close()
        self._stop_database()
        self._release_lock()

    def _stop_database(self) -> None:
        if self._mongod is not None and not self.keep_database:
            self._mongod.stop()

    # Watching

    def _keep(self) -> None:
        """Look after database and workers until told to stop."""
        while not self._stopping.is_set():
            try:
                self._look_after_database()
                self._look_after_workers()
                if time.monotonic() - self._recovered > RECOVERY_INTERVAL_S:
                    self._recover()
            except OtfError as error:
                logger.error("%s", error)  # noqa: TRY400
            except Exception:  # whoever looks after the others must not die of one of them
                logger.exception("The supervisor met an unexpected error and goes on.")
            self._stopping.wait(LOOK_S)

    def _look_after_database(self) -> None:
        if self._mongod is not None and not self._mongod.is_running():
            logger.warning("The embedded database is gone; it is started again.")
            self._mongod.start()

    def _look_after_workers(self) -> None:
        lost = False
        for post in self._posts:
            if post.process is not None and post.process.poll() is not None:
                self._bury(post)
                lost = True
        if lost:
            self._recover()
        now = time.monotonic()
        for post in self._posts:
            if post.process is None and now >= post.next_start:
                self._start_worker(post)

    def _bury(self, post: _Post) -> None:
        """Clear up after a worker that ended, and say when the next one starts."""
        process = post.process
        if process is None:
            return
        logger.warning("Worker %s ended with code %s.", post.name, process.returncode)
        kill_programs_of(post.name)
        lived_s = time.monotonic() - post.started
        post.pause_s = min(post.pause_s * 2, LONGEST_PAUSE_S) if lived_s < SHORT_LIFE_S else 1.0
        post.next_start = time.monotonic() + post.pause_s
        post.process = None

    def _start_worker(self, post: _Post) -> None:
        command = [
            sys.executable, "-m", *_program(self.site, post.role),
            "--parent", str(os.getpid()),
            "--site", str(site_file(self.site)),
        ]  # fmt: skip
        if not self.reconcile:
            command.append("--no-reconcile")
        post.process = _spawn(command, self.state_dir, f"worker-{post.role}-{post.number}")
        post.started = time.monotonic()
        logger.info("Worker %s started.", post.name)
        self._write_note()

    def _recover(self) -> None:
        """Put back what dead workers have left."""
        from otf_workflows.engine.choice import open_engine

        if self._engine is None:
            self._engine = open_engine(self.site)
        for sentence in self._engine.recover():
            logger.info(sentence)
        self._recovered = time.monotonic()

    def _stop_workers(self) -> None:
        living = [post.process for post in self._posts if post.process is not None]
        for process in living:
            process.terminate()
        deadline = time.monotonic() + STOP_S
        for process in living:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.warning("Worker process %s does not end and is killed.", process.pid)
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for post in self._posts:
            if post.process is not None:
                kill_programs_of(post.name)
                post.process = None

    # One supervisor per state folder

    def _take_lock(self) -> None:
        handle = (self.state_dir / "supervisor.lock").open("w")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.close()
            raise ConfigurationError(
                "The services of this site are up already.",
                where=str(self.state_dir),
                hint="otf down   (or use them: nothing else needs to be started)",
            ) from error
        self._lock = handle
        self._write_note()

    def _release_lock(self) -> None:
        if self._lock is not None:
            (self.state_dir / "supervisor.json").unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def _write_note(self) -> None:
        note = {"pid": os.getpid(), "workers": self.workers}
        write_private(self.state_dir / "supervisor.json", json.dumps(note))


def service_status(site: Site) -> ServiceStatus:
    """Return what runs for a site on this machine; starts and changes nothing."""
    state_dir = site.resolved_state_dir
    mode = site.database.mode
    if not _is_locked(state_dir / "supervisor.lock"):
        return ServiceStatus(running=False, database=mode)
    try:
        note = json.loads((state_dir / "supervisor.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        note = {}
    return ServiceStatus(
        running=True, pid=note.get("pid"), workers=note.get("workers", []), database=mode
    )


def local_workers(site: Site) -> dict[Role, int]:
    """Return how many workers of each role run on this machine.

    With jobflow-remote there is one, its runner, which starts the jobs of every role by itself.
    """
    if site.engine is EngineKind.JOBFLOW_REMOTE:
        return {Role.CONTROL: 1}
    return {role: worker.count for role, worker in site.workers.items() if role not in site.queues}


def _program(site: Site, role: Role) -> list[str]:
    """Return module and arguments of the program that fills a place."""
    if site.engine is EngineKind.JOBFLOW_REMOTE:
        return ["otf_workflows.engine.remote.service"]
    return ["otf_workflows.engine.worker", "--role", str(role)]


@contextmanager
def services(site: Site) -> Iterator[ServiceStatus]:
    """Use the services that are up, or have some for as long as the block lasts."""
    status = service_status(site)
    if status.running:
        yield status
        return
    with Supervisor(site):
        yield service_status(site)


def start_services(site: Site) -> ServiceStatus:
    """Start the services in a process of their own, which outlives this one.

    Raises
    ------
    ConfigurationError
        If they do not come up; the message is that of the supervisor.
    """
    status = service_status(site)
    if status.running:
        return status
    state_dir = site.resolved_state_dir
    command = [
        sys.executable, "-m", "otf_workflows.engine.supervisor", "--site", str(site_file(site))
    ]  # fmt: skip
    process = _spawn(command, state_dir, "supervisor")
    deadline = time.monotonic() + START_TIMEOUT_S
    wanted = sum(local_workers(site).values())
    while time.monotonic() < deadline:
        status = service_status(site)
        if status.running and status.pid == process.pid and len(status.workers) == wanted:
            return status
        if process.poll() is not None:
            out = state_dir / "logs" / "supervisor.out"
            said = out.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise ConfigurationError(
                said[0] if said else "The services did not start.",
                where=str(out),
                hint=_after("next: ", said) or f"cat {out}",
            )
        time.sleep(0.1)
    process.terminate()
    raise ConfigurationError(
        f"The services did not come up within {START_TIMEOUT_S:.0f} s.",
        where=str(state_dir / "logs" / "supervisor.log"),
    )


def stop_services(site: Site) -> bool:
    """Stop the services, and an embedded database that is left over from a crash.

    Returns
    -------
    bool
        False if nothing was running.
    """
    import psutil

    status = service_status(site)
    if status.running and status.pid is not None:
        try:
            process = psutil.Process(status.pid)
            process.terminate()
            process.wait(STOP_S + 40)
        except psutil.NoSuchProcess:
            pass
        except psutil.TimeoutExpired as error:
            raise ConfigurationError(
                f"The supervisor (process {status.pid}) does not end.",
                hint=f"kill -9 {status.pid} && otf down",
            ) from error
    left_over = False
    if site.database.mode == "embedded":
        left_over = EmbeddedMongod(site.resolved_state_dir, database=site.database.name).stop()
    return status.running or left_over


def site_file(site: Site) -> Path:
    """Return a file that workers can read this site from; written if it came from none."""
    import yaml

    if site.source is not None:
        return site.source
    file = site.resolved_state_dir / "site-in-use.yaml"
    write_private(file, yaml.safe_dump(site.model_dump(mode="json"), sort_keys=False))
    return file


def _spawn(command: list[str], state_dir: Path, name: str) -> subprocess.Popen[bytes]:
    """Start one of our programs, apart from this terminal, its output in a file."""
    logs = state_dir / "logs"
    logs.mkdir(exist_ok=True)
    with (logs / f"{name}.out").open("wb") as out:
        return subprocess.Popen(
            command,
            cwd=state_dir,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, STATE_DIR_VARIABLE: str(state_dir)},
        )


def _is_locked(file: Path) -> bool:
    if not file.exists():
        return False
    with file.open("r") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _after(mark: str, lines: Sequence[str]) -> str | None:
    return next((line.removeprefix(mark) for line in lines if line.startswith(mark)), None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a supervisor as a program, until SIGTERM.

    Parameters
    ----------
    arguments
        Command line, without the program.
    """
    parser = argparse.ArgumentParser(prog="python -m otf_workflows.engine.supervisor")
    parser.add_argument("--site", type=Path, help="site file; found as by otf if not given")
    options = parser.parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        site = load_site(options.site)
        log_to_file(site.resolved_state_dir / "logs" / "supervisor.log")
        with Supervisor(site):
            stop.wait()
    except OtfError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
