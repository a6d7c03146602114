"""What models predict against what DFT says, on labels that none of them was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.dashboard.figures.base import (
    BLUE,
    MAX_POINTS,
    NEUTRAL,
    ORANGE,
    Figure,
    Table,
    axis,
    diagonal,
    number,
    rounded,
)

if TYPE_CHECKING:
    from otf_workflows.dashboard.evaluations import Cloud, Judged
    from otf_workflows.dashboard.queries.cycle import CycleView

MIN_TOP = 1e-4
"""Smallest end of an axis, where all values are zero."""


def models_judged(view: CycleView) -> list[tuple[str, Judged, str, str]]:
    """Return (name, numbers, colour, marker) of the models to compare on audit labels."""
    if view.document.kind == "production":
        first, last = view.pretrained_id, view.document.incumbent_id
        named = [(first, "pretrained", ORANGE, "square"), (last, "model in use", BLUE, "circle")]
        if first == last:
            named = named[1:]
    else:
        named = [
            ("pretrained/audit", "pretrained", NEUTRAL, "square"),
            ("incumbent/audit", "model in use", ORANGE, "triangle-up"),
            ("challenger/audit", "new model", BLUE, "circle"),
        ]
        if view.document.incumbent_id == view.pretrained_id:
            named.pop(1)
    return [
        (name, view.judged[key], colour, marker)
        for key, name, colour, marker in named
        if key in view.judged
    ]


def force_parity(view: CycleView) -> Figure:
    """Return predicted against DFT force components on audit labels."""
    return _parity(
        "forces",
        "Forces against DFT",
        [(name, judged.forces, colour, mark) for name, judged, colour, mark in models_judged(view)],
        unit="eV/Å",
        what="force component",
        note="On audit labels, which no model was trained on.",
    )


def energy_parity(view: CycleView) -> Figure:
    """Return predicted against DFT energies per atom, the mean of each side taken off."""
    return _parity(
        "energies",
        "Energies against DFT",
        [
            (name, judged.energies, colour, mark)
            for name, judged, colour, mark in models_judged(view)
        ],
        unit="meV/atom",
        what="energy − mean",
        note="On audit labels. The mean of each side is taken off: zeros of energy differ.",
    )


def _parity(
    name: str,
    title: str,
    clouds: list[tuple[str, Cloud, str, str]],
    *,
    unit: str,
    what: str,
    note: str,
) -> Figure:
    reach = max(
        (abs(v) for _, cloud, *_ in clouds for v in (*cloud.dft, *cloud.predicted)), default=0.0
    )
    reach = max(1.08 * reach, MIN_TOP)
    traces = [diagonal([-reach, reach], [-reach, reach])] if clouds else []
    budget = (MAX_POINTS - 2) // max(len(clouds), 1)
    rows = []
    for model, cloud, colour, marker in clouds:
        traces.append(_scatter(model, cloud, colour, marker, unit, n_most=budget))
        difference = np.subtract(cloud.predicted, cloud.dft)
        weights = np.array(cloud.counts, dtype=float)
        rmse = float(np.sqrt(np.average(difference**2, weights=weights)))
        rows.append([model, str(cloud.n), number(rmse)])
    binned = any(max(cloud.counts, default=1) > 1 for _, cloud, *_ in clouds)
    return Figure(
        name=name,
        title=title,
        traces=traces,
        layout={
            "xaxis": axis(f"DFT {what} ({unit})", range=[-reach, reach], constrain="domain"),
            "yaxis": axis(f"predicted ({unit})", range=[-reach, reach], scaleanchor="x"),
        },
        table=Table(["model", "values", f"RMSE ({unit})"], rows),
        note=note
        + (" Many points: each is a cell of a grid, its size the count." if binned else ""),
        empty="No model has been compared on audit labels yet.",
        height=320,
    )


def _scatter(
    name: str, cloud: Cloud, colour: str, marker: str, unit: str, *, n_most: int
) -> dict[str, Any]:
    counts = np.array(cloud.counts)
    # The fullest cells first, where not all fit.
    chosen = np.argsort(counts, kind="stable")[::-1][:n_most]
    many = counts.max(initial=1) > 1
    sizes = 4 + 8 * np.sqrt(counts[chosen] / counts.max(initial=1)) if many else None
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": rounded(np.array(cloud.dft)[chosen]),
        "y": rounded(np.array(cloud.predicted)[chosen]),
        "marker": {
            "color": colour,
            "symbol": marker,
            "size": rounded(sizes, 3) if sizes is not None else 6,
            "opacity": 0.65,
        },
        "hovertemplate": f"DFT %{{x:.4g}}, {name} %{{y:.4g}} {unit}<extra></extra>",
    }


def elements(view: CycleView) -> Figure:
    """Return the force error of each element, model beside model."""
    models = models_judged(view)
    symbols = sorted({symbol for _, judged, *_ in models for symbol in judged.rmse_by_element_eV_A})
    traces = [
        {
            "type": "bar",
            "name": name,
            "x": symbols,
            "y": rounded([judged.rmse_by_element_eV_A.get(s, (0.0, 0))[0] for s in symbols]),
            "marker": {"color": colour},
            "hovertemplate": f"%{{x}}, {name}: %{{y:.4g}} eV/Å<extra></extra>",
        }
        for name, judged, colour, _ in models
        if symbols
    ]
    return Figure(
        name="elements",
        title="Force error by element",
        traces=traces,
        layout={
            "barmode": "group",
            "xaxis": axis("element", type="category"),
            "yaxis": axis("force RMSE (eV/Å)", rangemode="tozero"),
        },
        table=Table(
            ["element", "atoms", *(f"{name} (eV/Å)" for name, *_ in models)],
            [
                [
                    symbol,
                    str(max(j.rmse_by_element_eV_A.get(symbol, (0, 0))[1] for _, j, *_ in models)),
                    *(
                        number(j.rmse_by_element_eV_A.get(symbol, (None, 0))[0])
                        for _, j, *_ in models
                    ),
                ]
                for symbol in symbols
            ],
        ),
        note="On audit labels.",
        empty="No model has been compared on audit labels yet.",
    )
