"""``otf init``: write a commented campaign or site file."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from otf_workflows.cli import output, params

_STRUCTURES = ("POSCAR", "CONTCAR", "*.cif", "*.vasp", "*.poscar", "*.extxyz")


class SiteKind(StrEnum):
    """Kinds of site file."""

    LOCAL = "local"
    SERVER = "server"
    SLURM = "slurm"
    PBS = "pbs"
    SGE = "sge"


def init(
    *,
    folder: Annotated[Path, typer.Argument(help="Folder to write to.")] = Path(),
    full: Annotated[bool, typer.Option("--full", help="Write every key of the file.")] = False,
    site: Annotated[
        SiteKind | None,
        typer.Option(
            "--site", help="Write a site file as well: local, a MongoDB server, or a cluster."
        ),
    ] = None,
    structure: Annotated[
        Path | None, typer.Option("--structure", help="Structure file.", show_default=False)
    ] = None,
    name: params.NewName = None,
    code: Annotated[str, typer.Option("--code", help="DFT code of the recipe.")] = "espresso",
    with_schema: Annotated[
        bool, typer.Option("--schema", help="Write JSON schemas for your editor as well.")
    ] = False,
    force: params.Force = False,
    dry_run: params.DryRun = False,
) -> None:
    """Write a commented campaign.yaml, and a site file if asked for."""
    import json

    from otf_workflows.cli import templates
    from otf_workflows.errors import InputError

    if structure is not None and not structure.is_file():
        raise InputError("the structure file does not exist", where=str(structure))
    chosen = structure or _one_structure(folder)
    files = {
        folder / "campaign.yaml": templates.campaign_template(
            name=name or (chosen.stem if chosen else "my-material"),
            structure=_relative(chosen, folder) if chosen else "structure.cif",
            code=code,
            full=full,
            schema="campaign.schema.json" if with_schema else None,
        )
    }
    if site is not None:
        files[folder / "site.yaml"] = templates.site_template(site)
    if with_schema:
        for what in ("campaign", "site"):
            text = json.dumps(templates.json_schema(what), indent=2, ensure_ascii=False)
            files[folder / f"{what}.schema.json"] = text + "\n"
    _refuse_overwriting(files, force=force)
    for path, text in files.items():
        if dry_run:
            output.note(f"would write {path}")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        output.data(str(path))
    if chosen is None:
        output.note(f"Put your structure at {folder / 'structure.cif'}, or name another file.")
    output.note(f"Next: otf validate {folder / 'campaign.yaml'}")
    if site in {SiteKind.SLURM, SiteKind.PBS, SiteKind.SGE}:
        output.note(f"Then: otf doctor --queue-test --site {folder / 'site.yaml'}")


def _refuse_overwriting(files: dict[Path, str], *, force: bool) -> None:
    from otf_workflows.errors import InputError

    present = [str(path) for path in files if path.exists()]
    if present and not force:
        raise InputError(
            "a file would be overwritten", where=", ".join(present), hint="add --force"
        )


def _one_structure(folder: Path) -> Path | None:
    """Return the structure file of a folder, if there is exactly one."""
    found = sorted({path for pattern in _STRUCTURES for path in folder.glob(pattern)})
    return found[0] if len(found) == 1 else None


def _relative(path: Path, folder: Path) -> str:
    """Return a path as the campaign file names it: relative to the folder of that file."""
    return os.path.relpath(path.resolve(), folder.resolve())
