"""Given what the database says, what happens next.

Idempotent: call it from anywhere, at any time, as often as you like. A lease keeps two callers
from acting at once, the unique key (campaign, cycle) keeps a cycle from being opened twice, and
the engine is asked for a workflow of that key before one is submitted. Kill anything at any
moment, and the next call repairs it.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from datetime import UTC, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from otf_workflows.campaign import Campaign
from otf_workflows.deadline import let_late_labels_go
from otf_workflows.engine.base import RELABEL
from otf_workflows.schemas import Attempt, CycleDocument, StageRecord, now
from otf_workflows.store_labels import GIVEN_UP
from otf_workflows.types import (
    CampaignState,
    CycleState,
    Decision,
    FailureCause,
    LabelState,
    Stage,
)

if TYPE_CHECKING:
    from otf_workflows.engine.base import Engine, JobRecord
    from otf_workflows.schemas import CampaignDocument, LabelDocument
    from otf_workflows.store import Store

logger = logging.getLogger(__name__)

_OUTCOMES = {
    Decision.CONVERGED: CampaignState.CONVERGED,
    Decision.BUDGET_EXHAUSTED: CampaignState.BUDGET_EXHAUSTED,
    Decision.STALLED: CampaignState.STALLED,
}


RERUN_GRACE = timedelta(seconds=60)
"""So long after a person's rerun its job may be on the way to the engine."""
_LIVE = {CampaignState.RUNNING, CampaignState.PRODUCING}
_STARTED = {"running", "done", "failed"}


class Step(StrEnum):
    """What a campaign needs next."""

    WAIT = "wait"
    OPEN = "open"
    SUBMIT = "submit"
    PRODUCE = "produce"
    FINISH = "finish"


def next_step(campaign: CampaignDocument, cycles: list[CycleDocument]) -> Step:
    """Return what follows from the documents; a pure function.

    Parameters
    ----------
    campaign
        The campaign.
    cycles
        Its cycles in order, the production run last.
    """
    if campaign.state.terminal or campaign.state is CampaignState.PAUSED:
        return Step.WAIT
    if not cycles:
        return Step.OPEN
    last = cycles[-1]
    if last.state is not CycleState.DONE:
        return Step.SUBMIT if last.state is CycleState.EMITTING else Step.WAIT
    if last.kind == "cycle":
        decision = last.verdict.decision if last.verdict else Decision.CONTINUE
        if decision is Decision.CONTINUE:
            return Step.OPEN
        if decision is not Decision.STALLED and campaign.campaign.get("production"):
            return Step.PRODUCE
    return Step.FINISH


def reconcile_all(store: Store, engine: Engine) -> list[str]:
    """Reconcile every campaign that is not finished, and book labels that were rerun.

    Returns
    -------
    list of str
        What was done, in sentences.
    """
    names = {c.name for c in store.campaigns() if not c.state.terminal}
    names |= store.campaigns_with_open_labels()
    sentences = []
    for name in sorted(names):
        try:
            sentences += reconcile(store, engine, name)
        except Exception as error:
            # The trouble of one campaign must neither stop the others nor stay unseen. If it is
            # the database that is gone, the next line says so.
            store.set_campaign(name, reason=f"cannot go on: {error!r}; see the control log")
            logger.exception("Campaign %s cannot be reconciled.", name)
    return sentences


def reconcile(store: Store, engine: Engine, name: str) -> list[str]:
    """Bring the documents of a campaign up to date and take its next step.

    Returns
    -------
    list of str
        What was done, in sentences; empty if there was nothing to do or somebody else is at it.
    """
    with store.lease(name) as mine:
        if not mine:
            return []
        sentences = book_labels(store, engine, name)
        sentences += adopt_labels(store, engine, name)
        sentences += watch_cycle(store, engine, name)
        while True:
            document = store.campaign(name)
            step = next_step(document, store.cycles(name))
            if step is Step.WAIT:
                return sentences
            sentences += _take(step, store, engine, document)


