"""Training of a universal potential on labels, from a given parent, the same bits every time.

The recipe is the measured best buy for 10 to 500 labels: energies aligned first, all layers
trained, Adam with a cosine of our own over optimiser steps, Huber loss, batches counted in atoms,
gradients clipped, and the epoch with the smallest validation force error kept. chgnet's own
``Trainer`` is not used: it keeps the last weights instead of the best, hardly anneals on small
sets, and replaces a label without stress by another structure. What is trained is any
:class:`~otf_workflows.potentials.trainable.Trainable`; the loop knows no architecture.

From scratch, the same loop starts from random weights of the same architecture. The parent still
checks signs and units of the labels; the zeros of energy are then those of the labels themselves.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.alignment import Alignment, align
from otf_workflows.errors import InputError
from otf_workflows.potentials.trainable import TrainablePotential
from otf_workflows.training.loop import Loop, Sample
from otf_workflows.types import Split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from otf_workflows.campaign import TrainingRules
    from otf_workflows.potentials.base import Potential, Prediction
    from otf_workflows.potentials.chgnet_graph import Graph
    from otf_workflows.potentials.trainable import Trainable
    from otf_workflows.schemas import LabelledFrame


@dataclass(frozen=True)
class Finetuned:
    """A fine-tuned potential and how it came about.

    Attributes
    ----------
    potential
        The new potential, without uncertainty heads.
    history
        Entry 0 is the aligned parent, then one for each epoch: ``epoch``, ``learning_rate``,
        ``loss``, training and validation errors, and ``kept`` (1 for the epoch of ``potential``).
    alignment
        Energy shifts, unit checks, and sentences on both.
    sentences
        What a person should know of this training.
    seconds
        Wall time of this call (s).
    """

    potential: Potential
    history: list[dict[str, float]]
    alignment: Alignment
    sentences: list[str]
    seconds: float


def finetune(
    parent: Potential,
    labels: Sequence[LabelledFrame],
    *,
    rules: TrainingRules,
    seed: int,
    n_threads: int | None = None,
    progress: Callable[[dict[str, float]], None] | None = None,
    checkpoint: Path | None = None,
) -> Finetuned:
    """Train all layers of ``parent`` on the training labels; the parent is not altered.

    The result depends on the arguments and the number of threads only: two calls on one machine
    give the same bits.

    Parameters
    ----------
    parent
        A potential that can be trained; its weights are where the training starts, unless the
        rules say ``from_scratch``.
    labels
        Labels of all splits. ``train`` is trained on, ``validation`` chooses the epoch, and
        ``audit`` is never looked at.
    rules
        Epochs, learning rate, batch size and loss weights.
    seed
        Seed of the order of the labels, and of random weights.
    n_threads
        Threads of torch during the call; as they are if not given.
    progress
        Called after each epoch with its history entry, and ``epochs`` and ``seconds`` beside it.
    checkpoint
        File to continue from if it is there and belongs to the same task; written every few
        epochs and removed at the end.

    Raises
    ------
    AlignmentError
        If signs or units of the labels do not fit the parent.
    InputError
        If there is nothing to train on, a label is broken, the parent cannot be trained, or the
        loss diverges.
    """
    started = time.monotonic()
    training = [label for label in labels if label.split is Split.TRAIN]
    validation = [label for label in labels if label.split is Split.VALIDATION]
    if not training:
        raise InputError(
            "There is no label to train on.", where=f"{len(labels)} labels, none of split 'train'"
        )
    with _reproducible(seed, n_threads):
        trainable = _trainable(parent)
        if rules.from_scratch:
            trainable.randomise(seed=seed)
        labels = [*training, *validation]
        alignment, samples = _prepare(parent, trainable, labels, from_scratch=rules.from_scratch)
        replayed = _replayed(parent, trainable, labels, rules=rules, seed=seed)
        loop = Loop(
            trainable,
            [*samples[: len(training)], *replayed],
            samples[len(training) :],
            rules=rules,
            seed=seed,
            task=_task(trainable, labels, rules=rules, seed=seed),
        )
        resumed = loop.resume(checkpoint)
        loop.run(checkpoint, progress=progress)
        loop.restore_best()
    trainable.shift_energies(alignment.shifts_eV)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return Finetuned(
        potential=trainable.finish(),
        history=loop.history,
        alignment=alignment,
        sentences=[*resumed, *_origin(parent, rules, seed), *loop.sentences()],
        seconds=time.monotonic() - started,
    )


@contextmanager
def _reproducible(seed: int, n_threads: int | None) -> Iterator[None]:
    """Make torch deterministic, and leave its global state as it was."""
    import torch

    threads, rng = torch.get_num_threads(), torch.get_rng_state()
    strict = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    details: Any = torch.utils.deterministic
    fill = details.fill_uninitialized_memory
    flushing = torch.full((1,), 1e-310, dtype=torch.float64).mul(1.0).item() == 0.0
    try:
        if n_threads is not None:
            torch.set_num_threads(n_threads)
        torch.manual_seed(seed)
        # Derivatives near the cutoff are full of denormal numbers, which double the time.
        torch.set_flush_denormal(True)
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
        details.fill_uninitialized_memory = False
        yield
    finally:
        torch.set_flush_denormal(flushing)
        details.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
        torch.set_rng_state(rng)
        torch.set_num_threads(threads)


def _trainable(parent: Potential) -> Trainable:
    """Return a copy of the parent's network with gradients switched on."""
    if isinstance(parent, TrainablePotential):
        return parent.trainable()
    from otf_workflows.potentials.registry import POTENTIALS

    choice = ", ".join(name for name, entry in POTENTIALS.items() if entry.trainable)
    raise InputError(
        f"The potential '{parent.name}' cannot be trained.",
        hint=f"choose one of {choice} in the campaign file",
    )


