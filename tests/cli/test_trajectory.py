"""A walker is one trajectory over all cycles, and other programs can read it."""

import numpy as np
import pytest
from ase.io import read

from otf_workflows.errors import InputError, NotFoundError
from otf_workflows.trajectories import job_blob, production_frames, walker_frames

pytestmark = pytest.mark.integration


def test_a_walker_is_written_through_all_cycles_with_its_model_history(otf, finished, tmp_path):
    path = tmp_path / "walker.extxyz"
    done = otf("trajectory", finished, "--walker", 1, "-o", path)
    assert (done.code, done.out.strip()) == (0, str(path))
    frames = read(path, index=":")
    cycles = [atoms.info["cycle"] for atoms in frames]
    assert cycles == sorted(cycles)
    assert len(set(cycles)) > 1
    models = {atoms.info["cycle"]: atoms.info["model"] for atoms in frames}
    assert len(set(models.values())) > 1
    assert frames[-1].info["time_ps"] > frames[0].info["time_ps"]
    only = otf("trajectory", finished, "--walker", 1, "--cycle", 0, "-o", tmp_path / "first.traj")
    assert only.code == 0
    assert len(read(tmp_path / "first.traj", index=":")) == cycles.count(0)


def test_the_production_run_loads_in_pymatgen(otf, finished, store, tmp_path):
    from monty.serialization import loadfn

    path = tmp_path / "production.json"
    assert otf("trajectory", finished, "--every", 4, "-o", path).code == 0
    loaded, frames = loadfn(path), production_frames(store, finished)[::4]
    assert len(loaded) == len(frames)
    assert np.allclose(loaded[3].lattice.matrix, frames[3].cell.array)
    # Its structures are wrapped, its coordinates are not.
    assert np.allclose(loaded.coords[3], frames[3].get_scaled_positions(wrap=False))
    assert loaded.frame_properties[3]["step"] == frames[3].info["step"]


def test_the_audit_run_and_nothing_else_goes_with_production(otf, finished, store, tmp_path):
    audit = production_frames(store, finished, part="audit")
    assert len(audit[0]) < len(production_frames(store, finished)[0])
    assert otf("trajectory", finished, "--audit", "-o", tmp_path / "a.extxyz").code == 0
    assert otf("trajectory", finished, "--cycle", 1).code == 2
    assert otf("trajectory", finished, "--audit", "--walker", 0).code == 2


def test_files_are_not_overwritten_and_unknown_endings_are_told(otf, finished, tmp_path):
    path = tmp_path / "walker.extxyz"
    path.write_text("mine")
    assert "--force" in otf("trajectory", finished, "--walker", 0, "-o", path).err
    assert path.read_text() == "mine"
    odd = otf("trajectory", finished, "--walker", 0, "-o", tmp_path / "walker.nonsense")
    assert odd.code == 2
    assert ".extxyz" in odd.err


def test_what_is_not_there_is_said(otf, finished, store, tmp_path):
    assert otf("trajectory", finished, "--walker", 99, "-o", tmp_path / "x.extxyz").code == 3
    assert otf("trajectory", "nobody", "-o", tmp_path / "x.extxyz").code == 3
    with pytest.raises(NotFoundError):
        walker_frames(store, finished, 0, cycles=[77])


def test_an_output_larger_than_one_wants_to_unpack_is_refused(store, finished):
    (run,) = store.properties(finished)
    with pytest.raises(InputError, match="too large"):
        job_blob(store, run.trajectory_uuid, max_bytes=100)
