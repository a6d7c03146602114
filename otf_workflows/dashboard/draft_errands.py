"""A drafted campaign read, costed and submitted, away from the dashboard's own process."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from otf_workflows.dashboard.errands import Problem
from otf_workflows.preflight import COST_UNCERTAINTY, Check

if TYPE_CHECKING:
    from pathlib import Path

    from otf_workflows.campaign import Campaign
    from otf_workflows.settings import Site
    from otf_workflows.store import Store

CAMPAIGN_FILE = "campaign.yaml"


class CostEstimate(BaseModel):
    """What a campaign is expected to cost, and what that rests on."""

    label_core_hours: float | None = Field(None, description="One label (core-hours).")
    cycle_core_hours: float | None = Field(None, description="Labels of one cycle (core-hours).")
    most_core_hours: float | None = Field(
        None, description="All labels of the budget, or its core-hours if those are fewer."
    )
    basis: str = Field(description="What these numbers rest on, in one sentence.")
    labels_per_cycle: int
    most_labels: int
    md_steps: int = Field(description="MD steps of exploration, all cycles of the budget.")
    n_electrons: float | None = Field(None, description="Electrons of the cell that is labelled.")
    n_kpoints: int | None = Field(None, description="k-points computed for it.")


class DraftReport(BaseModel):
    """What was found about a draft."""

    problem: Problem | None = Field(None, description="Why it cannot be submitted.")
    name: str = ""
    digest: str = Field("", description="Hash of all that decides the results.")
    summary: list[str] = Field(default_factory=list, description="As otf validate prints it.")
    checks: list[Check] = Field(default_factory=list, description="Of this machine.")
    cost: CostEstimate | None = None
    taken: str = Field("", description="'same' or 'other' if a campaign has the name already.")
    done: list[str] = Field(default_factory=list, description="What a submission did.")


def check(folder: Path, site: Site) -> DraftReport:
    """Read a draft as ``otf validate`` does, and estimate its cost."""
    from otf_workflows.campaign_file import read_campaign
    from otf_workflows.cli.validate import summary
    from otf_workflows.connection import connect
    from otf_workflows.preflight import budget, labeler, potential
    from otf_workflows.store import Store

    campaign = read_campaign(folder / CAMPAIGN_FILE)
    store = Store(connect(site))
    known = {item.name: item.digest for item in store.campaigns()}
    taken = ""
    if campaign.name in known:
        taken = "same" if known[campaign.name] == campaign.digest else "other"
    return DraftReport(
        name=campaign.name,
        digest=campaign.digest,
        summary=summary(campaign),
        checks=[budget(campaign), potential(campaign.potential), *labeler(campaign, site)],
        cost=estimate(campaign, store),
        taken=taken,
    )


def submit(folder: Path, site: Site) -> DraftReport:
    """Submit a draft as ``otf submit`` does; the event says that it came from a dashboard."""
    from otf_workflows import control
    from otf_workflows.campaign_file import read_campaign
    from otf_workflows.connection import connect
    from otf_workflows.dashboard.actions import DashboardStore
    from otf_workflows.engine.choice import open_engine
    from otf_workflows.preflight import preflight
    from otf_workflows.reconcile import reconcile
    from otf_workflows.store import Store

    campaign = read_campaign(folder / CAMPAIGN_FILE)
    preflight(campaign, site, local=False)
    store = DashboardStore(Store(connect(site)))
    document = control.submit(campaign, store)
    done = reconcile(store, open_engine(site), document.name)
    return DraftReport(name=document.name, digest=document.digest, done=done)


def estimate(campaign: Campaign, store: Store) -> CostEstimate:
    """Return what the labels of a campaign are expected to cost.

    Parameters
    ----------
    campaign
        The campaign.
    store
        Finished labels of the same recipe in it set the scale.
    """
    from otf_workflows.labelers import parse_recipe
    from otf_workflows.labelers.cost import estimate_core_hours
    from otf_workflows.schemas import Frame

    rules, limits = campaign.selection, campaign.budget
    per_cycle = rules.labels_per_cycle + rules.audit_per_cycle
    found = CostEstimate(
        basis="this code counts no electrons, so there is no estimate before labels are finished",
        labels_per_cycle=per_cycle,
        most_labels=min(limits.max_labels, limits.max_cycles * per_cycle),
        md_steps=limits.max_cycles * campaign.n_walkers * campaign.exploration.steps_per_cycle,
    )
    recipe = parse_recipe(campaign.labels)
    if not (hasattr(recipe, "n_electrons") and hasattr(recipe, "n_kpoints")):
        return found
    cell = campaign.structure
    if prod(campaign.exploration.supercell) > 1:
        cell = Frame.from_atoms(cell.to_atoms().repeat(campaign.exploration.supercell))
    electrons, points = float(recipe.n_electrons(cell.numbers)), int(recipe.n_kpoints(cell))
    history = _finished(campaign, store)
    hours = estimate_core_hours(electrons, points, history=history)
    basis = (
        f"from {len(history)} finished labels of this recipe"
        if history
        else "a guess, right within a factor of about "
        f"{COST_UNCERTAINTY:g}: no label of this recipe is finished yet"
    )
    return found.model_copy(
        update={
            "label_core_hours": hours,
            "cycle_core_hours": hours * per_cycle,
            "most_core_hours": min(hours * found.most_labels, limits.max_core_hours),
            "basis": basis,
            "n_electrons": electrons,
            "n_kpoints": points,
        }
    )


def _finished(campaign: Campaign, store: Store) -> list:
    from otf_workflows.labelers import parse_recipe
    from otf_workflows.labelers.cost import FinishedCost

    recipe = parse_recipe(campaign.labels)
    wanted = recipe.model_dump(mode="json")
    costs = []
    for label in store.newest_done_labels():
        mine = parse_recipe(label.recipe)
        if mine.model_dump(mode="json") == wanted and label.core_hours > 0:
            costs.append(
                FinishedCost(
                    n_electrons=float(mine.n_electrons(label.frame.numbers)),  # type: ignore[attr-defined]
                    n_kpoints=int(mine.n_kpoints(label.frame)),  # type: ignore[attr-defined]
                    core_hours=label.core_hours,
                )
            )
    return costs
