"""Weights of CHGNet's gated layers, arranged for the compiled loops of a CPU.

Used by :mod:`otf_workflows.potentials.chgnet_fused`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    import numpy as np
    from chgnet.model import CHGNet
    from torch import Tensor


def is_supported(model: CHGNet) -> bool:
    """Return whether all layers of a model are of the kinds that are differentiated here.

    They are in all models that the chgnet package ships, in single precision on a CPU.
    """
    gates = [layer.twoBody_atom for layer in model.atom_conv_layers]
    gates += [layer.twoBody_bond for layer in (*model.bond_conv_layers, *model.angle_layers)]
    weight = model.bond_embedding.weight
    return (
        weight.dtype is torch.float32
        and weight.device.type == "cpu"
        and all(_is_supported_gate(gate) for gate in gates)
    )


@dataclass(frozen=True)
class Layer:
    """Weights of a convolution or an angle update, arranged for the kernels.

    Attributes
    ----------
    inputs
        First weights of core and gate for each input, of shape (d_in, 2 h).
    bias
        First biases, shape (2 h,).
    table
        Those of ``inputs`` that rows gather from one table, side by side.
    second, second_bias
        Second weights, shape (2, h, d) and (2, 1, d); None without a hidden layer.
    scale, shift
        Half of the affine part of the layer norms, shape (2, d); 1 and 0 without.
    epsilon
        Of the layer norms; 0 without.
    out, out_bias
        Linear layer behind the sum of messages; None for the identity.
    """

    inputs: tuple[Tensor, ...]
    bias: Tensor
    table: Tensor
    second: Tensor | None
    second_bias: Tensor | None
    scale: Tensor
    shift: Tensor
    epsilon: float
    out: Tensor | None
    out_bias: Tensor | None

    @property
    def norm(self) -> tuple[np.ndarray, np.ndarray, float]:
        """What the kernels need of the layer norms."""
        return self.scale.detach().numpy(), self.shift.detach().numpy(), self.epsilon

    def tensors(self) -> list[Tensor]:
        """Return all weights there are, always in the same order."""
        rest = [getattr(self, field.name) for field in fields(self) if field.name != "inputs"]
        return [*self.inputs, *(value for value in rest if isinstance(value, torch.Tensor))]

    def zeros(self) -> Layer:
        """Return zeros in the place of all weights, to add derivatives to."""
        rest: dict[str, Any] = {
            field.name: torch.zeros_like(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return replace(self, inputs=tuple(map(torch.zeros_like, self.inputs)), **rest)


def arrange(layer: Any, gate: Any, widths: list[int], gathered: tuple[int, int]) -> Layer:
    """Return the weights of a layer of chgnet whose inputs have these widths.

    A layer norm takes the mean of its input away. Taken from the weights in front, once, it is
    away for all rows, and from their derivatives. What is returned can be differentiated by the
    weights of the layer.
    """
    halves = [_without_dropout(mlp) for mlp in (gate.mlp_core, gate.mlp_gate)]
    like = halves[0][0].weight
    norms = [norm for norm in (gate.bn1, gate.bn2) if norm is not None]

    def stacked(index: int, name: str) -> Tensor:
        return torch.stack([getattr(layers[index], name) for layers in halves]).double()

    def last(values: Tensor) -> Tensor:
        return values - values.mean(dim=1, keepdim=True) if norms else values / 2

    first, bias = stacked(0, "weight"), stacked(0, "bias")
    second = second_bias = out = out_bias = None
    if len(halves[0]) > 1:
        first, bias = first / 2, bias / 2
        second = last(stacked(-1, "weight")).transpose(1, 2).to(like.dtype).contiguous()
        second_bias = last(stacked(-1, "bias"))[:, None].to(like.dtype)
    else:
        first, bias = last(first), last(bias)
    if getattr(layer, "use_mlp_out", False):
        linear = list(layer.mlp_out.layers)[-1]
        out = linear.weight.T.contiguous()
        out_bias = linear.bias
    d = gate.mlp_core.layers[-1].out_features
    scale, shift = like.new_ones(2, d), like.new_zeros(2, d)
    if norms:
        scale, shift = (
            torch.stack([getattr(norm, name) for norm in norms]) / 2 for name in ("weight", "bias")
        )
    flat = first.reshape(-1, first.shape[2]).T.to(like.dtype).contiguous()
    inputs = flat.split(widths)
    return Layer(
        inputs=inputs,
        bias=bias.flatten().to(like.dtype),
        table=torch.cat([inputs[g] for g in gathered], dim=1),
        second=second,
        second_bias=second_bias,
        scale=scale,
        shift=shift,
        epsilon=norms[0].eps if norms else 0.0,
        out=out,
        out_bias=out_bias,
    )


def _is_supported_gate(gate: Any) -> bool:
    kinds: list[list[type]] = [[nn.Linear], [nn.Linear, nn.SiLU, nn.Linear]]
    return (
        all(
            [type(x) for x in _without_dropout(mlp)] in kinds
            for mlp in (gate.mlp_core, gate.mlp_gate)
        )
        and type(gate.activation) is nn.SiLU
        and all(norm is None or type(norm) is nn.LayerNorm for norm in (gate.bn1, gate.bn2))
    )


def _without_dropout(mlp: Any) -> list[Any]:
    return [layer for layer in mlp.layers if not isinstance(layer, nn.Dropout)]
