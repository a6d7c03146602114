"""Time and memory of an MD step with CHGNet: ours against chgnet's own calculator.

    python benchmarks/inference.py                       the whole table
    python benchmarks/inference.py --sizes 8 64 --json inference.json
    python benchmarks/inference.py --jobs-only           8 walkers: a job each, or one job

For each structure, in one process and one thread, the two take turns and the smallest processor
time of each counts, so that other work on the machine disturbs both alike. "With σ" is a step of a
walker with default settings: heads fitted to rattled structures, read at every tenth step.
Memory is how far the resident size of a fresh process rises in one step of one calculator (Linux).
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import multiprocessing
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from ase import Atoms

CELLS = {"Si": ("diamond", 5.431), "MgO": ("rocksalt", 4.212), "LiCl": ("rocksalt", 5.13)}
REPEATS = {8: (1, 1, 1), 64: (2, 2, 2), 216: (3, 3, 3), 512: (4, 4, 4), 1000: (5, 5, 5)}
CHECK_EVERY = 10
N_WALKERS = 32
N_IN_JOB = 8


def structure(name: str, n_atoms: int, *, seed: int = 0) -> Atoms:
    """Return a rattled supercell of a cubic cell of eight atoms."""
    from ase.build import bulk

    lattice, a = CELLS[name]
    atoms = bulk(name, lattice, a=a, cubic=True) * REPEATS[n_atoms]
    atoms.rattle(0.05, seed=seed)
    return atoms


def fastest(functions: dict[str, Callable[[], object]], n: int) -> dict[str, float]:
    """Return the smallest processor time (ms) of each function; they take turns n times."""
    times = dict.fromkeys(functions, float("inf"))
    for function in functions.values():
        function()
    for _ in range(n):
        for name, function in functions.items():
            gc.collect()
            start = time.thread_time()
            function()
            times[name] = min(times[name], 1e3 * (time.thread_time() - start))
    return times


def time_one(name: str, n_atoms: int, *, repeats: int) -> dict[str, float]:
    """Return times of a step (ms) of one structure, and how far the two are apart."""
    potential, stock = _potential(name), _stock()
    calculator = potential.calculator()
    frames = iter(range(10**6))

    def moved() -> Atoms:
        # every call gets another structure, so that nothing can be reused
        atoms = structure(name, n_atoms)
        atoms.positions += 1e-3 * np.random.default_rng(next(frames)).normal(size=(n_atoms, 3))
        return atoms

    state: dict[str, Atoms] = {}

    def ours() -> None:
        state["atoms"] = moved()
        calculator.calculate(state["atoms"])

    times = fastest(
        {
            "moving": moved,
            "stock_ms": lambda: stock.calculate(moved()),
            "plain_ms": ours,
            # the walker has just had the forces of this structure
            "sigma_ms": lambda: potential.predict(state["atoms"], uncertainty=True),
        },
        repeats,
    )
    overhead = times.pop("moving")
    times["stock_ms"] -= overhead
    times["plain_ms"] -= overhead
    times["with_sigma_ms"] = times["plain_ms"] + times["sigma_ms"] / CHECK_EVERY
    atoms = structure(name, n_atoms)
    calculator.calculate(atoms)
    stock.calculate(atoms)
    times["dF_eV_A"] = float(np.abs(calculator.results["forces"] - stock.results["forces"]).max())
    times["dE_eV_atom"] = float(
        abs(calculator.results["energy"] - stock.results["energy"]) / n_atoms
    )
    return times


def time_walkers(name: str, *, repeats: int) -> dict[str, float]:
    """Return times (ms) of a step of 32 walkers of 8 atoms, together and one by one."""
    potential, stock = _potential(name), _stock()
    walkers = [structure(name, 8, seed=seed) for seed in range(N_WALKERS)]
    return fastest(
        {
            "together_ms": lambda: potential.predict_many(walkers),
            "one_by_one_ms": lambda: [potential.predict(atoms) for atoms in walkers],
            "stock_ms": lambda: [stock.calculate(atoms) for atoms in walkers],
        },
        repeats,
    )


def time_jobs(name: str, *, n_steps: int) -> dict[str, float]:
    """Return times (ms) of a step of one of 8 walkers of 8 atoms: in jobs of their own, in one job.

    Everything that an explore job does counts, readings of the uncertainty at every tenth step
    included; loading the model does not.
    """
    from otf_workflows.campaign import Exploration
    from otf_workflows.exploration import Walker, explore, explore_together
    from otf_workflows.schemas import Calibration, Frame, Origin

    potential = _potential(name)
    shared = {
        "rules": Exploration(steps_per_cycle=n_steps, check_every=CHECK_EVERY),
        "model_id": name,
        "tolerance_eV_A": 1.0,
        "calibration": Calibration(),
        "n_pool": 4,
        "origin": Origin(),
    }
    frame = Frame.from_atoms(structure(name, 8))
    walkers = [Walker(frame, n, temperature_K=600.0, seed=n) for n in range(N_IN_JOB)]
    functions = {
        "job_each_ms": lambda: [explore(**vars(w), potential=potential, **shared) for w in walkers],
        "one_job_ms": lambda: explore_together(walkers, potential, **shared),
    }
    potential.predict_many([frame.to_atoms()], uncertainty=True)
    times = {}
    for what, function in functions.items():
        start = time.process_time()
        n_run = sum(segment.n_steps_run for segment in function())
        times[what] = 1e3 * (time.process_time() - start) / n_run
    return times


def memory_MB(which: str, name: str, n_atoms: int) -> float:
    """Return by how much the largest resident size of a fresh process grows in a step (MB)."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_MB, (which, name, n_atoms))


