"""The final workflow: production MD, its audit by DFT, and the property."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.errors import OtfError
from otf_workflows.jobs import earlier_output, load_model, otf_job, scratch_folder
from otf_workflows.schemas import PropertyDocument, Selection, now
from otf_workflows.types import CellMotion, CycleState, LabelState, Purpose, Split, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobflow import Response

    from otf_workflows.campaign import Campaign, Production
    from otf_workflows.exploration import ProductionRun
    from otf_workflows.schemas import Batch, Calibration, Frame, Origin

PREVIEW_FRAMES = 200
"""Frames of the run that pages show; the whole run stays in the job store."""


@otf_job(Stage.PRODUCE, expose_store=True)
def produce(
    start: Frame,
    *,
    campaign: Campaign,
    rules: Production,
    weights: str | None,
    calibration: Calibration,
    origin: Origin,
    audit_starts: Sequence[Frame],
) -> ProductionRun:
    """Run the long MD with the promoted model, and a short one whose frames DFT can check."""
    from otf_workflows.exploration import run_production

    if (earlier := earlier_output()) is not None:
        return earlier
    explored = campaign.exploration
    scratch = scratch_folder()
    run = run_production(
        start,
        load_model(campaign.potential, weights),
        rules=rules,
        tolerance_eV_A=campaign.tolerance_eV_A,
        calibration=calibration,
        seed=campaign.seed,
        n_audit=rules.audit_labels,
        model_id=origin.model_id or campaign.potential,
        origin=origin,
        audit_starts=audit_starts,
        friction_per_fs=explored.friction_per_fs,
        min_distance_ratio=explored.min_distance_ratio,
        max_volume_ratio=explored.max_volume_ratio,
        scratch=scratch,
    )
    shutil.rmtree(scratch, ignore_errors=True)
    return run


@otf_job(Stage.AUDIT)
def audit(run: ProductionRun, *, campaign: Campaign, cycle: int) -> Response:
    """Ask DFT about random frames of the production run: labels that no model has seen."""
    from otf_workflows.jobs.select import fit_for_dft, spawn, spawn_again
    from otf_workflows.ledger import request
    from otf_workflows.store import current_store

    store = current_store()
    earlier = store.selection(campaign.name, cycle)
    if earlier is not None:
        return spawn_again(store, earlier)
    fit, dropped = fit_for_dft(run.candidates, campaign=campaign)
    frames = [frame.model_copy(update={"purpose": Purpose.AUDIT}) for frame in fit]
    wanted, mine = request(store, frames, campaign=campaign, cycle=cycle)
    selection = Selection(
        n_candidates=len(run.candidates),
        **dropped.counts(),
        n_duplicates=len(frames) - len(wanted),
        keys=[document.key for document in wanted],
        reused_keys=[d.key for d in wanted if d.state is LabelState.DONE],
        new_keys=[document.key for document in mine],
        threshold_eV_A=campaign.tolerance_eV_A,
        asked=now(),
        sentences=[
            f"{len(wanted)} random frames of the production run go to DFT.",
            *filter(None, [dropped.sentence()]),
        ],
    )
    store.set_cycle(campaign.name, cycle, selection=selection)
    return spawn(selection, mine)


@otf_job(Stage.EVALUATE)
def evaluate(
    batch: Batch, *, potential: str, models: Sequence[dict[str, Any]], production_cycle: int
) -> dict[str, Any]:
    """Measure every model on all labels that none of them was trained on.

    Parameters
    ----------
    batch
        All labels; only the audit split is used.
    potential
        Registry name of the pretrained model.
    models
        ``{"model_id", "weights", "factor"}`` of each, the pretrained one included.
    production_cycle
        Cycle number of the final workflow, to tell its frames apart.

    Returns
    -------
    dict
        ``errors``: per model, on all audit labels and on those of the production run;
        ``evaluation``: per model, the arrays behind them.
    """
    from otf_workflows.training import evaluate as measure

    audits = [frame for frame in batch.frames if frame.split is Split.AUDIT]
    new = [frame for frame in audits if frame.cycle == production_cycle]
    errors, arrays = {}, {}
    for model in models:
        loaded = load_model(potential, model["weights"])
        if audits:
            result = measure(loaded, audits, uncertainty=model["weights"] is not None)
            errors[f"{model['model_id']}/audit"] = result.errors
            arrays[model["model_id"]] = result.arrays
        if new:
            errors[f"{model['model_id']}/production"] = measure(loaded, new).errors
    return {"errors": errors, "evaluation": arrays}


@otf_job(Stage.CONCLUDE)
def conclude(
    run: ProductionRun,
    verdict: dict[str, Any],
    *,
    campaign: Campaign,
    rules: Production,
    cycle: int,
    trajectory_uuid: str,
) -> dict[str, Any]:
    """Write the property with its conditions and its error bars, and close the cycle."""
    from otf_workflows.analysis import mean_square_displacement, radial_distribution
    from otf_workflows.exploration.trajectory import thin_trajectory
    from otf_workflows.store import current_store

    store = current_store()
    if store.closed_cycle(campaign.name, cycle) is not None:
        # A plain rerun of a job of ours: what was written stands.
        return {"model_id": run.model_id, "n_steps_run": run.n_steps_run}
    frames = run.frames()
    if not frames:
        raise OtfError(
            f"the production run ended during its equilibration: {run.stop_message}",
            where=f"model '{run.model_id}', {run.n_steps_run} of {run.n_steps} steps",
            hint="explore at this temperature first: exploration.temperatures_K",
        )
    cell_A = frames[0].cell.array
    values = {
        # Beyond half the shortest lattice vector the images of an atom are correlated with it.
        "rdf": radial_distribution(
            frames, r_max_A=min(0.5 * float(np.linalg.norm(cell_A, axis=1).min()), 8.0)
        ),
        "msd": mean_square_displacement(frames, dt_fs=rules.timestep_fs * rules.sample_every),
        **run.summary(),
    }
    document = PropertyDocument(
        campaign=campaign.name,
        model_id=run.model_id,
        kind="production",
        conditions={
            "ensemble": _ensemble(rules),
            "temperature_K": rules.temperature_K,
            "pressure_GPa": rules.pressure_GPa,
            "timestep_fs": rules.timestep_fs,
            "sample_every": rules.sample_every,
            "n_atoms": len(frames[0]),
            "cell_A": cell_A.tolist(),
            "supercell": list(rules.supercell),
        },
        values=_jsonable(values),
        trajectory_uuid=trajectory_uuid,
    )
    store.add_property(document)
    store.add_preview(
        trajectory_uuid, thin_trajectory(run.blob["trajectory"], n_most=PREVIEW_FRAMES)
    )
    store.put_file(f"evaluation/{campaign.name}/final", json.dumps(verdict["evaluation"]).encode())
    store.set_cycle(
        campaign.name, cycle, errors=verdict["errors"], state=CycleState.DONE, finished=now()
    )
    store.event("production finished", campaign=campaign.name, cycle=cycle)
    return {"model_id": run.model_id, "n_steps_run": run.n_steps_run}


def _ensemble(rules: Production) -> str:
    if rules.pressure_GPa is None:
        return "NVT (Langevin)"
    shape = "free shape" if rules.cell is CellMotion.FLEXIBLE else "fixed shape"
    return f"NPT (Langevin, {shape})"


def _jsonable(value: Any) -> Any:
    """Return plain data: arrays become lists, documents dictionaries."""
    if hasattr(value, "model_dump"):
        return _jsonable(value.model_dump())
    if isinstance(value, dict):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value
