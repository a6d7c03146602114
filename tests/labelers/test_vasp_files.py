"""What real VASP runs say is read rightly: units, signs, atom order, and the level of theory."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ase.units import GPa
from pymatgen.io.vasp import Poscar, Vasprun

from otf_workflows.labelers.base import differences
from otf_workflows.labelers.espresso_recipe import kpoint_grid
from otf_workflows.labelers.vasp_files import (
    ORDER_FILE,
    UnreadableOutput,
    read_output,
    settings_as_run,
    stress_from_kB,
    write_inputs,
)
from otf_workflows.labelers.vasp_level import quiet
from otf_workflows.labelers.vasp_recipe import VaspRecipe
from otf_workflows.schemas import Frame

DATA = Path(__file__).parents[1] / "data" / "vasp"
MPTRJ = VaspRecipe(recipe="mptrj")


def recorded(name):
    """Return a real run as pymatgen reads it."""
    with quiet():
        return Vasprun(
            DATA / name / "vasprun.xml.gz",
            parse_dos=False,
            parse_eigen=False,
            parse_potcar_file=False,
        )


def frame_of(run, order=None):
    """Return the last structure of a run as a frame, its atoms in another order if given."""
    structure = run.final_structure
    order = range(len(structure)) if order is None else order
    return Frame(
        numbers=[structure[i].specie.Z for i in order],
        cell_A=structure.lattice.matrix.tolist(),
        positions_A=[structure[i].coords.tolist() for i in order],
    )


def interleaved(run, seed=0):
    """Return a random order of atoms that keeps the order within each element."""
    elements = [site.specie.symbol for site in run.final_structure]
    shuffled = np.random.default_rng(seed).permutation(elements)
    queues = {e: iter([i for i, x in enumerate(elements) if x == e]) for e in set(elements)}
    return [next(queues[element]) for element in shuffled]


def replay(name, frame, folder, recipe=MPTRJ):
    """Write the inputs of a frame, put the outputs of a real run beside them, read them."""
    write_inputs(folder, frame, recipe, numerics={}, potcar_spec=True)
    for file in (DATA / name).glob("*.gz"):
        (folder / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    return read_output(folder, frame, recipe)


def test_energy_forces_and_stress_of_a_real_run(tmp_path):
    run = recorded("si2")
    found = replay("si2", frame_of(run), tmp_path)
    last = run.ionic_steps[-1]
    assert found.energy_eV == pytest.approx(-10.84147246, abs=1e-8), "extrapolated, not free"
    assert found.free_energy_eV == pytest.approx(-10.84147289, abs=1e-8)
    assert found.energy_eV == pytest.approx(last["e_0_energy"])
    # 'in kB -0.48135' for a crystal under slight tension: +0.0481 GPa in our sign.
    assert found.stress_eV_A3 / GPa == pytest.approx(np.eye(3) * 0.048135, abs=1e-6)
    assert found.magmoms_muB == pytest.approx([0.0, 0.0], abs=1e-3)
    assert found.converged


def test_the_zero_that_vasp_5_4_writes_for_the_extrapolated_energy_is_not_a_label(tmp_path):
    run = recorded("nacl")
    assert run.ionic_steps[-1]["e_0_energy"] == 0.0
    assert replay("nacl", frame_of(run), tmp_path).energy_eV == pytest.approx(-27.11090125)


def test_stress_has_the_sign_and_unit_of_the_derivative_of_the_energy():
    # dE/dV between two recorded volumes must be the mean of trace(stress)/3 at both: this pins
    # sign and unit to VASP's own energies. Al has few points and a wide step: sign and order only.
    for name, first, last, tolerance in (("si2", 0, 2, 0.03), ("al", 0, 1, 0.4)):
        steps = recorded(name).ionic_steps
        one, two = steps[first], steps[last]
        slope = (two["e_fr_energy"] - one["e_fr_energy"]) / (
            two["structure"].volume - one["structure"].volume
        )
        pressure = np.mean(
            [np.trace(stress_from_kB(np.array(s["stress"]))) / 3 for s in (one, two)]
        )
        assert abs(slope) > 1e-3
        assert pressure == pytest.approx(slope, rel=tolerance), name


def test_stress_has_the_sign_of_chgnets():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    from otf_workflows.potentials import load_potential

    steps = recorded("si2").ionic_steps
    structures = [step["structure"].to_ase_atoms() for step in steps]
    potential = load_potential("chgnet-0.3.0")
    predicted = [np.trace(p.stress_eV_A3) / 3 for p in potential.predict_many(structures)]
    computed = [np.trace(stress_from_kB(np.array(step["stress"]))) / 3 for step in steps]
    slope, _ = np.polyfit(predicted, computed, 1)
    assert 0.5 < slope < 2, "sign and unit agree; −1, 10 or 160 would be the known mistakes"


def test_forces_land_on_the_right_atoms_of_a_frame_in_any_order(tmp_path):
    run = recorded("sbxeclf")
    recorded_forces = np.array(run.ionic_steps[-1]["forces"])
    for seed in range(3):
        order = interleaved(run, seed)
        found = replay("sbxeclf", frame_of(run, order), tmp_path)
        assert np.abs(found.forces_eV_A - recorded_forces[order]).max() == 0
        assert np.abs(found.forces_eV_A - recorded_forces).max() > 0.1, "the order does matter"


def test_poscar_holds_the_frame_to_the_last_digit_with_elements_together(tmp_path):
    rng = np.random.default_rng(0)
    frame = Frame(
        numbers=[8, 26, 3, 8, 15, 26, 8, 8],
        cell_A=(np.diag([10.1, 6.2, 4.7]) + 0.3 * rng.random((3, 3))).tolist(),
        positions_A=(rng.random((8, 3)) * 4).tolist(),
    )
    order = write_inputs(tmp_path, frame, MPTRJ, numerics={}, potcar_spec=True)
    written = Poscar.from_file(tmp_path / "POSCAR").structure
    wanted = np.array(frame.positions_A)[order]
    shifts = written.frac_coords - wanted @ np.linalg.inv(frame.cell_A)
    assert np.abs(shifts - np.round(shifts)).max() < 1e-12
    symbols = [site.specie.symbol for site in written]
    assert symbols == ["Li", "Fe", "Fe", "P", "O", "O", "O", "O"]
    assert sorted(order) == list(range(8))
    assert json.loads((tmp_path / ORDER_FILE).read_text()) == order


def test_an_output_in_another_order_than_its_inputs_is_refused(tmp_path):
    run = recorded("sbxeclf")
    frame = frame_of(run)
    replay("sbxeclf", frame, tmp_path)
    order = json.loads((tmp_path / ORDER_FILE).read_text())
    order[0], order[1] = order[1], order[0]
    (tmp_path / ORDER_FILE).write_text(json.dumps(order))
    with pytest.raises(UnreadableOutput, match="order"):
        read_output(tmp_path, frame, MPTRJ)


def test_an_output_of_another_frame_is_refused(tmp_path):
    run = recorded("nacl")
    frame = frame_of(run)
    replay("nacl", frame, tmp_path)
    for changes, word in (
        ({"positions_A": (np.array(frame.positions_A) + 0.01).tolist()}, "positions"),
        ({"cell_A": (np.array(frame.cell_A) * 1.001).tolist()}, "cell"),
        ({"numbers": [3 if z == 11 else z for z in frame.numbers]}, "elements"),
    ):
        with pytest.raises(UnreadableOutput, match=word):
            read_output(tmp_path, frame.model_copy(update=changes), MPTRJ)


def test_a_left_handed_cell_gets_its_forces_turned_back(tmp_path):
    # pymatgen inverts such cells, because VASP refuses them; forces of the inverted crystal are
    # opposite, its stress is the same.
    run = recorded("sbxeclf")
    frame = frame_of(run)
    inverted = frame.model_copy(
        update={
            "cell_A": (-np.array(frame.cell_A)).tolist(),
            "positions_A": (-np.array(frame.positions_A)).tolist(),
        }
    )
    straight = replay("sbxeclf", frame, tmp_path)
    turned = replay("sbxeclf", inverted, tmp_path)
    assert np.array_equal(turned.forces_eV_A, -straight.forces_eV_A)
    assert np.array_equal(turned.stress_eV_A3, straight.stress_eV_A3)


@pytest.mark.parametrize("n_bytes", [0, 500, 60_000])
def test_a_cut_off_output_is_unreadable(tmp_path, n_bytes):
    run = recorded("nacl")
    replay("nacl", frame_of(run), tmp_path)
    file = tmp_path / "vasprun.xml"
    file.write_bytes(file.read_bytes()[:n_bytes])
    with pytest.raises(UnreadableOutput, match="cannot be read"):
        read_output(tmp_path, frame_of(run), MPTRJ)


def test_what_was_left_by_an_earlier_try_is_not_taken_for_its_output(tmp_path):
    run = recorded("nacl")
    replay("nacl", frame_of(run), tmp_path)
    write_inputs(tmp_path, frame_of(run), MPTRJ, numerics={}, potcar_spec=True)
    with pytest.raises(UnreadableOutput, match="no vasprun"):
        read_output(tmp_path, frame_of(run), MPTRJ)


@pytest.mark.parametrize(
    ("name", "recipe", "numbers", "words"),
    [
        # The relaxation whose SIGMA custodian's LargeSigmaHandler had changed.
        ("si2", "mptrj", [14], ["SIGMA_eV: asked for 0.05, the output says 0.11151", "'NSW': 99"]),
        ("al", "matpes-r2scan", [13], ["ISMEAR: asked for 0", "'mesh': [11, 11, 11]", "ENAUG"]),
        ("nacl", "matpes-pbe", [11, 17], ["ENCUT_eV: asked for 680.0, the output says 500.0"]),
        ("nacl", "mptrj", [11, 17], ["Cl 06Sep2000".replace(" ", ""), "ISPIN", "LASPH"]),
        ("sbxeclf", "mptrj", [51, 54, 17, 9], ["'gamma': False, 'mesh': [2, 4, 2]", "LREAL"]),
    ],
)
def test_other_settings_of_real_runs_are_spelled_out(name, recipe, numbers, words):
    recipe = VaspRecipe(recipe=recipe)
    as_run = settings_as_run(DATA / name / "vasprun.xml.gz", recipe)
    text = "; ".join(differences(recipe.level_of_theory(numbers), as_run))
    for word in words:
        assert word in text


def test_what_agrees_in_real_runs_is_not_reported():
    as_run = settings_as_run(DATA / "sbxeclf" / "vasprun.xml.gz", MPTRJ)
    asked = MPTRJ.level_of_theory([51, 54, 17, 9])
    for name in ("functional", "ENCUT_eV", "PREC", "ISPIN", "SIGMA_eV", "potentials"):
        assert as_run[name] == asked[name]
    # 0.006 eV for 120 atoms.
    assert as_run["EDIFF_eV_per_atom"] == asked["EDIFF_eV_per_atom"] == 5e-5
    assert settings_as_run(DATA / "al" / "vasprun.xml.gz", MPTRJ)["functional"] == "R2SCAN"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("2 -1 -1 -1", "4.0 0.0 0.0 0.0", "0.0 0.0 0.0 0.0"), {"Sb": [2, 4.0, 0.0]}),
        # What VASP 6 writes if LDAU is on and no values are given.
        (("-1", "0.0", "0.0"), {}),
    ],
)
def test_u_in_the_form_of_vasps_own_file_is_read(tmp_path, values, expected):
    """No recorded run has U: a real one with the lines as VASP writes them in their place."""
    text = gzip.decompress((DATA / "sbxeclf" / "vasprun.xml.gz").read_bytes()).decode()
    head, found, tail = text.partition('<i type="logical" name="LDAU"> F  </i>')
    assert found
    shells, u, j = values
    text = (
        f'{head}<i type="logical" name="LDAU"> T  </i>'
        '<v type="int" name="LDAUTYPE">     2</v>'
        f'<v type="int" name="LDAUL">  {shells}</v>'
        f'<v name="LDAUU">   {u}</v><v name="LDAUJ">   {j}</v>{tail}'
    )
    (tmp_path / "vasprun.xml").write_text(text)
    as_run = settings_as_run(tmp_path / "vasprun.xml", MPTRJ)
    before = settings_as_run(DATA / "sbxeclf" / "vasprun.xml.gz", MPTRJ)
    assert as_run["hubbard_l_U_J"] == expected
    assert as_run.get("others") == before.get("others")


def test_our_rule_for_kspacing_is_vasps():
    run = recorded("al")
    spacing = run.incar["KSPACING"]
    assert kpoint_grid(run.final_structure.lattice.matrix, spacing) == tuple(run.kpoints.kpts[0])


def test_gzipped_outputs_are_read_too(tmp_path):
    run = recorded("nacl")
    frame = frame_of(run)
    write_inputs(tmp_path, frame, MPTRJ, numerics={}, potcar_spec=True)
    for file in (DATA / "nacl").glob("*.gz"):
        shutil.copy(file, tmp_path)
    assert read_output(tmp_path, frame, MPTRJ).energy_eV == pytest.approx(-27.11090125)