def _peak_MB(which: str, name: str, n_atoms: int) -> float:
    import torch

    torch.set_num_threads(1)
    calculator = _stock() if which == "stock" else _potential(name).calculator()
    calculator.calculate(structure("Si", 8))
    gc.collect()
    # forget the peak of loading; getrusage cannot, and even inherits that of the parent
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = status_MB("VmRSS")
    calculator.calculate(structure(name, n_atoms))
    return status_MB("VmHWM") - before


def status_MB(field: str) -> float:
    """Return a size from the kernel's account of this process (MB)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"The kernel does not tell {field} of a process.")


@functools.cache
def _potential(name: str) -> object:
    from otf_workflows.potentials import load_potential

    training = [structure(name, 8, seed=seed) for seed in range(1, 9)]
    teacher = load_potential("chgnet-r2scan")
    labels = [p.forces_eV_A for p in teacher.predict_many(training)]
    return load_potential("chgnet-0.3.0").fit_uncertainty(training, labels, seed=0)


@functools.cache
def _stock() -> object:
    from chgnet.model.dynamics import CHGNetCalculator

    return CHGNetCalculator(use_device="cpu", on_isolated_atoms="error")


def main() -> None:
    """Measure and print."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=list(CELLS), choices=CELLS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[8, 64, 216, 512], choices=REPEATS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument("--no-walkers", action="store_true", help="leave out 32 small walkers")
    parser.add_argument("--jobs-only", action="store_true", help="only 8 walkers in 8 jobs or one")
    parser.add_argument("--steps", type=int, default=100, help="MD steps of these")
    parser.add_argument("--json", type=Path, help="write all figures here as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.jobs_only:
        for name in options.names:
            row = time_jobs(name, n_steps=options.steps)
            print(
                f"{N_IN_JOB} walkers of 8 atoms {name}, ms of processor time per step: "
                f"{row['job_each_ms']:.1f} in jobs of their own, {row['one_job_ms']:.1f} in one job"
            )
        return

    print("ms of processor time per step; stock/… is how many times faster than chgnet's own")
    print("               stock   ours  with σ  stock/ours  stock/with σ  dF eV/Å   MB/atom stock")
    results = []
    for name in options.names:
        for n_atoms in options.sizes:
            row = time_one(name, n_atoms, repeats=options.repeats)
            if not options.no_memory:
                row["ours_MB_atom"] = memory_MB("ours", name, n_atoms) / n_atoms
                row["stock_MB_atom"] = memory_MB("stock", name, n_atoms) / n_atoms
            results.append({"structure": name, "n_atoms": n_atoms, **row})
            print(
                f"{name:5}{n_atoms:5}{row['stock_ms']:10.0f}{row['plain_ms']:7.0f}"
                f"{row['with_sigma_ms']:8.0f}{row['stock_ms'] / row['plain_ms']:12.1f}"
                f"{row['stock_ms'] / row['with_sigma_ms']:14.1f}{row['dF_eV_A']:9.0e}"
                f"{row.get('ours_MB_atom', 0):10.2f}{row.get('stock_MB_atom', 0):6.2f}",
                flush=True,
            )
    for name in [] if options.no_walkers else options.names:
        row = time_walkers(name, repeats=options.repeats)
        results.append({"structure": name, "n_walkers": N_WALKERS, **row})
        print(
            f"{N_WALKERS} walkers of 8 atoms {name}: together {row['together_ms']:.0f} ms, one by "
            f"one {row['one_by_one_ms']:.0f} ms, stock {row['stock_ms']:.0f} ms",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
