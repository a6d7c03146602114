"""Our models run in ASE and in atomate2's force-field flows."""

from __future__ import annotations

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.eos import EquationOfState

from otf_workflows.calculators import FORCE_FIELD, model_calculator, open_model
from otf_workflows.errors import NotFoundError
from otf_workflows.potentials import PotentialError, load_potential


@pytest.fixture(scope="module")
def tuned():
    """Return a changed CHGNet with heads, as a campaign leaves it."""
    licl = bulk("LiCl", "rocksalt", a=5.13)
    structures = [licl.copy() for _ in range(2)]
    for seed, atoms in enumerate(structures):
        atoms.rattle(0.1, seed=seed)
    potential = load_potential("chgnet-0.3.0")
    forces = [1.3 * found.forces_eV_A for found in potential.predict_many(structures)]
    trainable = potential.trainable()
    trainable.shift_energies({"Li": -1.0})
    return trainable.finish().fit_uncertainty(structures, forces, seed=0)


@pytest.fixture(scope="module")
def model_file(tuned, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "licl-c1.otfmodel"
    path.write_bytes(tuned.dump())
    return path


def test_a_file_knows_what_it_is(tuned, model_file):
    atoms = bulk("LiCl", "rocksalt", a=5.0)
    atoms.calc = model_calculator(str(model_file))
    expected = tuned.predict(atoms)
    assert atoms.get_potential_energy() == expected.energy_eV
    assert (atoms.get_stress(voigt=False) == expected.stress_eV_A3).all()


def test_pretrained_and_toy_potentials_open_by_name_and_by_file(tmp_path):
    assert open_model("toy-lj").name == "toy-lj"
    file = tmp_path / "toy.otfmodel"
    file.write_bytes(load_potential("toy-lj").dump())
    assert open_model(str(file)) == load_potential("toy-lj")


def test_a_missing_file_and_one_of_something_else_are_said(tmp_path):
    with pytest.raises(NotFoundError, match="does not exist"):
        model_calculator(str(tmp_path / "gone.otfmodel"))
    other = tmp_path / "other.pt"
    other.write_bytes(b"PK\x03\x04")
    with pytest.raises(PotentialError, match="not a potential of this package"):
        model_calculator(str(other))


@pytest.mark.integration
def test_a_model_opens_by_its_id_on_a_site(tuned, site, database, monkeypatch):
    import hashlib

    from otf_workflows import Store
    from otf_workflows.schemas import ModelDocument

    monkeypatch.setattr("otf_workflows.settings.load_site", lambda: site)
    blob = tuned.dump()
    store = Store(database)
    store.ensure_indexes()
    digest = hashlib.sha256(blob).hexdigest()
    store.add_model(
        ModelDocument(model_id="licl-c1", potential="chgnet-0.3.0", sha256=digest), weights=blob
    )
    assert open_model("licl-c1").dump() == blob
    with pytest.raises(NotFoundError, match="did you mean 'licl-c1'"):
        open_model("licl-c2")


def test_the_equation_of_state_flow_of_atomate2_runs_with_our_model(
    tuned, model_file, tmp_path, monkeypatch
):
    from atomate2.forcefields.flows.eos import ForceFieldEosMaker
    from jobflow import JobStore, run_locally
    from maggma.stores import MemoryStore
    from pymatgen.io.ase import AseAtomsAdaptor

    monkeypatch.chdir(tmp_path)
    licl = AseAtomsAdaptor.get_structure(bulk("LiCl", "rocksalt", a=5.13))
    maker = ForceFieldEosMaker.from_force_field_name(
        FORCE_FIELD, calculator_kwargs={"model": str(model_file)}, number_of_frames=6
    )
    store = JobStore(MemoryStore(), additional_stores={"data": MemoryStore()})
    outputs = run_locally(
        maker.make(licl), store=store, ensure_success=True, create_folders=True, log=False
    )
    found = [item.output for runs in outputs.values() for item in runs.values()]
    (fits,) = (item for item in found if isinstance(item, dict) and "relax" in item)
    curve = fits["relax"]
    # the strained cells keep their shape, so that each is one lattice constant
    atoms = bulk("LiCl", "rocksalt", a=5.13)
    ours = []
    for volume in curve["volume"]:
        atoms.set_cell(atoms.cell * (volume / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
        ours.append(tuned.predict(atoms).energy_eV)
    np.testing.assert_allclose(curve["energy"], ours, atol=2e-3)
    fit = EquationOfState(curve["volume"], ours, eos="birchmurnaghan").fit()
    modulus_GPa = fit[2] / units.GPa
    assert curve["EOS"]["birch_murnaghan"]["b0 GPa"] == pytest.approx(modulus_GPa, rel=0.03)
    assert 20 < modulus_GPa < 60
