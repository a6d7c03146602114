"""``otf submit``: enter a campaign; workers elsewhere (``otf up``) run it."""

from __future__ import annotations

import typer

from otf_workflows.cli import output, params
from otf_workflows.cli.session import session
from otf_workflows.cli.validate import read, summary


def submit(
    ctx: typer.Context,
    file: params.CampaignFile,
    *,
    name: params.NewName = None,
    settings: params.Settings = None,
    dry_run: params.DryRun = False,
    parsable: params.Parsable = False,
    as_json: params.AsJson = False,
) -> None:
    """Enter a campaign into the database. Submitting it again changes nothing."""
    from otf_workflows import control
    from otf_workflows.preflight import preflight
    from otf_workflows.reconcile import reconcile

    campaign = read(file, name=name, settings=settings)
    here = session(ctx)
    preflight(campaign, here.site, local=False)
    for line in summary(campaign):
        output.note(line)
    if dry_run:
        output.note("Nothing was submitted (--dry-run).")
        return
    document = control.submit(campaign, here.store)
    sentences = reconcile(here.store, here.engine, document.name)
    if as_json:
        payload = {"name": document.name, "state": document.state, "digest": document.digest}
        output.emit_json("otf.submit/1", payload)
        return
    output.data(document.name)
    if not parsable:
        for sentence in sentences:
            output.note(sentence)
        output.note(f"Next: otf up   (starts workers), then otf status {document.name} --watch")
