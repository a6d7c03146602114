"""Atom graph and bond graph of CHGNet, straight from arrays.

chgnet builds one Python object per edge. Here each undirected bond is one row: bond ``u`` from
atom ``first[u]`` to ``second[u]`` stands for two directed edges, and each unordered pair of short
bonds that meet at an atom is one row for two ordered angles. Bonds are sorted (short ones first),
so that the result does not depend on anything but the structure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from otf_workflows.errors import InputError
from otf_workflows.potentials.base import PotentialError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from ase import Atoms


@dataclass(frozen=True)
class Graph:
    """Bonds and angles of one structure, or of several that do not touch each other.

    Attributes
    ----------
    numbers
        Atomic numbers, shape (n,).
    owners
        Structure of each atom, shape (n,).
    volumes_A3
        Volume of each structure (Å³), shape (n_structures,).
    first, second
        Atoms of each bond, shape (n_bonds,).
    vectors_A
        Vector from ``first`` to ``second`` (Å, float64), shape (n_bonds, 3).
    n_short
        Number of bonds in the bond graph; they are the first ones of each array.
    apex
        Atom of each pair of short bonds, shape (n_pairs,).
    bond_1, bond_2
        Its two bonds, shape (n_pairs,).
    sign
        −1 where one bond of the pair ends at the apex and the other starts there, else 1.
    """

    numbers: np.ndarray
    owners: np.ndarray
    volumes_A3: np.ndarray
    first: np.ndarray
    second: np.ndarray
    vectors_A: np.ndarray
    n_short: int
    apex: np.ndarray
    bond_1: np.ndarray
    bond_2: np.ndarray
    sign: np.ndarray

    @property
    def n_structures(self) -> int:
        """Number of structures."""
        return len(self.volumes_A3)

    def split(self, per_atom: np.ndarray) -> list[np.ndarray]:
        """Return an array over all atoms as one array per structure."""
        counts = np.bincount(self.owners, minlength=self.n_structures)
        return np.split(per_atom, np.cumsum(counts)[:-1])


def build_graph(atoms: Atoms, *, cutoff_A: float, bond_cutoff_A: float) -> Graph:
    """Return the graph of one structure.

    Parameters
    ----------
    atoms
        Structure with a cell.
    cutoff_A
        Longest bond (Å).
    bond_cutoff_A
        Longest bond that takes part in angles (Å).

    Raises
    ------
    InputError
        If there is no cell.
    PotentialError
        If positions are not finite, or an atom has no neighbour within ``cutoff_A``.
    """
    from pymatgen.optimization.neighbors import find_points_in_spheres

    positions = np.ascontiguousarray(atoms.get_positions(), dtype=float)
    cell = np.ascontiguousarray(atoms.cell.array, dtype=float)
    if not (np.isfinite(positions).all() and np.isfinite(cell).all()):
        raise PotentialError("Positions or cell are not finite: the structure has exploded.")
    volume_A3 = abs(np.linalg.det(cell))
    if volume_A3 < 1e-6:
        raise InputError(
            f"{atoms.get_chemical_formula()} has no cell.",
            hint="give all three lattice vectors; add vacuum around a molecule",
        )
    first, second, image, length_A = find_points_in_spheres(
        positions,
        positions,
        r=float(cutoff_A),
        pbc=np.ascontiguousarray(atoms.pbc, dtype=np.int64),
        lattice=cell,
        tol=1e-8,
    )
    image = image.astype(np.int64)
    # one of the two directions of each bond: the lower atom first, or the positive image
    half = (first < second) | ((first == second) & (_sign_of_first_nonzero(image) > 0))
    first, second, image, length_A = first[half], second[half], image[half], length_A[half]
    order = np.lexsort((*image.T, second, first, length_A >= bond_cutoff_A))
    first, second, image = first[order], second[order], image[order]
    n_short = int(np.count_nonzero(length_A < bond_cutoff_A))

    bonded = np.zeros(len(atoms), dtype=bool)
    bonded[first] = bonded[second] = True
    if not bonded.all():
        raise PotentialError(
            f"{np.count_nonzero(~bonded)} of {len(atoms)} atoms in {atoms.get_chemical_formula()} "
            f"have no neighbour within {cutoff_A:g} Å; the potential says nothing about them.",
            where=f"atom {np.flatnonzero(~bonded)[0]}",
        )
    apex, bond_1, bond_2, sign = _pairs(first[:n_short], second[:n_short])
    return Graph(
        numbers=atoms.numbers.astype(np.int64),
        owners=np.zeros(len(atoms), dtype=np.int64),
        volumes_A3=np.array([volume_A3]),
        first=first,
        second=second,
        vectors_A=positions[second] + image @ cell - positions[first],
        n_short=n_short,
        apex=apex,
        bond_1=bond_1,
        bond_2=bond_2,
        sign=sign,
    )


def join(graphs: Sequence[Graph]) -> Graph:
    """Return several graphs as one, with short bonds still first."""
    if len(graphs) == 1:
        return graphs[0]
    atom_offset = _offsets([len(g.numbers) for g in graphs])
    short_offset = _offsets([g.n_short for g in graphs])

    def bonds(name: str, offset: np.ndarray) -> np.ndarray:
        rows = [getattr(g, name) + o for g, o in zip(graphs, offset, strict=True)]
        return np.concatenate(
            [r[: g.n_short] for r, g in zip(rows, graphs, strict=True)]
            + [r[g.n_short :] for r, g in zip(rows, graphs, strict=True)]
        )

    def pairs(name: str, offset: np.ndarray) -> np.ndarray:
        return np.concatenate([getattr(g, name) + o for g, o in zip(graphs, offset, strict=True)])

    zero = np.zeros(len(graphs), dtype=np.int64)
    return Graph(
        numbers=pairs("numbers", zero),
        owners=pairs("owners", np.arange(len(graphs))),
        volumes_A3=np.concatenate([g.volumes_A3 for g in graphs]),
        first=bonds("first", atom_offset),
        second=bonds("second", atom_offset),
        vectors_A=bonds("vectors_A", zero),
        n_short=sum(g.n_short for g in graphs),
        apex=pairs("apex", atom_offset),
        bond_1=pairs("bond_1", short_offset),
        bond_2=pairs("bond_2", short_offset),
        sign=pairs("sign", zero),
    )


def forces_and_stress(
    graph: Graph, gradient_eV_A: torch.Tensor
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return what dE/d(bond vector) means for atoms and cells, in float64.

    Parameters
    ----------
    graph
        The graph of the bonds.
    gradient_eV_A
        Derivative of the energy by each bond vector (eV/Å), shape (n_bonds, 3).

    Returns
    -------
    tuple
        Forces (eV/Å) and virial stresses (eV/Å³, tension positive) of each structure.
    """
    slope = gradient_eV_A.double().cpu().numpy()
    owners, n = graph.owners[graph.first], graph.n_structures
    products = (graph.vectors_A[:, :, None] * slope[:, None, :]).reshape(-1, 9)
    columns = [np.bincount(owners, weights=column, minlength=n) for column in products.T]
    virials = np.stack(columns, axis=1).reshape(n, 3, 3)
    stresses = (virials + virials.transpose(0, 2, 1)) / (2 * graph.volumes_A3[:, None, None])
    return graph.split(forces_on_atoms(graph, slope)), list(stresses)


