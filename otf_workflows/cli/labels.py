"""``otf labels list | show | rerun``: DFT calculations, and the failed ones among them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import typer

from otf_workflows.cli import output, params
from otf_workflows.cli.session import session

if TYPE_CHECKING:
    from otf_workflows.control import RerunPlan
    from otf_workflows.schemas import LabelDocument

app = typer.Typer(
    help="DFT labels: list, show, rerun.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("list")
def list_(
    ctx: typer.Context,
    *,
    campaign: params.ForCampaign = None,
    cycle: params.Cycle = None,
    states: params.States = None,
    failed: params.Failed = False,
    causes: params.Causes = None,
    grep: params.Grep = None,
    limit: params.Limit = 0,
    as_json: params.AsJson = False,
) -> None:
    """List labels, oldest first."""
    from otf_workflows.errors import NotFoundError
    from otf_workflows.types import LabelState

    wanted = [LabelState.FAILED] if failed else states
    pattern = _pattern(grep)
    found = session(ctx).store.labels(
        campaign=campaign, cycle=cycle, states=wanted, causes=causes, light=True,
        limit=0 if pattern else limit,
    )  # fmt: skip
    if pattern:
        found = [label for label in found if pattern.search(label.reason or "")]
        found = found[:limit] if limit else found
    if as_json:
        rows = [label.model_dump(mode="json", exclude={"result", "frame"}) for label in found]
        output.emit_json("otf.labels/1", {"labels": rows})
        return
    if not found:
        raise NotFoundError("no label matches", hint="otf status")
    output.print_table(
        ["key", "campaign", "cycle", "purpose", "state", "cause", "wall time", "reason"],
        [_row(label, campaign) for label in found],
    )


@app.command()
def show(ctx: typer.Context, key: params.LabelKey, *, as_json: params.AsJson = False) -> None:
    """Show one label: origin, every attempt, and the last lines of the output."""
    label = session(ctx).store.label(key)
    if as_json:
        output.emit_json("otf.label/1", {"label": label.model_dump(mode="json")})
        return
    for line in _details(label):
        output.data(line)


@app.command()
def rerun(
    ctx: typer.Context,
    keys: params.LabelKeys = None,
    *,
    campaign: params.ForCampaign = None,
    cycle: params.Cycle = None,
    failed: params.Failed = False,
    causes: params.Causes = None,
    settings: params.Numerics = None,
    yes: params.Yes = False,
    dry_run: params.DryRun = False,
    as_json: params.AsJson = False,
) -> None:
    """Compute failed labels again, after showing exactly what would run.

    Only numerical settings can be changed (--set mixing_beta=0.2); the level of theory is the
    campaign's. Labels that training no longer waits for run by themselves: nothing that is
    finished is reset.
    """
    from otf_workflows import control
    from otf_workflows.errors import InputError, PartialError

    if not (keys or failed or causes or campaign):
        raise InputError(
            "say which labels: keys, --failed, --cause or --campaign",
            hint="otf labels rerun --failed --dry-run",
        )
    here = session(ctx)
    plan = control.plan_rerun(
        here.store, here.engine, campaign=campaign, cycle=cycle, causes=causes, keys=keys,
        numerics=params.parse_settings(settings) or None,
    )  # fmt: skip
    refused = [item for item in plan.items if item.mode == "refused"]
    if dry_run and as_json:
        output.emit_json("otf.rerun/1", {"plan": plan.model_dump(mode="json"), "done": []})
        return
    _preview(plan)
    if dry_run:
        output.note("Nothing was changed (--dry-run).")
        return
    done: list[str] = []
    if plan.runnable:
        n = len(plan.runnable)
        question = f"Run {n} label{'s' if n > 1 else ''} again?"
        if not output.confirm(question, yes=yes, no_input=here.no_input):
            output.note("Nothing was changed.")
            raise typer.Exit(1)
        done = control.rerun(plan, here.store, here.engine)
    if as_json:
        output.emit_json("otf.rerun/1", {"plan": plan.model_dump(mode="json"), "done": done})
    else:
        for sentence in done:
            output.data(sentence)
    if refused:
        raise PartialError(
            f"{len(refused)} of {len(plan.items)} labels were left alone",
            where="; ".join(f"{item.key[:10]}: {item.why}" for item in refused),
            hint="otf labels show KEY",
        )


def _preview(plan: RerunPlan) -> None:
    for item in plan.items:
        cause = item.cause or "no cause"
        output.note(
            f"{item.key[:12]}  {item.campaign} cycle {item.cycle}  {cause}  {item.mode}: {item.why}"
        )
    if plan.numerics:
        changes = ", ".join(f"{key} = {value}" for key, value in plan.numerics.items())
        output.note(f"numerical settings of the first try: {changes}")


def _pattern(text: str | None) -> re.Pattern[str] | None:
    from otf_workflows.errors import InputError

    if text is None:
        return None
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise InputError(f"'{text}' is no regular expression: {error}", where="--grep") from error


def _row(label: LabelDocument, campaign: str | None) -> list[object]:
    wish = next((w for w in label.wanted_by if w["campaign"] == campaign), None)
    wish = wish or (label.wanted_by[0] if label.wanted_by else {})
    # A terminal is narrow, a pipe is not.
    key = label.key[:12] if output.on_terminal() else label.key
    return [
        key,
        wish.get("campaign"),
        wish.get("cycle"),
        wish.get("purpose"),
        str(label.state),
        label.cause,
        output.duration(_seconds(label)) if label.attempts else None,
        label.reason,
    ]


def _seconds(label: LabelDocument) -> float:
    return sum(attempt.seconds or 0.0 for attempt in label.tries)


def _details(label: LabelDocument) -> list[str]:
    """Return a label in words."""
    frame, origin = label.frame, label.frame.origin
    lines = [
        f"key         {label.key}",
        f"state       {label.state}" + (f" ({label.cause})" if label.cause else ""),
        f"structure   {frame.to_atoms().get_chemical_formula(mode='metal')}, {frame.n_atoms} atoms",
        f"recipe      {label.recipe.get('code')}, fingerprint {label.recipe_fingerprint}",
    ]
    if label.reason:
        lines.append(f"reason      {label.reason}")
    if origin.walker is not None:
        lines.append(
            f"origin      walker {origin.walker}, step {origin.step}, {origin.temperature_K} K, "
            f"model {origin.model_id}"
        )
    elif origin.note:
        lines.append(f"origin      {origin.note}")
    lines += [
        f"wanted by   {w['campaign']} cycle {w['cycle']} ({w['purpose']})" for w in label.wanted_by
    ]
    if label.result is not None:
        lines.append(f"energy      {label.result.energy_eV:.6f} eV")
    lines.append(f"cost        {label.core_hours:.4f} core-hours")
    for attempt in label.tries:
        outcome = attempt.message or (str(attempt.cause) if attempt.cause else "succeeded")
        lines.append(
            f"attempt {attempt.number}   {output.duration(attempt.seconds)} on {attempt.host}: "
            f"{outcome}"
        )
        if attempt.changes:
            lines.append(f"            changed: {attempt.changes}")
        lines.append(f"            {attempt.command or 'in this process'}  in {attempt.directory}")
        lines += [f"            | {line}" for line in attempt.last_lines]
    return lines
