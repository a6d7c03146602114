"""Campaign and site files written from the models themselves, and their JSON schemas.

Every key, default, limit and unit comes from the pydantic models, so that the commented file can
never say something else than the program does.
"""

from __future__ import annotations

import textwrap
import typing
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otf_workflows.types import QueueKind, Role
from otf_workflows.validation import range_words, submodel

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

WIDTH = 100
"""Longest line of a generated file."""

_MINIMAL = {
    "name", "structure", "tolerance_eV_A", "labels",
    "exploration", "exploration.temperatures_K", "exploration.walkers_per_temperature",
    "exploration.cell_shapes", "exploration.steps_per_cycle",
    "selection", "selection.labels_per_cycle", "selection.audit_per_cycle",
    "budget", "budget.max_cycles", "budget.max_labels",
    "production", "production.temperature_K", "production.steps",
}  # fmt: skip
"""What most people change first."""

_RECIPE_EXAMPLES: dict[str, dict[str, Any]] = {
    "abinit": {"cutoff_Ha": 30.0, "kpoints": [2, 2, 2]},
    "ase": {"calculator": "teacher", "kwargs": {"potential": "chgnet-r2scan"}},
    "cp2k": {"basis": "DZVP-MOLOPT-SR-GTH", "cutoff_Ry": 400, "kpoints": [2, 2, 2]},
    "espresso": {"functional": "PBE", "cutoff_Ry": 50.0, "kpoints": [2, 2, 2]},
    "gpaw": {"cutoff_eV": 500.0, "kpoints": [2, 2, 2]},
    "vasp": {"recipe": "mptrj", "incar": {"NCORE": 4}},
}
"""A complete recipe of each code to start from."""

_SHAPES_CODES = {"ase", "espresso", "vasp"}
"""Codes whose example has k-points (if any) that are right in cells of every shape."""

_SERVER = {
    "mode": "server",
    "host": "mongo.example.org",
    "username": "otf",
    "password_file": "mongo-password",
    "auth_source": "otf",
}


def _cluster(kind: QueueKind, command: str, **extra: dict[str, Any]) -> dict[str, Any]:
    """Return a site whose control jobs run beside `otf launch`, and all others in queues."""
    gpu = {"kind": kind, "partition": "gpu", "cores_per_rank": 8, "gpus": 1, "memory_MiB": 32000}
    cpu = {"kind": kind, "partition": "cpu", "ranks": 32, "memory_MiB": 64000}
    load = {"environment": ["module load quantum-espresso"]}
    queues = {
        Role.DFT: {**cpu, "walltime_s": 4 * 3600, "max_jobs": 10, **load},
        Role.MD: {**gpu, "walltime_s": 24 * 3600},
        Role.TRAIN: {**gpu, "walltime_s": 8 * 3600, "max_jobs": 1},
    }
    return {
        "database": _SERVER,
        "workers": {str(Role.CONTROL): {"count": 1}},
        "queues": {str(role): {**queue, **extra.get(role, {})} for role, queue in queues.items()},
        "codes": {"espresso": {"command": command, "cores": 32}},
    }


_SITE_EXAMPLES: dict[str, dict[str, Any]] = {
    "local": {},
    "server": {"database": _SERVER},
    "slurm": _cluster(QueueKind.SLURM, "srun pw.x"),
    "pbs": _cluster(QueueKind.PBS, "mpirun -np 32 pw.x"),
    "sge": _cluster(
        QueueKind.SGE,
        "mpirun -np 32 pw.x",
        dft={"directives": ["#$ -pe mpi 32"]},
        md={"directives": ["#$ -pe smp 8"]},
        train={"directives": ["#$ -pe smp 8"]},
    ),
}
"""What each kind of site file sets apart from the defaults."""


