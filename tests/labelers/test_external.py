"""What CP2K, ABINIT and GPAW printed once, read again: results, settings as run, causes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.units import GPa

from otf_workflows.errors import InputError
from otf_workflows.labelers import get_labeler, parse_recipe
from otf_workflows.labelers.abinit import AbinitRun
from otf_workflows.labelers.base import Resources, differences
from otf_workflows.labelers.cp2k import Cp2kRun
from otf_workflows.labelers.gpaw_labeler import GpawRun, data_sets
from otf_workflows.schemas import Frame
from otf_workflows.types import FailureCause

RECORDED = Path(__file__).parent / "recorded"
CUSTODIAN = Path(__file__).parents[1] / "data" / "cp2k"

CP2K = {
    "code": "cp2k",
    "basis": "SZV-MOLOPT-SR-GTH",
    "cutoff_Ry": 120,
    "relative_cutoff_Ry": 30,
    "precision": 1e-10,
    "kpoints": [2, 1, 3],
    "electronic_temperature_K": 300,
}
GPAW = {"code": "gpaw", "cutoff_eV": 300, "kpoints": [2, 2, 2]}
FAKE_PSP8 = "Si\n 14.0000 4.0000 220721 zatom,zion,pspd\n 8 11 2 4 600 0\n"


@pytest.fixture
def silicon():
    atoms = bulk("Si", "diamond", a=5.43)
    atoms.rattle(0.04, seed=1)
    return Frame.from_atoms(atoms)


@pytest.fixture
def abinit(tmp_path):
    folder = tmp_path / "psp"
    folder.mkdir()
    (folder / "Si.psp8").write_text(FAKE_PSP8)
    return {
        "code": "abinit",
        "cutoff_Ha": 12,
        "kpoints": [2, 2, 2],
        "pseudopotentials": str(folder),
    }


def ended(run_class, frame, recipe, directory, *, files, status=0):
    """Return a run whose first try left these recorded files, and its diagnosis."""
    run = run_class(frame, recipe, directory=directory, resources=Resources())
    (directory / "try-1.err").touch()
    for name, source in files.items():
        shutil.copyfile(source, directory / f"try-1.{name}")
    return run, run.diagnose(number=1, status=status)


def test_cp2k_is_read_in_our_units_and_sign(tmp_path, silicon):
    recipe = parse_recipe(CP2K)
    files = {"out": RECORDED / "cp2k/si2_kpoints.out"}
    run, ending = ended(Cp2kRun, silicon, recipe, tmp_path, files=files)
    assert ending.cause is None, ending.message
    text = files["out"].read_text()
    printed = [line.split() for line in text.splitlines() if line.startswith(" STRESS|      x ")]
    np.testing.assert_allclose(
        run.result.stress_eV_A3[0] / GPa, [-float(x) for x in printed[0][2:]], rtol=1e-6
    )
    first = text.partition("ATOMIC FORCES")[2].splitlines()[3].split()
    np.testing.assert_allclose(
        run.result.forces_eV_A[0], [float(x) * 51.4220674 for x in first[3:]], rtol=1e-6
    )
    assert differences(recipe.level_of_theory([14]), run.result.settings) == []


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"kpoints": [3, 1, 3]}, "kpoints"),
        ({"basis": "DZVP-MOLOPT-SR-GTH"}, "basis"),
        ({"cutoff_Ry": 300}, "cutoff_Ry"),
        ({"relative_cutoff_Ry": 40}, "relative_cutoff_Ry"),
        ({"precision": 1e-12}, "precision"),
        ({"electronic_temperature_K": None}, "electronic_temperature_K"),
        ({"scf_threshold": 1e-6}, "scf_threshold"),
    ],
)
def test_every_physical_setting_of_cp2k_is_read_from_the_output(tmp_path, silicon, change, key):
    asked = parse_recipe({**CP2K, **change})
    files = {"out": RECORDED / "cp2k/si2_kpoints.out"}
    run, _ = ended(Cp2kRun, silicon, asked, tmp_path, files=files)
    found = [
        sentence.partition(":")[0]
        for sentence in differences(asked.level_of_theory([14]), run.result.settings)
    ]
    # EPS_DEFAULT decides where overlaps are cut, unless that is set by itself.
    assert [name for name in found if (name, key) != ("overlap_precision", "precision")] == [key]


@pytest.mark.parametrize("source", [RECORDED / "cp2k/si2_scf.out", CUSTODIAN / "unconverged.out"])
def test_an_unconverged_scf_of_cp2k_is_a_failure_whatever_its_exit_status(
    tmp_path, silicon, source
):
    """It is a warning to CP2K, which goes on to print energy and forces."""
    assert "ENERGY| Total FORCE_EVAL" in source.read_text()
    run, ending = ended(Cp2kRun, silicon, parse_recipe(CP2K), tmp_path, files={"out": source})
    assert ending.cause == FailureCause.SCF
    assert run.result is None


def test_an_output_of_cp2k_that_stops_in_the_scf_is_not_a_success(tmp_path, silicon):
    files = {"out": CUSTODIAN / "imprecise.out"}
    _, ending = ended(Cp2kRun, silicon, parse_recipe(CP2K), tmp_path, files=files)
    assert ending.cause == FailureCause.PARSE


@pytest.mark.parametrize(
    ("name", "cause", "words"),
    [("si2_abort", FailureCause.INPUT, "QZV-MOLOPT"), ("si2_geometry", FailureCause.GEOMETRY, "")],
)
def test_cp2k_that_aborts_says_why(tmp_path, silicon, name, cause, words):
    files = {"out": RECORDED / f"cp2k/{name}.out"}
    _, ending = ended(Cp2kRun, silicon, parse_recipe(CP2K), tmp_path, files=files, status=1)
    assert ending.cause == cause
    assert words in ending.message


def test_abinit_is_read_in_our_units(tmp_path, silicon, abinit):
    recipe = parse_recipe(abinit)
    files = {name: RECORDED / f"abinit/si2.{name}" for name in ("out", "abo")}
    run, ending = ended(AbinitRun, silicon, recipe, tmp_path, files=files)
    assert ending.cause is None, ending.message
    text = files["abo"].read_text()
    line = text.partition("cartesian forces (eV/Angstrom) at end:")[2].splitlines()[1].split()
    np.testing.assert_allclose(run.result.forces_eV_A[0], [float(x) for x in line[1:]], rtol=1e-6)
    in_GPa = float(text.partition("(GPa)")[2].partition("sigma(1 1)=")[2].split()[0])
    assert run.result.stress_eV_A3[0, 0] / GPa == pytest.approx(in_GPa, rel=1e-6)
    shear = float(text.partition("(GPa)")[2].partition("sigma(2 1)=")[2].split()[0])
    assert run.result.stress_eV_A3[0, 1] / GPa == pytest.approx(shear, rel=1e-6)
    # The pseudopotential beside this test is not the one of the run, and that is told.
    (difference,) = differences(recipe.level_of_theory([14]), run.result.settings)
    assert "pseudopotentials_md5" in difference
    assert "382d346c5c2a9542e4f223a605d16005" in difference


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        (" 1.20000000E+01 Hartree", " 1.30000000E+01 Hartree", "cutoff_Ha"),
        ("              ixc          11", "              ixc           1", "functional"),
        ("           kptopt           2", "           shiftk  0.5 0.5 0.5", "kpoints"),
        ("           kptopt           2", "           nsppol           2", "spin"),
        (
            "           kptopt           2",
            "           occopt           3\n           tsmear 1.0E-03 Hartree",
            "electronic_temperature_K",
        ),
    ],
)
def test_every_physical_setting_of_abinit_is_read_from_the_output(  # noqa: PLR0917
    tmp_path, silicon, abinit, old, new, key
):
    text = (RECORDED / "abinit/si2.abo").read_text()
    assert old in text
    (tmp_path / "other.abo").write_text(text.replace(old, new))
    files = {"out": RECORDED / "abinit/si2.out", "abo": tmp_path / "other.abo"}
    recipe = parse_recipe(abinit)
    run, _ = ended(AbinitRun, silicon, recipe, tmp_path, files=files)
    found = differences(recipe.level_of_theory([14]), run.result.settings)
    assert key in {sentence.partition(":")[0] for sentence in found}


@pytest.mark.parametrize(
    ("name", "status", "cause"),
    [("si2_scf", 0, FailureCause.SCF), ("si2_psp", 14, FailureCause.INPUT)],
)
def test_abinit_that_failed_says_why(  # noqa: PLR0917
    tmp_path, silicon, abinit, name, status, cause
):
    files = {"out": RECORDED / f"abinit/{name}.out"}
    recipe = parse_recipe(abinit)
    _, ending = ended(AbinitRun, silicon, recipe, tmp_path, files=files, status=status)
    assert ending.cause == cause


def test_gpaw_is_read_with_its_settings(tmp_path, silicon):
    recipe = parse_recipe(GPAW)
    files = {name: RECORDED / f"gpaw/si2.{name}" for name in ("txt", "result.json")}
    (tmp_path / "try-1.out").touch()
    run, ending = ended(GpawRun, silicon, recipe, tmp_path, files=files)
    assert ending.cause is None, ending.message
    assert differences(recipe.level_of_theory([14]), run.result.settings) == []


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"kpoints": [3, 3, 3]}, "kpoints"),
        ({"cutoff_eV": 400}, "cutoff_eV"),
        ({"density_threshold": 1e-4}, "density_threshold"),
        ({"electronic_temperature_K": 300}, "electronic_temperature_K"),
    ],
)
def test_every_physical_setting_of_gpaw_is_read_from_the_output(tmp_path, silicon, change, key):
    asked = parse_recipe({**GPAW, **change})
    files = {name: RECORDED / f"gpaw/si2.{name}" for name in ("txt", "result.json")}
    (tmp_path / "try-1.out").touch()
    run, _ = ended(GpawRun, silicon, asked, tmp_path, files=files)
    found = differences(asked.level_of_theory([14]), run.result.settings)
    assert [sentence.partition(":")[0] for sentence in found] == [key]


def test_another_frame_in_the_output_is_refused(tmp_path, silicon):
    """Forces would land on the wrong atoms."""
    swapped = silicon.model_copy(update={"positions_A": silicon.positions_A[::-1]})
    files = {"out": RECORDED / "cp2k/si2_kpoints.out"}
    run, ending = ended(Cp2kRun, swapped, parse_recipe(CP2K), tmp_path, files=files)
    assert ending.cause == FailureCause.PARSE
    assert "positions" in ending.message
    assert run.result is None


@pytest.mark.parametrize("code", ["cp2k", "abinit", "gpaw"])
def test_numerics_are_checked_and_physics_is_refused(code):
    labeler = get_labeler(code)
    steps = {"cp2k": "max_scf", "abinit": "nstep", "gpaw": "maxiter"}[code]
    assert labeler.check_numerics({steps: 5}) == {steps: 5}
    for changes in ({"kpoints": [1, 1, 1]}, {"cutoff_Ry": 10}, {"ecut": 10}, {steps: 0}):
        with pytest.raises(InputError):
            labeler.check_numerics(changes)


@pytest.mark.parametrize("run_class", [AbinitRun, GpawRun])
def test_the_ladder_changes_permitted_numerics_only_and_ends(run_class, tmp_path, silicon):
    run = run_class(silicon, None, directory=tmp_path, resources=Resources())
    numerics, times = {}, 0
    while (higher := run.climb(FailureCause.SCF, numerics, times=times)) is not None:
        assert set(higher) <= set(run_class.numerics_model.model_fields)
        assert higher != numerics
        numerics, times = higher, times + 1
    assert times >= 2


def test_what_is_missing_is_said_with_the_command_that_installs_it(silicon, abinit):
    nowhere = Resources(command="/nowhere/program")
    for data in (CP2K, abinit, GPAW):
        (sentence,) = get_labeler(data["code"]).check(nowhere, [14], parse_recipe(data))
        assert "/nowhere/program" in sentence
        assert "install" in sentence


def test_impossible_frames_are_named(silicon):
    one_aluminium = silicon.model_copy(update={"numbers": [13, 14]})
    assert "odd" in parse_recipe(CP2K).problems(one_aluminium)[0]
    assert "odd" in parse_recipe(GPAW).problems(one_aluminium)[0]
    plutonium = silicon.model_copy(update={"numbers": [94, 14]})
    assert "Pu" in parse_recipe(CP2K).problems(plutonium)[0]
    assert "Pu" in parse_recipe(GPAW).problems(plutonium)[0]
    assert len(data_sets()) == 83


SPIN = {
    "kpoints": [1, 1, 1],
    "electronic_temperature_K": 1000,
    "spin": "collinear",
    "starting_moments_muB": {"O": 1.0},
}
MAGNETIC = {
    "cp2k": (Cp2kRun, {"cutoff_Ry": 400, "scf_threshold": 1e-5}, ("out",)),
    "abinit": (AbinitRun, {"cutoff_Ha": 40}, ("out", "abo")),
    "gpaw": (GpawRun, {"cutoff_eV": 600}, ("txt", "result.json")),
}


@pytest.fixture
def oxygen():
    from ase import Atoms

    places = [[0, 0, 0], [0.2, 0.3, 1.25]]
    return Frame.from_atoms(Atoms("O2", positions=places, cell=[4, 4.2, 4.5], pbc=True))


def magnetic(code, oxygen, tmp_path, **changes):
    run_class, settings, names = MAGNETIC[code]
    if code == "abinit":
        (tmp_path / "psp").mkdir()
        (tmp_path / "psp/O.psp8").write_text("O\n 8.0 6.0 220721 zatom\n 8 11 2 4 600 0\n")
        settings = {**settings, "pseudopotentials": str(tmp_path / "psp")}
    (tmp_path / "try-1.out").touch()
    recipe = parse_recipe({"code": code, **settings, **SPIN, **changes})
    files = {name: RECORDED / f"{code}/o2_spin.{name}" for name in names}
    run, ending = ended(run_class, oxygen, recipe, tmp_path, files=files)
    assert ending.cause is None, ending.message
    found = differences(recipe.level_of_theory([8]), run.result.settings)
    return run.result, [s for s in found if "pseudopotentials_md5" not in s]


@pytest.mark.parametrize("code", ["cp2k", "abinit", "gpaw"])
def test_a_magnetic_output_tells_its_moments_at_the_start_and_at_the_end(oxygen, tmp_path, code):
    """Oxygen in its triplet: two unpaired electrons, of which spheres of GPAW hold less."""
    result, found = magnetic(code, oxygen, tmp_path)
    assert found == []
    assert result.magmoms_muB == pytest.approx([0.63 if code == "gpaw" else 1.0] * 2, abs=0.05)


@pytest.mark.parametrize("code", ["cp2k", "abinit", "gpaw"])
def test_another_start_or_no_spin_is_another_level_of_theory(oxygen, tmp_path, code):
    _, found = magnetic(code, oxygen, tmp_path, starting_moments_muB={"O": 2.0})
    assert found == ["starting_moments_muB: asked for {'O': 2.0}, the output says {'O': 1.0}"]


@pytest.mark.parametrize("code", ["cp2k", "abinit", "gpaw"])
def test_a_spin_polarised_output_is_no_label_of_a_recipe_without_spin(oxygen, tmp_path, code):
    plain = {"spin": "unpolarised", "starting_moments_muB": {}}
    _, found = magnetic(code, oxygen, tmp_path, **plain)
    assert [s.partition(":")[0] for s in found] == ["spin", "starting_moments_muB"]


def test_a_moment_that_was_held_fixed_is_another_level_of_theory(oxygen, tmp_path):
    text = (RECORDED / "cp2k/o2_spin.out").read_text()
    (tmp_path / "fixed.out").write_text(
        text.replace(" &END GLOBAL", " &END GLOBAL\n         FIXED_MAGNETIC_MOMENT     2.0E+00", 1)
    )
    recipe = parse_recipe({"code": "cp2k", **MAGNETIC["cp2k"][1], **SPIN})
    files = {"out": tmp_path / "fixed.out"}
    run, _ = ended(Cp2kRun, oxygen, recipe, tmp_path, files=files)
    found = differences(recipe.level_of_theory([8]), run.result.settings)
    assert found == ["fixed_moment_muB: not asked for, the output says 2.0"]


@pytest.mark.parametrize(
    "changes",
    [
        {"starting_moments_muB": {}},
        {"spin": "unpolarised"},
        {"electronic_temperature_K": None},
        {"starting_moments_muB": {"O": 40.0}},
    ],
)
def test_half_a_spin_is_refused(changes):
    with pytest.raises(InputError, match="moment"):
        parse_recipe({"code": "gpaw", "cutoff_eV": 300, **SPIN, **changes})


def test_moments_of_an_element_that_is_not_there_are_a_problem(silicon):
    for code, settings in (("gpaw", {"cutoff_eV": 300}), ("cp2k", {})):
        recipe = parse_recipe({"code": code, **settings, **SPIN})
        assert recipe.problems(silicon) == [
            "starting_moments_muB names O, which is not in the structure"
        ]
