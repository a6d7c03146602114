"""``otf up | down``: database and workers that stay up across commands."""

from __future__ import annotations

import typer

from otf_workflows.cli import output, params
from otf_workflows.cli.session import session


def up(ctx: typer.Context, *, as_json: params.AsJson = False) -> None:
    """Start database and workers of this site, and leave them running."""
    from otf_workflows.engine import supervisor

    site = session(ctx).site
    before = supervisor.service_status(site)
    status = supervisor.start_services(site)
    if as_json:
        payload = {"pid": status.pid, "workers": status.workers, "database": status.database}
        output.emit_json("otf.services/1", {"running": True, **payload})
        return
    for worker in status.workers:
        output.data(worker)
    verb = "are up already" if before.running else "are up"
    output.note(f"Database ({status.database}) and {len(status.workers)} workers {verb}.")
    output.note("Next: otf submit campaign.yaml; otf down stops them.")


def down(ctx: typer.Context) -> None:
    """Stop database and workers; running jobs are put back and run again later."""
    from otf_workflows.engine import supervisor

    stopped = supervisor.stop_services(session(ctx).site)
    output.note("Everything is stopped." if stopped else "Nothing was running.")
