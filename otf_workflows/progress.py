"""What a campaign is doing now, in one sentence, and how long it may still take.

:func:`estimate_remaining` is pure arithmetic on a :class:`Workload`; :func:`campaign_progress`
collects that from the database and the engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import fmean
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from otf_workflows.engine.base import JobRecord, JobState
from otf_workflows.schemas import CampaignDocument, CycleDocument, ErrorStatistics, now
from otf_workflows.types import CampaignState, CycleState, LabelState, Role, Stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from otf_workflows.engine.base import Engine
    from otf_workflows.store import Store

_DOING = {
    Stage.SEED: "making seed frames",
    Stage.EXPLORE: "exploring with MD",
    Stage.SELECT: "selecting frames",
    Stage.LABEL: "labelling with DFT",
    Stage.GATHER: "gathering labels",
    Stage.FINETUNE: "fine-tuning",
    Stage.ASSESS: "assessing the new model",
    Stage.PRODUCE: "running the production MD",
    Stage.AUDIT: "drawing frames to check",
    Stage.EVALUATE: "evaluating the models",
    Stage.CONCLUDE: "concluding",
}

_PRODUCTION_ORDER = (
    Stage.PRODUCE, Stage.AUDIT, Stage.LABEL, Stage.GATHER, Stage.EVALUATE, Stage.CONCLUDE,
)  # fmt: skip
"""In a cycle labels come before the training, in a production run after the MD."""

_ESTIMATED = (Stage.EXPLORE, Stage.FINETUNE, Stage.PRODUCE, Stage.EVALUATE)
"""Stages that take long enough to count; labels are counted one by one, the rest is seconds."""


class StageProgress(BaseModel):
    """Jobs of one stage of the current cycle."""

    stage: Stage
    n_jobs: int = 0
    n_done: int = 0
    n_running: int = 0
    n_failed: int = 0
    n_ready: int = Field(0, description="Could run now, if a worker were free.")
    role: Role = Field(Role.CONTROL, description="Workers that run it.")
    seconds: float | None = Field(None, description="From the first start to now or the end (s).")

    @property
    def finished(self) -> bool:
        """Whether every job has ended, well or not."""
        return self.n_jobs > 0 and self.n_done + self.n_failed == self.n_jobs


class CycleErrors(BaseModel):
    """Errors of the models judged in one cycle."""

    cycle: int
    kind: str
    errors: dict[str, ErrorStatistics]
    promoted: bool | None = Field(None, description="None until assessed.")
    sentences: list[str] = Field(default_factory=list, description="The verdict in words.")


class Estimate(BaseModel):
    """How long it may take, with what that rests on."""

    stage_s: float | None = Field(None, description="Until the present stage ends (s).")
    total_s: float | None = Field(None, description="Until the budget of cycles is used up (s).")
    basis: list[str] = Field(default_factory=list, description="What the numbers rest on.")


class CampaignProgress(BaseModel):
    """Where one campaign stands."""

    name: str
    state: CampaignState
    sentence: str = Field(description="What is going on now.")
    reason: str = Field("", description="Why it is in this state.")
    cycle: int | None = Field(None, description="Current cycle.")
    kind: str = Field("cycle", description="'cycle' or 'production'.")
    max_cycles: int
    stages: list[StageProgress] = Field(default_factory=list)
    labels: dict[LabelState, int] = Field(description="All labels of the campaign by state.")
    cycle_labels: dict[LabelState, int] = Field(description="Labels of the current cycle by state.")
    errors: list[CycleErrors] = Field(default_factory=list, description="One entry per cycle.")
    incumbent_id: str
    estimate: Estimate
    elapsed_s: float = Field(description="Since the campaign was submitted, or until it ended (s).")
    md_steps: int = Field(description="MD steps run with the potential, production included.")
    dft_calls: int = Field(description="Labels computed for this campaign.")
    aimd_steps: int = Field(description="MD steps of the labelled cell that DFT did not compute.")


@dataclass(frozen=True)
class Workload:
    """What is left to do, and how long such things took so far.

    Attributes
    ----------
    stage
        Present stage; None between cycles.
    to_come
        Stages of the present cycle that are not finished, the present one included.
    running_s
        How long the present stage has been running (s).
    last_s
        Duration of each stage when it last ran to its end (s).
    label_s
        Wall times of finished labels (s).
    labels_open
        Labels of the present cycle still to be computed or running.
    labels_per_cycle
        Labels that a later cycle will ask for.
    dft_workers
        Labels computed at once.
    cycles_left
        Cycles after the present one, up to the budget.
    production_to_come
        Whether a production run follows the cycles.
    production_s
        Expected duration of the production MD (s); None if unknown.
    production_labels
        Labels that the production run asks for.
    """

    stage: Stage | None
    to_come: tuple[Stage, ...] = ()
    running_s: float = 0.0
    last_s: Mapping[Stage, float] = field(default_factory=dict)
    label_s: Sequence[float] = ()
    labels_open: int = 0
    labels_per_cycle: float = 0.0
    dft_workers: int = 1
    cycles_left: int = 0
    production_to_come: bool = False
    production_s: float | None = None
    production_labels: int = 0


def estimate_remaining(work: Workload) -> Estimate:
    """Return how long a campaign may still take, as far as it can be told.

    A stage takes as long as it last did, a label as long as the mean label so far, shared by the
    DFT workers; the total supposes that all cycles of the budget are needed. What has never been
    measured is not guessed: the number is then None.

    Parameters
    ----------
    work
        What is left, and how long such things took.
    """
    label_s = fmean(work.label_s) if work.label_s else None
    basis = []
    if label_s is not None:
        basis.append(
            f"a label takes {label_s:.0f} s (mean of {len(work.label_s)}), "
            f"{work.dft_workers} at once"
        )
    here = {stage: _stage_seconds(stage, work, label_s) for stage in work.to_come}
    timed = work.stage in {Stage.LABEL, *_ESTIMATED}
    stage_s = here.get(work.stage) if work.stage and timed else None
    known = [here[stage] for stage in work.to_come]
    cycle_s = _cycle_seconds(work, label_s) if work.cycles_left else 0.0
    parts = [*known, None if cycle_s is None else work.cycles_left * cycle_s]
    if work.production_to_come:
        parts.append(_with_labels(work.production_s, work.production_labels, work, label_s))
    if any(part is None for part in parts):
        basis.append("no estimate of the total before each kind of stage has run once")
        return Estimate(stage_s=stage_s, basis=basis)
    if work.cycles_left:
        basis.append(f"all {work.cycles_left} cycles left in the budget, each like the last one")
    return Estimate(
        stage_s=stage_s, total_s=sum(part for part in parts if part is not None), basis=basis
    )


def _stage_seconds(stage: Stage, work: Workload, label_s: float | None) -> float | None:
    """Return what a stage of the present cycle still takes (s)."""
    if stage is Stage.LABEL:
        # Before selection nobody knows how many labels this cycle asks for.
        n = work.labels_open if stage is work.stage else work.labels_open or work.labels_per_cycle
        return _with_labels(0.0, n, work, label_s)
    if stage not in _ESTIMATED:
        return 0.0
    last = work.production_s if stage is Stage.PRODUCE else work.last_s.get(stage)
    if stage is Stage.EVALUATE and last is None:
        last = 0.0  # runs once in a campaign, a few seconds
    if last is None:
        return None
    return max(last - work.running_s, 0.0) if stage is work.stage else last


def _cycle_seconds(work: Workload, label_s: float | None) -> float | None:
    """Return the duration of one later cycle (s)."""
    explore, finetune = work.last_s.get(Stage.EXPLORE), work.last_s.get(Stage.FINETUNE)
    if explore is None or finetune is None:
        return None
    return _with_labels(explore + finetune, work.labels_per_cycle, work, label_s)


def _with_labels(
    seconds: float | None, n_labels: float, work: Workload, label_s: float | None
) -> float | None:
    """Return ``seconds`` plus the time for so many labels."""
    if n_labels == 0 or seconds is None:
        return seconds
    return None if label_s is None else seconds + n_labels * label_s / max(work.dft_workers, 1)


# -- from the database ---------------------------------------------------------------------------


def campaign_progress(
    store: Store, engine: Engine | None, name: str, *, dft_workers: int = 1
) -> CampaignProgress:
    """Return where a campaign stands.

    Parameters
    ----------
    store
        Our collections.
    engine
        Asked for the jobs of the current cycle; without it the stages last written down count.
    name
        Campaign.
    dft_workers
        Labels computed at once on this site, for the estimate.

    Raises
    ------
    NotFoundError
        If there is no such campaign.
    """
    document = store.campaign(name)
    cycles = store.cycles(name, light=True)
    current = cycles[-1] if cycles else None
    labels = store.label_counts(name)
    here = (
        store.label_counts(name, cycle=current.cycle) if current else dict.fromkeys(LabelState, 0)
    )
    jobs = []
    if engine is not None and current is not None and current.state is not CycleState.DONE:
        jobs = engine.jobs(campaign=name, cycle=current.cycle, kind=current.kind)
    stages = _stages(jobs, current)
    fingerprints = {
        label.recipe_fingerprint for label in store.labels(campaign=name, limit=1, light=True)
    }
    steps = _steps(document, cycles)
    dft_calls = store.label_costs(name)[0] - labels[LabelState.PENDING]
    work = _workload(
        document,
        cycles,
        stages=stages,
        here=here,
        label_s=store.label_seconds(sorted(fingerprints)),
        dft_workers=dft_workers,
    )
    return CampaignProgress(
        name=name,
        state=document.state,
        sentence=_sentence(document, current, stages),
        reason=document.reason,
        cycle=current.cycle if current else None,
        kind=current.kind if current else "cycle",
        max_cycles=int(document.campaign["budget"]["max_cycles"]),
        stages=stages,
        labels=labels,
        cycle_labels=here,
        errors=[_cycle_errors(cycle) for cycle in cycles if cycle.errors or cycle.verdict],
        incumbent_id=document.incumbent_id,
        estimate=Estimate() if document.state.terminal else estimate_remaining(work),
        elapsed_s=(_aware(document.finished) - _aware(document.created)).total_seconds(),
        md_steps=steps,
        dft_calls=max(dft_calls, 0),
        aimd_steps=max(steps - max(dft_calls, 0), 0),
    )


def stage_table(jobs: Iterable[JobRecord], *, when: datetime | None = None) -> list[StageProgress]:
    """Return the stages of a cycle from its jobs, in the order they run.

    Parameters
    ----------
    jobs
        What the engine knows; jobflow's own helper jobs are left out.
    when
        The present moment.
    """
    moment = _aware(when)
    grouped: dict[Stage, list[JobRecord]] = {}
    for job in jobs:
        if job.stage is not None:
            grouped.setdefault(job.stage, []).append(job)
    table = []
    for stage in _in_order(grouped):
        members = grouped.get(stage, [])
        if not members:
            continue
        starts = [_aware(job.started) for job in members if job.started]
        ends = [_aware(job.finished) for job in members if job.finished]
        row = StageProgress(
            stage=stage,
            role=members[0].role,
            n_jobs=len(members),
            n_done=sum(job.state is JobState.DONE for job in members),
            n_running=sum(job.state is JobState.RUNNING for job in members),
            n_failed=sum(job.state is JobState.FAILED for job in members),
            n_ready=sum(job.state is JobState.READY for job in members),
        )
        if starts:
            until = max(ends) if row.finished and ends else moment
            row.seconds = max((until - min(starts)).total_seconds(), 0.0)
        table.append(row)
    return table


def present_stage(stages: Sequence[StageProgress]) -> StageProgress | None:
    """Return the first stage at work or ready for it; else the first that is not finished."""
    open_ = [row for row in stages if not row.finished]
    busy = [row for row in open_ if row.n_running or row.n_ready]
    return next(iter(busy or open_), None)


def _in_order(stages: Iterable[Stage]) -> Sequence[Stage]:
    """Return the order in which the stages of a workflow with these stages run."""
    return _PRODUCTION_ORDER if Stage.PRODUCE in stages else tuple(Stage)


def _stages(jobs: Sequence[JobRecord], current: CycleDocument | None) -> list[StageProgress]:
    if jobs:
        return stage_table(jobs)
    records = current.stages if current else {}
    known = {Stage(key): record for key, record in records.items()}
    return [
        StageProgress(**known[stage].model_dump(exclude={"started", "finished"}))
        for stage in _in_order(known)
        if stage in known
    ]


def _sentence(
    document: CampaignDocument, current: CycleDocument | None, stages: Sequence[StageProgress]
) -> str:
    """Return what is going on, in one sentence."""
    if document.state.terminal or document.state is CampaignState.PAUSED:
        words = str(document.state).replace("_", " ")
        return f"{words}: {document.reason}" if document.reason else words
    if current is None:
        return "submitted, the first cycle is about to start"
    where = "production" if current.kind == "production" else f"cycle {current.cycle}"
    row = present_stage(stages)
    if row is None:
        return f"{where}: starting" if not stages else f"{where}: finished, deciding what follows"
    text = f"{where}: {_DOING[row.stage]}"
    if row.n_jobs > 1:
        text += f", {row.n_done} of {row.n_jobs} done, {row.n_running} running"
        if row.n_failed:
            text += f", {row.n_failed} failed"
    elif row.n_failed:
        text += " failed"
    if row.n_running == 0 and row.n_ready:
        text += f" (waiting for a free {row.role} worker)"
    return text


def _workload(
    document: CampaignDocument,
    cycles: Sequence[CycleDocument],
    *,
    stages: Sequence[StageProgress],
    here: Mapping[LabelState, int],
    label_s: Sequence[float],
    dft_workers: int,
) -> Workload:
    """Collect what an estimate rests on."""
    settings = document.campaign
    current = cycles[-1] if cycles else None
    in_production = current is not None and current.kind == "production"
    row = present_stage(stages)
    last = {}
    for cycle in cycles[:-1] if current and current.state is not CycleState.DONE else cycles:
        last.update({Stage(key): _wall(record) for key, record in cycle.stages.items()})
    # The present cycle knows better, once a stage of it is over.
    last.update({s.stage: s.seconds for s in stages if s.finished and s.seconds})
    production = settings.get("production") or {}
    left = 0
    if not in_production and document.state is CampaignState.RUNNING:
        left = int(settings["budget"]["max_cycles"]) - (current.cycle + 1 if current else 0)
    coming = [s.stage for s in stages if not s.finished]
    if coming and coming[0] in {Stage.EXPLORE, Stage.SELECT, Stage.PRODUCE, Stage.AUDIT}:
        coming.append(Stage.LABEL)  # its jobs do not exist before the selection
    selection = settings["selection"]
    return Workload(
        stage=row.stage if row else None,
        to_come=tuple(dict.fromkeys(coming)),
        running_s=(row.seconds or 0.0) if row else 0.0,
        last_s=last,
        label_s=[seconds for seconds in label_s if seconds > 0],
        labels_open=here[LabelState.PENDING] + here[LabelState.RUNNING],
        labels_per_cycle=(
            production["audit_labels"]
            if in_production
            else selection["labels_per_cycle"] + selection["audit_per_cycle"]
        ),
        dft_workers=dft_workers,
        cycles_left=max(left, 0),
        production_to_come=bool(production) and not in_production,
        production_s=_production_seconds(settings, cycles) if production else None,
        production_labels=production["audit_labels"] if production else 0,
    )


def _production_seconds(settings: Mapping, cycles: Sequence[CycleDocument]) -> float | None:
    """Return the expected duration of the production MD (s) from the pace of the walkers.

    The cost of a step is taken as linear in the number of atoms.
    """
    walkers = [w for cycle in cycles for w in cycle.walkers if w.get("n_steps_run")]
    steps = sum(w["n_steps_run"] for w in walkers)
    if not steps:
        return None
    pace = sum(w["seconds"] for w in walkers) / steps / _repeats(settings["exploration"])
    production = settings["production"]
    return pace * (
        production["steps"] * _repeats(production)
        + production["audit_steps"]
        * _repeats(settings["exploration"])
        * settings["exploration"].get("cell_shapes", 1)
    )


def _repeats(section: Mapping) -> int:
    a, b, c = section["supercell"]
    return int(a) * int(b) * int(c)


def _steps(document: CampaignDocument, cycles: Sequence[CycleDocument]) -> int:
    """Return MD steps run so far, production included."""
    explored = sum(int(w.get("n_steps_run", 0)) for cycle in cycles for w in cycle.walkers)
    explored = max(explored, int(document.totals.get("md_steps", 0)))
    return explored + int(document.totals.get("production_steps", 0))


def _cycle_errors(cycle: CycleDocument) -> CycleErrors:
    verdict = cycle.verdict
    return CycleErrors(
        cycle=cycle.cycle,
        kind=cycle.kind,
        errors=cycle.errors,
        promoted=verdict.promoted if verdict else None,
        sentences=verdict.sentences if verdict else [],
    )


def _wall(record: object) -> float:
    """Return the duration of a stage (s): first start to last end, or the jobs added up."""
    started, finished = getattr(record, "started", None), getattr(record, "finished", None)
    if started and finished:
        return max((_aware(finished) - _aware(started)).total_seconds(), 0.0)
    return float(getattr(record, "seconds", 0.0))


def _aware(moment: datetime | None) -> datetime:
    """Return a moment with its zone (MongoDB gives UTC without saying so); now if None."""
    if moment is None:
        return now()
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
