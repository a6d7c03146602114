"""What pw.x computed is read from its output, in our units, signs and order."""

import re
from pathlib import Path

import numpy as np
import pytest

from otf_workflows.labelers.base import differences
from otf_workflows.labelers.espresso_files import read_output, write_input
from otf_workflows.labelers.espresso_recipe import EspressoRecipe
from otf_workflows.labelers.external import UnreadableOutput, frame_problem
from otf_workflows.schemas import Frame

RECORDED = Path(__file__).parent / "recorded"
SI2 = (RECORDED / "si2.out").read_text()
MD5 = "98da9310cc620fd1e518bde43ef32d4c"


def edited_xml(tmp_path, *changes, name="si2.xml"):
    text = (RECORDED / name).read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "edited.xml"
    path.write_text(text)
    return path


def level(**changes):
    asked = {
        "code": "espresso",
        "functional": "PBE",
        "cutoff_Ry": 24.0,
        "density_cutoff_Ry": 96.0,
        "smearing": "none",
        "spin": "unpolarised",
        "scf_threshold_Ry": 1e-9,
        "pseudopotentials_md5": {"Si": MD5},
        "kpoints": [3, 3, 3],
    }
    return {**asked, **changes}


def test_energy_forces_and_stress_agree_with_ases_reader_of_the_text():
    from ase.io import read

    ours = read_output(SI2, RECORDED / "si2.xml")
    theirs = read(RECORDED / "si2.out", format="espresso-out")
    assert ours.energy_eV == pytest.approx(theirs.get_potential_energy(), rel=2e-7)
    assert ours.forces_eV_A == pytest.approx(theirs.get_forces(), abs=1e-5)
    assert ours.stress_eV_A3 == pytest.approx(theirs.get_stress(voigt=False), abs=1e-5)


def test_a_compressed_crystal_has_negative_stress():
    """pw.x prints P = +52.5 kbar for this one; in ASE's sign that is negative."""
    ours = read_output(SI2, RECORDED / "si2.xml")
    pressure_GPa = -np.trace(ours.stress_eV_A3) / 3 * 160.21766208
    assert pressure_GPa == pytest.approx(5.250, abs=0.01)


def test_settings_as_run():
    assert read_output(SI2, RECORDED / "si2.xml").settings == level()


def test_settings_of_a_magnetic_metal():
    found = read_output((RECORDED / "fe1.out").read_text(), RECORDED / "fe1.xml")
    assert found.settings["smearing"] == "cold"
    assert found.settings["width_Ry"] == 0.02
    assert found.settings["spin"] == "collinear"
    assert found.settings["starting_magnetization"] == {"Fe": 1.0}
    assert found.magmoms_muB == pytest.approx([0.8043])


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("<ecutwfc>1.200000000000000e1", "<ecutwfc>1.500000000000000e1", "cutoff_Ry"),
        ("<ecutrho>4.800000000000001e1", "<ecutrho>6.0e1", "density_cutoff_Ry"),
        ('nk1="3" nk2="3" nk3="3"', 'nk1="2" nk2="3" nk3="3"', "kpoints"),
        ('k1="0" k2="0" k3="0"', 'k1="1" k2="1" k3="1"', "kpoints"),
        ("<conv_thr>5.000000000000000e-10", "<conv_thr>5.0e-6", "scf_threshold_Ry"),
        ("<tot_charge>0.000000000000000e0", "<tot_charge>1.0e0", "charge_e"),
        ("<lsda>false", "<lsda>true", "spin"),
        ("<spinorbit>false", "<spinorbit>true", "spin"),
        ("<functional>PBE</functional>", "<functional>PBE</functional><dftU/>", "functional"),
        (
            "<occupations_kind>fixed</occupations_kind>",
            '<occupations_kind>smearing</occupations_kind><smearing degauss="0.01">mp</smearing>',
            "smearing",
        ),
    ],
)
def test_every_change_of_physics_is_seen_in_the_output(tmp_path, old, new, key):
    found = read_output(SI2, edited_xml(tmp_path, (old, new))).settings
    assert any(sentence.startswith(f"{key}:") for sentence in differences(level(), found))


def test_another_pseudopotential_is_seen(tmp_path):
    text = SI2.replace(MD5, "0" * 32)
    found = read_output(text, RECORDED / "si2.xml").settings
    assert differences(level(), found) == [
        f"pseudopotentials_md5: asked for {{'Si': '{MD5}'}}, the output says {{'Si': '{'0' * 32}'}}"
    ]


def test_another_functional_is_seen():
    text = SI2.replace("(   1   4   3   4   0   0   0)", "(   1   4  10   8   0   0   0)")
    assert read_output(text, RECORDED / "si2.xml").settings["functional"] == "PBEsol"
    text = SI2.replace("(   1   4   3   4   0   0   0)", "(   1   4   3   4   0  26   0)")
    assert read_output(text, RECORDED / "si2.xml").settings["functional"] not in {"PBE", "PBEsol"}


