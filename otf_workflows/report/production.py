"""The production run in words and curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otf_workflows.report.model import Curve, Production
from otf_workflows.types import StopReason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.report.evidence import Evidence
    from otf_workflows.schemas import PropertyDocument

NUMBERS = (
    "mean_temperature_K",
    "mean_temperature_error_K",
    "energy_drift_eV_atom_ps",
    "max_sigma_eV_A",
    "fraction_above",
)
"""Numbers of a production run that are copied as they are."""


def production_summary(
    productions: Sequence[PropertyDocument], evidence: Evidence
) -> Production | None:
    """Return the newest production run, or None."""
    if not productions:
        return None
    newest = productions[-1]
    values = newest.values
    return Production(
        model_id=newest.model_id,
        conditions=newest.conditions,
        n_steps=values.get("n_steps_run", values.get("n_steps")),
        stopped="" if values.get("stop_reason") == StopReason.COMPLETED else _stopped(values),
        **{name: values.get(name) for name in NUMBERS},
        audit=evidence.production_statistics(),
        diffusion=diffusion(values.get("msd") or {}),
    )


def diffusion(msd: dict[str, Any]) -> list[str]:
    """Return what each element's displacement says, in words."""
    return [msd["sentence"]] if msd.get("sentence") else []


def _stopped(values: dict[str, Any]) -> str:
    return str(values.get("stop_message") or values.get("stop_reason") or "")


def md_curves(productions: Sequence[PropertyDocument]) -> dict[str, Any]:
    """Return the curves of the newest production run: RDF, MSD, uncertainty, temperature."""
    if not productions:
        return {}
    values, conditions = productions[-1].values, productions[-1].conditions
    time_ps = [step * conditions.get("timestep_fs", 1.0) / 1000 for step in values.get("steps", [])]
    rdf, msd = values.get("rdf") or {}, values.get("msd") or {}
    return {
        "rdf": [
            Curve(name=p, x=rdf["r_A"], y=v["g"], error=v["error"]) for p, v in rdf["pairs"].items()
        ],
        "msd": [
            Curve(name=p, x=[t / 1000 for t in msd["time_fs"]], y=v["msd_A2"], error=v["error_A2"])
            for p, v in msd["elements"].items()
        ],
        **{
            f"production_{name}": Curve(name=name, x=time_ps, y=values[key])
            for name, key in (("sigma", "sigmas_eV_A"), ("temperature", "temperatures_K"))
            if values.get(key)
        },
    }
