"""Several walkers in one job, their structures in one forward pass.

What a potential does once for each call is most of a step in a small cell. So walkers of a flock
share it: each runs the very code that it runs alone, with a potential that answers all of them
together (:mod:`otf_workflows.exploration.lockstep`).

Predictions of a batch equal those of its members alone to single precision only. Hence what is in
a batch must follow from the states of the walkers, or a flock that was killed would not go on as
it would have: all walkers of a batch are at the same step, and a flock is taken up at the newest
step that all of them have saved.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from otf_workflows.exploration.lockstep import in_step
from otf_workflows.exploration.loop import STATE, STATE_BEFORE, digest
from otf_workflows.exploration.walker import explore
from otf_workflows.schemas import WalkerSegment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from otf_workflows.potentials.base import Potential
    from otf_workflows.schemas import Checkpoint, Frame

SEGMENT = "segment.json"
"""What a walker of a flock returned, in its folder."""

INPUTS = "inputs.txt"
"""Hash of all inputs of a flock, in the folder of all."""


@dataclass(frozen=True)
class Walker:
    """Arguments of :func:`~otf_workflows.exploration.walker.explore` that walkers do not share.

    Attributes
    ----------
    frame
        Structure at step 0, supercell included.
    walker
        Index of the walker.
    temperature_K
        Thermostat temperature (K), at step 0 if there is a ramp.
    seed
        Of velocities, thermostat and samples.
    checkpoint
        Where the previous segment was rewound to; None for a first segment.
    reference_volume_A3
        Volume (Å³) that volume ratios refer to; that of ``frame`` by default.
    """

    frame: Frame
    walker: int
    temperature_K: float
    seed: int
    checkpoint: Checkpoint | None = None
    reference_volume_A3: float | None = None


def explore_together(
    walkers: Sequence[Walker], potential: Potential, *, scratch: Path | None = None, **shared: Any
) -> list[WalkerSegment]:
    """Run several walkers for one cycle, in step with each other.

    Each does what it would do alone; starts, temperatures and sizes may differ. One that stops
    leaves the others, and a structure that the potential cannot treat stops its own walker only.

    Parameters
    ----------
    walkers
        Who takes part.
    potential
        Model of all, with its uncertainty.
    scratch
        Folder for the saved states. A flock that was killed goes on from them, and gives what it
        would have given; states of other inputs are ignored.
    **shared
        All other arguments of :func:`~otf_workflows.exploration.walker.explore`.

    Returns
    -------
    list[WalkerSegment]
        In the order of ``walkers``. Their ``seconds`` are shares of those of the flock.

    Raises
    ------
    InputError
        As from :func:`~otf_workflows.exploration.walker.explore`; an error of one ends all.
    """
    folders: list[Path | None] = [None] * len(walkers)
    if scratch is not None:
        inputs = digest(walkers=[_plain(vars(walker)) for walker in walkers], shared=_plain(shared))
        names = [str(walker.walker) for walker in walkers]
        folders = [*take_up(scratch, names, inputs_digest=inputs)]

    def run(walker: Walker, folder: Path | None) -> Callable[[Potential], WalkerSegment]:
        def walk(seen: Potential) -> WalkerSegment:
            if folder and (ended := _read_segment(folder)):
                return ended
            segment = explore(**vars(walker), potential=seen, scratch=folder, **shared)
            if folder:
                _write_segment(folder, segment)
            return segment

        return walk

    runs = [run(walker, folder) for walker, folder in zip(walkers, folders, strict=True)]
    return _share_seconds(in_step(runs, potential))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        for name, value in values.items()
    }


def _share_seconds(segments: Sequence[WalkerSegment]) -> list[WalkerSegment]:
    """Return the segments with the wall time of the flock divided by the steps that were made."""
    whole = max((segment.seconds for segment in segments), default=0.0)
    n_steps = max(sum(segment.n_steps_run for segment in segments), 1)
    return [
        segment.model_copy(update={"seconds": whole * segment.n_steps_run / n_steps})
        for segment in segments
    ]


# -- saved states --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """What is in the folder of one walker.

    Attributes
    ----------
    saved
        MD steps made → file of the state then; the last two saves.
    ended
        MD steps made at its end; None if it has not ended.
    """

    saved: dict[int, Path] = field(default_factory=dict)
    ended: int | None = None

    def knows(self, step: int) -> bool:
        """Return whether the flock can be taken up after so many steps, as for this walker.

        One that had ended by then takes no part. At the start all take part: the first readings
        of the uncertainty are made of all together.
        """
        return step == 0 or step in self.saved or (self.ended is not None and self.ended <= step)


def newest_common(kept: Sequence[Kept]) -> int:
    """Return the most MD steps after which a flock of these walkers can be taken up."""
    steps = {0}.union(*(walker.saved for walker in kept))
    steps |= {walker.ended for walker in kept if walker.ended is not None}
    return max(step for step in steps if all(walker.knows(step) for walker in kept))


def take_up(scratch: Path, names: Sequence[str], *, inputs_digest: str) -> list[Path]:
    """Return a folder for each walker, all with the state after the same number of steps.

    Saves are :data:`~otf_workflows.exploration.loop.SAVE_EVERY` steps apart and no walker makes a
    step before all have made the one before. So at a kill one walker is at most one save ahead of
    another, and the last two saves of each are enough.
    """
    folders = [scratch / name for name in names]
    note = scratch / INPUTS
    if not note.exists() or note.read_text(encoding="utf-8") != inputs_digest:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    note.write_text(inputs_digest, encoding="utf-8")
    kept = [_kept(folder) for folder in folders]
    step = newest_common(kept)
    for folder, walker in zip(folders, kept, strict=True):
        _set_back(folder, walker, step)
    return folders


def _kept(folder: Path) -> Kept:
    saved = {}
    for path in (folder / STATE_BEFORE, folder / STATE):
        try:
            saved[int(json.loads(path.read_text(encoding="utf-8"))["n_steps_run"])] = path
        except (OSError, ValueError, LookupError, TypeError):
            continue  # never written, or by a process that was killed in the middle
    segment = _read_segment(folder)
    return Kept(saved, None if segment is None else segment.n_steps_run)


def _set_back(folder: Path, kept: Kept, step: int) -> None:
    """Leave in a folder what belongs to a flock that is taken up after so many steps."""
    if step and kept.ended is not None and kept.ended <= step:
        return
    (folder / SEGMENT).unlink(missing_ok=True)
    if step in kept.saved:
        kept.saved[step].replace(folder / STATE)
    else:
        (folder / STATE).unlink(missing_ok=True)
        (folder / STATE_BEFORE).unlink(missing_ok=True)


def _write_segment(folder: Path, segment: WalkerSegment) -> None:
    draft = folder / f"{SEGMENT}.new"
    draft.write_text(segment.model_dump_json(), encoding="utf-8")
    draft.replace(folder / SEGMENT)


def _read_segment(folder: Path) -> WalkerSegment | None:
    try:
        return WalkerSegment.model_validate_json((folder / SEGMENT).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None
