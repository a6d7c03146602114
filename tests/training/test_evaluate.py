"""Errors of a potential: numbers that can be checked by hand, and arrays fit for JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from otf_workflows.errors import InputError
from otf_workflows.potentials.base import Prediction
from otf_workflows.training.evaluate import evaluate, rmse_interval


class Scaled:
    """A potential that knows the labels, and returns them with known errors."""

    name = "scaled"

    def __init__(self, labels, *, slope=1.0, force_error=0.0, energy_offsets=None, stress_GPa=0.0):
        self.answers = [
            Prediction(
                energy_eV=label.energy_eV + offset * label.frame.n_atoms,
                forces_eV_A=slope * np.array(label.forces_eV_A) + force_error,
                stress_eV_A3=np.array(label.stress_eV_A3) + stress_GPa / 160.21766208,
                sigma_eV_A=np.linspace(0.1, 0.3, label.frame.n_atoms),
            )
            for label, offset in zip(labels, energy_offsets or [0.0] * len(labels), strict=True)
        ]

    def predict_many(self, structures, *, uncertainty=False):  # noqa: ARG002
        assert len(structures) == len(self.answers)
        return self.answers


@pytest.fixture(scope="module")
def labels(si_test):
    chosen = [label for label in si_test if label.stress_eV_A3 is not None][:4]
    assert len(chosen) == 4
    return chosen


def test_a_constant_force_error_is_its_own_rmse_and_mae(labels):
    errors = evaluate(Scaled(labels, force_error=0.05), labels).errors
    assert errors.force_rmse_eV_A == pytest.approx(0.05)
    assert errors.force_mae_eV_A == pytest.approx(0.05)
    assert errors.force_rmse_low_eV_A == pytest.approx(0.05)
    assert errors.force_rmse_high_eV_A == pytest.approx(0.05)
    assert (errors.n_frames, errors.n_atoms) == (4, sum(x.frame.n_atoms for x in labels))


def test_softening_is_read_from_the_slope(labels):
    assert evaluate(Scaled(labels, slope=0.8), labels).errors.force_slope == pytest.approx(0.8)


def test_the_energy_zero_does_not_count(labels):
    same = evaluate(Scaled(labels, energy_offsets=[7.0] * 4), labels).errors
    assert same.energy_mae_eV_atom == pytest.approx(0.0, abs=1e-9)
    spread = evaluate(Scaled(labels, energy_offsets=[7.0, 7.1, 7.0, 7.1]), labels).errors
    assert spread.energy_mae_eV_atom == pytest.approx(0.05)


def test_stress_is_in_GPa_and_counted_only_where_there_is_one(labels):
    some = [labels[0].model_copy(update={"stress_eV_A3": None}), *labels[1:]]
    potential = Scaled(labels, stress_GPa=0.4)
    assert evaluate(potential, some).errors.stress_mae_GPa == pytest.approx(0.4)
    none = [label.model_copy(update={"stress_eV_A3": None}) for label in labels]
    assert evaluate(potential, none).errors.stress_mae_GPa is None


def test_the_interval_is_over_frames_and_repeats():
    squares, counts = np.array([1.0, 4.0, 9.0, 16.0]), np.array([10, 10, 10, 10])
    low, high = rmse_interval(squares, counts)
    assert low < np.sqrt(30 / 40) < high
    assert low == pytest.approx(np.sqrt(0.1), abs=0.25)
    assert (low, high) == rmse_interval(squares, counts)
    wide = rmse_interval(np.tile(squares, 16), np.tile(counts, 16))
    assert wide[1] - wide[0] < 0.4 * (high - low)


def test_arrays_hold_the_worst_atoms_and_survive_json(labels):
    potential = Scaled(labels, slope=0.5)
    arrays = evaluate(potential, labels, uncertainty=True).arrays
    assert json.loads(json.dumps(arrays)) == arrays
    worst = np.linalg.norm(np.array(labels[2].forces_eV_A), axis=1).max()
    assert arrays["worst_error_eV_A"][2] == pytest.approx(0.5 * worst)
    assert arrays["worst_force_eV_A"][2] == pytest.approx(0.5 * worst)
    assert arrays["worst_sigma_eV_A"] == pytest.approx([0.3] * 4)
    assert arrays["keys"] == [label.key for label in labels]
    assert "sigma_eV_A" not in evaluate(potential, labels).arrays


def test_no_labels_is_an_error():
    with pytest.raises(InputError, match="no labels"):
        evaluate(Scaled([]), [])
