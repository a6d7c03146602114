"""Fine-tuning: the same bits every time, whatever interrupts it; and better on unseen labels."""

from __future__ import annotations

import numpy as np
import pytest

from otf_workflows.campaign import TrainingRules
from otf_workflows.errors import AlignmentError, InputError
from otf_workflows.training import evaluate, finetune
from otf_workflows.training.loop import _batches, _rate
from otf_workflows.types import Split

RULES = TrainingRules(epochs=6, batch_atoms=24)


@pytest.fixture(scope="module")
def small(si_train):
    """Four surface cells of 12 to 18 atoms: three to train on, one to validate."""
    cells = [label for label in si_train if label.frame.n_atoms <= 18]
    assert len(cells) == 4
    last = cells[3].model_copy(update={"split": Split.VALIDATION})
    return [*cells[:3], last]


@pytest.fixture(scope="module")
def tuned(chgnet, small):
    return finetune(chgnet, small, rules=RULES, seed=1)


def weights(potential):
    return potential.dump()


def test_the_network_of_training_gives_the_numbers_of_chgnet(chgnet, si_train):
    import torch
    from pymatgen.io.ase import AseAtomsAdaptor

    from otf_workflows.training.network import build_graphs, energy_force_stress

    structures = [label.frame.to_atoms() for label in si_train[-4:]]
    trainable = chgnet.trainable()
    graphs = build_graphs(trainable, structures, names="abcd")
    energies, forces, stresses = energy_force_stress(trainable, graphs, differentiable=False)
    stock = chgnet.model.predict_structure(
        [AseAtomsAdaptor.get_structure(atoms) for atoms in structures], task="efs"
    )
    reference = chgnet.model.composition_model.fc.weight[0, 13].item()
    np.testing.assert_allclose(energies + reference, [x["e"] for x in stock], atol=1e-5)
    np.testing.assert_allclose(forces, np.concatenate([x["f"] for x in stock]), atol=1e-4)
    np.testing.assert_allclose(stresses, np.stack([x["s"] for x in stock]), atol=1e-3)
    assert not torch.are_deterministic_algorithms_enabled()


def test_gradients_of_a_force_loss_by_the_weights_are_those_of_chgnet(chgnet, si_train):
    import torch
    from pymatgen.io.ase import AseAtomsAdaptor

    from otf_workflows.training.network import build_graphs, energy_force_stress

    atoms = si_train[-3].frame.to_atoms()
    trainable = chgnet.trainable()
    model = trainable.network

    def gradients(energy, forces, stress):
        model.zero_grad()
        ((forces**2).mean() + (stress**2).mean() + (energy**2).mean()).backward()
        return {
            name: value.grad.clone()
            for name, value in model.named_parameters()
            if value.grad is not None and not name.startswith("composition_model")
        }

    graphs = build_graphs(trainable, [atoms], names="a")
    ours = gradients(*energy_force_stress(trainable, graphs, differentiable=True))
    stock = model([model.graph_converter(AseAtomsAdaptor.get_structure(atoms))], task="efs")
    energy = stock["e"] - model.composition_model.fc.weight[0, 13].detach()
    theirs = gradients(energy, torch.cat(stock["f"]), torch.stack(stock["s"]))
    assert set(ours) <= set(theirs)
    largest = max(float(value.abs().max()) for value in theirs.values())
    for name, value in theirs.items():
        found = ours.get(name, torch.zeros_like(value))
        torch.testing.assert_close(found, value, rtol=5e-3, atol=1e-4 * largest, msg=name)


def test_the_compiled_passes_train_as_autograd_does(chgnet, small, tuned, monkeypatch):
    from otf_workflows.potentials.chgnet_training import TrainableCHGNet
    from otf_workflows.potentials.trainable import Trainable

    monkeypatch.setattr(TrainableCHGNet, "evaluate", Trainable.evaluate)
    slow = finetune(chgnet, small, rules=RULES, seed=1)
    for ours, theirs in zip(tuned.history, slow.history, strict=True):
        assert ours == pytest.approx(theirs, rel=0.02)
    assert slow.history != tuned.history


def test_two_trainings_give_the_same_bytes_and_leave_the_parent_alone(chgnet, small, tuned):
    before = weights(chgnet)
    again = finetune(chgnet, small, rules=RULES, seed=1)
    assert weights(again.potential) == weights(tuned.potential)
    assert again.history == tuned.history
    assert weights(chgnet) == before
    assert weights(tuned.potential) != before


