"""Every way in which pw.x was seen to fail gets its cause, and the ladder never touches physics."""

from pathlib import Path

import pytest

from otf_workflows.errors import InputError
from otf_workflows.labelers import leash
from otf_workflows.labelers.espresso_failures import LADDER, climb, diagnose, telling_lines
from otf_workflows.labelers.espresso_recipe import PwNumerics, check_numerics
from otf_workflows.types import FailureCause as Cause

RECORDED = Path(__file__).parent / "recorded"


def recorded(name):
    return (RECORDED / name).read_text()


def test_a_finished_run_has_no_cause():
    assert diagnose(recorded("si2.out"), "", status=0).cause is None


@pytest.mark.parametrize(
    ("name", "status", "cause", "word"),
    [
        ("si2_scf.out", 2, Cause.SCF, "did not converge"),
        ("si2_walltime.out", 2, Cause.WALLTIME, "time limit"),
        ("si2_readpp.out", 1, Cause.INPUT, "Si.UPF not found"),
        ("si2_overlap.out", 1, Cause.GEOMETRY, "overlap"),
        ("al1_odd.out", 1, Cause.INPUT, "smearing is needed"),
    ],
)
def test_recorded_failures(name, status, cause, word):
    found = diagnose(recorded(name), "", status=status)
    assert found.cause == cause
    assert word in found.message
    assert found.hint


@pytest.mark.parametrize("name", ["si2_scf.out", "si2_walltime.out"])
def test_job_done_is_not_a_mark_of_success(name):
    assert "JOB DONE." in recorded(name)
    assert diagnose(recorded(name), "", status=0).cause is not None


@pytest.mark.parametrize(
    ("errors", "status", "cause"),
    [
        ("", 128 + 9, Cause.KILLED),
        ("", 128 + 15, Cause.KILLED),
        ("", 128 + 11, Cause.UNKNOWN),
        ("", leash.TIME_UP, Cause.WALLTIME),
        ("pw.x: No such file or directory", leash.NOT_STARTED, Cause.NODE),
        ("forrtl: insufficient virtual memory", 41, Cause.MEMORY),
        ("Operating system error: Cannot allocate memory", 1, Cause.MEMORY),
        ("slurmstepd: error: Detected 1 oom-kill event(s)", 137, Cause.MEMORY),
        ("write failed: No space left on device", 2, Cause.NODE),
        ("pw.x: error while loading shared libraries: libmpi.so.40", 127, Cause.NODE),
        ("There are not enough slots available in the system", 1, Cause.NODE),
        ("     Error in routine cdiaghg (159):\n     S matrix not positive definite", 1, Cause.SCF),
        ("     Error in routine davcio (10):\n     error while writing", 1, Cause.NODE),
        ("     Error in routine nobody (3):\n     never seen", 1, Cause.UNKNOWN),
        ("", 0, Cause.PARSE),
        ("", 3, Cause.UNKNOWN),
    ],
)
def test_other_failures(errors, status, cause):
    assert diagnose("some output without a result", errors, status=status).cause == cause


def test_mpi_noise_does_not_hide_what_pw_x_said():
    noise = "MPI_ABORT was invoked on rank 0\nORTE was unable to reliably clean up"
    assert diagnose(recorded("si2_readpp.out"), noise, status=1).cause == Cause.INPUT


@pytest.mark.parametrize("cause", list(Cause))
def test_every_rung_changes_permitted_numerics_only_and_the_ladder_ends(cause):
    numerics, rungs = {}, 0
    while (higher := climb(cause, numerics, times=rungs, has_density=True)) is not None:
        assert check_numerics(higher) == higher
        numerics, rungs = higher, rungs + 1
    assert rungs == len(LADDER.get(cause, ()))


@pytest.mark.parametrize(
    "physics",
    [
        "ecutwfc", "ecutrho", "degauss", "smearing", "occupations", "nspin", "input_dft",
        "conv_thr", "tot_charge", "nosym", "kpoints", "cutoff_Ry", "scf_threshold_Ry", "nbnd",
        "Hubbard_U", "starting_magnetization", "vdw_corr", "scf_must_converge", "pseudo_dir",
    ],
)  # fmt: skip
def test_physics_is_not_numerics(physics):
    assert physics not in PwNumerics.model_fields
    with pytest.raises(InputError):
        check_numerics({physics: 1})


@pytest.mark.parametrize("bad", [{"mixing_beta": 0.0}, {"mixing_beta": 2}, {"electron_maxstep": 0}])
def test_impossible_numerics_are_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        check_numerics(bad)


def test_a_typo_in_numerics_gets_a_suggestion():
    with pytest.raises(InputError, match="mixing_beta"):
        check_numerics({"mixing_bta": 0.3})


def test_only_what_was_set_is_written():
    assert check_numerics({"mixing_beta": 0.25}) == {"mixing_beta": 0.25}


def test_no_restart_from_a_density_that_is_not_there():
    assert "startingpot" not in climb(Cause.SCF, {}, times=0, has_density=False)
    assert climb(Cause.SCF, {}, times=0, has_density=True)["startingpot"] == "file"


def test_a_persons_choice_is_never_made_less_careful():
    mine = {"mixing_beta": 0.05, "electron_maxstep": 900}
    higher = climb(Cause.SCF, mine, times=0, has_density=False)
    assert higher["mixing_beta"] == 0.05
    assert higher["electron_maxstep"] == 900


def test_timings_do_not_push_the_reason_out_of_the_last_lines():
    lines = telling_lines(recorded("si2_scf.out")).splitlines()
    assert any("convergence NOT achieved" in line for line in lines[-30:])
