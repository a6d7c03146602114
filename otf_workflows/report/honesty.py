"""How honest the uncertainty was: the reliability diagram of the report, and its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otf_workflows.report.svg import FINAL, INK, drawing, inline_svg

if TYPE_CHECKING:
    from otf_workflows.report.model import Coverage


def reliability_diagram(coverage: Coverage | None) -> str | None:
    """Return measured against promised shares of errors below multiples of σ.

    The bars are 95 % intervals of a share (Wilson 1927), which with few frames are wide.
    """
    from otf_workflows.honesty import wilson_interval

    if coverage is None or not coverage.levels:
        return None
    promised = [float(level) for level in coverage.levels]
    measured = [100 * share for share in coverage.levels.values()]
    intervals = [
        wilson_interval(round(share * coverage.n), coverage.n) for share in coverage.levels.values()
    ]
    below = [m - 100 * low for m, (low, _) in zip(measured, intervals, strict=True)]
    above = [100 * high - m for m, (_, high) in zip(measured, intervals, strict=True)]
    with drawing(360, 350) as figure:
        axes = figure.add_subplot()
        axes.plot([0, 100], [0, 100], color=INK, lw=1.0, ls="--")
        axes.fill_between([0, 100], [0, 100], [100, 100], color=FINAL, alpha=0.08, lw=0)
        axes.errorbar(
            promised,
            measured,
            yerr=[[max(b, 0.0) for b in below], [max(a, 0.0) for a in above]],
            color=FINAL,
            marker="o",
            ms=6,
            lw=1.3,
            capsize=2.5,
        )
        axes.set(
            xlim=(40, 100),
            ylim=(0, 102),
            xticks=promised,
            xlabel="promised share of errors below σ (%)",
            ylabel="measured share (%)",
        )
        return inline_svg(figure, name="reliability", alt="Measured against promised coverage")
