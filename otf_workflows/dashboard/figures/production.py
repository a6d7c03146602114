"""The figures of a production run: structure, motion, and how far it is to be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.dashboard.figures.base import (
    BLUE,
    GREEN,
    MAX_POINTS,
    ORANGE,
    PALETTE,
    Figure,
    Table,
    axis,
    band,
    level,
    number,
    rounded,
    thin,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.dashboard.queries.production import Diffusivity, ProductionView
    from otf_workflows.report.model import Curve

TABLE_ROWS = 25


def figures(view: ProductionView) -> list[Figure]:
    """Return the figures of the page, in their order."""
    return [
        displacement(view),
        diffusion(view.diffusivities),
        distribution(view),
        uncertainty(view),
        temperature(view),
        energy(view),
    ]


def displacement(view: ProductionView) -> Figure:
    """Return the mean square displacement of each element with its standard error."""
    curves = view.curves.get("msd", [])
    return _curves(
        curves,
        name="msd",
        title="Mean square displacement",
        x="time lag (ps)",
        y="MSD (Å²)",
        note="Bands are ± one standard error from consecutive groups of time origins.",
        empty="The run was too short for a mean square displacement.",
    )


def distribution(view: ProductionView) -> Figure:
    """Return the radial distribution function of each pair with its standard error."""
    return _curves(
        view.curves.get("rdf", []),
        name="rdf",
        title="Radial distribution functions",
        x="distance r (Å)",
        y="g(r)",
        note="Bands are ± one standard error from blocks of the run.",
        empty="No radial distribution function was computed.",
        reference=1.0,
    )


def _curves(
    curves: Sequence[Curve],
    *,
    name: str,
    title: str,
    x: str,
    y: str,
    note: str,
    empty: str,
    reference: float | None = None,
) -> Figure:
    traces: list[dict[str, Any]] = []
    each = MAX_POINTS // max(3 * len(curves), 1)
    for rank, curve in enumerate(curves):
        colour = PALETTE[rank % len(PALETTE)]
        # Smooth curves: a stride loses nothing that could be seen.
        chosen = slice(None, None, max(-(-len(curve.x) // each), 1))
        xs, ys = rounded(curve.x[chosen]), rounded(curve.y[chosen])
        if curve.error is not None:
            traces += band(xs, ys, curve.error[chosen], colour=colour)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": curve.name,
                "x": xs,
                "y": ys,
                "line": {"color": colour, "width": 1.8},
                "hovertemplate": f"{curve.name}<br>%{{x:.3f}}: %{{y:.4g}}<extra></extra>",
            }
        )
    line = [level(reference, "")[0]] if reference is not None else []
    return Figure(
        name=name,
        title=title,
        traces=traces,
        layout={
            "xaxis": axis(x, rangemode="tozero"),
            "yaxis": axis(y, rangemode="tozero"),
            "shapes": line,
            "showlegend": len(curves) > 1,
        },
        table=_curve_table(curves, x),
        note=note,
        empty=empty,
    )


def _curve_table(curves: Sequence[Curve], x: str) -> Table | None:
    if not curves:
        return None
    first = curves[0]
    rows = range(0, len(first.x), max(len(first.x) // TABLE_ROWS, 1))

    def cell(curve: Curve, row: int) -> str:
        error = f" ± {number(curve.error[row], 2)}" if curve.error is not None else ""
        return number(curve.y[row]) + error

    return Table(
        [x, *(curve.name for curve in curves)],
        [[number(first.x[row]), *(cell(curve, row) for curve in curves)] for row in rows],
    )


def diffusion(found: Sequence[Diffusivity]) -> Figure:
    """Return the diffusion coefficient of each element over the inverse temperature."""
    known = [item for item in found if item.value is not None]
    elements = sorted({item.element for item in known})
    traces = []
    for rank, element in enumerate(elements):
        rows = sorted(
            (item for item in known if item.element == element), key=lambda i: i.temperature_K
        )
        colour = PALETTE[rank % len(PALETTE)]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": element,
                "x": rounded([1000 / item.temperature_K for item in rows]),
                "y": rounded([item.value or 0.0 for item in rows]),
                "error_y": {
                    "type": "data",
                    "array": rounded([item.error or 0.0 for item in rows]),
                    "color": colour,
                },
                "text": [f"{item.temperature_K:g} K" for item in rows],
                "hovertemplate": f"{element}, %{{text}}: D = %{{y:.2e}} cm²/s<extra></extra>",
                "marker": {"color": colour, "size": 9},
            }
        )
    return Figure(
        name="diffusion",
        title="Diffusion coefficient D(T)",
        traces=traces,
        layout={
            "xaxis": axis("1000 K / T"),
            "yaxis": axis("D (cm²/s)", type="log", exponentformat="power"),
        },
        table=Table(
            ["element", "T (K)", "D (cm²/s)", "at most (95 %)", "model"],
            [
                [
                    item.element,
                    f"{item.temperature_K:g}",
                    f"({item.value:.2e} ± {item.error or 0:.0e})" if item.value else "–",
                    f"{item.upper:.1e}" if item.upper is not None else "–",
                    item.model_id,
                ]
                for item in found
            ],
        ),
        note="Only where the displacement grows in proportion to time; error bars are standard "
        "errors of the slope.",
        empty="No element diffuses in this run, as far as its length can tell; the table has upper "
        "bounds.",
    )


def uncertainty(view: ProductionView) -> Figure:
    """Return the uncertainty of the worst atom along the run, with the tolerance."""
    line, text = level(view.tolerance_eV_A, "tolerance")
    return _series(
        view.curve("production_sigma"),
        name="sigma",
        title="Uncertainty in production",
        y="σ of the worst atom (eV/Å)",
        colour=BLUE,
        shapes=[line],
        annotations=[text],
        note="A larger cell than the labelled one has motions that no label shows, and more atoms "
        "among which the worst is picked: this does not compare with the walkers.",
    )


def temperature(view: ProductionView) -> Figure:
    """Return the kinetic temperature along the run, with the thermostat."""
    kelvins = view.document.conditions.get("temperature_K")
    marks = [level(float(kelvins), "thermostat")] if kelvins is not None else []
    return _series(
        view.curve("production_temperature"),
        name="temperature",
        title="Temperature",
        y="temperature (K)",
        colour=ORANGE,
        shapes=[line for line, _ in marks],
        annotations=[text for _, text in marks],
    )


def energy(view: ProductionView) -> Figure:
    """Return the potential energy along the run, its mean taken off."""
    from otf_workflows.report.model import Curve

    time_ps, energies = view.energy
    shifted = (1000 * (np.array(energies) - np.mean(energies))).tolist() if energies else []
    return _series(
        Curve(name="energy", x=time_ps, y=shifted) if shifted else None,
        name="energy",
        title="Potential energy",
        y="energy − mean (meV/atom)",
        colour=GREEN,
        note="A drift that goes on means that the run was not in equilibrium.",
    )


def _series(
    curve: Curve | None,
    *,
    name: str,
    title: str,
    y: str,
    colour: str,
    note: str = "",
    shapes: Sequence[dict[str, Any]] = (),
    annotations: Sequence[dict[str, Any]] = (),
) -> Figure:
    traces = []
    if curve is not None and curve.x:
        xs, ys = thin(curve.x, curve.y, n_most=MAX_POINTS)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": xs,
                "y": ys,
                "line": {"color": colour, "width": 1.3},
                "hovertemplate": "%{x:.3f} ps: %{y:.4g}<extra></extra>",
            }
        )
    return Figure(
        name=name,
        title=title,
        traces=traces,
        layout={
            "xaxis": axis("time (ps)"),
            "yaxis": axis(y),
            "shapes": list(shapes),
            "annotations": list(annotations),
        },
        table=_curve_table([curve], "time (ps)") if curve is not None else None,
        note=note,
        empty="The run recorded no such curve.",
        height=240,
    )
