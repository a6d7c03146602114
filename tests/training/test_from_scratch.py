"""Training from random weights: the same code path, seeded, and it learns."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from pydantic import ValidationError

from otf_workflows.campaign import TrainingRules
from otf_workflows.errors import AlignmentError
from otf_workflows.potentials import load_potential
from otf_workflows.schemas import Frame, LabelledFrame
from otf_workflows.training import finetune
from otf_workflows.types import Split

RULES = TrainingRules(from_scratch=True, epochs=40, batch_atoms=8)


@pytest.fixture(scope="module")
def toy(chgnet):
    """Return twelve rattled silicon cells with the energies and forces of another network."""
    teacher = load_potential("chgnet-r2scan")
    structures = []
    for seed in range(12):
        atoms = bulk("Si")
        strain = np.random.default_rng(seed).uniform(-0.03, 0.03, size=(3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        atoms.rattle(0.15, seed=seed)
        structures.append(atoms)
    return [
        LabelledFrame(
            key=f"toy-{seed}",
            split=Split.VALIDATION if seed >= 9 else Split.TRAIN,
            cycle=0,
            frame=Frame.from_atoms(atoms),
            energy_eV=found.energy_eV - 200.0,
            forces_eV_A=found.forces_eV_A.tolist(),
            stress_eV_A3=found.stress_eV_A3.tolist(),
        )
        for seed, (atoms, found) in enumerate(
            zip(structures, teacher.predict_many(structures), strict=True)
        )
    ]


@pytest.fixture(scope="module")
def trained(chgnet, toy):
    return finetune(chgnet, toy, rules=RULES, seed=1)


def test_random_weights_learn_forces_and_energies_of_labels_they_never_saw(trained, toy):
    errors = [entry["validation_force_rmse_eV_A"] for entry in trained.history]
    signal = np.sqrt(np.mean([np.square(label.forces_eV_A) for label in toy[9:]]))
    assert errors[0] > 0.8 * signal
    assert min(errors) < 0.5 * signal
    found = trained.potential.predict_many([label.frame.to_atoms() for label in toy[9:]])
    off_eV = [a.energy_eV - b.energy_eV for a, b in zip(found, toy[9:], strict=True)]
    assert np.abs(off_eV).max() < 0.5
    assert "random weights (seed 1)" in trained.sentences[0]


def test_nothing_of_the_pretrained_weights_is_left(chgnet, trained):
    before = chgnet.model.state_dict()
    after = trained.potential.model.state_dict()
    free = [name for name in before if name.endswith(".weight") and before[name].ndim == 2]
    assert len(free) > 20
    assert not any(bool((before[name] == after[name]).all()) for name in free)


def test_another_seed_draws_other_weights_and_the_same_seed_the_same(chgnet, toy):
    rules = RULES.model_copy(update={"epochs": 1})
    first, again, other = (
        finetune(chgnet, toy, rules=rules, seed=seed).potential.dump() for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_units_are_still_checked_against_the_pretrained_potential(chgnet, toy):
    wrong = [
        label.model_copy(update={"forces_eV_A": (-np.array(label.forces_eV_A)).tolist()})
        for label in toy
    ]
    with pytest.raises(AlignmentError, match="sign is reversed"):
        finetune(chgnet, wrong, rules=RULES, seed=1)


def test_random_weights_get_more_epochs_unless_told_otherwise():
    assert TrainingRules().epochs == 60
    assert TrainingRules(from_scratch=True).epochs == 300
    assert TrainingRules(from_scratch=True, epochs=5).epochs == 5
    with pytest.raises(ValidationError, match="from_scratch"):
        TrainingRules(from_scratch="perhaps")
