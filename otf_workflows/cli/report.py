"""``otf report``: one self-contained HTML file about a campaign."""

from __future__ import annotations

from pathlib import Path

import typer

from otf_workflows.cli import output, params
from otf_workflows.cli.session import session


def report(
    ctx: typer.Context,
    campaign: params.CampaignName,
    *,
    path: params.OutputPath = None,
) -> None:
    """Write the report of a campaign, finished or not."""
    from otf_workflows.report import write_report

    store = session(ctx).store
    store.campaign(campaign)
    output.data(str(write_report(store, campaign, path or Path(f"{campaign}-report.html"))))
