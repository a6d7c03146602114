"""Where walkers begin: the structure in cells of several shapes, and whatever else was asked for.

Starts are functions of the campaign alone, so that each cycle finds the same ones: walker ``w``
takes start ``w`` modulo their number, in every cycle, and its trajectory is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from otf_workflows.errors import InputError
from otf_workflows.exploration.cells import cell_shapes
from otf_workflows.schemas import Frame

if TYPE_CHECKING:
    from otf_workflows.campaign import Campaign, Start


def starting_frames(campaign: Campaign) -> list[Frame]:
    """Return all structures that walkers and seeds take turns in.

    The structure comes first, in ``exploration.cell_shapes`` shapes (or as many as there are),
    then the ``exploration.starts`` in their order.

    Raises
    ------
    InputError
        If an element of which an atom is to be removed is not there, or nothing would be left.
    """
    shapes = shapes_of(campaign)
    return [
        *shapes,
        *(
            _made(start, shapes[0], number=number, seed=campaign.seed)
            for number, start in enumerate(campaign.exploration.starts)
        ),
    ]


def shapes_of(campaign: Campaign) -> list[Frame]:
    """Return the campaign's structure in its cell shapes, the usual supercell first."""
    rules = campaign.exploration
    # A grid of k-points can be folded into those shapes only that divide its period.
    a, b, c = campaign.labels.get("kpoints") or (2, 2, 2)
    return cell_shapes(
        campaign.structure, rules.cell_shapes, supercell=rules.supercell, grid=(a, b, c)
    )


def _made(start: Start, usual: Frame, *, number: int, seed: int) -> Frame:
    """Return one start; random choices are those of the campaign's seed and the start's number."""
    rng = np.random.default_rng([seed, 3, number])
    atoms = (start.file or usual).to_atoms()
    if start.vacancy is not None:
        sites = [i for i, symbol in enumerate(atoms.symbols) if symbol == start.vacancy]
        if not sites or len(atoms) == 1:
            raise InputError(
                f"there is no {start.vacancy} to remove"
                if not sites
                else "nothing would be left of a cell of one atom",
                where=f"exploration.starts[{number}].vacancy",
                hint=f"elements of that structure: {', '.join(sorted(set(atoms.symbols)))}",
            )
        del atoms[int(rng.choice(sites))]
    if start.strain is not None:
        atoms.set_cell(atoms.cell.array * (1 + start.strain), scale_atoms=True)
    if start.rattle_A is not None:
        atoms.rattle(stdev=start.rattle_A, rng=rng)
    return Frame.from_atoms(atoms, purpose=usual.purpose)
