"""SevenNet gives sevenn's own numbers, and all that the loop asks of a potential."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from ase.build import bulk

from otf_workflows.campaign import TrainingRules
from otf_workflows.potentials import (
    Potential,
    load_potential,
    missing_packages,
    potential_entry,
)
from otf_workflows.potentials.trainable import TrainablePotential
from otf_workflows.schemas import Frame, LabelledFrame
from otf_workflows.training import finetune
from otf_workflows.types import Split

if missing := missing_packages("sevennet-0"):
    pytest.skip(
        f"{' and '.join(missing)} not installed: {potential_entry('sevennet-0').installation}",
        allow_module_level=True,
    )

import torch

from otf_workflows.potentials import sevennet, sevennet_network

NAMES = list(sevennet_network.CHECKPOINTS)
RULES = TrainingRules(epochs=10, batch_atoms=4)


def perturbed(atoms, *, seed, rattle_A=0.1):
    atoms = atoms.copy()
    strain = np.random.default_rng(seed).uniform(-0.04, 0.04, size=(3, 3))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    atoms.rattle(rattle_A, seed=seed)
    return atoms


LICL = bulk("LiCl", "rocksalt", a=5.13)
STRUCTURES = [perturbed(LICL, seed=1), perturbed(bulk("Si"), seed=2), perturbed(LICL, seed=3)]


@pytest.fixture(scope="module")
def potential():
    return load_potential("sevennet-0")


@pytest.fixture(scope="module")
def labels():
    """Return labels of a stiffer teacher: three to train on, one to validate."""
    teacher = load_potential("chgnet-0.3.0")
    structures = [perturbed(LICL, seed=k) for k in range(4)]
    return [
        LabelledFrame(
            key=f"teacher-{k}",
            split=Split.VALIDATION if k == 3 else Split.TRAIN,
            cycle=0,
            frame=Frame.from_atoms(atoms),
            energy_eV=found.energy_eV - 100.0,
            forces_eV_A=(1.2 * found.forces_eV_A).tolist(),
            stress_eV_A3=(1.2 * found.stress_eV_A3).tolist(),
        )
        for k, (atoms, found) in enumerate(
            zip(structures, teacher.predict_many(structures), strict=True)
        )
    ]


@pytest.fixture(scope="module")
def fitted(potential, labels):
    structures = [label.frame.to_atoms() for label in labels]
    forces = [np.array(label.forces_eV_A) for label in labels]
    return potential.fit_uncertainty(structures, forces, seed=5)


@pytest.fixture(scope="module")
def tuned(potential, labels):
    return finetune(potential, labels, rules=RULES, seed=1)


@pytest.mark.parametrize("name", NAMES)
def test_energy_forces_and_stress_are_those_of_sevenn(name):
    from sevenn.calculator import SevenNetCalculator

    file, modality = sevennet_network.CHECKPOINTS[name]
    path = sevennet_network.folder() / file
    stock = SevenNetCalculator(str(path), device="cpu", modal=modality)
    ours = load_potential(name).predict_many(STRUCTURES)
    for atoms, prediction in zip(STRUCTURES, ours, strict=True):
        copy = atoms.copy()
        copy.calc = stock
        assert prediction.energy_eV == pytest.approx(copy.get_potential_energy(), abs=1e-5)
        np.testing.assert_allclose(prediction.forces_eV_A, copy.get_forces(), atol=1e-5)
        theirs = copy.get_stress(voigt=False)
        np.testing.assert_allclose(prediction.stress_eV_A3, theirs, atol=1e-6)


def test_the_registry_says_which_elements_the_weights_know(potential):
    known = set(potential.network.config["_type_map"])
    assert known == potential_entry("sevennet-0").elements


def test_it_is_all_that_the_loop_asks_for(potential):
    assert isinstance(potential, Potential)
    assert isinstance(potential, TrainablePotential)


def test_energy_is_linear_in_the_last_hidden_features(potential):
    network = potential.network
    graph = sevennet_network.build_graph(network, STRUCTURES[0])
    output = sevennet_network.forward(network, graph, torch.as_tensor(graph.vectors_A))
    sites = output.hidden @ network.last_weights()
    torch.testing.assert_close(sites, output.site_energies_eV, rtol=1e-5, atol=1e-5)


def test_sigma_of_heads_is_the_spread_of_networks_with_these_last_weights(fitted):
    atoms = perturbed(LICL, seed=9, rattle_A=0.2)
    forces = []
    for head in fitted.heads:
        network = fitted.network.copy()
        last = network.last_weights()
        weight = network.module._modules[sevennet_network.LAST].linear.weight
        # e3nn normalises what it multiplies by; both sides scale alike
        weight.data *= (last + torch.as_tensor(head, dtype=last.dtype)) / last
        changed = sevennet.SevenNetPotential(network, name=fitted.name)
        forces.append(changed.predict(atoms).forces_eV_A)
    expected = np.sqrt(np.var(forces, axis=0, ddof=1).sum(axis=1))
    heads_alone = copy.copy(fitted)
    heads_alone.force_share = None
    sigma = heads_alone.predict(atoms, uncertainty=True).sigma_eV_A
    np.testing.assert_allclose(sigma, expected, rtol=1e-2, atol=1e-5)


def test_finetuning_learns_zeros_and_forces_and_repeats_bit_by_bit(potential, labels, tuned):
    before = potential.predict(labels[3].frame.to_atoms())
    errors = [entry["validation_force_rmse_eV_A"] for entry in tuned.history]
    assert min(errors) < 0.9 * errors[0]
    learned = [entry["force_mae_eV_A"] for entry in tuned.history[1:]]
    assert learned[-1] < 0.9 * learned[0]
    after = tuned.potential.predict(labels[3].frame.to_atoms())
    assert abs(after.energy_eV - labels[3].energy_eV) < 0.1
    assert abs(before.energy_eV - labels[3].energy_eV) > 90
    again = finetune(potential, labels, rules=RULES, seed=1)
    assert again.potential.dump() == tuned.potential.dump()
    unchanged = potential.predict(labels[3].frame.to_atoms())
    assert (unchanged.forces_eV_A == before.forces_eV_A).all()


def test_a_finetuned_network_survives_its_blob(tuned, labels):
    atoms = labels[0].frame.to_atoms()
    loaded = load_potential("sevennet-0", tuned.potential.dump())
    assert loaded.predict(atoms).energy_eV == tuned.potential.predict(atoms).energy_eV


def test_zeros_move_at_the_level_of_theory_in_use_only():
    trainable = load_potential("sevennet-mf-r2scan").trainable()
    before = trainable.network.state_dict()["rescale_atomic_energy.shift"].clone()
    trainable.shift_energies({"Li": -2.0})
    moved = trainable.network.state_dict()["rescale_atomic_energy.shift"] - before
    row = trainable.network.modal_map["R2SCAN"]
    assert moved[row].sum() == pytest.approx(-2.0)
    assert moved.abs().sum() == pytest.approx(2.0)


def test_random_weights_depend_on_the_seed_only_and_share_the_architecture(potential):
    atoms = STRUCTURES[0]

    def forces(seed):
        trainable = potential.trainable()
        trainable.randomise(seed=seed)
        return trainable.finish().predict(atoms).forces_eV_A

    first = forces(1)
    assert (first == forces(1)).all()
    assert not np.allclose(first, forces(2))
    assert not np.allclose(first, potential.predict(atoms).forces_eV_A, atol=1e-3)
