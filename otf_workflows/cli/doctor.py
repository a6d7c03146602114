"""``otf doctor``: everything that would fail tonight, said now, each with its fix."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otf_workflows.cli import output, params
from otf_workflows.cli.session import session

if TYPE_CHECKING:
    from otf_workflows.preflight import Check

_FILES = ("OTF_SITE_FILE", "OTF_STATE_DIR", "FW_CONFIG_FILE", "JOBFLOW_CONFIG_FILE")
"""Environment variables that decide which configuration wins."""


def doctor(
    ctx: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[CAMPAIGN.YAML]", help="Check what this campaign needs as well."),
    ] = None,
    *,
    queue_test: Annotated[
        bool,
        typer.Option("--queue-test", help="Submit a short job of each role to its batch queue."),
    ] = False,
    wait: Annotated[
        float, typer.Option("--wait", min=1, help="Seconds to wait for these jobs.")
    ] = 300.0,
    as_json: params.AsJson = False,
) -> None:
    """Check configuration, folders, database, programs, models and batch queues.

    Each ✘ comes with what puts it right; the exit code is that of the first one. A '!' is all
    right, with advice.
    """
    from otf_workflows.campaign_file import read_campaign
    from otf_workflows.preflight import Check, all_checks

    campaign = read_campaign(file) if file is not None else None
    found: list[Check] = [_environment(Check)]
    if not as_json:
        _show(found[0])
    checks_of_site = all_checks(
        session(ctx).site, campaign=campaign, queue_test=queue_test, wait_s=wait
    )
    for check in checks_of_site:
        found.append(check)
        if not as_json:
            _show(check)
    failed = [check for check in found if not check.ok]
    if as_json:
        checks = [check.model_dump(mode="json") for check in found]
        output.emit_json("otf.doctor/1", {"ok": not failed, "checks": checks})
    elif not failed:
        output.note("All is well.")
    if failed:
        raise typer.Exit(failed[0].exit_code)


def _environment(check: type[Check]) -> Check:
    """Tell which variables decide about configuration files."""
    named = [f"{name}={os.environ[name]}" for name in _FILES if os.environ.get(name)]
    detail = ", ".join(named) if named else "no variable names a configuration file"
    return check(name="environment", ok=True, detail=detail)


def _show(check: Check) -> None:
    """Print a check at once: some take seconds."""
    sign, colour = ("✘", 31) if not check.ok else ("!", 33) if check.hint else ("✔", 32)
    if output.on_terminal() and not os.environ.get("NO_COLOR"):
        sign = f"\033[{colour}m{sign}\033[0m"
    output.data(f"{sign} {check.name}: {check.detail}")
    if check.hint:
        output.data(f"    {'advice' if check.ok else 'fix'}: {check.hint}")
