"""One structure as a file: extended XYZ, POSCAR, CIF, and the XYZ that the 3D viewer reads.

Written here, since importing :mod:`ase.io` (and SciPy with it) would double the memory of a process
that stays on a login node all week. The tests read each file back with ASE.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.schemas import Frame, LabelResult


class StructureFormat(StrEnum):
    """A kind of structure file, by the ending of its name."""

    EXTXYZ = "extxyz"
    POSCAR = "vasp"
    CIF = "cif"
    VIEWER = "xyz"


def structure_file(
    frame: Frame, kind: StructureFormat, *, comment: str = "", result: LabelResult | None = None
) -> str:
    """Return a structure as the text of a file.

    Parameters
    ----------
    frame
        The structure.
    kind
        Format.
    comment
        One line that says what it is; ``"`` and line ends are taken out.
    result
        Energy, forces and stress, for extended XYZ.
    """
    text = " ".join(comment.replace('"', "'").split())
    if kind is StructureFormat.EXTXYZ:
        return _extxyz(frame, text, result)
    if kind is StructureFormat.POSCAR:
        return _poscar(frame, text)
    if kind is StructureFormat.CIF:
        return _cif(frame, text)
    return _viewer(frame)


def symbols(numbers: Sequence[int]) -> list[str]:
    """Return the symbol of every atom."""
    from ase.data import chemical_symbols

    return [chemical_symbols[number] for number in numbers]


def _viewer(frame: Frame) -> str:
    """Return XYZ with nothing but positions: 3Dmol takes further columns for displacements."""
    positions = _wrapped(frame)
    rows = [_row(s, r) for s, r in zip(symbols(frame.numbers), positions, strict=True)]
    return "\n".join([str(frame.n_atoms), f'Lattice="{_flat(frame.cell_A)}"', *rows]) + "\n"


def _extxyz(frame: Frame, comment: str, result: LabelResult | None) -> str:
    head = [f'Lattice="{_flat(frame.cell_A)}"']
    table: list[Sequence[Sequence[float]]] = [frame.positions_A]
    columns = "species:S:1:pos:R:3"
    if result is not None:
        columns += ":forces:R:3"
        table.append(result.forces_eV_A)
        head.append(f"energy={result.energy_eV:.10g}")
        if result.stress_eV_A3 is not None:
            head.append(f'stress="{_flat(result.stress_eV_A3)}"')
    head += [f"Properties={columns}", 'pbc="T T T"']
    head += [f'comment="{comment}"'] if comment else []
    rows = [
        _row(symbol, *vectors)
        for symbol, *vectors in zip(symbols(frame.numbers), *table, strict=True)
    ]
    return "\n".join([str(frame.n_atoms), " ".join(head), *rows]) + "\n"


def _poscar(frame: Frame, comment: str) -> str:
    names = symbols(frame.numbers)
    blocks = [(name, len(list(members))) for name, members in groupby(names)]
    lines = [
        comment or "structure",
        "1.0",
        *(_row("", vector) for vector in frame.cell_A),
        " ".join(name for name, _ in blocks),
        " ".join(str(n) for _, n in blocks),
        "Cartesian",
        *(_row("", position) for position in frame.positions_A),
    ]
    return "\n".join(lines) + "\n"


def _cif(frame: Frame, comment: str) -> str:
    cell = np.array(frame.cell_A)
    lengths = np.linalg.norm(cell, axis=1)
    cosines = [cell[i] @ cell[j] / lengths[i] / lengths[j] for i, j in ((1, 2), (0, 2), (0, 1))]
    angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    parts = zip(("a", "b", "c"), lengths, strict=True)
    corners = zip(("alpha", "beta", "gamma"), angles, strict=True)
    seen: Counter[str] = Counter()
    rows = []
    scaled = np.linalg.solve(cell.T, np.array(frame.positions_A).T).T
    for symbol, place in zip(symbols(frame.numbers), scaled, strict=True):
        seen[symbol] += 1
        rows.append(f"{symbol} {symbol}{seen[symbol]} 1.0" + _row("", place))
    lines = [
        f"# {comment}" if comment else "",
        "data_structure",
        *(f"_cell_length_{name} {value:.10f}" for name, value in parts),
        *(f"_cell_angle_{name} {value:.8f}" for name, value in corners),
        "_symmetry_space_group_name_H-M 'P 1'",
        "_symmetry_Int_Tables_number 1",
        "loop_",
        "_symmetry_equiv_pos_as_xyz",
        "'x, y, z'",
        "loop_",
        "_atom_site_type_symbol",
        "_atom_site_label",
        "_atom_site_occupancy",
        *(f"_atom_site_fract_{axis}" for axis in "xyz"),
        *rows,
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _wrapped(frame: Frame) -> np.ndarray:
    """Return the positions inside the cell (Å), shape (n, 3)."""
    cell = np.array(frame.cell_A)
    scaled = np.linalg.solve(cell.T, np.array(frame.positions_A).T).T
    # What lies a hair below zero is at zero, not at the other side of the cell.
    return (scaled - np.floor(scaled + 1e-7)) @ cell


def _row(name: str, *vectors: Sequence[float] | np.ndarray) -> str:
    return name + "".join(f" {float(x):.8f}" for vector in vectors for x in vector)


def _flat(matrix: Sequence[Sequence[float]]) -> str:
    return " ".join(f"{x:.10g}" for row in matrix for x in row)
