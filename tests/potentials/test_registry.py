import subprocess
import sys

import pytest

from otf_workflows import errors
from otf_workflows.errors import ConfigurationError, InputError
from otf_workflows.potentials import (
    POTENTIALS,
    Potential,
    PotentialError,
    check_elements,
    load_potential,
    missing_packages,
    potential_entry,
)
from otf_workflows.potentials.trainable import TrainablePotential


def test_listing_potentials_loads_nothing_heavy():
    code = (
        "import sys; from otf_workflows.potentials import POTENTIALS, load_potential;"
        "print([m for m in ('torch', 'chgnet', 'pymatgen', 'ase') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(InputError, match=r"Did you mean 'chgnet-0\.3\.0'"):
        load_potential("chgnet-0.3.O")


def test_a_hopeless_name_is_refused_without_a_guess():
    with pytest.raises(InputError) as caught:
        potential_entry("x")
    assert "Did you mean" not in str(caught.value)
    assert "chgnet-0.3.0" in caught.value.hint


def test_every_element_outside_the_training_set_is_named():
    with pytest.raises(InputError, match="Po, Cm"):
        check_elements("chgnet-0.3.0", [1, 84, 96, 96])
    check_elements("chgnet-0.3.0", range(1, 84))


def test_ytterbium_is_unknown_to_the_r2scan_model_only():
    check_elements("chgnet-0.3.0", [70])
    with pytest.raises(InputError, match="Yb"):
        check_elements("chgnet-r2scan", [70])


@pytest.mark.parametrize("name", POTENTIALS)
def test_entries_can_be_loaded_and_say_where_they_come_from(name):
    entry = potential_entry(name)
    assert entry.licence
    assert entry.citation
    assert entry.level_of_theory
    if missing := missing_packages(name):
        pytest.skip(f"{' and '.join(missing)} not installed: {entry.installation}")
    potential = load_potential(name)
    assert isinstance(potential, Potential)
    assert potential.name == name
    assert isinstance(potential, TrainablePotential) == entry.trainable


def test_a_missing_extra_is_one_clear_message_with_its_command(monkeypatch):
    def find(package):
        return None if package in {"sevenn", "e3nn"} else object()

    monkeypatch.setattr("otf_workflows.potentials.registry.find_spec", find)
    with pytest.raises(ConfigurationError, match="needs sevenn and e3nn, not installed") as caught:
        load_potential("sevennet-0")
    assert caught.value.hint == "pip install 'otf-workflows[sevennet]'"
    assert missing_packages("chgnet-0.3.0") == []
    assert missing_packages("toy-lj") == []


def test_elements_are_those_whose_embedding_was_trained():
    # the r2SCAN model was trained from 0.3.0: rows that did not move were never seen by either
    parent = load_potential("chgnet-0.3.0").model.atom_embedding.embedding.weight
    child = load_potential("chgnet-r2scan").model.atom_embedding.embedding.weight
    unseen = {z + 1 for z in range(94) if bool((parent[z] == child[z]).all())}
    assert POTENTIALS["chgnet-r2scan"].elements == set(range(1, 95)) - unseen


def test_what_a_walker_catches_is_what_potentials_raise():
    # one class under both names: a second one would let an exploded structure kill a job
    assert PotentialError is errors.PotentialError
