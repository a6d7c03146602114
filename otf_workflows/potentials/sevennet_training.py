"""SevenNet as the training loop sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otf_workflows.potentials import sevennet_network as net
from otf_workflows.potentials.trainable import Trainable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ase import Atoms
    from torch import Tensor

    from otf_workflows.potentials.chgnet_graph import Graph
    from otf_workflows.potentials.sevennet import SevenNetPotential


class TrainableSevenNet(Trainable):
    """A SevenNet network of one's own; free is what sevenn itself trains."""

    untrained = (net.RESCALE, *(f"{k}_convolution.denominator" for k in range(net.MOST_LAYERS)))

    def __init__(self, parts: net.Network, *, name: str) -> None:
        self.parts = parts
        super().__init__(parts.module, name=name)

    def build_graph(self, atoms: Atoms) -> Graph:
        """Return the bonds of one structure."""
        return net.build_graph(self.parts, atoms)

    def site_energies(self, graph: Graph, vectors_A: Tensor) -> Tensor:
        """Return site energies without reference energies."""
        return net.forward(self.parts, graph, vectors_A).site_energies_eV

    def randomise(self, *, seed: int) -> None:
        """Draw all weights as sevenn's constructor does."""
        self.parts = net.random(self.parts, seed=seed)
        self.network = self.parts.module
        self._free()

    def shift_energies(self, shifts_eV: Mapping[str, float]) -> None:
        """Add to the reference energies, which are part of sevenn's weights."""
        from ase.data import atomic_numbers

        rows, table = self.parts.shift_rows(), self.parts.module.z_to_onehot_tensor
        for symbol, shift in shifts_eV.items():
            rows[table[atomic_numbers[symbol]]] += shift

    def finish(self) -> SevenNetPotential:
        """Return the trained network as a potential."""
        from otf_workflows.potentials.sevennet import SevenNetPotential

        self.network.eval().requires_grad_(False)
        for parameter in self.network.parameters():
            parameter.grad = None
        return SevenNetPotential(self.parts, name=self.name)
