"""Lengths and angles of a graph as CHGNet sees them, with their derivatives.

Everything that enters the network is a function of one number: a bond length or the angle of a
pair. So one derivative beside each value is all that is needed to pull back any number of
gradients to bond vectors. Both are computed in double precision, in which the derivative of the
cut-off polynomial does not cancel.

Basis functions: Gasteiger et al., ICLR 2020 (radial); Deng et al., Nature Machine Intelligence 5,
1031 (2023) (angular).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from otf_workflows.potentials.chgnet_forward import ACOS_MARGIN

if TYPE_CHECKING:
    from chgnet.model import CHGNet
    from torch import Tensor

    from otf_workflows.potentials.chgnet_graph import Graph


@dataclass(frozen=True)
class Basis:
    """Basis functions of bonds, short bonds and pairs of these, and derivatives.

    Attributes
    ----------
    radial, radial_slope
        Functions of the length of each bond, and derivatives (1/Å), shape (n_bonds, r), float32.
    short, short_slope
        The same with the cut-off of the bond graph, shape (n_short, r).
    angular, angular_slope
        Functions of the cosine of each pair, and derivatives, shape (n_pairs, a).
    cosines
        Of each pair, shape (n_pairs, 1), float64.
    units
        Bond vectors of length one, shape (n_bonds, 3), float64.
    lengths_A
        Bond lengths (Å), shape (n_bonds, 1), float64.
    bond_1, bond_2
        Bonds of each pair, shape (n_pairs,).
    sign
        Of each pair, shape (n_pairs, 1), float64.
    """

    radial: Tensor
    radial_slope: Tensor
    short: Tensor
    short_slope: Tensor
    angular: Tensor
    angular_slope: Tensor
    cosines: Tensor
    units: Tensor
    lengths_A: Tensor
    bond_1: Tensor
    bond_2: Tensor
    sign: Tensor


def expand(model: CHGNet, graph: Graph) -> Basis:
    """Return the basis of a graph."""
    expansion: Any = model.bond_basis_expansion
    vectors = torch.as_tensor(graph.vectors_A)
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    units = vectors / lengths
    bond_1, bond_2 = torch.as_tensor(graph.bond_1), torch.as_tensor(graph.bond_2)
    sign = torch.as_tensor(graph.sign)[:, None].to(units.dtype)
    products = units.index_select(0, bond_1) * units.index_select(0, bond_2)
    cosines = products.sum(dim=1, keepdim=True) * sign
    long_range, short_range = expansion.rbf_expansion_ag, expansion.rbf_expansion_bg
    fourier: Any = model.angle_basis_expansion.fourier_expansion
    radial, radial_slope = _bessel(long_range, lengths, _frequencies(long_range))
    short_lengths = lengths[: graph.n_short]
    short, short_slope = _bessel(short_range, short_lengths, _frequencies(short_range))
    angular, angular_slope = _fourier(fourier, cosines, _frequencies(fourier))
    return Basis(
        radial=radial.float(),
        radial_slope=radial_slope.float(),
        short=short.float(),
        short_slope=short_slope.float(),
        angular=angular.float(),
        angular_slope=angular_slope.float(),
        cosines=cosines,
        units=units,
        lengths_A=lengths,
        bond_1=bond_1,
        bond_2=bond_2,
        sign=sign,
    )


def pull_back(
    basis: Basis, *, radial: Tensor, short: Tensor | None, angular: Tensor | None
) -> Tensor:
    """Return derivatives by bond vectors (…/Å), shape (k, n_bonds, 3), float64.

    Parameters
    ----------
    basis
        What :func:`expand` returned.
    radial, short, angular
        Derivatives of k functions by the basis functions, each of shape (k, rows, functions);
        None for the last two if there are no angles.
    """
    by_length = (radial * basis.radial_slope).sum(dim=2).double()
    if short is not None:
        by_length[:, : short.shape[1]] += (short * basis.short_slope).sum(dim=2)
    slopes = by_length[:, :, None] * basis.units
    if angular is not None:
        by_cosine = (angular * basis.angular_slope).sum(dim=2).double()[:, :, None] * basis.sign
        unit_1 = basis.units.index_select(0, basis.bond_1)
        unit_2 = basis.units.index_select(0, basis.bond_2)
        cosine = basis.cosines * basis.sign
        for bond, toward, own in (
            (basis.bond_1, unit_2, unit_1),
            (basis.bond_2, unit_1, unit_2),
        ):
            direction = (toward - cosine * own) / basis.lengths_A.index_select(0, bond)
            for row, weight in zip(slopes, by_cosine, strict=True):
                row.index_add_(0, bond, weight * direction)
    return slopes


def push_forward(basis: Basis, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Return how lengths and cosines change along a change of bond vectors.

    Parameters
    ----------
    basis
        What :func:`expand` returned.
    directions
        Change of each bond vector (Å per unit), shape (n_bonds, 3), float64.

    Returns
    -------
    tuple
        Rates of lengths (Å per unit), shape (n_bonds, 1), and of cosines, shape (n_pairs, 1).
    """
    lengths = (basis.units * directions).sum(dim=1, keepdim=True)
    turned = (directions - basis.units * lengths) / basis.lengths_A
    cosines = torch.zeros_like(basis.cosines)
    for moved, still in ((basis.bond_1, basis.bond_2), (basis.bond_2, basis.bond_1)):
        products = turned.index_select(0, moved) * basis.units.index_select(0, still)
        cosines += products.sum(dim=1, keepdim=True) * basis.sign
    return lengths, cosines