def campaign_template(
    *,
    name: str = "my-material",
    structure: str = "structure.cif",
    code: str,
    full: bool = False,
    schema: str | None = None,
) -> str:
    """Return a commented campaign file.

    Parameters
    ----------
    name
        Name of the campaign.
    structure
        Structure file, relative to the campaign file.
    code
        DFT code of the recipe.
    full
        Write every key, not only those that most people change.
    schema
        File with the JSON schema, named for editors that look for it.
    """
    from otf_workflows.campaign import Campaign
    from otf_workflows.labelers import get_labeler

    recipe_model = get_labeler(code).recipe_model
    example = {"code": code, **_RECIPE_EXAMPLES.get(code, {})}
    recipe = {
        key: example.get(key, _example(key, field))
        for key, field in recipe_model.model_fields.items()
        if full or field.is_required() or key in example
    }
    values: dict[str, Any] = {"name": name, "structure": structure, "labels": recipe}
    if not full and code in _SHAPES_CODES:
        values["exploration"] = {"cell_shapes": 4, "walkers_per_temperature": 2}
    head = [
        f"# yaml-language-server: $schema={schema}" if schema else "",
        "# A campaign: the physics. Machines and the database stand in the site file.",
        "# Check it with 'otf validate campaign.yaml', run it with 'otf run campaign.yaml'.",
        "" if full else "# 'otf init --full' shows every key.",
    ]
    lines = _section(
        Campaign, values, only=None if full else _MINIMAL, nested={"labels": recipe_model}
    )
    return "\n".join([*(line for line in head if line), "", *lines]) + "\n"


def site_template(kind: str) -> str:
    """Return a commented site file.

    Parameters
    ----------
    kind
        Key of the examples: ``local`` for this machine alone, ``server`` for a MongoDB and workers
        on any machines, ``slurm``, ``pbs`` or ``sge`` for a cluster with batch queues.
    """
    from otf_workflows.labelers.base import Resources
    from otf_workflows.settings import Site

    head = [
        "# A site: machines, programs and the database. The physics stands in the campaign file.",
        "# Check it with 'otf doctor --site site.yaml'.",
        "",
    ]
    values = {
        "codes": {"espresso": {"command": "pw.x", "cores": 1}},
        **_plain(_SITE_EXAMPLES[kind]),
    }
    body = _section(Site, values, only=None, nested={"codes": Resources})
    return "\n".join([*head, *body]) + "\n"


def site_kinds() -> list[str]:
    """Return the kinds of site file there is a template for."""
    return list(_SITE_EXAMPLES)


def json_schema(what: str) -> dict[str, Any]:
    """Return the JSON schema of the campaign or the site file, for editors.

    Parameters
    ----------
    what
        ``campaign`` or ``site``.
    """
    if what == "site":
        from otf_workflows.settings import Site

        schema = Site.model_json_schema()
        for hidden in ("password", "source"):
            schema["properties"].pop(hidden, None)
        title = "OTF Workflows site"
    else:
        schema = _campaign_schema()
        title = "OTF Workflows campaign"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": title}


def _campaign_schema() -> dict[str, Any]:
    """Return the schema of what a person writes: a file name for the structure, one recipe."""
    from otf_workflows.campaign import Campaign, Start
    from otf_workflows.labelers import available_codes, get_labeler
    from otf_workflows.potentials import POTENTIALS

    schema = Campaign.model_json_schema()
    definitions = schema["$defs"]
    definitions["Start"]["properties"]["file"] = {
        "type": "string",
        "description": Start.model_fields["file"].description,
    }
    for unused in ("Frame", "Origin", "Purpose"):
        definitions.pop(unused, None)
    recipes = []
    for code in available_codes():
        recipe = get_labeler(code).recipe_model.model_json_schema(
            ref_template="#/$defs/{model}", mode="validation"
        )
        definitions.update(recipe.pop("$defs", {}))
        recipe["properties"]["code"] = {
            **recipe["properties"]["code"], "const": code, "type": "string",
        }  # fmt: skip
        recipe["required"] = sorted({*recipe.get("required", []), "code"})
        definitions[recipe["title"]] = recipe
        recipes.append({"$ref": f"#/$defs/{recipe['title']}"})
    properties = schema["properties"]
    properties["structure"] = {
        "type": "string",
        "description": Campaign.model_fields["structure"].description,
    }
    properties["potential"]["enum"] = list(POTENTIALS)
    properties["labels"] = {
        "description": Campaign.model_fields["labels"].description,
        "oneOf": recipes,
    }
    return schema