def test_another_seed_gives_another_model(chgnet, small, tuned):
    other = finetune(chgnet, small, rules=RULES, seed=2)
    assert weights(other.potential) != weights(tuned.potential)


def test_a_killed_training_continues_to_the_same_bytes(chgnet, small, tuned, tmp_path):
    path = tmp_path / "training.pt"

    def kill_in_the_last_epoch(entry):
        if entry["epoch"] == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(
            chgnet, small, rules=RULES, seed=1, checkpoint=path, progress=kill_in_the_last_epoch
        )
    assert path.is_file()
    seen = []
    resumed = finetune(
        chgnet,
        small,
        rules=RULES,
        seed=1,
        checkpoint=path,
        progress=lambda entry: seen.append(entry["epoch"]),
    )
    assert seen == [6.0]
    assert weights(resumed.potential) == weights(tuned.potential)
    assert resumed.history == tuned.history
    assert "Continued after epoch 5" in resumed.sentences[0]
    assert not path.exists()


def test_a_checkpoint_of_another_task_or_damaged_is_not_used(chgnet, small, tmp_path):
    rules = RULES.model_copy(update={"epochs": 1})
    path = tmp_path / "training.pt"
    path.write_bytes(b"half a file")
    damaged = finetune(chgnet, small, rules=rules, seed=1, checkpoint=path)
    assert "damaged" in damaged.sentences[0]
    plain = finetune(chgnet, small, rules=rules, seed=1)
    assert weights(damaged.potential) == weights(plain.potential)

    def stop(entry):
        if entry["epoch"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(chgnet, small[:2], rules=RULES, seed=1, checkpoint=path, progress=stop)
    foreign = finetune(chgnet, small, rules=rules, seed=1, checkpoint=path)
    assert "another training" in foreign.sentences[0]
    assert weights(foreign.potential) == weights(plain.potential)


def test_the_epoch_with_the_smallest_validation_error_is_kept(tuned, small):
    errors = [entry["validation_force_rmse_eV_A"] for entry in tuned.history]
    kept = [entry["epoch"] for entry in tuned.history if entry["kept"]]
    assert len(tuned.history) == RULES.epochs + 1
    assert kept == [float(np.argmin(errors))]
    measured = evaluate(tuned.potential, small[3:]).errors.force_rmse_eV_A
    assert measured == pytest.approx(min(errors), abs=1e-4)


def test_a_training_that_only_harms_returns_the_aligned_parent(chgnet, small):
    rules = RULES.model_copy(update={"epochs": 1, "learning_rate": 0.1})
    result = finetune(chgnet, small, rules=rules, seed=1)
    assert result.history[0]["kept"] == 1.0
    assert "aligned parent" in result.sentences[-1]
    forces = [p.predict(small[0].frame.to_atoms()).forces_eV_A for p in (chgnet, result.potential)]
    np.testing.assert_array_equal(*forces)


def test_audit_labels_do_not_influence_the_result(chgnet, small, tuned):
    audit = small[0].model_copy(update={"split": Split.AUDIT, "key": "audit", "energy_eV": 1e6})
    result = finetune(chgnet, [*small, audit], rules=RULES, seed=1)
    assert weights(result.potential) == weights(tuned.potential)


def test_labels_without_stress_train_to_finite_weights(chgnet, small):
    rules = RULES.model_copy(update={"epochs": 1})
    stress = (0.01 * np.eye(3)).tolist()
    for missing in ({0}, {0, 1, 2}):
        labels = [
            label.model_copy(update={"stress_eV_A3": None if index in missing else stress})
            for index, label in enumerate(small[:3])
        ]
        result = finetune(chgnet, labels, rules=rules, seed=1)
        assert all(np.isfinite(list(entry.values())).all() for entry in result.history)
        assert ("stress_mae_GPa" in result.history[-1]) == (len(missing) < 3)
        assert "No validation labels" in result.sentences[-1]
        assert result.history[-1]["kept"] == 1.0


def test_an_energy_zero_of_hundreds_of_eV_is_learned_exactly_and_survives_the_blob(
    chgnet, small, tuned
):
    from otf_workflows.potentials import load_potential

    shifted = [
        label.model_copy(update={"energy_eV": label.energy_eV - 300.0 * label.frame.n_atoms})
        for label in small
    ]
    result = finetune(chgnet, shifted, rules=RULES, seed=1)
    assert result.alignment.shifts_eV["Si"] == pytest.approx(
        tuned.alignment.shifts_eV["Si"] - 300.0, abs=1e-6
    )
    loaded = load_potential("chgnet-0.3.0", result.potential.dump())
    atoms = small[0].frame.to_atoms()
    difference = loaded.predict(atoms).energy_eV - tuned.potential.predict(atoms).energy_eV
    assert difference / len(atoms) == pytest.approx(-300.0, abs=2e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"forces_eV_A": [[float("nan")] * 3] * 16}, "forces"),
        ({"forces_eV_A": [[0.0] * 3] * 3}, "forces"),
        ({"energy_eV": float("inf")}, "energy"),
        ({"stress_eV_A3": [[0.0, 0.0, 0.0]]}, "stress"),
    ],
)
def test_a_broken_label_is_named(chgnet, small, change, words):
    broken = small[0].model_copy(update=change)
    with pytest.raises(InputError, match=words) as caught:
        finetune(chgnet, [broken, small[1]], rules=RULES, seed=0)
    assert broken.key in caught.value.where


