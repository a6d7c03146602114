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
    as_json: params.AsJson = False,
) -> None:
    """Write the report of a campaign, finished or not; with --json, print its numbers instead."""
    from otf_workflows.report import report_data, write_report

    store = session(ctx).store
    store.campaign(campaign)
    if as_json:
        data = report_data(store, campaign)
        output.emit_json("otf.report/1", {"report": data.model_dump(mode="json")})
        return
    output.data(str(write_report(store, campaign, path or Path(f"{campaign}-report.html"))))
