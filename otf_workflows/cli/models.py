"""``otf models list | show | export``: every model with its evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from otf_workflows.cli import output, params
from otf_workflows.cli.session import session

if TYPE_CHECKING:
    from otf_workflows.schemas import ModelDocument

app = typer.Typer(
    help="Trained models: list, show, export weights.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("list")
def list_(
    ctx: typer.Context, *, campaign: params.ForCampaign = None, as_json: params.AsJson = False
) -> None:
    """List models, oldest first."""
    from otf_workflows.errors import NotFoundError

    found = session(ctx).store.models(campaign)
    if as_json:
        rows = [model.model_dump(mode="json", exclude={"history"}) for model in found]
        output.emit_json("otf.models/1", {"models": rows})
        return
    if not found:
        raise NotFoundError("no model matches", hint="otf status")
    output.print_table(
        ["model", "campaign", "cycle", "parent", "verdict", "audit RMSE (eV/Å)", "95 %"],
        [_row(model) for model in found],
    )


@app.command()
def show(ctx: typer.Context, model: params.ModelId, *, as_json: params.AsJson = False) -> None:
    """Show one model: errors, calibration, verdict, training."""
    from otf_workflows.potentials.registry import POTENTIALS
    from otf_workflows.report import words

    found = session(ctx).store.model(model)
    entry = POTENTIALS.get(found.potential)
    if as_json:
        output.emit_json("otf.model/1", {"model": found.model_dump(mode="json")})
        return
    lines = [
        f"model        {found.model_id}",
        f"potential    {found.potential}",
        f"trained on   {entry.level_of_theory}" if entry else "trained on   – (not registered)",
        f"licence      {entry.licence}" if entry else "licence      – (not registered)",
        f"parent       {found.parent_id or '–'}",
        f"campaign     {found.campaign or '– (pretrained)'}, cycle {found.cycle}",
        f"data set     {found.dataset_hash or '–'}",
        f"weights      {found.sha256 or 'shipped with its package'}",
        f"calibration  {words.calibration(found.calibration)}",
        *(f"training     {sentence}" for sentence in found.alignment.get("sentences", [])),
        *(f"verdict      {sentence}" for sentence in found.verdict),
    ]
    for line in lines:
        output.data(line)
    if found.errors:
        output.print_table(
            ["on", "frames", "force RMSE (eV/Å)", "95 %", "energy MAE (eV/atom)", "stress (GPa)"],
            [
                [
                    key,
                    e.n_frames,
                    e.force_rmse_eV_A,
                    f"{e.force_rmse_low_eV_A:.3g}–{e.force_rmse_high_eV_A:.3g}",
                    e.energy_mae_eV_atom,
                    e.stress_mae_GPa,
                ]
                for key, e in found.errors.items()
            ],
        )


@app.command()
def export(
    ctx: typer.Context,
    model: params.ModelId,
    *,
    path: params.OutputPath = None,
    force: params.Force = False,
) -> None:
    """Write a model's weights to a file.

    In Python: otf_workflows.potentials.load_potential(NAME, Path(FILE).read_bytes()).
    """
    from pathlib import Path

    from otf_workflows.errors import InputError, NotFoundError

    store = session(ctx).store
    found = store.model(model)
    target = path or Path(f"{found.model_id}.otfmodel")
    if target.exists() and not force:
        raise InputError("a file would be overwritten", where=str(target), hint="add --force")
    weights = store.weights(found)
    if weights is None:
        raise NotFoundError(
            f"'{found.model_id}' is pretrained: its weights are part of its package",
            hint=f"in Python: otf_workflows.potentials.load_potential('{found.potential}')",
        )
    target.write_bytes(weights)
    output.data(str(target))
    output.note(f"In Python: load_potential('{found.potential}', Path('{target}').read_bytes())")


def _row(model: ModelDocument) -> list[object]:
    audit = model.errors.get("challenger/audit") or model.errors.get("incumbent/audit")
    interval = (
        f"{audit.force_rmse_low_eV_A:.3g}–{audit.force_rmse_high_eV_A:.3g}" if audit else None
    )
    pretrained = model.campaign is None
    return [
        model.model_id,
        model.campaign,
        model.cycle,
        model.parent_id,
        "pretrained" if pretrained else "promoted" if model.promoted else "not promoted",
        audit.force_rmse_eV_A if audit else None,
        interval,
    ]
