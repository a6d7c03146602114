"""What all figures share: colours, axes with units, thinning, and the table beside the plot.

A figure names no colour of text, grid or paper, and reference lines are painted with a variable
of the page's style sheet, so that one figure is readable in light and in dark. Curves are in
colours after Okabe and Ito (2008), which differ for all kinds of colour vision, toned to stand
out on white and on black alike; marker shapes and dashes differ too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

MAX_POINTS = 2000
"""Most points of one figure, all curves together."""

BLUE, ORANGE, GREEN, PINK, BROWN, SKY = (
    "#3a8fd0",
    "#e0701a",
    "#12a37a",
    "#cc79a7",
    "#a97b2c",
    "#56b4e9",
)
PALETTE = (BLUE, ORANGE, GREEN, PINK, BROWN, SKY)
NEUTRAL = "--faint"
"""Of reference lines and of what is not calibrated: a colour of the page."""
DASHES = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True)
class Table:
    """The numbers of a figure, or the statistics of a cloud of points.

    Attributes
    ----------
    columns
        Headings with units.
    rows
        Cells as they are to be read.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """One plot.

    Attributes
    ----------
    name
        Last part of its address; also keeps zoom and hidden curves over updates.
    title
        Heading on the page.
    traces
        Plotly's ``data``; empty if there is nothing to draw yet.
    layout
        Plotly's ``layout`` without colours and fonts.
    table
        The numbers for those without JavaScript.
    note
        How to read it, in a sentence or two.
    empty
        What to say if there is nothing to draw.
    height
        Height of the plot in CSS pixels.
    """

    name: str
    title: str
    traces: Sequence[dict[str, Any]] = ()
    layout: dict[str, Any] = field(default_factory=dict)
    table: Table | None = None
    note: str = ""
    empty: str = "Nothing to draw yet."
    height: int = 320

    def to_plotly(self) -> dict[str, Any]:
        """Return ``{"data", "layout"}`` as ``Plotly.react`` takes it."""
        layout = {
            "margin": {"l": 62, "r": 14, "t": 12, "b": 48},
            "height": self.height,
            "showlegend": sum("name" in trace for trace in self.traces) > 1,
            # Above the axes: a legend never lies on data.
            "legend": {
                "orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom",
            },
            "hovermode": "closest",
            "dragmode": "zoom",
            "uirevision": self.name,
        }  # fmt: skip
        return {"data": list(self.traces), "layout": {**layout, **self.layout}}

    @property
    def n_points(self) -> int:
        """Points of all curves."""
        return sum(len(trace.get("x", ())) for trace in self.traces)


def axis(title: str, **more: Any) -> dict[str, Any]:
    """Return an axis with a title that names its unit."""
    shown = {"text": title, "standoff": 8, "font": {"size": 13}}
    return {"title": shown, "automargin": True, "zeroline": False, **more}


def log_axis(title: str, low: float, high: float, **more: Any) -> dict[str, Any]:
    """Return a logarithmic axis between two values, with plain numbers at 1, 2 and 5."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    steps = (1, 2, 5) if np.log10(high / low) < 4 else (1,)
    ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
    return axis(
        title,
        type="log",
        range=[float(f"{np.log10(end):.4f}") for end in (low, high)],
        tickmode="array",
        tickvals=ticks,
        ticktext=[f"{tick:g}" for tick in ticks],
        **more,
    )


def level(
    value: float, text: str, *, horizontal: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a dashed reference line and its inscription, for ``shapes`` and ``annotations``."""
    along, across = ("x", "y") if horizontal else ("y", "x")
    line = {
        "type": "line",
        f"{along}ref": "paper", f"{along}0": 0, f"{along}1": 1,
        f"{across}ref": across, f"{across}0": value, f"{across}1": value,
        "line": {"color": NEUTRAL, "width": 1.5, "dash": "dash"},
    }  # fmt: skip
    words = {
        f"{along}ref": "paper", along: 1, f"{across}ref": across, across: value,
        "text": text, "showarrow": False, "xanchor": "right" if horizontal else "left",
        "yanchor": "bottom" if horizontal else "top", "font": {"size": 11},
        "bgcolor": "--paper", "opacity": 0.85, "borderpad": 1,
    }  # fmt: skip
    return line, words


def thin(x: ArrayLike, y: ArrayLike, *, n_most: int) -> tuple[list[float], list[float]]:
    """Return at most ``n_most`` points of a curve, of every stretch the lowest and the highest.

    Peaks of an uncertainty are what it is looked at for, so no mean and no stride may lose them.

    Parameters
    ----------
    x, y
        The curve, shape (n,).
    n_most
        Most points to keep; at least 2.
    """
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(xs) > n_most:
        stretches = np.array_split(np.arange(len(xs)), max(n_most // 2, 1))
        kept = {int(part[pick(ys[part])]) for part in stretches for pick in (np.argmin, np.argmax)}
        chosen = np.array(sorted(kept))
        xs, ys = xs[chosen], ys[chosen]
    return rounded(xs), rounded(ys)


def rounded(values: ArrayLike, digits: int = 5) -> list[float]:
    """Return numbers with so many significant digits, which is all that a plot can show."""
    return [float(f"{value:.{digits}g}") for value in np.asarray(values, dtype=float)]


def error_bar(low: Sequence[float], mid: Sequence[float], high: Sequence[float]) -> dict[str, Any]:
    """Return Plotly's ``error_y`` from the ends of intervals."""
    return {
        "type": "data",
        "symmetric": False,
        "array": rounded([max(h - m, 0.0) for h, m in zip(high, mid, strict=True)]),
        "arrayminus": rounded([max(m - lo, 0.0) for lo, m in zip(low, mid, strict=True)]),
        "thickness": 1.2,
        "width": 4,
    }


def diagonal(x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """Return a dashed line through points, the place where both axes agree."""
    return {
        "type": "scatter", "mode": "lines", "x": rounded(x), "y": rounded(y),
        "line": {"color": NEUTRAL, "width": 1.2, "dash": "dash"},
        "hoverinfo": "skip", "showlegend": False,
    }  # fmt: skip


def band(
    x: Sequence[float], y: Sequence[float], error: Sequence[float], *, colour: str
) -> list[dict[str, Any]]:
    """Return ± one error around a curve as two invisible lines with a filled space between."""
    low = [a - e for a, e in zip(y, error, strict=True)]
    high = [a + e for a, e in zip(y, error, strict=True)]
    shared: dict[str, Any] = {
        "x": list(x), "type": "scatter", "mode": "lines", "line": {"width": 0},
        "hoverinfo": "skip", "showlegend": False,
    }  # fmt: skip
    return [
        {**shared, "y": rounded(low)},
        {**shared, "y": rounded(high), "fill": "tonexty", "fillcolor": translucent(colour)},
    ]


def translucent(colour: str, opacity: float = 0.2) -> str:
    """Return a colour ``#rrggbb`` as ``rgba(...)``."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number for a table; a dash if there is none."""
    return "–" if value is None else f"{value:.{digits}g}"
