"""Fine-tuning of CHGNet on labels, from a given parent, the same to the last bit every time.

The recipe is the measured best buy for 10 to 500 labels: energies aligned first, all layers
trained, Adam with a cosine of our own over optimiser steps, Huber loss, batches counted in atoms,
gradients clipped, and the epoch with the smallest validation force error kept. chgnet's own
``Trainer`` is not used: it keeps the last weights instead of the best, hardly anneals on small
sets, and replaces a label without stress by another structure.
"""

from __future__ import annotations

import copy
import hashlib
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.alignment import Alignment, align
from otf_workflows.errors import InputError
from otf_workflows.training.loop import Loop, Sample
from otf_workflows.types import Split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from otf_workflows.campaign import TrainingRules
    from otf_workflows.potentials.base import Potential, Prediction
    from otf_workflows.potentials.chgnet_graph import Graph
    from otf_workflows.schemas import LabelledFrame

UNTRAINED = ("composition_model.", "site_wise.")
"""Parts left alone: the energy zero is solved for, not trained; moments are not fitted."""


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
        A CHGNet potential; its weights are where the training starts.
    labels
        Labels of all splits. ``train`` is trained on, ``validation`` chooses the epoch, and
        ``audit`` is never looked at.
    rules
        Epochs, learning rate, batch size and loss weights.
    seed
        Seed of the order of the labels.
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
        model = _trainable_copy(parent)
        alignment, samples = _prepare(parent, model, [*training, *validation])
        loop = Loop(
            model,
            samples[: len(training)],
            samples[len(training) :],
            rules=rules,
            seed=seed,
            task=_task(model, [*training, *validation], rules=rules, seed=seed),
        )
        resumed = loop.resume(checkpoint)
        loop.run(checkpoint, progress=progress)
        loop.restore_best()
    _shift_energies(model, alignment)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return Finetuned(
        potential=_wrap(model, parent),
        history=loop.history,
        alignment=alignment,
        sentences=[*resumed, *loop.sentences()],
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


def _trainable_copy(parent: Potential) -> Any:
    """Return a copy of the parent's network with gradients switched on."""
    from chgnet.model import CHGNet

    network = getattr(parent, "model", None)
    if not isinstance(network, CHGNet) or not network.mlp_first:
        raise InputError(
            f"The potential '{parent.name}' cannot be fine-tuned; only CHGNet can.",
            hint="choose a potential of the family chgnet in the campaign file",
        )
    model = copy.deepcopy(network)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(UNTRAINED))
    return model


def _prepare(
    parent: Potential, model: Any, labels: Sequence[LabelledFrame]
) -> tuple[Alignment, list[Sample]]:
    """Align the labels with the parent and build all graphs, now rather than when first used."""
    from otf_workflows.training.network import build_graphs

    for label in labels:
        _check(label)
    structures = [label.frame.to_atoms() for label in labels]
    graphs = build_graphs(model, structures, names=[label.key for label in labels])
    predictions = parent.predict_many(structures)
    alignment = align(labels, predictions)
    samples = [
        _sample(model, label, graph, prediction, alignment)
        for label, graph, prediction in zip(labels, graphs, predictions, strict=True)
    ]
    return alignment, samples


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


def _sample(
    model: Any, label: LabelledFrame, graph: Graph, prediction: Prediction, alignment: Alignment
) -> Sample:
    """Return a label with the part of its energy that depends on the composition taken off.

    What the parent adds to its network (reference energies) is the difference of its prediction
    and the network's, so float64 carries the large numbers and float32 sees small ones only.
    """
    import torch

    from otf_workflows.training.network import GPA_PER_EV_A3, energy_force_stress

    energy, forces, _ = energy_force_stress(model, [graph], differentiable=False)
    deviation = np.abs(forces.cpu().numpy() - prediction.forces_eV_A).max()
    if deviation > 2e-3 * max(1.0, np.abs(prediction.forces_eV_A).max()):
        raise InputError(
            f"The trainer and the potential disagree on forces by {deviation:.2g} eV/Å: "
            "this variant of CHGNet is not known to the trainer.",
            where=f"label {label.key}",
        )
    n_atoms = label.frame.n_atoms
    network_eV = float(energy) * n_atoms
    shift_eV = alignment.shift_eV(label.frame.numbers)
    target_eV = label.energy_eV - shift_eV - (prediction.energy_eV - network_eV)
    has_stress = label.stress_eV_A3 is not None
    stress = np.array(label.stress_eV_A3 if has_stress else np.zeros((3, 3))) * GPA_PER_EV_A3

    def tensor(value: Any) -> Tensor:
        return torch.tensor(value, dtype=torch.float32, device=energy.device)

    return Sample(
        graph=graph,
        n_atoms=n_atoms,
        energy_eV_atom=tensor([target_eV / n_atoms]),
        forces_eV_A=tensor(label.forces_eV_A),
        stress_GPa=tensor(stress[None]),
        has_stress=has_stress,
    )


def _task(model: Any, labels: Sequence[LabelledFrame], *, rules: TrainingRules, seed: int) -> str:
    """Return a hash of all that decides the result, to tell whose a checkpoint is."""
    import torch

    digest = hashlib.sha256(f"{rules.model_dump_json()} {seed} {torch.get_num_threads()}".encode())
    for label in labels:
        digest.update(label.model_dump_json(include=set(_RESULT)).encode())
        digest.update(label.frame.model_dump_json(include=set(_GEOMETRY)).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()


_RESULT = ("key", "split", "energy_eV", "forces_eV_A", "stress_eV_A3")
_GEOMETRY = ("numbers", "cell_A", "positions_A")


def _shift_energies(model: Any, alignment: Alignment) -> None:
    """Add the alignment to the reference energies, which are part of the weights."""
    from ase.data import atomic_numbers

    weight = model.composition_model.fc.weight
    for symbol, shift in alignment.shifts_eV.items():
        weight.data[0, atomic_numbers[symbol] - 1] += shift


def _wrap(model: Any, parent: Potential) -> Potential:
    """Return the trained network as a potential."""
    from otf_workflows.potentials.chgnet import CHGNetPotential

    for parameter in model.parameters():
        parameter.grad = None
    return CHGNetPotential(model.eval(), name=parent.name)
