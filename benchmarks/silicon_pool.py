"""Silicon as a pool whose labels are revealed on request: do we choose better than by chance?

    python benchmarks/silicon_pool.py FOLDER --out RESULTS [--rounds 8 16 32 60] [--seeds 0 1 2]

FOLDER holds ``training.json.gz`` (the pool: 214 structures) and ``test.json.gz`` (the published
test set: 25) of the mlearn benchmark (Zuo et al., J. Phys. Chem. A 124, 731 (2020)). In each round
a strategy picks structures, CHGNet is fine-tuned on all it has picked, from the pretrained weights,
and measured on the test set. Training is the same for all strategies, without validation labels.

- ``ours``: ``select_frames`` of a campaign at 0.1 eV/Å. σ is the disagreement of two shipped
  checkpoints before the first label, and that of our heads afterwards, times the factor that would
  have covered 90 % of the latest batch before training on it.
- ``random``: a random order of the pool.
- ``farthest``: farthest-point sampling of structure-mean features, from a random start.
- ``committee``: three models trained on bootstrap resamples of the labels; the structures with the
  largest deviation of a force among them. The first batch is random. The model that is measured is
  trained on all labels, as for the other strategies.

Each (seed, round, strategy) is one line of RESULTS/runs.jsonl, with what to pick next: a run that
was killed goes on where it was. At the end, or with ``--table``, the table is printed and the
learning curves are drawn into RESULTS/silicon_pool.svg.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.calibration import conformal_factor, coverage
from otf_workflows.campaign import SelectionRules, TrainingRules
from otf_workflows.honesty import spearman
from otf_workflows.potentials import load_potential
from otf_workflows.schemas import Calibration, Frame, LabelledFrame
from otf_workflows.selection import select_frames
from otf_workflows.training import evaluate, finetune
from otf_workflows.types import Split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.potentials.base import Potential
    from otf_workflows.training import Evaluation

STRATEGIES = ("ours", "random", "farthest", "committee")
TOLERANCE_EV_A = 0.1
MEMBERS = 3
BATCH_ATOMS = 64
"""One structure of the pool, but for the smallest surfaces."""
SNAP_EV_A, QSNAP_EV_A, MTP_EV_A = 0.205, 0.177, 0.088
"""Published potentials, trained on all 214 structures, on the same test set."""
GOAL_EV_A, GOAL_SLOPE = 0.150, 0.95


def read_labels(path: Path, split: Split) -> list[LabelledFrame]:
    """Return the records of one file, with the stress as tests/data/mlearn_si/README.md tells."""
    with gzip.open(path, "rt") as file:
        records = json.load(file)
    return [_label(record, f"{path.name}-{i}", split) for i, record in enumerate(records)]


def _label(record: dict[str, Any], key: str, split: Split) -> LabelledFrame:
    from ase.data import atomic_numbers

    stress = None
    if record["group"] != "Surface":
        xx, yy, zz, xy, fifth, sixth = (
            np.array(record["outputs"]["virial_stress"]) * -0.1 / 160.2177
        )
        yz, xz = (fifth, sixth) if record["group"] == "Elastic" else (sixth, fifth)
        stress = [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]
    sites = record["structure"]["sites"]
    return LabelledFrame(
        key=f"{key}-{record['group']}",
        split=split,
        cycle=0,
        frame=Frame(
            numbers=[atomic_numbers[site["species"][0]["element"]] for site in sites],
            cell_A=record["structure"]["lattice"]["matrix"],
            positions_A=[site["xyz"] for site in sites],
        ),
        energy_eV=record["outputs"]["energy"],
        forces_eV_A=record["outputs"]["forces"],
        stress_eV_A3=stress,
    )


class Pool:
    """Structures whose labels are looked at only when a strategy has picked them."""

    def __init__(self, folder: Path) -> None:
        self.labels = read_labels(folder / "training.json.gz", Split.TRAIN)
        self.test = read_labels(folder / "test.json.gz", Split.AUDIT)
        self.atoms = [label.frame.to_atoms() for label in self.labels]
        self.pretrained = load_potential("chgnet-0.3.0")

    @cached_property
    def features(self) -> np.ndarray:
        """Structure-mean features of the pretrained model, as a campaign keeps them."""
        return self.pretrained.features(self.atoms)

    @cached_property
    def cold_sigmas(self) -> np.ndarray:
        """Worst-atom uncertainty before the first label (eV/Å)."""
        return worst_sigmas(self.pretrained, self.atoms)


def worst_sigmas(potential: Potential, atoms: Sequence[Any]) -> np.ndarray:
    """Return the largest σ of an atom of each structure (eV/Å)."""
    found = potential.predict_many(atoms, uncertainty=True)
    return np.array([float(np.max(prediction.sigma_eV_A)) for prediction in found])


class Chain:
    """One strategy with one seed: what it has picked, and what it will pick next."""

    def __init__(self, pool: Pool, strategy: str, seed: int, args: argparse.Namespace) -> None:
        self.pool = pool
        self.strategy = strategy
        self.seed = seed
        self.args = args

    def first(self) -> dict[str, Any]:
        """Return the first batch."""
        n = self.args.rounds[0]
        if self.strategy == "ours":
            return self._ours(self.pool.pretrained, self.pool.cold_sigmas, [], n, factor=1.0)
        if self.strategy == "farthest":
            return {"next": self._farthest([], n)}
        return {"next": self._random([], n)}

    def step(self, earlier: dict[str, Any], number: int) -> dict[str, Any]:
        """Train on all that was picked, measure, and pick the next batch."""
        begun, cpu = time.perf_counter(), time.process_time()
        picked = [*earlier.get("picked", []), *earlier["next"]]
        model = self._train(picked, len(picked), seed=self.seed)
        row = {"picked": picked, **measures(evaluate(model, self.pool.test))}
        if number + 1 < len(self.args.rounds):
            n = self.args.rounds[number + 1] - len(picked)
            # What calibrates heads is a batch that heads have chosen, not the cold start.
            factor = earlier["fresh_factor"] if number and self.strategy == "ours" else 1.0
            row |= self._next(model, picked, n, factor)
        row["seconds"] = time.perf_counter() - begun
        row["cpu_seconds"] = time.process_time() - cpu
        return row

    def _train(self, picked: Sequence[int], n_labels: int, *, seed: int) -> Potential:
        epochs = self.args.epochs[self.args.rounds.index(n_labels)]
        rules = TrainingRules(
            epochs=epochs, learning_rate=self.args.learning_rate, batch_atoms=BATCH_ATOMS
        )
        labels = [self.pool.labels[i] for i in picked]
        tuned = finetune(self.pool.pretrained, labels, rules=rules, seed=seed, n_threads=1)
        return tuned.potential

    def _next(self, model: Potential, picked: list[int], n: int, factor: float) -> dict[str, Any]:
        if self.strategy == "random":
            return {"next": self._random(picked, n)}
        if self.strategy == "farthest":
            return {"next": self._farthest(picked, n)}
        rest = self._rest(picked)
        atoms = [self.pool.atoms[i] for i in rest]
        if self.strategy == "committee":
            order = np.argsort(-self._committee(picked, atoms), kind="stable")
            return {"next": [rest[i] for i in order[:n]]}
        fitted = model.fit_uncertainty(
            [self.pool.atoms[i] for i in picked],
            [np.array(self.pool.labels[i].forces_eV_A) for i in picked],
            seed=self.seed,
        )
        return self._ours(fitted, worst_sigmas(fitted, atoms), picked, n, factor=factor)

    def _ours(
        self, model: Potential, sigmas: np.ndarray, picked: list[int], n: int, *, factor: float
    ) -> dict[str, Any]:
        """Return the choice of a campaign, and how honest σ was on what was chosen."""
        rest = self._rest(picked)
        outcome = select_frames(
            self.pool.features[rest],
            sigmas * factor,
            existing_features=self.pool.features[picked] if picked else None,
            n_select=n,
            threshold=TOLERANCE_EV_A,
            min_labels=n,
            duplicate_distance=SelectionRules().duplicate_distance,
            seed=self.seed * 1_000_003 + len(picked),
        )
        chosen = [rest[i] for i in outcome.indices]
        found = evaluate(model, [self.pool.labels[i] for i in chosen]).arrays
        errors, raw = found["worst_error_eV_A"], sigmas[outcome.indices]
        return {
            "next": chosen,
            "factor": factor,
            "fresh_factor": conformal_factor(errors, raw).factor,
            "fresh_coverage": coverage(errors, raw, Calibration(factor=factor)),
            "fresh_spearman": spearman(errors, raw),
            "fresh_spearman_force": spearman(errors, found["worst_force_eV_A"]),
            "sentences": outcome.sentences,
        }

    def _rest(self, picked: Sequence[int]) -> list[int]:
        return sorted(set(range(len(self.pool.labels))) - set(picked))

    def _random(self, picked: list[int], n: int) -> list[int]:
        order = np.random.default_rng(self.seed).permutation(len(self.pool.labels))
        return order[len(picked) : len(picked) + n].tolist()

    def _farthest(self, picked: list[int], n: int) -> list[int]:
        x = self.pool.features
        x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-9)
        chosen = picked or [int(np.random.default_rng(self.seed).integers(len(x)))]
        chosen = list(chosen)
        away = np.min([np.linalg.norm(x - x[i], axis=1) for i in chosen], axis=0)
        while len(chosen) < len(picked) + n:
            chosen.append(int(np.argmax(away)))
            away = np.minimum(away, np.linalg.norm(x - x[chosen[-1]], axis=1))
        return chosen[len(picked) :]

    def _committee(self, picked: list[int], atoms: list[Any]) -> np.ndarray:
        """Return the largest deviation of a force among the members, for each structure (eV/Å)."""
        rng = np.random.default_rng([self.seed, len(picked)])
        forces = []
        for member in range(MEMBERS):
            drawn = rng.choice(picked, size=len(picked)).tolist()
            model = self._train(drawn, len(picked), seed=100 * self.seed + member)
            forces.append([found.forces_eV_A for found in model.predict_many(atoms)])
        return np.array(
            [
                float(np.sqrt(np.var(members, axis=0).sum(axis=1)).max())
                for members in zip(*forces, strict=True)
            ]
        )


def measures(evaluation: Evaluation) -> dict[str, Any]:
    """Return what the table needs of errors on the test set."""
    arrays, errors = evaluation.arrays, evaluation.errors
    energy = np.array(arrays["energy_predicted_eV_atom"]) - arrays["energy_dft_eV_atom"]
    groups: dict[str, list[np.ndarray]] = {}
    for key, found, wanted in zip(
        arrays["keys"], arrays["force_predicted"], arrays["force_dft"], strict=True
    ):
        groups.setdefault(key.split("-", 2)[-1], []).append(np.subtract(found, wanted))
    return {
        "force_rmse_eV_A": errors.force_rmse_eV_A,
        "force_slope": errors.force_slope,
        "energy_mae_eV_atom": errors.energy_mae_eV_atom,
        # Nothing is taken off: the zero of energy is learned from the labels.
        "energy_rmse_eV_atom": float(np.sqrt(np.mean(energy**2))),
        "groups_eV_A": {
            name: float(np.sqrt(np.mean(np.concatenate(rows) ** 2)))
            for name, rows in groups.items()
        },
    }


def run(pool: Pool, args: argparse.Namespace) -> None:
    """Do what is not done yet: all strategies of a round, then the next round, then the seed."""
    path = args.out / "runs.jsonl"
    args.out.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in read_rows(path)))
    settings = {"rounds": args.rounds, "epochs": args.epochs, "rate": args.learning_rate}
    for seed in args.seeds:
        for number in range(len(args.rounds)):
            for strategy in args.strategies:
                chain = Chain(pool, strategy, seed, args)
                done = {(r["strategy"], r["seed"], r["round"]): r for r in read_rows(path)}
                if (strategy, seed, number) in done:
                    continue
                earlier = done[strategy, seed, number - 1] if number else chain.first()
                if earlier.get("settings", settings) != settings:
                    message = f"{path} was made with {earlier['settings']}, not {settings}"
                    raise SystemExit(message)
                row = {"strategy": strategy, "seed": seed, "round": number, "settings": settings}
                row |= chain.step(earlier, number)
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(
                    f"{strategy:>9} seed {seed} {len(row['picked']):>3} labels: "
                    f"{1000 * row['force_rmse_eV_A']:.0f} meV/Å, slope {row['force_slope']:.3f}, "
                    f"{1000 * row['energy_mae_eV_atom']:.1f} meV/atom; "
                    f"{row['cpu_seconds']:.0f} s of processor, {row['seconds']:.0f} s on the clock",
                    flush=True,
                )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the finished lines; the last one may have been cut by a kill."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"A line of {path} is cut and left out.")
    return rows


def curves(rows: Sequence[dict[str, Any]], what: str) -> dict[str, dict[int, list[float]]]:
    """Return strategy → number of labels → values of all seeds."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        by_size = found.setdefault(row["strategy"], {})
        by_size.setdefault(len(row["picked"]), []).append(row[what])
    return {name: dict(sorted(found[name].items())) for name in STRATEGIES if name in found}


