"""A data set as extended XYZ, frame by frame, with every digit.

The keys are those of ``otf export`` (``REF_energy``, ``REF_forces`` …, as MACE reads them); the
tests hold both against each other. Written here because :mod:`ase.io`, which ``otf export`` uses,
would double the memory of this process, and because a browser need not wait for the last frame.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from otf_workflows.types import LabelState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otf_workflows.schemas import DatasetDocument
    from otf_workflows.store import Store

BATCH = 200
"""Labels fetched at once."""
_ORIGIN = ("walker", "step", "temperature_K", "pressure_GPa")


def extxyz_chunks(store: Store, dataset: DatasetDocument) -> Iterator[str]:
    """Yield the labels of a data set as frames of an extended XYZ file, in the order of keys.

    Parameters
    ----------
    store
        Our collections.
    dataset
        The data set; each frame carries the split that it has there.
    """
    from ase.data import chemical_symbols

    entries = dataset.entries
    for first in range(0, len(entries), BATCH):
        splits = {entry["key"]: entry["split"] for entry in entries[first : first + BATCH]}
        query = {"key": {"$in": list(splits)}, "state": str(LabelState.DONE)}
        fields = {"_id": 0, "frame.features": 0, "attempts": 0, "earlier": 0, "recipe": 0}
        for label in store.database.otf_labels.find(query, fields).sort("key", 1):
            yield _frame(
                label,
                split=splits[label["key"]],
                campaign=dataset.campaign,
                symbols=chemical_symbols,
            )


def _frame(label: dict[str, Any], *, split: str, campaign: str, symbols: list[str]) -> str:
    result, frame = label["result"], label["frame"]
    geometry, origin = result["frame"], frame.get("origin", {})
    wish: dict[str, Any] = next((w for w in label["wanted_by"] if w["campaign"] == campaign), {})
    moments = result.get("magmoms_muB")
    info: dict[str, Any] = {"REF_energy": result["energy_eV"]}
    if result.get("stress_eV_A3") is not None:
        info["REF_stress"] = result["stress_eV_A3"]
    info |= {"label_key": label["key"], "recipe": label["recipe_fingerprint"]}
    info |= {name: origin[name] for name in _ORIGIN if origin.get(name) is not None}
    if frame.get("sigma_eV_A") is not None:
        info["sigma_eV_A"] = frame["sigma_eV_A"]
    info |= {"split": split, "purpose": wish.get("purpose", "unknown"), "campaign": campaign}
    if "cycle" in wish:
        info["cycle"] = wish["cycle"]
    columns = "species:S:1:pos:R:3:REF_forces:R:3" + (":REF_magmoms:R:1" if moments else "")
    head = f'Lattice="{_flat(geometry["cell_A"])}" Properties={columns} {_pairs(info)} pbc="T T T"'
    lines = [str(len(geometry["numbers"])), head]
    for i, number in enumerate(geometry["numbers"]):
        values = [*geometry["positions_A"][i], *result["forces_eV_A"][i]]
        values += [moments[i]] if moments else []
        lines.append(f"{symbols[number]} " + " ".join(repr(float(x)) for x in values))
    return "\n".join(lines) + "\n"


def _pairs(info: dict[str, Any]) -> str:
    """Return ``key=value`` pairs; names of campaigns and hashes hold no quotes and no blanks.

    ASE writes and reads matrices as JSON.
    """
    return " ".join(
        f'{key}="_JSON {json.dumps(value)}"' if isinstance(value, list) else f"{key}={value}"
        for key, value in info.items()
    )


def _flat(matrix: list[list[float]]) -> str:
    """Return the vectors of a lattice one after the other."""
    return " ".join(repr(float(x)) for row in matrix for x in row)
