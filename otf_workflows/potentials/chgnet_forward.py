"""The forward pass of CHGNet, reordered for speed; same weights, same numbers.

chgnet's gated layers multiply features that were gathered and concatenated, one row per directed
edge or angle. A linear layer of a concatenation is a sum of linear layers, so atoms and bonds are
projected once and gathered after; core and gate share one product. Bonds outside the bond graph
are left out of it, as are features that nothing reads. The derivative by bond vectors then gives
forces, stress and uncertainty heads alike.

Architecture: Deng et al., Nature Machine Intelligence 5, 1031 (2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.nn.functional import linear

from otf_workflows.errors import InputError
from otf_workflows.potentials.heads import Output

if TYPE_CHECKING:
    from collections.abc import Iterable

    from chgnet.model import CHGNet
    from chgnet.model.composition_model import AtomRef
    from torch import Tensor, nn

    from otf_workflows.potentials.chgnet_graph import Graph


ACOS_MARGIN = 1 - 1e-6
"""chgnet shrinks cosines by this, so that straight angles have a derivative."""


@dataclass(frozen=True)
class _Indices:
    """The graph as tensors, with both directions of a bond and both orders of a pair."""

    starts: Tensor
    ends: Tensor
    short: int
    apex: Tensor
    left: Tensor
    right: Tensor


def check_supported(model: CHGNet) -> None:
    """Refuse variants of the architecture that this forward pass does not know.

    Raises
    ------
    InputError
        Naming what is unusual.
    """
    layers = [*model.atom_conv_layers, *model.bond_conv_layers, *model.angle_layers]
    reference = model.composition_model
    problems = {
        "a readout after pooling": not model.mlp_first,
        "a readout that is not a plain MLP": not hasattr(model.mlp, "layers"),
        "extensive energies": not model.is_intensive,
        "reference energies that are not per atom": reference is not None
        and not getattr(reference, "is_intensive", False),
        "missing bond or angle layers": None in layers,
        "normalised convolutions": any(
            getattr(layer, name, None) is not None
            for layer in layers
            for name in ("atom_norm", "bond_norm", "angle_norm")
        ),
        "convolutions without a residual": not all(getattr(x, "resnet", True) for x in layers),
    }
    found = [name for name, present in problems.items() if present]
    if found:
        raise InputError(f"This CHGNet has {' and '.join(found)}, which is not supported.")


def forward(model: CHGNet, graph: Graph, vectors_A: Tensor) -> Output:
    """Return site energies and the features behind them.

    Differentiable by ``vectors_A`` and by the parameters of the model.

    Parameters
    ----------
    model
        A chgnet model for which :func:`check_supported` passed, in evaluation mode.
    graph
        One structure or several.
    vectors_A
        ``graph.vectors_A`` as a tensor, on the device of the model. In double precision, what
        the network sees of lengths and angles is exact: the derivative of the cut-off polynomial
        cancels to 1e-5 in single precision.
    """
    at = _indices(graph, vectors_A.device)
    expansion = model.bond_basis_expansion
    dtype = model.bond_embedding.weight.dtype
    lengths_A = torch.linalg.vector_norm(vectors_A, dim=1)
    radial = expansion.rbf_expansion_ag(lengths_A).to(dtype)
    atom_feas = model.atom_embedding(torch.as_tensor(graph.numbers - 1, device=vectors_A.device))
    bond_feas = model.bond_embedding(radial)
    atom_weights = model.bond_weights_ag(radial)

    has_angles = len(graph.apex) > 0
    if has_angles:
        n = at.short
        short_radial = expansion.rbf_expansion_bg(lengths_A[:n]).to(dtype)
        pair_1, pair_2 = at.left[: len(graph.apex)], at.right[: len(graph.apex)]
        units = vectors_A[:n] / lengths_A[:n, None]
        cosines = (units.index_select(0, pair_1) * units.index_select(0, pair_2)).sum(dim=1)
        cosines = cosines * torch.as_tensor(graph.sign, device=units.device)
        angles = torch.acos(cosines * ACOS_MARGIN)
        angular = model.angle_basis_expansion.fourier_expansion(angles).to(dtype)
        # both orders of a pair start with the same features: (1, pairs, d), later (2, pairs, d)
        angle_feas = model.angle_embedding(angular)[None]
        weights = model.bond_weights_bg(short_radial)
        pair_weights = weights.index_select(0, pair_1) * weights.index_select(0, pair_2)

    for k, bond_layer in enumerate(model.bond_conv_layers):
        atom_feas = _atom_conv(
            model.atom_conv_layers[k],
            at,
            atom_feas=atom_feas,
            bond_feas=bond_feas,
            weights=atom_weights,
        )
        if has_angles:
            bond_feas = _bond_conv(
                bond_layer,
                at,
                atom_feas=atom_feas,
                bond_feas=bond_feas,
                angle_feas=angle_feas,
                weights=pair_weights,
            )
            if k + 1 < len(model.bond_conv_layers):  # nothing reads the last ones
                angle_feas = _angle_update(
                    model.angle_layers[k],
                    at,
                    atom_feas=atom_feas,
                    bond_feas=bond_feas,
                    angle_feas=angle_feas,
                )
    atom_feas = _atom_conv(
        model.atom_conv_layers[-1],
        at,
        atom_feas=atom_feas,
        bond_feas=bond_feas,
        weights=atom_weights,
    )
    features = atom_feas if model.readout_norm is None else model.readout_norm(atom_feas)
    *before, last = model.mlp.layers
    hidden = _apply(before, features)
    return Output(last(hidden)[:, 0], features, hidden)


def reference_energies_eV(model: CHGNet, graph: Graph) -> Tensor:
    """Return the sum of elemental reference energies of each structure (eV, float64)."""
    owners = torch.as_tensor(graph.owners)
    total = torch.zeros(graph.n_structures, dtype=torch.float64)
    if model.composition_model is None:
        return total
    reference = cast("AtomRef", model.composition_model)
    weight = reference.fc.weight[0].detach().double().cpu()
    return total.index_add(0, owners, weight[torch.as_tensor(graph.numbers - 1)])


def last_weights(model: CHGNet) -> Tensor:
    """Return the weights of the last layer, which map hidden features to energy, shape (d,)."""
    return cast("nn.Linear", model.mlp.layers[-1]).weight[0].detach()


def _indices(graph: Graph, device: torch.device) -> _Indices:
    def both(a: object, b: object) -> Tensor:
        return torch.cat([torch.as_tensor(a), torch.as_tensor(b)]).to(device)

    return _Indices(
        starts=both(graph.first, graph.second),
        ends=both(graph.second, graph.first),
        short=graph.n_short,
        apex=torch.as_tensor(graph.apex, device=device),
        left=both(graph.bond_1, graph.bond_2),
        right=both(graph.bond_2, graph.bond_1),
    )


def _atom_conv(
    layer: Any, at: _Indices, *, atom_feas: Tensor, bond_feas: Tensor, weights: Tensor
) -> Tensor:
    d = atom_feas.shape[1]
    gate = layer.twoBody_atom
    centre, bond, neighbour, bias = _first_linear(gate, [d, bond_feas.shape[1], d])
    rows = linear(atom_feas, centre, bias).index_select(0, at.starts)
    rows = rows + linear(atom_feas, neighbour).index_select(0, at.ends)
    rows = rows.view(2, len(bond_feas), -1) + linear(bond_feas, bond)
    messages = (_gate(gate, rows) * weights).view(2 * len(bond_feas), -1)
    total = torch.zeros_like(atom_feas).index_add(0, at.starts, messages)
    return (layer.mlp_out(total) if layer.use_mlp_out else total) + atom_feas


def _bond_conv(
    layer: Any,
    at: _Indices,
    *,
    atom_feas: Tensor,
    bond_feas: Tensor,
    angle_feas: Tensor,
    weights: Tensor,
) -> Tensor:
    short = bond_feas[: at.short]
    rows = _angle_rows(layer.twoBody_bond, at, atom_feas, short, angle_feas)
    messages = (_gate(layer.twoBody_bond, rows) * weights).view(len(at.left), -1)
    total = torch.zeros_like(bond_feas).index_add(0, at.left, messages)
    return (layer.mlp_out(total) if layer.use_mlp_out else total) + bond_feas


def _angle_update(
    layer: Any, at: _Indices, *, atom_feas: Tensor, bond_feas: Tensor, angle_feas: Tensor
) -> Tensor:
    rows = _angle_rows(layer.twoBody_bond, at, atom_feas, bond_feas[: at.short], angle_feas)
    return _gate(layer.twoBody_bond, rows) + angle_feas


def _angle_rows(
    gate: Any, at: _Indices, atom_feas: Tensor, bond_feas: Tensor, angle_feas: Tensor
) -> Tensor:
    """Return the first linear layer of core and gate for all ordered pairs, (2, pairs, ·)."""
    d = bond_feas.shape[1]
    left, right, angle, apex, bias = _first_linear(
        gate, [d, d, angle_feas.shape[2], atom_feas.shape[1]]
    )
    rows = linear(bond_feas, left).index_select(0, at.left)
    rows = rows + linear(bond_feas, right).index_select(0, at.right)
    shared = linear(atom_feas, apex, bias).index_select(0, at.apex)
    return rows.view(2, len(at.apex), -1) + (linear(angle_feas, angle) + shared)


def _first_linear(gate: Any, widths: list[int]) -> tuple[Tensor, ...]:
    """Return the first weights of core and gate, stacked, one per input; and their bias."""
    core_layer, gate_layer = (_split(mlp.layers)[0] for mlp in (gate.mlp_core, gate.mlp_gate))
    weight = torch.cat([core_layer.weight, gate_layer.weight])
    return *weight.split(widths, dim=1), torch.cat([core_layer.bias, gate_layer.bias])


def _split(layers: nn.Sequential) -> tuple[nn.Linear, list[nn.Module]]:
    """Return the first linear layer, and all that follows it."""
    # a slice of an nn.Sequential would build a new module at every step
    listed = list(layers)
    first = next(k for k, layer in enumerate(listed) if isinstance(layer, torch.nn.Linear))
    return cast("nn.Linear", listed[first]), listed[first + 1 :]


def _apply(layers: Iterable[nn.Module], rows: Tensor) -> Tensor:
    for layer in layers:
        rows = layer(rows)
    return rows


def _gate(gate: Any, rows: Tensor) -> Tensor:
    """Return core times gate, from the output of their first linear layers."""
    core, opening = rows.chunk(2, dim=-1)
    core = _apply(_split(gate.mlp_core.layers)[1], core)
    opening = _apply(_split(gate.mlp_gate.layers)[1], opening)
    if gate.norm is not None:
        core, opening = gate.bn1(core), gate.bn2(opening)
    return gate.activation(core) * gate.sigmoid(opening)
