"""Explore jobs: one walker or several, one cycle; and the seeds of cycle 0."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from otf_workflows.jobs import earlier_output, load_model, otf_job, scratch_folder
from otf_workflows.schemas import Checkpoint, Origin
from otf_workflows.types import Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.campaign import Exploration, Seeding
    from otf_workflows.exploration import Walker
    from otf_workflows.potentials.base import Potential
    from otf_workflows.schemas import Calibration, Frame, WalkerSegment


@otf_job(Stage.EXPLORE, expose_store=True)
def explore(
    start: Frame,
    *,
    walker: int,
    temperature_K: float,
    potential: str,
    weights: str | None,
    calibration: Calibration,
    rules: Exploration,
    tolerance_eV_A: float,
    seed: int,
    n_pool: int,
    checkpoint: dict[str, Any] | None,
    origin: Origin,
) -> WalkerSegment:
    """Advance one walker by one segment and report where it was not to be trusted.

    Parameters
    ----------
    start
        Structure of the walker (the supercell) at step 0; gives the reference volume.
    walker, temperature_K
        Which walker, and its thermostat (K).
    potential, weights
        Registry name and weights of the incumbent; None for the pretrained one.
    calibration
        Of the incumbent's uncertainty; with ``n == 0`` it never stops a walker.
    rules, tolerance_eV_A
        From the campaign.
    seed
        Of initial velocities and thermostat.
    n_pool
        Random checked frames to return beside the candidates.
    checkpoint
        Where the walker stood at the end of the last cycle.
    origin
        Campaign, cycle and model, copied into the frames.
    """
    from otf_workflows.exploration import explore as advance

    if (earlier := earlier_output()) is not None:
        return earlier
    scratch = scratch_folder()
    one = _walker(start, walker, temperature_K=temperature_K, seed=seed, checkpoint=checkpoint)
    segment = advance(
        **vars(one),
        potential=load_model(potential, weights) if weights else cold_start(potential, [one]),
        model_id=origin.model_id or potential,
        rules=rules,
        tolerance_eV_A=tolerance_eV_A,
        calibration=calibration,
        stop_on_uncertainty=calibration.n > 0,
        n_pool=n_pool,
        origin=origin,
        scratch=scratch,
    )
    segment = _embedded(segment, potential=potential)
    shutil.rmtree(scratch, ignore_errors=True)
    return segment


@otf_job(Stage.EXPLORE, expose_store=True)
def explore_together(
    walkers: Sequence[dict[str, Any]],
    *,
    potential: str,
    weights: str | None,
    calibration: Calibration,
    rules: Exploration,
    tolerance_eV_A: float,
    n_pool: int,
    origin: Origin,
) -> dict[str, WalkerSegment]:
    """Advance several walkers by one segment each, their structures in one forward pass.

    Parameters
    ----------
    walkers
        For each walker the arguments of :func:`explore` that are its own: ``start``, ``walker``,
        ``temperature_K``, ``seed`` and ``checkpoint``.
    potential, weights, calibration, rules, tolerance_eV_A, n_pool, origin
        As for :func:`explore`.

    Returns
    -------
    dict
        The segment of each walker under its :func:`part_name`.
    """
    from otf_workflows.exploration import explore_together as advance

    if (earlier := earlier_output()) is not None:
        return earlier
    scratch = scratch_folder()
    flock = [_walker(**one) for one in walkers]
    segments = advance(
        flock,
        load_model(potential, weights) if weights else cold_start(potential, flock),
        model_id=origin.model_id or potential,
        rules=rules,
        tolerance_eV_A=tolerance_eV_A,
        calibration=calibration,
        stop_on_uncertainty=calibration.n > 0,
        n_pool=n_pool,
        origin=origin,
        scratch=scratch,
    )
    output = {part_name(s.walker): _embedded(s, potential=potential) for s in segments}
    shutil.rmtree(scratch, ignore_errors=True)
    return output


def part_name(walker: int) -> str:
    """Return the key of a walker's segment in the output of a job with several walkers."""
    return f"walker-{walker}"


def _walker(
    start: Frame,
    walker: int,
    *,
    temperature_K: float,
    seed: int,
    checkpoint: dict[str, Any] | None,
) -> Walker:
    from otf_workflows.exploration import Walker

    return Walker(
        frame=start,
        walker=walker,
        temperature_K=temperature_K,
        seed=seed,
        checkpoint=Checkpoint.model_validate(checkpoint) if checkpoint else None,
        reference_volume_A3=start.to_atoms().get_volume(),
    )


def cold_start(potential: str, walkers: Sequence[Walker]) -> Potential:
    """Return the pretrained potential as walkers use it before there is any label.

    Its σ is the disagreement with another model. It also learns which surroundings are usual in
    rattled and strained copies of the starts, the first frames that will be labelled: with that
    the novelty, free at every step, tells when a check should not wait. Walkers of one job share
    what is usual, as all walkers do once there are labels.
    """
    from otf_workflows.campaign import Seeding
    from otf_workflows.exploration import seed_frames
    from otf_workflows.potentials.base import ColdStart

    model = load_model(potential, None)
    if not isinstance(model, ColdStart):
        return model
    frames = [
        frame
        for one in walkers
        for frame in seed_frames([one.frame], rules=Seeding(), seed=one.seed, origin=Origin())
    ]
    return model.familiar_with([frame.to_atoms() for frame in frames])


@otf_job(Stage.SEED)
def seed(
    starts: Sequence[Frame],
    *,
    potential: str,
    rules: Seeding,
    seed: int,
    origin: Origin,
) -> dict[str, list[Frame]]:
    """Return rattled and strained copies of the starts, to begin with more than MD sees."""
    from otf_workflows.exploration import seed_frames

    frames = seed_frames(starts, rules=rules, seed=seed, origin=origin)
    return {"candidates": embed(frames, potential=potential)}


def _embedded(segment: WalkerSegment, *, potential: str) -> WalkerSegment:
    """Return a segment whose frames have features of the pretrained potential."""
    return segment.model_copy(
        update={
            "candidates": embed(segment.candidates, potential=potential),
            "pool": embed(segment.pool, potential=potential),
        }
    )


def embed(frames: Sequence[Frame], *, potential: str) -> list[Frame]:
    """Return the frames with latent features of the *pretrained* potential.

    Fine-tuning moves the latent space; features of one fixed model stay comparable over cycles
    and campaigns.
    """
    if not frames:
        return []
    features = load_model(potential, None).features([frame.to_atoms() for frame in frames])
    return [
        frame.model_copy(update={"features": row.tolist(), "features_of": potential})
        for frame, row in zip(frames, features, strict=True)
    ]
