"""Reading a campaign file: every mistake in it is one message that names file, line and field.

The file is read, its structure loaded, the recipe parsed, and the three are checked against each
other (elements, pseudopotentials, overlapping atoms) before anything is written anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError

from otf_workflows.campaign import Campaign
from otf_workflows.errors import InputError, OtfError
from otf_workflows.schemas import Frame
from otf_workflows.types import Purpose
from otf_workflows.validation import Finding, dotted, findings, suggestion

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import yaml
    from ase import Atoms

    from otf_workflows.labelers.base import Recipe

Location = tuple[str | int, ...]

_SHOWN_FINDINGS = 8
"""At most so many mistakes are listed at once."""


@dataclass(frozen=True)
class SourceFile:
    """A parsed YAML file that still knows its lines.

    Attributes
    ----------
    path
        The file.
    data
        Its content.
    lines
        Line number (from 1) of each key.
    """

    path: Path
    data: dict[str, Any]
    lines: dict[Location, int]

    def place(self, location: Location) -> str:
        """Return ``campaign.yaml:12, exploration.timestep_fs``, as far as it can be told."""
        near = location
        while near and near not in self.lines:
            near = near[:-1]
        line = f":{self.lines[near]}" if near else ""
        return f"{self.path}{line}" + (f", {dotted(location)}" if location else "")


def read_campaign(path: Path, overrides: Mapping[str, Any] | None = None) -> Campaign:
    """Read, resolve and check a campaign file.

    Parameters
    ----------
    path
        YAML file; ``structure`` in it is relative to its folder.
    overrides
        Values that replace those of the file, by dotted name (``budget.max_cycles``).

    Raises
    ------
    InputError
        For anything wrong with the file, the structure or the recipe, with the field named.
    """
    source = read_yaml(path)
    _apply(source.data, overrides or {})
    data = dict(source.data)
    found: list[Finding] = []
    if isinstance(data.get("structure"), str):
        data["structure"] = _structure(source, data["structure"], ("structure",))
    _read_starts(source, data)
    found += _recipe_findings(data.get("labels"))
    try:
        campaign = Campaign.model_validate(data)
    except ValidationError as error:
        found = [*findings(error, Campaign), *found]
    if found:
        raise _input_error(source, found)
    _check_material(source, campaign)
    return campaign


def read_yaml(path: Path) -> SourceFile:
    """Read a YAML mapping with the line of each key.

    Raises
    ------
    InputError
        If the file is missing, is not YAML, is no mapping, or says a key twice.
    """
    import yaml

    if not path.is_file():
        raise InputError(
            "the campaign file does not exist", where=str(path), hint=_near_files(path, "otf init")
        )
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the campaign file cannot be read: {error}", where=str(path)) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error)
        raise InputError(
            f"this is not YAML: {problem}", where=place, hint="check indentation, colons and quotes"
        ) from error
    if not isinstance(data, dict):
        raise InputError(
            "the campaign file is empty or no list of 'key: value' lines",
            where=str(path),
            hint="otf init   (writes a commented one)",
        )
    lines: dict[Location, int] = {}
    _number_lines(node, (), lines, path)
    return SourceFile(path=path, data=data, lines=lines)


def _number_lines(
    node: yaml.Node | None, location: Location, lines: dict[Location, int], path: Path
) -> None:
    """Fill in the line of each key below ``node``; a key said twice is a mistake."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = (*location, str(key.value))
            line = key.start_mark.line + 1
            if place in lines:
                raise InputError(
                    f"'{dotted(place)}' is there twice, first in line {lines[place]}",
                    where=f"{path}:{line}",
                    hint="delete one of them",
                )
            lines[place] = line
            _number_lines(value, place, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*location, index)] = value.start_mark.line + 1
            _number_lines(value, (*location, index), lines, path)


