"""The production run in words and curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otf_workflows.report.model import Coordination, Curve, Production
from otf_workflows.types import StopReason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.schemas import ErrorStatistics, PropertyDocument

NUMBERS = (
    "mean_temperature_K",
    "mean_temperature_error_K",
    "energy_drift_eV_atom_ps",
    "max_sigma_eV_A",
    "fraction_above",
    "worst_of_atoms",
)
"""Numbers of a production run that are copied as they are."""


def production_summary(
    productions: Sequence[PropertyDocument], *, audit: ErrorStatistics | None
) -> Production | None:
    """Return the newest production run, or None.

    Parameters
    ----------
    productions
        All runs, oldest first.
    audit
        Errors of its model on DFT of its frames, if there are any.
    """
    if not productions:
        return None
    newest = productions[-1]
    values = newest.values
    stopped = values.get("stop_reason")
    return Production(
        model_id=newest.model_id,
        conditions=newest.conditions,
        n_steps=values.get("n_steps_run", values.get("n_steps")),
        stopped=""
        if stopped in {None, StopReason.COMPLETED}
        else values.get("stop_message") or stopped,
        **{name: values.get(name) for name in NUMBERS},
        audit=audit,
        diffusion=[entry["sentence"] for _, entry in _displacements(values) if "sentence" in entry],
        coordination=_coordination(values.get("rdf") or {}),
    )


def md_curves(productions: Sequence[PropertyDocument]) -> dict[str, Any]:
    """Return the curves of the newest production run: RDF, MSD, uncertainty, temperature."""
    if not productions:
        return {}
    values, conditions = productions[-1].values, productions[-1].conditions
    time_ps = [step * conditions.get("timestep_fs", 1.0) / 1000 for step in values.get("steps", [])]
    rdf = values.get("rdf") or {"pairs": {}}
    return {
        "rdf": [
            Curve(name=pair, x=rdf["r_A"], y=entry["g"], error=entry.get("error"))
            for pair, entry in rdf["pairs"].items()
            if pair != "total"
        ],
        "msd": [
            Curve(name=symbol, x=lags_ps, y=entry["msd_A2"], error=entry.get("error_A2"))
            for symbol, entry in _displacements(values)
            if len(lags_ps := [lag / 1000 for lag in entry["time_fs"]]) > 1
        ],
        **{
            f"production_{name}": Curve(name=name, x=time_ps, y=values[key])
            for name, key in (("sigma", "sigmas_eV_A"), ("temperature", "temperatures_K"))
            if values.get(key)
        },
    }


def _displacements(values: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the mean square displacement of each element, computed together or one by one."""
    msd = values.get("msd") or {}
    parts = [msd] if "elements" in msd else list(msd.values())
    return [
        (symbol, entry | {"time_fs": part["time_fs"]})
        for part in parts
        for symbol, entry in part["elements"].items()
    ]


def _coordination(rdf: dict[str, Any]) -> list[Coordination]:
    return [
        Coordination(
            centre=centre,
            neighbour=second if centre == first else first,
            number=number,
            up_to_A=entry["first_minimum_A"],
        )
        for pair, entry in rdf.get("pairs", {}).items()
        if pair != "total" and entry.get("first_minimum_A")
        for first, second in [pair.split("-")]
        for centre, number in entry["coordination"].items()
        if number is not None
    ]