def _take(step: Step, store: Store, engine: Engine, document: CampaignDocument) -> list[str]:
    cycles = store.cycles(document.name)
    if step is Step.FINISH:
        return _finish(store, document, cycles)
    if step is Step.SUBMIT:
        return _submit(store, engine, document, cycles)
    cycle = CycleDocument(
        campaign=document.name,
        cycle=len(cycles),
        kind="production" if step is Step.PRODUCE else "cycle",
        state=CycleState.EMITTING,
        incumbent_id=document.incumbent_id,
        calibration=document.calibration,
    )
    store.open_cycle(cycle)
    if step is Step.PRODUCE and (verdict := cycles[-1].verdict):
        store.set_campaign(
            document.name, state=CampaignState.PRODUCING, outcome=_OUTCOMES[verdict.decision]
        )
    store.event(f"{cycle.kind} {cycle.cycle} opened", campaign=document.name, cycle=cycle.cycle)
    return [f"{document.name}: {cycle.kind} {cycle.cycle} opened."]


def _submit(
    store: Store, engine: Engine, document: CampaignDocument, cycles: list[CycleDocument]
) -> list[str]:
    from otf_workflows.flow import CycleMaker, ProductionMaker, outputs

    last = cycles[-1]
    ids = engine.find(campaign=document.name, cycle=last.cycle, kind=last.kind)
    if not ids:
        campaign = Campaign.model_validate(document.campaign)
        incumbent = store.model(last.incumbent_id)
        if last.kind == "production":
            models = [store.model(campaign.potential), *store.models(document.name)]
            flow = ProductionMaker(campaign).make(last.cycle, incumbent, last.calibration, models)
        else:
            previous = cycles[-2].outputs if last.cycle else {}
            flow = CycleMaker(campaign).make(last.cycle, incumbent, last.calibration, previous)
        # Written before the submission: if we die between the two, the next call finds no
        # workflow and writes new ones; if we die after it, these are the right ones.
        store.set_cycle(document.name, last.cycle, outputs=outputs(flow))
        ids = engine.submit(flow, campaign=document.name, cycle=last.cycle, kind=last.kind)
    store.set_cycle(document.name, last.cycle, engine_ids=ids)
    # An engine that runs the flow at once may have closed the cycle already.
    store.set_cycle_state(document.name, last.cycle, was=CycleState.EMITTING, to=CycleState.RUNNING)
    return [f"{document.name}: {last.kind} {last.cycle} submitted as workflow {ids}."]


def _finish(store: Store, document: CampaignDocument, cycles: list[CycleDocument]) -> list[str]:
    verdict = next(c.verdict for c in reversed(cycles) if c.verdict is not None)
    outcome = document.outcome or _OUTCOMES[verdict.decision]
    reason = verdict.sentences[-1] if verdict.sentences else str(outcome)
    store.set_campaign(document.name, state=outcome, outcome=outcome, reason=reason, finished=now())
    store.set_campaign(document.name, totals=totals(store, document.name))
    words = str(outcome).replace("_", " ")
    store.event(f"campaign {words}", campaign=document.name, details={"reason": reason})
    return [f"{document.name}: {words}. {reason}"]


def book_labels(store: Store, engine: Engine, name: str) -> list[str]:
    """Bring the state of open labels up to date with what the engine knows.

    A label is failed only when no campaign has a job for it that is still to run.
    """
    from otf_workflows.ledger import settle

    open_ = {
        label.key: label
        for label in store.labels(
            campaign=name,
            states=[LabelState.PENDING, LabelState.RUNNING, LabelState.FAILED],
            light=True,
        )
    }
    sentences = []
    jobs = _jobs_of_labels(engine, name, open_)
    for key, label in open_.items():
        job = _telling(jobs[key])
        if job is None:
            continue
        if job.state == "running" and label.state is LabelState.PENDING:
            store.mark_label_running(key, _attempt(job))
        elif job.state == "done" and job.uuid and (result := engine.output(job.uuid)):
            if settle(store, result):
                sentences.append(f"{name}: label {key[:10]} done.")
        elif job.state == "failed" and label.state is not LabelState.FAILED:
            if job.started is None and _wanted_by_the_living(store, label):
                continue
            if is_old_news(job, label):
                continue
            failure = job.failure or {}
            given_up = job.started is None
            cause = FailureCause.KILLED if given_up else failure.get("cause")
            reason = GIVEN_UP if given_up else failure.get("message")
            cause = FailureCause(cause or FailureCause.UNKNOWN)
            reason = reason or "the job died without a message"
            tries = [Attempt.model_validate(a) for a in failure.get("attempts", [])]
            if not tries and not given_up:
                tries = [_lost_attempt(job, cause=cause, reason=reason)]
            store.record_failure(key, cause=cause, reason=reason, attempts=tries)
            sentences.append(f"{name}: label {key[:10]} failed: {reason}")
    return sentences


