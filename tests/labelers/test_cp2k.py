"""CP2K through atomate2's input set and custodian's handlers: what is taken over, what is not."""

import shutil
import subprocess
from pathlib import Path

import pytest
from ase.build import bulk

from otf_workflows.errors import LabelFailed
from otf_workflows.labelers import cp2k_failures, get_labeler, parse_recipe
from otf_workflows.labelers.base import Resources
from otf_workflows.labelers.cp2k_files import write_input
from otf_workflows.labelers.cp2k_recipe import Cp2kNumerics, quiet
from otf_workflows.schemas import Frame
from otf_workflows.types import FailureCause

RECORDED = Path(__file__).parent / "recorded" / "cp2k"
CUSTODIAN = Path(__file__).parents[1] / "data" / "cp2k"

BASIS = """ Si  SZV-MOLOPT-SR-GTH SZV-MOLOPT-SR-GTH-q4
 1
 2 0 1 2 1 1
   1.2 -0.3 -0.1
   0.4  0.2 -0.4
 Fe  SZV-MOLOPT-SR-GTH SZV-MOLOPT-SR-GTH-q16
 1
 2 0 1 2 1 1
   1.2 -0.3 -0.1
   0.4  0.2 -0.4
"""
POTENTIAL = """Si GTH-PBE-q4 GTH-PBE
    2    2
     0.44000000    1    -6.26928833
    0
Fe GTH-PBE-q16 GTH-PBE
    4    6    6
     0.36000000    2     6.75678900    -0.22833300
    0
"""
"""Entries in the form of CP2K's files; the numbers do not matter here."""


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "BASIS_MOLOPT").write_text(BASIS)
    (folder / "GTH_POTENTIALS").write_text(POTENTIAL)
    return folder


