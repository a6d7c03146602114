"""``otf reconcile | pause | resume | stop``: what a person does with a running campaign."""

from __future__ import annotations

import typer

from otf_workflows.cli import output, params
from otf_workflows.cli.session import session


def reconcile(ctx: typer.Context, campaign: params.AnyCampaign = None) -> None:
    """Do what the database says comes next; safe at any time."""
    from otf_workflows.reconcile import reconcile as reconcile_one
    from otf_workflows.reconcile import reconcile_all

    here = session(ctx)
    if campaign is None:
        sentences = reconcile_all(here.store, here.engine)
    else:
        here.store.campaign(campaign)
        sentences = reconcile_one(here.store, here.engine, campaign)
    for sentence in sentences:
        output.data(sentence)
    if not sentences:
        output.note("Nothing to do.")


def pause(ctx: typer.Context, campaign: params.CampaignName) -> None:
    """Hold a campaign: running jobs finish, no new ones start."""
    from otf_workflows import control

    here = session(ctx)
    output.data(control.pause(campaign, here.store, here.engine))
    output.note(f"Next: otf resume {campaign}")


def resume(ctx: typer.Context, campaign: params.CampaignName) -> None:
    """Go on with a paused, stalled or failed campaign."""
    from otf_workflows import control

    here = session(ctx)
    output.data(control.resume(campaign, here.store, here.engine))


def stop(
    ctx: typer.Context,
    campaign: params.CampaignName,
    *,
    yes: params.Yes = False,
    dry_run: params.DryRun = False,
) -> None:
    """Give a campaign up; its labels and models stay."""
    from otf_workflows import control
    from otf_workflows.engine.base import JobState

    here = session(ctx)
    state = here.store.campaign(campaign).state
    if not state.terminal:
        jobs = here.engine.jobs(campaign=campaign)
        n_open = sum(job.state in {JobState.WAITING, JobState.READY} for job in jobs)
        output.note(f"{campaign} is {state}: {n_open} jobs that have not started are given up.")
        if dry_run:
            output.note("Nothing was stopped (--dry-run).")
            return
        if not output.confirm(f"Stop {campaign}?", yes=yes, no_input=here.no_input):
            output.note("Nothing was stopped.")
            raise typer.Exit(1)
    output.data(control.stop(campaign, here.store, here.engine))
