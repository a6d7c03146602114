"""Everything about one label: what was asked, every try, the result, and who acted on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.dashboard.queries.labels import ADVICE, LabelRow, label_row, label_rows
from otf_workflows.errors import NotFoundError
from otf_workflows.schemas import Event
from otf_workflows.store_documents import parse
from otf_workflows.types import LabelState

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from otf_workflows.schemas import LabelDocument
    from otf_workflows.store import Store

GPA = 160.21766208
"""GPa in one eV/Å³."""
_MOST_JOBS = 50
_MOST_EVENTS = 50


@dataclass(frozen=True)
class Setting:
    """One setting of the level of theory, as asked for and as the output says it was run."""

    name: str
    asked: Any
    as_run: Any


@dataclass(frozen=True)
class LabelJob:
    """A job of the launch pad that computes, or computed, this label."""

    engine_id: int
    name: str
    state: str
    campaign: str
    cycle: int
    kind: str


@dataclass(frozen=True)
class LabelNumbers:
    """What a finished label found, in the units people read.

    Attributes
    ----------
    energy_eV
        Total energy (eV), of the recipe's own zero.
    energy_eV_atom
        The same per atom (eV).
    largest_force_eV_A
        Of all atoms (eV/Å).
    net_force_eV_A
        Length of the sum of all forces (eV/Å); not zero means a poor calculation.
    pressure_GPa
        Minus a third of the trace of the stress (GPa); None if the stress is not used.
    total_moment_muB
        Sum of the site moments (μB); None if not computed.
    """

    energy_eV: float
    energy_eV_atom: float
    largest_force_eV_A: float
    net_force_eV_A: float
    pressure_GPa: float | None
    total_moment_muB: float | None


@dataclass(frozen=True)
class LabelDetail:
    """One label with what hangs on it."""

    label: LabelDocument
    row: LabelRow
    numbers: LabelNumbers | None
    settings: tuple[Setting, ...]
    jobs: tuple[LabelJob, ...]
    events: tuple[Event, ...]
    advice: str | None


@dataclass(frozen=True)
class RerunBatch:
    """Labels that were run again by one confirmation.

    Attributes
    ----------
    rows
        The labels as they stand now.
    asked
        How many were confirmed; others had changed a moment before.
    who, when
        Who confirmed, and when.
    changes
        Numerical settings, worker and time limit that differ from the first run.
    """

    rows: tuple[LabelRow, ...]
    asked: int
    who: str
    when: datetime
    changes: Mapping[str, Any]

    @property
    def counts(self) -> dict[LabelState, int]:
        """How many of them are in each state."""
        return {state: sum(row.state is state for row in self.rows) for state in LabelState}


def label_detail(store: Store, key: str) -> LabelDetail:
    """Return everything about a label.

    Parameters
    ----------
    store
        Our collections.
    key
        Key of the label, or its beginning.

    Raises
    ------
    NotFoundError
        If none or more than one begins so.
    """
    label = store.label(key)
    as_run = label.result.settings_as_run if label.result else {}
    return LabelDetail(
        label=label,
        row=label_row(label.model_dump(mode="python"), None),
        numbers=label_numbers(label),
        settings=settings(label.recipe, as_run),
        jobs=tuple(_jobs(store, label.key)),
        events=tuple(_events(store, label.key)),
        advice=ADVICE[label.cause] if label.cause else None,
    )


def rerun_batch(store: Store, batch: str) -> RerunBatch:
    """Return the labels that one confirmation ran again, as they stand now.

    Parameters
    ----------
    store
        Our collections.
    batch
        Number that the confirmation gave.

    Raises
    ------
    NotFoundError
        If there is none of this number.
    """
    found = store.database.otf_events.find({"details.batch": batch}).sort("when", 1)
    events = [parse(Event, document) for document in found]
    if not events:
        raise NotFoundError("no rerun is recorded under this number", hint="otf labels list")
    first = events[0]
    changes = {k: v for k, v in first.details.items() if k not in {"batch", "asked"}}
    rows = label_rows(store, [event.label_key for event in events if event.label_key])
    return RerunBatch(
        rows=tuple(rows),
        asked=int(first.details.get("asked", len(rows))),
        who=first.who,
        when=first.when,
        changes=changes,
    )


def label_numbers(label: LabelDocument) -> LabelNumbers | None:
    """Return what a label found, or None if there is no result."""
    result = label.result
    if result is None:
        return None
    forces = np.array(result.forces_eV_A)
    stress = result.stress_eV_A3
    return LabelNumbers(
        energy_eV=result.energy_eV,
        energy_eV_atom=result.energy_eV / label.frame.n_atoms,
        largest_force_eV_A=float(np.linalg.norm(forces, axis=1).max()),
        net_force_eV_A=float(np.linalg.norm(forces.sum(axis=0))),
        pressure_GPa=None if stress is None else -float(np.trace(stress)) / 3 * GPA,
        total_moment_muB=None if result.magmoms_muB is None else float(sum(result.magmoms_muB)),
    )


def settings(asked: Mapping[str, Any], as_run: Mapping[str, Any]) -> tuple[Setting, ...]:
    """Return the settings asked for beside those of the output; None stands for not there."""
    given = {name: value for name, value in asked.items() if value not in (None, {}, [])}
    names = dict.fromkeys([*given, *as_run])
    return tuple(Setting(name, given.get(name), as_run.get(name)) for name in names)


def _jobs(store: Store, key: str) -> list[LabelJob]:
    fields = {
        "_id": 0,
        "fw_id": 1,
        "name": 1,
        "state": 1,
        "spec.campaign": 1,
        "spec.cycle": 1,
        "spec.kind": 1,
    }
    found = store.database.fireworks.find({"spec.label_key": key}, fields).sort("fw_id", 1)
    return [
        LabelJob(
            engine_id=document["fw_id"],
            name=document["name"],
            state=document["state"].lower(),
            campaign=document["spec"].get("campaign", ""),
            cycle=document["spec"].get("cycle", 0),
            kind=document["spec"].get("kind", ""),
        )
        for document in found.limit(_MOST_JOBS)
    ]


def _events(store: Store, key: str) -> list[Event]:
    found = store.database.otf_events.find({"label_key": key}).sort("when", -1)
    return [parse(Event, document) for document in found.limit(_MOST_EVENTS)]
