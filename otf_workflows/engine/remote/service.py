"""The runner as a program: one per site, kept alive by the supervisor.

``python -m otf_workflows.engine.remote.service --site site.yaml``
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from otf_workflows.errors import ConfigurationError, OtfError
from otf_workflows.log import log_to_file
from otf_workflows.settings import SITE_FILE_VARIABLE, STATE_DIR_VARIABLE, Site, load_site
from otf_workflows.types import Role

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from otf_workflows.engine.remote.engine import JobflowRemoteEngine
    from otf_workflows.engine.remote.runner import SiteRunner

logger = logging.getLogger("otf_workflows.engine.remote.service")  # also when run as a program

PATIENCE_S = 120.0
"""How long the runner waits for a database that is being restarted (s)."""
RECOVERY_INTERVAL_S = 30.0
ROUND_S = 600.0
"""How long one round of 'otf launch --once' may take (s)."""
LOOK_S = 0.5
"""How often the runner looks whether its supervisor is there (s)."""
ONLY_ONE = "the runner of jobflow-remote"
"""Key of the claim by which there is one runner for a database."""


def serve(
    site: Site,
    *,
    stop: threading.Event,
    reconcile: bool = True,
    max_idle_s: float | None = None,
) -> int:
    """Move jobs on until told to stop; jobs of this machine are put back at the end.

    Parameters
    ----------
    site
        The site.
    stop
        Set by whoever wants an end.
    reconcile
        Whether to bring campaigns forward as well.
    max_idle_s
        End after so many seconds without a job on its way; none for never.

    Returns
    -------
    int
        Number of turns.

    Raises
    ------
    ConfigurationError
        If another machine, or another state folder, has a runner for this database.
    """
    turns, busy, recovered = 0, time.monotonic(), 0.0
    with _the_runner(site) as runner:
        while not stop.is_set():
            turns += 1
            runner.turn(stop)
            if reconcile:
                _log_all(_bring_forward(runner.engine))
            if time.monotonic() - recovered > RECOVERY_INTERVAL_S:
                recovered = time.monotonic()
                _log_all(runner.engine.recover())
            if max_idle_s is not None:
                busy = time.monotonic() if runner.is_busy() else busy
                if time.monotonic() - busy > max_idle_s:
                    break
            stop.wait(site.remote.poll_s)
    return turns


def one_round(site: Site) -> list[str]:
    """Take what has come back, bring campaigns forward, send what is ready; for cron.

    Control jobs that become ready are run to their end, ten minutes at most.

    Parameters
    ----------
    site
        The site.

    Returns
    -------
    list of str
        What was done, in sentences.
    """
    end = time.monotonic() + ROUND_S
    with _the_runner(site) as runner:
        sentences = runner.engine.recover()
        while True:
            runner.turn()
            done = _bring_forward(runner.engine)
            sentences += done
            if (not done and not runner.is_busy(Role.CONTROL)) or time.monotonic() > end:
                return sentences
            time.sleep(min(site.remote.poll_s, 1.0))


@contextmanager
def _the_runner(site: Site) -> Iterator[SiteRunner]:
    """Have the one runner of a site's database; at the end jobs of this machine are put back."""
    from otf_workflows.claims import Claims
    from otf_workflows.engine.remote.engine import JobflowRemoteEngine
    from otf_workflows.engine.remote.runner import SiteRunner

    engine = JobflowRemoteEngine(site, patience_s=PATIENCE_S)
    # The supervisor sees to it that there is one runner per state folder.
    me = f"{socket.gethostname()}:{site.resolved_state_dir}"
    claims = Claims(engine.database)
    try:
        if not claims.take(ONLY_ONE, by=me):
            raise ConfigurationError(
                "Another runner works on this database.",
                where=f"{site.database.host}/{site.database.name}",
                hint="stop it with 'otf down' over there; two minutes later this one may start",
            )
        with claims.renewed(ONLY_ONE, by=me):
            runner = SiteRunner(engine)
            # Nobody else is here to hold a lock: the one before us died with it.
            runner.free_stale_locks(timedelta(0))
            runner.put_back_local(all_of_them=False)
            try:
                yield runner
            finally:
                n_back = runner.put_back_local(all_of_them=True)
                if n_back:
                    logger.info("%d jobs of this machine were put back.", n_back)
                runner.close()
        claims.release(ONLY_ONE, by=me)
    finally:
        engine.close()


def _bring_forward(engine: JobflowRemoteEngine) -> list[str]:
    """Let the loop decide what comes next; the runner outlives its trouble."""
    from otf_workflows.reconcile import reconcile_all
    from otf_workflows.store import Store, using

    try:
        with using(Store(engine.database)) as store:
            return reconcile_all(store, engine)
    except Exception:  # of the database, as a rule; the log has the traceback
        logger.exception("Campaigns could not be brought forward.")
        return []


def _log_all(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        logger.info(sentence)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the runner as a program, until SIGTERM or the end of its supervisor.

    Parameters
    ----------
    arguments
        Command line, without the program.
    """
    parser = argparse.ArgumentParser(prog="python -m otf_workflows.engine.remote.service")
    parser.add_argument("--site", type=Path, help="site file; found as by otf if not given")
    parser.add_argument("--parent", type=int, help="end when this process is gone")
    parser.add_argument("--no-reconcile", action="store_true", help="run jobs, decide nothing")
    parser.add_argument("--max-idle", type=float, metavar="S", help="end after S idle seconds")
    options = parser.parse_args(arguments)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor
    try:
        site = load_site(options.site)
        log_to_file(site.resolved_state_dir / "logs" / f"runner-{os.getpid()}.log")
        os.environ[STATE_DIR_VARIABLE] = str(site.resolved_state_dir)
        if site.source is not None:
            os.environ[SITE_FILE_VARIABLE] = str(site.source)
        if options.parent is not None:
            threading.Thread(target=_watch, args=(options.parent, stop), daemon=True).start()
        logger.info("The runner is ready.")
        serve(
            site,
            stop=stop,
            reconcile=not options.no_reconcile,
            max_idle_s=options.max_idle,
        )
        logger.info("The runner ended.")
    except OtfError as error:
        logger.error("The runner cannot work: %s", error.what)  # noqa: TRY400
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _watch(parent: int, stop: threading.Event) -> None:
    """Ask for an end when the supervisor is gone."""
    while not stop.wait(LOOK_S):
        if os.getppid() != parent:
            logger.warning("The supervisor is gone.")
            stop.set()


if __name__ == "__main__":
    sys.exit(main())
