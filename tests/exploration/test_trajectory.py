"""Encoded trajectories read back what was written."""

import base64
import io

import numpy as np
import pytest
from ase.build import bulk

from otf_workflows.exploration.trajectory import (
    GRID_A,
    Recorder,
    decode_trajectory,
    encode_trajectory,
    thin_trajectory,
)


def frames(n, rng):
    made = []
    for step in range(n):
        atoms = bulk("LiCl", "rocksalt", a=5.13, cubic=True).repeat(2)
        atoms.positions += rng.normal(loc=20, scale=0.1, size=(64, 3))
        atoms.set_cell(atoms.cell.array * (1 + 0.01 * step))
        atoms.info["step"] = 10 * step
        made.append(atoms)
    return made


def test_geometry_and_steps_survive_to_a_hundred_thousandth_of_an_angstrom():
    written = frames(5, np.random.default_rng(0))
    read = decode_trajectory(encode_trajectory(written))
    assert [atoms.info["step"] for atoms in read] == [0, 10, 20, 30, 40]
    for before, after in zip(written, read, strict=True):
        assert (before.numbers == after.numbers).all()
        assert after.pbc.all()
        # Unwrapped positions stay unwrapped.
        assert np.abs(before.positions - after.positions).max() < 0.51 * GRID_A
        assert np.allclose(before.cell.array, after.cell.array, rtol=1e-7)


def test_text_is_as_small_as_promised():
    # As in MD at 20 fs between frames: a Li atom at 600 K moves by 0.1 Å along each axis.
    rng = np.random.default_rng(0)
    atoms = bulk("LiCl", "rocksalt", a=5.13, cubic=True).repeat(2)
    written = []
    for _ in range(50):
        atoms.positions += rng.normal(scale=0.1, size=(64, 3))
        written.append(atoms.copy())
    assert len(encode_trajectory(written)) / (50 * 64) < 9


def test_trajectories_of_the_first_format_are_still_read():
    written = frames(4, np.random.default_rng(0))
    positions = np.array([atoms.positions for atoms in written], dtype="<f4")
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        numbers=written[0].numbers,
        steps=np.arange(4),
        cells=np.array([atoms.cell.array for atoms in written]),
        positions=np.ascontiguousarray(positions.reshape(-1, 1).view(np.uint8).T),
    )
    read = decode_trajectory(base64.b64encode(buffer.getvalue()).decode())
    assert np.allclose(read[3].positions, written[3].positions, atol=1e-5)


def test_a_single_frame_and_large_jumps_survive():
    (one,) = frames(1, np.random.default_rng(0))
    far = one.copy()
    far.positions += [-5000.0, 0.0, 5000.0]
    assert len(decode_trajectory(encode_trajectory([one]))) == 1
    read = decode_trajectory(encode_trajectory([one, far, one]))
    assert np.allclose(read[1].positions, far.positions, atol=GRID_A)
    assert np.allclose(read[2].positions, one.positions, atol=GRID_A)


def test_no_frames_are_no_text():
    assert encode_trajectory([]) == ""
    assert decode_trajectory("") == []
    assert thin_trajectory("", n_most=5) == ""


def test_a_thinned_trajectory_keeps_the_first_frame_and_the_last():
    text = encode_trajectory(frames(50, np.random.default_rng(0)))
    kept = decode_trajectory(thin_trajectory(text, n_most=7))
    assert [atoms.info["step"] for atoms in kept] == [0, 80, 160, 240, 330, 410, 490]
    assert np.array_equal(kept[-1].positions, decode_trajectory(text)[-1].positions)
    assert len(decode_trajectory(thin_trajectory(text, n_most=200))) == 50


def test_records_written_after_the_last_save_are_cut_off(tmp_path):
    path = tmp_path / "records.bin"
    atoms = bulk("Cu", cubic=True)
    values = {"temperature_K": 1.0, "energy_eV": 2.0, "sigma_eV_A": 0.1 + 0.2, "atoms": atoms}
    recorder = Recorder(4, path=path)
    for step in range(5):
        recorder.append(step=step, **values)
    assert recorder.save() == 5
    again = Recorder(4, path=path, n_keep=3)
    again.append(step=7, **values)
    again.save()
    final = Recorder(4, path=path, n_keep=4).records()
    assert final["step"].tolist() == [0, 1, 2, 7]
    assert final["sigma_eV_A"][3] == 0.1 + 0.2
    assert final["positions_A"][3] == pytest.approx(atoms.positions)