def _origin(parent: Potential, rules: TrainingRules, seed: int) -> list[str]:
    """Return where the weights came from, if not from the parent."""
    if not rules.from_scratch:
        return []
    return [
        (
            f"Trained from random weights (seed {seed}) in the architecture of {parent.name}: "
            "nothing is known to it but the labels."
        )
    ]


def _prepare(
    parent: Potential,
    trainable: Trainable,
    labels: Sequence[LabelledFrame],
    *,
    from_scratch: bool,
) -> tuple[Alignment, list[Sample]]:
    """Align the labels with the parent and build all graphs, now rather than when first used."""
    from otf_workflows.training.network import build_graphs

    for label in labels:
        _check(label)
    structures = [label.frame.to_atoms() for label in labels]
    graphs = build_graphs(trainable, structures, names=[label.key for label in labels])
    predictions = parent.predict_many(structures)
    alignment = align(labels, predictions, own_zeros=from_scratch)
    references_eV = [
        0.0 if from_scratch else _reference_eV(trainable, label, graph, prediction)
        for label, graph, prediction in zip(labels, graphs, predictions, strict=True)
    ]
    device = next(trainable.network.parameters()).device
    samples = [
        _sample(label, graph, reference_eV + alignment.shift_eV(label.frame.numbers), device)
        for label, graph, reference_eV in zip(labels, graphs, references_eV, strict=True)
    ]
    return alignment, samples