def silicon(n=2):
    atoms = bulk("Si", "diamond", a=5.43).repeat((1, 1, n // 2))
    atoms.rattle(0.04, seed=1)
    return Frame.from_atoms(atoms)


def recipe_of(**changes):
    settings = {"basis": "SZV-MOLOPT-SR-GTH", "kpoints": [2, 2, 2], **changes}
    return parse_recipe({"code": "cp2k", **settings})


def leaves(section, place=""):
    """Every keyword of an input, by its place."""
    found = {f"{place}/{name}": str(word) for name, word in section.keywords.items()}
    for name, inner in section.subsections.items():
        found[f"{place}/{name}"] = " ".join(map(str, inner.section_parameters))
        found |= leaves(inner, f"{place}/{name}")
    return found


def written(tmp_path, data, recipe, frame):
    from pymatgen.io.cp2k.inputs import Cp2kInput

    path = tmp_path / "try-1.inp"
    numerics = Cp2kNumerics().model_dump()
    write_input(path, frame, recipe, numerics=numerics, data_dir=data)
    return leaves(Cp2kInput.from_file(path))


def test_the_input_is_that_of_atomate2_but_for_what_we_say(tmp_path, data):
    """Everything else of its static set, precision and grids among it, is taken over."""
    from atomate2.cp2k.sets.core import StaticSetGenerator
    from pymatgen.io.ase import AseAtomsAdaptor
    from pymatgen.io.cp2k.inputs import Cp2kInput

    frame, recipe = silicon(), recipe_of(kpoints=[1, 1, 1])
    with quiet():
        theirs = StaticSetGenerator(
            sort_structure=False,
            user_kpoints_settings=None,
            user_input_settings={
                "basis_and_potential": {"Si": recipe.data("Si", data)},
                "xc_functionals": "PBE",
                "cutoff": recipe.cutoff_Ry,
                "ot": False,
            },
        ).get_input_set(AseAtomsAdaptor.get_structure(frame.to_atoms()), optional_files=False)
    path = tmp_path / "theirs.inp"
    path.write_text(str(theirs.cp2k_input))
    ours, theirs = written(tmp_path, data, recipe, frame), leaves(Cp2kInput.from_file(path))
    different = {
        place.removeprefix("/FORCE_EVAL/DFT/")
        for place in ours.keys() | theirs.keys()
        if ours.get(place) != theirs.get(place)
    }
    physics = {"UKS", "MULTIPLICITY", "QS/EPS_PGF_ORB", "SCF/EPS_SCF", "MGRID/REL_CUTOFF"}
    occupations = {place for place in different if "SMEAR" in place} | {"SCF/ADDED_MOS"}
    numerics = {"SCF/MAX_SCF", "SCF/SCF_GUESS", "SCF/CHOLESKY", "SCF/MIXING/ALPHA",
                "SCF/MIXING/NBUFFER"}  # fmt: skip
    output = {"/GLOBAL/PROJECT_NAME", "/GLOBAL/PRINT_LEVEL", "SCF/PRINT", "SCF/PRINT/RESTART OFF"}
    assert different == physics | occupations | numerics | output


def test_kpoints_are_centred_and_not_reduced_by_symmetry(tmp_path, data):
    """atomate2's own are: forces and stress of a reduced grid are not made whole by CP2K."""
    even = written(tmp_path, data, recipe_of(kpoints=[2, 3, 4]), silicon())
    assert even["/FORCE_EVAL/DFT/KPOINTS/SCHEME"].split()[1:] == [
        "MACDONALD", "2", "3", "4", "0.25", "0.0", "0.125",
    ]  # fmt: skip
    odd = written(tmp_path, data, recipe_of(kpoints=[3, 3, 1]), silicon())
    assert "MONKHORST-PACK 3 3 1" in odd["/FORCE_EVAL/DFT/KPOINTS/SCHEME"]
    gamma = written(tmp_path, data, recipe_of(kpoints=[1, 1, 1]), silicon())
    assert not any("KPOINTS" in place for place in gamma)


def test_a_magnetic_input_starts_with_the_moments_of_the_recipe(tmp_path, data):
    iron = Frame.from_atoms(bulk("Fe", "bcc", a=2.8, cubic=True))
    recipe = recipe_of(
        spin="collinear", starting_moments_muB={"Fe": 2.4}, electronic_temperature_K=500
    )
    found = written(tmp_path, data, recipe, iron)
    assert found["/FORCE_EVAL/DFT/UKS"].split()[1] == "True"
    assert found["/FORCE_EVAL/DFT/MULTIPLICITY"].split()[1] == "7"
    (kind,) = [place for place in found if place.endswith("/MAGNETIZATION")]
    assert found[kind].split()[1] == "2.4"
    assert found["/FORCE_EVAL/DFT/SCF/SMEAR/ELEC_TEMP"].split()[1] == "500"
    assert found["/FORCE_EVAL/DFT/SCF/SMEAR/FIXED_MAGNETIC_MOMENT"].split()[1] == "-100.0"
    assert found["/GLOBAL/ECHO_INPUT"].split()[1] == "True"


def proposal(tmp_path, inp, out, *, without_smearing=False, known=None):
    text = Path(inp).read_text()
    if without_smearing:
        text = text.partition("\t\t\t&SMEAR")[0] + text.partition("&END SMEAR\n")[2]
    (tmp_path / "try-1.inp").write_text(text)
    shutil.copyfile(out, tmp_path / "try-1.out")
    known = known or cp2k_failures.handlers()
    return cp2k_failures.correction(tmp_path / "try-1.inp", tmp_path / "try-1.out", known)


def test_the_handlers_mend_an_unconverged_scf_by_mixing(tmp_path):
    found = proposal(tmp_path, RECORDED / "si2_scf.inp", RECORDED / "si2_scf.out")
    assert found.handler == "UnconvergedScfErrorHandler"
    assert found.numerics == {"mixing_history": 20, "mixing_alpha": 0.05, "mixing_beta": 0.01}
    assert found.refused == []
    assert (tmp_path / "try-1.inp").read_text() == (RECORDED / "si2_scf.inp").read_text()


def test_a_smearing_that_a_handler_would_add_is_refused_and_the_rest_is_done(tmp_path):
    found = proposal(
        tmp_path, RECORDED / "si2_scf.inp", RECORDED / "si2_scf.out", without_smearing=True
    )
    assert found.numerics["mixing_alpha"] == 0.05
    assert any("SCF/SMEAR/ELEC_TEMP to 300" in sentence for sentence in found.refused)
    assert any("SCF/ADDED_MOS" in sentence for sentence in found.refused)


def test_another_precision_is_refused_in_words(tmp_path):
    """What the handler for stuck cycles does on its own recorded file."""
    with quiet():
        from custodian.cp2k.handlers import NumericalPrecisionHandler

    known = [NumericalPrecisionHandler("cp2k.inp", "cp2k.out", max_same=3)]
    found = proposal(tmp_path, CUSTODIAN / "cp2k.inp", CUSTODIAN / "imprecise.out", known=known)
    assert found.handler == "NumericalPrecisionHandler"
    assert found.numerics == {}
    assert any("QS/EPS_DEFAULT to 1e-12" in sentence for sentence in found.refused)
    assert any("QS/EPS_PGF_ORB" in sentence for sentence in found.refused)


def test_the_ladder_mixes_less_takes_more_steps_and_ends(tmp_path):
    numerics, times, tried = {"max_scf": 2, "mixing_alpha": 0.03}, 0, []
    text = (RECORDED / "si2_scf.inp").read_text()
    known = cp2k_failures.handlers()
    (tmp_path / "a.out").write_text((RECORDED / "si2_scf.out").read_text())
    while True:
        every = Cp2kNumerics(**numerics)
        lines = text.replace("ALPHA 0.4", f"ALPHA {every.mixing_alpha}")
        lines = lines.replace("BETA 0.01", f"BETA {every.mixing_beta}")
        lines = lines.replace("NBUFFER 8", f"NBUFFER {every.mixing_history}")
        (tmp_path / "a.inp").write_text(lines)
        proposed = cp2k_failures.correction(tmp_path / "a.inp", tmp_path / "a.out", known)
        higher = cp2k_failures.climb(numerics, proposed, times=times)
        if higher is None:
            break
        numerics, times = higher, times + 1
        tried.append((numerics["max_scf"], numerics["mixing_alpha"]))
    # A person's 0.03 is below the handler's first choice of 0.05.
    assert tried[0] == (200, 0.01)
    assert [alpha for _, alpha in tried] == sorted((a for _, a in tried), reverse=True)
    assert times <= cp2k_failures.MOST_CORRECTIONS


def test_the_validator_of_custodian_agrees_with_us_on_recorded_outputs():
    assert cp2k_failures.valid(RECORDED / "si2_kpoints.out")
    for bad in (RECORDED / "si2_scf.out", CUSTODIAN / "unconverged.out",
                CUSTODIAN / "imprecise.out", RECORDED / "si2_abort.out"):  # fmt: skip
        assert not cp2k_failures.valid(bad)


def test_ending_a_label_ends_its_own_cp2k_and_no_other(tmp_path, data):
    """custodian's own Cp2kJob.terminate is ``killall cp2k.psmp``."""
    program = tmp_path / "cp2k.psmp"
    program.write_text("#!/bin/sh\nsleep 60\n")
    program.chmod(0o755)
    other = subprocess.Popen([program], start_new_session=True)
    try:
        with pytest.raises(LabelFailed) as caught:
            get_labeler("cp2k").label(
                silicon(),
                recipe_of(),
                key="0" * 16,
                directory=tmp_path / "label",
                resources=Resources(command=str(program), walltime_s=0.5, data_dir=str(data)),
            )
        assert caught.value.cause == FailureCause.WALLTIME
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_basis_and_potential_do_not_depend_on_how_pymatgen_is_configured(
    tmp_path, data, monkeypatch
):
    before = written(tmp_path, data, recipe_of(), silicon())
    (tmp_path / "Si").write_text("basis_sets: {other: {}}\npotentials: {other: {}}\n")
    monkeypatch.setenv("CP2K_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("DEFAULT_CP2K_FUNCTIONAL", "LDA")
    assert written(tmp_path, data, recipe_of(), silicon()) == before


def test_what_is_missing_in_the_data_folder_is_said(tmp_path, data):
    labeler, resources = get_labeler("cp2k"), Resources(command="true", data_dir=str(data))
    assert labeler.check(resources, [14], recipe_of()) == []
    (sentence,) = labeler.check(resources, [14], recipe_of(basis="TZV2P-MOLOPT-GTH"))
    assert "BASIS_MOLOPT has no TZV2P-MOLOPT-GTH for Si" in sentence
    nowhere = Resources(command="true", data_dir=str(tmp_path / "none"))
    (sentence,) = labeler.check(nowhere, [14], recipe_of())
    assert "install" in sentence
