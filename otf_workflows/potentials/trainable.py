"""What a family of networks must offer so that the one training loop can train it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from otf_workflows.potentials.base import Potential

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ase import Atoms
    from torch import Tensor, nn

    from otf_workflows.potentials.chgnet_graph import Graph


class Trainable(ABC):
    """A network of one's own, with gradients switched on, on its way to a new potential.

    The training loop sees bonds, site energies and weights; it never learns which architecture it
    trains. Reference energies (the zero of each element) are solved for, not trained, and stay
    outside :meth:`site_energies`.

    Parameters
    ----------
    network
        The module; nobody else may use it.
    name
        Registry name of the potential it came from.
    """

    untrained: ClassVar[tuple[str, ...]] = ()
    """Starts of the names of parameters that are left alone."""

    def __init__(self, network: nn.Module, *, name: str) -> None:
        self.name = name
        self.network = network
        self._free()

    def _free(self) -> None:
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(not name.startswith(self.untrained))

    @abstractmethod
    def build_graph(self, atoms: Atoms) -> Graph:
        """Return the bonds of one structure, with the cutoffs of the network.

        Raises
        ------
        PotentialError
            If an atom has no neighbour: its energy would be meaningless.
        """

    @abstractmethod
    def site_energies(self, graph: Graph, vectors_A: Tensor) -> Tensor:
        """Return the energy of each atom (eV), reference energies left out, shape (n,).

        Differentiable by ``vectors_A`` (the bond vectors, Å) and by the weights, twice.
        """

    def evaluate(self, graph: Graph, *, differentiable: bool) -> tuple[Tensor, Tensor]:
        """Return site energies and their derivatives by bond vectors.

        This one goes twice through autograd; a family that knows a faster way overrides it.

        Parameters
        ----------
        graph
            One structure or several.
        differentiable
            Keep what is needed to differentiate both by the weights, once.

        Returns
        -------
        tuple
            Energy of each atom (eV), reference energies left out, shape (n,); derivatives of their
            sum (eV/Å), shape (n_bonds, 3).
        """
        import torch

        device = next(self.network.parameters()).device
        vectors = torch.as_tensor(graph.vectors_A, device=device).clone().requires_grad_()
        sites = self.site_energies(graph, vectors)
        (slopes,) = torch.autograd.grad(sites.sum(), vectors, create_graph=differentiable)
        return sites if differentiable else sites.detach(), slopes

    @abstractmethod
    def randomise(self, *, seed: int) -> None:
        """Replace all weights by random ones of the same architecture, reference energies by 0."""

    @abstractmethod
    def shift_energies(self, shifts_eV: Mapping[str, float]) -> None:
        """Add to the reference energy of each element (eV per atom), by symbol."""

    @abstractmethod
    def finish(self) -> Potential:
        """Return the network as a potential, without heads; it is not trained any further."""


@runtime_checkable
class TrainablePotential(Potential, Protocol):
    """A potential whose network can be trained; teaching and test potentials cannot."""

    def trainable(self) -> Trainable:
        """Return a copy of the network with gradients on, for the training loop."""
