"""A structure as a small SVG picture: drawn on the server, without JavaScript, seen at once.

A page with a dozen 3D canvases is slow on machines without a graphics card, and empty without
JavaScript. So a gallery shows these; a picture that somebody points at becomes a 3D view with the
same direction of sight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from otf_workflows.schemas import Frame

MAX_ATOMS = 300
"""Larger structures have no still picture: it would be a cloud, and long to send."""
BOND = 1.15
"""Atoms nearer than this × the sum of their covalent radii are joined by a line."""
SCALE = 0.42
"""Radius of a ball over the covalent radius."""
EDGES = [(i, j) for i in range(8) for j in range(i + 1, 8) if (i ^ j).bit_count() == 1]
"""Edges of a cell whose corners are numbered by the bits of their fractions."""


def view_rotation() -> np.ndarray:
    """Return the direction of sight as a rotation, shape (3, 3): −70° about x, then 20° about y.

    ``static/structures.js`` turns its view in the same way.
    """
    tilt, turn = np.radians(-70.0), np.radians(20.0)
    about_x = np.array(
        [[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]
    )
    about_y = np.array(
        [[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]]
    )
    return about_y @ about_x


def still(frame: Frame, *, name: str, words: str) -> Markup | None:
    """Return a picture of a structure as an ``<svg>`` element; None if it has too many atoms.

    Parameters
    ----------
    frame
        The structure; atoms are shown inside the cell.
    name
        Unique on the page; prefix of ids.
    words
        What it shows, for those who cannot see it.
    """
    from ase.data import chemical_symbols, covalent_radii
    from ase.data.colors import jmol_colors

    if frame.n_atoms > MAX_ATOMS:
        return None
    cell = np.array(frame.cell_A)
    fractions = np.linalg.solve(cell.T, np.array(frame.positions_A).T).T
    places = (fractions - np.floor(fractions + 1e-7)) @ cell
    corners = np.array([[i & 1, i >> 1 & 1, i >> 2 & 1] for i in range(8)]) @ cell
    seen = view_rotation()
    centre = corners.mean(axis=0)
    atoms, box = (places - centre) @ seen.T, (corners - centre) @ seen.T
    radii = covalent_radii[frame.numbers]

    shapes: list[tuple[float, str]] = []
    for i, j in EDGES:
        shapes.append((float(box[[i, j], 2].mean()), _line(box[i], box[j], "edge", 0.05)))
    for i, j in _bonds(places, radii):
        shapes.append(
            (float(atoms[[i, j], 2].mean()) - 1e-3, _line(atoms[i], atoms[j], "bond", 0.2))
        )
    for number, (x, y, z), radius in zip(frame.numbers, atoms, radii, strict=True):
        ball = (
            f'<circle cx="{x:.2f}" cy="{-y:.2f}" r="{SCALE * radius:.2f}" '
            f'fill="url(#{escape(name)}-{chemical_symbols[number]})"/>'
        )
        shapes.append((float(z), ball))
    reach = np.concatenate([box[:, :2], atoms[:, :2]])
    low, high = reach.min(axis=0) - 1.0, reach.max(axis=0) + 1.0
    gradients = "".join(
        _gradient(f"{escape(name)}-{chemical_symbols[number]}", jmol_colors[number])
        for number in sorted(set(frame.numbers))
    )
    # The far ones first.
    drawn = "".join(shape for _, shape in sorted(shapes, key=lambda item: item[0]))
    return Markup(  # noqa: S704 - numbers and escaped words only
        f'<svg class="still" role="img" aria-label="{escape(words)}" '
        f'viewBox="{low[0]:.2f} {-high[1]:.2f} {high[0] - low[0]:.2f} {high[1] - low[1]:.2f}">'
        f"<defs>{gradients}</defs>{drawn}</svg>"
    )


def _bonds(places: np.ndarray, radii: np.ndarray) -> list[tuple[int, int]]:
    """Return pairs of atoms that touch; bonds through the walls of the cell are left out."""
    apart = np.linalg.norm(places[:, None] - places[None], axis=2)
    near = apart < BOND * (radii[:, None] + radii[None])
    return [(int(i), int(j)) for i, j in np.argwhere(np.triu(near, k=1))]


def _line(first: np.ndarray, second: np.ndarray, kind: str, width: float) -> str:
    return (
        f'<line class="{kind}" x1="{first[0]:.2f}" y1="{-first[1]:.2f}" '
        f'x2="{second[0]:.2f}" y2="{-second[1]:.2f}" stroke-width="{width}"/>'
    )


def _gradient(name: str, colour: np.ndarray) -> str:
    """Return a ball's shading: light from the upper left."""
    light, dark = colour + 0.55 * (1 - colour), 0.62 * colour
    stops = zip((0, 0.55, 1), (light, colour, dark), strict=True)
    return (
        f'<radialGradient id="{name}" cx="0.35" cy="0.32" r="0.75">'
        + "".join(f'<stop offset="{at}" stop-color="{_hex(shade)}"/>' for at, shade in stops)
        + "</radialGradient>"
    )


def _hex(colour: np.ndarray) -> str:
    return "#" + "".join(f"{round(255 * float(part)):02x}" for part in np.clip(colour, 0, 1))
