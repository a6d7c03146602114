"""The book of labels: which frames are asked for, what comes back, and what it is used for."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from otf_workflows.hashing import label_key
from otf_workflows.labelers import parse_recipe
from otf_workflows.labelers.base import differences
from otf_workflows.schemas import (
    DatasetDocument,
    LabelDocument,
    LabelledFrame,
    LabelResult,
    now,
)
from otf_workflows.store import whoami
from otf_workflows.types import LabelState, Purpose, Split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.campaign import Campaign
    from otf_workflows.label_import import Calculation
    from otf_workflows.labelers.base import Recipe
    from otf_workflows.schemas import Frame
    from otf_workflows.store import Store


def request(
    store: Store, frames: Sequence[Frame], *, campaign: Campaign, cycle: int
) -> tuple[list[LabelDocument], list[LabelDocument]]:
    """Ask for labels of frames.

    Returns
    -------
    all
        The labels asked for, one per distinct frame, in the order of the frames.
    mine
        Those that this cycle needs a job for. If another campaign has one for the same label,
        whichever starts first computes it and the other takes the result.
    """
    recipe = parse_recipe(campaign.labels)
    wanted: dict[str, LabelDocument] = {}
    for frame in frames:
        fingerprint = recipe.fingerprint(frame.numbers)
        key = label_key(frame, fingerprint)
        if key in wanted:
            continue
        wanted[key] = store.want_label(
            key,
            frame,
            recipe=recipe.model_dump(mode="json"),
            fingerprint=fingerprint,
            campaign=campaign.name,
            cycle=cycle,
        )
    mine = [
        label
        for label in wanted.values()
        if label.state in {LabelState.PENDING, LabelState.RUNNING}
    ]
    return list(wanted.values()), mine


def settle(store: Store, result: LabelResult) -> bool:
    """Record a result; quarantine it if it is not what was asked for.

    Returns
    -------
    bool
        Whether the label changed (False if it was settled before).
    """
    label = store.label(result.key)
    quarantine = None
    if result.fingerprint != label.recipe_fingerprint:
        asked = parse_recipe(label.recipe).level_of_theory(label.frame.numbers)
        found = differences(asked, result.settings_as_run)
        quarantine = "computed at another level of theory: " + "; ".join(found)
    changed = store.record_result(result, quarantine=quarantine)
    if changed and quarantine:
        store.event("label quarantined", label_key=result.key, details={"reason": quarantine})
    return changed


def import_label(
    store: Store, item: Calculation, *, recipe: Recipe, basis: str, dry_run: bool = False
) -> bool:
    """Enter a calculation of others as a finished label; return False if it is there already.

    Parameters
    ----------
    store
        Our collections.
    item
        The calculation; it has been checked.
    recipe
        Its level of theory.
    basis
        How that is known.
    dry_run
        Only look.
    """
    fingerprint = recipe.fingerprint(item.frame.numbers)
    key = label_key(item.frame, fingerprint)
    if dry_run:
        return not store.labels(keys=[key], states=[LabelState.DONE], light=True)
    stress = item.stress_eV_A3 if recipe.use_stress else None
    result = LabelResult(
        key=key,
        frame=item.frame,
        energy_eV=item.energy_eV,
        forces_eV_A=item.forces_eV_A.tolist(),
        stress_eV_A3=None if stress is None else stress.tolist(),
        magmoms_muB=None if item.magmoms_muB is None else list(map(float, item.magmoms_muB)),
        fingerprint=fingerprint,
        settings_as_run=item.settings or {"level_of_theory": basis},
        warnings=item.warnings,
    )
    return store.import_label(
        LabelDocument(
            key=key,
            state=LabelState.DONE,
            frame=item.frame,
            recipe_fingerprint=fingerprint,
            recipe=recipe.model_dump(mode="json"),
            result=result,
            imported={"source": item.source, "level": basis, "who": whoami(), "when": now()},
        )
    )


def draw_dataset(
    store: Store, *, campaign: Campaign, cycle: int
) -> tuple[DatasetDocument, list[LabelledFrame]]:
    """Return the data set of a cycle: every done label that the campaign asked for so far.

    A label keeps its split for ever. Audit frames are never trained on; of the others, new ones
    go to validation whenever its share is below ``training.validation_fraction``, in the order of
    their keys, so that the same labels always give the same data set.
    """
    parent = store.latest_dataset(campaign.name)
    if parent is not None and parent.cycle >= cycle:
        # A rerun of this cycle's gather: build on what was there before this cycle.
        parent = store.dataset(campaign.name, parent.parent_hash) if parent.parent_hash else None
    splits = {e["key"]: Split(e["split"]) for e in parent.entries} if parent else {}
    done = {
        label.key: label
        for label in store.labels(campaign=campaign.name, states=[LabelState.DONE])
        if store.purpose_of(label, campaign.name)[1] <= cycle
    }
    for key in sorted(set(done) - set(splits)):
        purpose, _ = store.purpose_of(done[key], campaign.name)
        splits[key] = _split(purpose, splits, fraction=campaign.training.validation_fraction)
    splits = {key: splits[key] for key in sorted(splits) if key in done}
    text = "\n".join(f"{key} {split}" for key, split in splits.items())
    document = DatasetDocument(
        hash=hashlib.sha256(text.encode()).hexdigest(),
        parent_hash=parent.hash if parent else None,
        campaign=campaign.name,
        cycle=cycle,
        entries=[{"key": key, "split": str(split)} for key, split in splits.items()],
        recipe_fingerprint=parse_recipe(campaign.labels).fingerprint(campaign.structure.numbers),
    )
    store.add_dataset(document)
    return document, _frames(store, done, splits, name=campaign.name)


def redraw_dataset(
    store: Store, *, campaign: Campaign, cycle: int
) -> tuple[DatasetDocument, list[LabelledFrame]] | None:
    """Return the data set of a closed cycle as it was; None if the cycle is not closed.

    Its model was trained on exactly these labels, and others that came later must not change it.
    """
    if store.closed_cycle(campaign.name, cycle) is None:
        return None
    document = store.latest_dataset(campaign.name, cycle=cycle)
    if document is None:
        return None
    splits = {entry["key"]: Split(entry["split"]) for entry in document.entries}
    labels = {label.key: label for label in store.labels(keys=list(splits))}
    return document, _frames(store, labels, splits, name=campaign.name)


def _frames(
    store: Store, labels: dict[str, LabelDocument], splits: dict[str, Split], *, name: str
) -> list[LabelledFrame]:
    return [
        _labelled(labels[key], split, cycle=store.purpose_of(labels[key], name)[1])
        for key, split in splits.items()
    ]


def _split(purpose: Purpose, splits: dict[str, Split], *, fraction: float) -> Split:
    if purpose is Purpose.AUDIT:
        return Split.AUDIT
    others = [split for split in splits.values() if split is not Split.AUDIT]
    n_validation = sum(split is Split.VALIDATION for split in others)
    return Split.VALIDATION if n_validation + 1 <= fraction * (len(others) + 1) else Split.TRAIN


def _labelled(label: LabelDocument, split: Split, *, cycle: int) -> LabelledFrame:
    result = label.result
    if result is None:  # a done label has a result by construction of the store
        msg = f"label {label.key} is done but has no result"
        raise RuntimeError(msg)
    return LabelledFrame(
        key=label.key,
        split=split,
        cycle=cycle,
        frame=label.frame,
        energy_eV=result.energy_eV,
        forces_eV_A=result.forces_eV_A,
        stress_eV_A3=result.stress_eV_A3,
        magmoms_muB=result.magmoms_muB,
    )
