"""The figures of the report, each from the data that it shows to an inline SVG.

A figure is one column of a phone wide. Legends stand above the axes, never on the data. Functions
return None where there is nothing to draw; the page then says so in words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.report.svg import (
    CYCLE_COLOURS,
    FINAL,
    GOOD,
    INK,
    PAPER,
    PRETRAINED,
    drawing,
    inline_svg,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from otf_workflows.report.model import (
        Coverage,
        Curve,
        CycleSummary,
        ParityTable,
        UncertaintyPoint,
    )
    from otf_workflows.schemas import ErrorStatistics, WalkerSegment

MAX_VECTOR_POINTS = 500
"""Scatter plots with more points are pixels, so that the page stays small."""
MAX_LINE_POINTS = 250
MIN_ENERGIES = 4
"""With fewer, little is left of energies once their mean is removed."""
DASHES = ("solid", "dashed", "dotted", "dashdot")


def force_parity(
    table: ParityTable | None,
    errors: ErrorStatistics | None,
    *,
    title: str,
    final: bool,
    limit_eV_A: float,
) -> str | None:
    """Return predicted against DFT force components.

    Parameters
    ----------
    table, errors
        One model on the audit labels.
    title
        Name of the model.
    final
        Whether it is the final model, which decides the colour.
    limit_eV_A
        Half-width of both axes, the same before and after.
    """
    if table is None:
        return None
    dft, predicted = (_flat(f) for f in (table.forces_dft_eV_A, table.forces_predicted_eV_A))
    with drawing(360, 340) as figure:
        axes = figure.add_subplot()
        _diagonal(axes, limit_eV_A)
        _scatter(axes, dft, predicted, colour=FINAL if final else PRETRAINED)
        axes.set(
            xlabel="DFT force component (eV/Å)",
            ylabel="predicted (eV/Å)",
            title=title,
            xlim=(-limit_eV_A, limit_eV_A),
            ylim=(-limit_eV_A, limit_eV_A),
            aspect="equal",
        )
        if errors:
            _note(axes, f"RMSE {errors.force_rmse_eV_A:.3f} eV/Å\nslope {errors.force_slope:.3f}")
        return inline_svg(
            figure,
            name=f"parity-{'after' if final else 'before'}",
            alt=f"Forces of {title} against DFT",
        )


def energy_parity(
    before: ParityTable | None, after: ParityTable | None, *, ended: bool
) -> str | None:
    """Return predicted against DFT energies per atom, the mean offset of each model removed.

    ``ended`` decides whether the second model is called the final one.
    """
    if before is None or after is None or len(after.keys) < MIN_ENERGIES:
        return None
    same = before.model_id == after.model_id
    tables = [(after, FINAL, "o")] if same else [(before, PRETRAINED, "s"), (after, FINAL, "o")]
    with drawing(360, 340) as figure:
        axes = figure.add_subplot()
        reach = 0.0
        for table, colour, marker in tables:
            dft = 1000 * np.array(table.energies_dft_eV_atom)
            predicted = 1000 * np.array(table.energies_predicted_eV_atom)
            x, y = dft - dft.mean(), predicted - predicted.mean()
            mae = float(np.abs(x - y).mean())
            reach = max(reach, float(np.abs([x, y]).max()))
            name = ("final" if ended else "in use") if table is after and not same else "pretrained"
            axes.scatter(
                x,
                y,
                s=22,
                marker=marker,
                color=colour,
                alpha=0.75,
                linewidths=0,
                label=f"{name}: MAE {mae:.1f} meV/atom",
            )
        reach *= 1.12
        _diagonal(axes, reach)
        axes.set(
            xlabel="DFT energy − mean (meV/atom)",
            ylabel="predicted − mean (meV/atom)",
            xlim=(-reach, reach),
            ylim=(-reach, reach),
            aspect="equal",
        )
        _legend(axes, 1)
        return inline_svg(figure, name="energies", alt="Energies per atom against DFT")


def learning_curve(cycles: Sequence[CycleSummary], *, tolerance_eV_A: float) -> str | None:
    """Return the force RMSE on audit and on fresh labels over the cycles."""
    judged = [c for c in cycles if c.kind == "cycle" and c.errors]
    if not judged:
        return None
    with drawing(360, 300) as figure:
        axes = figure.add_subplot()
        series = (
            ("pretrained/audit", "pretrained, audit", PRETRAINED, "s", -0.1),
            ("challenger/audit", "new model, audit", FINAL, "o", 0.0),
            ("incumbent/fresh", "model in use, fresh", GOOD, "^", 0.1),
        )
        for key, name, colour, marker, shift in series:
            rows = [(c.cycle + shift, c.errors[key]) for c in judged if key in c.errors]
            if rows:
                _error_bars(axes, rows, name=name, colour=colour, marker=marker)
        for cycle in judged:
            error = cycle.errors.get("challenger/audit")
            if error and cycle.promoted is False:
                axes.plot(
                    cycle.cycle,
                    error.force_rmse_eV_A,
                    "o",
                    mfc=PAPER,
                    mec=FINAL,
                    ms=6,
                    mew=1.5,
                    zorder=5,
                )
                axes.annotate(
                    "rejected",
                    (cycle.cycle, error.force_rmse_high_eV_A),
                    (0, 5),
                    textcoords="offset points",
                    ha="center",
                    fontsize=9,
                )
        axes.axhline(tolerance_eV_A, color=INK, ls="--", lw=1.0)
        axes.annotate(
            "tolerance",
            (1, tolerance_eV_A),
            (-2, 3),
            textcoords="offset points",
            xycoords=("axes fraction", "data"),
            ha="right",
            fontsize=9,
        )
        axes.set_xticks(
            [c.cycle for c in judged],
            [f"{c.cycle}\n({'?' if c.n_train is None else c.n_train})" for c in judged],
        )
        axes.set(xlabel="cycle (labels learned from)", ylabel="force RMSE (eV/Å)")
        axes.set_ylim(0, None)
        axes.set_xlim(judged[0].cycle - 0.5, judged[-1].cycle + 0.5)
        axes.grid(visible=False, axis="x")
        _legend(axes, 2)
        return inline_svg(figure, name="learning", alt="Force error over the cycles")


def uncertainty_against_error(
    points: Sequence[UncertaintyPoint], coverage: Coverage | None
) -> str | None:
    """Return the true error of the worst atom against its uncertainty, on logarithmic axes."""
    drawn = [p for p in points if p.sigma_eV_A > 0 and p.error_eV_A > 0]
    if not drawn:
        return None
    groups = (
        ("not calibrated yet", [p for p in drawn if not p.calibrated], "#8a8a8a", "x"),
        ("cycles", [p for p in drawn if p.calibrated and not p.production], FINAL, "o"),
        ("production", [p for p in drawn if p.calibrated and p.production], PRETRAINED, "D"),
    )
    values = [v for p in drawn for v in (p.sigma_eV_A, p.error_eV_A)]
    low, high = 0.7 * min(values), 1.4 * max(values)
    with drawing(360, 350) as figure:
        axes = figure.add_subplot()
        axes.plot([low, high], [low, high], color=INK, lw=1.0, ls="--")
        axes.fill_between([low, high], [low, high], [low, low], color=FINAL, alpha=0.08, lw=0)
        for name, group, colour, marker in groups:
            if group:
                axes.scatter(
                    [p.sigma_eV_A for p in group],
                    [p.error_eV_A for p in group],
                    s=26,
                    color=colour,
                    marker=marker,
                    alpha=0.85,
                    label=name,
                    linewidths=1.2 if marker == "x" else 0,
                )
        axes.set(
            xscale="log",
            yscale="log",
            xlim=(low, high),
            ylim=(low, high),
            aspect="equal",
            xlabel="uncertainty σ of the worst atom (eV/Å)",
            ylabel="true error of the worst atom (eV/Å)",
        )
        _plain_log(axes)
        if coverage:
            _note(axes, f"below the line: {coverage.measured:.0%}\n(meant: {coverage.nominal:.0%})")
        _legend(axes, 3)
        return inline_svg(figure, name="sigma", alt="True error against uncertainty")


def walker_uncertainty(
    segments: Sequence[WalkerSegment],
    *,
    cycle: int,
    tolerance_eV_A: float,
    timestep_fs: float,
    limits_eV_A: tuple[float, float],
) -> str | None:
    """Return the uncertainty along the walkers of one cycle.

    Parameters
    ----------
    segments
        The walkers.
    cycle
        For the title.
    tolerance_eV_A
        Drawn as the threshold.
    timestep_fs
        MD time step (fs).
    limits_eV_A
        Of the vertical axis, the same in all cycles.
    """
    drawn = [s for s in segments if s.sigmas_eV_A]
    if not drawn:
        return None
    temperatures = sorted({s.temperature_K for s in segments})
    seen: set[float] = set()
    with drawing(360, 225) as figure:
        axes = figure.add_subplot()
        for segment in drawn:
            rank = temperatures.index(segment.temperature_K)
            x, y = _thin(
                np.array(segment.steps) * timestep_fs / 1000, np.array(segment.sigmas_eV_A)
            )
            colour = CYCLE_COLOURS[rank % len(CYCLE_COLOURS)]
            axes.plot(
                x,
                y,
                color=colour,
                lw=1.2,
                ls=DASHES[rank // len(CYCLE_COLOURS) % 4],
                label=None if segment.temperature_K in seen else f"{segment.temperature_K:g} K",
            )
            if segment.n_steps < segment.n_steps_run:
                axes.plot(x[-1], y[-1], marker="X", color=colour, ms=8, mec=PAPER, mew=0.8)
            seen.add(segment.temperature_K)
        axes.axhline(tolerance_eV_A, color=INK, ls="--", lw=1.0)
        axes.set(
            yscale="log",
            ylim=limits_eV_A,
            xlabel="time (ps)",
            ylabel="σ (eV/Å)",
            title=f"Cycle {cycle}",
        )
        _plain_log(axes)
        axes.margins(x=0.02)
        axes.locator_params(axis="x", nbins=6)
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=min(len(seen), 3))
        return inline_svg(figure, name=f"walkers-{cycle}", alt=f"Uncertainty in cycle {cycle}")


def production_uncertainty(curve: Curve | None, *, tolerance_eV_A: float) -> str | None:
    """Return the uncertainty along the production run, with the tolerance."""
    if curve is None or not curve.x:
        return None
    with drawing(360, 225) as figure:
        axes = figure.add_subplot()
        axes.plot(*_thin(np.array(curve.x), np.array(curve.y)), color=FINAL, lw=1.1)
        axes.axhline(tolerance_eV_A, color=INK, ls="--", lw=1.0)
        axes.set(xlabel="time (ps)", ylabel="σ (eV/Å)")
        axes.set_ylim(0, 1.12 * max(*curve.y, tolerance_eV_A))
        axes.margins(x=0.02)
        return inline_svg(figure, name="production-sigma", alt="Uncertainty in production")


def production_temperature(curve: Curve | None, *, thermostat_K: float | None) -> str | None:
    """Return the instantaneous temperature along the production run."""
    if curve is None or not curve.x:
        return None
    with drawing(360, 225) as figure:
        axes = figure.add_subplot()
        stride = max(1, len(curve.x) // MAX_LINE_POINTS)
        axes.plot(curve.x[::stride], curve.y[::stride], color=PRETRAINED, lw=1.0)
        if thermostat_K is not None:
            axes.axhline(thermostat_K, color=INK, ls="--", lw=1.0)
        axes.set(xlabel="time (ps)", ylabel="temperature (K)")
        axes.margins(x=0.02)
        return inline_svg(figure, name="production-t", alt="Temperature in production")


def curves(
    drawn: Sequence[Curve],
    *,
    name: str,
    xlabel: str,
    ylabel: str,
    alt: str,
    level: float | None = None,
) -> str | None:
    """Return curves with their error bands.

    Parameters
    ----------
    drawn
        The curves; the band is ± one ``error``.
    name, xlabel, ylabel, alt
        Id, axes with units, description.
    level
        Height of a thin reference line.
    """
    if not drawn:
        return None
    with drawing(360, 280) as figure:
        axes = figure.add_subplot()
        if level is not None:
            axes.axhline(level, color=INK, lw=0.8, ls=":")
        for rank, curve in enumerate(drawn):
            colour = CYCLE_COLOURS[rank % len(CYCLE_COLOURS)]
            x, y = np.array(curve.x), np.array(curve.y)
            if curve.error is not None:
                error = np.array(curve.error)
                axes.fill_between(
                    x, np.maximum(y - error, 0), y + error, color=colour, alpha=0.25, lw=0
                )
            axes.plot(x, y, color=colour, ls=DASHES[rank % 4], label=curve.name)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_ylim(0, None)
        axes.margins(x=0)
        _legend(axes, 4)
        return inline_svg(figure, name=name, alt=alt)


def _flat(frames: list[Any]) -> np.ndarray:
    return np.concatenate([np.asarray(frame, dtype=float).ravel() for frame in frames])


def force_limit(*tables: ParityTable | None) -> float:
    """Return the half-width (eV/Å) that holds all forces of some tables."""
    sizes = [
        float(np.abs(_flat(forces)).max())
        for table in tables
        if table
        for forces in (table.forces_dft_eV_A, table.forces_predicted_eV_A)
    ]
    return 1.08 * max(sizes, default=1.0)


def sigma_limits(segments: Sequence[WalkerSegment], tolerance_eV_A: float) -> tuple[float, float]:
    """Return limits (eV/Å) of the uncertainties of all walkers; tiny ones are cut off."""
    values = [s for segment in segments for s in segment.sigmas_eV_A if s > 0]
    values.append(tolerance_eV_A)
    # A walker that starts from the perfect crystal begins near zero, which no log axis needs.
    return max(0.8 * min(values), tolerance_eV_A / 10), 1.25 * max(values)


def _scatter(axes: Axes, x: np.ndarray, y: np.ndarray, *, colour: str) -> None:
    dense = len(x) > MAX_VECTOR_POINTS
    axes.scatter(
        x,
        y,
        s=9 if dense else 13,
        color=colour,
        alpha=0.5 if dense else 0.65,
        linewidths=0,
        rasterized=dense,
    )


def _diagonal(axes: Axes, limit: float) -> None:
    axes.plot([-limit, limit], [-limit, limit], color=INK, lw=0.9, ls="--", zorder=1)
    axes.locator_params(nbins=6, min_n_ticks=3)


def _error_bars(
    axes: Axes,
    rows: Sequence[tuple[float, ErrorStatistics]],
    *,
    name: str,
    colour: str,
    marker: str,
) -> None:
    x = [place for place, _ in rows]
    y = np.array([e.force_rmse_eV_A for _, e in rows])
    below = y - [e.force_rmse_low_eV_A for _, e in rows]
    above = np.array([e.force_rmse_high_eV_A for _, e in rows]) - y
    axes.errorbar(
        x,
        y,
        yerr=np.maximum([below, above], 0),
        color=colour,
        marker=marker,
        ms=5,
        lw=1.3,
        elinewidth=1.0,
        capsize=2.5,
        label=name,
    )


def _note(axes: Axes, text: str) -> None:
    """Write into the upper left corner, which parity plots leave empty."""
    axes.text(0.04, 0.96, text, transform=axes.transAxes, va="top", linespacing=1.4)


def _legend(axes: Axes, columns: int) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns)


def _plain_log(axes: Axes) -> None:
    """Label logarithmic axes with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
        if scale == "log":
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
            axis.set_minor_formatter(NullFormatter())


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return at most :data:`MAX_LINE_POINTS` points, of every stretch the highest."""
    if len(x) <= MAX_LINE_POINTS:
        return x, y
    chunks = np.array_split(np.arange(len(x)), MAX_LINE_POINTS)
    chosen = np.array([chunk[np.argmax(y[chunk])] for chunk in chunks])
    return x[chosen], y[chosen]
