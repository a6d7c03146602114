"""What a person can ask of a campaign: submit, pause, resume, stop, rerun failed labels.

The command line and the dashboard call these; each writes an event that says who did it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from otf_workflows.engine.base import RELABEL
from otf_workflows.errors import InputError, NotFoundError, PartialError
from otf_workflows.schemas import (
    Calibration,
    CampaignDocument,
    Document,
    ModelDocument,
)
from otf_workflows.types import CampaignState, Decision, LabelState, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.campaign import Campaign
    from otf_workflows.engine.base import Engine, JobRecord
    from otf_workflows.store import Store
    from otf_workflows.types import FailureCause

FULL_KEY = 64
"""Characters of a whole label key; anything shorter is the beginning of one."""


def submit(campaign: Campaign, store: Store) -> CampaignDocument:
    """Enter a campaign into the database; the same one again is found, not entered twice.

    Nothing runs yet: the next reconcile opens its first cycle.

    Raises
    ------
    InputError
        If a campaign with this name but other settings exists.
    """
    store.ensure_indexes()
    document = CampaignDocument(
        name=campaign.name,
        state=CampaignState.RUNNING,
        campaign=campaign.model_dump(mode="json"),
        digest=campaign.digest,
        incumbent_id=campaign.potential,
    )
    # The model first: whoever sees the campaign must find what it starts from.
    store.add_model(
        ModelDocument(
            model_id=campaign.potential,
            potential=campaign.potential,
            promoted=True,
            verdict=["pretrained"],
            calibration=Calibration(),
        )
    )
    if store.add_campaign(document):
        store.event("campaign submitted", campaign=campaign.name)
    return store.campaign(campaign.name)


def pause(name: str, store: Store, engine: Engine) -> str:
    """Hold a campaign: running jobs finish, nothing new starts."""
    state = store.campaign(name).state
    if state.terminal:
        raise InputError(f"campaign '{name}' is {state}; there is nothing to pause")
    store.set_campaign(name, state=CampaignState.PAUSED, reason="paused by a person")
    n_held = engine.pause(name)
    store.event("campaign paused", campaign=name)
    return f"{name} is paused: {n_held} jobs held, running ones finish."


def resume(name: str, store: Store, engine: Engine) -> str:
    """Go on with a campaign that is paused, stalled or failed."""
    document = store.campaign(name)
    if document.state is CampaignState.PAUSED:
        n_released = engine.resume(name)
        sentence = f"{name} goes on: {n_released} jobs released."
    elif document.state is CampaignState.FAILED:
        broken = [
            job.engine_id
            for job in engine.jobs(campaign=name)
            if job.state == "failed" and job.stage is not Stage.LABEL
        ]
        engine.rerun(broken)
        sentence = f"{name} goes on: {len(broken)} failed jobs run again."
    elif document.state is CampaignState.STALLED:
        last = store.cycles(name)[-1]
        if last.verdict is not None:
            verdict = last.verdict.model_copy(update={"decision": Decision.CONTINUE})
            store.set_cycle(name, last.cycle, verdict=verdict)
        sentence = f"{name} goes on with another cycle."
    else:
        raise InputError(
            f"campaign '{name}' is {document.state}; only a paused, stalled or failed one resumes",
            hint="otf submit FILE --name NEW   (finished labels are found and not computed again)",
        )
    outcome = document.outcome if document.state is CampaignState.PAUSED else None
    state = CampaignState.PRODUCING if outcome else CampaignState.RUNNING
    store.set_campaign(name, state=state, outcome=outcome, reason="", finished=None)
    store.event("campaign resumed", campaign=name)
    return sentence


def stop(name: str, store: Store, engine: Engine) -> str:
    """Give a campaign up: running jobs finish, the rest never starts; labels stay."""
    state = store.campaign(name).state
    if state.terminal:
        raise InputError(f"campaign '{name}' is {state} already")
    store.set_campaign(name, state=CampaignState.STOPPED, reason="stopped by a person")
    n_cancelled = engine.cancel(name)
    store.event("campaign stopped", campaign=name)
    return f"{name} is stopped: {n_cancelled} jobs given up. Its labels stay in the database."


class RerunItem(Document):
    """One failed label and what a rerun would do with it."""

    key: str
    campaign: str
    cycle: int
    cause: str | None = None
    mode: str = Field(description="'in place', 'detached' or 'refused'.")
    why: str = Field(description="In one sentence.")
    engine_id: int | str | None = None


class RerunPlan(Document):
    """A preview of a rerun: exactly what will run."""

    items: list[RerunItem] = Field(default_factory=list)
    numerics: dict[str, Any] = Field(
        default_factory=dict, description="Changed numerical settings."
    )
    worker: str | None = Field(None, description="Variant CODE@NAME of the site's codes to use.")
    walltime_s: float | None = Field(None, gt=0, description="Time limit instead of the site's.")

    @property
    def changes(self) -> dict[str, Any]:
        """What differs from the first run, as the label job takes it."""
        found = self.model_dump(include={"numerics", "worker", "walltime_s"})
        return {name: value for name, value in found.items() if value}

    @property
    def runnable(self) -> list[RerunItem]:
        """Items that will run."""
        return [item for item in self.items if item.mode != "refused"]


def plan_rerun(
    store: Store,
    engine: Engine,
    *,
    campaign: str | None = None,
    cycle: int | None = None,
    causes: Sequence[FailureCause] | None = None,
    keys: Sequence[str] | None = None,
    numerics: dict[str, Any] | None = None,
    worker: str | None = None,
    walltime_s: float | None = None,
) -> RerunPlan:
    """Say what a rerun of failed labels would do; nothing is changed.

    A label whose cycle still waits for it is rerun in place. Otherwise it runs as a workflow of
    its own, and its result joins the next data set: nothing that is finished is reset.

    Raises
    ------
    NotFoundError
        If no failed label matches.
    InputError
        If ``numerics`` would change the physics.
    """
    from otf_workflows.labelers import check_numerics

    full_keys = None
    if keys:
        full_keys = [k if len(k) == FULL_KEY else store.label(k).key for k in keys]
    labels = store.labels(campaign=campaign, cycle=cycle, causes=causes, keys=full_keys, light=True)
    items = []
    jobs: dict[str, list[JobRecord]] = {}
    for label in labels:
        if label.state is not LabelState.FAILED:
            if full_keys:
                items.append(_refused(label, f"it is {label.state}, not failed"))
            continue
        check_numerics(label.recipe["code"], numerics or {})
        wish = next((w for w in label.wanted_by if w["campaign"] == campaign), label.wanted_by[0])
        name = wish["campaign"]
        jobs.setdefault(name, engine.jobs(campaign=name))
        changed = bool(numerics or worker or walltime_s)
        items.append(_plan_one(label, wish, jobs[name], changed=changed))
    if not items:
        raise NotFoundError("no failed label matches", hint="otf labels list --state failed")
    return RerunPlan(items=items, numerics=numerics or {}, worker=worker, walltime_s=walltime_s)


def _plan_one(label: Any, wish: dict[str, Any], jobs: list[JobRecord], *, changed: bool) -> Any:
    mine = [job for job in jobs if job.label_key == label.key]
    if any(job.state in {"waiting", "ready", "running"} for job in mine):
        return _refused(label, "a rerun of it is on its way already")
    failed = next((j for j in mine if j.state == "failed" and j.kind != RELABEL), None)
    if failed is not None and _is_waited_for(failed, jobs) and not changed:
        mode, why = "in place", "its cycle still waits for it"
    else:
        mode, why = "detached", "runs by itself; the result joins the next data set"
    return RerunItem(
        key=label.key,
        campaign=wish["campaign"],
        cycle=wish["cycle"],
        cause=label.cause,
        mode=mode,
        why=why,
        engine_id=failed.engine_id if failed else None,
    )


def _is_waited_for(failed: JobRecord, jobs: list[JobRecord]) -> bool:
    """Return whether nothing that comes after this label job has been started or could be.

    What collects the outputs of the labels is a job of jobflow's, and has no stage.
    """
    after = [
        job
        for job in jobs
        if (job.cycle, job.kind) == (failed.cycle, failed.kind)
        and job.stage in {Stage.GATHER, None}
    ]
    return bool(after) and all(job.state == "waiting" for job in after)


def _refused(label: Any, why: str) -> RerunItem:
    # Nobody has asked for an imported label yet.
    wish = label.wanted_by[0] if label.wanted_by else {"campaign": "", "cycle": 0}
    return RerunItem(
        key=label.key,
        campaign=wish["campaign"],
        cycle=wish["cycle"],
        cause=label.cause,
        mode="refused",
        why=why,
    )


def rerun(plan: RerunPlan, store: Store, engine: Engine) -> list[str]:
    """Carry out a plan; a label whose state has changed meanwhile is left alone.

    If the cycle of a label has gone on without it since the plan was made, it runs by itself.

    Raises
    ------
    PartialError
        If some of the labels were not failed any more.
    """
    from otf_workflows.flow import relabel

    sentences, skipped = [], []
    for item in plan.runnable:
        if not store.reset_label(item.key):
            skipped.append(item.key[:10])
            continue
        mode = item.mode
        if mode == "in place" and item.engine_id is not None:
            try:
                engine.rerun([item.engine_id])
            except PartialError:
                mode = "detached"
        if mode == "detached":
            flow = relabel(store.label(item.key), campaign=item.campaign, **plan.changes)
            engine.submit(flow, campaign=item.campaign, cycle=item.cycle, kind=RELABEL)
        # On a slow machine that took long enough for somebody to book the old failure once more.
        store.reopen_label(item.key)
        store.event(
            f"label rerun ({mode})",
            campaign=item.campaign,
            cycle=item.cycle,
            label_key=item.key,
            details=plan.changes,
        )
        why = item.why if mode == item.mode else "its cycle has gone on meanwhile"
        sentences.append(f"label {item.key[:10]} runs again ({mode}): {why}.")
    if skipped:
        raise PartialError(
            f"{len(sentences)} labels run again; left alone because they changed meanwhile: "
            + ", ".join(skipped),
            hint="otf labels list",
        )
    return sentences
