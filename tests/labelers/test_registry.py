"""Codes are found by name, and nothing of them is imported before."""

import subprocess
import sys

import pytest

from otf_workflows.errors import InputError
from otf_workflows.labelers import available_codes, check_numerics, get_labeler, parse_recipe
from otf_workflows.labelers.base import differences

HEAVY = ("ase", "pymatgen", "custodian", "torch", "jobflow", "fireworks", "pymongo")


def test_every_registered_code_has_a_labeler_with_a_recipe():
    for code in available_codes():
        model = get_labeler(code).recipe_model
        assert model.model_fields["code"].default == code
        assert all(field.description for field in model.model_fields.values())


def test_reading_a_recipe_imports_nothing_heavy():
    program = (
        "import sys; from otf_workflows.labelers import parse_recipe; "
        "parse_recipe({'code': 'espresso', 'cutoff_Ry': 50, 'kpoints': [2, 2, 2]}); "
        "parse_recipe({'code': 'ase', 'calculator': 'emt'}); "
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_an_unknown_code_gets_a_suggestion():
    with pytest.raises(InputError, match="did you mean 'espresso'"):
        parse_recipe({"code": "espreso"})


@pytest.mark.parametrize("data", [{}, {"code": None}, {"code": 3}])
def test_a_recipe_without_a_code_is_refused(data):
    with pytest.raises(InputError, match="espresso"):
        parse_recipe(data)


def test_all_mistakes_are_named_at_once():
    with pytest.raises(InputError) as caught:
        parse_recipe({"code": "espresso", "cutof_Ry": 50, "kpoints": [2, 2, 200]})
    for word in ("cutof_Ry", "kpoints", "did you mean 'cutoff_Ry'"):
        assert word in str(caught.value)


def test_numerics_are_checked_by_the_code_they_are_for():
    assert check_numerics("espresso", {"mixing_beta": 0.2}) == {"mixing_beta": 0.2}
    with pytest.raises(InputError):
        check_numerics("espresso", {"ecutwfc": 80})
    with pytest.raises(InputError):
        check_numerics("ase", {"mixing_beta": 0.2})


def test_differences_are_spelled_out():
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 2}) == []
    assert differences({"a": 1, "b": 2}, {"a": 3, "c": 4}) == [
        "a: asked for 1, the output says 3",
        "b: asked for 2, not found in the output",
        "c: not asked for, the output says 4",
    ]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("code", available_codes())
def test_the_file_that_otf_init_writes_has_a_recipe_that_is_valid_as_it_stands(code, full):
    import yaml

    from otf_workflows.cli.templates import campaign_template

    written = yaml.safe_load(campaign_template(code=code, full=full))["labels"]
    recipe = parse_recipe(written)
    assert recipe.code == code
    assert recipe.use_stress