def forces_on_atoms(graph: Graph, slope_eV_A: np.ndarray) -> np.ndarray:
    """Return −dE/dr of all atoms (eV/Å), shape (n, 3), from dE/d(bond vector)."""
    n = len(graph.numbers)
    columns = [
        np.bincount(graph.first, weights=slope, minlength=n)
        - np.bincount(graph.second, weights=slope, minlength=n)
        for slope in slope_eV_A.T
    ]
    return np.stack(columns, axis=1)


def _offsets(counts: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)


def _sign_of_first_nonzero(image: np.ndarray) -> np.ndarray:
    weighted = np.sign(image) @ np.array([9, 3, 1])
    return np.sign(weighted)


def _pairs(
    first: np.ndarray, second: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return apex, bonds and relative sign of all unordered pairs of edges that leave an atom."""
    n = len(first)
    centre = np.concatenate([first, second])
    order = np.argsort(centre, kind="stable")
    centre, bond, outward = centre[order], order % n if n else order, order < n
    # edge k pairs with those after it that leave the same atom
    end = np.searchsorted(centre, centre, side="right")
    partners = end - np.arange(2 * n) - 1
    left = np.repeat(np.arange(2 * n), partners)
    right = left + 1 + np.arange(len(left)) - np.repeat(np.cumsum(partners) - partners, partners)
    sign = np.where(outward[left] == outward[right], 1, -1)
    return centre[left], bond[left], bond[right], sign
