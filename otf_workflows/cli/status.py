"""``otf status``: what is going on, at a glance or in full."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from otf_workflows.cli import output, params, view
from otf_workflows.cli.session import Session, session
from otf_workflows.types import CampaignState

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otf_workflows.progress import CampaignProgress

REDRAW_S = 2.0
"""Pause between two looks with ``--watch`` (s)."""


def status(
    ctx: typer.Context,
    campaign: params.AnyCampaign = None,
    *,
    watch: Annotated[
        bool,
        typer.Option("--watch", "-w", help="Redraw until all is over. Ctrl-C stops nothing."),
    ] = False,
    fail_on: Annotated[
        list[CampaignState] | None,
        typer.Option("--fail-on", help="Exit with 1 if a campaign is in this state (for cron)."),
    ] = None,
    as_json: params.AsJson = False,
) -> None:
    """Show all campaigns at a glance, or one in full."""
    here = session(ctx)
    found = look(here, campaign)
    if watch:
        try:
            found = _watch(here, campaign, found, as_json=as_json)
        except KeyboardInterrupt:
            output.note("The work goes on; otf status shows it again.")
            raise typer.Exit(130) from None
    elif as_json:
        _json(found)
    else:
        _show(found, in_full=campaign is not None)
        if found and campaign is None and output.on_terminal():
            for text in _around(here):
                output.note(text)
    if fail_on and any(item.state in fail_on for item in found):
        raise typer.Exit(1)


def look(here: Session, campaign: str | None) -> list[CampaignProgress]:
    """Return the progress of one campaign or of all, newest first."""
    from otf_workflows.progress import campaign_progress

    names = [campaign] if campaign else [item.name for item in here.store.campaigns()]
    if not names:
        return []
    return [
        campaign_progress(here.store, here.engine, name, dft_workers=here.dft_workers)
        for name in names
    ]


def _show(found: list[CampaignProgress], *, in_full: bool) -> None:
    if not found:
        output.note("No campaign yet. Next: otf init, then otf run campaign.yaml")
    elif in_full:
        view.print_details(found[0])
    else:
        output.print_table(view.GLANCE, [view.glance_row(item) for item in found])


def _json(found: list[CampaignProgress], *, compact: bool = False) -> None:
    campaigns = [item.model_dump(mode="json") for item in found]
    output.emit_json("otf.status/1", {"campaigns": campaigns}, compact=compact)


def _watch(
    here: Session, campaign: str | None, found: list[CampaignProgress], *, as_json: bool
) -> list[CampaignProgress]:
    """Show again and again until every campaign has ended; return the last look."""
    if as_json or not output.on_terminal():
        shown: list[str] = []
        while True:
            lines = [f"{item.name}: {view.line(item)}" for item in found]
            if as_json:
                _json(found, compact=True)
            elif lines != shown:
                for text in lines:
                    output.data(text)
                shown = lines
            if all(item.state.terminal for item in found):
                return found
            time.sleep(REDRAW_S)
            found = look(here, campaign)
    from rich.live import Live

    with Live(picture(here, found, campaign), console=output.console(), auto_refresh=False) as live:
        while not all(item.state.terminal for item in found):
            time.sleep(REDRAW_S)
            found = look(here, campaign)
            live.update(picture(here, found, campaign), refresh=True)
    return found


def picture(here: Session, found: list[CampaignProgress], campaign: str | None) -> RenderableType:
    """Return what ``--watch`` draws: one campaign, or all of them and what is around them."""
    if campaign is not None:
        return view.panel(found[0])
    from rich.console import Group
    from rich.text import Text

    table = output.rich_table(view.GLANCE, [view.glance_row(item) for item in found])
    return Group(table, Text("\n".join(_around(here))))


def _around(here: Session) -> list[str]:
    from otf_workflows.cli.glance import surroundings

    return surroundings(here.site, here.store.database)