def adopt_labels(store: Store, engine: Engine, name: str) -> list[str]:
    """Submit a job for every label that this campaign waits for and that nobody computes.

    That happens when the jobs of a label were given up: with the campaign that had them, or by a
    person. Two campaigns that notice it at once submit one job.
    """
    from otf_workflows.flow import relabel

    if store.campaign(name).state not in _LIVE:
        return []
    pending = {
        label.key: label for label in store.labels(campaign=name, states=[LabelState.PENDING])
    }
    jobs = _jobs_of_labels(engine, name, pending)
    # Before its gather can run, a cycle may still be about to submit the job itself.
    gathered = {
        job.cycle
        for job in (engine.jobs(campaign=name) if pending else [])
        if job.stage is Stage.GATHER and job.state in _STARTED
    }
    sentences = []
    for key, label in pending.items():
        _, cycle = store.purpose_of(label, name)
        alone = all(job.state == "failed" and job.started is None for job in jobs[key])
        if cycle in gathered and alone and store.claim_adoption(key, name):
            flow = relabel(label, campaign=name)
            engine.submit(flow, campaign=name, cycle=cycle, kind=RELABEL)
            store.event("label adopted", campaign=name, cycle=cycle, label_key=key)
            sentences.append(f"{name}: label {key[:10]} was computed by nobody; it runs by itself.")
    return sentences


def _jobs_of_labels(
    engine: Engine, name: str, labels: dict[str, LabelDocument]
) -> dict[str, list[JobRecord]]:
    """Return the jobs of each label, those of other campaigns that want it included."""
    if not labels:
        return {}
    names = {name} | {wish["campaign"] for label in labels.values() for wish in label.wanted_by}
    jobs: dict[str, list[JobRecord]] = {key: [] for key in labels}
    for campaign in sorted(names):
        for job in engine.jobs(campaign=campaign, label_keys=labels):
            if job.label_key in jobs:
                jobs[job.label_key].append(job)
    return jobs


def _telling(jobs: list[JobRecord]) -> JobRecord | None:
    """Return the job that tells most of a label: done, else alive, else the last that failed."""
    rank = {"done": 3, "running": 2, "failed": 0}
    return max(
        jobs, key=lambda job: (rank.get(str(job.state), 1), str(job.started or "")), default=None
    )


def is_old_news(job: JobRecord, label: LabelDocument) -> bool:
    """Tell whether a failure is older than the rerun that is being submitted just now.

    A person's rerun sets the label back first and submits its job next. If that job does not come,
    the failure counts again.
    """
    if job.finished is None:
        return False
    updated = label.updated if label.updated.tzinfo else label.updated.replace(tzinfo=UTC)
    return job.finished < updated and now() - updated < RERUN_GRACE


def _wanted_by_the_living(store: Store, label: LabelDocument) -> bool:
    return any(store.campaign(w["campaign"]).state in _LIVE for w in label.wanted_by)


def _attempt(job: JobRecord) -> Attempt:
    return Attempt(
        number=1, host=job.host or "", directory=job.directory or "", started=job.started
    )


