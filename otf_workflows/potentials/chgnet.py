"""CHGNet as a potential with uncertainty: fast inference, heads fitted to forces, novelty.

Imports torch; reach it through :func:`otf_workflows.potentials.load_potential`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from otf_workflows import uncertainty as uq
from otf_workflows.potentials import chgnet_forward as net
from otf_workflows.potentials import chgnet_fused as fused
from otf_workflows.potentials import chgnet_graph as graphs
from otf_workflows.potentials import chgnet_weights as weights
from otf_workflows.potentials import headed
from otf_workflows.potentials import heads as last_layer
from otf_workflows.potentials.headed import Evaluated, HeadedPotential
from otf_workflows.potentials.registry import check_elements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ase import Atoms
    from chgnet.model import CHGNet

    from otf_workflows.potentials.chgnet_training import TrainableCHGNet

MAX_ROWS = 16_000
"""Bonds plus angles in one forward pass: about one dense 100-atom cell."""

_PARTNERS = {
    "chgnet-0.3.0": "chgnet-0.2.0",
    "chgnet-0.2.0": "chgnet-0.3.0",
    "chgnet-r2scan": "chgnet-0.3.0",
}
"""Which shipped model a model without heads is compared with."""


class CHGNetPotential(HeadedPotential):
    """A chgnet model, with or without uncertainty heads.

    In single precision on a CPU it runs through the compiled kernels of
    :mod:`otf_workflows.potentials.chgnet_fused`, anywhere else through autograd. σ right after a
    prediction of the same structure costs the derivatives alone.

    Parameters
    ----------
    model
        chgnet's module, on the device to be used.
    name
        Registry name of what it was pretrained as.
    heads
        Changes of the last weights, shape (n_heads, d).
    spread
        The few directions in which heads differ, shape (r, d); by default all of them.
    latent
        Statistics of the features of the atoms it was trained on.
    force_share
        How much of the force counts as uncertain; None for σ of the heads alone.
    """

    def __init__(
        self,
        model: CHGNet,
        *,
        name: str,
        heads: np.ndarray | None = None,
        spread: np.ndarray | None = None,
        latent: uq.LatentStatistics | None = None,
        force_share: float | None = None,
    ) -> None:
        super().__init__(
            name=name, heads=heads, spread=spread, latent=latent, force_share=force_share
        )
        net.check_supported(model)
        self.model = model
        self._parameters = list(model.parameters())  # walking the modules costs 1 ms
        self._arranged: tuple[list[tuple[int, int]], fused.Network | None] | None = None
        self._latest: tuple[bytes, Evaluated] | None = None

    def trainable(self) -> TrainableCHGNet:
        """Return a copy of the network for the training loop."""
        from otf_workflows.potentials.chgnet_training import TrainableCHGNet

        return TrainableCHGNet(self.model, name=self.name)

    def dump(self) -> bytes:
        """Return everything as bytes that :func:`load` reads without running code from them."""
        network = {
            "model_args": dict(self.model.model_args),
            "state_dict": {k: v.detach().cpu() for k, v in self.model.state_dict().items()},
        }
        return self._dump(network)

    @property
    def _device(self) -> torch.device:
        return self.model.bond_embedding.weight.device

    def _fingerprint(self, structures: Sequence[Atoms]) -> bytes:
        """Return bytes that differ for all structures that do, and for other weights."""
        rows = [
            np.ascontiguousarray(array).tobytes()
            for atoms in structures
            for array in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
        ]
        sizes = [len(atoms) for atoms in structures]
        return b"".join([*rows, repr((sizes, self._weights_now())).encode()])

    def _weights_now(self) -> list[tuple[int, int]]:
        return [(p.data_ptr(), p._version) for p in self._parameters]  # noqa: SLF001

    def _forward(self, graph: graphs.Graph) -> last_layer.Pass:
        now = self._weights_now()
        if self._arranged is None or self._arranged[0] != now:
            usable = fused.is_supported(self.model)
            self._arranged = now, fused.Network(self.model) if usable else None
        network = self._arranged[1]
        if network is not None:
            return fused.Forward(network, graph)
        forward = functools.partial(net.forward, self.model, graph)
        return last_layer.Differentiable(forward, graph, device=self._device)

    def _batches(self, structures: Sequence[Atoms]) -> Iterator[tuple[list[int], graphs.Graph]]:
        """Yield joined graphs of similar structures, with the indices of these."""
        converter = self.model.graph_converter
        waiting: dict[bool, list[tuple[int, graphs.Graph]]] = {True: [], False: []}
        rows = {True: 0, False: 0}

        def flush(kind: bool) -> tuple[list[int], graphs.Graph]:
            indices, parts = zip(*waiting[kind], strict=True)
            waiting[kind], rows[kind] = [], 0
            return list(indices), graphs.join(parts)

        for index, atoms in enumerate(structures):
            check_elements(self.name, atoms.numbers)
            graph = graphs.build_graph(
                atoms,
                cutoff_A=converter.atom_graph_cutoff,
                bond_cutoff_A=converter.bond_graph_cutoff,
            )
            # 0.2.0 shifts all bonds as soon as there is one angle, so the two kinds do not mix
            kind = len(graph.apex) > 0
            size = len(graph.first) + len(graph.apex)
            if waiting[kind] and rows[kind] + size > MAX_ROWS:
                yield flush(kind)
            waiting[kind].append((index, graph))
            rows[kind] += size
        for kind in (True, False):
            if waiting[kind]:
                yield flush(kind)

    def _passes(
        self, structures: Sequence[Atoms], *, with_heads: bool
    ) -> Iterator[tuple[list[int], Evaluated]]:
        # a walker that reads σ has just asked for the forces of the same structure, and so have
        # walkers that go in step
        key = self._fingerprint(structures) if self.heads is not None else None
        if key is not None and self._latest is not None and self._latest[0] == key:
            known = self._latest[1]
            yield list(range(len(structures))), self._with_sigma(known) if with_heads else known
            return
        self._latest = None  # before more memory is needed
        for indices, graph in self._batches(structures):
            with self._inference():
                output = self._forward(graph)
                (slope,) = output.slopes(self._last_weights()[None])
            evaluated = Evaluated(graph, output, slope)
            yield indices, self._with_sigma(evaluated) if with_heads else evaluated
            if key is not None and len(indices) == len(structures):
                self._latest = key, evaluated

    def _with_sigma(self, evaluated: Evaluated) -> Evaluated:
        """Return a pass with σ from the directions in which heads differ."""
        if self.spread is None:
            return evaluated
        with self._inference():
            forces = last_layer.head_forces(evaluated.graph, evaluated.output, self.spread)
        return dataclasses.replace(evaluated, head_sigma_eV_A=uq.sigma_of_directions(forces))

    def _tilted(
        self, graph: graphs.Graph, changes: np.ndarray, slopes: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[Evaluated, np.ndarray]:
        self._latest = None
        with self._inference():
            output = self._forward(graph)
            head_energies = output.hidden.detach().double().sum(dim=0).cpu().numpy() @ changes.T
            last = self._last_weights()
            tilt = torch.as_tensor(slopes(head_energies) @ changes, device=last.device)
            (slope,) = output.slopes((last.double() + tilt).to(last.dtype)[None])
        return Evaluated(graph, output, slope), head_energies

    def _references_eV(self, graph: graphs.Graph) -> torch.Tensor:
        return net.reference_energies_eV(self.model, graph)

    def _last_weights(self) -> torch.Tensor:
        return net.last_weights(self.model)

    def _n_features(self) -> int:
        return self.model.atom_fea_dim

    def _partner(self) -> CHGNetPotential:
        return _shipped(_PARTNERS[self.name], str(self._device))

    def _with_heads(self, changes: np.ndarray) -> Self:
        return type(self)(copy.deepcopy(self.model), name=self.name, heads=changes)

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        """Freeze parameters, stop dropout and flush denormals; put everything back afterwards."""
        trainable = [p for p in self._parameters if p.requires_grad]
        training = self.model.training
        for parameter in trainable:
            parameter.requires_grad_(False)
        if training:
            self.model.eval()
        try:
            with last_layer.flush_denormals():
                yield
        finally:
            if training:
                self.model.train()
            for parameter in trainable:
                parameter.requires_grad_(True)


def load(name: str, blob: bytes | None = None, *, device: str = "cpu") -> CHGNetPotential:
    """Return a shipped model, or one that was dumped.

    Raises
    ------
    InputError
        If the blob is of another potential than ``name``.
    PotentialError
        If the blob is damaged or something else.
    """
    if blob is None:
        model = weights.shipped_model(name.removeprefix("chgnet-"))
        return CHGNetPotential(model.to(device), name=name)
    content, fitted = headed.read(name, blob)
    model = weights.build_model(content["model_args"], content["state_dict"])
    return CHGNetPotential(model.to(device), name=name, **fitted)


@functools.lru_cache(maxsize=2)
def _shipped(name: str, device: str) -> CHGNetPotential:
    return load(name, device=device)
