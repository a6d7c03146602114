"""Synthetic results: numbers shaped like those of a rock-salt crystal, no physics behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.schemas import Attempt, Calibration, ErrorStatistics, LabelResult
from otf_workflows.types import FailureCause

if TYPE_CHECKING:
    from datetime import datetime

    from numpy.random import Generator

    from otf_workflows.schemas import Frame

LATTICE_A = 5.14
SLOPES = (0.82, 0.93, 0.97, 0.965, 0.985)
"""Slope of the forces of the pretrained model and of the model of each cycle."""
NOISES_eV_A = (0.055, 0.034, 0.022, 0.024, 0.016)
"""Scatter of their forces (eV/Å)."""
FACTOR = 1.45
"""Calibrated uncertainty over raw uncertainty of all trained models."""
SHELLS = {
    "Cl-Cl": ((0.707, 12), (1.0, 6), (1.225, 24)),
    "Cl-Li": ((0.5, 6), (0.866, 8), (1.118, 24)),
    "Li-Li": ((0.707, 12), (1.0, 6), (1.225, 24)),
}
"""Neighbour shells of rock salt per pair: distance over lattice constant, neighbours."""


def synthetic_rdf(rng: Generator) -> dict[str, Any]:
    """Return g(r) of each pair, in the layout of :func:`~otf_workflows.analysis`."""
    r_A = np.arange(0.05, 6.4, 0.05)
    density_A3 = 4 / LATTICE_A**3
    pairs: dict[str, Any] = {}
    for pair, shells in SHELLS.items():
        width_A = {"Cl-Cl": 0.22, "Cl-Li": 0.24, "Li-Li": 0.28}[pair]
        g = np.zeros_like(r_A)
        for ratio, neighbours in shells:
            shape = np.exp(-(((r_A - ratio * LATTICE_A) / width_A) ** 2) / 2)
            area = 4 * np.pi * (ratio * LATTICE_A) ** 2 * density_A3 * width_A * np.sqrt(2 * np.pi)
            g += neighbours * shape / area
        error = 0.03 + 0.04 * g
        noise = np.convolve(rng.normal(size=len(r_A)), np.ones(5) / 5, mode="same")
        g = np.where(g > 0.02, np.maximum(g + error * noise, 0.0), g)
        pairs[pair] = {
            "g": g.tolist(),
            "error": error.tolist(),
            "first_minimum_A": LATTICE_A * (shells[0][0] + shells[1][0]) / 2,
            "coordination": dict.fromkeys(pair.split("-"), float(shells[0][1])),
        }
    return {"r_A": r_A.tolist(), "pairs": pairs}


def synthetic_msd(rng: Generator) -> dict[str, Any]:
    """Return the mean square displacement of each element: atoms that only vibrate."""
    time_fs = np.arange(0.0, 800.0, 20.0)
    elements = {}
    for symbol, plateau_A2 in (("Cl", 0.09), ("Li", 0.16)):
        rise = 1 - np.exp(-((time_fs / 90.0) ** 2))
        wiggle = np.convolve(rng.normal(size=len(time_fs)), np.ones(9) / 9, mode="same")
        msd = plateau_A2 * rise * (1 + 0.04 * wiggle)
        elements[symbol] = {
            "msd_A2": msd.tolist(),
            "error_A2": (0.05 * msd).tolist(),
            "is_diffusive": False,
            "sentence": f"{symbol}: no diffusion coefficient, the atoms move no farther than "
            "vibrations do (synthetic).",
        }
    return {"time_fs": time_fs.tolist(), "elements": elements, "is_diffusive": False}


def synthetic_run(rng: Generator, *, n_steps: int, temperature_K: float) -> dict[str, Any]:
    """Return what a production run says of itself."""
    steps = np.arange(0, n_steps, 10)
    sigmas = 0.055 * np.exp(rng.normal(0.0, 0.25, len(steps)))
    above = sigmas > 0.1
    return {
        "n_steps": n_steps,
        "n_steps_run": n_steps,
        "n_equilibration": n_steps // 5,
        "stop_reason": "completed",
        "stop_message": "",
        "n_checked": len(steps),
        "n_above": int(above.sum()),
        "fraction_above": float(above.mean()),
        "worst_of_atoms": 8,
        "max_sigma_eV_A": float(sigmas.max()),
        "mean_temperature_K": temperature_K - 3.0,
        "mean_temperature_error_K": 6.0,
        "energy_drift_eV_atom_ps": 1e-5,
        "steps": steps.tolist(),
        "sigmas_eV_A": sigmas.tolist(),
        "temperatures_K": rng.normal(temperature_K, 40.0, len(steps)).tolist(),
        "energies_eV_atom": np.random.default_rng(3).normal(-200.0, 2e-3, len(steps)).tolist(),
    }


def synthetic_result(
    rng: Generator, key: str, frame: Frame, *, fingerprint: str, started: datetime
) -> LabelResult:
    """Return a label: forces that grow with the square root of the temperature."""
    size = 0.012 * np.sqrt(frame.origin.temperature_K or 300.0)
    forces = rng.normal(0.0, size, (frame.n_atoms, 3))
    forces -= forces.mean(axis=0)
    seconds = float(rng.uniform(13.0, 18.0))
    attempt = Attempt(
        number=1, command="pw.x -in pw.in", host="example", started=started, seconds=seconds
    )
    return LabelResult(
        key=key,
        frame=frame,
        energy_eV=float(-1600.0 + rng.normal(0.0, 0.05)),
        forces_eV_A=forces.tolist(),
        stress_eV_A3=(0.001 * np.eye(3)).tolist(),
        fingerprint=fingerprint,
        settings_as_run={"code": "espresso", "version": "6.7", "synthetic": True},
        attempts=[attempt],
        core_hours=seconds / 3600,
    )


def synthetic_failure(cause: FailureCause, *, started: datetime) -> list[Attempt]:
    """Return two tries that failed for one cause."""
    message = {
        FailureCause.SCF: "the electronic steps did not converge in 100 iterations",
        FailureCause.WALLTIME: "stopped at the walltime of 300 s",
    }[cause]
    return [
        Attempt(
            number=number,
            command="pw.x -in pw.in",
            host="example",
            directory="/scratch/example/label",
            started=started,
            seconds=40.0,
            changes=changes,
            cause=cause,
            message=message,
            last_lines=["     estimated scf accuracy    <       0.00312 Ry"],
        )
        for number, changes in ((1, {}), (2, {"mixing_beta": 0.2}))
    ]


def synthetic_calibration(generation: int) -> Calibration:
    """Return how the uncertainty of a generation of models is read; see synthetic_evaluation."""
    if generation == 0:
        return Calibration()
    return Calibration(factor=FACTOR, n=10 * generation, n_atoms=8)


def synthetic_evaluation(generation: int, truths: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return predictions of a generation of models, in the layout of a real evaluation.

    Parameters
    ----------
    generation
        0 for the pretrained model, else 1 + the cycle that trained it.
    truths
        DFT forces (eV/Å), shape (n, 3), by key of the label.
    """
    rows = [_predict(generation, key, truth) for key, truth in truths.items()]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _predict(generation: int, key: str, truth: np.ndarray) -> dict[str, Any]:
    # Seeded by the label, so that a model says the same about it whenever it is asked.
    rng = np.random.default_rng([generation, int(key[:12], 16)])
    predicted = SLOPES[generation] * truth
    predicted = predicted + rng.normal(0.0, NOISES_eV_A[generation], truth.shape)
    error = np.linalg.norm(predicted - truth, axis=1)
    sigma = error * np.exp(rng.normal(0.0, 0.3, len(error)))  # raw, as models give it
    if generation == 0:
        sigma = 0.02 + 0.3 * sigma
    energy = -200.0 + 0.01 * float(rng.normal())
    shift = 196.4 + 0.06 * NOISES_eV_A[generation] * float(rng.normal())
    return {
        "keys": key,
        "force_dft": truth.tolist(),
        "force_predicted": predicted.tolist(),
        "sigma_eV_A": sigma.tolist(),
        "worst_error_eV_A": float(error.max()),
        "worst_sigma_eV_A": float(sigma.max()),
        "energy_dft_eV_atom": energy,
        "energy_predicted_eV_atom": energy + shift,
    }


def synthetic_statistics(table: dict[str, Any]) -> ErrorStatistics:
    """Return the errors of an evaluation, its interval from the spread between frames."""
    truth, predicted = (np.array(table[k]) for k in ("force_dft", "force_predicted"))
    squares = ((predicted - truth) ** 2).mean(axis=(1, 2))
    rmse = float(np.sqrt(squares.mean()))
    half = float(1.96 * squares.std() / np.sqrt(len(squares)) / (2 * rmse))
    shift = np.array(table["energy_predicted_eV_atom"]) - np.array(table["energy_dft_eV_atom"])
    return ErrorStatistics(
        n_frames=len(truth),
        n_atoms=int(truth.shape[0] * truth.shape[1]),
        force_rmse_eV_A=rmse,
        force_rmse_low_eV_A=max(rmse - half, 0.0),
        force_rmse_high_eV_A=rmse + half,
        force_mae_eV_A=float(np.abs(predicted - truth).mean()),
        force_slope=float((predicted * truth).sum() / (truth**2).sum()),
        energy_mae_eV_atom=float(np.abs(shift - shift.mean()).mean()),
    )
