"""Writes docs/reference/*.md from the models, so that pages and program cannot disagree.

Run it after a change of a model: ``python docs/generate_reference.py``; a test compares.
"""

from __future__ import annotations

import argparse
import inspect
import re
import types
import typing
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel

from otf_workflows import errors, schemas
from otf_workflows import types as choices
from otf_workflows.campaign import Campaign
from otf_workflows.labelers import available_codes, get_labeler
from otf_workflows.labelers.base import Resources
from otf_workflows.settings import (
    DatabaseSettings,
    Queue,
    RemoteSettings,
    Site,
    Worker,
    load_site,
)
from otf_workflows.validation import range_words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic.fields import FieldInfo

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/generate_reference.py; edit the models instead. -->"

CAMPAIGN_INTRO = (
    "The physics, and nothing about machines. An unknown key is an error. `otf init` writes a "
    "commented file, `otf init --full` one with every key, `otf schema campaign` the JSON schema "
    "for your editor."
)
RECIPE_INTRO = (
    "The recipe: `code` names the program, the other keys define its level of theory, which is "
    "part of a label's identity."
)
SITE_INTRO = (
    "Machines, programs and the database, and nothing about physics. Without any file, a site is "
    "this one machine with a MongoDB server of its own."
)
QUEUES_INTRO = (
    "One section per role that runs in a batch system; the other roles are local workers of "
    "whoever runs `otf launch`."
)
REMOTE_INTRO = "For `engine: jobflow-remote` only (`how-to/compute_nodes_without_database.md`)."
DOCUMENTS_INTRO = (
    "Units: eV, Å, eV/Å, K, fs; stress in eV/Å³ with tension positive, as in ASE. Times are UTC. "
    "Weights and long arrays are GridFS files. Job outputs stay in jobflow's own store."
)
EXIT_INTRO = (
    "stdout is data, everything else goes to stderr. An error says what is wrong, where, and what "
    "to do next."
)

COLLECTIONS: dict[str, tuple[type[BaseModel], str]] = {
    "otf_campaigns": (schemas.CampaignDocument, "name"),
    "otf_cycles": (schemas.CycleDocument, "campaign, cycle"),
    "otf_labels": (schemas.LabelDocument, "key"),
    "otf_datasets": (schemas.DatasetDocument, "campaign, hash"),
    "otf_models": (schemas.ModelDocument, "model_id"),
    "otf_properties": (schemas.PropertyDocument, "campaign, kind, model_id"),
    "otf_events": (schemas.Event, "none"),
}
"""Collection → its document and its unique key."""

WORDS: dict[Any, str] = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    Path: "path",
    datetime: "time",
    types.NoneType: "none",
    Any: "anything",
}
"""Types in words that a reader of YAML knows."""

SHELL_CODES = {
    130: "Interrupted with Ctrl-C. Run the same command again to go on.",
}
"""Exit codes that no error class has."""


def campaign_page() -> str:
    """Return the page on the campaign file."""
    lines = [
        "# The campaign file",
        NOTE,
        "",
        CAMPAIGN_INTRO,
        "",
        *table(Campaign, replace={"structure": "text"}),
    ]
    for name, field in Campaign.model_fields.items():
        section = submodel(field.annotation)
        if section is not None and name != "structure":
            lines += ["", f"## `{name}`", "", first_sentence(section), "", *table(section)]
            for key, inner in section.model_fields.items():
                part = submodel(inner.annotation)
                if part is not None:
                    rows = table(part, replace={"file": "text or none"})
                    lines += ["", f"### `{name}.{key}`", "", first_sentence(part), "", *rows]
    lines += [
        "",
        "## `labels`",
        "",
        RECIPE_INTRO,
    ]
    for code in available_codes():
        recipe = get_labeler(code).recipe_model
        rows = table(recipe, replace={"code": f"`{code}`"})
        lines += ["", f"### `code: {code}`", "", first_sentence(recipe), "", *rows]
    return text(lines)


def site_page() -> str:
    """Return the page on the site file."""
    return text(
        [
            "# The site file",
            NOTE,
            "",
            SITE_INTRO,
            "",
            paragraph(load_site, 1),
            "",
            *table(Site),
            "",
            "## `database`",
            "",
            *table(DatabaseSettings),
            "",
            "## `workers`",
            "",
            f"One section per role: {', '.join(f'`{role}`' for role in choices.Role)}.",
            "",
            *table(Worker),
            "",
            "## `queues`",
            "",
            QUEUES_INTRO,
            "",
            *table(Queue),
            "",
            "## `remote`",
            "",
            REMOTE_INTRO,
            "",
            *table(RemoteSettings),
            "",
            "## `codes`",
            "",
            f"One section per code: {', '.join(f'`{code}`' for code in available_codes())}.",
            "",
            *table(Resources),
        ]
    )


def documents_page() -> str:
    """Return the page on the MongoDB documents."""
    lines = [
        "# Documents in MongoDB",
        NOTE,
        "",
        DOCUMENTS_INTRO,
        "",
        "| collection | one document is | unique key |",
        "|---|---|---|",
    ]
    for name, (model, key) in COLLECTIONS.items():
        lines.append(f"| [`{name}`](#{name}) | {first_sentence(model)} | {key} |")
    for name, (model, _) in COLLECTIONS.items():
        lines += ["", f"## `{name}`", "", *table(model, defaults=False)]
    lines += ["", "## Parts of documents"]
    for part in parts([model for model, _ in COLLECTIONS.values()]):
        lines += ["", f"### {part.__name__}", "", first_sentence(part), ""]
        lines += table(part, defaults=False)
    lines += ["", "## States and causes"]
    for kind in (
        choices.CampaignState,
        choices.CycleState,
        choices.LabelState,
        choices.FailureCause,
        choices.Purpose,
        choices.Split,
        choices.StopReason,
        choices.Decision,
    ):
        words = ", ".join(f"`{item}`" for item in kind)
        lines += ["", f"**{kind.__name__}**: {words}. {first_sentence(kind)}"]
    return text(lines)


