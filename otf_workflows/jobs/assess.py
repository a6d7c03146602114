"""The assess job: champion or challenger, and what follows."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from otf_workflows.jobs import otf_job
from otf_workflows.schemas import ModelDocument, Verdict, now
from otf_workflows.types import CycleState, Decision, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otf_workflows.campaign import Campaign
    from otf_workflows.schemas import Calibration, CycleDocument, TrainingResult
    from otf_workflows.store import Store


@otf_job(Stage.ASSESS)
def assess(
    training: TrainingResult | None,
    *,
    missing: list[str],
    campaign: Campaign,
    cycle: int,
    incumbent_id: str,
    calibration: Calibration,
    weights_uuid: str,
) -> Verdict:
    """Judge the challenger, decide what follows, and close the cycle in the database.

    Parameters
    ----------
    training
        The challenger; None if there were too few labels to train.
    missing
        Labels that were wanted and are not there.
    campaign, cycle
        Rules; and which cycle this is.
    incumbent_id, calibration
        The model to beat, and how its uncertainty was read.
    weights_uuid
        jobflow output that holds the challenger's weights.
    """
    from otf_workflows.calibration import floor_warning
    from otf_workflows.convergence import judge_challenger
    from otf_workflows.store import current_store

    store = current_store()
    closed = store.closed_cycle(campaign.name, cycle)
    if closed is not None and closed.verdict is not None:
        # A plain rerun of a job of ours: what followed from the verdict stands.
        return closed.verdict
    if training is None:
        verdict = Verdict(
            promoted=False,
            incumbent_id=incumbent_id,
            decision=Decision.STALLED,
            sentences=_untrained(missing, campaign),
        )
        _close(store, campaign, cycle, verdict, calibration)
        return verdict

    promoted, reasons = judge_challenger(training.errors, arrays=training.evaluation)
    if training.forgetting is not None:
        reasons = [*reasons, training.forgetting.sentence]
    chosen = training.model_id if promoted else incumbent_id
    in_use, honesty = _in_use(training, before=calibration, promoted=promoted)
    _keep_model(
        store,
        training.model_copy(update={"calibration": in_use}) if promoted else training,
        campaign=campaign,
        cycle=cycle,
        promoted=promoted,
        reasons=reasons,
        weights_uuid=weights_uuid,
    )
    store.set_cycle(
        campaign.name,
        cycle,
        errors=training.errors,
        fresh_coverage=training.fresh_coverage,
        challenger_id=training.model_id,
    )
    decision, outlook = _decide(store, campaign, cycle, promoted=promoted)
    verdict = Verdict(
        promoted=promoted,
        incumbent_id=chosen,
        decision=decision,
        sentences=[
            *reasons,
            *honesty,
            *filter(None, [floor_warning(in_use, campaign.tolerance_eV_A)]),
            *outlook,
        ],
    )
    _close(store, campaign, cycle, verdict, in_use)
    return verdict


def _untrained(missing: list[str], campaign: Campaign) -> list[str]:
    """Return why there was nothing to train on, and what to do."""
    if not missing:
        why = (
            "There is no label to train on, and none was asked for: what walkers met was "
            "unphysical or beyond the budget, as the selection says."
        )
        help_ = (
            "Check the structure and exploration.min_distance_ratio, or let seeding.n_frames begin "
            "with rattled copies; then submit it under another name."
        )
    else:
        why = (
            f"{len(missing)} labels are missing, too many to train on the rest (quorum "
            f"{campaign.quorum.fraction:.0%})."
        )
        help_ = (
            f"See `otf labels list --campaign {campaign.name} --state failed`, then "
            f"`otf labels rerun --campaign {campaign.name}`, then `otf resume {campaign.name}`."
        )
    return [why, help_]


def _in_use(
    training: TrainingResult, *, before: Calibration, promoted: bool
) -> tuple[Calibration, list[str]]:
    """Return how the next cycle reads the uncertainty of its model, and why.

    Drift of the incumbent's uncertainty widens that of the challenger that replaces it.
    """
    from otf_workflows.drift import inherit_drift

    checked, sentence = _recheck(before, training)
    if not promoted:
        return checked, [sentence]
    widened = inherit_drift(training.calibration, before, checked)
    if widened == training.calibration:
        return widened, [sentence]
    times = widened.factor / training.calibration.factor
    said = (
        "The new model's uncertainty was calibrated in the same way: it is read "
        f"{times:.2f} times larger as well."
    )
    return widened, [sentence, said]


def _recheck(calibration: Calibration, training: TrainingResult) -> tuple[Calibration, str]:
    """Hold the incumbent's uncertainty against the labels it led to, before anyone learned them.

    An uncalibrated one (cold start) is calibrated here, if it stays.
    """
    from otf_workflows.calibration import calibrate, frame_pairs
    from otf_workflows.drift import check_drift

    fresh = training.evaluation.get("incumbent/fresh")
    if not fresh:
        return calibration, "No fresh labels: the uncertainty was not checked."
    pairs = frame_pairs(fresh, n_atoms=calibration.n_atoms)
    if calibration.n:
        return check_drift(calibration, pairs.errors_eV_A, pairs.sigmas_eV_A)
    first = calibrate(pairs.errors_eV_A, pairs.sigmas_eV_A, n_atoms=pairs.n_atoms)
    return first, f"The incumbent's uncertainty was not calibrated; {first.n} labels now say how."


def _keep_model(
    store: Store,
    training: TrainingResult,
    *,
    campaign: Campaign,
    cycle: int,
    promoted: bool,
    reasons: list[str],
    weights_uuid: str,
) -> None:
    store.put_file(
        f"evaluation/{training.model_id}", json.dumps(training.evaluation, default=str).encode()
    )
    document = ModelDocument(
        model_id=training.model_id,
        campaign=campaign.name,
        cycle=cycle,
        potential=campaign.potential,
        output_uuid=weights_uuid,
        promoted=promoted,
        verdict=reasons,
        training=campaign.training.model_dump(),
        **training.model_dump(
            include={
                "parent_id",
                "dataset_hash",
                "sha256",
                "errors",
                "calibration",
                "alignment",
                "forgetting",
                "history",
                "versions",
            }
        ),
    )
    store.add_model(document, weights=base64.b64decode(training.blob))


def _decide(
    store: Store, campaign: Campaign, cycle: int, *, promoted: bool
) -> tuple[Decision, list[str]]:
    from otf_workflows.convergence import CycleEvidence, decide

    _, core_hours = store.label_costs(campaign.name)
    datasets = {model.cycle: model.dataset_hash for model in store.models(campaign.name)}
    evidence = [
        _evidence(document, promoted=promoted if document.cycle == cycle else None)
        | {"new_labels": _has_new_labels(datasets, document.cycle)}
        for document in store.cycles(campaign.name)
        if document.cycle <= cycle
    ]
    return decide(
        [CycleEvidence(**fields) for fields in evidence],
        convergence=campaign.convergence,
        budget=campaign.budget,
        tolerance_eV_A=campaign.tolerance_eV_A,
        # Labels that another campaign paid for count as well: the same campaign under another
        # name must end where this one ends.
        n_labels=sum(store.label_counts(campaign.name).values()),
        core_hours=core_hours,
    )


def _has_new_labels(datasets: Mapping[int | None, str | None], cycle: int) -> bool:
    """Return whether a cycle trained on another data set than the last training before it."""
    earlier = [n for n in datasets if n is not None and n < cycle]
    return not earlier or datasets.get(cycle) != datasets[max(earlier)]


def _evidence(document: CycleDocument, *, promoted: bool | None) -> dict[str, Any]:
    """Return what one cycle says about the quality of the model that it ended with."""
    if promoted is None:
        promoted = bool(document.verdict and document.verdict.promoted)
    n_checked = sum(walker["n_checked"] for walker in document.walkers)
    n_above = sum(walker["n_above"] for walker in document.walkers)
    winner = "challenger" if promoted else "incumbent"
    return {
        "cycle": document.cycle,
        "audit": document.errors.get(f"{winner}/audit"),
        "fraction_above": n_above / n_checked if n_checked else None,
        "calibrated": document.calibration.n > 0,
        "promoted": promoted,
        "moved": any(walker["n_steps_run"] for walker in document.walkers),
    }


def _close(
    store: Store, campaign: Campaign, cycle: int, verdict: Verdict, calibration: Calibration
) -> None:
    store.set_campaign(campaign.name, incumbent_id=verdict.incumbent_id, calibration=calibration)
    store.set_cycle(campaign.name, cycle, verdict=verdict, state=CycleState.DONE, finished=now())
    store.event(
        f"cycle {cycle} closed: {str(verdict.decision).replace('_', ' ')}",
        campaign=campaign.name,
        cycle=cycle,
        details={"sentences": verdict.sentences, "promoted": verdict.promoted},
    )
