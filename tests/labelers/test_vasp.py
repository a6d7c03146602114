"""Labels by VASP from request to booking, with stand-ins for the executable."""

import gzip
import json
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.units import GPa

from otf_workflows.errors import InputError, LabelFailed
from otf_workflows.hashing import label_key
from otf_workflows.labelers import get_labeler
from otf_workflows.labelers.base import Resources, differences
from otf_workflows.labelers.vasp import VaspLabeler
from otf_workflows.labelers.vasp_recipe import VaspRecipe
from otf_workflows.schemas import Frame
from otf_workflows.testing.vasp import lennard_jones
from otf_workflows.types import FailureCause as Cause
from otf_workflows.types import LabelState

DATA = Path(__file__).parents[1] / "data" / "vasp"
MPTRJ = VaspRecipe(recipe="mptrj")
STAND_IN = f"{shlex.quote(sys.executable)} -m otf_workflows.testing.vasp"


def shaken(symbols="ClLiClLiLiClLiCl", seed=3):
    """Return rock salt with its elements in any order and its atoms off their places."""
    from ase import Atoms

    corners = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    places = {"Li": iter(corners), "Cl": iter([[x + 0.5, y, z] for x, y, z in corners])}
    names = Atoms(symbols).get_chemical_symbols()
    atoms = Atoms(
        names, scaled_positions=[next(places[n]) for n in names], cell=[5.1] * 3, pbc=True
    )
    atoms.positions += np.random.default_rng(seed).normal(scale=0.1, size=(8, 3))
    return Frame.from_atoms(atoms)


def label(frame, folder, command=STAND_IN, recipe=MPTRJ, **fields):
    return VaspLabeler(potcar_spec=True).label(
        frame,
        recipe,
        key=label_key(frame, recipe.fingerprint(frame.numbers)),
        directory=folder,
        resources=Resources(command=command, **fields.pop("resources", {})),
        **fields,
    )


def script(folder, text):
    """Return the command of a shell script that plays VASP."""
    path = folder / "vasp_std"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("name", ["mptrj", "matpes-r2scan"])
def test_a_label_has_the_frames_forces_and_the_recipes_fingerprint(tmp_path, name):
    recipe = VaspRecipe(recipe=name)
    frame = shaken()
    found = label(frame, tmp_path, f"{STAND_IN} --family {recipe.family}", recipe)
    energy, forces, stress_GPa = lennard_jones(frame.to_atoms())
    assert found.energy_eV == pytest.approx(energy, abs=1e-6)
    assert np.abs(np.array(found.forces_eV_A) - forces).max() < 1e-6
    assert np.abs(np.array(found.stress_eV_A3) / GPa - stress_GPa).max() < 1e-6
    assert np.abs(forces).max() > 0.1, "a crystal without forces would prove nothing"
    asked = recipe.level_of_theory(frame.numbers)
    assert differences(asked, found.settings_as_run) == []
    assert found.fingerprint == recipe.fingerprint(frame.numbers)
    (attempt,) = found.attempts
    assert attempt.cause is None
    assert not (tmp_path / "POTCAR").exists()


def test_atomate2s_own_fake_vasp_accepts_our_inputs(tmp_path):
    # Its fake_run_vasp compares INCAR, KPOINTS, POSCAR and POTCAR.spec with a reference folder,
    # here that of atomate2's own set with the changes of the recipe, and copies the outputs.
    from atomate2.utils.testing.vasp import fake_run_vasp  # noqa: F401 - must be importable

    from otf_workflows.labelers.vasp_files import write_inputs

    frame = Frame(**json.loads(real_frame("nacl").model_dump_json()))
    (tmp_path / "reference" / "outputs").mkdir(parents=True)
    (tmp_path / "reference" / "inputs").mkdir()
    write_inputs(tmp_path / "reference/inputs", frame, MPTRJ, numerics={}, potcar_spec=True)
    for file in (DATA / "nacl").glob("*.gz"):
        content = gzip.decompress(file.read_bytes())
        (tmp_path / "reference" / "outputs" / file.stem).write_bytes(content)
    program = (
        "from pathlib import Path; from atomate2.utils.testing.vasp import fake_run_vasp; "
        f"fake_run_vasp(Path({str(tmp_path / 'reference')!r}))"
    )
    command = f"{shlex.quote(sys.executable)} -W ignore -c {shlex.quote(program)}"
    found = label(frame, tmp_path / "run", command)
    assert found.energy_eV == pytest.approx(-27.11090125)
    assert found.fingerprint != MPTRJ.fingerprint(frame.numbers), "it ran with other settings"
    # The same with one setting changed is refused by atomate2.
    with pytest.raises(LabelFailed, match="exit status 1") as caught:
        label(frame, tmp_path / "other", command, numerics={"NELM": 37})
    assert any("NELM" in line for line in caught.value.attempts[-1]["last_lines"])


