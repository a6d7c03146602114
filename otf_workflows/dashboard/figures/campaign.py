"""The figures of a campaign: what took the time, how the error fell, what it cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otf_workflows.dashboard.figures.base import (
    BLUE,
    BROWN,
    GREEN,
    NEUTRAL,
    ORANGE,
    PALETTE,
    PINK,
    SKY,
    Figure,
    Table,
    axis,
    error_bar,
    level,
    number,
    rounded,
)
from otf_workflows.report import words
from otf_workflows.schemas import now
from otf_workflows.types import Stage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from otf_workflows.dashboard.queries.campaign import CampaignView, CycleLine
    from otf_workflows.schemas import ErrorStatistics, StageRecord

STAGE_COLOURS = {
    Stage.EXPLORE: BLUE,
    Stage.LABEL: ORANGE,
    Stage.FINETUNE: GREEN,
    Stage.PRODUCE: SKY,
    Stage.EVALUATE: PINK,
}
"""Stages that take long; the others share one colour."""
OTHERS = "other stages"
NAMES = {
    Stage.EXPLORE: "explore (MD)",
    Stage.LABEL: "label (DFT)",
    Stage.FINETUNE: "fine-tune",
    Stage.PRODUCE: "production MD",
    Stage.EVALUATE: "evaluate",
}
CYCLES_IN_TIMELINE = 24
"""More would be a wall of bars; the table of cycles has all of them."""
HEIGHTS = (200, 240, 320, 400)
"""Heights (CSS pixels) for which the page keeps room before a figure is drawn."""
SERIES = (
    ("incumbent/fresh", "model in use, fresh labels", ORANGE, "triangle-up", -0.12),
    ("pretrained/audit", "pretrained, audit labels", NEUTRAL, "square", 0.0),
    ("challenger/audit", "new model, audit labels", BLUE, "circle", 0.12),
)
"""Table of errors, name, colour, marker, and how far beside its cycle it is drawn."""


def figures(view: CampaignView) -> list[Figure]:
    """Return the figures of the page, in their order."""
    return [timeline(view), errors(view), above(view), costs(view)]


def timeline(view: CampaignView) -> Figure:
    """Return a bar for each stage of each cycle, from its first start to its last end."""
    groups: dict[str, list[tuple[CycleLine, StageRecord, datetime]]] = {}
    shown = view.cycles[-CYCLES_IN_TIMELINE:]
    for line in shown:
        for record in sorted(line.stages, key=lambda r: r.started or now()):
            if record.started is not None:
                end = record.finished or (now() if line.finished is None else record.started)
                groups.setdefault(_stage_name(record.stage), []).append((line, record, end))
    order = [*NAMES.values(), OTHERS]
    needed = 110 + 32 * max(len(shown), 2)
    traces = [_bars(name, groups[name]) for name in order if name in groups]
    return Figure(
        name="timeline",
        title="Timeline",
        traces=traces,
        layout={
            "barmode": "overlay",
            "bargap": 0.35,
            # With local midnight a reader in Sydney and one in Berlin would see other dates.
            "xaxis": axis("time (UTC)", type="date"),
            "yaxis": axis(
                "", type="category", autorange="reversed",
                categoryorder="array", categoryarray=[line.name for line in shown],
            ),
        },
        table=_timeline_table(shown),
        note="From the first start to the last end of the jobs of a stage; gaps are waiting."
        + (f" The newest {len(shown)} cycles." if len(shown) < len(view.cycles) else ""),
        empty="No job has started yet.",
        height=next((h for h in HEIGHTS if h >= needed), needed),
    )  # fmt: skip


def _stage_name(stage: Stage) -> str:
    return NAMES.get(stage, OTHERS)


def _bars(name: str, rows: list[tuple[CycleLine, StageRecord, datetime]]) -> dict[str, Any]:
    stage = next((stage for stage, text in NAMES.items() if text == name), None)
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "y": [line.name for line, _, _ in rows],
        "base": [_moment(record.started) for _, record, _ in rows],
        # Plotly measures bars on a date axis in milliseconds.
        "x": [_seconds(record, end) * 1000 for _, record, end in rows],
        "text": [
            f"{record.stage}: {words.duration(_seconds(record, end))}"
            f"{'' if record.finished else ' so far'}, "
            f"{words.count(record.n_done, 'job')} done"
            + (f", {record.n_failed} failed" if record.n_failed else "")
            for _, record, end in rows
        ],
        "textposition": "none",
        "hovertemplate": "%{y}<br>%{text}<extra></extra>",
        "marker": {"color": STAGE_COLOURS[stage] if stage else BROWN},
    }


def _seconds(record: StageRecord, end: datetime) -> float:
    return max((end - record.started).total_seconds(), 0.0) if record.started else 0.0


def _moment(moment: datetime | None) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] if moment else ""


def _timeline_table(cycles: Sequence[CycleLine]) -> Table:
    rows = []
    for line in cycles:
        for record in sorted(line.stages, key=lambda r: r.started or now()):
            wall = "not started"
            if record.started:
                wall = (
                    words.duration((record.finished - record.started).total_seconds())
                    if record.finished
                    else "running"
                )
            rows.append(
                [
                    line.name,
                    str(record.stage),
                    f"{record.started:%Y-%m-%d %H:%M:%S}" if record.started else "–",
                    wall,
                    f"{record.n_done} of {record.n_jobs}",
                    str(record.n_failed),
                ]
            )
    return Table(["cycle", "stage", "start (UTC)", "wall time", "jobs done", "failed"], rows)


def errors(view: CampaignView) -> Figure:
    """Return the force error on fresh and on audit labels over the cycles."""
    cycles = [line for line in view.cycles if line.kind == "cycle" and line.errors]
    traces = []
    for key, name, colour, marker, shift in SERIES:
        rows = [(line, line.errors[key]) for line in cycles if key in line.errors]
        if rows:
            traces.append(_with_intervals(rows, name, colour, marker, shift))
    line_, words_ = level(view.tolerance_eV_A, "tolerance")
    return Figure(
        name="errors",
        title="Force error of each cycle",
        traces=traces,
        layout={
            "xaxis": axis("cycle", dtick=1 if len(cycles) < 20 else None),
            "yaxis": axis("force RMSE (eV/Å)", rangemode="tozero"),
            "shapes": [line_],
            "annotations": [words_],
        },
        table=_error_table(cycles),
        note="Fresh labels were met with the model in use and unseen by it: mostly the frames it "
        "was least sure of, so they are harder than audit labels, which are drawn at random. "
        "Bars are 95 % bootstrap intervals over frames. Hollow: the new model was not promoted.",
        empty="No cycle has been judged yet.",
    )


def _with_intervals(
    rows: list[tuple[CycleLine, ErrorStatistics]],
    name: str,
    colour: str,
    marker: str,
    shift: float,
) -> dict[str, Any]:
    rmse = [error.force_rmse_eV_A for _, error in rows]
    rejected = [
        name.startswith("new") and line.verdict is not None and not line.verdict.promoted
        for line, _ in rows
    ]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": [line.cycle + shift for line, _ in rows],
        "y": rounded(rmse),
        "text": [
            f"{line.name}: {words.interval(error)} on {words.count(error.n_frames, 'label')}"
            + (", not promoted" if out else "")
            for (line, error), out in zip(rows, rejected, strict=True)
        ],
        "hovertemplate": "%{text}<extra>" + name + "</extra>",
        "error_y": {
            **error_bar(
                [error.force_rmse_low_eV_A for _, error in rows],
                rmse,
                [error.force_rmse_high_eV_A for _, error in rows],
            ),
            "color": colour,
        },
        "line": {"color": colour, "width": 1.6},
        "marker": {
            "color": colour,
            "size": 9,
            "symbol": [marker + ("-open" if out else "") for out in rejected],
        },
    }


def _error_table(cycles: Sequence[CycleLine]) -> Table:
    def cell(line: CycleLine, key: str) -> str:
        error = line.errors.get(key)
        return f"{words.interval(error)}, n = {error.n_frames}" if error else "–"

    verdicts = {True: "promoted", False: "rejected", None: "–"}
    return Table(
        ["cycle", *(name for _, name, *_ in SERIES), "new model"],
        [
            [
                str(line.cycle),
                *(cell(line, key) for key, *_ in SERIES),
                verdicts[line.verdict.promoted if line.verdict else None],
            ]
            for line in cycles
        ],
    )


def above(view: CampaignView) -> Figure:
    """Return the share of MD checks above the tolerance, per temperature and in all."""
    cycles = [line for line in view.cycles if line.fraction_above is not None]
    temperatures = sorted({k for line in cycles for k in line.fraction_above_by_K})
    limit = float(view.document.campaign["convergence"]["max_fraction_above"])
    traces: list[dict[str, Any]] = []
    for rank, kelvins in enumerate(temperatures if len(temperatures) > 1 else []):
        rows = [line for line in cycles if kelvins in line.fraction_above_by_K]
        traces.append(
            _share(
                [(line.cycle, line.fraction_above_by_K[kelvins]) for line in rows],
                f"{kelvins:g} K",
                {"color": PALETTE[rank % len(PALETTE)], "width": 1.4, "dash": "dot"},
            )
        )
    if cycles:
        rows_ = [(line.cycle, line.fraction_above or 0.0) for line in cycles]
        traces.append(_share(rows_, "all walkers", {"color": "--ink", "width": 2.2}))
    line_, words_ = level(100 * limit, "acceptable")
    return Figure(
        name="above",
        title="MD above the tolerance",
        traces=traces,
        layout={
            "xaxis": axis("cycle", dtick=1 if len(cycles) < 20 else None),
            "yaxis": axis("checks above the tolerance (%)", rangemode="tozero"),
            "shapes": [line_],
            "annotations": [words_],
        },
        table=Table(
            ["cycle", "all walkers", *(f"{k:g} K" for k in temperatures)],
            [
                [
                    str(line.cycle),
                    words.percent(line.fraction_above or 0.0),
                    *(
                        words.percent(line.fraction_above_by_K[k])
                        if k in line.fraction_above_by_K
                        else "–"
                        for k in temperatures
                    ),
                ]
                for line in cycles
            ],
        ),
        note=f"Share of MD checks at which the calibrated uncertainty of the worst atom was above "
        f"{view.tolerance_eV_A:g} eV/Å.",
        empty="No walker has finished yet.",
    )


def _share(rows: list[tuple[int, float]], name: str, line: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": [cycle for cycle, _ in rows],
        "y": rounded([100 * share for _, share in rows]),
        "hovertemplate": "cycle %{x}: %{y:.1f} %<extra>" + name + "</extra>",
        "line": line,
        "marker": {"size": 7, "color": line["color"]},
    }


def costs(view: CampaignView) -> Figure:
    """Return the core-hours of the labels of each cycle, and their sum with a forecast."""
    lines = [line for line in view.cycles if line.ledger.n_labels]
    names = [line.name for line in lines]
    sums, total = [], 0.0
    for line in lines:
        total += line.ledger.core_hours
        sums.append(total)
    traces: list[dict[str, Any]] = []
    if lines:
        traces = [
            {
                "type": "bar",
                "name": "each cycle",
                "x": names,
                "y": rounded([line.ledger.core_hours for line in lines]),
                "marker": {"color": ORANGE},
                "text": [
                    f"{words.count(line.ledger.n_calls, 'DFT run')}, "
                    f"{words.count(line.ledger.n_labels, 'label')}"
                    for line in lines
                ],
                "textposition": "none",
                "hovertemplate": "%{x}: %{y:.3g} core-hours<br>%{text}<extra></extra>",
            },
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": "sum",
                "x": names,
                "y": rounded(sums),
                "line": {"color": BLUE},
                "marker": {"size": 7},
                "hovertemplate": "up to %{x}: %{y:.3g} core-hours<extra></extra>",
            },
        ]
        if view.forecast and view.forecast.core_hours:
            most = total + view.forecast.core_hours
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": "at most",
                    "x": [names[-1], "forecast"],
                    "y": rounded([total, most]),
                    "line": {"color": BLUE, "dash": "dot"},
                    "marker": {"symbol": "circle-open", "size": 9},
                    "hovertemplate": "%{x}: at most %{y:.3g} core-hours in all<extra></extra>",
                }
            )
    return Figure(
        name="costs",
        title="DFT core-hours",
        traces=traces,
        layout={"xaxis": axis("", type="category"),
                "yaxis": axis("core-hours of DFT", rangemode="tozero")},
        table=Table(
            ["cycle", "labels", "reused", "DFT runs", "failed", "core-hours", "sum"],
            [
                [
                    line.name,
                    str(line.ledger.n_labels),
                    str(line.ledger.n_reused),
                    str(line.ledger.n_calls),
                    str(line.ledger.counts["failed"]),  # type: ignore[index]
                    number(line.ledger.core_hours),
                    number(so_far),
                ]
                for line, so_far in zip(lines, sums, strict=True)
            ],
        ),
        note=_cost_note(view),
        empty="No label has been asked for yet.",
    )  # fmt: skip


def _cost_note(view: CampaignView) -> str:
    budget = float(view.document.campaign["budget"]["max_core_hours"])
    note = f"Every try counts, failed ones too. Budget: {budget:g} core-hours."
    return f"{note} Forecast: {view.forecast.sentence}." if view.forecast else note
