"""CHGNet as a potential with uncertainty: fast inference, heads fitted to forces, novelty.

Imports torch; reach it through :func:`otf_workflows.potentials.load_potential`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from otf_workflows import uncertainty as uq
from otf_workflows.errors import InputError
from otf_workflows.potentials import chgnet_forward as net
from otf_workflows.potentials import chgnet_fused as fused
from otf_workflows.potentials import chgnet_graph as graphs
from otf_workflows.potentials import chgnet_weights as weights
from otf_workflows.potentials.base import PotentialError, Prediction
from otf_workflows.potentials.registry import check_elements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ase import Atoms
    from chgnet.model import CHGNet

    from otf_workflows.potentials.calculator import PotentialCalculator
    from otf_workflows.potentials.chgnet_training import TrainableCHGNet

MAX_ROWS = 16_000
"""Bonds plus angles in one forward pass: about one dense 100-atom cell."""

HEADS_AT_ONCE = 8
"""Derivatives that are pulled back together; more need more memory and gain nothing."""

_PARTNERS = {
    "chgnet-0.3.0": "chgnet-0.2.0",
    "chgnet-0.2.0": "chgnet-0.3.0",
    "chgnet-r2scan": "chgnet-0.3.0",
}
"""Which shipped model a model without heads is compared with."""


@dataclass
class _Evaluated:
    """A forward pass, and dE/d(bond vector) of it."""

    graph: graphs.Graph
    output: fused.Forward | net.Differentiable
    slope_eV_A: torch.Tensor


class CHGNetPotential:
    """A chgnet model, with or without uncertainty heads.

    In single precision on a CPU it runs through the compiled kernels of
    :mod:`otf_workflows.potentials.chgnet_fused`, anywhere else through autograd.

    Without heads, the uncertainty is the disagreement with another shipped checkpoint, and there
    is no novelty. The model is never changed: :meth:`fit_uncertainty` returns a new potential.

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
    """

    def __init__(
        self,
        model: CHGNet,
        *,
        name: str,
        heads: np.ndarray | None = None,
        spread: np.ndarray | None = None,
        latent: uq.LatentStatistics | None = None,
    ) -> None:
        net.check_supported(model)
        self.model = model
        self.name = name
        self.heads = heads
        if spread is None and heads is not None:
            spread = uq.directions_of_heads(heads)
        self.spread = spread
        self.latent = latent
        self._parameters = list(model.parameters())  # walking the modules costs 1 ms
        self._arranged: tuple[list[tuple[int, int]], fused.Network | None] | None = None
        self._latest: tuple[bytes, _Evaluated] | None = None

    def predict(self, atoms: Atoms, *, uncertainty: bool = False) -> Prediction:
        """Return energy, forces and stress of one structure.

        Parameters
        ----------
        atoms
            Structure with a cell.
        uncertainty
            Also return σ: derivatives of the directions in which heads differ, or without heads
            a second model. Right after a prediction of the same structure that is all it costs.

        Raises
        ------
        InputError
            For elements the model was not trained on.
        PotentialError
            For an isolated atom, or anything that is not finite.
        """
        return self.predict_many([atoms], uncertainty=uncertainty)[0]

    def predict_many(
        self, structures: Sequence[Atoms], *, uncertainty: bool = False
    ) -> list[Prediction]:
        """Return predictions in the order of ``structures``, several per forward pass.

        They equal those of :meth:`predict` to single precision. Raises what it raises.
        """
        partner_forces: list[np.ndarray | None] = [None] * len(structures)
        if uncertainty and self.heads is None:
            partner = _partner(_PARTNERS[self.name], str(self._device))
            partner_forces = [p.forces_eV_A for p in partner.predict_many(structures)]
        predictions: list[Prediction | None] = [None] * len(structures)
        # a walker that reads σ has just asked for the forces of the same structure, and so have
        # walkers that go in step
        key = self._fingerprint(structures) if self.heads is not None else None
        if key is not None and self._latest is not None and self._latest[0] == key:
            return self._predictions(self._latest[1], partner_forces, with_heads=uncertainty)
        self._latest = None  # before more memory is needed
        for indices, graph in self._batches(structures):
            evaluated = self._evaluate(graph)
            others = [partner_forces[i] for i in indices]
            batch = self._predictions(evaluated, others, with_heads=uncertainty)
            if key is not None and len(indices) == len(structures):
                self._latest = key, evaluated
            for index, prediction in zip(indices, batch, strict=True):
                predictions[index] = prediction
        return [prediction for prediction in predictions if prediction is not None]

    def predict_tilted(
        self, atoms: Atoms, slopes: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[Prediction, np.ndarray]:
        """Return energy, forces and stress with a bias, and head energies, in one backward pass.

        See :class:`~otf_workflows.potentials.base.Tiltable`.
        """
        if self.heads is None:
            raise InputError(
                "A model without uncertainty heads cannot be biased.",
                hint="fit its uncertainty to labels first",
            )
        ((_, graph),) = self._batches([atoms])
        self._latest = None
        with _inference(self.model, self._parameters):
            output = self._forward(graph)
            total = output.hidden.detach().double().sum(dim=0).cpu().numpy()
            head_energies = total @ self.heads.T
            # the energy of a head is linear in its weights, so the bias is one more head
            last = net.last_weights(self.model)
            tilt = torch.as_tensor(slopes(head_energies) @ self.heads, device=last.device)
            (slope,) = output.slopes((last.double() + tilt).to(last.dtype)[None])
        energy = output.site_energies_eV.double().sum().item()
        energy += net.reference_energies_eV(self.model, graph).item()
        (forces,), (stress,) = graphs.forces_and_stress(graph, slope)
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            raise PotentialError(
                "Energy or forces are not finite.", hint="look for atoms on top of each other"
            )
        latent = output.features.double().cpu().numpy()
        novelty = None if self.latent is None else self.latent.novelty(latent)
        return Prediction(energy, forces, stress, novelty=novelty), head_energies

    def features(self, structures: Sequence[Atoms]) -> np.ndarray:
        """Return structure-mean readout features, shape (n_structures, d). No backward pass."""
        rows = np.zeros((len(structures), self.model.atom_fea_dim))
        for indices, graph in self._batches(structures):
            with _inference(self.model, self._parameters):
                output = self._forward(graph)
            per_structure = graph.split(output.features.double().cpu().numpy())
            rows[indices] = [atoms.mean(axis=0) for atoms in per_structure]
        return rows

    def fit_uncertainty(
        self,
        structures: Sequence[Atoms],
        forces_eV_A: Sequence[np.ndarray],
        *,
        n_heads: int = 8,
        seed: int,
    ) -> CHGNetPotential:
        """Return a copy with heads and latent statistics fitted to labels.

        Parameters
        ----------
        structures
            What the model was trained on; at most 100 of them are used, at random.
        forces_eV_A
            Their forces at the level of theory of the labels (eV/Å), each of shape (n, 3).
        n_heads
            Number of heads. The few directions in which they differ are derived together when
            σ is read.
        seed
            Same seed, same heads.

        Raises
        ------
        InputError
            For fewer than two structures, or forces that do not fit them.
        """
        _check_labels(structures, forces_eV_A)
        chosen = uq.subsample(len(structures), seed=seed)
        jacobians: dict[int, np.ndarray] = {}
        residuals: dict[int, np.ndarray] = {}
        features = []
        for indices, graph in self._batches([structures[i] for i in chosen]):
            parts, forces, latent = self._linearise(graph)
            features.append(latent)
            for index, jacobian, predicted in zip(indices, parts, forces, strict=True):
                jacobians[index] = jacobian
                residuals[index] = np.asarray(forces_eV_A[chosen[index]]) - predicted
        order = range(len(chosen))
        rows = [jacobians[i] for i in order]
        heads = uq.bootstrap_heads(rows, [residuals[i] for i in order], n_heads=n_heads, seed=seed)
        return CHGNetPotential(
            copy.deepcopy(self.model),
            name=self.name,
            heads=heads,
            spread=uq.directions_of_heads(heads, rows),
            latent=uq.latent_statistics(np.concatenate(features)),
        )

    def familiar_with(self, structures: Sequence[Atoms]) -> CHGNetPotential:
        """Return a potential of the same weights and heads whose novelty is counted from these.

        Novelty needs no labels: before the first ones, this tells an MD run where it leaves the
        structures that the first labels will be of.
        """
        features = []
        for _, graph in self._batches(structures):
            with _inference(self.model, self._parameters):
                output = self._forward(graph)
            features.append(output.features.double().cpu().numpy())
        latent = uq.latent_statistics(np.concatenate(features))
        return CHGNetPotential(
            self.model, name=self.name, heads=self.heads, spread=self.spread, latent=latent
        )

    def calculator(self) -> PotentialCalculator:
        """Return an ASE calculator for molecular dynamics; its results repeat bit by bit."""
        from otf_workflows.potentials.calculator import PotentialCalculator

        return PotentialCalculator(self)

    def trainable(self) -> TrainableCHGNet:
        """Return a copy of the network for the training loop."""
        from otf_workflows.potentials.chgnet_training import TrainableCHGNet

        return TrainableCHGNet(self.model, name=self.name)

    def dump(self) -> bytes:
        """Return everything as bytes that :func:`load` reads without running code from them."""
        latent = self.latent
        content = {
            "name": self.name,
            "model_args": dict(self.model.model_args),
            "state_dict": {k: v.detach().cpu() for k, v in self.model.state_dict().items()},
            "heads": None if self.heads is None else torch.as_tensor(self.heads),
            "spread": None if self.spread is None else torch.as_tensor(self.spread),
            "latent": None
            if latent is None
            else [torch.as_tensor(latent.mean), torch.as_tensor(latent.whitening)],
        }
        return weights.encode(content)

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

    def _forward(self, graph: graphs.Graph) -> fused.Forward | net.Differentiable:
        now = self._weights_now()
        if self._arranged is None or self._arranged[0] != now:
            usable = fused.is_supported(self.model)
            self._arranged = now, fused.Network(self.model) if usable else None
        network = self._arranged[1]
        if network is None:
            return net.Differentiable(self.model, graph)
        return fused.Forward(network, graph)

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

    def _evaluate(self, graph: graphs.Graph) -> _Evaluated:
        with _inference(self.model, self._parameters):
            output = self._forward(graph)
            (slope,) = output.slopes(net.last_weights(self.model)[None])
        return _Evaluated(graph, output, slope)

    def _predictions(
        self,
        evaluated: _Evaluated,
        other_forces_eV_A: Sequence[np.ndarray | None],
        *,
        with_heads: bool,
    ) -> list[Prediction]:
        graph, output = evaluated.graph, evaluated.output
        sites = output.site_energies_eV.double()
        energies = [part.sum() for part in graph.split(sites.cpu().numpy())]
        energies = energies + net.reference_energies_eV(self.model, graph).numpy()
        forces, stresses = graphs.forces_and_stress(graph, evaluated.slope_eV_A)
        if not (np.isfinite(energies).all() and all(np.isfinite(f).all() for f in forces)):
            raise PotentialError(
                "Energy or forces are not finite.", hint="look for atoms on top of each other"
            )
        sigmas: list[np.ndarray | None]
        if with_heads and self.spread is not None:
            with _inference(self.model, self._parameters):
                deviations = _head_forces(graph, output, self.spread)
            sigmas = list(graph.split(uq.sigma_of_directions(deviations)))
        else:
            sigmas = [
                None if other is None else uq.disagreement(own, other)
                for own, other in zip(forces, other_forces_eV_A, strict=True)
            ]
        novelties: list[np.ndarray | None] = [None] * graph.n_structures
        if self.latent is not None:
            latent = output.features.double().cpu().numpy()
            novelties = list(graph.split(self.latent.novelty(latent)))
        return [
            Prediction(
                energy_eV=float(energy),
                forces_eV_A=force,
                stress_eV_A3=stress,
                sigma_eV_A=sigma,
                novelty=novelty,
            )
            for energy, force, stress, sigma, novelty in zip(
                energies, forces, stresses, sigmas, novelties, strict=True
            )
        ]

    def _linearise(
        self, graph: graphs.Graph
    ) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
        """Return J (3 n, d) and forces (n, 3) of each structure, and latent features (N, d)."""
        with _inference(self.model, self._parameters):
            output = self._forward(graph)
            basis = np.eye(output.hidden.shape[1])
            columns = _head_forces(graph, output, basis)
            last = net.last_weights(self.model).double().cpu().numpy()
        rows = [part.reshape(-1, len(basis)) for part in graph.split(np.moveaxis(columns, 0, 2))]
        forces = [(jacobian @ last).reshape(-1, 3) for jacobian in rows]
        return rows, forces, output.features.double().cpu().numpy()


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
    content = weights.decode(blob)
    if content["name"] != name:
        raise InputError(f"These are weights of {content['name']}, not of {name}.")
    heads, latent = content["heads"], content["latent"]
    spread = content.get("spread")
    return CHGNetPotential(
        weights.build_model(content["model_args"], content["state_dict"]).to(device),
        name=name,
        heads=None if heads is None else heads.numpy(),
        spread=None if spread is None else spread.numpy(),
        latent=None if latent is None else uq.LatentStatistics(*(t.numpy() for t in latent)),
    )


@functools.lru_cache(maxsize=2)
def _partner(name: str, device: str) -> CHGNetPotential:
    return load(name, device=device)


def _check_labels(structures: Sequence[Atoms], forces_eV_A: Sequence[np.ndarray]) -> None:
    if len(structures) != len(forces_eV_A):
        raise InputError(f"{len(structures)} structures, but {len(forces_eV_A)} sets of forces.")
    for index, (atoms, forces) in enumerate(zip(structures, forces_eV_A, strict=True)):
        if np.shape(forces) != (len(atoms), 3):
            raise InputError(
                f"Forces of shape {np.shape(forces)} do not fit {len(atoms)} atoms.",
                where=f"structure {index}",
            )


def _head_forces(
    graph: graphs.Graph, output: fused.Forward | net.Differentiable, changes: np.ndarray
) -> np.ndarray:
    """Return J Δw of changes of the last weights (eV/Å), shape (n_changes, n, 3)."""
    rows = torch.as_tensor(changes, dtype=output.hidden.dtype, device=output.hidden.device)
    return np.array(
        [
            graphs.forces_on_atoms(graph, slope)
            for part in rows.split(HEADS_AT_ONCE)
            for slope in output.slopes(part).cpu().numpy()
        ]
    )


@contextlib.contextmanager
def _inference(model: CHGNet, parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Freeze parameters, stop dropout and flush denormals; put everything back afterwards.

    Gradients near the cut-off are full of denormal numbers, which cost a third of the time and
    change no digit of the forces.
    """
    trainable = [p for p in parameters if p.requires_grad]
    training = model.training
    flushing = torch.full((1,), 1e-310, dtype=torch.float64).mul(1.0).item() == 0.0
    for parameter in trainable:
        parameter.requires_grad_(False)
    if training:
        model.eval()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushing)
        if training:
            model.train()
        for parameter in trainable:
            parameter.requires_grad_(True)
