"""What potentials with last-layer heads share, whatever their network: the derivatives.

Imports torch; reach it through :func:`otf_workflows.potentials.load_potential`.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import torch

from otf_workflows.errors import InputError
from otf_workflows.potentials.chgnet_graph import forces_on_atoms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ase import Atoms

    from otf_workflows.potentials.chgnet_graph import Graph


def head_forces(
    graph: Graph, hidden: torch.Tensor, vectors_A: torch.Tensor, heads: np.ndarray
) -> list[np.ndarray]:
    """Return J Δw of each head (eV/Å), each of shape (n, 3).

    Parameters
    ----------
    graph
        Bonds of all structures.
    hidden
        What enters the last, linear layer, in eV per weight, shape (n, d).
    vectors_A
        The bond vectors that ``hidden`` was computed from (Å).
    heads
        Changes of the last weights, shape (n_heads, d).
    """
    total = hidden.sum(dim=0)
    changes = torch.as_tensor(heads, dtype=total.dtype, device=total.device)
    forces = []
    for change in changes:
        (slope,) = torch.autograd.grad(total @ change, vectors_A, retain_graph=True)
        forces.append(forces_on_atoms(graph, slope.double().cpu().numpy()))
    return forces


def tilted_slope(
    sites_eV: torch.Tensor,
    hidden: torch.Tensor,
    vectors_A: torch.Tensor,
    heads: np.ndarray | None,
    slopes: Callable[[np.ndarray], np.ndarray],
) -> tuple[torch.Tensor, np.ndarray]:
    """Return the derivative by bond vectors of energy plus bias, and the head energies (eV).

    The energy of a head is linear in its weights, so by the chain rule the bias has the derivative
    of one more head, with the weights Σ slope × Δw: one backward pass for everything.

    Parameters
    ----------
    sites_eV
        Energy of each atom of one structure (eV), shape (n,).
    hidden, vectors_A, heads
        As of :func:`head_forces`.
    slopes
        Derivative of the bias by each head energy, as a function of the head energies (eV).

    Raises
    ------
    InputError
        If there are no heads.
    """
    if heads is None:
        raise InputError(
            "A model without uncertainty heads cannot be biased.",
            hint="fit its uncertainty to labels first",
        )
    total = hidden.sum(dim=0).double()
    energies = total.detach().cpu().numpy() @ heads.T
    tilt = torch.as_tensor(slopes(energies) @ heads, device=total.device)
    (slope,) = torch.autograd.grad(sites_eV.double().sum() + total @ tilt, vectors_A)
    return slope, energies


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
