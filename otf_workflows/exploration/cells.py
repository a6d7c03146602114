"""Cells of one size and several shapes, so that small labels see what a large cell needs.

A cell of a few atoms knows only those wave vectors that fit into it. Displacements of all others,
which a large production cell is full of, never occur in its labels. Supercells of the same size
but another shape hold other wave vectors (non-diagonal supercells: Lloyd-Williams and Monserrat,
Phys. Rev. B 92, 184301, 2015), at the same price for each label.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.errors import InputError
from otf_workflows.lattices import contains, hermite, representatives, sublattices
from otf_workflows.schemas import Frame

if TYPE_CHECKING:
    from ase import Atoms

SYMPREC_A = 1e-3
"""Atoms nearer than this to where a symmetry puts them count as there (Å)."""

MAX_INDEX = 64
"""Most primitive cells in a supercell whose shapes are listed: 10,795 sublattices."""


def cell_shapes(
    frame: Frame,
    n_shapes: int,
    *,
    supercell: tuple[int, int, int] = (1, 1, 1),
    grid: tuple[int, int, int] = (2, 2, 2),
) -> list[Frame]:
    """Return supercells of the same size in several shapes, the usual one first.

    Only shapes whose wave vectors belong to ``grid`` times the usual cell are taken. Two things
    follow: with the same grid of k-points in the usual cell, all shapes can be computed at the
    same points, so that their energies agree; and the wave vectors of a production cell of that
    size are met one after the other. Shapes that a symmetry of the crystal makes the same are
    listed once. Each next one is that which adds most wave vectors not met yet; among equals the
    most compact one.

    Parameters
    ----------
    frame
        The campaign's structure, ideal or not: with fewer symmetries there are more shapes.
    n_shapes
        How many are wanted; there may be fewer.
    supercell
        Repeats of the structure in the usual cell.
    grid
        Repeats of the usual cell that hold all shapes.

    Returns
    -------
    list[Frame]
        At most ``n_shapes`` frames with the same number of atoms; lattice vectors are
        Minkowski-reduced and not rotated.

    Raises
    ------
    InputError
        If the usual cell has more than :data:`MAX_INDEX` primitive cells, and shapes are wanted.
    """
    usual = frame.to_atoms().repeat(supercell)
    first = Frame.from_atoms(usual, origin=frame.origin, purpose=frame.purpose)
    if n_shapes == 1:
        return [first]
    primitive, rotations = _primitive(frame.to_atoms())
    own = np.rint(usual.cell.array @ np.linalg.inv(primitive.cell.array)).astype(int)
    index = abs(round(np.linalg.det(own)))
    if index > MAX_INDEX:
        raise InputError(
            f"the cell of the walkers has {index} primitive cells; shapes are listed up to "
            f"{MAX_INDEX}",
            where="exploration.cell_shapes",
            hint="so large a cell needs no other shapes: set it to 1",
        )
    whole = np.diag(grid) @ own
    lattices = _inequivalent(hermite(own), whole, index=index, rotations=rotations)
    ranked = _ranked(lattices, whole, primitive.cell.array, rotations=rotations)
    others = [_supercell(primitive, lattice) for lattice in ranked[1:n_shapes]]
    return [
        first,
        *(Frame.from_atoms(a, origin=frame.origin, purpose=frame.purpose) for a in others),
    ]


def _primitive(atoms: Atoms) -> tuple[Atoms, np.ndarray]:
    """Return the primitive cell, as oriented in the structure, and its rotations.

    Rotations act on fractional coordinates as columns, shape (n, 3, 3).
    """
    import spglib
    from ase import Atoms as AseAtoms

    given = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    found = spglib.standardize_cell(given, to_primitive=True, no_idealize=True, symprec=SYMPREC_A)
    if found is None:
        raise InputError(
            "the symmetry of the structure cannot be determined",
            where="structure",
            hint="check it for atoms given twice, or set exploration.cell_shapes to 1",
        )
    cell, positions, numbers = found
    primitive = AseAtoms(numbers=numbers, cell=cell, scaled_positions=positions, pbc=True)
    if not contains(primitive.cell.array, atoms.cell.array):
        raise RuntimeError("spglib's primitive cell is not one of the structure as oriented")
    symmetry: Any = spglib.get_symmetry(found, symprec=SYMPREC_A)
    return primitive, np.unique(symmetry["rotations"], axis=0)


def _inequivalent(
    own: np.ndarray, whole: np.ndarray, *, index: int, rotations: np.ndarray
) -> list[np.ndarray]:
    """Return the sublattices between the primitive lattice and ``whole``, ``own`` first.

    Of those that a rotation turns into each other one is kept.
    """
    candidates = [own, *(s for s in sublattices(index) if contains(s, whole))]
    kept: list[np.ndarray] = []
    seen: set[bytes] = set()
    for candidate in candidates:
        if candidate.tobytes() in seen:
            continue
        kept.append(candidate)
        seen.update(hermite(candidate @ rotation.T).tobytes() for rotation in rotations)
    return kept


def _ranked(
    lattices: list[np.ndarray], whole: np.ndarray, cell_A: np.ndarray, *, rotations: np.ndarray
) -> list[np.ndarray]:
    """Return the lattices in the order of what each adds; the first stays the first."""
    vectors = representatives(whole.T) @ np.linalg.inv(whole).T
    stars = _stars(vectors, rotations, denominator=abs(round(np.linalg.det(whole))))
    sizes = np.bincount(stars)
    holds = [np.unique(stars[_commensurate(vectors, lattice)]) for lattice in lattices]
    spread = [float((_reduced(lattice @ cell_A) ** 2).sum()) for lattice in lattices]
    order, met = [0], set(holds[0].tolist())
    left = list(range(1, len(lattices)))
    while left:
        gains = {i: int(sizes[[s for s in holds[i] if s not in met]].sum()) for i in left}
        best = min(left, key=lambda i: (-gains[i], round(spread[i], 6), i))
        order.append(best)
        left.remove(best)
        met.update(holds[best].tolist())
    return [lattices[i] for i in order]


def _stars(vectors: np.ndarray, rotations: np.ndarray, *, denominator: int) -> np.ndarray:
    """Return for each wave vector a number that all its images by symmetry share.

    Time reversal counts as a symmetry: a displacement pattern is real.
    """
    counts = np.rint(vectors * denominator).astype(int)
    images = np.stack(
        [(sign * counts @ rotation) % denominator for rotation in rotations for sign in (1, -1)]
    )
    names = (images * [denominator**2, denominator, 1]).sum(axis=-1).min(axis=0)
    return np.unique(names, return_inverse=True)[1]


def _commensurate(vectors: np.ndarray, lattice: np.ndarray) -> np.ndarray:
    """Return which wave vectors fit into a supercell."""
    phases = vectors @ lattice.T
    return np.abs(phases - np.rint(phases)).max(axis=1) < SYMPREC_A


def _reduced(cell_A: np.ndarray) -> np.ndarray:
    from ase.geometry import minkowski_reduce

    return minkowski_reduce(cell_A)[0]


def _supercell(primitive: Atoms, lattice: np.ndarray) -> Atoms:
    """Return the supercell with reduced, right-handed lattice vectors, atoms sorted by element."""
    from ase.build import make_supercell, sort
    from ase.geometry import minkowski_reduce

    _, operation = minkowski_reduce(lattice @ primitive.cell.array)
    rows = operation @ lattice
    if np.linalg.det(rows @ primitive.cell.array) < 0:
        rows = -rows
    atoms = make_supercell(primitive, rows)
    atoms.wrap()
    return sort(atoms, tags=atoms.numbers)
