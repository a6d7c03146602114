"""Evaluation files made small enough for a plot, large ones in a process of their own.

A file holds every force that several models predict for hundreds of frames. Unpacked it takes tens
of times its size, and Python seldom gives such memory back; a dashboard stays on a login node all
week. So a large file is handed to a child process, which answers with a few ten kB and ends.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.errors import OtfError
from otf_workflows.report.evidence import worst_atoms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otf_workflows.report.model import UncertaintyPoint
    from otf_workflows.schemas import Calibration

MAX_CLOUD = 1200
"""Points of a parity plot; more force components are counted in cells of a grid."""
GRID_CELLS = 50
LARGE_BYTES = 2_000_000
"""Files beyond this size go to a child process."""
PATIENCE_S = 120.0
_KEY = re.compile(rb'"([0-9a-f]{64})"')


@dataclass(frozen=True)
class Cloud:
    """Predicted against DFT values; where there are many, cells of a grid with their counts."""

    dft: list[float]
    predicted: list[float]
    counts: list[int]
    n: int


@dataclass(frozen=True)
class Judged:
    """One model on one set of labels, made small enough for a plot.

    Attributes
    ----------
    forces
        Components (eV/Å).
    energies
        Per atom (meV), the mean of each side taken off.
    rmse_by_element_eV_A
        Force RMSE of the atoms of each element, with the number of atoms.
    """

    n_frames: int
    forces: Cloud
    energies: Cloud
    rmse_by_element_eV_A: dict[str, tuple[float, int]]


@dataclass(frozen=True)
class Evaluations:
    """An evaluation file, boiled down.

    Attributes
    ----------
    judged
        By name of the table: ``challenger/audit`` and so on, or a model's id.
    raw
        Worst atom of each frame with raw σ, of each table that has uncertainties.
    """

    judged: dict[str, Judged]
    raw: dict[str, dict[str, Any]]

    def points(
        self,
        name: str,
        *,
        cycle: int,
        calibration: Calibration,
        only: set[str] | None = None,
    ) -> dict[str, UncertaintyPoint]:
        """Return σ and error of the worst atom of each frame of a table, by key of the label."""
        return worst_atoms(self.raw.get(name, {}), cycle=cycle, calibration=calibration, only=only)


def keys_in(content: bytes) -> list[str]:
    """Return the keys of all labels that a file names, without unpacking it."""
    return sorted({match.decode() for match in _KEY.findall(content)})


def boiled_down(content: bytes, numbers: Mapping[str, list[int]]) -> Evaluations:
    """Return what a file says, in a form that is small.

    Parameters
    ----------
    content
        The file.
    numbers
        Atomic numbers of the frame of each label that it names.

    Raises
    ------
    OtfError
        If the child process for a large file fails.
    """
    if len(content) <= LARGE_BYTES:
        return boil_down(json.loads(content), numbers)
    words = [sys.executable, "-m", "otf_workflows.dashboard.evaluations"]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe) as child:
        assert child.stdin is not None  # noqa: S101  # asked for above
        # One after the other, not joined: the file may have tens of megabytes.
        with suppress(BrokenPipeError):
            child.stdin.write(json.dumps(dict(numbers)).encode() + b"\n")
            child.stdin.write(content)
        try:
            answer, trouble = child.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired as error:
            child.kill()
            raise OtfError(f"an evaluation took longer than {PATIENCE_S:g} s to read") from error
    if child.returncode:
        said = trouble.decode(errors="replace").strip().splitlines()
        raise OtfError(f"an evaluation could not be read: {said[-1] if said else 'no message'}")
    return _from_json(json.loads(answer))


def boil_down(tables: dict[str, dict[str, Any]], numbers: Mapping[str, list[int]]) -> Evaluations:
    """Return the same of a file that is unpacked already."""
    filled = {name: table for name, table in tables.items() if table.get("keys")}
    slim = ("keys", "worst_sigma_eV_A", "worst_error_eV_A")
    return Evaluations(
        judged={name: _judge(table, numbers) for name, table in filled.items()},
        raw={
            name: {key: table[key] for key in slim}
            # Of the forces only the largest of each frame is of use from here on.
            | {"force_predicted": [_largest(forces) for forces in table["force_predicted"]]}
            for name, table in filled.items()
            if table.get("worst_sigma_eV_A")
        },
    )


def _largest(forces_eV_A: list[list[float]]) -> list[list[float]]:
    """Return the longest of some vectors, alone in a list."""
    return [max(forces_eV_A, key=lambda vector: sum(x * x for x in vector))]


def _judge(table: dict[str, Any], numbers: Mapping[str, list[int]]) -> Judged:
    dft = np.concatenate([np.ravel(forces) for forces in table["force_dft"]])
    found = np.concatenate([np.ravel(forces) for forces in table["force_predicted"]])
    energies = [
        1000 * (np.array(table[name]) - np.mean(table[name]))
        for name in ("energy_dft_eV_atom", "energy_predicted_eV_atom")
    ]
    return Judged(
        n_frames=len(table["keys"]),
        forces=_cloud(dft, found),
        energies=_cloud(*energies),
        rmse_by_element_eV_A=_by_element(table, numbers),
    )


def _cloud(dft: np.ndarray, predicted: np.ndarray) -> Cloud:
    """Return all points, or the filled cells of a grid if they are too many to draw."""
    if len(dft) <= MAX_CLOUD:
        return Cloud(dft.tolist(), predicted.tolist(), [1] * len(dft), len(dft))
    counts, x_edges, y_edges = np.histogram2d(dft, predicted, bins=GRID_CELLS)
    i, j = np.nonzero(counts)
    if len(i) > MAX_CLOUD:
        fullest = np.argsort(counts[i, j])[::-1][:MAX_CLOUD]
        i, j = i[fullest], j[fullest]
    centres = [(edges[:-1] + edges[1:]) / 2 for edges in (x_edges, y_edges)]
    return Cloud(
        centres[0][i].tolist(), centres[1][j].tolist(), counts[i, j].astype(int).tolist(), len(dft)
    )


def _by_element(
    table: dict[str, Any], numbers: Mapping[str, list[int]]
) -> dict[str, tuple[float, int]]:
    from ase.data import chemical_symbols

    squares: dict[int, list[float]] = {}
    for key, dft, found in zip(
        table["keys"], table["force_dft"], table["force_predicted"], strict=True
    ):
        rows = ((np.array(found) - np.array(dft)) ** 2).mean(axis=1).tolist()
        for number, square in zip(numbers.get(key, []), rows, strict=False):
            squares.setdefault(number, []).append(square)
    return {
        chemical_symbols[number]: (float(np.sqrt(np.mean(values))), len(values))
        for number, values in sorted(squares.items())
    }


def _from_json(found: dict[str, Any]) -> Evaluations:
    judged = {
        name: Judged(
            n_frames=item["n_frames"],
            forces=Cloud(**item["forces"]),
            energies=Cloud(**item["energies"]),
            rmse_by_element_eV_A={
                symbol: (rmse, n) for symbol, (rmse, n) in item["rmse_by_element_eV_A"].items()
            },
        )
        for name, item in found["judged"].items()
    }
    return Evaluations(judged=judged, raw=found["raw"])


def main() -> None:
    """Read numbers and a file from stdin, write what it says to stdout."""
    numbers = json.loads(sys.stdin.buffer.readline())
    sys.stdout.write(json.dumps(asdict(boil_down(json.load(sys.stdin.buffer), numbers))))


if __name__ == "__main__":
    main()