def labels_for(curve: dict[int, float], target: float) -> float | None:
    """Return where a learning curve, straight between its points in log-log, meets a target.

    None if it never does. A curve that starts below it gives its first point, an upper bound.
    """
    sizes = list(curve)
    if curve[sizes[0]] <= target:
        return sizes[0]
    for left, right in itertools.pairwise(sizes):
        if curve[right] <= target:
            share = np.log(curve[left] / target) / np.log(curve[left] / curve[right])
            return float(left * (right / left) ** share)
    return None


def table(rows: Sequence[dict[str, Any]]) -> None:
    """Print errors on the test set, and the labels that each strategy needs for the same error."""
    names = {
        "force_rmse_eV_A": "F RMSE meV/Å",
        "force_slope": "slope",
        "energy_mae_eV_atom": "E MAE meV/atom",
        "energy_rmse_eV_atom": "E RMSE meV/atom",
    }
    print("\n| strategy | labels | seeds | " + " | ".join(names.values()) + " |")
    print("|---" * (3 + len(names)) + "|")
    values = {what: curves(rows, what) for what in names}
    for strategy, by_size in values["force_slope"].items():
        for n, slopes in by_size.items():
            cells = []
            for what in names:
                found = np.array(values[what][strategy][n]) * (1 if what == "force_slope" else 1000)
                digits = 3 if what == "force_slope" else 1
                cells.append(f"{found.mean():.{digits}f} ± {found.std():.{digits}f}")
            print(f"| {strategy} | {n} | {len(slopes)} | " + " | ".join(cells) + " |")
    print(
        f"\nSNAP {1000 * SNAP_EV_A:.0f}, qSNAP {1000 * QSNAP_EV_A:.0f}, MTP "
        f"{1000 * MTP_EV_A:.0f} meV/Å with all 214; goal {1000 * GOAL_EV_A:.0f}, "
        f"slope {GOAL_SLOPE}."
    )
    _same_error(values["force_rmse_eV_A"])
    used = sum(row["cpu_seconds"] for row in rows), sum(row["seconds"] for row in rows)
    print(
        f"{len(rows)} trainings: {used[0] / 60:.0f} min of processor, {used[1] / 60:.0f} min on "
        "the clock."
    )


