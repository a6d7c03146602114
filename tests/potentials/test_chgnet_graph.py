import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from pymatgen.io.ase import AseAtomsAdaptor

from otf_workflows.errors import InputError
from otf_workflows.potentials.base import PotentialError
from otf_workflows.potentials.chgnet_graph import build_graph, forces_on_atoms, join


def triclinic(atoms, seed=0):
    atoms = atoms.copy()
    shear = np.array([[0.03, 0.05, 0.0], [0.0, -0.02, 0.04], [0.02, 0.0, 0.01]])
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + shear), scale_atoms=True)
    atoms.rattle(0.08, seed=seed)
    return atoms


def build(atoms):
    return build_graph(atoms, cutoff_A=6, bond_cutoff_A=3)


STRUCTURES = {
    "LiCl": triclinic(bulk("LiCl", "rocksalt", a=5.13, cubic=True)),
    "Si primitive": triclinic(bulk("Si")),
    "Cu, one atom bonded to its own images": bulk("Cu"),
    "Ne, no angles": bulk("Ne", a=4.4),
}


@pytest.mark.parametrize("atoms", STRUCTURES.values(), ids=STRUCTURES)
def test_bonds_and_angles_are_those_of_chgnet(atoms):
    from chgnet.graph import CrystalGraphConverter

    converter = CrystalGraphConverter(atom_graph_cutoff=6, bond_graph_cutoff=3)
    theirs = converter(AseAtomsAdaptor.get_structure(atoms))
    ours = build(atoms)
    directed = theirs.atom_graph.numpy()
    positions = atoms.get_positions()
    vectors = (
        positions[directed[:, 1]]
        + theirs.neighbor_image.numpy() @ atoms.cell.array
        - positions[directed[:, 0]]
    )

    def rows(first, second, vectors):
        return sorted(zip(first, second, map(tuple, vectors.round(5) + 0.0), strict=True))

    both = rows(
        np.concatenate([ours.first, ours.second]),
        np.concatenate([ours.second, ours.first]),
        np.concatenate([ours.vectors_A, -ours.vectors_A]),
    )
    assert both == rows(directed[:, 0], directed[:, 1], vectors)

    angles = theirs.bond_graph.numpy().reshape(-1, 5)
    assert 2 * len(ours.apex) == len(angles)
    cosine = np.sum(vectors[angles[:, 2]] * vectors[angles[:, 4]], axis=1)
    pair = ours.sign * np.sum(ours.vectors_A[ours.bond_1] * ours.vectors_A[ours.bond_2], axis=1)
    np.testing.assert_allclose(np.sort(np.repeat(pair, 2)), np.sort(cosine), atol=1e-5)
    assert sorted(np.repeat(ours.apex, 2)) == sorted(angles[:, 0])


def test_the_graph_does_not_depend_on_how_positions_are_wrapped():
    atoms = triclinic(bulk("Si", cubic=True))
    moved = atoms.copy()
    moved.positions[3] += moved.cell[0] - 2 * moved.cell[2]
    ours, theirs = build(atoms), build(moved)
    assert (ours.first == theirs.first).all()
    assert len(ours.apex) == len(theirs.apex)
    np.testing.assert_allclose(
        np.sort(np.linalg.norm(ours.vectors_A, axis=1)),
        np.sort(np.linalg.norm(theirs.vectors_A, axis=1)),
    )


def test_joined_graphs_keep_each_structure_to_itself():
    parts = [build(atoms) for atoms in STRUCTURES.values()]
    whole = join(parts)
    assert whole.n_structures == len(parts)
    assert (np.diff(whole.owners[whole.first]) < 0).sum() == 1  # short ones, then long ones
    assert (whole.owners[whole.first] == whole.owners[whole.second]).all()
    assert (whole.owners[whole.apex] == whole.owners[whole.first[whole.bond_1]]).all()
    lengths = np.linalg.norm(whole.vectors_A, axis=1)
    assert lengths[: whole.n_short].max() < 3 <= lengths[whole.n_short :].min()
    slope = np.random.default_rng(0).normal(size=whole.vectors_A.shape)
    assert [len(f) for f in whole.split(forces_on_atoms(whole, slope))] == [
        len(atoms) for atoms in STRUCTURES.values()
    ]


def test_an_isolated_atom_is_an_error_that_names_it():
    atoms = bulk("Cu", cubic=True) * (4, 1, 1)
    atoms.set_cell(np.diag([40.0, 20.0, 20.0]))
    atoms.positions[5] = [30.0, 10.0, 10.0]
    with pytest.raises(PotentialError, match="1 of 16 atoms") as caught:
        build(atoms)
    assert caught.value.where == "atom 5"


def test_positions_that_are_not_finite_are_an_error():
    atoms = bulk("Cu")
    atoms.positions[0, 0] = np.nan
    with pytest.raises(PotentialError, match="exploded"):
        build(atoms)


def test_a_molecule_without_a_cell_is_refused():
    with pytest.raises(InputError, match="has no cell"):
        build(Atoms("N2", positions=[[0, 0, 0], [0, 0, 1.1]]))
