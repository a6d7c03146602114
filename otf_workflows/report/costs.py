"""What a campaign cost, and what it stands for. Pure functions on documents."""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING

from otf_workflows.report.model import Costs, WallTime
from otf_workflows.types import LabelState, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from otf_workflows.schemas import CycleDocument, LabelDocument, PropertyDocument

ACTIVITY = {
    Stage.EXPLORE: "exploration",
    Stage.PRODUCE: "production",
    Stage.LABEL: "labelling",
    Stage.FINETUNE: "training",
    Stage.EVALUATE: "training",
}
"""Stages whose jobs do the science; all other time is orchestration."""

Span = tuple[str, float, float]
"""Activity, start and end (s since an epoch)."""


def costs(
    campaign: str,
    *,
    labels: Sequence[LabelDocument],
    cycles: Sequence[CycleDocument],
    productions: Sequence[PropertyDocument],
    started: datetime,
    ended: datetime,
) -> Costs:
    """Return what was computed for a campaign.

    Every try at a label counts as a DFT call, whether it failed and whoever paid for it, so that
    neither retries nor labels found by their hash make the campaign look cheaper than it is.
    Rewound MD steps do not count as MD.

    Parameters
    ----------
    campaign
        Name.
    labels, cycles, productions
        Its documents.
    started, ended
        Submission, and end (or the present moment).
    """
    done = [label for label in labels if label.state is LabelState.DONE]
    own = [label for label in labels if label.wanted_by[0]["campaign"] == campaign]
    walkers = [walker for cycle in cycles for walker in cycle.walkers]
    kept = sum(walker["n_steps"] for walker in walkers)
    seconds = [
        label.attempts[-1].seconds
        for label in done
        if label.attempts and label.attempts[-1].seconds is not None
    ]
    return Costs(
        n_labels=len(done),
        n_labels_reused=sum(label.wanted_by[0]["campaign"] != campaign for label in done),
        n_dft_calls=sum(_calls(label) for label in labels),
        n_md_exploration=kept,
        n_md_rewound=sum(walker["n_steps_run"] for walker in walkers) - kept,
        n_md_production=sum(
            int(p.values.get("n_steps_run", p.values.get("n_steps")) or 0) for p in productions
        ),
        core_hours=sum(label.core_hours for label in own),
        seconds_per_call=median(seconds) if seconds else None,
        wall=wall_time(spans(cycles, own), start=started.timestamp(), end=ended.timestamp()),
    )


def _calls(label: LabelDocument) -> int:
    """Return how many DFT runs stand behind a label; an in-process labeler may note no try."""
    return max(len(label.tries), 1 if label.state is LabelState.DONE else 0)


def spans(cycles: Sequence[CycleDocument], labels: Sequence[LabelDocument]) -> list[Span]:
    """Return when which activity went on.

    Labelling is taken from the tries themselves where all of them noted their start, so that
    waiting in a queue is not taken for work; everything else from the stages of the cycles.
    """
    tries = [attempt for label in labels for attempt in label.tries]
    timed = bool(tries) and all(t.started and t.seconds is not None for t in tries)
    found: list[Span] = []
    for cycle in cycles:
        for record in cycle.stages.values():
            activity = ACTIVITY.get(record.stage)
            if activity is None or (timed and record.stage is Stage.LABEL):
                continue
            if record.started and record.finished:
                found.append((activity, record.started.timestamp(), record.finished.timestamp()))
    if timed:
        for attempt in tries:
            begin = attempt.started.timestamp() if attempt.started else 0.0
            found.append(("labelling", begin, begin + (attempt.seconds or 0.0)))
    return found


def wall_time(found: Sequence[Span], *, start: float, end: float) -> WallTime:
    """Share the wall time out among the activities.

    A moment in which several activities go on counts for each of them in equal parts; one in
    which none does is orchestration: total wall time minus the union of all intervals.

    Parameters
    ----------
    found
        Intervals; parts outside of start and end are cut off.
    start, end
        Of the campaign (s).
    """
    total = max(end - start, 0.0)
    if not found or total == 0:
        return WallTime(total_s=total, shares={})
    steps: dict[float, list[tuple[str, int]]] = defaultdict(list)
    for activity, begin, finish in found:
        begin, finish = max(begin, start), min(finish, end)  # noqa: PLW2901  # clipped
        if finish > begin:
            steps[begin].append((activity, 1))
            steps[finish].append((activity, -1))
    seconds: dict[str, float] = dict.fromkeys([*dict.fromkeys(ACTIVITY.values())], 0.0)
    busy: dict[str, int] = defaultdict(int)
    before = start
    for moment in sorted(steps):
        active = [activity for activity, n in busy.items() if n]
        for activity in active:
            seconds[activity] += (moment - before) / len(active)
        for activity, change in steps[moment]:
            busy[activity] += change
        before = moment
    shares = {activity: part / total for activity, part in seconds.items() if part}
    return WallTime(
        total_s=total, shares={**shares, "orchestration": max(1 - sum(shares.values()), 0.0)}
    )
