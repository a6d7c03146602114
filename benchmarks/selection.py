"""How long a choice among very many frames takes, and how much memory.

    python benchmarks/selection.py [--candidates 100000] [--labels 100000]

Synthetic features of 64 numbers. ``manifold``: frames lie near a curved surface of ten dimensions,
as those of molecular dynamics do, and one candidate in ten is a copy of a label. ``noise``: all 64
directions vary independently, the worst case for a tree. Half of the labels are in the data set,
the other half belongs to other campaigns. With a budget of core-hours frames have two sizes, and
the hours suffice for a third of the best batch. Each row runs in a process of its own; times are of
its processor, since the machine may be busy. What the database takes to hand the labels over is
not in it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import time
from typing import TYPE_CHECKING

import numpy as np

from otf_workflows.diversity import HourBudget, PaidLabels
from otf_workflows.selection import select_frames

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

D = 64


def frames(n: int, kind: str, *, seed: int) -> np.ndarray:
    """Return features, shape (n, 64)."""
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.normal(size=(n, D))
    surface = np.random.default_rng(7).normal(size=(2, 10, D))
    z = rng.normal(size=(n, 10))
    return z @ surface[0] + 0.3 * (z**2) @ surface[1] + 0.02 * rng.normal(size=(n, D))


def measure(n: int, m: int, kind: str, with_budget: bool, answer: Connection) -> None:
    """Send what was chosen, seconds of processor, and peak memory in GB."""
    known, others = frames(m // 2, kind, seed=1), frames(m - m // 2, kind, seed=2)
    x = frames(n, kind, seed=3)
    rng = np.random.default_rng(0)
    copies = rng.permutation(n)[: n // 10]
    x[copies] = known[rng.integers(len(known), size=len(copies))] + 1e-4
    n_atoms = rng.choice([8, 64], size=n)
    budget = HourBudget(
        core_hours=40 * 3.0, price=lambda rows: (n_atoms[rows] / 16) ** 2, n_atoms=n_atoms
    )
    begun = time.process_time()
    outcome = select_frames(
        x,
        rng.uniform(0, 0.3, n),
        existing_features=known,
        n_select=40,
        threshold=0.1,
        min_labels=4,
        duplicate_distance=0.01,
        seed=0,
        paid=PaidLabels(others, 0.1),
        budget=budget if with_budget else None,
    )
    seconds = time.process_time() - begun
    peak_GB = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    answer.send((len(outcome.indices), outcome.n_duplicates, seconds, peak_GB))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=100_000)
    parser.add_argument("--labels", type=int, default=100_000)
    args = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    print("| candidates | labels | kind | budget | chosen | copies | processor s | peak GB |")
    print("|---" * 8 + "|")
    context = multiprocessing.get_context("spawn")
    for kind in ("manifold", "noise"):
        for with_budget in (False, True):
            receiver, sender = context.Pipe(duplex=False)
            work = (args.candidates, args.labels, kind, with_budget, sender)
            process = context.Process(target=measure, args=work)
            process.start()
            chosen, copies, seconds, peak_GB = receiver.recv()
            process.join()
            print(
                f"| {args.candidates} | {args.labels} | {kind} | {'yes' if with_budget else 'no'} "
                f"| {chosen} | {copies} | {seconds:.1f} | {peak_GB:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