def test_an_unconverged_cycle_climbs_custodians_ladder_and_says_so(tmp_path):
    found = label(shaken(), tmp_path, f"{STAND_IN} --converges-with ALGO=All")
    assert [a.cause for a in found.attempts] == [Cause.SCF, Cause.SCF, None]
    assert [a.changes.get("ALGO") for a in found.attempts] == [None, "Normal", "All"]
    assert found.fingerprint == MPTRJ.fingerprint([3, 17]), "the physics is as asked for"
    assert len(list(tmp_path.glob("error.*.tar.gz"))) == 2
    assert "try 1 failed (scf)" in found.warnings[0]


def test_what_never_converges_fails_as_scf(tmp_path):
    with pytest.raises(LabelFailed) as caught:
        label(shaken(), tmp_path, f"{STAND_IN} --converges-with ALGO=Never")
    assert caught.value.cause is Cause.SCF
    assert 3 <= len(caught.value.attempts) <= 6
    saved = json.loads((tmp_path / "label_failure.json").read_text())
    assert saved["cause"] == "scf"
    assert saved["attempts"][0]["command"].endswith("ALGO=Never")


def test_a_persons_settings_come_first(tmp_path):
    found = label(
        shaken(), tmp_path, f"{STAND_IN} --converges-with ALGO=All", numerics={"algo": "All"}
    )
    assert [a.changes for a in found.attempts] == [{"ALGO": "All"}]
    with pytest.raises(InputError, match="SIGMA"):
        label(shaken(), tmp_path, numerics={"SIGMA": 0.2})


@pytest.mark.parametrize(
    ("text", "cause", "word"),
    [
        ("echo 'forrtl: insufficient virtual memory' >&2; exit 41", Cause.MEMORY, "memory"),
        ("echo 'write: No space left on device' >&2; exit 1", Cause.NODE, "disk"),
        ("echo 'Error reading item NCORE from file INCAR.'; exit 1", Cause.INPUT, "NCORE"),
        (
            "echo 'ERROR: the triple product of the basis vectors is negative'",
            Cause.GEOMETRY,
            "triple",
        ),
        ("kill -9 $$", Cause.KILLED, "SIGKILL"),
        ("exit 3", Cause.UNKNOWN, "exit status 3"),
        ("true", Cause.PARSE, "no vasprun.xml"),
        ("echo '<modeling>' > vasprun.xml", Cause.PARSE, "cannot be read"),
    ],
)
def test_every_way_to_fail_gets_its_cause(tmp_path, text, cause, word):
    with pytest.raises(LabelFailed, match=word) as caught:
        label(shaken(), tmp_path / "label", script(tmp_path, text))
    assert caught.value.cause is cause
    repeated = cause in {Cause.KILLED, Cause.UNKNOWN}
    assert len(caught.value.attempts) == 1 + repeated


def test_a_run_over_its_time_is_ended(tmp_path):
    with pytest.raises(LabelFailed) as caught:
        label(shaken(), tmp_path / "x", script(tmp_path, "sleep 60"), resources={"walltime_s": 1.0})
    assert caught.value.cause is Cause.WALLTIME


def test_a_missing_executable_is_the_nodes_fault(tmp_path):
    with pytest.raises(LabelFailed) as caught:
        label(shaken(), tmp_path, "no-such-vasp")
    assert caught.value.cause is Cause.NODE


