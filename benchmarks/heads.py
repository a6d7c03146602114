"""Which uncertainty orders errors best, of those that cost next to nothing?

    python benchmarks/heads.py LABELS [--train 20] [--repeats 5] [--epochs 30]

LABELS is a file that ``otf export`` wrote (extxyz), or the folder of the mlearn silicon pool
(``training.json.gz``; see ``silicon_pool.py``), whose structures are of four kinds. CHGNet is
fine-tuned on random labels and its forces are compared with all others:

- ``σ``: what the program uses, :func:`otf_workflows.uncertainty.sigma_of_atoms`: heads and a share
  of the force, times the novelty;
- ``heads``: of these the heads alone. They represent what the labels leave open of the last
  weights, :func:`otf_workflows.uncertainty.posterior_heads`;
- ``heads, all``: the same without leaving out any direction;
- ``heads and force``: without the novelty;
- ``bootstrap``: eight heads, each fitted to a bootstrap sample of the labels; what earlier versions
  used;
- ``novelty``: distance from the training set in latent space;
- ``|F|``: the predicted force itself, the baseline that any uncertainty must beat.

Printed are means over the repeats of Spearman's rank correlation between σ and error, over frames
(the worst atom counts) and over atoms; the scatter of ln(error / σ) over frames, which is what no
calibration can remove; and the 90 % quantile of error / σ in units of the median, which is the
price of covering 90 %. With kinds, the first three stand for each kind on its own. Errors below
0.01 eV/Å count as that.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import spearmanr
from silicon_pool import read_labels

from otf_workflows import uncertainty as uq
from otf_workflows.calibration import RESOLUTION_EV_A
from otf_workflows.campaign import TrainingRules
from otf_workflows.potentials import load_potential
from otf_workflows.schemas import Frame, LabelledFrame
from otf_workflows.training import finetune
from otf_workflows.types import Split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otf_workflows.potentials.headed import HeadedPotential

PRETRAINED = "chgnet-0.3.0"
COLUMNS = "rank (frames)", "rank (atoms)", "scatter", "q90/q50", "false alarms", "missed"


def read(path: Path) -> tuple[list[LabelledFrame], list[str]]:
    """Return labels and the kind of each."""
    if path.is_dir():
        labels = read_labels(path / "training.json.gz", Split.TRAIN)
        return labels, [label.key.rsplit("-", 1)[1] for label in labels]
    import ase.io

    labels = [
        LabelledFrame(
            key=f"{path.name}-{i}",
            split=Split.TRAIN,
            cycle=0,
            frame=Frame.from_atoms(atoms),
            energy_eV=float(atoms.info["REF_energy"]),
            forces_eV_A=atoms.arrays["REF_forces"].tolist(),
        )
        for i, atoms in enumerate(ase.io.read(path, ":"))
    ]
    return labels, ["all"] * len(labels)


def bootstrap_directions(
    jacobians: Sequence[np.ndarray], residuals: Sequence[np.ndarray], *, seed: int
) -> np.ndarray:
    """Return the directions in which eight heads differ, each fitted to a bootstrap sample."""
    rng, n = np.random.default_rng(seed), len(jacobians)
    heads = []
    for _ in range(8):
        drawn = rng.integers(n, size=n)
        rows = np.concatenate([jacobians[i] for i in drawn])
        targets = np.concatenate([residuals[i].ravel() for i in drawn])
        gram = rows.T @ rows
        gram += 1e-4 * np.trace(gram) / len(gram) * np.eye(len(gram))
        heads.append(np.linalg.solve(gram, rows.T @ targets))
    return uq.directions_of_heads(np.array(heads))


def all_directions(jacobians: Sequence[np.ndarray], residuals: Sequence[np.ndarray]) -> np.ndarray:
    """Return the posterior of the last weights without leaving out any direction."""
    most, uq.MAX_DIRECTIONS = uq.MAX_DIRECTIONS, len(jacobians[0][0])
    try:
        return uq.directions_of_heads(uq.posterior_heads(jacobians, residuals, keep=1))
    finally:
        uq.MAX_DIRECTIONS = most


def judge(
    model: HeadedPotential, labels: Sequence[LabelledFrame], trained: Sequence[int], *, seed: int
) -> tuple[dict[str, list[np.ndarray]], list[np.ndarray]]:
    """Return each method's σ and the errors, per atom, of the frames not trained on."""
    atoms = [label.frame.to_atoms() for label in labels]
    truth = [np.asarray(label.forces_eV_A) for label in labels]
    jacobians, forces, latents = [], [], []
    for structure in atoms:
        for _, graph in model._batches([structure]):  # noqa: SLF001 - J is nobody else's business
            (jacobian,), (force,), latent = model._linearise(graph)  # noqa: SLF001
            jacobians.append(jacobian)
            forces.append(force)
            latents.append(latent)
    own = [jacobians[i] for i in trained]
    residuals = [truth[i] - forces[i] for i in trained]

    def spread(directions: np.ndarray) -> Callable[[int], np.ndarray]:
        return lambda i: uq.sigma_of_jacobian(jacobians[i], directions)

    heads = spread(uq.directions_of_heads(uq.posterior_heads(own, residuals)))
    share = uq.force_share(
        np.concatenate([heads(i) for i in trained]), np.concatenate([forces[i] for i in trained])
    )

    def combined(i: int, novelty: np.ndarray) -> np.ndarray:
        return uq.sigma_of_atoms(heads(i), forces[i], novelty, share=share)

    known = uq.latent_statistics(np.concatenate([latents[i] for i in trained]))
    methods: dict[str, Callable[[int], np.ndarray]] = {
        "σ": lambda i: combined(i, known.novelty(latents[i])),
        "heads": heads,
        "heads, all": spread(all_directions(own, residuals)),
        "bootstrap": spread(bootstrap_directions(own, residuals, seed=seed)),
        "heads and force": lambda i: combined(i, np.ones(len(forces[i]))),
        "novelty": lambda i: known.novelty(latents[i]),
        "|F|": lambda i: np.linalg.norm(forces[i], axis=1),
    }
    rest = sorted(set(range(len(labels))) - set(trained))
    sigmas = {name: [sigma(i) for i in rest] for name, sigma in methods.items()}
    return sigmas, [np.linalg.norm(truth[i] - forces[i], axis=1) for i in rest]


