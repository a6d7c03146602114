"""Labels that are late: what waits for them goes on, and they join the next data set."""

from __future__ import annotations

from datetime import UTC, timedelta
from typing import TYPE_CHECKING

from otf_workflows.campaign import Quorum
from otf_workflows.engine.base import JobState
from otf_workflows.schemas import now
from otf_workflows.types import LabelState, Purpose, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from otf_workflows.engine.base import Engine, JobRecord
    from otf_workflows.schemas import CampaignDocument, CycleDocument, Selection
    from otf_workflows.store import Store

_OPEN = {JobState.WAITING, JobState.READY, JobState.RUNNING}


def is_past(selection: Selection, quorum: Quorum, *, moment: datetime) -> bool:
    """Return whether a cycle has waited for its labels for as long as it may.

    Parameters
    ----------
    selection
        What the cycle asked for, and when.
    quorum
        The campaign's rules.
    moment
        The present moment, aware of its zone.
    """
    if quorum.deadline_h is None or selection.asked is None:
        return False
    asked = selection.asked if selection.asked.tzinfo else selection.asked.replace(tzinfo=UTC)
    return moment >= asked + timedelta(hours=quorum.deadline_h)


def let_late_labels_go(
    store: Store,
    engine: Engine,
    campaign: CampaignDocument,
    cycle: CycleDocument,
    jobs: Sequence[JobRecord],
) -> list[str]:
    """Let a cycle go on without labels that are late, or that a person has given up.

    Past the deadline and with the quorum in, no label is waited for any longer. One that runs, or
    is still to run, does so: its result joins the next data set. Below the quorum the cycle goes
    on waiting, for it could not train. A label job that was given up by hand is let go at once;
    nothing else would ever end the waiting for it.

    Parameters
    ----------
    store, engine
        Where the labels are booked, and what runs them.
    campaign, cycle
        A campaign that is alive, and its present cycle.
    jobs
        The jobs of that cycle.

    Returns
    -------
    list of str
        What was done, in sentences.
    """
    gathers = [job for job in jobs if job.stage is Stage.GATHER]
    if cycle.selection is None or not all(job.state is JobState.WAITING for job in gathers):
        return []
    labels = [job for job in jobs if job.stage is Stage.LABEL]
    given_up = [job for job in labels if job.state is JobState.FAILED and job.started is None]
    late = [job for job in labels if job.state in _OPEN]
    if late and not _may_train(store, campaign, cycle):
        late = []
    if not given_up and not late:
        return []
    gone = set(engine.let_go([job.engine_id for job in (*given_up, *late)]))
    keys = [job.label_key for job in late if job.engine_id in gone and job.label_key]
    sentences = [
        f"{campaign.name}: label {str(job.label_key)[:10]} was given up by hand; nothing waits "
        "for it any more."
        for job in given_up
        if job.engine_id in gone
    ]
    if keys:
        sentences.append(f"{campaign.name}: {_note(store, campaign, cycle, cycle.selection, keys)}")
    return sentences


def _may_train(store: Store, campaign: CampaignDocument, cycle: CycleDocument) -> bool:
    """Return whether the deadline is past and enough labels are in."""
    quorum = Quorum.model_validate(campaign.campaign.get("quorum") or {})
    asked = cycle.selection
    if asked is None or not is_past(asked, quorum, moment=now()):
        return False
    done = store.labels(keys=asked.keys, states=[LabelState.DONE], light=True)
    if not quorum.is_met(len(done), len(asked.keys)):
        return False
    purposes = {store.purpose_of(label, campaign.name)[0] for label in done}
    return bool(purposes - {Purpose.AUDIT}) or store.latest_dataset(campaign.name) is not None


def _note(
    store: Store,
    campaign: CampaignDocument,
    cycle: CycleDocument,
    selection: Selection,
    keys: Sequence[str],
) -> str:
    """Write down that labels were let go; return the sentence."""
    n_late = len(keys)
    sentence = (
        f"{n_late} of {len(selection.keys)} labels are late; they run on and join the next data "
        "set."
    )
    noted = selection.model_copy(
        update={
            "late_keys": sorted({*selection.late_keys, *keys}),
            "sentences": [*selection.sentences, sentence],
        }
    )
    store.set_cycle(campaign.name, cycle.cycle, selection=noted)
    store.event(
        "late labels let go", campaign=campaign.name, cycle=cycle.cycle, details={"keys": keys}
    )
    return f"{cycle.kind} {cycle.cycle}: {sentence}"
