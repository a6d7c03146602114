"""What commands print: data on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console, RenderableType

    from otf_workflows.errors import OtfError

_ICONS = {
    "done": ("✔", "green"), "converged": ("✔", "green"), "promoted": ("✔", "green"),
    "running": ("▶", "cyan"), "producing": ("▶", "cyan"), "pending": ("·", "dim"),
    "failed": ("✘", "red"), "stalled": ("✘", "red"), "quarantined": ("!", "yellow"),
    "paused": ("‖", "yellow"), "budget_exhausted": ("■", "yellow"), "stopped": ("■", "yellow"),
}  # fmt: skip
"""A sign and a colour per state; the word always stands beside them."""


def console(*, err: bool = False) -> Console:
    """Return a rich console on stdout (data) or stderr (talk); it honours NO_COLOR."""
    from rich.console import Console

    return Console(stderr=err, highlight=False, soft_wrap=err)


def on_terminal() -> bool:
    """Whether stdout is a terminal that a person looks at."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def data(text: str) -> None:
    """Print a line of data."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """Print a line for the person, unless ``-q`` was given."""
    if not _quiet:
        sys.stderr.write(text + "\n")


def is_quiet() -> bool:
    """Whether ``-q`` was given."""
    return _quiet


def be_quiet(*, quiet: bool) -> None:
    """Leave notes out from now on, or not."""
    global _quiet  # noqa: PLW0603  one process, one command
    _quiet = quiet


_quiet = False


def emit_json(schema: str, payload: dict[str, Any], *, compact: bool = False) -> None:
    """Print an object whose first key names its versioned schema.

    Parameters
    ----------
    schema
        Name and version, ``otf.status/1``.
    payload
        JSON data; models must have been dumped with ``mode="json"``.
    compact
        On one line, for streams of objects.
    """
    indent = None if compact else 2
    data(json.dumps({"schema": schema, **payload}, indent=indent, ensure_ascii=False))
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table: drawn on a terminal, aligned columns that are never cut when piped."""
    cells = [[_text(cell) for cell in row] for row in rows]
    if on_terminal():
        console().print(rich_table(columns, cells))
        return
    table = [list(columns), *cells]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    for row in table:
        data("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def rich_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> RenderableType:
    """Return a table for a terminal, with states in colour."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=index == 0)
    for row in rows:
        table.add_row(
            *(
                Text(f"{_ICONS[cell][0]} {cell}", style=_ICONS[cell][1])
                if cell in _ICONS
                else Text(cell)
                for cell in map(_text, row)
            )
        )
    return table


def confirm(question: str, *, yes: bool, no_input: bool) -> bool:
    """Ask ``question [y/N]`` on a terminal; elsewhere only ``--yes`` says yes.

    Raises
    ------
    InputError
        If nobody can be asked.
    """
    from otf_workflows.errors import InputError

    if yes:
        return True
    if no_input or not sys.stdin.isatty():
        raise InputError("this changes things, and nobody is there to confirm it", hint="add --yes")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def print_error(error: OtfError) -> None:
    """Print what, where and next on lines of their own."""
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    label = "\033[1;31merror:\033[0m" if colour else "error:"
    sys.stderr.write(f"{label} {error.what}\n")
    if error.where:
        sys.stderr.write(f"where: {error.where}\n")
    if error.hint:
        sys.stderr.write(f"next:  {error.hint}\n")


def duration(seconds: float | None) -> str:
    """Return ``1 h 05 min``, ``3 min 20 s`` or ``12 s``; ``?`` if unknown."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole >= 86_400:
        return f"{whole // 86_400} d {whole % 86_400 // 3600:02d} h"
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole} s"


def _text(cell: object) -> str:
    if cell is None:
        return "–"
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)
