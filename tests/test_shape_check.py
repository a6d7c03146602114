"""The check of cell shapes: one crystal, one energy; and what it says where that is not so."""

import shutil

import numpy as np
import pytest
from ase.build import bulk

from otf_workflows.campaign import Campaign
from otf_workflows.exploration.starts import shapes_of
from otf_workflows.labelers import parse_recipe
from otf_workflows.labelers.base import Resources
from otf_workflows.schemas import Frame
from otf_workflows.shape_check import ShapeCheck, check_shapes

COPPER = Frame.from_atoms(bulk("Cu", cubic=True, a=3.62))


def campaign(structure, labels, n_shapes=3):
    return Campaign(
        name="shapes",
        structure=structure,
        labels=labels,
        exploration={"cell_shapes": n_shapes},
    )


def measure(asked, folder):
    frames, recipe = shapes_of(asked), parse_recipe(asked.labels)
    return check_shapes(frames, recipe, directory=folder, resources=Resources())


def test_a_potential_with_a_short_range_has_one_energy_in_all_shapes(tmp_path):
    found = measure(campaign(COPPER, {"code": "ase", "calculator": "emt"}), tmp_path)
    assert len(found.energies_eV_atom) == 3
    assert found.spread_eV_atom < 1e-6
    assert np.ptp(found.pressures_GPa) < 1e-3
    assert len(found.sentences) == 1
    assert "0.00 meV/atom" in found.sentences[0]


def test_a_shape_that_is_off_is_named_with_a_way_out():
    cells = ((5.14, 5.14, 5.14), (3.63, 3.63, 10.28))
    said = ShapeCheck((-1.0, -1.006), (0.1, 0.1), cells).sentences
    assert "6.00 meV/atom" in said[0]
    assert "more k-points" in said[1]
    assert len(ShapeCheck((-1.0, -1.0), (0.1, 0.5), cells).sentences) == 2


def test_one_shape_needs_no_comparison():
    assert "only one" in ShapeCheck((-1.0,), (), ((5.0, 5.0, 5.0),)).sentences[0]


@pytest.mark.integration
@pytest.mark.skipif(shutil.which("pw.x") is None, reason="pw.x is not installed")
def test_pw_gives_silicon_one_energy_in_all_shapes_if_its_grid_is_folded(tmp_path):
    silicon = Frame.from_atoms(bulk("Si", "diamond", a=5.43, cubic=True))
    labels = {"code": "espresso", "cutoff_Ry": 14, "kpoints": [2, 2, 2], "kpoint_shift": True}
    found = measure(campaign(silicon, labels), tmp_path)
    assert found.spread_eV_atom < 1e-4
    assert len(found.sentences) == 1
