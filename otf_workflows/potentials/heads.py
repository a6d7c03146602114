"""What potentials with last-layer heads share, whatever their network: passes and derivatives.

Imports torch; reach it through :func:`otf_workflows.potentials.load_potential`.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from otf_workflows.errors import InputError
from otf_workflows.potentials.chgnet_graph import forces_on_atoms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ase import Atoms
    from torch import Tensor

    from otf_workflows.potentials.chgnet_graph import Graph

HEADS_AT_ONCE = 8
"""Derivatives that are pulled back together; more need more memory and gain nothing."""


@dataclass(frozen=True)
class Output:
    """What a network gives, for all atoms of all structures in the graph.

    Attributes
    ----------
    site_energies_eV
        Energy of each atom without its reference energy (eV), shape (n,).
    features
        What enters the readout, shape (n, d).
    hidden
        What enters its last, linear layer, in eV per weight, shape (n, d').
    """

    site_energies_eV: Tensor
    features: Tensor
    hidden: Tensor


class Pass(Protocol):
    """One forward pass, and what it left to differentiate it."""

    site_energies_eV: Tensor
    features: Tensor
    hidden: Tensor

    def slopes(self, changes: Tensor) -> Tensor:
        """Return derivatives of Σ hidden · change by bond vectors.

        Parameters
        ----------
        changes
            Weights of the last layer, or changes of them, shape (k, d').

        Returns
        -------
        torch.Tensor
            Shape (k, n_bonds, 3), float64.
        """


class Differentiable:
    """One forward pass on any device and in any precision, differentiated by autograd.

    Parameters
    ----------
    forward
        Gives the output of a network from bond vectors (Å).
    graph
        One structure or several.
    device
        Where the network is.

    Attributes
    ----------
    site_energies_eV, features, hidden
        As in :class:`Output`.
    vectors_A
        The bond vectors to differentiate by (Å).
    """

    def __init__(
        self, forward: Callable[[Tensor], Output], graph: Graph, *, device: torch.device
    ) -> None:
        self.vectors_A = torch.as_tensor(graph.vectors_A, device=device).requires_grad_()
        output = forward(self.vectors_A)
        self.site_energies_eV = output.site_energies_eV
        self.features = output.features
        self.hidden = output.hidden

    def slopes(self, changes: Tensor) -> Tensor:
        """Return derivatives of Σ hidden · change by bond vectors, (k, n_bonds, 3), float64."""
        total = self.hidden.sum(dim=0)
        rows = [
            torch.autograd.grad(total @ change, self.vectors_A, retain_graph=True)[0]
            for change in changes
        ]
        return torch.stack(rows).double()


def head_forces(graph: Graph, output: Pass, changes: np.ndarray) -> np.ndarray:
    """Return J Δw of changes of the last weights (eV/Å), shape (n_changes, n, 3).

    Parameters
    ----------
    graph
        Bonds of all structures.
    output
        A forward pass of that graph.
    changes
        Of the last weights, shape (n_changes, d').
    """
    rows = torch.as_tensor(changes, dtype=output.hidden.dtype, device=output.hidden.device)
    return np.array(
        [
            forces_on_atoms(graph, slope)
            for part in rows.split(HEADS_AT_ONCE)
            for slope in output.slopes(part).cpu().numpy()
        ]
    )


def check_labels(structures: Sequence[Atoms], forces_eV_A: Sequence[np.ndarray]) -> None:
    """Refuse forces that do not fit their structures.

    Raises
    ------
    InputError
        Naming the structure.
    """
    if len(structures) != len(forces_eV_A):
        raise InputError(f"{len(structures)} structures, but {len(forces_eV_A)} sets of forces.")
    for index, (atoms, forces) in enumerate(zip(structures, forces_eV_A, strict=True)):
        if np.shape(forces) != (len(atoms), 3):
            raise InputError(
                f"Forces of shape {np.shape(forces)} do not fit {len(atoms)} atoms.",
                where=f"structure {index}",
            )


@contextlib.contextmanager
def flush_denormals() -> Iterator[None]:
    """Flush denormals; put the setting back afterwards.

    Gradients near the cut-off are full of denormal numbers, which cost a third of the time and
    change no digit of the forces.
    """
    flushing = torch.full((1,), 1e-310, dtype=torch.float64).mul(1.0).item() == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushing)
