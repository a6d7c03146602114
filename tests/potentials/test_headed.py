"""What the loop asks of every potential with uncertainty heads, whatever its network."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from ase.build import bulk

from otf_workflows.errors import InputError
from otf_workflows.potentials import (
    Potential,
    PotentialError,
    load_potential,
    missing_packages,
    potential_entry,
)
from otf_workflows.potentials.base import ColdStart, Tiltable

PARTNERS = {"chgnet-0.3.0": "chgnet-0.2.0", "sevennet-0": "sevennet-0-may2024"}
N_FEATURES = {"chgnet-0.3.0": 64, "sevennet-0": 128}
CUTOFFS = {"chgnet-0.3.0": "6 Å", "sevennet-0": "5 Å"}
BATCHES = {"chgnet-0.3.0": ("chgnet.MAX_ROWS", 300), "sevennet-0": ("sevennet.MAX_BONDS", 30)}


def perturbed(atoms, *, seed, rattle_A=0.1):
    atoms = atoms.copy()
    strain = np.random.default_rng(seed).uniform(-0.04, 0.04, size=(3, 3))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    atoms.rattle(rattle_A, seed=seed)
    return atoms


LICL = bulk("LiCl", "rocksalt", a=5.13)
STRUCTURES = [perturbed(LICL, seed=1), perturbed(bulk("Si"), seed=2), perturbed(LICL, seed=3)]


@pytest.fixture(scope="module", params=PARTNERS)
def potential(request):
    if missing := missing_packages(request.param):
        advice = potential_entry(request.param).installation
        pytest.skip(f"{' and '.join(missing)} not installed: {advice}")
    return load_potential(request.param)


@pytest.fixture(scope="module")
def labelled():
    """Return LiCl structures and their forces at another level of theory."""
    structures = [perturbed(LICL, seed=k) for k in range(4)]
    teacher = load_potential("chgnet-r2scan")
    return structures, [1.2 * p.forces_eV_A for p in teacher.predict_many(structures)]


@pytest.fixture(scope="module")
def fitted(potential, labelled):
    return potential.fit_uncertainty(*labelled, seed=5)


def test_it_is_all_that_exploration_asks_for(potential):
    assert isinstance(potential, Potential)
    assert isinstance(potential, Tiltable)
    assert isinstance(potential, ColdStart)


def test_large_sets_are_cut_into_batches_and_keep_their_order(monkeypatch, potential):
    limit, most = BATCHES[potential.name]
    monkeypatch.setattr(f"otf_workflows.potentials.{limit}", most)
    for atoms, batched in zip(STRUCTURES, potential.predict_many(STRUCTURES), strict=True):
        alone = potential.predict(atoms)
        assert batched.energy_eV == pytest.approx(alone.energy_eV, abs=5e-6)
        np.testing.assert_allclose(batched.forces_eV_A, alone.forces_eV_A, atol=2e-6)


def test_nothing_in_nothing_out(potential):
    assert potential.predict_many([]) == []
    assert potential.features([]).shape == (0, N_FEATURES[potential.name])


def test_features_tell_structures_apart_and_repeat_bit_by_bit(potential):
    rows = potential.features(STRUCTURES)
    assert rows.shape == (3, N_FEATURES[potential.name])
    apart = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
    assert apart[0, 1] > 5 * apart[0, 2] > 0
    assert (potential.features(STRUCTURES) == rows).all()


def test_without_heads_sigma_is_the_disagreement_of_shipped_models(potential):
    atoms = STRUCTURES[0]
    prediction = potential.predict(atoms, uncertainty=True)
    other = load_potential(PARTNERS[potential.name]).predict(atoms)
    expected = np.linalg.norm(prediction.forces_eV_A - other.forces_eV_A, axis=1)
    np.testing.assert_allclose(prediction.sigma_eV_A, expected, atol=1e-6)
    assert prediction.sigma_eV_A.min() > 1e-3
    assert prediction.novelty is None
    assert potential.predict(atoms).sigma_eV_A is None


def test_uncertainty_and_novelty_grow_away_from_the_training_set(fitted):
    calm = fitted.predict(perturbed(LICL, seed=20, rattle_A=0.1), uncertainty=True)
    wild = fitted.predict(perturbed(LICL, seed=20, rattle_A=0.5), uncertainty=True)
    assert wild.sigma_eV_A.max() > 2 * calm.sigma_eV_A.max()
    assert wild.novelty.max() > 2 * calm.novelty.max()


def test_sigma_is_heads_and_a_share_of_the_force_times_novelty(fitted):
    heads_alone = copy.copy(fitted)
    heads_alone.force_share = None
    atoms = perturbed(LICL, seed=20, rattle_A=0.2)
    spread = heads_alone.predict(atoms, uncertainty=True).sigma_eV_A
    found = fitted.predict(atoms, uncertainty=True)
    softness = fitted.force_share * np.linalg.norm(found.forces_eV_A, axis=1)
    expected = np.sqrt(spread**2 + softness**2) * found.novelty
    np.testing.assert_allclose(found.sigma_eV_A, expected, rtol=1e-6)


def test_heads_and_force_have_equal_shares_over_the_labels(fitted, labelled):
    heads_alone = copy.copy(fitted)
    heads_alone.force_share = None
    found = heads_alone.predict_many(labelled[0], uncertainty=True)
    spread = np.concatenate([p.sigma_eV_A for p in found])
    forces = np.concatenate([np.linalg.norm(p.forces_eV_A, axis=1) for p in found])
    share = np.sqrt(np.mean(spread**2) / np.mean(forces**2))
    assert fitted.force_share == pytest.approx(share, rel=1e-3)


def test_before_any_label_novelty_tells_new_surroundings_from_usual_ones(potential):
    ready = potential.familiar_with([perturbed(LICL, seed=k, rattle_A=0.05) for k in range(4)])
    near = ready.predict(perturbed(LICL, seed=20, rattle_A=0.05), uncertainty=True)
    far = ready.predict(perturbed(LICL, seed=20, rattle_A=0.4), uncertainty=True)
    assert near.novelty.max() < 4
    assert far.novelty.max() > 3 * near.novelty.max()
    plain = potential.predict(perturbed(LICL, seed=20, rattle_A=0.4), uncertainty=True)
    assert plain.novelty is None
    np.testing.assert_array_equal(far.sigma_eV_A, plain.sigma_eV_A)
    np.testing.assert_array_equal(far.forces_eV_A, plain.forces_eV_A)


def test_fitting_gives_a_new_potential_with_the_same_forces(potential, fitted):
    assert potential.heads is None
    assert len(fitted.heads) == 2 * len(fitted.spread)
    atoms = STRUCTURES[0]
    assert (fitted.predict(atoms).forces_eV_A == potential.predict(atoms).forces_eV_A).all()


def test_the_same_labels_give_the_same_heads(potential, labelled):
    structures, forces = (items[:2] for items in labelled)
    first, again = (potential.fit_uncertainty(structures, forces, seed=5).heads for _ in range(2))
    assert (first == again).all()


def test_labels_that_do_not_fit_the_structures_are_refused(potential, labelled):
    structures, labels = labelled
    with pytest.raises(InputError, match="4 structures, but 3"):
        potential.fit_uncertainty(structures, labels[:-1], seed=0)
    with pytest.raises(InputError, match="do not fit 2 atoms") as caught:
        potential.fit_uncertainty(structures, [*labels[:-1], labels[0][:1]], seed=0)
    assert caught.value.where == "structure 3"


def test_dump_and_load_give_the_same_numbers_bit_by_bit(fitted):
    blob = fitted.dump()
    again = load_potential(fitted.name, blob)
    assert again.dump() == blob
    ours, theirs = (p.predict(STRUCTURES[0], uncertainty=True) for p in (fitted, again))
    assert ours.energy_eV == theirs.energy_eV
    for name in ("forces_eV_A", "stress_eV_A3", "sigma_eV_A", "novelty"):
        assert (getattr(ours, name) == getattr(theirs, name)).all()


def test_a_damaged_blob_is_refused(potential):
    blob = potential.dump()
    flipped = bytearray(blob)
    flipped[len(blob) // 2] ^= 1
    for damaged in (bytes(flipped), blob[:-1]):
        with pytest.raises(PotentialError, match="checksum"):
            load_potential(potential.name, damaged)
    for other in (b"", b"PK\x03\x04 something else", b"otf-other-1\n"):
        with pytest.raises(PotentialError, match="not the weights"):
            load_potential(potential.name, other)


def test_a_blob_of_another_potential_is_refused(potential):
    other = PARTNERS[potential.name]
    with pytest.raises(InputError, match=f"weights of {potential.name}, not of {other}"):
        load_potential(other, potential.dump())


def test_impossible_structures_are_errors_a_walker_can_catch(potential):
    with pytest.raises(PotentialError, match=f"no neighbour within {CUTOFFS[potential.name]}"):
        potential.predict(bulk("Ar", "sc", a=12.0))
    close = LICL.copy()
    close.positions[1] = close.positions[0]
    with pytest.raises(PotentialError):
        potential.predict(close)
    with pytest.raises(InputError, match="Po"):
        potential.predict(bulk("Po", "sc", a=3.36))


def test_the_calculator_repeats_bit_by_bit_and_agrees_with_predict(potential):
    atoms = STRUCTURES[0].copy()
    prediction = potential.predict(atoms)
    results = []
    for _ in range(2):
        atoms.calc = potential.calculator()
        results.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
    assert results[0][0] == results[1][0] == prediction.energy_eV
    for first, second in zip(results[0][1:], results[1][1:], strict=True):
        assert (first == second).all()
    assert (results[0][1] == prediction.forces_eV_A).all()
    assert (atoms.get_stress(voigt=False) == prediction.stress_eV_A3).all()
    assert atoms.get_potential_energy(force_consistent=True) == prediction.energy_eV
    atoms.positions[0, 0] += 0.05
    assert atoms.get_potential_energy() != prediction.energy_eV
    assert atoms.calc.prediction.energy_eV == atoms.get_potential_energy()
