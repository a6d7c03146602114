"""The epochs of a fine-tuning, with everything needed to stop and continue between two of them."""

from __future__ import annotations

import copy
import math
import pickle
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from otf_workflows.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from otf_workflows.campaign import TrainingRules
    from otf_workflows.potentials.chgnet_graph import Graph
    from otf_workflows.potentials.trainable import Trainable

HUBER_DELTA = 0.1
"""From squares to absolute values at this error (eV/atom, eV/Å, GPa), as in CHGNet's training."""

FINAL_RATE = 0.01
"""The cosine ends at this share of the peak learning rate."""

MAX_GRADIENT_NORM = 1.0
CHECKPOINT_EVERY = 5
"""Epochs between checkpoints."""

VALIDATION_ERROR = "validation_force_rmse_eV_A"


@dataclass(frozen=True)
class Sample:
    """One label as the network sees it: energies without the composition's share.

    Replayed ones, labelled by the parent itself, are trained on but left out of the errors told.
    """

    graph: Graph
    n_atoms: int
    energy_eV_atom: Tensor
    forces_eV_A: Tensor
    stress_GPa: Tensor
    has_stress: bool
    weight: float = 1.0
    replayed: bool = False


class Loop:
    """Epochs, with everything needed to stop and continue between two of them."""

    def __init__(
        self,
        trainable: Trainable,
        training: list[Sample],
        validation: list[Sample],
        *,
        rules: TrainingRules,
        seed: int,
        task: str,
    ) -> None:
        import torch

        self.trainable = trainable
        self.model = trainable.network
        self.training = training
        self.validation = validation
        self.rules = rules
        self.task = task
        self.schedule = [
            _batches([sample.n_atoms for sample in training], rules.batch_atoms, seed, epoch)
            for epoch in range(1, rules.epochs + 1)
        ]
        self.n_steps = sum(len(batches) for batches in self.schedule)
        self.parameters = [value for value in self.model.parameters() if value.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=rules.learning_rate)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_epoch = 0

    def run(
        self,
        checkpoint: Path | None,
        *,
        progress: Callable[[dict[str, float]], None] | None,
    ) -> None:
        """Do the epochs that are left."""
        started = time.monotonic()
        if not self.history:
            self._close({"epoch": 0.0, "learning_rate": 0.0})
        for epoch in range(len(self.history), self.rules.epochs + 1):
            self._close(self._epoch(epoch))
            if checkpoint is not None and epoch % CHECKPOINT_EVERY == 0:
                self.save(checkpoint)
            if progress is not None:
                seconds = time.monotonic() - started
                progress({**self.history[-1], "epochs": self.rules.epochs, "seconds": seconds})

    def _epoch(self, epoch: int) -> dict[str, float]:
        """Do one pass over the training labels; return its averages."""
        import torch

        batches = self.schedule[epoch - 1]
        done = sum(len(earlier) for earlier in self.schedule[: epoch - 1])
        totals = np.zeros(4)
        weights = np.zeros(4)
        for number, batch in enumerate(batches):
            rate = _rate(done + number, self.n_steps, peak=self.rules.learning_rate)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.zero_grad(set_to_none=True)
            samples = [self.training[index] for index in batch]
            loss, errors, counts = self._loss(samples)
            if not bool(torch.isfinite(loss)):
                raise InputError(
                    f"The loss is not a number in epoch {epoch}: the training diverged.",
                    where=f"training.learning_rate = {self.rules.learning_rate:g}",
                    hint="divide training.learning_rate in the campaign file by 3",
                )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
            self.optimizer.step()
            totals += [loss.item() * len(batch), *errors]
            weights += [len(batch), *counts]
        loss, energy, force, stress = totals / np.maximum(weights, 1)
        entry = {
            "epoch": float(epoch),
            "learning_rate": rate,
            "loss": loss,
            "energy_mae_eV_atom": energy,
            "force_mae_eV_A": force,
        }
        if weights[3]:
            entry["stress_mae_GPa"] = stress
        return {name: float(value) for name, value in entry.items()}

    def _loss(self, samples: list[Sample]) -> tuple[Tensor, list[float], list[int]]:
        """Return the loss of a batch, and summed absolute errors (E, F, S) and counts of labels."""
        import torch
        from torch.nn.functional import huber_loss

        from otf_workflows.training.network import energy_force_stress

        energy, forces, stress = energy_force_stress(
            self.trainable, [sample.graph for sample in samples], differentiable=True
        )
        pairs = [
            (energy, torch.cat([sample.energy_eV_atom for sample in samples])),
            (forces, torch.cat([sample.forces_eV_A for sample in samples])),
        ]
        loss_weights = [self.rules.energy_weight, self.rules.force_weight]
        with_stress = [index for index, sample in enumerate(samples) if sample.has_stress]
        if with_stress and self.rules.stress_weight:
            # Indexing, not weights of zero: a mean over nothing would be NaN.
            wanted = torch.cat([samples[index].stress_GPa for index in with_stress])
            pairs.append((stress[with_stress], wanted))
            loss_weights.append(self.rules.stress_weight)
        sizes = torch.tensor([sample.n_atoms for sample in samples])
        owners = [torch.arange(len(samples)), torch.arange(len(samples)).repeat_interleave(sizes)]
        owners.append(torch.tensor(with_stress, dtype=torch.long))
        shares = torch.tensor([sample.weight for sample in samples])
        told = torch.tensor([not sample.replayed for sample in samples])
        losses, errors, counts = [], [0.0] * 3, [0] * 3
        for kind, (weight, (found, wanted)) in enumerate(zip(loss_weights, pairs, strict=True)):
            rows = (-1, *[1] * (found.ndim - 1))
            share = shares[owners[kind]].reshape(rows).to(found)
            own = told[owners[kind]].reshape(rows).to(found)
            each = huber_loss(found, wanted, delta=HUBER_DELTA, reduction="none")
            losses.append(weight * (share * each).mean())
            errors[kind] = (own * (found - wanted)).abs().sum().item()
            counts[kind] = int(own.expand_as(wanted).sum().item())
        return torch.stack(losses).sum(), errors, counts

    def _close(self, entry: dict[str, float]) -> None:
        """Add the validation error to an epoch's entry and remember the weights if best."""
        if self.validation:
            entry[VALIDATION_ERROR] = self._validation_error()
        self.history.append(entry)
        if not self.validation or entry[VALIDATION_ERROR] <= min(
            past[VALIDATION_ERROR] for past in self.history
        ):
            self.best_epoch = int(entry["epoch"])
            self.best = copy.deepcopy(self.model.state_dict())

    def _validation_error(self) -> float:
        """Return the force RMSE over the validation labels (eV/Å)."""
        from otf_workflows.training.network import energy_force_stress

        squares = 0.0
        sizes = [sample.n_atoms for sample in self.validation]
        for batch in _batches(sizes, self.rules.batch_atoms, None, 0):
            samples = [self.validation[index] for index in batch]
            graphs = [sample.graph for sample in samples]
            _, forces, _ = energy_force_stress(self.trainable, graphs, differentiable=False)
            wanted = [sample.forces_eV_A for sample in samples]
            parts = forces.split([sample.n_atoms for sample in samples])
            squares += sum(
                ((found - want) ** 2).sum().item()
                for found, want in zip(parts, wanted, strict=True)
            )
        return math.sqrt(squares / (3 * sum(sizes)))

    def save(self, path: Path) -> None:
        """Write a checkpoint; a kill at any moment leaves the old one or the new one."""
        import torch

        state = {
            "task": self.task,
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best": self.best,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".part")
        torch.save(state, partial)
        partial.replace(path)

    def resume(self, path: Path | None) -> list[str]:
        """Continue from a checkpoint of the same task; return what was done about it."""
        import torch

        if path is None or not path.is_file():
            return []
        try:
            state = torch.load(path, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError):
            return ["A damaged checkpoint was found and left unused."]
        if state.get("task") != self.task:
            return ["A checkpoint of another training was found and left unused."]
        self.history = state["history"]
        self.best_epoch = state["best_epoch"]
        self.best = state["best"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        return [f"Continued after epoch {len(self.history) - 1} from a checkpoint."]

    def restore_best(self) -> None:
        """Put the best weights into the model and mark their epoch."""
        self.model.load_state_dict(self.best)
        for entry in self.history:
            entry["kept"] = float(entry["epoch"] == self.best_epoch)

    def sentences(self) -> list[str]:
        """Return which epoch was kept and why."""
        epochs, n_labels = self.rules.epochs, len(self.validation)
        if not n_labels:
            return [f"No validation labels: the last of {epochs} epochs was kept."]
        best = self.history[self.best_epoch][VALIDATION_ERROR]
        measured = f"force RMSE {best:.3f} eV/Å on {n_labels} validation labels"
        if self.best_epoch == 0:
            start = "the random weights" if self.rules.from_scratch else "the aligned parent"
            return [f"None of {epochs} epochs did better than {start}, kept: {measured}."]
        return [f"Epoch {self.best_epoch} of {epochs} was kept: {measured}."]


def _batches(
    sizes: Sequence[int], most_atoms: int, seed: int | None, epoch: int
) -> list[list[int]]:
    """Return indices in batches of at most ``most_atoms`` (one frame at least), shuffled.

    The order is a function of seed and epoch, so that a resumed run needs no generator state.
    """
    order = np.arange(len(sizes))
    if seed is not None:
        order = np.random.default_rng([seed, epoch]).permutation(len(sizes))
    batches: list[list[int]] = []
    filled = 0
    for index in order.tolist():
        if not batches or filled + sizes[index] > most_atoms:
            batches.append([])
            filled = 0
        batches[-1].append(index)
        filled += sizes[index]
    return batches


def _rate(step: int, n_steps: int, *, peak: float) -> float:
    """Return the learning rate of one optimiser step: a cosine from the peak to 1 % of it."""
    phase = step / max(n_steps - 1, 1)
    return peak * (FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * phase)) / 2)
