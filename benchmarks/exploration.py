"""How early a walker that leaves what its model knows is noticed, and what a bias is worth.

Both with CHGNet on LiCl. Its uncertainty heads are fitted to 20 frames of MD at 300 K; another
shipped checkpoint (0.2.0) plays DFT. Nothing else is fitted, so that the figures are those of the
walkers and not of a training.

    python benchmarks/exploration.py notice --seeds 3
    python benchmarks/exploration.py bias --seeds 2 --strengths 0 0.5 1

``notice`` heats a walker of 8 atoms from 300 K to 2000 K and reads uncertainty and novelty at
every step; then it asks when each way of checking would have stopped it. ``bias`` runs 30 atoms (a
vacancy pair) at 500 K, plainly and biased, and looks for the first ion that leaves its site.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.campaign import Ramp
from otf_workflows.exploration.bias import UncertaintyBias
from otf_workflows.exploration.dynamics import Dynamics, Ensemble, first_checkpoint
from otf_workflows.exploration.loop import EARLY_SHARE, NOVELTY_RISE, SAVE_EVERY

if TYPE_CHECKING:
    from ase import Atoms

    from otf_workflows.potentials.chgnet import CHGNetPotential

LABELLED = 20
TIMESTEP_FS = 2.0
HOP_A = 1.8
"""An ion farther than this from its place, beyond the crystal as a whole, has left it (Å)."""


def conditions(temperature_K: float, ramp: Ramp | None = None) -> Ensemble:
    """Return Langevin dynamics at constant volume."""
    return Ensemble(
        temperature_K=temperature_K, timestep_fs=TIMESTEP_FS, friction_per_fs=0.01, ramp=ramp
    )


def fitted(atoms: Atoms, *, temperature_K: float, seed: int) -> CHGNetPotential:
    """Return CHGNet with heads fitted to frames of MD that another checkpoint labelled."""
    from otf_workflows.potentials import load_potential

    model, teacher = load_potential("chgnet-0.3.0"), load_potential("chgnet-0.2.0")
    start = first_checkpoint(atoms, temperature_K=temperature_K, seed=(seed, 77))
    dynamics = Dynamics(start, model, conditions(temperature_K))
    frames = []
    for step in range(100 + 10 * LABELLED):
        dynamics.advance()
        if step >= 100 and step % 10 == 0:
            frames.append(dynamics.structure())
    forces = [prediction.forces_eV_A for prediction in teacher.predict_many(frames)]
    return model.fit_uncertainty(frames, forces, seed=seed)


def notice(seed: int, *, steps: int) -> list[dict[str, Any]]:
    """Return when each way of checking stops a walker that is heated, for one seed."""
    from ase.build import bulk

    atoms = bulk("LiCl", "rocksalt", a=5.13, cubic=True)
    potential = fitted(atoms, temperature_K=300.0, seed=seed)
    ramp = Ramp(to_K=2000.0, steps=steps)
    start = first_checkpoint(atoms, temperature_K=300.0, seed=(seed,))
    dynamics = Dynamics(start, potential, conditions(300.0, ramp))
    sigmas, novelties = [], []
    for _ in range(steps):
        dynamics.advance()
        read = potential.predict(dynamics.structure(), uncertainty=True)
        sigmas.append(float(read.sigma_eV_A.max()))
        novelties.append(float(read.novelty.max()))
    # What is met while it is cold is trusted with some room; twice that is lost.
    tolerance = 1.5 * max(sigmas[: steps // 10])
    rows = []
    for check_every in (10, 20, 50, 100):
        for early in (False, True):
            stop, checks = stopped(
                sigmas, novelties, limit=2 * tolerance, check_every=check_every, early=early
            )
            lost = sum(sigma > 2 * tolerance for sigma in sigmas[:stop])
            rows.append(
                {
                    "seed": seed,
                    "check_every": check_every,
                    "early": early,
                    "first_lost": next(
                        (k for k, sigma in enumerate(sigmas) if sigma > 2 * tolerance), None
                    ),
                    "stop": stop,
                    "lost_steps": lost,
                    "checks_per_100": 100 * checks / stop,
                }
            )
    return rows


def stopped(
    sigmas: list[float], novelties: list[float], *, limit: float, check_every: int, early: bool
) -> tuple[int, int]:
    """Return at which step a walker is stopped, and how many checks that took."""
    bar, last, checks = novelties[0], 0, 1
    gap = max(2, round(EARLY_SHARE * check_every))
    for step, (sigma, novelty) in enumerate(zip(sigmas, novelties, strict=True)):
        new = early and step - last >= gap and novelty > NOVELTY_RISE * bar
        if step % check_every and not new:
            continue
        checks, last, bar = checks + 1, step, max(bar, novelty)
        if sigma > limit:
            return step, checks
    return len(sigmas), checks


def hop(
    potential: CHGNetPotential, atoms: Atoms, bias: UncertaintyBias | None, *, seed: int, steps: int
) -> dict[str, Any]:
    """Return what a walker with a vacancy pair does, biased or not."""
    checkpoint = first_checkpoint(atoms, temperature_K=500.0, seed=(seed,))
    home, n_steps, left = atoms.get_positions(), 0, None
    largest, hottest, lowest = 0.0, 0.0, 0.0
    began = time.process_time()
    while n_steps < steps:
        dynamics = Dynamics(checkpoint, potential, conditions(500.0), bias=bias)
        for _ in range(SAVE_EVERY):
            dynamics.advance()
            n_steps += 1
            away = dynamics.structure().get_positions() - home
            size = float(np.linalg.norm(away - away.mean(axis=0), axis=1).max())
            largest, hottest = max(largest, size), max(hottest, dynamics.temperature_K)
            lowest = min(lowest, dynamics.bias_energy_eV)
            if left is None and size > HOP_A:
                left = n_steps
        checkpoint = dynamics.checkpoint()
        if bias is not None:
            bias.settle()
    return {
        "seed": seed,
        "strength_eV": bias.strength_eV if bias else 0.0,
        "width_eV": bias.width_eV if bias else None,
        "first_hop": left,
        "largest_A": largest,
        "lowest_bias_eV": lowest,
        "hottest_K": hottest,
        "cpu_ms_per_step": 1000 * (time.process_time() - began) / steps,
    }


def main() -> None:
    """Run one part and print one JSON line per row."""
    import torch
    from ase.build import bulk

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("notice", "bias"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    given = parser.parse_args()
    torch.set_num_threads(1)
    for seed in range(given.seeds):
        if given.part == "notice":
            for row in notice(seed, steps=given.steps):
                print(json.dumps(row), flush=True)
            continue
        atoms = bulk("LiCl", "rocksalt", a=5.13, cubic=True).repeat((2, 2, 1))
        del atoms[[0, 1]]
        potential = fitted(atoms, temperature_K=500.0, seed=seed)
        for strength_eV in given.strengths:
            bias = UncertaintyBias(strength_eV=strength_eV) if strength_eV else None
            row = hop(potential, atoms, bias, seed=seed, steps=given.steps)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