def _replayed(
    parent: Potential,
    trainable: Trainable,
    labels: Sequence[LabelledFrame],
    *,
    rules: TrainingRules,
    seed: int,
) -> list[Sample]:
    """Return other crystals of the same elements as the parent sees them, with a small weight.

    Energies are those of the parent's network: the shift towards the labels is added to all
    energies after the training, also to these.
    """
    from otf_workflows.training.network import build_graphs
    from otf_workflows.training.replay import pseudo_labels

    if not rules.replay.n:
        return []
    numbers = {number for label in labels for number in label.frame.numbers}
    pseudo = pseudo_labels(parent, numbers, n=rules.replay.n, seed=seed)
    structures = [label.frame.to_atoms() for label in pseudo]
    graphs = build_graphs(trainable, structures, names=[label.key for label in pseudo])
    predictions = parent.predict_many(structures)
    device = next(trainable.network.parameters()).device
    samples = [
        _sample(label, graph, _reference_eV(trainable, label, graph, prediction), device)
        for label, graph, prediction in zip(pseudo, graphs, predictions, strict=True)
    ]
    return [replace(sample, weight=rules.replay.weight, replayed=True) for sample in samples]


def _check(label: LabelledFrame) -> None:
    """Raise unless energy, forces and stress are numbers of the right shape."""
    arrays = {"energy": (label.energy_eV, ()), "forces": (label.forces_eV_A, (-1, 3))}
    if label.stress_eV_A3 is not None:
        arrays["stress"] = (label.stress_eV_A3, (3, 3))
    for name, (value, shape) in arrays.items():
        array = np.asarray(value, dtype=float)
        wanted = tuple(label.frame.n_atoms if size == -1 else size for size in shape)
        if array.shape != wanted or not np.isfinite(array).all():
            raise InputError(
                f"The {name} of a label must be finite and of shape {wanted}.",
                where=f"label {label.key}",
                hint=f"otf labels show {label.key}",
            )


def _reference_eV(
    trainable: Trainable, label: LabelledFrame, graph: Graph, prediction: Prediction
) -> float:
    """Return what the parent adds to its network: the reference energies of the elements.

    It is the difference of its prediction and the network's, so float64 carries the large numbers
    and float32 sees small ones only.
    """
    from otf_workflows.training.network import energy_force_stress

    energy, forces, _ = energy_force_stress(trainable, [graph], differentiable=False)
    deviation = np.abs(forces.cpu().numpy() - prediction.forces_eV_A).max()
    if deviation > 2e-3 * max(1.0, np.abs(prediction.forces_eV_A).max()):
        raise InputError(
            f"The trainer and the potential disagree on forces by {deviation:.2g} eV/Å: "
            f"this variant of {trainable.name} is not known to the trainer.",
            where=f"label {label.key}",
        )
    return prediction.energy_eV - float(energy) * label.frame.n_atoms


def _sample(label: LabelledFrame, graph: Graph, zero_eV: float, device: Any) -> Sample:
    """Return a label with the part of its energy that depends on the composition taken off."""
    import torch

    from otf_workflows.training.network import GPA_PER_EV_A3

    n_atoms = label.frame.n_atoms
    has_stress = label.stress_eV_A3 is not None
    stress = np.array(label.stress_eV_A3 if has_stress else np.zeros((3, 3))) * GPA_PER_EV_A3

    def tensor(value: Any) -> Tensor:
        return torch.tensor(value, dtype=torch.float32, device=device)

    return Sample(
        graph=graph,
        n_atoms=n_atoms,
        energy_eV_atom=tensor([(label.energy_eV - zero_eV) / n_atoms]),
        forces_eV_A=tensor(label.forces_eV_A),
        stress_GPa=tensor(stress[None]),
        has_stress=has_stress,
    )


def _task(
    trainable: Trainable, labels: Sequence[LabelledFrame], *, rules: TrainingRules, seed: int
) -> str:
    """Return a hash of all that decides the result, to tell whose a checkpoint is."""
    import torch

    digest = hashlib.sha256(f"{rules.model_dump_json()} {seed} {torch.get_num_threads()}".encode())
    for label in labels:
        digest.update(label.model_dump_json(include=set(_RESULT)).encode())
        digest.update(label.frame.model_dump_json(include=set(_GEOMETRY)).encode())
    for name, value in trainable.network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()


_RESULT = ("key", "split", "energy_eV", "forces_eV_A", "stress_eV_A3")
_GEOMETRY = ("numbers", "cell_A", "positions_A")
