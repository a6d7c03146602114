import numpy as np
import pytest
from ase.build import bulk

from otf_workflows.errors import InputError
from otf_workflows.potentials.base import Potential
from otf_workflows.testing.potential import N_FEATURES, ToyPotential, load


@pytest.fixture
def copper():
    atoms = bulk("Cu", a=3.62, cubic=True)
    atoms.rattle(0.05, seed=1)
    return atoms


def test_toy_potential_satisfies_the_protocol():
    assert isinstance(ToyPotential(), Potential)


def test_forces_are_the_derivative_of_the_energy(copper):
    toy = ToyPotential()
    h = 1e-4
    plus, minus = copper.copy(), copper.copy()
    plus.positions[0, 0] += h
    minus.positions[0, 0] -= h
    slope = (toy.predict(plus).energy_eV - toy.predict(minus).energy_eV) / (2 * h)
    assert toy.predict(copper).forces_eV_A[0, 0] == pytest.approx(-slope, abs=1e-5)


def test_uncertainty_vanishes_at_rest_and_grows_with_displacement(copper):
    toy = ToyPotential()
    rest = toy.predict(bulk("Cu", a=3.62, cubic=True), uncertainty=True)
    moved = toy.predict(copper, uncertainty=True)
    assert rest.sigma_eV_A.max() < 1e-6
    assert moved.sigma_eV_A.min() > 1e-3
    assert toy.predict(copper).sigma_eV_A is None


def test_features_have_one_row_per_structure_and_see_displacements(copper):
    toy = ToyPotential()
    rows = toy.features([bulk("Cu", a=3.62, cubic=True), copper])
    assert rows.shape == (2, N_FEATURES)
    assert not np.allclose(rows[0], rows[1])


def test_dump_and_load_give_the_same_potential_back():
    toy = ToyPotential(epsilon_eV=0.3, sigma_per_force=0.2)
    assert load(blob=toy.dump()) == toy


def test_a_corrupt_blob_is_refused():
    with pytest.raises(InputError, match="not a dumped toy potential"):
        load(blob=b"\x00\x01")


def test_fitted_uncertainty_has_the_size_of_the_errors(copper):
    truth = ToyPotential(epsilon_eV=0.6)
    toy = ToyPotential(epsilon_eV=0.4)
    fitted = toy.fit_uncertainty([copper], [truth.predict(copper).forces_eV_A])
    assert fitted.sigma_per_force == pytest.approx(0.5, rel=1e-6)
