"""SevenNet as a potential with uncertainty: the extra ``sevennet`` of this package.

Imports torch; reach it through :func:`otf_workflows.potentials.load_potential`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Self

import torch

from otf_workflows import uncertainty as uq
from otf_workflows.potentials import chgnet_graph as graphs
from otf_workflows.potentials import headed
from otf_workflows.potentials import heads as last_layer
from otf_workflows.potentials import sevennet_network as net
from otf_workflows.potentials.headed import Evaluated, HeadedPotential
from otf_workflows.potentials.registry import check_elements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    import numpy as np
    from ase import Atoms

    from otf_workflows.potentials.sevennet_training import TrainableSevenNet

MAX_BONDS = 2_000
"""Bonds in one forward pass, each of which is two directed edges."""

_PARTNERS = {
    "sevennet-0": "sevennet-0-may2024",
    "sevennet-0-may2024": "sevennet-0",
    "sevennet-l3i5": "sevennet-0",
    "sevennet-mf-pbe": "sevennet-0",
    "sevennet-mf-r2scan": "sevennet-mf-pbe",
}
"""Which shipped model a model without heads is compared with; that of May 2024 saw other data."""


class SevenNetPotential(HeadedPotential):
    """A SevenNet network, with or without uncertainty heads.

    Parameters
    ----------
    network
        The network, frozen.
    name
        Registry name of what it was pretrained as.
    heads
        Changes of the last weights, shape (n_heads, d).
    spread
        The few directions in which heads differ, shape (r, d); by default all of them.
    latent
        Statistics of the features of the atoms it was trained on.
    force_share
        How much of the force counts as uncertain; None for σ of the heads alone.
    """

    def __init__(
        self,
        network: net.Network,
        *,
        name: str,
        heads: np.ndarray | None = None,
        spread: np.ndarray | None = None,
        latent: uq.LatentStatistics | None = None,
        force_share: float | None = None,
    ) -> None:
        super().__init__(
            name=name, heads=heads, spread=spread, latent=latent, force_share=force_share
        )
        self.network = network

    def trainable(self) -> TrainableSevenNet:
        """Return a copy of the network for the training loop."""
        from otf_workflows.potentials.sevennet_training import TrainableSevenNet

        return TrainableSevenNet(self.network.copy(), name=self.name)

    def dump(self) -> bytes:
        """Return everything as bytes that :func:`load` reads without running code from them."""
        weights = self.network.module.state_dict()
        network = {
            "config": self.network.config,
            "modality": self.network.modality,
            "state_dict": {k: v.detach().cpu() for k, v in weights.items()},
        }
        return self._dump(network)

    def _forward(self, graph: graphs.Graph) -> last_layer.Differentiable:
        forward = functools.partial(net.forward, self.network, graph)
        return last_layer.Differentiable(forward, graph, device=self.network.device)

    def _batches(self, structures: Sequence[Atoms]) -> Iterator[tuple[list[int], graphs.Graph]]:
        """Yield joined graphs in order, with the indices of their structures."""
        indices: list[int] = []
        parts: list[graphs.Graph] = []
        bonds = 0
        for index, atoms in enumerate(structures):
            check_elements(self.name, atoms.numbers)
            graph = net.build_graph(self.network, atoms)
            if parts and bonds + len(graph.first) > MAX_BONDS:
                yield indices, graphs.join(parts)
                indices, parts, bonds = [], [], 0
            indices.append(index)
            parts.append(graph)
            bonds += len(graph.first)
        if parts:
            yield indices, graphs.join(parts)

    def _passes(
        self, structures: Sequence[Atoms], *, with_heads: bool
    ) -> Iterator[tuple[list[int], Evaluated]]:
        changes = self.spread if with_heads else None
        for indices, graph in self._batches(structures):
            with self._inference():
                output = self._forward(graph)
                (slope,) = torch.autograd.grad(
                    output.site_energies_eV.double().sum(),
                    output.vectors_A,
                    retain_graph=changes is not None,
                )
                sigma = None
                if changes is not None:
                    sigma = uq.sigma_of_directions(last_layer.head_forces(graph, output, changes))
            yield indices, Evaluated(graph, output, slope, sigma)

    def _tilted(
        self, graph: graphs.Graph, changes: np.ndarray, slopes: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[Evaluated, np.ndarray]:
        with self._inference():
            output = self._forward(graph)
            total = output.hidden.sum(dim=0).double()
            head_energies = total.detach().cpu().numpy() @ changes.T
            tilt = torch.as_tensor(slopes(head_energies) @ changes, device=total.device)
            energy = output.site_energies_eV.double().sum() + total @ tilt
            (slope,) = torch.autograd.grad(energy, output.vectors_A)
        return Evaluated(graph, output, slope), head_energies

    def _references_eV(self, graph: graphs.Graph) -> torch.Tensor:
        return self.network.reference_energies_eV(graph)

    def _last_weights(self) -> torch.Tensor:
        return self.network.last_weights()

    def _n_features(self) -> int:
        return self.network.n_features

    def _partner(self) -> SevenNetPotential:
        return load(_PARTNERS[self.name], device=str(self.network.device))

    def _with_heads(self, changes: np.ndarray) -> Self:
        return type(self)(self.network, name=self.name, heads=changes)

    def _inference(self) -> AbstractContextManager[None]:
        return last_layer.flush_denormals()


def load(name: str, blob: bytes | None = None, *, device: str = "cpu") -> SevenNetPotential:
    """Return a shipped model, or one that was dumped.

    Raises
    ------
    InputError
        If the blob is of another potential than ``name``.
    PotentialError
        If the blob is damaged or something else.
    """
    if blob is None:
        return SevenNetPotential(_shipped(name, device), name=name)
    content, fitted = headed.read(name, blob)
    network = net.build(content["config"], content["state_dict"], content["modality"])
    return SevenNetPotential(network.to(device), name=name, **fitted)


@functools.lru_cache(maxsize=2)
def _shipped(name: str, device: str) -> net.Network:
    # building one takes as long as twenty steps of MD, and nobody changes it
    return net.shipped(name).to(device)