def test_an_isolated_atom_is_refused_with_its_label(chgnet, small):
    frame = small[0].frame.model_copy(
        update={"cell_A": [[40.0, 0, 0], [0, 40.0, 0], [0, 0, 40.0]], "numbers": [14]}
    )
    frame = frame.model_copy(update={"positions_A": [[0.0, 0.0, 0.0]]})
    alone = small[0].model_copy(update={"frame": frame, "forces_eV_A": [[0.0] * 3]})
    with pytest.raises(InputError, match="no neighbour") as caught:
        finetune(chgnet, [alone], rules=RULES, seed=0)
    assert alone.key in caught.value.where


def test_nothing_to_train_on_is_an_error(chgnet, small):
    with pytest.raises(InputError, match="no label to train on"):
        finetune(chgnet, small[3:], rules=RULES, seed=0)


def test_stress_in_the_order_of_another_code_is_refused(chgnet, si_train):
    swapped = []
    for label in si_train[:10]:
        stress = np.array(label.stress_eV_A3)[[1, 0, 2]][:, [1, 0, 2]]  # yz and xz trade places
        np.fill_diagonal(stress, np.diag(label.stress_eV_A3))
        stress[0, 1] = stress[1, 0] = label.stress_eV_A3[0][1]
        swapped.append(label.model_copy(update={"stress_eV_A3": stress.tolist()}))
    with pytest.raises(AlignmentError, match="another order"):
        finetune(chgnet, swapped, rules=RULES, seed=0)


def test_real_labels_pass_all_checks_of_units(chgnet, si_train):
    from otf_workflows.alignment import align

    chosen = si_train[:17]
    result = align(chosen, chgnet.predict_many([label.frame.to_atoms() for label in chosen]))
    assert result.force_slope == pytest.approx(1.15, abs=0.1)
    assert result.stress_slope == pytest.approx(1.2, abs=0.2)
    assert result.shifts_eV["Si"] == pytest.approx(0.0, abs=0.15)


def test_batches_hold_every_frame_once_and_respect_the_limit():
    sizes = [8, 8, 40, 8, 100, 8, 8]
    batches = _batches(sizes, 48, 0, 3)
    assert sorted(index for batch in batches for index in batch) == list(range(7))
    assert all(len(b) == 1 or sum(sizes[i] for i in b) <= 48 for b in batches)
    assert batches == _batches(sizes, 48, 0, 3)
    assert batches != _batches(sizes, 48, 0, 4)


def test_the_rate_falls_from_its_peak_to_one_percent_of_it():
    rates = [_rate(step, 11, peak=1e-3) for step in range(11)]
    assert rates[0] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-5)
    assert rates == sorted(rates, reverse=True)
    assert _rate(0, 1, peak=1e-3) == pytest.approx(1e-3)


@pytest.mark.slow
def test_published_silicon_softening_is_seen_and_cured_on_unseen_labels(chgnet, si_train, si_test):
    """CHGNet is about 20 % too soft on mlearn Si (slope 0.83 on the whole set)."""
    before = evaluate(chgnet, si_test).errors
    assert before.force_slope == pytest.approx(0.80, abs=0.06)
    chosen = si_train[3:10]
    result = finetune(chgnet, chosen, rules=TrainingRules(epochs=4), seed=0)
    after = evaluate(result.potential, si_test).errors
    assert after.force_rmse_eV_A < 0.85 * before.force_rmse_eV_A
    assert after.force_slope == pytest.approx(1.0, abs=0.1)
    assert after.energy_mae_eV_atom < 0.6 * before.energy_mae_eV_atom
