"""``otf trajectory``: what walkers and production runs did, as ASE and pymatgen read it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from otf_workflows.cli import output, params
from otf_workflows.cli.session import session


def trajectory(
    ctx: typer.Context,
    campaign: params.CampaignName,
    *,
    walker: Annotated[
        int | None,
        typer.Option("--walker", "-w", min=0, help="This walker; default: the production run."),
    ] = None,
    cycle: Annotated[
        list[int] | None, typer.Option("--cycle", help="With --walker: only this. Repeatable.")
    ] = None,
    audit: Annotated[
        bool, typer.Option("--audit", help="Production: the run in the labelled cell.")
    ] = False,
    every: Annotated[int, typer.Option("--every", min=1, help="Only every so many frames.")] = 1,
    path: params.OutputPath = None,
    force: params.Force = False,
) -> None:
    """Write a trajectory to a file: a walker through all cycles, or the production run.

    The ending of --output decides the format: .extxyz (default), .traj and others of ASE, .json
    for pymatgen. Frames carry step, time (ps), model and cycle.
    """
    from otf_workflows import trajectories
    from otf_workflows.errors import InputError

    if walker is None and cycle:
        raise InputError("--cycle goes with --walker")
    if walker is not None and audit:
        raise InputError("--audit goes with the production run, not with --walker")
    part = "audit" if audit else "main"
    name = f"walker-{walker}" if walker is not None else f"production-{part}"
    target = path or Path(f"{campaign}-{name}.extxyz")
    if target.exists() and not force:
        raise InputError("a file would be overwritten", where=str(target), hint="add --force")
    store = session(ctx).store
    if walker is None:
        frames = trajectories.production_frames(store, campaign, part=part)
    else:
        frames = trajectories.walker_frames(store, campaign, walker, cycles=cycle)
    target.parent.mkdir(parents=True, exist_ok=True)
    trajectories.write_trajectory(target, frames[::every])
    output.data(str(target))
    output.note(f"{len(frames[::every])} frames of {len(frames[0])} atoms written.")
