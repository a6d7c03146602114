"""``otf run``: one command from a campaign file to its report, on this machine."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otf_workflows.cli import output, params, view
from otf_workflows.cli.session import Session, session
from otf_workflows.cli.validate import read, summary
from otf_workflows.types import CampaignState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otf_workflows.campaign import Campaign
    from otf_workflows.progress import CampaignProgress
    from otf_workflows.settings import Site

LOOK_S = 2.0
"""Pause between two looks at the campaign (s)."""
REPEAT_S = 10.0
"""Without a terminal a line is printed on every change, and at least this often (s)."""
PATIENCE_S = 60.0
"""How long a database that does not answer is given to come back (s)."""

_GOOD = {CampaignState.CONVERGED, CampaignState.BUDGET_EXHAUSTED}


def run(
    ctx: typer.Context,
    file: params.CampaignFile,
    *,
    name: params.NewName = None,
    settings: params.Settings = None,
    keep_up: Annotated[
        bool, typer.Option("--keep-up", help="Leave database and workers running at the end.")
    ] = False,
    path: params.ReportPath = None,
    dry_run: params.DryRun = False,
) -> None:
    """Run a campaign on this machine to its end and write the report.

    Starts database and workers, shows what is going on, and stops all it started. Interrupt it
    when you like: the same command continues, and no label is computed twice. Exit code 0 if the
    campaign converged or used up its budget, 1 if it stalled or failed.
    """
    from otf_workflows.preflight import preflight

    campaign = read(file, name=name, settings=settings)
    here = session(ctx)
    preflight(campaign, here.site, local=True)
    for text in summary(campaign):
        output.note(text)
    if dry_run:
        output.note("Nothing was started (--dry-run).")
        return
    target = path or Path(f"{campaign.name}-report.html")
    again = " ".join(["otf", *sys.argv[1:]])
    with _interruptible(again), _services(here.site, keep_up=keep_up):
        ended = _follow(here, campaign)
        _conclude(here, ended, target)
    if ended.state not in _GOOD:
        raise typer.Exit(1)


def _follow(here: Session, campaign: Campaign) -> CampaignProgress:
    """Submit, or go on with what is there, and watch until the campaign ends."""
    from otf_workflows import control
    from otf_workflows.connection import translated
    from otf_workflows.reconcile import reconcile

    with translated(here.site):
        document = control.submit(campaign, here.store)
        if document.state is CampaignState.PAUSED:
            output.note(control.resume(document.name, here.store, here.engine))
        reconcile(here.store, here.engine, document.name)
    if sys.stderr.isatty() and not output.is_quiet():
        return _watch_live(here, document.name)
    return _watch_lines(here, document.name)


def _watch_live(here: Session, name: str) -> CampaignProgress:
    """Redraw one picture on the terminal until the campaign ends."""
    from rich.live import Live

    with Live(console=output.console(err=True), auto_refresh=False) as live:
        for progress in _looks(here, name):
            live.update(view.panel(progress), refresh=True)
    return progress


def _watch_lines(here: Session, name: str) -> CampaignProgress:
    """Print a line on every change, and now and then, until the campaign ends."""
    last, printed = "", 0.0
    for progress in _looks(here, name):
        changed = f"{progress.sentence} {view.labels_words(progress)}"
        if changed != last or time.monotonic() - printed > REPEAT_S:
            output.note(f"{time.strftime('%H:%M:%S')}  {view.line(progress)}")
            last, printed = changed, time.monotonic()
    return progress


def _looks(here: Session, name: str) -> Iterator[CampaignProgress]:
    """Yield the progress again and again; a database that restarts is waited for."""
    from otf_workflows.connection import translated
    from otf_workflows.errors import DatabaseError
    from otf_workflows.progress import campaign_progress

    answered = time.monotonic()
    while True:
        try:
            with translated(here.site):
                progress = campaign_progress(
                    here.store, here.engine, name, dft_workers=here.dft_workers
                )
        except DatabaseError:
            if time.monotonic() - answered > PATIENCE_S:
                raise
        else:
            answered = time.monotonic()
            yield progress
            if progress.state.terminal:
                return
        time.sleep(LOOK_S)


def _conclude(here: Session, ended: CampaignProgress, target: Path) -> None:
    """Write the report and say how it ended."""
    from otf_workflows.report import write_report

    output.note("")
    view.print_details(ended)
    target.parent.mkdir(parents=True, exist_ok=True)
    written = write_report(here.store, ended.name, target)
    output.data(f"report     {written.absolute()}")
    if ended.state in {CampaignState.STALLED, CampaignState.FAILED}:
        output.note(f"Next: otf labels list -c {ended.name} --failed; then otf resume {ended.name}")
    elif ended.state in _GOOD:
        output.note(f"Next: otf export {ended.name}; otf models export {ended.incumbent_id}")


@contextmanager
def _services(site: Site, *, keep_up: bool) -> Iterator[None]:
    """Have database and workers for the block; those that were up before stay up."""
    import logging

    from otf_workflows.engine import supervisor
    from otf_workflows.log import log_to_file

    if not logging.getLogger().handlers:
        log_to_file(site.resolved_state_dir / "logs" / "run.log")
    if keep_up:
        status = supervisor.start_services(site)
        output.note(f"{len(status.workers)} workers are up and stay up; otf down stops them.")
        yield
        return
    with supervisor.services(site) as status:
        if not status.workers:
            output.note("Database and workers are starting.")
        yield


@contextmanager
def _interruptible(again: str) -> Iterator[None]:
    """Turn Ctrl-C, a closed terminal and SIGTERM into a clean end with exit code 130."""
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # nohup has SIGHUP ignored, and a shell's background job SIGINT: they know what they want.
    before = {n: signal.getsignal(n) for n in wanted if signal.getsignal(n) != signal.SIG_IGN}

    def interrupt(*_: object) -> None:
        # One is enough: what follows must not be cut short.
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        output.note(f"\nInterrupted; everything is stopped. To continue: {again}")
        raise typer.Exit(130) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
