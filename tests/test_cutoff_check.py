"""The cut-off check, on a real pw.x, and what it says."""

import pytest
from ase.build import bulk

from otf_workflows.cutoff_check import CutoffCheck, check_cutoff
from otf_workflows.errors import InputError
from otf_workflows.labelers import parse_recipe
from otf_workflows.labelers.base import Resources
from otf_workflows.schemas import Frame

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
