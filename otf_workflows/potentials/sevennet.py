"""SevenNet as a potential with uncertainty: the extra ``sevennet`` of this package.

Imports torch; reach it through :func:`otf_workflows.potentials.load_potential`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import torch

from otf_workflows import uncertainty as uq
from otf_workflows.errors import InputError
from otf_workflows.potentials import blobs, heads
from otf_workflows.potentials import chgnet_graph as graphs
from otf_workflows.potentials import sevennet_network as net
from otf_workflows.potentials.base import PotentialError, Prediction
from otf_workflows.potentials.registry import check_elements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ase import Atoms

    from otf_workflows.potentials.calculator import PotentialCalculator
    from otf_workflows.potentials.sevennet_training import TrainableSevenNet

MAX_BONDS = 2_000
"""Bonds in one forward pass, each of which is two directed edges."""

_PARTNERS = {
    "sevennet-0": "sevennet-0-may2024",
    "sevennet-0-may2024": "sevennet-0",
    "sevennet-l3i5": "sevennet-0",
    "sevennet-mf-pbe": "sevennet-0",
    "sevennet-mf-r2scan": "sevennet-mf-pbe",
}
"""Which shipped model a model without heads is compared with; that of May 2024 saw other data."""


class SevenNetPotential:
    """A SevenNet network, with or without uncertainty heads.

    Without heads, the uncertainty is the disagreement with another shipped checkpoint, and there
    is no novelty. The network is never changed: :meth:`fit_uncertainty` returns a new potential.

    Parameters
    ----------
    network
        The network, frozen.
    name
        Registry name of what it was pretrained as.
    heads
        Changes of the last weights, shape (n_heads, d).
    latent
        Statistics of the features of the atoms it was trained on.
    """

    def __init__(
        self,
        network: net.Network,
        *,
        name: str,
        heads: np.ndarray | None = None,
        latent: uq.LatentStatistics | None = None,
    ) -> None:
        self.network = network
        self.name = name
        self.heads = heads
        self.latent = latent

    def predict(self, atoms: Atoms, *, uncertainty: bool = False) -> Prediction:
        """Return energy, forces and stress of one structure.

        Parameters
        ----------
        atoms
            Structure with a cell.
        uncertainty
            Also return σ: one backward pass per head, or a second model without heads.

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
        others: list[np.ndarray | None] = [None] * len(structures)
        if uncertainty and self.heads is None:
            partner = load(_PARTNERS[self.name], device=str(self.network.device))
            others = [p.forces_eV_A for p in partner.predict_many(structures)]
        predictions: list[Prediction] = []
        for indices, graph in self._batches(structures):
            chosen = [others[i] for i in indices]
            predictions += self._evaluate(graph, chosen, with_heads=uncertainty)
        return predictions

    def predict_tilted(
        self, atoms: Atoms, slopes: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[Prediction, np.ndarray]:
        """Return energy, forces and stress with a bias, and head energies, in one backward pass.

        See :class:`~otf_workflows.potentials.base.Tiltable`.
        """
        ((_, graph),) = self._batches([atoms])
        with heads.flush_denormals():
            vectors = self._vectors(graph).requires_grad_()
            output = net.forward(self.network, graph, vectors)
            slope, head_energies = heads.tilted_slope(
                output.site_energies_eV, output.hidden, vectors, self.heads, slopes
            )
        energy = output.site_energies_eV.detach().double().sum().item()
        energy += self.network.reference_energies_eV(graph).item()
        (forces,), (stress,) = graphs.forces_and_stress(graph, slope)
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            raise PotentialError(
                "Energy or forces are not finite.", hint="look for atoms on top of each other"
            )
        latent = output.features.detach().double().cpu().numpy()
        novelty = None if self.latent is None else self.latent.novelty(latent)
        return Prediction(energy, forces, stress, novelty=novelty), head_energies

    def features(self, structures: Sequence[Atoms]) -> np.ndarray:
        """Return structure-mean invariants, shape (n_structures, d). No backward pass."""
        rows = [np.zeros((0, self.network.n_features))]
        for _, graph in self._batches(structures):
            with heads.flush_denormals(), torch.no_grad():
                latent = net.forward(self.network, graph, self._vectors(graph)).features
            per_structure = graph.split(latent.double().cpu().numpy())
            rows.append(np.array([atoms.mean(axis=0) for atoms in per_structure]))
        return np.concatenate(rows)

    def fit_uncertainty(
        self,
        structures: Sequence[Atoms],
        forces_eV_A: Sequence[np.ndarray],
        *,
        n_heads: int = 8,
        seed: int,
    ) -> SevenNetPotential:
        """Return a potential with heads and latent statistics fitted to labels.

        Parameters
        ----------
        structures
            What the model was trained on; at most 100 of them are used, at random.
        forces_eV_A
            Their forces at the level of theory of the labels (eV/Å), each of shape (n, 3).
        n_heads
            Number of heads; each is one more backward pass when σ is read.
        seed
            Same seed, same heads.

        Raises
        ------
        InputError
            For fewer than two structures, or forces that do not fit them.
        """
        heads.check_labels(structures, forces_eV_A)
        chosen = uq.subsample(len(structures), seed=seed)
        jacobians: list[np.ndarray] = []
        residuals: list[np.ndarray] = []
        features = []
        for indices, graph in self._batches([structures[i] for i in chosen]):
            rows, forces, latent = self._linearise(graph)
            features.append(latent)
            jacobians += rows
            residuals += [
                np.asarray(forces_eV_A[chosen[index]]) - predicted
                for index, predicted in zip(indices, forces, strict=True)
            ]
        return SevenNetPotential(
            self.network,
            name=self.name,
            heads=uq.bootstrap_heads(jacobians, residuals, n_heads=n_heads, seed=seed),
            latent=uq.latent_statistics(np.concatenate(features)),
        )

    def familiar_with(self, structures: Sequence[Atoms]) -> SevenNetPotential:
        """Return a potential of the same weights and heads whose novelty is counted from these."""
        features = []
        for _, graph in self._batches(structures):
            with heads.flush_denormals(), torch.no_grad():
                latent = net.forward(self.network, graph, self._vectors(graph)).features
            features.append(latent.double().cpu().numpy())
        return SevenNetPotential(
            self.network,
            name=self.name,
            heads=self.heads,
            latent=uq.latent_statistics(np.concatenate(features)),
        )

    def calculator(self) -> PotentialCalculator:
        """Return an ASE calculator for molecular dynamics; its results repeat bit by bit."""
        from otf_workflows.potentials.calculator import PotentialCalculator

        return PotentialCalculator(self)

    def trainable(self) -> TrainableSevenNet:
        """Return a copy of the network for the training loop."""
        from otf_workflows.potentials.sevennet_training import TrainableSevenNet

        return TrainableSevenNet(self.network.copy(), name=self.name)

    def dump(self) -> bytes:
        """Return everything as bytes that :func:`load` reads without running code from them."""
        latent, module = self.latent, self.network.module
        content = {
            "name": self.name,
            "config": self.network.config,
            "modality": self.network.modality,
            "state_dict": {k: v.detach().cpu() for k, v in module.state_dict().items()},
            "heads": None if self.heads is None else torch.as_tensor(self.heads),
            "latent": None
            if latent is None
            else [torch.as_tensor(latent.mean), torch.as_tensor(latent.whitening)],
        }
        return blobs.encode(content, family="sevennet")

    def _vectors(self, graph: graphs.Graph) -> torch.Tensor:
        return torch.as_tensor(graph.vectors_A, device=self.network.device)

    def _batches(self, structures: Sequence[Atoms]) -> Iterator[tuple[list[int], graphs.Graph]]:
        """Yield joined graphs in order, with the indices of their structures."""
        indices: list[int] = []
        parts: list[graphs.Graph] = []
        bonds = 0
        for index, atoms in enumerate(structures):
            check_elements(self.name, atoms.numbers)
            graph = net.build_graph(self.network, atoms)
            if parts and bonds + len(graph.first) > MAX_BONDS:
                yield indices, graphs.join(parts)
                indices, parts, bonds = [], [], 0
            indices.append(index)
            parts.append(graph)
            bonds += len(graph.first)
        if parts:
            yield indices, graphs.join(parts)

    def _evaluate(
        self,
        graph: graphs.Graph,
        other_forces_eV_A: Sequence[np.ndarray | None],
        *,
        with_heads: bool,
    ) -> list[Prediction]:
        changes = self.heads if with_heads else None
        with heads.flush_denormals():
            vectors = self._vectors(graph).requires_grad_()
            output = net.forward(self.network, graph, vectors)
            sites = output.site_energies_eV.double()
            (slope,) = torch.autograd.grad(sites.sum(), vectors, retain_graph=changes is not None)
            deviations = (
                [] if changes is None else heads.head_forces(graph, output.hidden, vectors, changes)
            )
        energies = [part.sum() for part in graph.split(sites.detach().cpu().numpy())]
        energies = energies + self.network.reference_energies_eV(graph).numpy()
        forces, stresses = graphs.forces_and_stress(graph, slope)
        if not (np.isfinite(energies).all() and all(np.isfinite(f).all() for f in forces)):
            raise PotentialError(
                "Energy or forces are not finite.", hint="look for atoms on top of each other"
            )
        sigmas: list[np.ndarray | None]
        if deviations:
            sigmas = list(graph.split(uq.sigma_of_heads(np.array(deviations))))
        else:
            sigmas = [
                None if other is None else uq.disagreement(own, other)
                for own, other in zip(forces, other_forces_eV_A, strict=True)
            ]
        novelties: list[np.ndarray | None] = [None] * graph.n_structures
        if self.latent is not None:
            latent = output.features.detach().double().cpu().numpy()
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
        """Return J (3 n, d) and forces (n, 3) of each structure, and latent features (N, d')."""
        with heads.flush_denormals():
            vectors = self._vectors(graph).requires_grad_()
            output = net.forward(self.network, graph, vectors)
            basis = np.eye(output.hidden.shape[1])
            columns = np.array(heads.head_forces(graph, output.hidden, vectors, basis))
            last = self.network.last_weights().double().cpu().numpy()
        rows = [part.reshape(-1, len(basis)) for part in graph.split(np.moveaxis(columns, 0, 2))]
        forces = [(jacobian @ last).reshape(-1, 3) for jacobian in rows]
        return rows, forces, output.features.detach().double().cpu().numpy()


def load(name: str, blob: bytes | None = None, *, device: str = "cpu") -> SevenNetPotential:
    """Return a shipped model, or one that was dumped.

    Raises
    ------
    InputError
        If the blob is of another potential than ``name``.
    PotentialError
        If the blob is damaged or something else.
    """
    if blob is None:
        return SevenNetPotential(_shipped(name, device), name=name)
    content = blobs.decode(blob, family="sevennet")
    if content["name"] != name:
        raise InputError(f"These are weights of {content['name']}, not of {name}.")
    changes, latent = content["heads"], content["latent"]
    network = net.build(content["config"], content["state_dict"], content["modality"])
    return SevenNetPotential(
        network.to(device),
        name=name,
        heads=None if changes is None else changes.numpy(),
        latent=None if latent is None else uq.LatentStatistics(*(t.numpy() for t in latent)),
    )


@functools.lru_cache(maxsize=2)
def _shipped(name: str, device: str) -> net.Network:
    # building one takes as long as twenty steps of MD, and nobody changes it
    return net.shipped(name).to(device)
