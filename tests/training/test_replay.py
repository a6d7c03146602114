"""Replay: deterministic crystals, labels of the parent, and less drift elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from otf_workflows.campaign import Replay, TrainingRules
from otf_workflows.errors import PotentialError
from otf_workflows.training import finetune
from otf_workflows.training.replay import forgetting, prototypes, pseudo_labels, variations
from otf_workflows.types import Split

SILICON = [14]


@pytest.fixture(scope="module")
def label(si_train):
    """One surface cell of 12 atoms or so."""
    return min(si_train, key=lambda label: label.frame.n_atoms)


def test_prototypes_are_small_crystals_of_each_element_and_each_pair():
    replayed, held_out = prototypes([17, 3, 3]), prototypes([3, 17], held_out=True)
    kinds = [set(atoms.get_chemical_symbols()) for atoms in replayed + held_out]
    assert {"Li"} in kinds
    assert {"Cl"} in kinds
    assert {"Li", "Cl"} in kinds
    assert all(6 <= len(atoms) <= 12 for atoms in replayed + held_out)


def test_atoms_of_a_prototype_touch():
    from ase.data import covalent_radii
    from ase.neighborlist import neighbor_list

    for atoms in prototypes([12, 8]):
        i, j, distances = neighbor_list("ijd", atoms, cutoff=4.0)
        radii = covalent_radii[atoms.numbers]
        assert (distances / (radii[i] + radii[j])).min() == pytest.approx(1)


def test_pseudo_labels_are_what_the_pretrained_potential_says_and_repeat(chgnet):
    labels = pseudo_labels(chgnet, SILICON, n=4, seed=3)
    assert len(labels) == 4
    found = chgnet.predict(labels[1].frame.to_atoms())
    np.testing.assert_allclose(labels[1].forces_eV_A, found.forces_eV_A, atol=1e-6)
    assert labels == pseudo_labels(chgnet, SILICON, n=4, seed=3)
    assert labels != pseudo_labels(chgnet, SILICON, n=4, seed=4)
    forces = np.concatenate([label.forces_eV_A for label in labels])
    assert 0.05 < np.sqrt((forces**2).mean()) < 5


def test_crystals_beyond_the_reach_of_the_potential_are_left_out(chgnet):
    class ShortSighted:
        def predict(self, atoms):
            if len(atoms) and set(atoms.numbers) == {3}:
                raise PotentialError("isolated")
            return chgnet.predict(atoms)

        def predict_many(self, structures):
            return [self.predict(atoms) for atoms in structures]

    met = [atoms for atoms, _ in variations(ShortSighted(), [3, 17], n=6, seed=0)]
    assert met
    assert not any(set(atoms.numbers) == {3} for atoms in met)


def test_a_model_has_not_gone_from_itself(chgnet):
    same = forgetting(chgnet, chgnet, SILICON)
    assert same.force_rmse_eV_A == pytest.approx(0, abs=1e-4)
    assert same.force_rms_eV_A > 0.05
    assert "other crystals of Si" in same.sentence


def test_replay_holds_a_model_back_where_it_has_no_labels(chgnet, label):
    """One label with turned forces is learned by force; replay must keep silicon elsewhere."""
    odd = label.model_copy(
        update={
            "forces_eV_A": (2 * np.array(label.forces_eV_A)).tolist(),
            "stress_eV_A3": None,
            "split": Split.TRAIN,
        }
    )
    rules = TrainingRules(epochs=5)
    kept = rules.model_copy(update={"replay": Replay(n=4, weight=1.0)})
    gone = {
        name: forgetting(chgnet, finetune(chgnet, [odd], rules=r, seed=0).potential, SILICON)
        for name, r in (("plain", rules), ("replay", kept))
    }
    assert gone["replay"].force_rmse_eV_A < 0.8 * gone["plain"].force_rmse_eV_A


def test_replayed_structures_are_not_in_the_errors_told(chgnet, label):
    rules = TrainingRules(epochs=1, learning_rate=1e-9, replay=Replay(n=3, weight=0.1))
    alone = TrainingRules(epochs=1, learning_rate=1e-9)
    found = finetune(chgnet, [label], rules=rules, seed=0).history[1]["force_mae_eV_A"]
    wanted = finetune(chgnet, [label], rules=alone, seed=0).history[1]["force_mae_eV_A"]
    assert found == pytest.approx(wanted, rel=1e-3)


def test_weights_from_scratch_have_nothing_to_remember():
    with pytest.raises(ValidationError, match="random weights"):
        TrainingRules(from_scratch=True, replay=Replay(n=5))