def test_a_spacing_is_reported_only_if_the_grid_has_it():
    xml = RECORDED / "si2.xml"
    asked = EspressoRecipe(cutoff_Ry=24, kspacing_per_A=0.8)
    assert read_output(SI2, xml, recipe=asked).settings["kspacing_per_A"] == 0.8
    finer = asked.model_copy(update={"kspacing_per_A": 0.5})
    other = read_output(SI2, xml, recipe=finer).settings
    assert "kspacing_per_A" not in other
    assert other["kpoints"] == [3, 3, 3]


@pytest.mark.parametrize(
    "change",
    [
        ("<forces rank", "<gone rank"),
        ("<etot>-7.85", "<etot>nothing-7.85"),
        ("</qes:espresso>", ""),
    ],
)
def test_a_broken_xml_file_is_not_read(tmp_path, change):
    xml = edited_xml(
        tmp_path, change, *((("</forces>", "</gone>"),) if "forces" in change[0] else ())
    )
    with pytest.raises(UnreadableOutput):
        read_output(SI2, xml)


def test_a_missing_xml_file_is_said(tmp_path):
    with pytest.raises(UnreadableOutput, match="cannot be read"):
        read_output(SI2, tmp_path / "none.xml")


def test_an_output_of_another_frame_is_refused():
    output = read_output(SI2, RECORDED / "si2.xml")
    frame = Frame(
        numbers=[14, 14],
        cell_A=output.cell_A.tolist(),
        positions_A=output.positions_A.tolist(),
    )
    assert frame_problem(output, frame, tolerance_A=1e-5) is None
    moved = np.array(output.positions_A)
    moved[1, 0] += 1e-3
    for change, word in (
        ({"positions_A": moved.tolist()}, "positions"),
        ({"numbers": [14, 6]}, "elements"),
        ({"cell_A": (1.001 * output.cell_A).tolist()}, "cell"),
    ):
        other = frame.model_copy(update=change)
        assert word in frame_problem(output, other, tolerance_A=1e-5)


def test_the_input_keeps_the_order_of_interleaved_atoms(tmp_path, upf_folder):
    recipe = EspressoRecipe(
        cutoff_Ry=50, kpoints=(2, 2, 2), pseudopotentials=str(upf_folder("Li", "Cl"))
    )
    numbers = [17, 3, 3, 17, 3, 17]
    frame = Frame(
        numbers=numbers,
        cell_A=(6 * np.eye(3)).tolist(),
        positions_A=[[0.9 * i, 0.1 * i, 0] for i in range(6)],
    )
    write_input(
        tmp_path / "pw.in",
        frame,
        recipe,
        numerics={"mixing_beta": 0.3},
        outdir="./o",
        max_seconds=60,
    )
    text = (tmp_path / "pw.in").read_text()
    order = re.findall(
        r"^(Li|Cl) +\S+ +\S+ +\S+ *$", text.split("ATOMIC_POSITIONS")[1], re.MULTILINE
    )
    assert order == ["Cl", "Li", "Li", "Cl", "Li", "Cl"]
    assert re.search(r"ecutrho\s+= 200", text)
    assert re.search(r"mixing_beta\s+= 0\.3", text)
    assert re.search(r"nosym\s+= \.true\.", text)


@pytest.mark.parametrize(
    ("changes", "bands"),
    [
        ({}, 4 + 5),
        ({"smearing": "gaussian", "width_Ry": 0.01}, 8 + 5),
        (
            {
                "smearing": "cold",
                "width_Ry": 0.01,
                "spin": "collinear",
                "starting_magnetization": {"Si": 0.1},
            },
            12 + 5,
        ),
    ],
)
def test_extra_bands_are_beyond_those_that_pw_x_would_take(tmp_path, upf_folder, changes, bands):
    folder = str(upf_folder("Si"))
    recipe = EspressoRecipe(cutoff_Ry=20, kpoints=(1, 1, 1), pseudopotentials=folder, **changes)
    frame = Frame(numbers=[14, 14], cell_A=(4 * np.eye(3)).tolist(), positions_A=[[0] * 3, [2] * 3])
    for numerics in ({}, {"extra_bands": 5}):
        path = tmp_path / "pw.in"
        write_input(path, frame, recipe, numerics=numerics, outdir="o", max_seconds=None)
        found = re.search(r"nbnd\s+= (\d+)", path.read_text())
        assert (found and int(found[1])) == (bands if numerics else None)
        assert not re.search(r"^\s*extra_bands", path.read_text(), re.MULTILINE)
