"""The gather job: book the labels that came in and draw the data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otf_workflows.jobs import otf_job
from otf_workflows.schemas import Batch
from otf_workflows.types import Split, Stage

if TYPE_CHECKING:
    from otf_workflows.campaign import Campaign


@otf_job(Stage.GATHER, tolerate_missing=True)
def gather(selected: dict[str, Any], *, campaign: Campaign, cycle: int) -> Batch:
    """Record results, quarantine what is not what was asked for, draw the data set.

    Failed labels are simply not there: the quorum decides whether training can start, and a label
    that is rerun later joins the next data set.

    Parameters
    ----------
    selected
        Output of the select (or audit) job; failed labels are None.
    campaign, cycle
        Whose labels, and of which cycle.
    """
    from otf_workflows.ledger import draw_dataset, redraw_dataset, settle
    from otf_workflows.store import current_store

    store = current_store()
    for result in selected["labels"]:
        if result is not None:
            settle(store, result)
    drawn = redraw_dataset(store, campaign=campaign, cycle=cycle)
    dataset, frames = drawn or draw_dataset(store, campaign=campaign, cycle=cycle)
    wanted = selected["selection"].keys
    present = {frame.key for frame in frames}
    n_in = sum(key in present for key in wanted)
    splits = [frame.split for frame in frames]
    return Batch(
        dataset_hash=dataset.hash,
        n_train=splits.count(Split.TRAIN),
        n_validation=splits.count(Split.VALIDATION),
        n_audit=splits.count(Split.AUDIT),
        fresh_keys=[frame.key for frame in frames if frame.cycle == cycle],
        missing_keys=[key for key in wanted if key not in present],
        quorum_met=campaign.quorum.is_met(n_in, len(wanted)) and Split.TRAIN in splits,
        frames=frames,
    )