def _lost_attempt(job: JobRecord, *, cause: FailureCause, reason: str) -> Attempt:
    """Return the try of a job that failed without an account of its own."""
    trace = str((job.failure or {}).get("traceback") or "")
    seconds = (job.finished - job.started).total_seconds() if job.finished and job.started else None
    return _attempt(job).model_copy(
        update={
            "seconds": seconds,
            "cause": cause,
            "message": reason,
            "last_lines": [line for line in trace.splitlines() if line.strip()][-30:],
        }
    )


def watch_cycle(store: Store, engine: Engine, name: str) -> list[str]:
    """Write stage counts and times of the running cycle, let late labels go, notice failures."""
    cycles = store.cycles(name)
    if not cycles or not cycles[-1].engine_ids:
        return []
    last = cycles[-1]
    jobs = engine.jobs(campaign=name, cycle=last.cycle, kind=last.kind)
    stages = stage_records(jobs)
    if stages != last.stages:
        store.set_cycle(name, last.cycle, stages=stages)
    document = store.campaign(name)
    sentences = []
    if document.state in _LIVE:
        sentences = let_late_labels_go(store, engine, document, last, jobs)
    broken = [job for job in jobs if job.state == "failed" and job.stage is not Stage.LABEL]
    if not broken or document.state.terminal:
        return sentences
    first = broken[0]
    failure = first.failure or {}
    parts = [failure.get("message") or "no message", failure.get("hint")]
    message = "; ".join(str(part).rstrip(".") for part in parts if part)
    reason = (
        f"job '{first.name}' ({first.engine_id}) of {last.kind} {last.cycle} failed: {message}. "
        f"Once the reason is gone: otf resume {name}"
    )
    store.set_campaign(name, state=CampaignState.FAILED, reason=reason, finished=now())
    store.event("campaign failed", campaign=name, cycle=last.cycle, details={"reason": reason})
    return [*sentences, f"{name}: {reason}"]


def stage_records(jobs: list[JobRecord]) -> dict[str, StageRecord]:
    """Return counts and wall times per stage."""
    groups: dict[Stage, list[JobRecord]] = defaultdict(list)
    for job in jobs:
        if job.stage is not None:
            groups[job.stage].append(job)
    records = {}
    for stage, members in groups.items():
        states = [str(job.state) for job in members]
        starts = [job.started for job in members if job.started]
        ends = [job.finished for job in members if job.finished]
        records[str(stage)] = StageRecord(
            stage=stage,
            n_jobs=len(members),
            n_done=states.count("done"),
            n_running=states.count("running"),
            n_failed=states.count("failed"),
            seconds=sum(
                (job.finished - job.started).total_seconds()
                for job in members
                if job.started and job.finished
            ),
            started=min(starts, default=None),
            finished=max(ends) if ends and len(ends) == len(members) else None,
        )
    return records


def totals(store: Store, name: str) -> dict[str, float]:
    """Return what a campaign did and cost.

    ``seconds_*`` are wall times during which at least one job of that kind ran; the rest of
    ``seconds_total`` is orchestration.
    """
    document = store.campaign(name)
    cycles = store.cycles(name)
    n_computed, core_hours = store.label_costs(name)
    n_all = sum(store.label_counts(name).values())
    runs = [item for item in store.properties(name) if item.kind == "production"]

    def spent(*stages: Stage) -> float:
        records = [c.stages[s] for c in cycles for s in stages if s in c.stages]
        return sum(
            (r.finished - r.started).total_seconds() for r in records if r.started and r.finished
        )

    return {
        "md_steps": float(sum(w["n_steps_run"] for c in cycles for w in c.walkers)),
        "production_steps": float(
            sum(r.values["n_steps_run"] + r.values["audit_n_steps_run"] for r in runs)
        ),
        "labels_computed": float(n_computed),
        "labels_reused": float(n_all - n_computed),
        "core_hours": core_hours,
        "seconds_explore": spent(Stage.EXPLORE, Stage.PRODUCE),
        "seconds_label": spent(Stage.LABEL),
        "seconds_train": spent(Stage.FINETUNE, Stage.EVALUATE),
        "seconds_total": ((document.finished or now()) - document.created).total_seconds(),
    }
