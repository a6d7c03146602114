"""The figures of a cycle: walkers, calibration, training; parity stands in a module of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.dashboard.figures.base import (
    BLUE,
    DASHES,
    GREEN,
    MAX_POINTS,
    NEUTRAL,
    ORANGE,
    PALETTE,
    Figure,
    Table,
    axis,
    diagonal,
    error_bar,
    level,
    log_axis,
    number,
    rounded,
    thin,
)
from otf_workflows.dashboard.figures.parity import elements, energy_parity, force_parity
from otf_workflows.report import words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.dashboard.queries.cycle import CycleView, Pick
    from otf_workflows.schemas import WalkerSegment

MAX_WALKERS = 60
"""Lines that can still be followed with the eye, or with the pointer."""
MAX_MARKS = 150
"""Marks of one purpose."""


def figures(view: CycleView) -> list[Figure]:
    """Return the figures of the page, in their order."""
    compared = [force_parity(view), energy_parity(view), elements(view)]
    if view.document.kind == "production":
        return [calibration(view), reliability(view), *compared]
    learned = training(view.challenger.history if view.challenger else [])
    return [uncertainty(view), calibration(view), reliability(view), learned, *compared]


# -- walkers -------------------------------------------------------------------------------------


def uncertainty(view: CycleView) -> Figure:
    """Return σ of the worst atom along each walker, the threshold, and the frames picked."""
    met = [segment for segment in view.walkers if segment.sigmas_eV_A]
    # The ones that went farthest beyond the tolerance are what the figure is looked at for.
    worst = sorted(met, key=lambda segment: max(segment.sigmas_eV_A), reverse=True)[:MAX_WALKERS]
    drawn = sorted(worst, key=lambda segment: segment.walker)
    kelvins = sorted({segment.temperature_K for segment in drawn})
    picked = _picked(view.picks, view)
    n_picked = sum(len(trace["x"]) for trace in picked)
    each = (MAX_POINTS - n_picked) // max(len(drawn), 1)
    traces = []
    legend: set[float] = set()
    for segment in drawn:
        traces.append(
            _walker(segment, view, kelvins, each, first=segment.temperature_K not in legend)
        )
        legend.add(segment.temperature_K)
    traces += picked
    sigmas = [s for segment in drawn for s in segment.sigmas_eV_A if s > 0]
    line, text = level(view.tolerance_eV_A, "tolerance")
    return Figure(
        name="uncertainty",
        title="Uncertainty along each walker",
        traces=traces,
        layout={
            "xaxis": axis("time of the walker, over all cycles (ps)"),
            "yaxis": log_axis("σ of the worst atom (eV/Å)", *_ends(sigmas, view.tolerance_eV_A)),
            "shapes": [line],
            "annotations": [{**text, "y": float(np.log10(view.tolerance_eV_A))}],
        },
        table=_walker_table(view),
        note="Each line is one walker. Marked frames went to DFT. A cross ends a walker that was "
        "stopped; it goes on from its last trusted frame in the next cycle."
        + (f" The {len(drawn)} worst of {len(met)} walkers." if len(drawn) < len(met) else ""),
        empty="No walker has finished yet.",
        height=400,
    )


def _walker(
    segment: WalkerSegment, view: CycleView, kelvins: list[float], each: int, *, first: bool
) -> dict[str, Any]:
    rank = kelvins.index(segment.temperature_K)
    time_ps = np.array(segment.steps) * view.timestep_fs / 1000
    x, y = thin(time_ps, np.maximum(segment.sigmas_eV_A, 1e-6), n_most=each)
    stopped = segment.n_steps < segment.n_steps_run
    colour = PALETTE[rank % len(PALETTE)]
    group = f"{segment.temperature_K:g} K"
    return {
        "type": "scatter",
        "mode": "lines+markers" if stopped else "lines",
        "name": group,
        "legendgroup": group,
        "showlegend": first,
        "x": x,
        "y": y,
        "line": {"color": colour, "width": 1.4, "dash": DASHES[rank // len(PALETTE) % 4]},
        # A marker on the last point only.
        "marker": {
            "symbol": "x",
            "color": colour,
            "size": [0] * (len(x) - 1) + [10 if stopped else 0],
        },
        "hovertemplate": f"walker {segment.walker}, {group}<br>%{{x:.3f}} ps: "
        "σ = %{y:.3f} eV/Å<extra></extra>",
    }


def _picked(picks: Sequence[Pick], view: CycleView) -> list[dict[str, Any]]:
    traces = []
    for purpose, symbol, name in (
        ("uncertain", "diamond", "picked: uncertain"),
        ("audit", "circle-open", "picked: audit (random)"),
        ("seed", "square", "picked: seed"),
    ):
        every = [
            pick
            for pick in picks
            if pick.purpose == purpose and pick.walker is not None and pick.step is not None
            and pick.sigma_eV_A is not None
        ]  # fmt: skip
        rows = every[:: max(-(-len(every) // MAX_MARKS), 1)]
        if rows:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": name,
                    "x": rounded([(pick.step or 0) * view.timestep_fs / 1000 for pick in rows]),
                    "y": rounded([max(pick.sigma_eV_A or 0.0, 1e-6) for pick in rows]),
                    "text": [
                        f"label {pick.key[:10]} ({pick.state})<br>walker {pick.walker}, "
                        f"step {pick.step}"
                        for pick in rows
                    ],
                    "hovertemplate": "%{text}<br>σ = %{y:.3f} eV/Å<extra></extra>",
                    "marker": {
                        "symbol": symbol,
                        "size": 10,
                        "color": "--ink",
                        "line": {"width": 1.5, "color": "--ink"},
                    },
                }
            )
    return traces


def _walker_table(view: CycleView) -> Table:
    return Table(
        ["walker", "T (K)", "MD steps", "kept", "checks above", "largest σ (eV/Å)", "ended"],
        [
            [
                str(segment.walker),
                f"{segment.temperature_K:g}",
                str(segment.n_steps_run),
                str(segment.n_steps),
                f"{segment.n_above} of {segment.n_checked}",
                number(max(segment.sigmas_eV_A, default=None)),
                f"{segment.stop_reason}"
                + (f": {segment.stop_message}" if segment.stop_message else ""),
            ]
            for segment in view.walkers
        ],
    )


# -- calibration ---------------------------------------------------------------------------------


def calibration(view: CycleView) -> Figure:
    """Return the true error of the worst atom against its σ, on labels the model had not seen."""
    points = [
        (key, p) for key, p in zip(view.keys, view.points, strict=True)
        if p.sigma_eV_A > 0 and p.error_eV_A > 0
    ]  # fmt: skip
    traces: list[dict[str, Any]] = []
    layout: dict[str, Any] = {}
    if points:
        values = [v for _, p in points for v in (p.sigma_eV_A, p.error_eV_A)]
        low, high = 0.7 * min(values), 1.4 * max(values)
        calibrated = points[0][1].calibrated
        traces = [
            diagonal([low, high], [low, high]),
            {
                "type": "scatter",
                "mode": "markers",
                "name": "fresh labels",
                "x": rounded([p.sigma_eV_A for _, p in points]),
                "y": rounded([p.error_eV_A for _, p in points]),
                "text": [key[:10] for key, _ in points],
                "marker": {
                    "color": BLUE if calibrated else NEUTRAL,
                    "size": 8,
                    "symbol": "circle" if calibrated else "x",
                    "opacity": 0.85,
                },
                "hovertemplate": "label %{text}<br>σ = %{x:.3f}, error = %{y:.3f} eV/Å"
                "<extra></extra>",
            },
        ]
        layout = {
            "xaxis": log_axis("predicted: σ of the worst atom (eV/Å)", low, high),
            "yaxis": log_axis("true error of the worst atom (eV/Å)", low, high),
            "showlegend": False,
        }
    return Figure(
        name="calibration",
        title="Calibration: predicted against true error",
        traces=traces,
        layout=layout,
        table=_coverage_table(view),
        note="Below the line the uncertainty was large enough."
        + ("" if not points or points[0][1].calibrated else " Not calibrated yet in this cycle."),
        empty="No label of this cycle has been compared with the model that drove it.",
    )


def _coverage_table(view: CycleView) -> Table:
    c = honesty(view)
    rows = []
    if "coverage" in c:
        rows.append(
            [
                "covered (error below σ)",
                f"{words.percent(c['coverage'])} of {c.get('n', len(view.points)):.0f} labels",
                f"{words.percent(c['nominal'])} meant" if "nominal" in c else "",
            ]
        )
    for key, name, chance in (
        ("spearman", "rank correlation of σ with the error", "0 is chance"),
        ("spearman_baseline_force", "the same of plain |F|, the baseline", "0 is chance"),
        ("auroc_worst", "σ finds the worst 10 % of frames (AUROC)", "0.5 is chance"),
        ("auroc_worst_baseline_force", "the same of plain |F|, the baseline", "0.5 is chance"),
    ):
        if c.get(key) is not None:
            rows.append([name, number(c[key]), f"1 is perfect, {chance}"])
    return Table(["", "value", ""], rows)


def honesty(view: CycleView) -> dict[str, float]:
    """Return coverage, reliability and ranking of σ on the labels that the model had not seen.

    As the cycle recorded it; where it did not (production), from the points themselves.
    """
    from otf_workflows.honesty import report

    if view.document.fresh_coverage or not view.points:
        return view.document.fresh_coverage
    return report(
        [p.error_eV_A for p in view.points],
        [p.sigma_eV_A for p in view.points],
        [p.force_eV_A for p in view.points],
        # The points are calibrated already.
        calibration=view.document.calibration.model_copy(update={"factor": 1.0, "floor_eV_A": 0.0}),
    )


def reliability(view: CycleView) -> Figure:
    """Return measured against promised coverage at several multiples of σ."""
    from otf_workflows.honesty import wilson_interval

    found = honesty(view)
    levels = {
        float(name.removeprefix("reliability_")): share
        for name, share in found.items()
        if name.startswith("reliability_")
    }
    traces: list[dict[str, Any]] = []
    n = round(found.get("n", 0))
    if levels and n:
        intervals = [wilson_interval(round(share * n), n) for share in levels.values()]
        low, high = ([100 * end for end in ends] for ends in zip(*intervals, strict=True))
        measured = [100 * share for share in levels.values()]
        traces = [
            diagonal([0, 100], [0, 100]),
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": "fresh labels",
                "x": list(levels),
                "y": rounded(measured),
                "error_y": error_bar(low, measured, high),
                "line": {"color": BLUE, "width": 1.8},
                "marker": {"size": 8},
                "hovertemplate": "promised %{x:.0f} %, measured %{y:.0f} %<extra></extra>",
            },
        ]
    return Figure(
        name="reliability",
        title="Reliability of the uncertainty",
        traces=traces,
        layout={
            "xaxis": axis("promised share of errors below σ (%)", range=[40, 100]),
            "yaxis": axis("measured share (%)", range=[0, 104]),
            "showlegend": False,
        },
        table=Table(
            ["promised", "measured"],
            [[f"{level:.0f} %", words.percent(share)] for level, share in levels.items()],
        ),
        note="Above the line errors were smaller than promised. The bars are 95 % intervals: with "
        f"{words.count(n, 'label')} nothing narrower can be said.",
        empty="No label of this cycle has been compared with the model that drove it.",
    )


# -- training ------------------------------------------------------------------------------------


def training(history: Sequence[dict[str, float]]) -> Figure:
    """Return the training curve of a model: errors on training and validation labels.

    Parameters
    ----------
    history
        One entry per epoch; entry 0 is the aligned parent.
    """
    epochs = [entry["epoch"] for entry in history]
    named = (
        ("force_mae_eV_A", "training, MAE", ORANGE, "solid"),
        ("validation_force_rmse_eV_A", "validation, RMSE", BLUE, "solid"),
        ("loss", "loss", GREEN, "dot"),
    )
    has_errors = any("force_mae_eV_A" in entry for entry in history)
    traces = []
    for key, name, colour, dash in named:
        rows = [(entry["epoch"], entry[key]) for entry in history if key in entry]
        # A loss has no unit; it is drawn only where there is nothing better.
        if not rows or (key == "loss" and has_errors):
            continue
        x, y = thin([r[0] for r in rows], [r[1] for r in rows], n_most=MAX_POINTS // 3)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": x,
                "y": y,
                "line": {"color": colour, "dash": dash, "width": 1.8},
                "hovertemplate": f"epoch %{{x}}, {name}: %{{y:.4g}}<extra></extra>",
            }
        )
    kept = next((entry["epoch"] for entry in history if entry.get("kept") == 1.0), None)
    marks = [] if kept is None else [level(kept, "kept", horizontal=False)]
    return Figure(
        name="training",
        title="Training curve",
        traces=traces,
        layout={
            "xaxis": axis("epoch"),
            "yaxis": log_axis("force error (eV/Å)" if has_errors else "loss", *_span(traces)),
            "shapes": [line for line, _ in marks],
            "annotations": [text for _, text in marks],
        },
        table=_history_table(history, epochs),
        note="The epoch with the smallest validation error is kept.",
        empty="This model was not trained here.",
    )


def _span(traces: Sequence[dict[str, Any]]) -> tuple[float, float]:
    values = [y for trace in traces for y in trace["y"] if y > 0]
    return 0.85 * min(values, default=0.1), 1.15 * max(values, default=1.0)


def _history_table(history: Sequence[dict[str, float]], epochs: list[float]) -> Table:
    shown = [i for i in range(len(epochs)) if i % max(len(epochs) // 12, 1) == 0]
    columns = [key for key in (history[-1] if history else {}) if key not in {"epoch", "kept"}]
    return Table(
        ["epoch", *(key.replace("_", " ") for key in columns)],
        [[f"{epochs[i]:g}", *(number(history[i].get(key), 4) for key in columns)] for i in shown],
    )


def _ends(values: Sequence[float], tolerance_eV_A: float) -> tuple[float, float]:
    """Return the ends of an axis of uncertainties.

    A walker that starts from the perfect crystal begins near zero, which no log axis needs.
    """
    top = 1.3 * max([*values, tolerance_eV_A])
    return max(0.8 * min([*values, tolerance_eV_A]), tolerance_eV_A / 10), top
