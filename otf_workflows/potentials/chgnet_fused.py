"""Energies of CHGNet on a CPU and any number of their derivatives, without autograd.

The same network as :mod:`otf_workflows.potentials.chgnet_forward`, for inference alone. Rows of
bonds and angles pass in blocks that stay in the cache: a compiled gather, a matrix product, a
compiled activation and sum (:mod:`otf_workflows.potentials.chgnet_kernels`). Two arrays per row
are kept, from which the derivative is computed again; several gradients are pulled back together,
so that uncertainty heads share what the forward pass left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from otf_workflows.potentials import chgnet_basis as bases
from otf_workflows.potentials import chgnet_kernels as kernels
from otf_workflows.potentials.chgnet_layers import Layer, arrange, is_supported

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chgnet.model import CHGNet
    from torch import Tensor

    from otf_workflows.potentials.chgnet_graph import Graph

__all__ = ["Forward", "Network", "is_supported"]

ROWS_IN_CACHE = 1024
"""Rows of a block: half a megabyte for an array of 128 columns."""


@dataclass(frozen=True)
class Rows:
    """Rows of the table that each row sums, (rows, 2 or 3), and what receives its message."""

    gather: np.ndarray
    into: np.ndarray


@dataclass
class State:
    """Features during a forward pass, or k derivatives by them on the way back."""

    atoms: Tensor
    bonds: Tensor
    angles: Tensor
    bond_weights: Tensor
    pair_weights: Tensor


Tape = list[tuple[slice, "Tensor | None", "Tensor"]]
"""Rows, input of the hidden layer and of the last activations, for each block of a layer."""


class Network:
    """Weights of a CHGNet, arranged for inference.

    Parameters
    ----------
    model
        A chgnet model for which :func:`is_supported` is true.
    differentiable
        Keep how the arranged weights follow from those of the model.
    """

    def __init__(self, model: CHGNet, *, differentiable: bool = False) -> None:
        self.model = model
        d, b = model.atom_fea_dim, model.bond_fea_dim
        a = model.angle_embedding.out_features
        with torch.set_grad_enabled(differentiable):
            self.atom_convs = [
                arrange(x, x.twoBody_atom, [d, b, d], (0, 2)) for x in model.atom_conv_layers
            ]
            self.bond_convs = [
                arrange(x, x.twoBody_bond, [b, b, a, d], (0, 1)) for x in model.bond_conv_layers
            ]
            self.angle_updates = [  # nothing reads what the last one would update
                arrange(x, x.twoBody_bond, [b, b, a, d], (0, 1))
                for x in list(model.angle_layers)[: len(self.bond_convs) - 1]
            ]


class Forward:
    """One forward pass, and what it left to differentiate it.

    Parameters
    ----------
    network
        The weights.
    graph
        One structure or several.

    Attributes
    ----------
    site_energies_eV
        Energy of each atom without its reference energy (eV), shape (n,).
    features
        What enters the readout network, shape (n, d).
    hidden
        What enters its last, linear layer, shape (n, d).
    """

    def __init__(self, network: Network, graph: Graph) -> None:
        self._network = network
        model = network.model
        self._basis = bases.expand(model, graph)
        self._bonds, self._pairs = _bond_rows(graph), _pair_rows(graph)
        self._n_short = graph.n_short
        self._tapes: list[Tape] = []
        with torch.no_grad():
            atoms = self._convolve(torch.as_tensor(graph.numbers - 1))
        self._atoms = atoms.requires_grad_()
        with torch.enable_grad():
            features = atoms if model.readout_norm is None else model.readout_norm(atoms)
            *before, last = model.mlp.layers
            self._hidden = features
            for layer in before:
                self._hidden = layer(self._hidden)
        self.features, self.hidden = features.detach(), self._hidden.detach()
        with torch.no_grad():
            self.site_energies_eV = last(self.hidden)[:, 0]

    def slopes(self, changes: Tensor) -> Tensor:
        """Return derivatives of Σ hidden · change by bond vectors (Å⁻¹ times that of changes).

        Parameters
        ----------
        changes
            Weights of the last layer, or changes of them, shape (k, d).

        Returns
        -------
        torch.Tensor
            Shape (k, n_bonds, 3), float64.
        """
        gradients = [
            torch.autograd.grad(
                self._hidden, self._atoms, row.expand_as(self._hidden), retain_graph=True
            )[0]
            for row in changes
        ]
        with torch.no_grad():
            return self._pull_back(torch.stack(gradients))

    def _convolve(self, species: Tensor) -> Tensor:
        network, basis, model = self._network, self._basis, self._network.model
        short_weights = model.bond_weights_bg(basis.short)
        self._short_weights = [
            short_weights.index_select(0, bond) for bond in (basis.bond_1, basis.bond_2)
        ]
        state = State(
            atoms=model.atom_embedding(species),
            bonds=model.bond_embedding(basis.radial),
            angles=model.angle_embedding(basis.angular),
            bond_weights=model.bond_weights_ag(basis.radial),
            pair_weights=self._short_weights[0] * self._short_weights[1],
        )
        self._weights = state.bond_weights, state.pair_weights
        for k, bond_conv in enumerate(network.bond_convs):
            state.atoms = self._atom_conv(network.atom_convs[k], state)
            if len(state.pair_weights):
                state.bonds = self._bond_conv(bond_conv, state)
                if k < len(network.angle_updates):
                    state.angles = self._angle_update(network.angle_updates[k], state)
        return self._atom_conv(network.atom_convs[-1], state)

    def _pull_back(self, atoms: Tensor) -> Tensor:
        network, basis, model = self._network, self._basis, self._network.model
        bond_weights, pair_weights = self._weights
        k, n_pairs, b = len(atoms), len(pair_weights), model.bond_embedding.out_features
        n_angles = 2 * n_pairs if network.angle_updates else n_pairs
        state = State(
            atoms=atoms,
            bonds=atoms.new_zeros(k, len(bond_weights), b),
            angles=atoms.new_zeros(k, n_angles, model.angle_embedding.out_features),
            bond_weights=atoms.new_zeros(k, *bond_weights.shape),
            pair_weights=atoms.new_zeros(k, *pair_weights.shape),
        )
        tapes = iter(reversed(self._tapes))
        self._atom_conv_back(network.atom_convs[-1], state, next(tapes))
        for index, bond_conv in reversed(list(enumerate(network.bond_convs))):
            if n_pairs:
                if index < len(network.angle_updates):
                    update = network.angle_updates[index]
                    self._angle_update_back(update, state, next(tapes), is_first=index == 0)
                self._bond_conv_back(bond_conv, state, next(tapes))
            atom_conv = network.atom_convs[index]
            self._atom_conv_back(atom_conv, state, next(tapes), is_first=index == 0)
        radial = state.bonds @ model.bond_embedding.weight
        radial += state.bond_weights @ model.bond_weights_ag.weight
        if not n_pairs:
            return bases.pull_back(basis, radial=radial, short=None, angular=None)
        by_short = atoms.new_zeros(k, self._n_short, b)
        others = reversed(self._short_weights)
        for bond, other in zip((basis.bond_1, basis.bond_2), others, strict=True):
            for row, weight in zip(by_short, state.pair_weights, strict=True):
                row.index_add_(0, bond, weight * other)
        return bases.pull_back(
            basis,
            radial=radial,
            short=by_short @ model.bond_weights_bg.weight,
            angular=state.angles @ model.angle_embedding.weight,
        )

    def _atom_conv(self, layer: Layer, state: State) -> Tensor:
        n, h2 = len(state.atoms), len(layer.bias)
        table = (state.atoms @ layer.table).view(n, 2, h2)
        table[:, 0] += layer.bias
        total = self._send(
            layer,
            self._bonds,
            table=table.view(2 * n, h2),
            shared=state.bonds,
            shared_weight=layer.inputs[1],
            weights=state.bond_weights,
            n_targets=n,
        )
        if layer.out is not None:
            total = total @ layer.out
        if layer.out_bias is not None:
            total += layer.out_bias
        return state.atoms + total

    def _atom_conv_back(
        self, layer: Layer, state: State, tape: Tape, *, is_first: bool = False
    ) -> None:
        k, n, _ = state.atoms.shape
        h2 = len(layer.bias)
        # nothing in front of the first layer but the species
        by_table = state.atoms.new_zeros(k, 0 if is_first else 2 * n, h2)
        self._send_back(
            layer,
            self._bonds,
            tape,
            by_total=state.atoms if layer.out is None else state.atoms @ layer.out.T,
            weights=self._weights[0],
            by_weights=state.bond_weights,
            by_table=by_table,
            by_shared=state.bonds,
            shared_weight=layer.inputs[1],
        )
        if not is_first:
            state.atoms = state.atoms + by_table.view(k, n, 2 * h2) @ layer.table.T

    def _bond_conv(self, layer: Layer, state: State) -> Tensor:
        total = self._send(
            layer,
            self._pairs,
            table=self._pair_table(layer, state),
            shared=state.angles,
            shared_weight=layer.inputs[2],
            weights=state.pair_weights,
            n_targets=self._n_short,
        )
        # a bias shifts all bonds, as in chgnet
        bonds = state.bonds.clone() if layer.out_bias is None else state.bonds + layer.out_bias
        bonds[: self._n_short] += total if layer.out is None else total @ layer.out
        return bonds

    def _bond_conv_back(self, layer: Layer, state: State, tape: Tape) -> None:
        by_total = state.bonds[:, : self._n_short]
        by_table = self._by_pair_table(layer, state)
        self._send_back(
            layer,
            self._pairs,
            tape,
            by_total=by_total.contiguous() if layer.out is None else by_total @ layer.out.T,
            weights=self._weights[1],
            by_weights=state.pair_weights,
            by_table=by_table,
            by_shared=state.angles,
            shared_weight=layer.inputs[2],
        )
        self._add_pair_table(layer, state, by_table)

    def _angle_update(self, layer: Layer, state: State) -> Tensor:
        rows = self._pairs
        table = self._pair_table(layer, state)
        after = state.angles.new_empty(len(rows.into), state.angles.shape[1])
        tape: Tape = []
        for part in blocks(len(rows.into)):
            before = state.angles[shared_part(part, state.angles, rows)]
            y, z = _open(layer, table, rows.gather[part], before @ layer.inputs[2])
            kernels.update_rows(z.numpy(), *layer.norm, before.numpy(), after[part].numpy())
            tape.append((part, y, z))
        self._tapes.append(tape)
        return after

    def _angle_update_back(self, layer: Layer, state: State, tape: Tape, *, is_first: bool) -> None:
        rows, by_rows = self._pairs, state.angles
        by_table = self._by_pair_table(layer, state)
        k, n, width = by_rows.shape
        # both orders of a pair start with the same angle
        by_angles = by_rows.view(k, n // 2, 2, width).sum(dim=2) if is_first else by_rows.clone()
        no_weights = by_rows.new_empty(0, width)
        for part, y, z in tape:
            back = z.new_empty(2, k, *z.shape[1:])
            kernels.return_messages(
                z.numpy(),
                *layer.norm,
                no_weights.numpy(),
                np.arange(part.start, part.stop),
                by_rows.numpy(),
                no_weights[None].numpy(),
                back.numpy(),
            )
            own = shared_part(part, by_angles[0], rows)
            by_extra = _close(
                layer, y, back, rows.gather[part], by_table, n_extra=own.stop - own.start
            )
            by_angles[:, own] += by_extra @ layer.inputs[2].T
        state.angles = by_angles
        self._add_pair_table(layer, state, by_table)

    def _send(
        self,
        layer: Layer,
        rows: Rows,
        *,
        table: Tensor,
        shared: Tensor,
        shared_weight: Tensor,
        weights: Tensor,
        n_targets: int,
    ) -> Tensor:
        """Return the sums of weighted messages, and leave a tape."""
        total = table.new_zeros(n_targets, weights.shape[1])
        tape: Tape = []
        for part in blocks(len(rows.into)):
            extra = shared[shared_part(part, shared, rows)] @ shared_weight
            y, z = _open(layer, table, rows.gather[part], extra)
            kernels.send_messages(
                z.numpy(),
                *layer.norm,
                weights[shared_part(part, weights, rows)].numpy(),
                rows.into[part],
                total.numpy(),
            )
            tape.append((part, y, z))
        self._tapes.append(tape)
        return total

    def _send_back(
        self,
        layer: Layer,
        rows: Rows,
        tape: Tape,
        *,
        by_total: Tensor,
        weights: Tensor,
        by_weights: Tensor,
        by_table: Tensor,
        by_shared: Tensor,
        shared_weight: Tensor,
    ) -> None:
        """Add derivatives by all that entered :meth:`_send`."""
        k = len(by_total)
        for part, y, z in tape:
            pairs = shared_part(part, weights, rows)
            back = z.new_empty(2, k, *z.shape[1:])
            by_weight = z.new_zeros(k, pairs.stop - pairs.start, z.shape[2])
            kernels.return_messages(
                z.numpy(),
                *layer.norm,
                weights[pairs].numpy(),
                rows.into[part],
                by_total.numpy(),
                by_weight.numpy(),
                back.numpy(),
            )
            by_weights[:, pairs] += by_weight
            own = shared_part(part, by_shared[0], rows)
            by_extra = _close(
                layer, y, back, rows.gather[part], by_table, n_extra=own.stop - own.start
            )
            by_shared[:, own] += by_extra @ shared_weight.T

    def _pair_table(self, layer: Layer, state: State) -> Tensor:
        """Return what pairs gather: left and right parts of each short bond, then apex atoms."""
        h2 = len(layer.bias)
        s, n = self._n_short, len(state.atoms)
        table = state.atoms.new_empty(2 * s + n, h2)
        torch.mm(state.bonds[:s], layer.table, out=table[: 2 * s].view(s, 2 * h2))
        torch.addmm(layer.bias, state.atoms, layer.inputs[3], out=table[2 * s :])
        return table

    def _by_pair_table(self, layer: Layer, state: State) -> Tensor:
        k, n, _ = state.atoms.shape
        return state.atoms.new_zeros(k, 2 * self._n_short + n, len(layer.bias))

    def _add_pair_table(self, layer: Layer, state: State, by_table: Tensor) -> None:
        k, s = len(by_table), self._n_short
        by_bonds = by_table[:, : 2 * s].reshape(k, s, -1)
        state.bonds[:, :s] += by_bonds @ layer.table.T
        state.atoms = state.atoms + by_table[:, 2 * s :] @ layer.inputs[3].T


def _open(
    layer: Layer, table: Tensor, gather: np.ndarray, extra: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Return the inputs of the hidden layer, if there is one, and of the last activations."""
    y = table.new_empty(2, len(gather), len(layer.bias) // 2)
    kernels.gather_rows(table.numpy(), gather, extra.numpy(), y.numpy())
    if layer.second is None or layer.second_bias is None:
        return None, y
    hidden = torch.empty_like(y)
    kernels.hidden_layer(y.numpy(), hidden.numpy())
    return y, torch.baddbmm(layer.second_bias, hidden, layer.second)


def _close(
    layer: Layer,
    y: Tensor | None,
    back: Tensor,
    gather: np.ndarray,
    by_table: Tensor,
    *,
    n_extra: int,
) -> Tensor:
    """Pull derivatives back through :func:`_open`; return those by ``extra``."""
    _, k, n, d = back.shape
    if layer.second is not None and y is not None:
        back = torch.bmm(back.view(2, k * n, d), layer.second.transpose(1, 2)).view(2, k, n, -1)
        kernels.return_hidden(y.numpy(), back.numpy())
    by_extra = back.new_empty(k, n_extra, len(layer.bias))
    kernels.return_rows(back.numpy(), gather, by_table.numpy(), by_extra.numpy())
    return by_extra


def blocks(n: int) -> Iterator[slice]:
    """Yield blocks of rows that fit into the cache, never half a pair."""
    for start in range(0, n, ROWS_IN_CACHE):
        yield slice(start, min(n, start + ROWS_IN_CACHE))


def shared_part(part: slice, values: Tensor, rows: Rows) -> slice:
    """Return the part of values, one for each row or each pair, that belongs to rows."""
    share = len(rows.into) // len(values)
    return slice(part.start // share, part.stop // share)


def _side_by_side(*columns: np.ndarray) -> np.ndarray:
    return np.stack(columns, axis=1).reshape(-1)


def _bond_rows(graph: Graph) -> Rows:
    starts = _side_by_side(graph.first, graph.second)
    ends = _side_by_side(graph.second, graph.first)
    return Rows(np.stack([2 * starts, 2 * ends + 1], axis=1), starts)


def _pair_rows(graph: Graph) -> Rows:
    left = _side_by_side(graph.bond_1, graph.bond_2)
    right = _side_by_side(graph.bond_2, graph.bond_1)
    atoms = 2 * graph.n_short + np.repeat(graph.apex, 2)
    return Rows(np.stack([2 * left, 2 * right + 1, atoms], axis=1), left)
