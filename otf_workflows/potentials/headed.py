"""What potentials with last-layer heads do alike, around networks that differ.

Imports torch; reach it through :func:`otf_workflows.potentials.load_potential`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from otf_workflows import uncertainty as uq
from otf_workflows.errors import InputError
from otf_workflows.potentials import blobs, heads
from otf_workflows.potentials import chgnet_graph as graphs
from otf_workflows.potentials.base import PotentialError, Prediction
from otf_workflows.potentials.registry import potential_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from ase import Atoms

    from otf_workflows.potentials.base import Potential
    from otf_workflows.potentials.calculator import PotentialCalculator
    from otf_workflows.potentials.trainable import Trainable


@dataclass(frozen=True)
class Evaluated:
    """A forward pass of a joined graph, and its derivatives.

    Attributes
    ----------
    graph
        One structure or several.
    output
        The forward pass.
    slope_eV_A
        Derivative of the energy by each bond vector (eV/Å), shape (n_bonds, 3).
    head_sigma_eV_A
        Spread of the heads for each atom (eV/Å), shape (n,), if it was asked for.
    """

    graph: graphs.Graph
    output: heads.Pass
    slope_eV_A: torch.Tensor
    head_sigma_eV_A: np.ndarray | None = None


class HeadedPotential(ABC):
    """A network with a linear last layer, with or without uncertainty heads.

    Without heads, the uncertainty is the disagreement with another shipped checkpoint, and there
    is no novelty. The network is never changed: :meth:`fit_uncertainty` returns a new potential.

    Parameters
    ----------
    name
        Registry name of what it was pretrained as.
    heads
        Changes of the last weights, shape (n_heads, d).
    spread
        The few directions in which heads differ, shape (r, d); by default all of them.
    latent
        Statistics of the features of the atoms it was trained on.
    force_share
        How much of the force counts as uncertain (:func:`otf_workflows.uncertainty.force_share`);
        None for σ of the heads alone, which models of earlier versions were calibrated with.
    """

    def __init__(
        self,
        *,
        name: str,
        heads: np.ndarray | None,
        spread: np.ndarray | None,
        latent: uq.LatentStatistics | None,
        force_share: float | None,
    ) -> None:
        self.name = name
        self.heads = heads
        self.force_share = force_share
        if spread is None and heads is not None:
            spread = uq.directions_of_heads(heads)
        self.spread = spread
        self.latent = latent

    @abstractmethod
    def trainable(self) -> Trainable:
        """Return a copy of the network for the training loop."""

    @abstractmethod
    def dump(self) -> bytes:
        """Return everything as bytes that are read without running code from them."""

    @abstractmethod
    def _partner(self) -> Potential:
        """Return the shipped model that one without heads is compared with."""

    @abstractmethod
    def _batches(self, structures: Sequence[Atoms]) -> Iterator[tuple[list[int], graphs.Graph]]:
        """Yield joined graphs with the indices of their structures; InputError, PotentialError."""

    @abstractmethod
    def _inference(self) -> AbstractContextManager[None]:
        """Return what the network runs in."""

    @abstractmethod
    def _forward(self, graph: graphs.Graph) -> heads.Pass:
        """Return one forward pass."""

    @abstractmethod
    def _passes(
        self, structures: Sequence[Atoms], *, with_heads: bool
    ) -> Iterator[tuple[list[int], Evaluated]]:
        """Yield the batches with energies and slopes, and the spread of heads if asked for."""

    @abstractmethod
    def _tilted(
        self, graph: graphs.Graph, changes: np.ndarray, slopes: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[Evaluated, np.ndarray]:
        """Return a pass whose slope is that of energy plus bias, and the head energies (eV).

        The energy of a head is linear in its weights, so by the chain rule the bias has the
        derivative of one more head, with the weights Σ slope × Δw.
        """

    @abstractmethod
    def _references_eV(self, graph: graphs.Graph) -> torch.Tensor:
        """Return the sum of elemental reference energies of each structure (eV, float64)."""

    @abstractmethod
    def _last_weights(self) -> torch.Tensor:
        """Return what maps hidden features to energy, shape (d,)."""

    @abstractmethod
    def _n_features(self) -> int:
        """Return the number of latent features of an atom."""

    @abstractmethod
    def _with_heads(self, changes: np.ndarray) -> Self:
        """Return a potential with these heads."""

    def predict(self, atoms: Atoms, *, uncertainty: bool = False) -> Prediction:
        """Return energy, forces and stress of one structure.

        Parameters
        ----------
        atoms
            Structure with a cell.
        uncertainty
            Also return σ: derivatives in the directions of the heads, or without heads a second
            model.

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
            others = [found.forces_eV_A for found in self._partner().predict_many(structures)]
        predictions: dict[int, Prediction] = {}
        with_heads = uncertainty and self.heads is not None
        for indices, evaluated in self._passes(structures, with_heads=with_heads):
            sites = evaluated.output.site_energies_eV.detach().double().cpu().numpy()
            energies = np.array([part.sum() for part in evaluated.graph.split(sites)])
            energies += self._references_eV(evaluated.graph).numpy()
            batch = self._predictions(evaluated, energies, [others[i] for i in indices])
            predictions |= zip(indices, batch, strict=True)
        return [predictions[index] for index in range(len(structures))]

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
        evaluated, head_energies = self._tilted(graph, self.heads, slopes)
        energy = evaluated.output.site_energies_eV.detach().double().sum().item()
        energy += self._references_eV(graph).item()
        (prediction,) = self._predictions(evaluated, np.array([energy]), [None])
        return prediction, head_energies

    def features(self, structures: Sequence[Atoms]) -> np.ndarray:
        """Return structure-mean latent features, shape (n_structures, d). No backward pass."""
        rows = np.zeros((len(structures), self._n_features()))
        for indices, graph in self._batches(structures):
            rows[indices] = [atoms.mean(axis=0) for atoms in graph.split(self._latent(graph))]
        return rows

    def fit_uncertainty(
        self,
        structures: Sequence[Atoms],
        forces_eV_A: Sequence[np.ndarray],
        *,
        seed: int,
    ) -> Self:
        """Return a potential with heads and latent statistics fitted to labels.

        Parameters
        ----------
        structures
            What the model was trained on; at most
            :data:`~otf_workflows.uncertainty.MAX_STRUCTURES` of them are used, at random.
        forces_eV_A
            Their forces at the level of theory of the labels (eV/Å), each of shape (n, 3).
        seed
            Of that choice.

        Raises
        ------
        InputError
            For fewer than two structures, or forces that do not fit them.
        """
        heads.check_labels(structures, forces_eV_A)
        chosen = uq.subsample(len(structures), seed=seed)
        jacobians: dict[int, np.ndarray] = {}
        predicted: dict[int, np.ndarray] = {}
        features = []
        for indices, graph in self._batches([structures[i] for i in chosen]):
            parts, forces, latent = self._linearise(graph)
            features.append(latent)
            jacobians |= zip(indices, parts, strict=True)
            predicted |= zip(indices, forces, strict=True)
        rows = [jacobians[i] for i in range(len(chosen))]
        found = [predicted[i] for i in range(len(chosen))]
        residuals = [np.asarray(forces_eV_A[i]) - own for i, own in zip(chosen, found, strict=True)]
        changes = uq.posterior_heads(rows, residuals)
        fitted = self._with_heads(changes)
        fitted.latent = uq.latent_statistics(np.concatenate(features))
        spread = uq.sigma_of_jacobian(np.concatenate(rows), uq.directions_of_heads(changes))
        fitted.force_share = uq.force_share(spread, np.concatenate(found))
        return fitted

    def familiar_with(self, structures: Sequence[Atoms]) -> Self:
        """Return a potential of the same weights and heads whose novelty is counted from these.

        Novelty needs no labels: before the first ones, this tells an MD run where it leaves the
        structures that the first labels will be of.
        """
        features = [self._latent(graph) for _, graph in self._batches(structures)]
        familiar = copy.copy(self)
        familiar.latent = uq.latent_statistics(np.concatenate(features))
        return familiar

    def calculator(self) -> PotentialCalculator:
        """Return an ASE calculator for molecular dynamics; its results repeat bit by bit."""
        from otf_workflows.potentials.calculator import PotentialCalculator

        return PotentialCalculator(self)

    def _predictions(
        self,
        evaluated: Evaluated,
        energies_eV: np.ndarray,
        other_forces_eV_A: Sequence[np.ndarray | None],
    ) -> list[Prediction]:
        graph = evaluated.graph
        forces, stresses = graphs.forces_and_stress(graph, evaluated.slope_eV_A)
        if not (np.isfinite(energies_eV).all() and all(np.isfinite(f).all() for f in forces)):
            raise PotentialError(
                "Energy or forces are not finite.", hint="look for atoms on top of each other"
            )
        novelties: list[np.ndarray | None] = [None] * graph.n_structures
        if self.latent is not None:
            latent = evaluated.output.features.detach().double().cpu().numpy()
            novelties = list(graph.split(self.latent.novelty(latent)))
        sigmas: list[np.ndarray | None]
        if evaluated.head_sigma_eV_A is not None:
            spreads = graph.split(evaluated.head_sigma_eV_A)
            sigmas = [self._sigma(*x) for x in zip(spreads, forces, novelties, strict=True)]
        else:
            sigmas = [
                None if other is None else uq.disagreement(own, other)
                for own, other in zip(forces, other_forces_eV_A, strict=True)
            ]
        return [
            Prediction(float(energy), force, stress, sigma_eV_A=sigma, novelty=novelty)
            for energy, force, stress, sigma, novelty in zip(
                energies_eV, forces, stresses, sigmas, novelties, strict=True
            )
        ]

    def _sigma(
        self, head_sigma_eV_A: np.ndarray, forces_eV_A: np.ndarray, novelty: np.ndarray | None
    ) -> np.ndarray:
        """Return σ of each atom of one structure, from the spread of its heads."""
        if self.force_share is None or novelty is None:
            return head_sigma_eV_A
        return uq.sigma_of_atoms(head_sigma_eV_A, forces_eV_A, novelty, share=self.force_share)

    def _latent(self, graph: graphs.Graph) -> np.ndarray:
        """Return latent features of all atoms, shape (n, d)."""
        with self._inference(), torch.no_grad():
            return self._forward(graph).features.double().cpu().numpy()

    def _linearise(
        self, graph: graphs.Graph
    ) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
        """Return J (3 n, d) and forces (n, 3) of each structure, and latent features (N, d')."""
        with self._inference():
            output = self._forward(graph)
            basis = np.eye(output.hidden.shape[1])
            columns = heads.head_forces(graph, output, basis)
            last = self._last_weights().double().cpu().numpy()
        rows = [part.reshape(-1, len(basis)) for part in graph.split(np.moveaxis(columns, 0, 2))]
        forces = [(jacobian @ last).reshape(-1, 3) for jacobian in rows]
        return rows, forces, output.features.detach().double().cpu().numpy()

    def _dump(self, network: dict[str, Any]) -> bytes:
        """Return the network, changes of its last weights and latent statistics as bytes."""
        content = {"name": self.name, **network}
        for key, rows in {"heads": self.heads, "spread": self.spread}.items():
            content[key] = None if rows is None else torch.as_tensor(rows)
        content["force_share"] = self.force_share
        latent = self.latent
        content["latent"] = (
            None
            if latent is None
            else [torch.as_tensor(latent.mean), torch.as_tensor(latent.whitening)]
        )
        return blobs.encode(content, family=potential_entry(self.name).family)


def read(name: str, blob: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what was dumped: all of it, and what of it are arguments of a potential.

    Raises
    ------
    InputError
        If the blob is of another potential than ``name``.
    PotentialError
        If the blob is damaged or something else.
    """
    content = blobs.decode(blob, family=potential_entry(name).family)
    if content["name"] != name:
        raise InputError(f"These are weights of {content['name']}, not of {name}.")
    fitted: dict[str, Any] = {
        key: content[key].numpy()
        for key in ("heads", "spread")  # older blobs have no directions
        if content.get(key) is not None
    }
    fitted["force_share"] = content.get("force_share")  # nor do they have this
    if content["latent"] is not None:
        fitted["latent"] = uq.LatentStatistics(*(rows.numpy() for rows in content["latent"]))
    return content, fitted
