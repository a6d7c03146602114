"""Alignment: zeros found exactly, every unit mistake named, honest labels let through."""

from __future__ import annotations

import numpy as np
import pytest

from otf_workflows.alignment import GPA_PER_EV_A3, align
from otf_workflows.errors import AlignmentError
from otf_workflows.potentials.base import Prediction
from otf_workflows.schemas import Frame, LabelledFrame
from otf_workflows.types import Split


def make(
    n_frames=12,
    *,
    compositions=((3, 17),),
    shifts=None,
    force_factor=1.0,
    stress_factor=1.0,
    pressure_GPa=0.0,
    noise=0.1,
    force_scale=0.5,
    seed=0,
):
    """Labels of LiCl-like cells, and predictions 20 % too soft with some scatter."""
    rng = np.random.default_rng(seed)
    shifts = shifts or {}
    labels, predictions = [], []
    for index in range(n_frames):
        numbers = list(compositions[index % len(compositions)]) * 4
        forces = rng.normal(size=(len(numbers), 3)) * force_scale
        stress = rng.normal(size=(3, 3)) / GPA_PER_EV_A3
        stress = stress + stress.T
        energy = -4.0 * len(numbers) + rng.normal() * 0.1
        predictions.append(
            Prediction(
                energy_eV=energy,
                forces_eV_A=0.8 * forces + noise * force_scale * rng.normal(size=forces.shape),
                stress_eV_A3=0.8 * stress - np.eye(3) * pressure_GPa / GPA_PER_EV_A3,
            )
        )
        labels.append(
            LabelledFrame(
                key=str(index),
                split=Split.TRAIN,
                cycle=0,
                frame=Frame(
                    numbers=numbers,
                    cell_A=(5 * np.eye(3)).tolist(),
                    positions_A=np.zeros((len(numbers), 3)).tolist(),
                ),
                energy_eV=energy + sum(shifts.get(z, 0.0) for z in numbers),
                forces_eV_A=(forces * force_factor).tolist(),
                stress_eV_A3=(stress * stress_factor).tolist(),
            )
        )
    return labels, predictions


def test_shifts_of_hundreds_of_eV_are_found_exactly_when_compositions_separate_elements():
    labels, predictions = make(compositions=((3, 17), (3, 3, 17)), shifts={3: -203.7, 17: -448.123})
    result = align(labels, predictions)
    assert result.separable
    assert result.shifts_eV["Li"] == pytest.approx(-203.7, abs=1e-8)
    assert result.shifts_eV["Cl"] == pytest.approx(-448.123, abs=1e-8)
    assert result.residual_eV_atom < 1e-9
    assert result.shift_eV([3, 17]) == pytest.approx(-651.823)


def test_one_composition_gets_the_exact_sum_and_a_warning():
    labels, predictions = make(shifts={3: -200.0, 17: -450.0})
    result = align(labels, predictions)
    assert not result.separable
    assert [sorted(name) for name in result.compositions] == [sorted("LiCl")]
    assert result.shift_eV([3, 17]) == pytest.approx(-650.0, abs=1e-9)
    assert "cannot tell the elements apart" in result.sentences[0]


def test_soft_parents_and_pressure_offsets_pass():
    result = align(*make(pressure_GPa=5.0))
    assert result.force_slope == pytest.approx(1.25, abs=0.05)
    assert result.stress_slope == pytest.approx(1.25, abs=0.02)
    assert all("are right" in sentence for sentence in result.sentences[1:])


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (-1.0, "sign is reversed"),
        (10.0, "ten times too large"),
        (-10.0, "VASP's kB"),
        (0.1, "ten times too small"),
        (-0.1, "divided by ten"),
        (160.2, "GPa instead of"),
        (-1602.0, "VASP's kB instead of"),
        (1 / 160.2, "160.2"),
        (1 / 91.8, "Ry/bohr"),
        (-1 / 91.8, "Ry/bohr"),
        (1e6, "no unit known"),
    ],
)
def test_a_wrong_stress_is_refused_with_its_meaning(factor, words):
    with pytest.raises(AlignmentError, match=words) as caught:
        align(*make(stress_factor=factor))
    assert "stresses" in caught.value.where


@pytest.mark.parametrize(
    ("factor", "words"),
    [(-1.0, "gradients"), (1 / 25.7, "Ry/bohr"), (1 / 51.4, "hartree/bohr"), (1000.0, "meV")],
)
def test_wrong_forces_are_refused_with_their_meaning(factor, words):
    with pytest.raises(AlignmentError, match=words):
        align(*make(force_factor=factor))


def test_forces_in_another_atom_order_are_refused():
    labels, predictions = make()
    rng = np.random.default_rng(1)
    shuffled = [
        label.model_copy(
            update={"forces_eV_A": rng.permutation(np.array(label.forces_eV_A)).tolist()}
        )
        for label in labels
    ]
    with pytest.raises(AlignmentError, match="order of atoms"):
        align(shuffled, predictions)


def test_energies_that_follow_nothing_are_refused():
    labels, predictions = make()
    labels[0] = labels[0].model_copy(update={"energy_eV": labels[0].energy_eV * 27.2})
    with pytest.raises(AlignmentError, match="do not follow"):
        align(labels, predictions)


def test_no_verdict_without_enough_signal_or_data():
    still = align(*make(force_scale=0.001, force_factor=-1.0))
    assert still.force_slope is None
    assert "too few or too small" in still.sentences[1]
    single = align(*make(1, stress_factor=-1.0))
    assert single.stress_slope is None


def test_labels_without_stress_are_fine():
    labels, predictions = make()
    labels = [label.model_copy(update={"stress_eV_A3": None}) for label in labels]
    result = align(labels, predictions)
    assert result.sentences[-1] == "The labels have no stress."


def test_pure_noise_in_stress_gives_no_verdict_instead_of_a_wrong_one():
    labels, predictions = make()
    rng = np.random.default_rng(2)
    labels = [
        label.model_copy(update={"stress_eV_A3": (rng.normal(size=(3, 3)) * 0.01).tolist()})
        for label in labels
    ]
    result = align(labels, predictions)
    assert result.stress_slope is None
    assert "loosely" in result.sentences[-1]
