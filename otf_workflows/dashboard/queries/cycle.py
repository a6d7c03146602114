"""One cycle: walkers, frames picked, and what a new model said about labels it had not seen."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.errors import NotFoundError
from otf_workflows.report.evidence import worst_atoms
from otf_workflows.schemas import CycleDocument, Frame, ModelDocument, WalkerSegment
from otf_workflows.types import LabelState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from otf_workflows.report.model import UncertaintyPoint
    from otf_workflows.schemas import Calibration
    from otf_workflows.store import Store

MAX_CLOUD = 1200
"""Points of a parity plot; more force components are counted in cells of a grid."""
GRID_CELLS = 50
REMEMBERED = 24
"""Evaluations kept in memory, a few ten kB each; the files they come from may have megabytes."""


@dataclass(frozen=True)
class Pick:
    """One label that a cycle asked for."""

    key: str
    state: LabelState
    purpose: str
    walker: int | None
    step: int | None
    temperature_K: float | None
    sigma_eV_A: float | None
    note: str | None
    reused: bool


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
class CycleView:
    """Everything on the page of a cycle."""

    document: CycleDocument
    pretrained_id: str
    tolerance_eV_A: float
    timestep_fs: float
    walkers: Sequence[WalkerSegment]
    picks: Sequence[Pick]
    challenger: ModelDocument | None
    judged: Mapping[str, Judged] = field(default_factory=dict)
    points: Sequence[UncertaintyPoint] = ()
    keys: Sequence[str] = ()
    neighbours: tuple[int | None, int | None] = (None, None)

    @property
    def name(self) -> str:
        """'cycle 3' or 'production'."""
        kind = self.document.kind
        return "production" if kind == "production" else f"cycle {self.document.cycle}"


def cycle_view(store: Store, campaign: str, cycle: int) -> CycleView:
    """Return what the page of a cycle shows.

    Raises
    ------
    NotFoundError
        If there is no such campaign or cycle.
    """
    settings = store.campaign(campaign).campaign
    document = store.cycle(campaign, cycle)
    challenger = store.model(document.challenger_id) if document.challenger_id else None
    asked = picks(store, campaign, document)
    if document.kind == "production":
        # All models on all audit labels, those of the production run among them.
        tables = evaluation(store, f"evaluation/{campaign}/final")
        points = tables.points(
            document.incumbent_id,
            cycle=cycle,
            calibration=document.calibration,
            only={pick.key for pick in asked},
        )
    else:
        tables = evaluation(store, f"evaluation/{document.challenger_id}")
        points = tables.points("incumbent/fresh", cycle=cycle, calibration=document.calibration)
    numbers = store.database.otf_cycles.find({"campaign": campaign}, {"cycle": 1, "_id": 0})
    known = {item["cycle"] for item in numbers}
    return CycleView(
        document=document,
        pretrained_id=settings["potential"],
        tolerance_eV_A=float(settings["tolerance_eV_A"]),
        timestep_fs=float(settings["exploration"]["timestep_fs"]),
        walkers=[WalkerSegment.model_validate(item) for item in document.walkers],
        picks=asked,
        challenger=challenger,
        judged=tables.judged,
        points=list(points.values()),
        keys=list(points),
        neighbours=(
            cycle - 1 if cycle - 1 in known else None,
            cycle + 1 if cycle + 1 in known else None,
        ),
    )


def picks(store: Store, campaign: str, document: CycleDocument) -> list[Pick]:
    """Return the labels that a cycle asked for, in the order of walkers and steps."""
    wish = {"campaign": campaign, "cycle": document.cycle}
    fields = {
        "_id": 0, "key": 1, "state": 1, "wanted_by": 1, "frame.origin": 1, "frame.sigma_eV_A": 1,
    }  # fmt: skip
    found = store.database.otf_labels.find({"wanted_by": {"$elemMatch": wish}}, fields)
    reused = set(document.selection.reused_keys) if document.selection else set()
    rows = []
    for item in found:
        origin = item["frame"].get("origin", {})
        purpose = next(w["purpose"] for w in item["wanted_by"] if w["campaign"] == campaign)
        # A label shared with another campaign was met there, at a step that means nothing here.
        here = origin.get("campaign") == campaign
        rows.append(
            Pick(
                key=item["key"],
                state=LabelState(item["state"]),
                purpose=purpose,
                walker=origin.get("walker") if here else None,
                step=origin.get("step") if here else None,
                temperature_K=origin.get("temperature_K"),
                sigma_eV_A=item["frame"].get("sigma_eV_A"),
                note=origin.get("note"),
                reused=item["key"] in reused,
            )
        )
    return sorted(
        rows,
        key=lambda pick: (pick.walker is None, pick.walker or 0, pick.step or 0, pick.key),
    )


def frames_of(store: Store, keys: Sequence[str]) -> dict[str, Frame]:
    """Return the structures of some labels by their keys."""
    found = store.database.otf_labels.find(
        {"key": {"$in": list(keys)}}, {"_id": 0, "key": 1, "frame": 1}
    )
    return {item["key"]: Frame.model_validate(item["frame"]) for item in found}


# -- evaluations ---------------------------------------------------------------------------------


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


_memory: OrderedDict[Any, Evaluations] = OrderedDict()
_lock = Lock()


def evaluation(store: Store, name: str) -> Evaluations:
    """Return what an evaluation file in GridFS says, in a form that is small.

    These files are written once and never change, so the result is remembered by the id of the
    file.

    Parameters
    ----------
    store
        Our collections.
    name
        Name of the file; without it there is nothing to show.
    """
    found = store.database["otf_files.files"].find_one({"filename": name}, {"_id": 1})
    if found is None:
        return Evaluations({}, {})
    with _lock:
        if found["_id"] in _memory:
            _memory.move_to_end(found["_id"])
            return _memory[found["_id"]]
    content = store.get_file(name)
    if content is None:
        raise NotFoundError(f"the file '{name}' is missing in GridFS")
    made = _boil_down(store, json.loads(content))
    with _lock:
        _memory[found["_id"]] = made
        while len(_memory) > REMEMBERED:
            _memory.popitem(last=False)
    return made


def _boil_down(store: Store, tables: dict[str, dict[str, Any]]) -> Evaluations:
    filled = {name: table for name, table in tables.items() if table.get("keys")}
    keys = sorted({key for table in filled.values() for key in table["keys"]})
    numbers = {
        item["key"]: item["frame"]["numbers"]
        for item in store.database.otf_labels.find(
            {"key": {"$in": keys}}, {"_id": 0, "key": 1, "frame.numbers": 1}
        )
    }
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
