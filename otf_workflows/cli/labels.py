"""``otf labels list | show | rerun | import``: DFT calculations, and the failed ones among them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otf_workflows.cli import output, params
from otf_workflows.cli.session import session

if TYPE_CHECKING:
    from otf_workflows.control import RerunPlan
    from otf_workflows.labelers.base import Recipe
    from otf_workflows.schemas import Attempt, LabelDocument

app = typer.Typer(
    help="DFT labels: list, show, rerun, import.", no_args_is_help=True, rich_markup_mode=None
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
    key: params.KeyOption = None,
    campaign: params.ForCampaign = None,
    cycle: params.Cycle = None,
    failed: params.Failed = False,
    causes: params.Causes = None,
    settings: params.Numerics = None,
    walltime: params.Walltime = None,
    worker: params.OnWorker = None,
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

    keys = [*(keys or []), *(key or [])]
    if not (keys or failed or causes or campaign or cycle is not None):
        raise InputError(
            "say which labels: keys, --failed, --cause, --cycle or --campaign",
            hint="otf labels rerun --failed --dry-run",
        )
    here = session(ctx)
    plan = control.plan_rerun(
        here.store, here.engine, campaign=campaign, cycle=cycle, causes=causes, keys=keys,
        numerics=params.parse_settings(settings) or None, worker=worker,
        walltime_s=params.parse_duration(walltime) if walltime else None,
    )  # fmt: skip
    for item in plan.runnable if worker else ():
        here.site.resources(here.store.label(item.key).recipe["code"], worker)
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


@app.command("import")
def import_(
    ctx: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="extxyz, vasprun.xml, pw.x, CP2K or MPtrj-style JSON."
        ),
    ],
    *,
    campaign: params.ForCampaign = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="Campaign file whose recipe they have.")
    ] = None,
    level_of_theory: Annotated[
        str | None,
        typer.Option(
            "--level-of-theory",
            metavar="TEXT",
            help="You say that it is the recipe's, where a file does not tell; recorded.",
        ),
    ] = None,
    dry_run: params.DryRun = False,
    as_json: params.AsJson = False,
) -> None:
    """Enter finished calculations as labels, so that no campaign computes them again.

    Each structure gets the key it has as a label. What a file tells of its level of theory must
    agree with the recipe; where it tells nothing you must state it, and that is recorded.
    """
    from otf_workflows.errors import InputError, PartialError
    from otf_workflows.label_import import Rejected, basis_of, read_calculations, refusal
    from otf_workflows.ledger import import_label

    store = session(ctx).store
    store.ensure_indexes()
    asked = _recipe(ctx, campaign, recipe)
    counts = {"new": 0, "there already": 0}
    rejected: list[Rejected] = []
    compositions = []
    for path in files:
        for item in read_calculations(path, asked):
            reason = (
                item.reason
                if isinstance(item, Rejected)
                else refusal(item, asked, statement=level_of_theory)
            )
            if reason is not None or isinstance(item, Rejected):
                rejected.append(Rejected(item.source, reason or ""))
                continue
            basis = basis_of(item, statement=level_of_theory)
            added = import_label(store, item, recipe=asked, basis=basis, dry_run=dry_run)
            counts["new" if added else "there already"] += 1
            compositions.append(item.frame.numbers)
    if mixed := asked.mixing(compositions):
        output.note(mixed)
    n_good = sum(counts.values())
    if counts["new"] and not dry_run:
        store.event(
            "labels imported",
            details={**counts, "files": [str(p) for p in files], "stated": level_of_theory},
        )
    _tell_import(counts, rejected, as_json=as_json, dry_run=dry_run)
    if not rejected:
        return
    worst, n_bad = rejected[0], len(rejected)
    if not n_good:
        raise InputError(
            f"none of {n_bad} structures can be a label: {worst.reason}", where=worst.source
        )
    raise PartialError(f"{n_bad} of {n_good + n_bad} structures were refused")


def _recipe(ctx: typer.Context, campaign: str | None, file: Path | None) -> Recipe:
    from otf_workflows.campaign_file import read_campaign
    from otf_workflows.errors import InputError
    from otf_workflows.labelers import parse_recipe

    if (campaign is None) == (file is None):
        raise InputError(
            "say whose recipe the labels have: either --campaign or --recipe",
            hint="otf labels import FILE --recipe campaign.yaml",
        )
    if file is not None:
        return parse_recipe(read_campaign(file).labels)
    return parse_recipe(session(ctx).store.campaign(str(campaign)).campaign["labels"])


def _tell_import(
    counts: dict[str, int], rejected: list[Any], *, as_json: bool, dry_run: bool
) -> None:
    if as_json:
        refused = [{"source": item.source, "reason": item.reason} for item in rejected]
        payload = {"new": counts["new"], "duplicates": counts["there already"]}
        output.emit_json("otf.import/1", {**payload, "rejected": refused, "dry_run": dry_run})
        return
    verb = "would be imported" if dry_run else "imported"
    output.data(f"{counts['new']} labels {verb}, {counts['there already']} are there already.")
    for item in rejected:
        output.note(f"refused: {item.source}: {item.reason}")


def _preview(plan: RerunPlan) -> None:
    for item in plan.items:
        cause = item.cause or "no cause"
        output.note(
            f"{item.key[:12]}  {item.campaign} cycle {item.cycle}  {cause}  {item.mode}: {item.why}"
        )
    if plan.walltime_s or plan.worker:
        limit = f"time limit {output.duration(plan.walltime_s)}" if plan.walltime_s else ""
        output.note(", ".join(filter(None, [limit, plan.worker and f"worker {plan.worker}"])))
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
    for attempt in label.earlier:
        lines += _attempt(attempt, f"attempt {attempt.number}   before a rerun, ")
    running = label.state == "running"
    for attempt in label.attempts:
        lines += _attempt(attempt, f"attempt {attempt.number}   ", running=running)
    return lines


def _attempt(attempt: Attempt, head: str, *, running: bool = False) -> list[str]:
    """Return one try in words: how it ended, where it ran, and the end of its output."""
    outcome = attempt.message or (str(attempt.cause) if attempt.cause else "succeeded")
    took = output.duration(attempt.seconds)
    if running and attempt.seconds is None:
        took, outcome = "running", "not ended"
    cause = f" ({attempt.cause})" if attempt.cause and attempt.message else ""
    lines = [f"{head}{took} on {attempt.host or 'an unknown host'}: {outcome}{cause}"]
    if attempt.started:
        lines.append(f"            started {attempt.started:%Y-%m-%d %H:%M:%S} UTC")
    if attempt.queue_id:
        lines.append(f"            batch job {attempt.queue_id}")
    if attempt.changes:
        lines.append(f"            changed: {attempt.changes}")
    lines.append(f"            {attempt.command or 'in this process'}  in {attempt.directory}")
    return [*lines, *(f"            | {line}" for line in attempt.last_lines)]
