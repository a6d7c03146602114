"""Whether one crystal has one energy in all cell shapes of a campaign.

Training sees labels of all shapes side by side, so a shape whose grid of k-points puts its
energies a few meV/atom off teaches a step that is not there. The ideal structure is computed in
every shape, and the spread is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from otf_workflows.labelers.base import Recipe, Resources
    from otf_workflows.schemas import Frame

ENERGY_LIMIT_EV_ATOM = 0.001
"""Largest spread of energies that is not worth a warning."""

PRESSURE_LIMIT_GPA = 0.2
GPA_PER_EV_A3 = 160.21766208


@dataclass(frozen=True)
class ShapeCheck:
    """The same crystal in several cells.

    Attributes
    ----------
    energies_eV_atom
        Energy per atom in each shape (eV).
    pressures_GPa
        Pressure in each shape (GPa); empty if the recipe has no stress.
    lengths_A
        Lengths of the lattice vectors of each shape (Å).
    """

    energies_eV_atom: tuple[float, ...]
    pressures_GPa: tuple[float, ...]
    lengths_A: tuple[tuple[float, ...], ...]

    @property
    def spread_eV_atom(self) -> float:
        """Largest minus smallest energy per atom (eV)."""
        return float(np.ptp(self.energies_eV_atom))

    @property
    def sentences(self) -> list[str]:
        """What was found and what to do, for a person."""
        if len(self.energies_eV_atom) == 1:
            return ["there is only one cell shape: nothing to compare"]
        pressure = np.ptp(self.pressures_GPa) if self.pressures_GPa else 0.0
        also = f", pressures within {pressure:.2f} GPa" if self.pressures_GPa else ""
        found = [
            (
                f"{len(self.energies_eV_atom)} shapes: energies of the ideal structure agree "
                f"within {1000 * self.spread_eV_atom:.2f} meV/atom{also}"
            )
        ]
        if self.spread_eV_atom > ENERGY_LIMIT_EV_ATOM or pressure > PRESSURE_LIMIT_GPA:
            mean = np.mean(self.energies_eV_atom)
            worst = int(np.argmax(np.abs(np.array(self.energies_eV_atom) - mean)))
            cell = " × ".join(f"{length:.2f}" for length in self.lengths_A[worst])
            found.append(
                f"that is too much to train on side by side, most off is the cell of {cell} Å: "
                "take more k-points, or with pw.x labels.kpoints instead of kspacing_per_A "
                "(folded into every shape), or set exploration.cell_shapes to 1"
            )
        return found


def check_shapes(
    frames: Sequence[Frame], recipe: Recipe, *, directory: Path, resources: Resources
) -> ShapeCheck:
    """Compute the same crystal in every shape.

    Parameters
    ----------
    frames
        The ideal structure in its shapes, all with the same number of atoms.
    recipe
        Level of theory.
    directory
        Folder for the calculations.
    resources
        Command and cores of the code.

    Raises
    ------
    LabelFailed
        If a calculation fails.
    """
    from otf_workflows.labelers import get_labeler

    labeler = get_labeler(recipe.code)
    results = [
        labeler.label(
            frame, recipe, key="0" * 16, directory=directory / str(number), resources=resources
        )
        for number, frame in enumerate(frames)
    ]
    stresses = [result.stress_eV_A3 for result in results if result.stress_eV_A3 is not None]
    lengths = (np.linalg.norm(frame.cell_A, axis=1) for frame in frames)
    return ShapeCheck(
        energies_eV_atom=tuple(r.energy_eV / r.frame.n_atoms for r in results),
        pressures_GPa=tuple(-GPA_PER_EV_A3 * float(np.trace(s)) / 3 for s in stresses),
        lengths_A=tuple(tuple(float(x) for x in row) for row in lengths),
    )
