"""Structure files are what ASE reads back, and what the viewer shows lies inside the cell."""

import io

import numpy as np
import pytest
from ase.io import read

from otf_workflows.dashboard.structure_files import StructureFormat, structure_file
from otf_workflows.schemas import Frame, LabelResult


@pytest.fixture
def frame():
    return Frame(
        numbers=[3, 17, 3, 8],
        cell_A=[[4.0, 0.1, 0.0], [1.5, 5.0, 0.0], [0.2, -0.4, 6.0]],
        positions_A=[[0.0, 0.0, -1e-12], [9.0, 9.0, 9.0], [-1.0, 0.5, 0.2], [1, 2, 3]],
    )


def lines_and_atoms(frame, kind, ase_format, **options):
    text = structure_file(frame, kind, **options)
    return text, read(io.StringIO(text), format=ase_format)


@pytest.mark.parametrize(
    ("kind", "ase_format"),
    [(StructureFormat.EXTXYZ, "extxyz"), (StructureFormat.POSCAR, "vasp"),
     (StructureFormat.CIF, "cif")],
)  # fmt: skip
def test_a_file_holds_the_same_crystal(frame, kind, ase_format):
    _, atoms = lines_and_atoms(frame, kind, ase_format, comment='a "b"\nc')
    assert atoms.pbc.all()
    assert list(atoms.numbers) == frame.numbers
    wanted = frame.to_atoms()
    assert np.allclose(atoms.cell.cellpar(), wanted.cell.cellpar())
    assert np.allclose(
        atoms.get_all_distances(mic=True), wanted.get_all_distances(mic=True), atol=1e-6
    )


def test_energy_forces_and_stress_go_along_in_extended_xyz(frame):
    result = LabelResult(
        key="k", frame=frame, energy_eV=-12.5, forces_eV_A=np.arange(12.0).reshape(4, 3).tolist(),
        stress_eV_A3=np.diag([0.1, 0.2, 0.3]).tolist(), fingerprint="f",
    )  # fmt: skip
    _, atoms = lines_and_atoms(frame, StructureFormat.EXTXYZ, "extxyz", result=result)
    assert atoms.get_potential_energy() == -12.5
    assert np.allclose(atoms.get_forces(), result.forces_eV_A)
    assert np.allclose(atoms.get_stress(voigt=False), result.stress_eV_A3)


def test_the_viewer_gets_positions_only_and_inside_the_cell(frame):
    text = structure_file(frame, StructureFormat.VIEWER)
    assert all(len(line.split()) == 4 for line in text.splitlines()[2:])
    atoms = read(io.StringIO(text), format="extxyz")
    scaled = np.linalg.solve(np.array(frame.cell_A).T, atoms.positions.T).T
    assert ((scaled > -1e-6) & (scaled < 1)).all()