def _apply(data: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Set values by dotted name; sections that are not there are made."""
    for name, value in overrides.items():
        *sections, key = name.split(".")
        target = data
        for section in sections:
            if not isinstance(target.get(section), dict):
                target[section] = {}
            target = target[section]
        target[key] = value


def _input_error(source: SourceFile, found: list[Finding]) -> InputError:
    """Return one error for all mistakes; each has its line."""
    if len(found) == 1:
        only = found[0]
        return InputError(
            only.what,
            where=source.place(only.location),
            hint=only.hint or "otf init --full   (shows every key with its unit and limits)",
        )
    rows = [f"  {source.place(item.location)}: {item.what}" for item in found[:_SHOWN_FINDINGS]]
    if len(found) > _SHOWN_FINDINGS:
        rows.append(f"  … and {len(found) - _SHOWN_FINDINGS} more")
    return InputError(
        "\n".join([f"{len(found)} mistakes in the campaign file:", *rows]),
        where=str(source.path),
        hint="otf init --full   (shows every key with its unit and limits)",
    )


# -- recipe ------------------------------------------------------------------------------------


def _recipe_findings(labels: Any) -> list[Finding]:
    """Return what is wrong with the recipe by itself; nothing if it is not there at all."""
    from otf_workflows.labelers import available_codes, get_labeler

    if not isinstance(labels, dict):
        return []
    codes = list(available_codes())
    code = labels.get("code")
    if code not in codes:
        said = "'labels.code' is missing" if code is None else f"there is no DFT code '{code}'"
        guess = suggestion(str(code), codes) if code is not None else ""
        return [Finding(("labels", "code"), said + guess, f"codes: {', '.join(codes)}")]
    model = get_labeler(code).recipe_model
    try:
        model.model_validate(labels)
    except ValidationError as error:
        return findings(error, model, prefix=("labels",))
    return []


# -- structure ---------------------------------------------------------------------------------


def _read_starts(source: SourceFile, data: dict[str, Any]) -> None:
    """Put the frames of structure files into ``exploration.starts``."""
    exploration = data.get("exploration")
    starts = exploration.get("starts") if isinstance(exploration, dict) else None
    if not isinstance(starts, list):
        return
    read = [
        {**start, "file": _structure(source, start["file"], ("exploration", "starts", i, "file"))}
        if isinstance(start, dict) and isinstance(start.get("file"), str)
        else start
        for i, start in enumerate(starts)
    ]
    data["exploration"] = {**(exploration or {}), "starts": read}


def _structure(source: SourceFile, name: str, location: Location) -> Frame:
    """Return the frame in a structure file, or say why there is none."""
    path = source.path.parent / name
    place = f"{source.place(location)} = {name}"
    if not path.is_file():
        raise InputError(
            "the structure file does not exist",
            where=place,
            hint=_near_files(path, f"put the file at {path.absolute()}"),
        )
    return Frame.from_atoms(_read_atoms(path, place), purpose=Purpose.SEED)


def _read_atoms(path: Path, place: str) -> Atoms:
    """Return the one periodic, ordered structure in a file."""
    import warnings

    import numpy as np
    from ase.io import read

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            images = cast("list[Atoms]", read(path, index=":"))
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise InputError(
            f"the structure file cannot be read: {reason[0] if reason else type(error).__name__}",
            where=place,
            hint="use CIF, POSCAR or extended XYZ, with the ending .cif, .vasp or .extxyz",
        ) from error
    if len(images) != 1:
        raise InputError(
            f"the structure file holds {len(images)} structures; it must hold one",
            where=place,
            hint="write the one you mean into a file of its own",
        )
    atoms = images[0]
    if len(atoms) == 0:
        raise InputError("the structure file holds no atoms", where=place)
    if not np.isfinite(atoms.positions).all() or not np.isfinite(atoms.cell.array).all():
        raise InputError("the structure file holds numbers that are not finite", where=place)
    if atoms.cell.rank < 3 or abs(atoms.cell.volume) < 1e-3:
        raise InputError(
            "the structure has no cell; only materials periodic in three dimensions can be used",
            where=place,
            hint="give the lattice vectors, for instance in a CIF or POSCAR file",
        )
    occupancies = [w for site in atoms.info.get("occupancy", {}).values() for w in site.values()]
    if any(abs(share - 1) > 1e-6 for share in occupancies):
        raise InputError(
            "the structure is disordered: some sites are only partly occupied",
            where=place,
            hint="build an ordered cell first, for instance with pymatgen's ordering tools",
        )
    return atoms


def _check_material(source: SourceFile, campaign: Campaign) -> None:
    """Check structure, potential and recipe against each other."""
    from otf_workflows.exploration.starts import starting_frames
    from otf_workflows.labelers import parse_recipe
    from otf_workflows.levels import check_level
    from otf_workflows.potentials import check_elements, potential_entry
    from otf_workflows.selection import geometry_problem

    try:
        potential_entry(campaign.potential)
        frames = starting_frames(campaign)
        check_elements(campaign.potential, sorted({z for f in frames for z in f.numbers}))
    except OtfError as error:
        raise InputError(
            error.what, where=error.where or source.place(("potential",)), hint=error.hint
        ) from error
    check_level(campaign, where=source.place(("potential",)))
    recipe = parse_recipe(campaign.labels)
    n_shapes = len(frames) - len(campaign.exploration.starts)
    limit, count = campaign.budget.max_electrons, getattr(recipe, "n_electrons", sum)
    for number, frame in enumerate(frames, start=-n_shapes):
        given = ("structure",) if number < 0 else ("exploration", "starts", number)
        problem = geometry_problem(
            frame.numbers,
            frame.cell_A,
            frame.positions_A,
            min_distance_ratio=campaign.exploration.min_distance_ratio,
        )
        if problem:
            raise InputError(
                problem,
                where=source.place(given),
                hint="check the structure file: units (Å), lattice vectors, atoms given twice",
            )
        if problems := recipe.problems(frame):
            raise InputError(
                "; ".join(problems),
                where=source.place(("labels",) if number < 0 else given),
                hint="change the recipe or the structure",
            )
        if limit is not None and count(frame.numbers) > limit:
            raise InputError(
                f"the cell of the walkers has {count(frame.numbers):g} electrons: nothing would "
                "be labelled",
                where=source.place(("budget", "max_electrons")),
                hint="raise the limit, or explore a smaller cell (exploration.supercell)",
            )
    _check_mixing(source, frames, recipe)


def _check_mixing(source: SourceFile, frames: Sequence[Frame], recipe: Recipe) -> None:
    """Refuse starts whose energies have no zero in common with the structure's."""
    reason = recipe.mixing([frame.numbers for frame in frames])
    if reason:
        raise InputError(
            reason,
            where=source.place(("exploration", "starts")),
            hint="a campaign of its own for each composition, or another recipe",
        )


def _near_files(path: Path, otherwise: str) -> str:
    """Return a hint that names the file nearest to one that is missing."""
    folder = path.parent
    names = [item.name for item in folder.iterdir() if item.is_file()] if folder.is_dir() else []
    near = get_close_matches(path.name, names, n=1)
    return f"did you mean {folder / near[0]}?" if near else otherwise
