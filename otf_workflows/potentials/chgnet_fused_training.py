"""Gradients of a training loss by the weights of CHGNet on a CPU, without autograd.

A loss depends on the weights through site energies e and their derivatives s by bond vectors v,
in which forces and stress are linear. With c and u, the derivatives of the loss by these,

    dL/dw = d/dw [Σ c e + u · dE/dv],    E = Σ e.

The last term is the rate of E along the change u of the bond vectors. So a second forward pass
carries the rate of each feature along u beside the values that the first one left, and one way
back pulls two derivatives through both: those by the rates, which are the ordinary ones of E, and
those by the values, which take the curvature of each activation with them. Nothing is
approximated. (A difference of two displaced gradients would be simpler, but straight angles of an
ideal crystal bend it at the smallest displacement, and four more passes cost more than two.)

This is forward-over-reverse differentiation (Pearlmutter, Neural Computation 6, 147 (1994)),
written out for gated layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from otf_workflows.potentials import chgnet_basis as bases
from otf_workflows.potentials import chgnet_forward as net
from otf_workflows.potentials import chgnet_kernels as kernels
from otf_workflows.potentials import chgnet_training_kernels as both
from otf_workflows.potentials.chgnet_fused import (
    Forward,
    Network,
    Rows,
    State,
    Tape,
    shared_part,
)

if TYPE_CHECKING:
    from chgnet.model import CHGNet
    from torch import Tensor

    from otf_workflows.potentials.chgnet_graph import Graph
    from otf_workflows.potentials.chgnet_layers import Layer


def evaluate(model: CHGNet, graph: Graph) -> tuple[Tensor, Tensor]:
    """Return site energies and their derivatives, differentiable by the weights, once.

    Parameters
    ----------
    model
        A chgnet model for which ``is_supported`` is true, in evaluation mode.
    graph
        One structure or several.

    Returns
    -------
    tuple
        Energy of each atom without its reference energy (eV), shape (n,); derivatives of their
        sum by bond vectors (eV/Å), shape (n_bonds, 3), float64.
    """
    network = Network(model, differentiable=True)
    arranged = [
        value
        for layer in (*network.atom_convs, *network.bond_convs, *network.angle_updates)
        for value in layer.tensors()
    ]
    return _Evaluation.apply(network, graph, *arranged, *_ungated(model))


def _ungated(model: Any) -> list[Tensor]:
    """Return the weights in front of the gated layers and behind them."""
    expansion, fourier = model.bond_basis_expansion, model.angle_basis_expansion.fourier_expansion
    front = [model.bond_embedding, model.bond_weights_ag, model.bond_weights_bg]
    modules = [model.atom_embedding.embedding, *front, model.angle_embedding, model.mlp]
    modules += [] if model.readout_norm is None else [model.readout_norm]
    return [
        expansion.rbf_expansion_ag.frequencies,
        expansion.rbf_expansion_bg.frequencies,
        fourier.frequencies,
        *(weight for module in modules for weight in module.parameters()),
    ]


class _Evaluation(torch.autograd.Function):
    """The compiled passes as one operation of autograd."""

    @staticmethod
    def forward(ctx: Any, network: Network, graph: Graph, *weights: Tensor) -> Any:
        """Return energies and slopes, and keep both passes."""
        ctx.set_materialize_grads(False)
        ctx.weights = weights
        ctx.passes = _Passes(network, graph)
        (slopes,) = ctx.passes.slopes(net.last_weights(network.model)[None])
        # What is returned knows this operation. If the passes held it too, they would hold
        # themselves, and tens of megabytes of each step would wait for the garbage collector.
        return ctx.passes.site_energies_eV.detach(), slopes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_sites: Tensor | None, by_slopes: Tensor | None) -> Any:
        """Return derivatives by all weights; None for those that nothing depends on."""
        found = ctx.passes.gradients(by_sites, by_slopes)
        return None, None, *(found.get(id(weight)) for weight in ctx.weights)


class _Kind(StrEnum):
    """What a gated layer updates."""

    ATOMS = "atoms"
    BONDS = "bonds"
    ANGLES = "angles"


@dataclass
class _Kept:
    """A gated layer with what entered it, the rates of that, and derivatives by its weights."""

    kind: _Kind
    layer: Layer
    before: State
    by: Layer
    rates: State
    tape: Tape = field(default_factory=list)
    total: Any = None
    rate_tape: Tape = field(default_factory=list)
    total_rates: Any = None


class _Passes(Forward):
    """The ordinary pass there and back, then one of rates there, and one of both back."""

    def __init__(self, network: Network, graph: Graph) -> None:
        self._kept: list[_Kept] = []
        self._held: dict[str, Tensor] = {}
        self._species = torch.as_tensor(graph.numbers - 1)
        super().__init__(network, graph)
        for kept, tape in zip(self._kept, self._tapes, strict=True):
            kept.tape = tape

    def gradients(self, by_sites: Tensor | None, by_slopes: Tensor | None) -> dict[int, Tensor]:
        """Return derivatives of a loss by the weights, by ``id`` of each weight.

        Parameters
        ----------
        by_sites
            Derivatives by site energies, shape (n,); None for zeros.
        by_slopes
            Derivatives by slopes, shape (n_bonds, 3), float64; None for zeros.
        """
        if by_sites is None:
            by_sites = torch.zeros_like(self.site_energies_eV)
        if by_slopes is None:
            by_slopes = torch.zeros_like(self._basis.units)
        self._found: dict[int, Tensor] = {}
        geometry = bases.push_forward(self._basis, by_slopes)
        start = self._start_rates(*geometry)
        end = replace(start)
        for kept in self._kept:
            self._push(kept, end)
        state = State(
            atoms=self._through_readout(by_sites, end.atoms),
            bonds=torch.zeros_like(end.bonds).repeat(2, 1, 1),
            angles=torch.zeros_like(end.angles).repeat(2, 1, 1),
            bond_weights=torch.zeros_like(end.bond_weights).repeat(2, 1, 1),
            pair_weights=torch.zeros_like(end.pair_weights).repeat(2, 1, 1),
        )
        for kept in reversed(self._kept):
            self._pull(kept, state)
            tensors = zip(kept.layer.tensors(), kept.by.tensors(), strict=True)
            self._found |= {id(weight): gradient for weight, gradient in tensors}
        self._to_bases(geometry, state)
        return self._found

    def _room(self, name: str, *shape: int) -> Tensor:
        """Return memory that the last block no longer needs; fresh pages cost a tenth of a step."""
        size = math.prod(shape)
        if name not in self._held or len(self._held[name]) < size:
            self._held[name] = torch.empty(size)
        return self._held[name][:size].view(shape)

    def _keep(self, kind: _Kind, layer: Layer, state: State) -> None:
        before = replace(state)
        self._kept.append(_Kept(kind, layer, before, by=layer.zeros(), rates=before))

    def _atom_conv(self, layer: Layer, state: State) -> Tensor:
        self._keep(_Kind.ATOMS, layer, state)
        return super()._atom_conv(layer, state)

    def _bond_conv(self, layer: Layer, state: State) -> Tensor:
        self._keep(_Kind.BONDS, layer, state)
        return super()._bond_conv(layer, state)

    def _angle_update(self, layer: Layer, state: State) -> Tensor:
        self._keep(_Kind.ANGLES, layer, state)
        return super()._angle_update(layer, state)

    def _send(self, *args: Any, **kwargs: Any) -> Tensor:
        total = super()._send(*args, **kwargs)
        self._kept[-1].total = total
        return total

    def _start_rates(self, lengths: Tensor, cosines: Tensor) -> State:
        basis, model = self._basis, self._network.model
        self._radial_rates = basis.radial_slope * lengths.float()
        self._short_rates = basis.short_slope * lengths[: self._n_short].float()
        self._angular_rates = basis.angular_slope * cosines.float()
        short = self._short_rates @ model.bond_weights_bg.weight.T
        first, second = self._short_weights
        self._short_weight_rates = first_rates, second_rates = [
            short.index_select(0, bond) for bond in (basis.bond_1, basis.bond_2)
        ]
        return State(
            atoms=torch.zeros_like(self._kept[0].before.atoms),
            bonds=self._radial_rates @ model.bond_embedding.weight.T,
            angles=self._angular_rates @ model.angle_embedding.weight.T,
            bond_weights=self._radial_rates @ model.bond_weights_ag.weight.T,
            pair_weights=first_rates * second + first * second_rates,
        )

    def _push(self, kept: _Kept, state: State) -> None:
        """Carry rates through one layer."""
        kept.rates = replace(state)
        layer, n = kept.layer, len(state.atoms)
        width = layer.scale.shape[1]
        if kept.kind is _Kind.ATOMS:
            table = (state.atoms @ layer.table).view(2 * n, -1)
            total = self._send_rates(kept, table, state.atoms.new_zeros(n, width))
            state.atoms = state.atoms + (total if layer.out is None else total @ layer.out)
            return
        table = self._pair_table(replace(layer, bias=torch.zeros_like(layer.bias)), state)
        if kept.kind is _Kind.BONDS:
            total = self._send_rates(kept, table, state.bonds.new_zeros(self._n_short, width))
            state.bonds = state.bonds.clone()
            state.bonds[: self._n_short] += total if layer.out is None else total @ layer.out
        else:
            share = len(self._pairs.into) // len(state.angles)
            total = state.angles.repeat_interleave(share, dim=0)
            state.angles = self._send_rates(kept, table, total)

    def _send_rates(self, kept: _Kept, table: Tensor, total: Tensor) -> Tensor:
        layer, at = kept.layer, self._at(kept)
        for part, y, z in kept.tape:
            own = shared_part(part, at.shared, at.rows)
            rates = z.new_empty(2, len(at.rows.into[part]), table.shape[1] // 2)
            extra = at.shared_rates[own] @ at.shared_weight
            kernels.gather_rows(table.numpy(), at.rows.gather[part], extra.numpy(), rates.numpy())
            y_rates = None
            if layer.second is not None and y is not None:
                y_rates, hidden = rates, self._room("hidden", *rates.shape)
                both.hidden_rates(y.numpy(), y_rates.numpy(), hidden.numpy())
                rates = torch.bmm(hidden, layer.second)
            pairs = at.pairs(part)
            both.send_rates(
                z.numpy(),
                rates.numpy(),
                *layer.norm,
                at.weights[pairs].numpy(),
                at.weight_rates[pairs].numpy(),
                at.into[part],
                total.numpy(),
            )
            kept.rate_tape.append((part, y_rates, rates))
        kept.total_rates = total
        return total

    def _pull(self, kept: _Kept, state: State) -> None:
        """Pull derivatives by rates and values back through one layer, and to its weights."""
        layer, by, n = kept.layer, kept.by, len(kept.before.atoms)
        h2 = len(layer.bias)
        before, rates = kept.before, kept.rates
        if kept.kind is _Kind.ATOMS:
            by_table = state.atoms.new_zeros(2, 2 * n, h2)
            self._return(kept, self._by_total(kept, state.atoms), by_table, state)
            by.bias.add_(by_table[1, ::2].sum(dim=0))
            rows = by_table.view(2, n, 2 * h2)
            _add_product(by.table, before.atoms, rates.atoms, rows)
            state.atoms = state.atoms + rows @ layer.table.T
            return
        s = self._n_short
        by_table = self._by_pair_table(layer, state)
        if kept.kind is _Kind.BONDS:
            if by.out_bias is not None:  # shifts all bonds
                by.out_bias.add_(state.bonds[1].sum(dim=0))
            by_total = self._by_total(kept, state.bonds[:, :s].contiguous())
            self._return(kept, by_total, by_table, state)
        else:
            by_total = state.angles
            share = by_total.shape[1] // len(before.angles)
            state.angles = by_total.view(2, len(before.angles), share, -1).sum(dim=2)
            self._return(kept, by_total, by_table, state)
        _add_product(
            by.table, before.bonds[:s], rates.bonds[:s], by_table[:, : 2 * s].reshape(2, s, -1)
        )
        by_apex = by_table[:, 2 * s :]
        by.bias.add_(by_apex[1].sum(dim=0))
        _add_product(by.inputs[3], before.atoms, rates.atoms, by_apex)
        self._add_pair_table(layer, state, by_table)

    def _by_total(self, kept: _Kept, by_sum: Tensor) -> Tensor:
        """Pull derivatives through the linear layer behind a sum of messages."""
        layer, by = kept.layer, kept.by
        if layer.out is None or by.out is None:
            return by_sum
        _add_product(by.out, kept.total, kept.total_rates, by_sum)
        if by.out_bias is not None and kept.kind is _Kind.ATOMS:
            by.out_bias.add_(by_sum[1].sum(dim=0))
        return by_sum @ layer.out.T

    def _return(self, kept: _Kept, by_total: Tensor, by_table: Tensor, state: State) -> None:
        layer, by, at = kept.layer, kept.by, self._at(kept)
        by_shared = state.bonds if kept.kind is _Kind.ATOMS else state.angles
        by_shared_weight = by.inputs[1 if kept.kind is _Kind.ATOMS else 2]
        for (part, y, z), (_, y_rates, z_rates) in zip(kept.tape, kept.rate_tape, strict=True):
            pairs, own = at.pairs(part), shared_part(part, at.shared, at.rows)
            back = self._room("back", 2, 2, *z.shape[1:])
            by_weight = self._room("weight", 2, pairs.stop - pairs.start, z.shape[2]).zero_()
            both.return_both(
                z.numpy(),
                z_rates.numpy(),
                *layer.norm,
                at.weights[pairs].numpy(),
                at.weight_rates[pairs].numpy(),
                at.into[part],
                by_total.numpy(),
                by_weight.numpy(),
                by.scale.numpy(),
                by.shift.numpy(),
                back.numpy(),
            )
            if kept.kind is _Kind.ATOMS:
                state.bond_weights[:, pairs] += by_weight
            elif kept.kind is _Kind.BONDS:
                state.pair_weights[:, pairs] += by_weight
            back = self._through_hidden(kept, y, y_rates, back)
            by_extra = self._room("extra", 2, own.stop - own.start, by_table.shape[2])
            kernels.return_rows(
                back.numpy(), at.rows.gather[part], by_table.numpy(), by_extra.numpy()
            )
            _add_product(by_shared_weight, at.shared[own], at.shared_rates[own], by_extra)
            by_shared[:, own] += by_extra @ at.shared_weight.T

    def _through_hidden(
        self, kept: _Kept, y: Tensor | None, y_rates: Tensor | None, by_z: Tensor
    ) -> Tensor:
        """Pull derivatives back through a hidden layer, if there is one."""
        layer, by = kept.layer, kept.by
        if (
            y is None
            or y_rates is None
            or layer.second is None
            or by.second is None
            or by.second_bias is None
        ):
            return by_z
        _, _, n, d = by_z.shape
        by_z = by_z.view(2, 2 * n, d)
        second = layer.second.transpose(1, 2)
        back = self._room("hidden back", 2, 2 * n, second.shape[2])
        torch.bmm(by_z, second, out=back)
        back = back.view(2, 2, n, -1)
        hidden = self._room("hidden", *back.shape)
        both.return_hidden_both(y.numpy(), y_rates.numpy(), back.numpy(), hidden.numpy())
        by.second.baddbmm_(hidden.view(2, 2 * n, -1).transpose(1, 2), by_z)
        by.second_bias.add_(by_z[:, n:].sum(dim=1, keepdim=True))
        return back

    def _at(self, kept: _Kept) -> _Entering:
        """Return what the rows of a layer share and where their messages go."""
        before, rates, layer = kept.before, kept.rates, kept.layer
        if kept.kind is _Kind.ATOMS:
            return _Entering(
                self._bonds,
                self._bonds.into,
                before.bonds,
                rates.bonds,
                layer.inputs[1],
                self._weights[0],
                rates.bond_weights,
            )
        if kept.kind is _Kind.BONDS:
            return _Entering(
                self._pairs,
                self._pairs.into,
                before.angles,
                rates.angles,
                layer.inputs[2],
                self._weights[1],
                rates.pair_weights,
            )
        none = before.angles.new_empty(0, before.angles.shape[1])
        return _Entering(
            self._pairs,
            np.arange(len(self._pairs.into)),
            before.angles,
            rates.angles,
            layer.inputs[2],
            none,
            none,
        )

    def _through_readout(self, by_sites: Tensor, atom_rates: Tensor) -> Tensor:
        """Return derivatives by rates and values of the atoms' features; few rows, so autograd."""
        model = self._network.model
        weights = [
            value
            for module in (model.readout_norm, model.mlp)
            if module is not None
            for value in module.parameters()
            if value.requires_grad
        ]
        with torch.enable_grad():
            atoms = self._atoms.detach().requires_grad_()
            rows = atoms if model.readout_norm is None else model.readout_norm(atoms)
            sites = model.mlp(rows)[:, 0]
            (by_rates,) = torch.autograd.grad(sites.sum(), atoms, create_graph=True)
            total = (by_sites * sites).sum() + (by_rates * atom_rates).sum()
        by_atoms, *by_weights = torch.autograd.grad(total, [atoms, *weights])
        self._found |= {id(w): by for w, by in zip(weights, by_weights, strict=True)}
        return torch.stack([by_rates.detach(), by_atoms])

    def _to_bases(self, geometry: tuple[Tensor, Tensor], state: State) -> None:
        """Add what lies in front of the layers: embeddings, weights of bonds, frequencies."""
        basis, model = self._basis, self._network.model
        embedding: Any = model.atom_embedding.embedding.weight
        self._found[id(embedding)] = torch.zeros_like(embedding).index_add(
            0, self._species, state.atoms[1]
        )
        radial = basis.radial, self._radial_rates
        by_radial = self._to_linear(model.bond_embedding, *radial, state.bonds)
        by_radial += self._to_linear(model.bond_weights_ag, *radial, state.bond_weights)
        by_short = by_angular = None
        if len(basis.bond_1):
            by_weights = state.bonds.new_zeros(2, self._n_short, state.bonds.shape[2])
            others = zip(self._short_weights, self._short_weight_rates, strict=True)
            by_rates, by_values = state.pair_weights
            for bond, (weight, rate) in zip((basis.bond_2, basis.bond_1), others, strict=True):
                by_weights[0].index_add_(0, bond, by_rates * weight)
                by_weights[1].index_add_(0, bond, by_values * weight + by_rates * rate)
            by_short = self._to_linear(
                model.bond_weights_bg, basis.short, self._short_rates, by_weights
            )
            by_angular = self._to_linear(
                model.angle_embedding, basis.angular, self._angular_rates, state.angles
            )
        for frequencies, gradient in bases.frequency_gradients(
            model, basis, geometry, radial=by_radial, short=by_short, angular=by_angular
        ):
            self._found[id(frequencies)] = gradient

    def _to_linear(self, linear: Any, values: Tensor, rates: Tensor, by: Tensor) -> Tensor:
        """Add derivatives by the weights of a linear layer; return those by what enters it."""
        gradient = torch.zeros_like(linear.weight.T)
        _add_product(gradient, values, rates, by)
        self._found[id(linear.weight)] = gradient.T
        if linear.bias is not None:
            self._found[id(linear.bias)] = by[1].sum(dim=0)
        return by @ linear.weight


@dataclass(frozen=True)
class _Entering:
    """What the rows of a layer share and are weighted with, and the rates of both."""

    rows: Rows
    into: np.ndarray
    shared: Tensor
    shared_rates: Tensor
    shared_weight: Tensor
    weights: Tensor
    weight_rates: Tensor

    def pairs(self, part: slice) -> slice:
        """Return the part of the weights that belongs to rows."""
        return shared_part(part, self.weights, self.rows) if len(self.weights) else slice(0, 0)


def _add_product(into: Tensor, values: Tensor, rates: Tensor, by: Tensor) -> None:
    """Add derivatives by the weights between inputs (n, ·) and what ``by`` (2, n, ·) is by."""
    into.addmm_(values.T, by[1]).addmm_(rates.T, by[0])