def test_a_recorded_unconverged_cycle_has_the_cause_scf(tmp_path):
    # The run left OSZICAR only: ten steps of at most ten, no vasprun.xml that could be read.
    oszicar = DATA / "nonconv" / "OSZICAR"
    copy = f"cp {shlex.quote(str(oszicar))} OSZICAR"
    with pytest.raises(LabelFailed, match="did not converge") as caught:
        label(shaken(), tmp_path / "x", script(tmp_path, copy), numerics={"NELM": 10})
    assert caught.value.cause is Cause.SCF


def test_a_correction_that_is_physics_is_refused_in_words(tmp_path):
    # custodian's answer to this error is ISMEAR = 0 and SIGMA = 0.05; MatPES has them already,
    # so ours is run at ISMEAR -5 by force.
    from otf_workflows.labelers.vasp_failures import correction, handlers

    write_recorded(tmp_path, "large_sigma")
    (tmp_path / "INCAR").write_text("ISMEAR = -5\nSIGMA = 0.05\nALGO = Fast\n")
    (tmp_path / "vasp.out").write_text("Tetrahedron method fails for NKPT<4")
    (tmp_path / "std_err.txt").write_text("")
    found = correction(tmp_path, handlers())
    assert found.numerics == {}
    assert found.refused == ["VaspErrorHandler would change ISMEAR from -5 to 0"]


def test_the_handler_that_changes_sigma_is_refused_on_the_run_it_was_written_for(tmp_path):
    from custodian.vasp.handlers import LargeSigmaHandler

    from otf_workflows.labelers.vasp_failures import climb, correction

    write_recorded(tmp_path, "large_sigma")
    found = correction(tmp_path, [LargeSigmaHandler()])
    (sentence,) = found.refused
    assert sentence.startswith("LargeSigmaHandler would change SIGMA from 0.8 to 0.1")
    assert climb(Cause.SCF, {}, found, times=0) is None


def test_the_handler_that_changes_kspacing_is_refused_on_a_real_run_that_wakes_it(tmp_path):
    """A metal of r2SCAN at KSPACING 0.25, recorded: custodian wants 0.22."""
    from custodian.vasp.handlers import KspacingMetalHandler

    from otf_workflows.labelers.vasp_failures import climb, correction

    as_custodian_finds_it(tmp_path, "al")
    found = correction(tmp_path, [KspacingMetalHandler()])
    assert found.refused == ["KspacingMetalHandler would change KSPACING from 0.25 to 0.22"]
    assert found.numerics == {}
    assert climb(Cause.SCF, {}, found, times=0) is None


def test_handlers_that_change_physics_only_are_not_asked():
    from otf_workflows.labelers.vasp_failures import handlers

    asked = {type(handler).__name__ for handler in handlers()}
    assert not asked & {"LargeSigmaHandler", "IncorrectSmearingHandler", "KspacingMetalHandler"}


@pytest.mark.parametrize("setting", ["SIGMA=0.2", "ENCUT=400", "ISMEAR=1"])
def test_a_run_with_other_settings_than_asked_for_is_told_by_its_fingerprint(tmp_path, setting):
    found = label(shaken(), tmp_path, f"{STAND_IN} --uses {setting}")
    (sentence,) = differences(MPTRJ.level_of_theory([3, 17]), found.settings_as_run)
    assert sentence.startswith(setting.partition("=")[0])


def test_labels_of_real_runs_at_other_settings_are_quarantined(database, tmp_path):
    from otf_workflows.campaign import Campaign
    from otf_workflows.ledger import draw_dataset, request, settle
    from otf_workflows.store import Store

    store = Store(database)
    store.ensure_indexes()
    for name, kind, words in (
        # SIGMA as custodian's LargeSigmaHandler left it.
        ("si2", "mptrj", ["SIGMA_eV: asked for 0.05, the output says 0.11151"]),
        ("al", "mptrj", ["ISMEAR: asked for 0, the output says -5", "R2SCAN", "ENAUG"]),
        # Another ENCUT, and a mesh of another KSPACING than 0.22.
        ("nacl", "matpes-pbe", ["ENCUT_eV: asked for 680.0, the output says 500.0"]),
        ("al", "matpes-r2scan", ["kpoints: asked for", "'mesh': [11, 11, 11]", "ISMEAR"]),
    ):
        frame, recipe = real_frame(name), VaspRecipe(recipe=kind)
        campaign = Campaign(
            name=f"real-{name}-{kind}", structure=frame, labels={"code": "vasp", "recipe": kind}
        )
        (wanted,), _ = request(store, [frame], campaign=campaign, cycle=0)
        copy = f"cp {shlex.quote(str(DATA / name))}/*.gz ."
        result = label(frame, tmp_path / f"{name}-{kind}", script(tmp_path, copy), recipe)
        assert result.key == wanted.key
        settle(store, result)
        booked = store.label(wanted.key)
        assert booked.state is LabelState.QUARANTINED
        for word in words:
            assert word in booked.reason
        assert draw_dataset(store, campaign=campaign, cycle=0)[1] == []


