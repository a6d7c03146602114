"""Recipes are atomate2's input sets, and nothing but numerics can be changed in them."""

import numpy as np
import pytest
from ase.data import atomic_numbers
from pymatgen.core import Lattice, Structure

from otf_workflows.errors import InputError
from otf_workflows.labelers import parse_recipe
from otf_workflows.labelers.vasp_level import kpoint_rule, quiet
from otf_workflows.labelers.vasp_recipe import CHANGES, VaspRecipe
from otf_workflows.schemas import Frame

STRUCTURES = {
    "Si": (Lattice.cubic(5.43), ["Si"] * 2, [[0, 0, 0], [0.25, 0.25, 0.25]]),
    "LiCl": (Lattice.cubic(5.1), ["Li", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    "LiFePO4": (
        Lattice.orthorhombic(10.3, 6.0, 4.7),
        ["Li", "Fe", "P", "O", "O", "O", "O"],
        np.random.default_rng(1).random((7, 3)),
    ),
}
RECIPES = ["mptrj", "matpes-pbe", "matpes-r2scan"]


def numbers(*symbols):
    return [atomic_numbers[symbol] for symbol in symbols]


def own_inputs(name, structure):
    """Return what atomate2 itself makes of a recipe."""
    from atomate2.vasp.jobs.matpes import MatPesGGAStaticMaker, MatPesMetaGGAStaticMaker
    from atomate2.vasp.jobs.mp import MPGGAStaticMaker

    makers = {
        "mptrj": MPGGAStaticMaker,
        "matpes-pbe": MatPesGGAStaticMaker,
        "matpes-r2scan": MatPesMetaGGAStaticMaker,
    }
    with quiet():
        generator = makers[name]().input_set_generator
        return generator.get_input_set(structure, potcar_spec=True)


@pytest.mark.parametrize("material", STRUCTURES)
@pytest.mark.parametrize("name", RECIPES)
def test_inputs_are_those_of_atomate2_but_for_the_changes_that_are_listed(name, material):
    structure = Structure(*STRUCTURES[material])
    theirs = own_inputs(name, structure)
    with quiet():
        generator = VaspRecipe(recipe=name).maker().input_set_generator
        ours = generator.get_input_set(structure, potcar_spec=True)
    changed = {
        key: ours.incar.get(key)
        for key in ours.incar.keys() | theirs.incar.keys()
        if ours.incar.get(key) != theirs.incar.get(key)
    }
    silent = {"LWAVE", "LAECHG"}  # off in some of the sets already
    assert changed.keys() | silent >= CHANGES[name].keys()
    assert changed.items() <= CHANGES[name].items()
    assert str(ours.kpoints) == str(theirs.kpoints)
    assert ours["POTCAR.spec"] == theirs["POTCAR.spec"]
    assert ours.poscar.structure == theirs.poscar.structure


def test_the_level_of_theory_of_the_recipes_is_the_published_one():
    mptrj = VaspRecipe(recipe="mptrj").level_of_theory(numbers("Li", "Fe", "P", "O"))
    assert mptrj["functional"] == "PBE"
    assert mptrj["ENCUT_eV"] == 520
    assert mptrj["hubbard_l_U_J"] == {"Fe": [2, 5.3, 0.0]}
    assert mptrj["start_moments_muB"]["Fe"] == 5.0
    assert mptrj["potentials"]["Fe"] == "PAW_PBEFe_pv06Sep2000"
    r2scan = VaspRecipe(recipe="matpes-r2scan").level_of_theory(numbers("Li", "Fe", "P", "O"))
    assert (r2scan["functional"], r2scan["ENCUT_eV"]) == ("R2SCAN", 680)
    assert r2scan["hubbard_l_U_J"] == {}
    assert r2scan["kpoints"] == {"gamma": True, "kspacing_per_A": 0.22}


def test_hubbard_u_is_for_oxides_and_fluorides_only():
    recipe = VaspRecipe(recipe="mptrj")
    assert recipe.level_of_theory(numbers("Fe", "O"))["hubbard_l_U_J"]
    assert recipe.level_of_theory(numbers("Co", "F"))["hubbard_l_U_J"] == {"Co": [2, 3.32, 0.0]}
    assert not recipe.level_of_theory(numbers("Fe", "S"))["hubbard_l_U_J"]
    assert not recipe.level_of_theory(numbers("Fe"))["hubbard_l_U_J"]


def test_one_campaign_has_one_fingerprint_whatever_the_size_of_its_frames():
    recipe = VaspRecipe(recipe="mptrj")
    assert recipe.fingerprint(numbers("Li", "Cl")) == recipe.fingerprint(
        numbers(*["Cl", "Li"] * 32)
    )
    assert recipe.fingerprint(numbers("Li", "Cl")) != recipe.fingerprint(numbers("Na", "Cl"))
    marks = {VaspRecipe(recipe=name).fingerprint(numbers("Li", "Cl")) for name in RECIPES}
    assert len(marks) == 3


def test_the_level_of_theory_does_not_depend_on_the_users_own_configuration(monkeypatch):
    from atomate2 import SETTINGS as ATOMATE
    from pymatgen.core import SETTINGS

    from otf_workflows.labelers import vasp_recipe

    before = VaspRecipe().fingerprint(numbers("Li", "Cl"))
    monkeypatch.setitem(SETTINGS, "PMG_DEFAULT_FUNCTIONAL", "PBE_54")
    monkeypatch.setattr(ATOMATE, "VASP_INCAR_UPDATES", {"ENCUT": 300})
    vasp_recipe._level.cache_clear()
    assert VaspRecipe().fingerprint(numbers("Li", "Cl")) == before


def test_parallel_settings_do_not_change_the_fingerprint():
    fast = parse_recipe({"code": "vasp", "recipe": "mptrj", "incar": {"ncore": 4, "KPAR": 2}})
    assert fast.incar == {"NCORE": 4, "KPAR": 2}
    assert fast.fingerprint(numbers("Si")) == VaspRecipe().fingerprint(numbers("Si"))
    with quiet():
        incar = fast.maker().input_set_generator.get_input_set(
            Structure(*STRUCTURES["Si"]), potcar_spec=True
        )["INCAR"]
    assert (incar["NCORE"], incar["KPAR"]) == (4, 2)


@pytest.mark.parametrize(
    "setting",
    ["ENCUT", "ISMEAR", "SIGMA", "KSPACING", "GGA", "METAGGA", "LDAUU", "LREAL", "EDIFF", "ISPIN"],
)
def test_physics_is_refused_in_the_recipe(setting):
    with pytest.raises(InputError, match=setting):
        parse_recipe({"code": "vasp", "incar": {setting: 1}})


def test_a_fixed_density_is_no_numerical_setting():
    with pytest.raises(InputError, match="ICHARG"):
        parse_recipe({"code": "vasp", "incar": {"ICHARG": 11}})


def test_newer_potentials_are_another_level_of_theory():
    newer = VaspRecipe(recipe="mptrj", potcar="PBE_54")
    assert newer.potcar_symbols(numbers("W")) == {"W": "W_sv"}
    assert newer.fingerprint(numbers("Fe")) != VaspRecipe().fingerprint(numbers("Fe"))


def test_an_element_without_a_potential_is_a_problem_of_the_frame():
    frame = Frame(numbers=numbers("Po"), cell_A=np.eye(3).tolist(), positions_A=[[0.0] * 3])
    (problem,) = VaspRecipe().problems(frame)
    assert "Po" in problem


def test_cost_counts_valence_electrons_and_half_of_the_mesh():
    recipe = VaspRecipe(recipe="matpes-pbe")
    assert recipe.n_electrons(numbers("Na", "Cl")) == 14
    cell = (np.eye(3) * 10).tolist()
    frame = Frame(numbers=numbers("Na"), cell_A=cell, positions_A=[[0.0] * 3])
    assert kpoint_rule("matpes-pbe", cell)[1] == [3, 3, 3]
    assert recipe.n_kpoints(frame) == 14


def test_a_recipe_says_how_it_differs_from_what_a_potential_was_trained_on():
    assert VaspRecipe(recipe="mptrj").mismatch("chgnet-0.3.0") is None
    assert VaspRecipe(recipe="matpes-r2scan").mismatch("chgnet-r2scan") is None
    sentence = VaspRecipe(recipe="matpes-pbe").mismatch("chgnet-0.3.0")
    for word in ("PBE+U", "PBE without U", "the recipe mptrj fits it"):
        assert word in sentence


def test_every_trained_potential_that_is_named_is_registered():
    from otf_workflows.labelers.vasp_recipe import IN_WORDS, TRAINED_ON
    from otf_workflows.potentials import POTENTIALS

    assert {name for names in TRAINED_ON.values() for name in names} <= POTENTIALS.keys()
    assert IN_WORDS.keys() == TRAINED_ON.keys() == CHANGES.keys()


def test_mixed_u_is_among_the_words_of_a_trainings_alignment():
    from types import SimpleNamespace

    from otf_workflows.alignment import Alignment
    from otf_workflows.jobs.finetune import _alignment

    found = Alignment(
        shifts_eV={}, separable=False, compositions=[], residual_eV_atom=0.3, sentences=["one"]
    )
    tuned = SimpleNamespace(alignment=found, sentences=[])
    campaign = SimpleNamespace(labels={"code": "vasp", "recipe": "mptrj"})
    oxide, metal = (
        SimpleNamespace(frame=Frame(numbers=n, cell_A=np.eye(3).tolist(), positions_A=[]))
        for n in ([26, 8], [26])
    )
    assert _alignment(tuned, campaign, [oxide, oxide])["sentences"] == ["one"]
    one, mixed = _alignment(tuned, campaign, [oxide, metal])["sentences"]
    assert one == "one"
    assert mixed.startswith("Fe has U")
