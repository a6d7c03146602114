"""``otf schema``: JSON schemas, so that an editor completes and checks the files."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from otf_workflows.cli import output


class What(StrEnum):
    """Files with a schema."""

    CAMPAIGN = "campaign"
    SITE = "site"


def schema(
    what: Annotated[What, typer.Argument(help="Which file.")] = What.CAMPAIGN,
) -> None:
    """Print the JSON schema of the campaign or the site file, for editors."""
    from otf_workflows.cli import templates

    output.data(json.dumps(templates.json_schema(what), indent=2, ensure_ascii=False))
