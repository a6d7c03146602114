"""Frames for cycle 0, made without dynamics: rattled and strained copies of the structure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from otf_workflows.schemas import Frame, Origin
from otf_workflows.types import Purpose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.campaign import Seeding

SHEAR_SHARE = 0.5
"""Largest off-diagonal strain, in units of the largest linear strain."""


def seed_frames(
    starts: Sequence[Frame],
    *,
    rules: Seeding,
    seed: int,
    origin: Origin,
) -> list[Frame]:
    """Return rattled and strained copies of the starts, which take turns.

    The linear strains go evenly from the largest compression to the largest expansion, so that
    equation of state and stress are pinned from both sides; each copy gets its own small shear.
    A single copy is not strained.

    Parameters
    ----------
    starts
        Where walkers begin: the structure in all its cell shapes, and others.
    rules
        Section ``seeding`` of the campaign.
    seed
        Same seed, same frames.
    origin
        Campaign and cycle; a note on how each frame was made is added.

    Returns
    -------
    list[Frame]
        ``rules.n_frames`` frames with :attr:`Purpose.SEED`.
    """
    rng = np.random.default_rng(seed)
    n = rules.n_frames
    strains = np.linspace(-rules.strain, rules.strain, n) if n > 1 else np.zeros(n)
    frames = []
    for number, strain in enumerate(strains):
        atoms = starts[number % len(starts)].to_atoms()
        shear = np.triu(rng.uniform(-1, 1, (3, 3)), k=1) * SHEAR_SHARE * rules.strain
        # A symmetric strain has no rotation in it.
        deformation = np.eye(3) * (1 + strain) + (shear + shear.T) / 2
        atoms.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
        if rules.rattle_A > 0:
            atoms.rattle(stdev=rules.rattle_A, rng=rng)
        note = f"seed: rattled {rules.rattle_A:g} Å, linear strain {strain:+.3f}, sheared"
        frames.append(
            Frame.from_atoms(
                atoms, origin=origin.model_copy(update={"note": note}), purpose=Purpose.SEED
            )
        )
    return frames