def scores(sigmas: Sequence[np.ndarray], errors: Sequence[np.ndarray]) -> list[float]:
    """Return the columns of one method."""
    worst = np.array([error.max() for error in errors])
    read_off = np.array([sigma.max() for sigma in sigmas])
    ratio = np.log(np.maximum(worst, RESOLUTION_EV_A) / np.maximum(read_off, 1e-12))
    middle, high = np.quantile(ratio, [0.5, 0.9])
    tolerance = np.quantile(worst, 0.7)
    bad, alarm = worst > tolerance, np.exp(high) * read_off > tolerance
    return [
        spearmanr(read_off, worst)[0],
        spearmanr(np.concatenate(sigmas), np.concatenate(errors))[0],
        float(ratio.std()),
        float(np.exp(high - middle)),
        float(alarm[~bad].mean()),
        float(1 - alarm[bad].mean()),
    ]


def main() -> None:
    """Train, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", type=Path)
    parser.add_argument("--train", type=int, default=20, help="labels to train on")
    parser.add_argument("--repeats", type=int, default=5, help="random choices of these")
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    labels, kinds = read(options.labels)
    found: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for seed in range(options.repeats):
        drawn = np.random.default_rng(seed).permutation(len(labels))[: options.train]
        tuned = finetune(
            load_potential(PRETRAINED),
            [labels[i] for i in drawn],
            rules=TrainingRules(epochs=options.epochs),
            seed=seed,
        )
        sigmas, errors = judge(tuned.potential, labels, drawn.tolist(), seed=seed)
        of = [kind for i, kind in enumerate(kinds) if i not in set(drawn.tolist())]
        for kind in sorted(set(of)):
            chosen = [i for i, k in enumerate(of) if k == kind]
            for name, values in sigmas.items():
                row = scores([values[i] for i in chosen], [errors[i] for i in chosen])
                found[kind, name].append(row)
        print(f"repeat {seed}: RMS |ΔF| {np.sqrt(np.mean(np.concatenate(errors) ** 2)):.3f} eV/Å")
    print(f"\n{options.train} of {len(labels)} labels, {options.repeats} repeats")
    print("| kind | σ | " + " | ".join(COLUMNS) + " |\n" + "|---" * (2 + len(COLUMNS)) + "|")
    for (kind, name), rows in found.items():
        print(
            f"| {kind} | {name} | " + " | ".join(f"{x:.2f}" for x in np.mean(rows, axis=0)) + " |"
        )


if __name__ == "__main__":
    main()
