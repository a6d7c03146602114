"""``otf validate``: read a campaign file as a run would, and say what it asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from otf_workflows.cli import output, params
from otf_workflows.cli.session import session

if TYPE_CHECKING:
    from otf_workflows.campaign import Campaign

SMALL_CELL = 16
"""Atoms of a cell above which walkers that share a forward pass on a CPU gain nothing by it."""


def validate(
    ctx: typer.Context,
    file: params.CampaignFile,
    *,
    name: params.NewName = None,
    settings: params.Settings = None,
    cutoff_check: Annotated[
        bool,
        typer.Option(
            "--cutoff-check", help="Run the DFT code at a higher cut-off as well, and compare."
        ),
    ] = False,
    shapes_check: Annotated[
        bool,
        typer.Option(
            "--shapes-check", help="Run the DFT code on the structure in every cell shape."
        ),
    ] = False,
    as_json: params.AsJson = False,
) -> None:
    """Check a campaign file: keys, units, structure, recipe. Nothing is written."""
    campaign = read(file, name=name, settings=settings)
    if cutoff_check:
        for line in _cutoff_sentences(ctx, campaign):
            output.note(line)
    if shapes_check:
        for line in _shape_sentences(ctx, campaign):
            output.note(line)
    if as_json:
        output.emit_json("otf.campaign/1", {"campaign": campaign.model_dump(mode="json")})
        return
    for line in summary(campaign):
        output.data(line)


def _cutoff_sentences(ctx: typer.Context, campaign: Campaign) -> list[str]:
    import tempfile
    from pathlib import Path

    from otf_workflows.cutoff_check import check_cutoff
    from otf_workflows.labelers import parse_recipe

    recipe = parse_recipe(campaign.labels)
    resources = session(ctx).site.resources(recipe.code)
    with tempfile.TemporaryDirectory(prefix="otf-cutoff-") as folder:
        found = check_cutoff(
            campaign.structure, recipe, directory=Path(folder), resources=resources
        )
    return [f"cut-off     {sentence}" for sentence in found.sentences]


def _shape_sentences(ctx: typer.Context, campaign: Campaign) -> list[str]:
    import tempfile
    from pathlib import Path

    from otf_workflows.exploration.starts import shapes_of
    from otf_workflows.labelers import parse_recipe
    from otf_workflows.shape_check import check_shapes

    recipe = parse_recipe(campaign.labels)
    resources = session(ctx).site.resources(recipe.code)
    with tempfile.TemporaryDirectory(prefix="otf-shapes-") as folder:
        found = check_shapes(
            shapes_of(campaign), recipe, directory=Path(folder), resources=resources
        )
    return [f"shapes      {sentence}" for sentence in found.sentences]


def read(file: params.CampaignFile, *, name: str | None, settings: list[str] | None) -> Campaign:
    """Return the campaign of a file, with ``--name`` and ``--set`` applied."""
    from otf_workflows.campaign_file import read_campaign

    overrides = params.parse_settings(settings)
    if name is not None:
        overrides["name"] = name
    return read_campaign(file, overrides)


def summary(campaign: Campaign) -> list[str]:
    """Return what a campaign asks for, a line for each thing."""
    from otf_workflows.labelers import parse_recipe

    explore, budget, production = campaign.exploration, campaign.budget, campaign.production
    per_cycle = campaign.selection.labels_per_cycle + campaign.selection.audit_per_cycle
    kelvins = ", ".join(f"{t:g}" for t in explore.temperatures_K)
    steps = budget.max_cycles * campaign.n_walkers * explore.steps_per_cycle
    lines = [
        f"campaign    {campaign.name}: {_formula(campaign)}, {campaign.structure.n_atoms} atoms",
        f"potential   {campaign.potential}, force errors up to {campaign.tolerance_eV_A:g} eV/Å",
        (
            f"labels      {campaign.labels['code']}, about {per_cycle} in each cycle, "
            f"at most {budget.max_labels}"
        ),
        (
            f"walkers     {campaign.n_walkers} at {kelvins} K, "
            f"{explore.steps_per_cycle} steps of {explore.timestep_fs:g} fs in each cycle"
            + (f", {explore.walkers_per_job} in one job" if explore.walkers_per_job > 1 else "")
        ),
        *_starts(campaign),
        (
            f"budget      {budget.max_cycles} cycles, {budget.max_core_hours:g} core-hours; "
            f"at most {steps} MD steps of exploration"
        ),
    ]
    if production is not None:
        lines.append(
            f"production  {production.steps} steps at {production.temperature_K:g} K, "
            f"supercell {'×'.join(map(str, production.supercell))}"
        )
    mismatch = parse_recipe(campaign.labels).mismatch(campaign.potential)
    minded = [mismatch, *_gaps(campaign)]
    return [*lines, *(f"mind        {sentence}" for sentence in minded if sentence)]


def _starts(campaign: Campaign) -> list[str]:
    """Return where walkers start, if that is more than one place."""
    import numpy as np

    from otf_workflows.exploration.starts import shapes_of

    shapes, others = shapes_of(campaign), campaign.exploration.starts
    if len(shapes) + len(others) == 1:
        return []
    cells = (" × ".join(f"{x:.2f}" for x in np.linalg.norm(s.cell_A, axis=1)) for s in shapes)
    more = f", then {len(others)} other starts" if others else ""
    return [f"starts      cells of {shapes[0].n_atoms} atoms, {'; '.join(cells)} Å{more}; in turns"]


def _gaps(campaign: Campaign) -> list[str]:
    """Return what the starts of a campaign leave out, in sentences."""
    from math import prod

    from otf_workflows.exploration.starts import shapes_of

    rules, production = campaign.exploration, campaign.production
    shapes = shapes_of(campaign)
    n_shapes = len(shapes)
    n_starts = n_shapes + len(rules.starts)
    found = []
    if n_shapes < rules.cell_shapes:
        found.append(
            f"exploration.cell_shapes is {rules.cell_shapes}, but of this size there are {n_shapes}"
        )
    if n_starts > campaign.n_walkers:
        found.append(
            f"{n_starts} starts and {campaign.n_walkers} walkers: the last "
            f"{n_starts - campaign.n_walkers} have none; raise exploration.walkers_per_temperature"
        )
    if rules.walkers_per_job > 1 and shapes[0].n_atoms > SMALL_CELL:
        found.append(
            f"exploration.walkers_per_job is {rules.walkers_per_job}, which on a CPU gains nothing "
            f"in cells of more than about {SMALL_CELL} atoms; these have {shapes[0].n_atoms}"
        )
    larger = production is not None and prod(production.supercell) > prod(rules.supercell)
    if larger and n_shapes == 1:
        found.append(
            "production is larger than any label, and labels have one cell shape: errors there "
            "can be several times larger; set exploration.cell_shapes to 4, or label larger cells"
        )
    return found


def _formula(campaign: Campaign) -> str:
    return campaign.structure.to_atoms().get_chemical_formula(mode="metal")