def frequency_gradients(
    model: CHGNet,
    basis: Basis,
    rates: tuple[Tensor, Tensor],
    *,
    radial: Tensor,
    short: Tensor | None,
    angular: Tensor | None,
) -> list[tuple[Tensor, Tensor]]:
    """Return the trainable frequencies of the bases with derivatives by them.

    Parameters
    ----------
    model
        Whose bases they are.
    basis
        What :func:`expand` returned.
    rates
        What :func:`push_forward` returned.
    radial, short, angular
        Derivatives by the rates of the basis functions and by the functions themselves, each of
        shape (2, rows, functions); None for the last two if there are no angles.
    """
    expansion: Any = model.bond_basis_expansion
    fourier: Any = model.angle_basis_expansion.fourier_expansion
    lengths, cosines = rates
    wanted: list[tuple[Any, Any, Tensor, Tensor, Tensor | None]] = [
        (expansion.rbf_expansion_ag, _bessel, basis.lengths_A, lengths, radial),
        (expansion.rbf_expansion_bg, _bessel, basis.lengths_A, lengths, short),
        (fourier, _fourier, basis.cosines, cosines, angular),
    ]
    found = []
    for functions, expanded, inputs, changes, by in wanted:
        frequencies = functions.frequencies
        if by is None or not frequencies.requires_grad:
            continue
        rows = slice(by.shape[1])
        leaf = frequencies.detach().requires_grad_()
        with torch.enable_grad():  # nothing cancels in derivatives by frequencies
            value, slope = expanded(functions, inputs[rows].float(), leaf)
        outputs = [by[1], by[0] * changes[rows].float()]
        (gradient,) = torch.autograd.grad([value, slope], leaf, outputs)
        found.append((frequencies, gradient))
    return found


def _frequencies(functions: Any) -> Tensor:
    return functions.frequencies.detach().double()


def _bessel(radial: Any, lengths_A: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Return sin(f x) / r times the cut-off polynomial, and its derivative by r; x = r / r_cut."""
    x = lengths_A * radial.inv_cutoff
    phase = x * frequencies
    over_r = radial.norm_const / lengths_A
    envelope, envelope_slope = _envelope(radial.smooth_cutoff, lengths_A)
    wave = torch.sin(phase)
    slope = torch.cos(phase) * (frequencies * radial.inv_cutoff) * (over_r * envelope)
    slope += wave * (over_r * (envelope_slope - envelope / lengths_A))
    return wave * (over_r * envelope), slope


def _envelope(smooth: Any, lengths_A: Tensor) -> tuple[Tensor, Tensor]:
    p = smooth.p
    if p == 0:
        return torch.ones_like(lengths_A), torch.zeros_like(lengths_A)
    x = lengths_A / smooth.cutoff
    power = x ** (p - 1)
    value = 1 + power * x * (smooth.a + x * (smooth.b + x * smooth.c))
    slope = power * (p * smooth.a + x * ((p + 1) * smooth.b + x * ((p + 2) * smooth.c)))
    inside = x < 1
    return value * inside, slope * inside / smooth.cutoff


def _fourier(_: Any, cosines: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Return 1/√2, sin(f θ), cos(f θ), over √π, and their derivatives by cos θ."""
    inner = cosines * ACOS_MARGIN
    phase = torch.acos(inner) * frequencies
    by_cosine = -ACOS_MARGIN / torch.sqrt(1 - inner**2)
    sine, cosine = torch.sin(phase), torch.cos(phase)
    scale = 1 / math.sqrt(math.pi)
    value = torch.cat([torch.full_like(cosines, 1 / math.sqrt(2)), sine, cosine], dim=1)
    slope = torch.cat([torch.zeros_like(cosines), frequencies * cosine, -frequencies * sine], dim=1)
    return value * scale, slope * (by_cosine * scale)
