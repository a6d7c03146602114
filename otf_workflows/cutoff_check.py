"""Whether the cut-off of a recipe is high enough for forces, energies and, above all, stress.

A plane-wave basis changes with the cell, so stress at a low cut-off is wrong by the Pulay stress
(Francis and Payne, 1990, 10.1088/0953-8984/2/19/007) long after forces are right: LiF at 50 Ry is
off by 40 GPa, while silicon is right at 24 Ry. Two frames are computed at the cut-off and at a
higher one, and the differences are told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from otf_workflows.errors import InputError
from otf_workflows.labelers.espresso_recipe import EspressoRecipe
from otf_workflows.types import Purpose

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from otf_workflows.labelers.base import Recipe, Resources
    from otf_workflows.schemas import Frame, LabelResult

FACTOR = 1.5
"""Higher over lower cut-off."""
STRESS_LIMIT_GPA = 1.0
"""Largest change of a stress component that a label may be trained with."""
FORCE_LIMIT_EV_A = 0.05
ENERGY_LIMIT_EV_ATOM = 0.005
RATTLE_A = 0.05
COMMAND = "otf validate CAMPAIGN.YAML --cutoff-check"
"""How a person starts the measurement."""


@dataclass(frozen=True)
class CutoffCheck:
    """What changes with a higher cut-off.

    Attributes
    ----------
    cutoffs_Ry
        The recipe's cut-off, and the higher one (Ry).
    energy_change_eV_atom
        Change of the energy difference of the two frames, per atom (eV).
    force_change_eV_A
        Largest change of a force component (eV/Å).
    stress_change_GPa
        Largest change of a stress component (GPa).
    """

    cutoffs_Ry: tuple[float, float]
    energy_change_eV_atom: float
    force_change_eV_A: float
    stress_change_GPa: float

    @property
    def sentences(self) -> list[str]:
        """What was found and what to do, for a person."""
        low, high = self.cutoffs_Ry
        found = [
            (
                f"from {low:g} to {high:g} Ry: energy differences change by "
                f"{1000 * self.energy_change_eV_atom:.1f} meV/atom, forces by up to "
                f"{self.force_change_eV_A:.3f} eV/Å, stress by up to "
                f"{self.stress_change_GPa:.2f} GPa"
            )
        ]
        if (
            self.force_change_eV_A > FORCE_LIMIT_EV_A
            or self.energy_change_eV_atom > ENERGY_LIMIT_EV_ATOM
        ):
            found.append(f"forces or energies are not converged: raise cutoff_Ry above {low:g}")
        if self.stress_change_GPa > STRESS_LIMIT_GPA:
            found.append(
                f"stress cannot be trusted: set use_stress: false, or cutoff_Ry to {high:g} or more"
            )
        return found if len(found) > 1 else [*found, "the cut-off is high enough, stress included"]


def advice(recipe: Recipe, numbers: Sequence[int]) -> tuple[str, str | None] | None:
    """Return what to know of a recipe's cut-off before any run, and what to do about it.

    Parameters
    ----------
    recipe
        Level of theory.
    numbers
        Atomic numbers.

    Returns
    -------
    tuple of str or None
        A sentence, and the command that measures it if there is reason to; None if the code has no
        cut-off that can be checked.

    Raises
    ------
    OtfError
        If a pseudopotential is missing.
    """
    if not isinstance(recipe, EspressoRecipe):
        return None
    files = recipe.files(numbers)
    wanted = {symbol: file.cutoff_Ry for symbol, file in files.items() if file.cutoff_Ry}
    if not wanted:
        return (
            f"{recipe.cutoff_Ry:g} Ry; the pseudopotentials suggest none",
            f"measure it on your structure: {COMMAND}" if recipe.use_stress else None,
        )
    hardest = max(wanted, key=lambda symbol: wanted[symbol] or 0.0)
    least_Ry = wanted[hardest] or 0.0
    words = f"{recipe.cutoff_Ry:g} Ry, the pseudopotential of {hardest} suggests {least_Ry:.0f} Ry"
    if recipe.cutoff_Ry >= least_Ry or not recipe.use_stress:
        return words, None
    return (
        f"{words}: stress cannot be trusted unless you have measured it",
        f"{COMMAND}; then raise labels.cutoff_Ry, or set labels.use_stress: false",
    )


def check_cutoff(
    frame: Frame, recipe: Recipe, *, directory: Path, resources: Resources
) -> CutoffCheck:
    """Compute a frame and a rattled copy of it at the recipe's cut-off and at a higher one.

    Parameters
    ----------
    frame
        Structure.
    recipe
        Level of theory; its code must have a ``cutoff_Ry``.
    directory
        Folder for the four calculations.
    resources
        Command and cores of the code.

    Raises
    ------
    InputError
        If the code has no plane-wave cut-off.
    LabelFailed
        If a calculation fails.
    """
    low = getattr(recipe, "cutoff_Ry", None)
    if recipe.code != "espresso" or low is None:
        raise InputError(
            f"the cut-off is checked for espresso, not for {recipe.code}", where="labels.code"
        )
    density = getattr(recipe, "density_cutoff_Ry", None)
    higher = {"cutoff_Ry": FACTOR * low, "use_stress": True}
    if density:
        higher["density_cutoff_Ry"] = FACTOR * density
    recipes = [recipe.model_copy(update={"use_stress": True}), recipe.model_copy(update=higher)]
    atoms = frame.to_atoms()
    atoms.rattle(RATTLE_A, seed=0)
    frames = [frame, type(frame).from_atoms(atoms, purpose=Purpose.SEED)]
    found = [
        [_label(f, r, directory / f"{n}-{i}", resources) for i, f in enumerate(frames)]
        for n, r in enumerate(recipes)
    ]
    (a, b), (c, d) = found
    pairs = [(a, c), (b, d)]
    difference = (b.energy_eV - a.energy_eV) - (d.energy_eV - c.energy_eV)
    return CutoffCheck(
        cutoffs_Ry=(low, FACTOR * low),
        energy_change_eV_atom=abs(difference) / frame.n_atoms,
        force_change_eV_A=max(_change(x.forces_eV_A, y.forces_eV_A) for x, y in pairs),
        stress_change_GPa=160.21766208
        * max(_change(x.stress_eV_A3, y.stress_eV_A3) for x, y in pairs),
    )


def _label(frame: Frame, recipe: Recipe, folder: Path, resources: Resources) -> LabelResult:
    from otf_workflows.labelers import get_labeler

    return get_labeler(recipe.code).label(
        frame, recipe, key="0" * 16, directory=folder, resources=resources
    )


def _change(before: list | None, after: list | None) -> float:
    return float(np.abs(np.array(before) - np.array(after)).max())
