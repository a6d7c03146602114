"""Time and memory of a training step with CHGNet: compiled, by autograd, and with chgnet's classes.

    python benchmarks/training.py                        the whole table
    python benchmarks/training.py --cases Si LiCl --repeats 8 --no-memory
    python benchmarks/training.py --finetune-only        one training, compiled and by autograd

A step is everything from graphs to new weights: energies, forces and stress, the loss, its
gradient, Adam. In one process and one thread the three take turns and the smallest processor time
of each counts. Graphs are made before, as in a training. Memory is how far the resident size of a
fresh process rises in its second step (Linux).
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import multiprocessing
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from inference import fastest, status_MB, structure

from otf_workflows.campaign import TrainingRules
from otf_workflows.potentials import load_potential
from otf_workflows.potentials.chgnet import CHGNetPotential
from otf_workflows.potentials.trainable import Trainable
from otf_workflows.schemas import Frame, LabelledFrame
from otf_workflows.training import finetune
from otf_workflows.training.loop import HUBER_DELTA, MAX_GRADIENT_NORM, Loop, Sample
from otf_workflows.types import Split

if TYPE_CHECKING:
    from collections.abc import Callable

    from ase import Atoms

    from otf_workflows.potentials.chgnet_training import TrainableCHGNet

CASES = {"Si": ("Si", 64, 1), "LiCl 8x8": ("LiCl", 8, 8), "LiCl": ("LiCl", 64, 1)}
CASES["MgO"] = ("MgO", 64, 1)
RULES = TrainingRules(epochs=10)


class ByAutograd(CHGNetPotential):
    """CHGNet whose training goes twice through autograd."""

    def trainable(self) -> TrainableCHGNet:
        trainable = super().trainable()
        trainable.evaluate = functools.partial(Trainable.evaluate, trainable)
        return trainable


def our_step(potential: CHGNetPotential, structures: list[Atoms]) -> Callable[[], object]:
    """Return one step of the training loop, on forces that are all wrong."""
    trainable = potential.trainable()
    samples = [
        Sample(
            graph=trainable.build_graph(atoms),
            n_atoms=len(atoms),
            energy_eV_atom=torch.zeros(1),
            forces_eV_A=torch.zeros(len(atoms), 3),
            stress_GPa=torch.zeros(1, 3, 3),
            has_stress=True,
        )
        for atoms in structures
    ]
    loop = Loop(trainable, samples, [], rules=RULES, seed=0, task="")

    def step() -> None:
        loop.optimizer.zero_grad(set_to_none=True)
        loss, _, _ = loop._loss(samples)  # noqa: SLF001
        loss.backward()
        torch.nn.utils.clip_grad_norm_(loop.parameters, MAX_GRADIENT_NORM)
        loop.optimizer.step()

    return step


def stock_step(structures: list[Atoms]) -> Callable[[], object]:
    """Return a step as chgnet's Trainer does it, with the same loss."""
    from chgnet.model import CHGNet
    from chgnet.trainer.trainer import CombinedLoss
    from pymatgen.io.ase import AseAtomsAdaptor

    model = CHGNet.load(use_device="cpu", verbose=False)
    graphs = [model.graph_converter(AseAtomsAdaptor.get_structure(x)) for x in structures]
    criterion = CombinedLoss(
        target_str="efs",
        criterion="Huber",
        delta=HUBER_DELTA,
        energy_loss_ratio=RULES.energy_weight,
        force_loss_ratio=RULES.force_weight,
        stress_loss_ratio=RULES.stress_weight,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=RULES.learning_rate)
    targets = {
        "e": torch.zeros(len(structures)),
        "f": [torch.zeros(len(atoms), 3) for atoms in structures],
        "s": [torch.zeros(3, 3) for _ in structures],
    }

    def step() -> None:
        loss = criterion(targets, model(graphs, task="efs"))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def step_of(which: str, case: str) -> Callable[[], object]:
    """Return a training step of one of the three ways."""
    name, n_atoms, n = CASES[case]
    structures = [structure(name, n_atoms, seed=seed) for seed in range(n)]
    if which == "stock":
        return stock_step(structures)
    potential = load_potential("chgnet-0.3.0")
    if which == "autograd":
        potential = ByAutograd(potential.model, name=potential.name)
    return our_step(potential, structures)


def memory_MB(which: str, case: str) -> float:
    """Return by how much the largest resident size of a fresh process grows in a step (MB)."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_MB, (which, case))


def _peak_MB(which: str, case: str) -> float:
    torch.set_num_threads(1)
    # a step of the smallest cell loads everything that is loaded once
    CASES["warm"] = ("Si", 8, 1)
    step_of(which, "warm")()
    step = step_of(which, case)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = status_MB("VmRSS")
    step()
    return status_MB("VmHWM") - before


def labels() -> list[LabelledFrame]:
    """Return ten labels of LiCl to train on and four to validate, by another checkpoint."""
    structures = [structure("LiCl", 8, seed=seed) for seed in range(14)]
    found = []
    for number, prediction in enumerate(load_potential("chgnet-r2scan").predict_many(structures)):
        found.append(
            LabelledFrame(
                key=f"LiCl-{number}",
                split=Split.TRAIN if number < 10 else Split.VALIDATION,
                cycle=0,
                frame=Frame.from_atoms(structures[number]),
                energy_eV=prediction.energy_eV,
                forces_eV_A=prediction.forces_eV_A.tolist(),
                stress_eV_A3=prediction.stress_eV_A3.tolist(),
            )
        )
    return found


def compare_trainings() -> list[dict[str, object]]:
    """Print errors and time of whole trainings of the same labels, two seeds, both ways."""
    potential = load_potential("chgnet-0.3.0")
    slow = ByAutograd(potential.model, name=potential.name)
    results = []
    print(f"\nvalidation force RMSE (meV/Å), 10 labels of LiCl, {RULES.epochs} epochs")
    for seed in (0, 1):
        for which, parent in (("autograd", slow), ("compiled", potential)):
            done = finetune(parent, labels(), rules=RULES, seed=seed, n_threads=1)
            errors = [1e3 * entry["validation_force_rmse_eV_A"] for entry in done.history]
            results.append({"way": which, "seed": seed, "validation_meV_A": errors})
            told = " ".join(f"{error:.2f}" for error in errors)
            print(f"seed {seed} {which:9} {told}   {done.seconds:.1f} s", flush=True)
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument("--finetune-only", action="store_true", help="only whole trainings")
    parser.add_argument("--json", type=Path, help="write all figures here as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as in a training
    ways = ("stock", "autograd", "compiled")
    results: list[dict[str, object]] = []
    if not options.finetune_only:
        print("ms of processor time per training step, MB of memory")
        print("            chgnet  autograd  compiled  chgnet/  autograd/   MB: the three")
    for case in [] if options.finetune_only else options.cases:
        times = fastest({way: step_of(way, case) for way in ways}, options.repeats)
        sizes = {} if options.no_memory else {way: memory_MB(way, case) for way in ways}
        results.append({"case": case, "ms": times, "MB": sizes})
        stock, autograd, compiled = (times[way] for way in ways)
        told = " ".join(f"{size:5.0f}" for size in sizes.values())
        print(
            f"{case:10}{stock:8.0f}{autograd:10.0f}{compiled:10.0f}{stock / compiled:9.1f}"
            f"{autograd / compiled:11.2f}   {told}",
            flush=True,
        )
    results += compare_trainings()
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