def test_a_label_at_the_recipes_settings_is_done(database, tmp_path):
    from otf_workflows.campaign import Campaign
    from otf_workflows.ledger import request, settle
    from otf_workflows.store import Store

    store = Store(database)
    store.ensure_indexes()
    frame = shaken()
    campaign = Campaign(name="licl", structure=frame, labels={"code": "vasp"})
    (wanted,), _ = request(store, [frame], campaign=campaign, cycle=0)
    settle(store, label(frame, tmp_path))
    assert store.label(wanted.key).state is LabelState.DONE


def test_the_check_says_what_is_missing_and_how_to_mend_it(monkeypatch, tmp_path):
    from pymatgen.core import SETTINGS

    monkeypatch.delitem(SETTINGS, "PMG_VASP_PSP_DIR", raising=False)
    labeler = get_labeler("vasp")
    program, potcar = labeler.check(Resources(command="env no-vasp_std"), [3, 17], MPTRJ)
    assert "PATH" in program
    assert "PMG_VASP_PSP_DIR" in potcar
    assert "pmg config" in potcar
    there = Resources(command=sys.executable, data_dir=str(tmp_path))
    (potcar,) = labeler.check(there, [3, 17], MPTRJ)
    assert "Li_sv" in potcar
    assert str(tmp_path) in potcar
    assert SETTINGS.get("PMG_VASP_PSP_DIR") is None, "the user's own setting is as it was"


def test_without_potentials_a_label_fails_as_input_before_anything_runs(monkeypatch, tmp_path):
    from pymatgen.core import SETTINGS

    monkeypatch.delitem(SETTINGS, "PMG_VASP_PSP_DIR", raising=False)
    with pytest.raises(LabelFailed) as caught:
        VaspLabeler().label(
            shaken(), MPTRJ, key="k", directory=tmp_path, resources=Resources(command="true")
        )
    assert caught.value.cause is Cause.INPUT
    assert caught.value.attempts == []


def test_mp2020_corrections_are_a_shift_per_element_within_one_chemistry():
    # Why labels hold raw energies: what CHGNet's training data have on top is absorbed by the
    # shift per element that fine-tuning fits.
    from pymatgen.core import Composition
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
    from pymatgen.entries.computed_entries import ComputedEntry

    scheme = MaterialsProject2020Compatibility(check_potcar=False)

    def corrected(formula):
        entry = ComputedEntry(
            Composition(formula),
            -100.0,
            parameters={"run_type": "GGA+U", "hubbards": {"Fe": 5.3}, "software": "vasp"},
            data={"oxidation_states": {"Li": 1, "Fe": 2, "P": 5, "O": -2}, "oxide_type": "oxide"},
        )
        (done,) = scheme.process_entries([entry])
        return done.correction

    one = corrected("Li1Fe1P1O4")
    assert abs(one) > 1
    assert corrected("Li4Fe4P4O16") == pytest.approx(4 * one)
    # A vacancy of lithium changes no shift; Fe and O keep theirs.
    assert corrected("Li3Fe4P4O16") == pytest.approx(4 * one)


def wustite():
    """Return two formula units of FeO, atoms off their places."""
    from ase import Atoms

    atoms = Atoms(
        "OFeFeO",
        scaled_positions=[[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0.5, 0.5, 0]],
        cell=[4.3, 4.3, 3.0],
        pbc=True,
    )
    atoms.rattle(0.05, seed=2)
    return Frame.from_atoms(atoms)


