"""CHGNet as the training loop sees it."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import TYPE_CHECKING, cast

import torch

from otf_workflows.potentials import chgnet_forward as net
from otf_workflows.potentials import chgnet_fused as fused
from otf_workflows.potentials import chgnet_fused_training as fused_training
from otf_workflows.potentials.chgnet_graph import build_graph
from otf_workflows.potentials.trainable import Trainable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ase import Atoms
    from chgnet.model import CHGNet
    from chgnet.model.composition_model import AtomRef
    from torch import Tensor

    from otf_workflows.potentials.chgnet import CHGNetPotential
    from otf_workflows.potentials.chgnet_graph import Graph


class TrainableCHGNet(Trainable):
    """A copy of a chgnet model, all layers free.

    Moments are not fitted: their head stays as it was.
    """

    untrained = ("composition_model.", "site_wise.")
    network: CHGNet

    def __init__(self, network: CHGNet, *, name: str) -> None:
        super().__init__(copy.deepcopy(network), name=name)

    def build_graph(self, atoms: Atoms) -> Graph:
        """Return bonds and angles of one structure."""
        converter = self.network.graph_converter
        return build_graph(
            atoms,
            cutoff_A=converter.atom_graph_cutoff,
            bond_cutoff_A=converter.bond_graph_cutoff,
        )

    def site_energies(self, graph: Graph, vectors_A: Tensor) -> Tensor:
        """Return site energies of the reordered forward pass."""
        return net.forward(self.network, graph, vectors_A).site_energies_eV

    def evaluate(self, graph: Graph, *, differentiable: bool) -> tuple[Tensor, Tensor]:
        """Return site energies and slopes from the compiled passes where they serve."""
        if not fused.is_supported(self.network):
            return super().evaluate(graph, differentiable=differentiable)
        if differentiable:
            return fused_training.evaluate(self.network, graph)
        output = fused.Forward(fused.Network(self.network), graph)
        return output.site_energies_eV, output.slopes(net.last_weights(self.network)[None])[0]

    def randomise(self, *, seed: int) -> None:
        """Draw all weights as chgnet's constructor does."""
        self.network = _random(self.network, seed=seed)
        self._free()

    def shift_energies(self, shifts_eV: Mapping[str, float]) -> None:
        """Add to the reference energies, which are part of chgnet's weights."""
        from ase.data import atomic_numbers

        weight = cast("AtomRef", self.network.composition_model).fc.weight
        for symbol, shift in shifts_eV.items():
            weight.data[0, atomic_numbers[symbol] - 1] += shift

    def finish(self) -> CHGNetPotential:
        """Return the trained network as a potential."""
        from otf_workflows.potentials.chgnet import CHGNetPotential

        for parameter in self.network.parameters():
            parameter.grad = None
        return CHGNetPotential(self.network.eval(), name=self.name)


def _random(model: CHGNet, *, seed: int) -> CHGNet:
    """Return chgnet's network of the same architecture as its constructor draws it."""
    from chgnet.model import CHGNet

    # the constructor prints, and draws from the random stream of the caller
    with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = CHGNet(**model.model_args)
    cast("AtomRef", fresh.composition_model).fc.weight.data.zero_()
    return fresh.eval().to(model.bond_embedding.weight.device)
