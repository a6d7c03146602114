"""Matplotlib figures as inline SVG that follows the page: its font, its colours, its dark mode.

Styles become presentation attributes, so that a strict content security policy needs no exception
and the style sheet of the page can recolour them; ids get a prefix, so that many figures can share
one page.
"""

from __future__ import annotations

import io
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure

INK = "#1a1a1a"
"""Colour of text and axes; becomes the text colour of the page."""
GRID = "#c9c9c9"
PAPER = "#fefefe"
PRETRAINED = "#d55e00"
FINAL = "#0072b2"
GOOD = "#009e73"
CYCLE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a6761d", "#56b4e9")
"""Colours of Okabe and Ito (2008) that differ for all kinds of colour vision."""

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FONT = re.compile(r"([\d.]+)px")

STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.formatter.use_mathtext": False,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.borderaxespad": 0.2,
    "legend.columnspacing": 1.2,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.5,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "otf-workflows",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def drawing(width: float = 360.0, height: float = 270.0) -> Iterator[Figure]:
    """Yield an empty figure in our style.

    Parameters
    ----------
    width, height
        Size in units of the SVG; a column of a phone is about 360 wide, so fonts keep their size.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure as MplFigure

    with mpl.rc_context(rc=STYLE):  # type: ignore[arg-type]  # keys are checked when set
        yield MplFigure(figsize=(width / 72, height / 72), layout="constrained", dpi=72)


def inline_svg(figure: Figure, *, name: str, alt: str) -> str:
    """Return a figure as an ``<svg>`` element for HTML.

    Parameters
    ----------
    figure
        Drawn with :func:`drawing`.
    name
        Unique on the page; prefix of all ids.
    alt
        What it shows, for those who cannot see it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, dpi=170)
    root = ET.fromstring(buffer.getvalue())  # noqa: S314  # written by matplotlib just now
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    used = {match for element in root.iter() for match in _references(element)}
    for element in root.iter():
        _clean(element, prefix=name, used=used)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-label", alt)
    return ET.tostring(root, encoding="unicode")


def _references(element: ET.Element) -> list[str]:
    """Return the ids that an element points to."""
    found = [m for text in element.attrib.values() for m in _REFERENCE.findall(text)]
    link = element.get(_XLINK, "")
    return [*found, link[1:]] if link.startswith("#") else found


def _unfold(element: ET.Element) -> None:
    """Turn the style of an element into attributes; of its font only the size is kept."""
    for rule in element.attrib.pop("style", "").split(";"):
        key, _, content = (part.strip() for part in rule.partition(":"))
        if key == "font":
            if size := _FONT.search(content):
                element.set("font-size", size.group(1))
        elif key:
            element.set(key, content)


def _clean(element: ET.Element, *, prefix: str, used: set[str]) -> None:
    """Make one element fit for HTML: no namespace, no style, ids of our own."""
    element.tag = element.tag.replace(f"{{{_SVG}}}", "")
    if element.text and not element.text.strip() and element.tag not in {"text", "tspan"}:
        element.text = None
    if element.tail and not element.tail.strip():
        element.tail = None
    _unfold(element)
    link = element.attrib.pop(_XLINK, None)
    if link:
        element.set("href", f"#{prefix}-{link[1:]}" if link.startswith("#") else link)
    identity = element.attrib.pop("id", None)
    if identity in used:
        element.set("id", f"{prefix}-{identity}")
    for key, content in list(element.attrib.items()):
        content = _REFERENCE.sub(rf"url(#{prefix}-\1)", content)  # noqa: PLW2901
        if key in {"fill", "stroke"} and content.lower() == INK:
            content = "currentColor"  # noqa: PLW2901
        element.set(key, content)
