"""Errors of a potential on labels, with an interval, and the arrays behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.alignment import GPA_PER_EV_A3
from otf_workflows.errors import InputError
from otf_workflows.schemas import ErrorStatistics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.potentials.base import Potential, Prediction
    from otf_workflows.schemas import LabelledFrame

RESAMPLES = 2000
"""Bootstrap resamples for the interval of the force error."""

BOOTSTRAP_SEED = 20240501
"""One seed for all intervals: the same labels give the same interval."""


@dataclass(frozen=True)
class Evaluation:
    r"""Errors of one potential on one set of labels.

    Attributes
    ----------
    errors
        Statistics over all frames.
    arrays
        Plain lists, one entry for each frame in the order of the labels: ``keys``, ``splits``,
        ``n_atoms``, ``force_dft`` and ``force_predicted`` (eV/Å, (n, 3)),
        ``energy_dft_eV_atom``, ``energy_predicted_eV_atom`` (as computed, zeros may differ),
        ``stress_dft_GPa`` and ``stress_predicted_GPa`` ((3, 3), or None), ``worst_error_eV_A``
        (largest \|ΔF\| of an atom), ``worst_force_eV_A`` (largest predicted \|F\|, the
        baseline of every uncertainty). With uncertainty also ``sigma_eV_A`` (per atom) and
        ``worst_sigma_eV_A``, both raw.
    """

    errors: ErrorStatistics
    arrays: dict[str, list[Any]]


def evaluate(
    potential: Potential, labels: Sequence[LabelledFrame], *, uncertainty: bool = False
) -> Evaluation:
    """Return the errors of a potential on labels of one level of theory.

    Energies are compared after the mean difference per atom is removed, because the zeros of
    two levels of theory differ. The interval of the force RMSE is a percentile bootstrap over
    frames (atoms of one frame are not independent); with few frames it is too narrow.

    Parameters
    ----------
    potential
        What is judged.
    labels
        Labels, of any split.
    uncertainty
        Also return the raw uncertainty.

    Raises
    ------
    InputError
        If there are no labels.
    """
    if not labels:
        raise InputError("There are no labels to evaluate a potential on.")
    structures = [label.frame.to_atoms() for label in labels]
    predictions = potential.predict_many(structures, uncertainty=uncertainty)
    return Evaluation(
        errors=_statistics(labels, predictions), arrays=_arrays(labels, predictions, uncertainty)
    )


def _statistics(
    labels: Sequence[LabelledFrame], predictions: Sequence[Prediction]
) -> ErrorStatistics:
    dft = [np.asarray(label.forces_eV_A, dtype=float) for label in labels]
    found = [prediction.forces_eV_A for prediction in predictions]
    differences = np.concatenate([b - a for a, b in zip(dft, found, strict=True)])
    sizes = np.array([len(forces) for forces in dft])
    squares = np.array([((b - a) ** 2).sum() for a, b in zip(dft, found, strict=True)])
    low, high = rmse_interval(squares, 3 * sizes)
    reference = np.concatenate(dft)
    power = float((reference**2).sum())
    offsets = np.array(
        [
            (prediction.energy_eV - label.energy_eV) / label.frame.n_atoms
            for label, prediction in zip(labels, predictions, strict=True)
        ]
    )
    stresses = [
        np.abs(prediction.stress_eV_A3 - np.asarray(label.stress_eV_A3)) * GPA_PER_EV_A3
        for label, prediction in zip(labels, predictions, strict=True)
        if label.stress_eV_A3 is not None
    ]
    return ErrorStatistics(
        n_frames=len(labels),
        n_atoms=int(sizes.sum()),
        force_rmse_eV_A=float(np.sqrt(squares.sum() / (3 * sizes.sum()))),
        force_rmse_low_eV_A=low,
        force_rmse_high_eV_A=high,
        force_mae_eV_A=float(np.abs(differences).mean()),
        # Symmetric crystals have no forces to regress on: no slope, said as 0.
        force_slope=float((reference * np.concatenate(found)).sum() / power) if power else 0.0,
        energy_mae_eV_atom=float(np.abs(offsets - offsets.mean()).mean()),
        stress_mae_GPa=float(np.mean(stresses)) if stresses else None,
    )


def rmse_interval(squares: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a pooled RMSE over frames.

    Parameters
    ----------
    squares
        Sum of squared errors of each frame, shape (n_frames,).
    counts
        Number of components of each frame, shape (n_frames,).
    """
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    drawn = rng.integers(len(squares), size=(RESAMPLES, len(squares)))
    values = np.sqrt(squares[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _arrays(
    labels: Sequence[LabelledFrame], predictions: Sequence[Prediction], uncertainty: bool
) -> dict[str, list[Any]]:
    arrays: dict[str, list[Any]] = {
        "keys": [label.key for label in labels],
        "splits": [str(label.split) for label in labels],
        "n_atoms": [label.frame.n_atoms for label in labels],
        "force_dft": [label.forces_eV_A for label in labels],
        "force_predicted": [prediction.forces_eV_A.tolist() for prediction in predictions],
        "energy_dft_eV_atom": [label.energy_eV / label.frame.n_atoms for label in labels],
        "energy_predicted_eV_atom": [
            prediction.energy_eV / label.frame.n_atoms
            for label, prediction in zip(labels, predictions, strict=True)
        ],
        "stress_dft_GPa": [
            None
            if label.stress_eV_A3 is None
            else (np.asarray(label.stress_eV_A3) * GPA_PER_EV_A3).tolist()
            for label in labels
        ],
        "stress_predicted_GPa": [
            (prediction.stress_eV_A3 * GPA_PER_EV_A3).tolist() for prediction in predictions
        ],
        "worst_error_eV_A": [
            float(np.linalg.norm(prediction.forces_eV_A - label.forces_eV_A, axis=1).max())
            for label, prediction in zip(labels, predictions, strict=True)
        ],
        "worst_force_eV_A": [
            float(np.linalg.norm(prediction.forces_eV_A, axis=1).max())
            for prediction in predictions
        ],
    }
    if uncertainty:
        sigmas = [np.asarray(prediction.sigma_eV_A, dtype=float) for prediction in predictions]
        arrays["sigma_eV_A"] = [sigma.tolist() for sigma in sigmas]
        arrays["worst_sigma_eV_A"] = [float(sigma.max()) for sigma in sigmas]
    return arrays
