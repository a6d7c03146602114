"""Production runs and the properties drawn from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from otf_workflows.dashboard.queries.cycle import evaluation
from otf_workflows.errors import NotFoundError
from otf_workflows.report.production import md_curves, production_summary
from otf_workflows.schemas import ErrorStatistics, PropertyDocument
from otf_workflows.store_documents import parse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.dashboard.evaluations import Judged
    from otf_workflows.report.model import Curve, Production
    from otf_workflows.store import Store

_CURVES = ("rdf", "msd", "steps", "sigmas_eV_A", "temperatures_K", "energies_eV_atom")


@dataclass(frozen=True)
class Diffusivity:
    """Self-diffusion of one element at one temperature (cm²/s)."""

    element: str
    temperature_K: float
    model_id: str
    value: float | None
    error: float | None
    upper: float | None
    sentence: str


@dataclass(frozen=True)
class ProductionLine:
    """One production run in the list of all."""

    campaign: str
    document: PropertyDocument


@dataclass(frozen=True)
class ProductionView:
    """The production run of one campaign."""

    campaign: str
    tolerance_eV_A: float
    document: PropertyDocument
    summary: Production | None
    audit: ErrorStatistics | None
    curves: dict[str, Any]
    energy: tuple[list[float], list[float]]
    diffusivities: Sequence[Diffusivity]
    judged: dict[str, Judged]
    cycle: int | None

    def curve(self, name: str) -> Curve | None:
        """Return 'production_sigma' or 'production_temperature', if it was recorded."""
        return self.curves.get(name)


def productions(store: Store) -> list[ProductionLine]:
    """Return all production runs without their curves, newest first."""
    hidden = {f"values.{name}": 0 for name in _CURVES}
    found = store.database.otf_properties.find({"kind": "production"}, hidden)
    documents = [parse(PropertyDocument, item) for item in found.sort("created", -1)]
    return [ProductionLine(document.campaign, document) for document in documents]


def production_view(store: Store, campaign: str) -> ProductionView:
    """Return the newest production run of a campaign.

    Raises
    ------
    NotFoundError
        If there is no such campaign, or no production run of it yet.
    """
    settings = store.campaign(campaign).campaign
    runs = [item for item in store.properties(campaign) if item.kind == "production"]
    if not runs:
        raise NotFoundError(
            f"campaign '{campaign}' has no production run yet", hint=f"otf status {campaign}"
        )
    newest = runs[-1]
    last = store.database.otf_cycles.find_one(
        {"campaign": campaign, "kind": "production"}, {"cycle": 1, "errors": 1}
    )
    found = (last or {}).get("errors", {}).get(f"{newest.model_id}/production")
    audit = ErrorStatistics.model_validate(found) if found else None
    timestep_fs = float(newest.conditions.get("timestep_fs", 1.0))
    steps = newest.values.get("steps", [])
    return ProductionView(
        campaign=campaign,
        tolerance_eV_A=float(settings["tolerance_eV_A"]),
        document=newest,
        summary=production_summary([newest], audit=audit),
        audit=audit,
        curves=md_curves([newest]),
        energy=(
            [step * timestep_fs / 1000 for step in steps],
            newest.values.get("energies_eV_atom", []),
        ),
        diffusivities=[item for run in runs for item in diffusivities(run)],
        judged=evaluation(store, f"evaluation/{campaign}/final").judged,
        cycle=last["cycle"] if last else None,
    )


def diffusivities(run: PropertyDocument) -> list[Diffusivity]:
    """Return what a run says about the diffusion of each element; often that there is none."""
    msd = run.values.get("msd") or {}
    parts = [msd] if "elements" in msd else list(msd.values())
    return [
        Diffusivity(
            element=element,
            temperature_K=float(run.conditions.get("temperature_K", 0.0)),
            model_id=run.model_id,
            value=entry.get("diffusivity_cm2_s"),
            error=entry.get("slope_error_cm2_s") if entry.get("diffusivity_cm2_s") else None,
            upper=entry.get("diffusivity_upper_cm2_s"),
            sentence=entry.get("sentence", ""),
        )
        for part in parts
        for element, entry in part["elements"].items()
    ]
