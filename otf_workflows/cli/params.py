"""Arguments and options, each declared once, so that they mean the same in every command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from otf_workflows.types import FailureCause, LabelState


def complete_campaign(incomplete: str) -> list[str]:
    """Return campaign names for the shell; silence if the database does not answer at once."""
    from otf_workflows.connection import connect
    from otf_workflows.errors import OtfError
    from otf_workflows.settings import load_site
    from otf_workflows.store import Store

    try:
        names = Store(connect(load_site(), patience_s=0.5)).campaigns()
    except OtfError:
        return []
    return [item.name for item in names if item.name.startswith(incomplete)]


def parse_settings(pairs: list[str] | None) -> dict[str, object]:
    """Return ``{"budget.max_cycles": 3}`` for ``["budget.max_cycles=3"]``; values are YAML.

    Raises
    ------
    InputError
        If a pair has no ``=`` or its value is not YAML.
    """
    import yaml

    from otf_workflows.errors import InputError

    result = {}
    for pair in pairs or []:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise InputError(
                f"'{pair}' is not KEY=VALUE", where="--set", hint="--set budget.max_cycles=3"
            )
        try:
            result[name.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"the value of '{name}' is not YAML: {text}", where="--set") from error
    return result


def parse_duration(text: str) -> float:
    """Return seconds for ``4h``, ``90m``, ``1d`` or ``3600``.

    Raises
    ------
    InputError
        If it is none of these.
    """
    import re

    from otf_workflows.errors import InputError

    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip())
    if found is None or float(found.group(1)) <= 0:
        raise InputError(f"'{text}' is no duration", where="--walltime", hint="--walltime 4h")
    return float(found.group(1)) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found.group(2)]


CampaignFile = Annotated[
    Path, typer.Argument(metavar="CAMPAIGN.YAML", help="Campaign file.", show_default=False)
]
CampaignName = Annotated[
    str,
    typer.Argument(
        metavar="CAMPAIGN",
        help="Name of a campaign.",
        autocompletion=complete_campaign,
        show_default=False,
    ),
]
AnyCampaign = Annotated[
    str | None,
    typer.Argument(
        metavar="[CAMPAIGN]",
        help="Name of a campaign; all of them if not given.",
        autocompletion=complete_campaign,
        show_default=False,
    ),
]
ModelId = Annotated[str, typer.Argument(metavar="MODEL", help="Model id.", show_default=False)]
LabelKey = Annotated[
    str, typer.Argument(metavar="KEY", help="Key of a label, or its beginning.", show_default=False)
]
LabelKeys = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY]...", help="Keys of labels, or their beginnings."),
]
KeyOption = Annotated[
    list[str] | None,
    typer.Option("--key", metavar="KEY", help="The same as an argument. Repeatable."),
]

ForCampaign = Annotated[
    str | None,
    typer.Option(
        "--campaign", "-c", help="Only of this campaign.", autocompletion=complete_campaign
    ),
]
Cycle = Annotated[int | None, typer.Option("--cycle", min=0, help="Only of this cycle.")]
States = Annotated[list[LabelState] | None, typer.Option("--state", help="Only in this state.")]
Failed = Annotated[bool, typer.Option("--failed", help="Only failed ones.")]
Causes = Annotated[
    list[FailureCause] | None, typer.Option("--cause", help="Only failed for this cause.")
]
Grep = Annotated[
    str | None, typer.Option("--grep", metavar="REGEX", help="Only with a reason that matches.")
]
Limit = Annotated[int, typer.Option("--limit", min=0, help="At most so many; 0 for all.")]

NewName = Annotated[
    str | None, typer.Option("--name", help="Name of the campaign, instead of the file's.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Replace a value: --set budget.max_cycles=3. Repeatable."
    ),
]
Numerics = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Numerical setting of the DFT code. Repeatable."
    ),
]

Walltime = Annotated[
    str | None,
    typer.Option("--walltime", metavar="4h", help="Time limit of each, instead of the site's."),
]
OnWorker = Annotated[
    str | None,
    typer.Option("--worker", metavar="NAME", help="Resources CODE@NAME of the site file."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON with a schema name.")]
Parsable = Annotated[bool, typer.Option("--parsable", help="Print nothing but the id.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and stop.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]
Everything = Annotated[bool, typer.Option("--all", help="Leave nothing out.")]
ReportPath = Annotated[
    Path | None, typer.Option("--report", help="Where the HTML report goes.", show_default=False)
]
OutputPath = Annotated[
    Path | None, typer.Option("--output", "-o", help="File to write.", show_default=False)
]
