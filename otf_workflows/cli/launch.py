"""``otf launch``: database, local workers and batch queues looked after in the foreground."""

from __future__ import annotations

import signal
import sys
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from otf_workflows.cli import output
from otf_workflows.cli.session import session

if TYPE_CHECKING:
    from otf_workflows.settings import Site


def launch(
    ctx: typer.Context,
    *,
    once: Annotated[
        bool, typer.Option("--once", help="Look once, do what is due, and end; for cron.")
    ] = False,
) -> None:
    """Keep batch queues filled and find out what became of each job, until interrupted.

    For tmux or systemd; '--once' every few minutes from cron does the same. Local workers are
    started for the roles that the site file sends to no queue. Interrupt it when you like: batch
    jobs stay in the queue and go on, and the next launch takes them over.
    """
    site = session(ctx).site
    if once:
        _once(site)
        return
    _log(site)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup wants to live on
            signal.signal(number, lambda *_: stopping.set())
    from otf_workflows.engine.supervisor import Supervisor, local_workers

    with Supervisor(site):
        queued = ", ".join(site.queues) or "none"
        n_workers = sum(local_workers(site).values())
        output.note(f"{n_workers} local workers; roles in batch queues: {queued}. Ctrl-C ends.")
        stopping.wait()
        output.note("Ending: local workers put their jobs back.")
    if site.queues and site.database.mode == "server":
        output.note("Batch jobs stay in the queue and go on. To look after them: otf launch")


def _once(site: Site) -> None:
    """Do one round of everything."""
    from otf_workflows.engine.rounds import one_round
    from otf_workflows.engine.supervisor import service_status

    if service_status(site).running:
        output.note("Services of this site are up and look after everything; nothing to do.")
        return
    sentences = one_round(site)
    for sentence in sentences:
        output.data(sentence)
    if not sentences:
        output.note("Nothing to do.")


def _log(site: Site) -> None:
    """Log sentences to the terminal, and to a file as well."""
    import logging

    from otf_workflows.log import FORMAT, log_to_file

    log_to_file(site.resolved_state_dir / "logs" / "launch.log")
    if not output.is_quiet():
        shown = logging.StreamHandler(sys.stderr)
        shown.setFormatter(logging.Formatter(FORMAT))
        shown.setLevel(logging.INFO)
        logging.getLogger("otf_workflows").addHandler(shown)