# -- rendering ---------------------------------------------------------------------------------


def _section(
    model: type[BaseModel],
    values: Mapping[str, Any],
    *,
    only: Container[str] | None,
    nested: Mapping[str, type[BaseModel]] | None = None,
    path: str = "",
    depth: int = 0,
) -> list[str]:
    """Return the lines of one section, its sub-sections included."""
    lines: list[str] = []
    for key, field in model.model_fields.items():
        name = f"{path}.{key}" if path else key
        if field.exclude or (
            only is not None and name not in only and not path.startswith("labels")
        ):
            continue
        if path.startswith("labels") and key not in values:
            continue
        value = values[key] if key in values else _example(key, field)
        listed = typing.get_origin(field.annotation) is list
        inner = (nested or {}).get(key) or (
            None if name == "structure" or listed else submodel(field.annotation)
        )
        table = typing.get_origin(field.annotation) is dict and key != "labels"
        if inner is None or value is None or (table and not value):
            lines += _line(key, value, _comment(field), depth)
            continue
        if depth == 0 and lines:
            lines.append("")
        about = [_comment(field)] if typing.get_origin(field.annotation) is dict else []
        about = about or [_summary(inner), _comment(field)]
        lines += _line(key, _SECTION, "; ".join(filter(None, about)), depth)
        if table:
            for number, (entry, content) in enumerate(value.items()):
                # The first entry shows every key, those after it what they set.
                shown = {f"{name}.{part}" for part in _as_dict(content)} if number else None
                lines += _line(str(entry), _SECTION, "", depth + 1)
                lines += _section(inner, _as_dict(content), only=shown, path=name, depth=depth + 2)
        else:
            lines += _section(inner, _as_dict(value), only=only, path=name, depth=depth + 1)
    return lines


_SECTION = object()
"""Stands for a value that follows on the next lines."""


def _line(key: str, value: Any, comment: str, depth: int) -> list[str]:
    """Return ``key: value  # comment``, with the comment above if it would be too long."""
    indent = "  " * depth
    text = f"{indent}{key}:" + ("" if value is _SECTION else f" {_flow(value)}")
    if not comment:
        return [text]
    if len(text) + len(comment) + 4 <= WIDTH and value is not _SECTION:
        return [f"{text}  # {comment}"]
    above = textwrap.wrap(comment, WIDTH - len(indent) - 2)
    return [*(f"{indent}# {row}" for row in above), text]


def _flow(value: Any) -> str:
    """Return a value in YAML on one line."""
    import yaml

    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def _comment(field: FieldInfo) -> str:
    """Return the description with the limits, as one phrase."""
    words = range_words(field)
    text = (field.description or "").rstrip(".")
    if words in {"at least 0", "at least 1"}:  # goes without saying
        words = ""
    return f"{text}; {words}" if text and words else text


def _summary(model: type[BaseModel]) -> str:
    """Return the first sentence of a section's own docstring."""
    return (model.__doc__ or "").strip().splitlines()[0].rstrip(".") if model.__doc__ else ""


def _example(key: str, field: FieldInfo) -> Any:
    """Return a field's default, or its example if it must be given."""
    if not field.is_required():
        return _plain(field.get_default(call_default_factory=True))
    if field.examples:
        return _plain(field.examples[0])
    return f"<{key}>"


def _plain(value: Any) -> Any:
    """Return YAML data: models become dictionaries, enums their values."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