def _same_error(found: dict[str, dict[int, list[float]]]) -> None:
    """Print how many labels reach what a random choice reaches, from curves of mean errors."""
    means = {name: {n: float(np.mean(v)) for n, v in c.items()} for name, c in found.items()}
    if "random" not in means:
        return
    print("\n| same error as random at | meV/Å | " + " | ".join(means) + " |")
    print("|---" * (2 + len(means)) + "|")
    for n, error in means["random"].items():
        cells = []
        for curve in means.values():
            needed = labels_for(curve, error)
            first = needed is not None and needed == min(curve) and needed < n
            cells.append(
                "not reached"
                if needed is None
                else f"{'≤ ' if first else ''}{needed:.0f} ({needed / n:.2f})"
            )
        print(f"| {n} | {1000 * error:.0f} | " + " | ".join(cells) + " |")


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the learning curves: means, and the seeds as dots."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from otf_workflows.report.svg import CYCLE_COLOURS, STYLE

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 4), layout="constrained", facecolor="white")
        panels = figure.subplots(1, 2)
        for axes, what, title in (
            (panels[0], "force_rmse_eV_A", "Force RMSE on the test set (meV/Å)"),
            (panels[1], "energy_mae_eV_atom", "Energy MAE on the test set (meV/atom)"),
        ):
            for colour, (name, curve) in zip(
                CYCLE_COLOURS, curves(rows, what).items(), strict=False
            ):
                sizes = list(curve)
                axes.plot(
                    sizes, [1000 * np.mean(curve[n]) for n in sizes], color=colour, label=name
                )
                for n in sizes:
                    axes.plot([n] * len(curve[n]), 1000 * np.array(curve[n]), ".", color=colour)
            axes.set(xscale="log", xlabel="labels", title=title)
            axes.set_xticks(sizes, [str(n) for n in sizes])
            axes.minorticks_off()
        for level, name in ((SNAP_EV_A, "SNAP, 214 labels"), (GOAL_EV_A, "goal")):
            panels[0].axhline(1000 * level, color="0.5", linestyle="--", linewidth=0.8)
            panels[0].text(
                1,
                1000 * level,
                f"{name} ",
                transform=panels[0].get_yaxis_transform(),
                ha="right",
                va="bottom",
                fontsize=8,
                color="0.4",
            )
        panels[1].legend()
        figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the two files of mlearn's silicon are")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--rounds", type=int, nargs="+", default=[8, 16, 32, 60])
    parser.add_argument("--epochs", type=int, nargs="+", default=[24, 16, 12, 8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--learning-rate", type=float, default=TrainingRules().learning_rate)
    parser.add_argument("--table", action="store_true", help="only the table and the plot")
    args = parser.parse_args()
    if len(args.rounds) != len(args.epochs):
        parser.error("give as many --epochs as --rounds")
    if not args.table:
        import torch

        torch.set_num_threads(1)
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors", flush=True)
        run(Pool(args.folder), args)
    rows = read_rows(args.out / "runs.jsonl")
    table(rows)
    plot(rows, args.out / "silicon_pool.svg")


if __name__ == "__main__":
    main()
