"""One cycle: walkers, frames picked, and what a new model said about labels it had not seen."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

from otf_workflows.dashboard.evaluations import Evaluations, boiled_down, keys_in
from otf_workflows.errors import NotFoundError
from otf_workflows.schemas import CycleDocument, Frame, ModelDocument, WalkerSegment
from otf_workflows.types import LabelState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from otf_workflows.dashboard.evaluations import Judged
    from otf_workflows.report.model import UncertaintyPoint
    from otf_workflows.store import Store

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
    made = boiled_down(content, _numbers(store, keys_in(content)))
    with _lock:
        _memory[found["_id"]] = made
        while len(_memory) > REMEMBERED:
            _memory.popitem(last=False)
    return made


def _numbers(store: Store, keys: Sequence[str]) -> dict[str, list[int]]:
    """Return the atomic numbers of the frame of each label."""
    found = store.database.otf_labels.find(
        {"key": {"$in": list(keys)}}, {"_id": 0, "key": 1, "frame.numbers": 1}
    )
    return {item["key"]: item["frame"]["numbers"] for item in found}
