"""Energies, forces and stresses that can be differentiated by the weights, for training.

Graphs and forward pass are those of inference, of whatever family; one derivative by the bond
vectors gives forces and stress together. For CHGNet, a training step on a CPU costs a quarter to a
third of one with chgnet's own classes (``benchmarks/training.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from otf_workflows.alignment import GPA_PER_EV_A3
from otf_workflows.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase import Atoms
    from torch import Tensor

    from otf_workflows.potentials.chgnet_graph import Graph
    from otf_workflows.potentials.trainable import Trainable


def build_graphs(
    trainable: Trainable, structures: Sequence[Atoms], *, names: Sequence[str]
) -> list[Graph]:
    """Return one graph for each structure, with the cutoffs of the network.

    Parameters
    ----------
    trainable
        The network.
    structures
        Periodic structures.
    names
        What to call each structure in an error.

    Raises
    ------
    InputError
        If an atom has no neighbour within the cutoff: its energy would be meaningless.
    """
    from otf_workflows.potentials.base import PotentialError

    graphs = []
    for atoms, name in zip(structures, names, strict=True):
        try:
            graphs.append(trainable.build_graph(atoms))
        except PotentialError as error:
            raise InputError(
                f"A label cannot be trained on: {error.what}",
                where=f"label {name}",
                hint=f"otf labels show {name}",
            ) from error
    return graphs


def energy_force_stress(
    trainable: Trainable, graphs: Sequence[Graph], *, differentiable: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the network, without its reference energies, says of a batch.

    Parameters
    ----------
    trainable
        The network.
    graphs
        The structures of the batch.
    differentiable
        Keep what is needed to differentiate all three by the weights.

    Returns
    -------
    tuple
        Energy per atom (eV), shape (structures,); forces (eV/Å), shape (atoms, 3); stress (GPa),
        tension positive, shape (structures, 3, 3).
    """
    import torch

    from otf_workflows.potentials.chgnet_graph import join

    graph = join(graphs)
    like = next(trainable.network.parameters())

    def tensor(array: object, dtype: torch.dtype | None = None) -> Tensor:
        return torch.as_tensor(array, dtype=dtype, device=like.device)

    sites, slope = trainable.evaluate(graph, differentiable=differentiable)
    slope = slope.to(like.dtype)
    owners, first, second = (tensor(x) for x in (graph.owners, graph.first, graph.second))
    n_atoms = torch.bincount(owners, minlength=graph.n_structures)
    energies = sites.new_zeros(graph.n_structures).index_add(0, owners, sites) / n_atoms
    # vectors point from first to second
    forces = slope.new_zeros(len(graph.numbers), 3)
    forces = forces.index_add(0, first, slope).index_add(0, second, -slope)
    products = tensor(graph.vectors_A, like.dtype)[:, :, None] * slope[:, None, :]
    virials = slope.new_zeros(graph.n_structures, 3, 3).index_add(0, owners[first], products)
    stresses = virials * (GPA_PER_EV_A3 / tensor(graph.volumes_A3, like.dtype))[:, None, None]
    return energies, forces, stresses