def test_a_label_with_u_is_done_and_one_with_another_u_is_not(tmp_path):
    """VASP writes LDAUTYPE as a list, U by type of atom, in the order of POSCAR."""
    frame = wustite()
    asked = MPTRJ.level_of_theory(frame.numbers)
    found = label(frame, tmp_path / "same")
    assert found.settings_as_run["hubbard_l_U_J"] == {"Fe": [2, 5.3, 0.0]}
    assert differences(asked, found.settings_as_run) == []
    other = label(frame, tmp_path / "other", f"{STAND_IN} --uses 'LDAUU=4.0 0'")
    assert differences(asked, other.settings_as_run) == [
        "hubbard_l_U_J: asked for {'Fe': [2, 5.3, 0.0]}, the output says {'Fe': [2, 4.0, 0.0]}"
    ]


def test_the_energy_of_a_label_with_u_is_the_raw_one(tmp_path):
    """As VASP said: MP2020 would add −5.9 eV for these two oxygens and two irons with U."""
    from pymatgen.core import Composition
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
    from pymatgen.entries.computed_entries import ComputedEntry

    frame = wustite()
    found = label(frame, tmp_path)
    assert found.energy_eV == pytest.approx(lennard_jones(frame.to_atoms())[0], abs=1e-6)
    entry = ComputedEntry(
        Composition("Fe2O2"),
        found.energy_eV,
        parameters={"run_type": "GGA+U", "hubbards": {"Fe": 5.3}, "software": "vasp"},
        data={"oxidation_states": {"Fe": 2, "O": -2}, "oxide_type": "oxide"},
    )
    scheme = MaterialsProject2020Compatibility(check_potcar=False)
    (done,) = scheme.process_entries([entry])
    assert done.correction == pytest.approx(2 * (-0.687 - 2.256), abs=0.01)


def test_compositions_with_and_without_u_have_no_common_zero():
    """Iron has U in its oxide and none as a metal or a sulphide."""
    iron, oxide, sulphide, salt = [26], [26, 8], [26, 16, 16], [11, 17]
    assert MPTRJ.mixing([oxide, [8, 8, 26, 26, 26], salt]) is None
    for other in (iron, sulphide):
        assert MPTRJ.mixing([oxide, other, salt]).startswith("Fe has U in some")
    assert VaspRecipe(recipe="matpes-pbe").mixing([oxide, iron]) is None
    # Fluorides have U as oxides have; no other halide does.
    assert MPTRJ.mixing([[27, 9], [27, 8]]) is None
    assert MPTRJ.mixing([[27, 9], [27, 17]]) is not None


def real_frame(name):
    """Return the last structure of a recorded run."""
    from pymatgen.io.vasp import Vasprun

    from otf_workflows.labelers.vasp_level import quiet

    with quiet():
        run = Vasprun(
            DATA / name / "vasprun.xml.gz",
            parse_dos=False,
            parse_eigen=False,
            parse_potcar_file=False,
        )
    structure = run.final_structure
    return Frame(
        numbers=[site.specie.Z for site in structure],
        cell_A=structure.lattice.matrix.tolist(),
        positions_A=structure.cart_coords.tolist(),
    )


def as_custodian_finds_it(folder, name):
    """Put a recorded vasprun.xml with its INCAR, POSCAR and KPOINTS into a folder."""
    from pymatgen.io.vasp import Poscar, Vasprun

    from otf_workflows.labelers.vasp_level import quiet

    path = folder / "vasprun.xml"
    path.write_bytes(gzip.decompress((DATA / name / "vasprun.xml.gz").read_bytes()))
    with quiet():
        run = Vasprun(path, parse_potcar_file=False)
    run.incar.write_file(folder / "INCAR")
    Poscar(run.initial_structure).write_file(folder / "POSCAR")


def write_recorded(folder, name):
    """Put a recorded run of two silicon atoms into a folder, as custodian's handlers want it."""
    from pymatgen.core import Lattice, Structure
    from pymatgen.io.vasp import Poscar

    shutil.copy(DATA / name / "INCAR", folder)
    (folder / "OUTCAR").write_bytes(gzip.decompress((DATA / name / "OUTCAR.gz").read_bytes()))
    places = [[0, 0, 0], [0.25, 0.25, 0.25]]
    Poscar(Structure(Lattice.cubic(3.47), ["Si"] * 2, places)).write_file(folder / "POSCAR")
