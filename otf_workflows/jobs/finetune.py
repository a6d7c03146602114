"""The finetune job: a challenger, its uncertainty, and the evidence for and against it."""

from __future__ import annotations

import base64
import hashlib
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.jobs import earlier_output, load_model, otf_job, scratch_folder
from otf_workflows.schemas import Calibration, TrainingResult
from otf_workflows.types import Split, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.campaign import Campaign
    from otf_workflows.potentials.base import Potential
    from otf_workflows.schemas import Batch, LabelledFrame
    from otf_workflows.training.evaluate import Evaluation
    from otf_workflows.training.finetune import Finetuned


@otf_job(Stage.FINETUNE, expose_store=True)
def finetune(
    batch: Batch,
    *,
    campaign: Campaign,
    cycle: int,
    weights: str | None,
    calibration: Calibration,
) -> TrainingResult | None:
    """Train a challenger on all labels so far and measure everybody on labels nobody trained on.

    Training starts from the pretrained weights in every cycle: with all labels at hand this costs
    little and lets no early mistake drift along (``docs/explanation/the_cycle.md``). A job that
    runs again on the same data set returns its model; walkers may be using those weights.

    Parameters
    ----------
    batch
        Data set of the cycle.
    campaign, cycle
        Rules, seed, name.
    weights, calibration
        Of the model that drove this cycle's walkers.

    Returns
    -------
    TrainingResult or None
        None if the quorum of labels is not met: nothing is trained on too little.
    """
    from otf_workflows.training import evaluate
    from otf_workflows.training import finetune as train
    from otf_workflows.training.replay import forgetting

    if not batch.quorum_met:
        return None
    earlier = earlier_output()
    if earlier is not None and earlier.dataset_hash == batch.dataset_hash:
        return earlier
    started = time.perf_counter()
    pretrained = load_model(campaign.potential, None)
    incumbent = load_model(campaign.potential, weights) if weights else pretrained
    fresh = [frame for frame in batch.frames if frame.key in set(batch.fresh_keys)]
    unseen = evaluate(incumbent, fresh, uncertainty=True) if fresh else None

    learned = [frame for frame in batch.frames if frame.split is not Split.AUDIT]
    scratch = scratch_folder()
    tuned = train(
        pretrained,
        learned,
        rules=campaign.training,
        seed=campaign.seed,
        checkpoint=scratch / "training.pt",
    )
    trained = [frame for frame in learned if frame.split is Split.TRAIN]
    challenger = tuned.potential.fit_uncertainty(
        [item.frame.to_atoms() for item in trained],
        [np.array(item.forces_eV_A) for item in trained],
        seed=campaign.seed,
    )
    held_out = [frame for frame in batch.frames if frame.split is not Split.TRAIN]
    judged = {
        f"{who}/{what}": evaluate(model, frames, uncertainty=who != "pretrained")
        for what, frames in _test_sets(held_out).items()
        for who, model in _models(pretrained, incumbent, challenger).items()
    }
    if unseen is not None:
        judged["incumbent/fresh"] = unseen
    gone = None
    if not campaign.training.from_scratch:
        gone = forgetting(pretrained, challenger, {z for f in learned for z in f.frame.numbers})
    blob = challenger.dump()
    digest = hashlib.sha256(blob).hexdigest()
    return TrainingResult(
        model_id=f"{campaign.name}-c{cycle}-{digest[:8]}",
        parent_id=campaign.potential,
        sha256=digest,
        blob=base64.b64encode(blob).decode(),
        dataset_hash=batch.dataset_hash,
        history=tuned.history,
        alignment=_alignment(tuned, campaign, learned),
        calibration=_calibration(judged.get("challenger/held_out")),
        errors={name: evaluation.errors for name, evaluation in judged.items()},
        evaluation={name: evaluation.arrays for name, evaluation in judged.items()},
        fresh_coverage=_coverage(unseen, calibration),
        forgetting=gone,
        seconds=time.perf_counter() - started,
        versions=_versions(campaign.potential),
    )


def _versions(potential: str) -> dict[str, str]:
    """Return the versions of what decides the numbers."""
    from otf_workflows.potentials import potential_entry

    names = ("otf-workflows", *potential_entry(potential).packages, "ase")
    return {name: version(name) for name in names}


def _alignment(
    tuned: Finetuned, campaign: Campaign, learned: list[LabelledFrame]
) -> dict[str, Any]:
    """Return the alignment as data, with what else a person should know of this training."""
    from otf_workflows.labelers import parse_recipe

    found = tuned.alignment.model_dump(mode="json")
    mixed = parse_recipe(campaign.labels).mixing(item.frame.numbers for item in learned)
    sentences = [*found["sentences"], *tuned.sentences, *([mixed] if mixed else [])]
    return {**found, "sentences": sentences}


def _test_sets(held_out: Sequence[LabelledFrame]) -> dict[str, list[LabelledFrame]]:
    sets = {
        "audit": [frame for frame in held_out if frame.split is Split.AUDIT],
        "held_out": list(held_out),
    }
    return {name: frames for name, frames in sets.items() if frames}


def _models(
    pretrained: Potential, incumbent: Potential, challenger: Potential
) -> dict[str, Potential]:
    return {"pretrained": pretrained, "incumbent": incumbent, "challenger": challenger}


def _calibration(held_out: Evaluation | None) -> Calibration:
    """Return how to read the challenger's uncertainty, from labels it was not trained on."""
    from otf_workflows.calibration import calibrate, frame_pairs

    if held_out is None:
        return Calibration()
    pairs = frame_pairs(held_out.arrays)
    return calibrate(pairs.errors_eV_A, pairs.sigmas_eV_A, n_atoms=pairs.n_atoms)


def _coverage(unseen: Evaluation | None, calibration: Calibration) -> dict[str, float]:
    """Return how honest the incumbent's uncertainty was on labels it had not seen."""
    from otf_workflows.calibration import frame_pairs
    from otf_workflows.honesty import report

    if unseen is None:
        return {}
    pairs = frame_pairs(unseen.arrays, n_atoms=calibration.n_atoms)
    return report(pairs.errors_eV_A, pairs.sigmas_eV_A, pairs.forces_eV_A, calibration=calibration)
