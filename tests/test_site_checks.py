"""What `otf doctor` says of files, programs and GPUs."""

import subprocess

import pytest

from otf_workflows import site_checks
from otf_workflows.settings import Site, load_site


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An own home, and a working folder in it."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("FW_CONFIG_FILE", raising=False)
    monkeypatch.delenv("MONGOMOCK_SERVERSTORE_FILE", raising=False)
    monkeypatch.delenv("JOBFLOW_CONFIG_FILE", raising=False)
    monkeypatch.chdir(work)
    return tmp_path


def test_the_site_file_in_force_and_those_passed_over_are_named(home, monkeypatch):
    named = home / "named.yaml"
    here = home / "work" / "site.yaml"
    for file in (named, here):
        file.write_text("{}\n")
    assert site_checks.configuration(load_site()).detail == f"{here} (this folder)"
    monkeypatch.setenv("OTF_SITE_FILE", str(named))
    check = site_checks.configuration(load_site())
    assert check.detail == f"{named} ($OTF_SITE_FILE); passed over: {here} (this folder)"
    assert "unset OTF_SITE_FILE" in check.hint
    other = home / "other.yaml"
    other.write_text("{}\n")
    check = site_checks.configuration(load_site(other))
    assert check.detail.startswith(f"{other} (--site); passed over")
    assert check.hint is None  # nobody is surprised who named it


def test_without_files_fireworks_and_jobflow_have_their_defaults(home):
    fireworks, jobflow = site_checks.foreign_files()
    assert fireworks.detail == "its defaults"
    assert fireworks.hint is None
    assert jobflow.ok


def test_the_fireworks_file_that_workers_read_is_told_from_those_they_do_not(home, monkeypatch):
    here = home / "work" / "FW_config.yaml"
    here.write_text("PING_TIME_SECS: 60\n")
    check = site_checks._fireworks_file()
    assert check.ok
    assert check.detail.startswith("its defaults; in this folder")
    assert "sets PING_TIME_SECS" in check.detail
    assert "move it to" in check.hint
    here.unlink()
    named = home / "named.yaml"
    named.write_text("SORT_FWS: FIFO\n")
    monkeypatch.setenv("FW_CONFIG_FILE", str(named))
    check = site_checks._fireworks_file()
    assert check.detail == f"{named} in every worker (sets SORT_FWS)"
    assert check.hint is None
    own = home / ".fireworks" / "FW_config.yaml"
    own.parent.mkdir()
    own.write_text("SORT_FWS: FILO\n")
    (own.parent / "my_launchpad.yaml").write_text("host: elsewhere\n")
    check = site_checks._fireworks_file()
    assert check.detail.startswith(f"{own} in every worker (sets SORT_FWS); passed over: {named}")
    assert "my_launchpad.yaml" in check.detail


def test_a_fireworks_file_that_stops_every_worker_is_a_failure(home):
    (home / "work" / "FW_config.yaml").write_text("PING_TIME: 60\n")
    check = site_checks._fireworks_file()
    assert not check.ok
    assert "unknown parameter: PING_TIME" in check.detail
    assert "move it away" in check.hint


def test_a_mock_in_the_place_of_mongodb_is_a_failure(home, monkeypatch):
    monkeypatch.setenv("MONGOMOCK_SERVERSTORE_FILE", str(home / "store.json"))
    check = site_checks._fireworks_file()
    assert not check.ok
    assert check.hint == "unset MONGOMOCK_SERVERSTORE_FILE"


@pytest.mark.parametrize("variable", ["FW_CONFIG_FILE", "JOBFLOW_CONFIG_FILE"])
def test_a_variable_that_names_nothing_is_a_failure(home, monkeypatch, variable):
    monkeypatch.setenv(variable, str(home / "nowhere.yaml"))
    failed = [check for check in site_checks.foreign_files() if not check.ok]
    assert [check.hint for check in failed] == [f"unset {variable}"]


def test_programs_of_the_site_are_found_with_their_launchers(tmp_path, monkeypatch):
    for name in ("srun", "pw.x"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    codes = {
        "espresso": {"command": "srun -n 4 pw.x"},
        "cp2k": {"command": "srun cp2k.psmp"},
        "vasp": {"command": "vasp_std --flag"},
        "gpaw": {"command": ""},
    }
    found, no_program, no_launcher = site_checks.programs(Site(codes=codes))
    assert found.ok
    assert str(tmp_path / "pw.x") in found.detail
    assert no_program.detail == "cp2k.psmp not found"
    assert no_launcher.detail == "vasp_std not found"
    assert "module load" in no_launcher.hint


def test_a_program_whose_libraries_are_missing_would_not_start(monkeypatch):
    text = "\tlinux-vdso.so.1 (0x0)\n\tlibmkl.so => not found\n\tlibc.so.6 => /lib/libc.so.6\n"
    monkeypatch.setattr(site_checks.subprocess, "run", answers(text))
    (check,) = site_checks.programs(Site(codes={"a": {"command": "sh"}}))
    assert not check.ok
    assert check.detail == "sh does not start: libmkl.so not found"


def answers(stdout, *, code=0):
    return lambda *_, **__: subprocess.CompletedProcess([], code, stdout=stdout, stderr="")


def test_a_gpu_that_pytorch_cannot_use_is_told(monkeypatch):
    monkeypatch.setattr(site_checks, "_listed_gpus", lambda: ["NVIDIA H100"])
    monkeypatch.setattr(site_checks.subprocess, "run", answers("0 2.9.0+cpu\n"))
    check = site_checks.gpu(wanted=False)
    assert not check.ok
    assert "2.9.0+cpu sees no GPU (NVIDIA H100)" in check.detail
    assert "pip install torch" in check.hint
    monkeypatch.setattr(site_checks.subprocess, "run", answers("1 2.9.0+cu128\n"))
    assert site_checks.gpu(wanted=True).detail == "1 for PyTorch 2.9.0+cu128: NVIDIA H100"


def test_no_gpu_is_a_failure_only_where_one_was_asked_for(monkeypatch):
    monkeypatch.setattr(site_checks, "_listed_gpus", list)
    assert site_checks.gpu(wanted=False).ok
    monkeypatch.setattr(site_checks.subprocess, "run", answers("0 2.9.0\n"))
    check = site_checks.gpu(wanted=True)
    assert not check.ok
    assert "site file" in check.hint
