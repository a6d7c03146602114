"""Two density functionals in one campaign are refused, unless they are meant."""

from __future__ import annotations

import pytest
from ase.build import bulk

from otf_workflows.campaign import Campaign, TrainingRules
from otf_workflows.errors import InputError
from otf_workflows.labelers import parse_recipe
from otf_workflows.levels import check_level
from otf_workflows.schemas import Frame

ESPRESSO = {"code": "espresso", "cutoff_Ry": 50.0, "kpoints": [2, 2, 2]}
PBE = [
    {**ESPRESSO, "functional": "PBE"},
    {"code": "vasp", "recipe": "mptrj"},
    {"code": "vasp", "recipe": "matpes-pbe"},
    {"code": "gpaw", "cutoff_eV": 400.0, "kpoints": [2, 2, 2]},
]
TEACHER = {"code": "ase", "calculator": "teacher", "kwargs": {"potential": "chgnet-r2scan"}}


def campaign(labels, **fields):
    atoms = bulk("LiCl", "rocksalt", a=5.14)
    return Campaign(name="levels", structure=Frame.from_atoms(atoms), labels=labels, **fields)


@pytest.mark.parametrize("labels", PBE, ids=lambda labels: labels.get("recipe", labels["code"]))
def test_another_code_of_the_same_functional_is_fine(labels):
    assert parse_recipe(labels).density_functional() == "PBE"
    check_level(campaign(labels))


@pytest.mark.parametrize(
    ("potential", "labels"),
    [
        ("chgnet-0.3.0", {**ESPRESSO, "functional": "PBEsol"}),
        ("chgnet-0.3.0", {**ESPRESSO, "functional": "LDA"}),
        ("chgnet-0.3.0", {"code": "vasp", "recipe": "matpes-r2scan"}),
        ("chgnet-r2scan", {"code": "vasp", "recipe": "mptrj"}),
        ("sevennet-mf-r2scan", {**ESPRESSO, "functional": "PBE"}),
    ],
)
def test_another_functional_is_refused_until_it_is_accepted(potential, labels):
    with pytest.raises(InputError, match="two energy surfaces") as caught:
        check_level(campaign(labels, potential=potential))
    assert "accept_level_mismatch: true" in caught.value.hint
    check_level(campaign(labels, potential=potential, accept_level_mismatch=True))


def test_the_error_names_what_would_fit():
    labels = {"code": "vasp", "recipe": "matpes-r2scan"}
    with pytest.raises(InputError, match=r"labels are r2SCAN, but chgnet-0\.3\.0") as caught:
        check_level(campaign(labels), where="campaign.yaml, line 3")
    assert "potential: chgnet-r2scan or sevennet-mf-r2scan" in caught.value.hint
    assert caught.value.where == "campaign.yaml, line 3"


def test_labels_without_a_functional_and_training_from_scratch_have_no_conflict():
    assert parse_recipe(TEACHER).density_functional() is None
    check_level(campaign(TEACHER))
    r2scan = {"code": "vasp", "recipe": "matpes-r2scan"}
    check_level(campaign(r2scan, training=TrainingRules(from_scratch=True)))


def test_a_campaign_file_with_two_functionals_is_refused_at_its_line(tmp_path):
    bulk("LiCl", "rocksalt", a=5.14).write(tmp_path / "licl.cif")
    file = tmp_path / "campaign.yaml"
    text = (
        "name: two\nstructure: licl.cif\npotential: chgnet-r2scan\n"
        "labels: {code: vasp, recipe: mptrj}\n"
    )
    file.write_text(text)
    with pytest.raises(InputError, match="labels are PBE, but chgnet-r2scan") as caught:
        Campaign.from_file(file)
    assert "campaign.yaml:3, potential" in caught.value.where
    file.write_text(text + "accept_level_mismatch: true\n")
    assert Campaign.from_file(file).accept_level_mismatch