def exit_codes_page() -> str:
    """Return the page on exit codes."""
    lines = [
        "# Exit codes of `otf`",
        NOTE,
        "",
        EXIT_INTRO,
        "",
        "| code | error | meaning |",
        "|---|---|---|",
        "| 0 |  | Done. |",
    ]
    lines += [
        f"| {error.exit_code} | `{error.__name__}` | {first_sentence(error)} |"
        for error in sorted(error_classes(), key=lambda e: (e.exit_code, e.__name__))
    ]
    lines += [f"| {code} |  | {words} |" for code, words in SHELL_CODES.items()]
    return text(lines)


PAGES: dict[str, Callable[[], str]] = {
    "campaign_file.md": campaign_page,
    "site_file.md": site_page,
    "documents.md": documents_page,
    "exit_codes.md": exit_codes_page,
}
"""File name → what writes it."""


# -- parts -------------------------------------------------------------------------------------


def table(
    model: type[BaseModel], *, defaults: bool = True, replace: dict[str, str] | None = None
) -> list[str]:
    """Return a Markdown table of a model's fields.

    Parameters
    ----------
    model
        The model.
    defaults
        Whether a column tells the defaults.
    replace
        Types to write instead of those found, by field.
    """
    head = ["key", "type", "default", "meaning"] if defaults else ["key", "type", "meaning"]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, field in model.model_fields.items():
        if field.exclude:
            continue
        kind = (replace or {}).get(name) or type_words(field.annotation)
        cells = [f"`{name}`", kind, default_words(field), meaning(field)]
        if not defaults:
            del cells[2]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def meaning(field: FieldInfo) -> str:
    """Return the description with the limits."""
    limits = range_words(field)
    words = (field.description or "").rstrip()
    return f"{words} {limits[0].upper()}{limits[1:]}." if limits else words


def default_words(field: FieldInfo) -> str:
    """Return the default as it would stand in YAML."""
    if field.is_required():
        return "required"
    if field.default_factory_takes_validated_data:
        return "as told"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, dict):
        return "see below" if value else "none"
    if value is None:
        return "none"
    plain = list(value) if isinstance(value, tuple) else value
    plain = str(plain) if isinstance(plain, StrEnum) else plain
    flow = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True).splitlines()[0]
    return f"`{flow}`"


def type_words(annotation: Any) -> str:
    """Return a type in words that a reader of YAML knows."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(f"`{item}`" for item in inner)
    if origin in {typing.Union, types.UnionType}:
        return " or ".join(type_words(item) for item in inner)
    if origin is list:
        return f"list of {type_words(inner[0])}"
    if origin is tuple:
        return f"list of {len(inner)} × {type_words(inner[0])}"
    if origin is dict:
        part = submodel(annotation)
        return f"section of {named(part)}" if part and named(part) != "section" else "section"
    return WORDS.get(annotation) or named(annotation)


def named(kind: type) -> str:
    """Return how a class is called on these pages: sections of files need no name."""
    if issubclass(kind, StrEnum) and kind.__module__ != choices.__name__:
        return " or ".join(f"`{item}`" for item in kind)
    if issubclass(kind, BaseModel) and not issubclass(kind, schemas.Document):
        return "section"
    return kind.__name__


def parts(models: Sequence[type[BaseModel]]) -> list[type[BaseModel]]:
    """Return the models that others contain, each once, in the order they are met."""
    found: list[type[BaseModel]] = []
    waiting = list(models)
    while waiting:
        for field in waiting.pop(0).model_fields.values():
            part = submodel(field.annotation)
            if part is not None and part not in found:
                found.append(part)
                waiting.append(part)
    return found


def submodel(annotation: Any) -> type[BaseModel] | None:
    """Return the model in an annotation such as ``list[Frame] | None``, if there is one."""
    inner = typing.get_args(annotation)
    if not inner:
        is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
        return annotation if is_model else None
    return next((found for item in inner if (found := submodel(item))), None)


def error_classes() -> list[type[errors.OtfError]]:
    """Return all error classes."""
    return [
        item
        for item in vars(errors).values()
        if isinstance(item, type) and issubclass(item, errors.OtfError)
    ]


def paragraph(thing: Any, number: int) -> str:
    """Return one paragraph of a docstring on one line, as Markdown."""
    blocks = (inspect.getdoc(thing) or "").split("\n\n")
    return " ".join(blocks[number].split()).replace("``", "`")


def first_sentence(thing: Any) -> str:
    """Return the first paragraph of a docstring, without the exit code that errors name there."""
    return re.sub(r": exit code \d+", "", paragraph(thing, 0))


def text(lines: Sequence[str]) -> str:
    """Return a page."""
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write all pages, or with --check only say which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if outdated")
    check = parser.parse_args().check
    outdated = []
    for name, page in PAGES.items():
        path, content = FOLDER / name, page()
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            outdated.append(name)
            if not check:
                path.write_text(content, encoding="utf-8")
    print(f"{'outdated' if check else 'written'}: {', '.join(outdated) or 'none'}")
    raise SystemExit(bool(check and outdated))


if __name__ == "__main__":
    main()
