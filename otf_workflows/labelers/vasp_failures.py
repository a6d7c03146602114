"""How VASP fails, and which of custodian's corrections may be tried.

custodian's handlers know some fifty errors of VASP and what helps. Some of their corrections are
numerics (ALGO, mixing, KPAR), some are physics (ISMEAR, SIGMA, ENCUT, k-points, a moved atom).
Here they are asked for a correction after every failed try, in the folder of the try, and only the
numerical settings of it are taken over: the next try is written from the recipe again, and a
correction that needs physics is refused, in words.

Many of those errors are printed by runs that end well, so they count only if a run did not.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from otf_workflows.errors import InputError
from otf_workflows.labelers import leash
from otf_workflows.labelers.outcome import Diagnosis
from otf_workflows.labelers.vasp_recipe import check_numerics
from otf_workflows.types import FailureCause

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from custodian.custodian import ErrorHandler

STDOUT = "vasp.out"
STDERR = "std_err.txt"
"""Names that custodian's handlers expect."""

MARKS: tuple[tuple[str, FailureCause, str], ...] = (
    (r"No space left on device|Disk quota exceeded", FailureCause.NODE, "the disk of VASP is full"),
    (
        r"error while loading shared libraries|GLIBC_\S+ not found|Illegal instruction",
        FailureCause.NODE,
        "VASP cannot run on this machine",
    ),
    (
        r"ORTE|PMIX ERROR|PMI2?_Init failed|not enough slots|MPI_Init\w* failed",
        FailureCause.NODE,
        "MPI could not start VASP",
    ),
    (
        (
            r"(?i:insufficient virtual memory|out of memory|oom[-_ ]kill|cannot allocate memory"
            r"|error allocating|memory limit)"
        ),
        FailureCause.MEMORY,
        "VASP ran out of memory",
    ),
    (r"LABORT|LSTOP|hard stop encountered", FailureCause.KILLED, "somebody asked VASP to stop"),
    (
        (
            r"Error reading item|No INCAR found|Error code was IERR"
            r"|supplied exchange-correlation table|number of potentials on File POTCAR incompatible"
        ),
        FailureCause.INPUT,
        "VASP does not accept its input",
    ),
    (
        r"triple product of the basis vectors|POSMAP|distance between some ions is very small",
        FailureCause.GEOMETRY,
        "VASP does not accept the geometry",
    ),
    (
        (
            r"EDDDAV|EDDRMM|EDDIAG|BRMIX|ZPOTRF|Sub-Space-Matrix|ZHEEV|PSSYEVX|PDSYEVX|EDWAV"
            r"|TOO FEW BANDS|DENTET|BZINTS|Tetrahedron method fails"
        ),
        FailureCause.SCF,
        "the self-consistent cycle broke down",
    ),
)
"""Pattern in the output, cause, sentence; the first that matches counts."""

HINTS = {
    FailureCause.SCF: "rerun with e.g. --set ALGO=All, or --set AMIX=0.1 --set BMIX=0.0001",
    FailureCause.WALLTIME: "rerun it with a longer walltime or more cores",
    FailureCause.MEMORY: "rerun it with more memory, or with --set KPAR=1",
    FailureCause.NODE: "look at the machine (disk, libraries, MPI), then rerun",
    FailureCause.KILLED: "often the node's memory killer or an administrator; rerun it",
    FailureCause.INPUT: "correct the recipe or the site file; a rerun alone will not help",
    FailureCause.GEOMETRY: "atoms sit on each other; exclude the frame",
}

CORRECTED: tuple[FailureCause, ...] = (
    FailureCause.SCF,
    FailureCause.MEMORY,
    FailureCause.KILLED,
    FailureCause.UNKNOWN,
)
"""Causes that another try may mend."""

MOST_CORRECTIONS = 4
"""Tries after the first that one cause may take."""


@dataclass(frozen=True)
class Correction:
    """What custodian would do about a failed try.

    Attributes
    ----------
    handler
        Class that would do it.
    numerics
        INCAR settings that it changes and that may be changed.
    refused
        Changes of the physics, one sentence each; with any of them nothing is taken over.
    """

    handler: str
    numerics: dict[str, Any] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


def handlers() -> list[ErrorHandler]:
    """Return custodian's handlers for static calculations, in the order they are asked.

    Those whose only act is to change ISMEAR, SIGMA or KSPACING are left out.
    """
    from custodian.vasp import handlers as known

    return [
        known.VaspErrorHandler(output_filename=STDOUT),
        known.StdErrHandler(output_filename=STDERR),
        known.UnconvergedErrorHandler(),
        known.PositiveEnergyErrorHandler(),
    ]


def correction(directory: Path, known: Sequence[ErrorHandler]) -> Correction | None:
    """Return the correction that the first handler with an answer would make, or None.

    The handler works on the files in ``directory``, as it always does, and keeps the failed try in
    ``error.*.tar.gz``; the next try overwrites all inputs.
    """
    before = _inputs(directory)
    for handler in known:
        name = type(handler).__name__
        try:
            if not handler.check(str(directory)):
                continue
            actions = handler.correct(str(directory))["actions"]
        except Exception as error:  # noqa: BLE001 - handlers parse what may be half a file
            return Correction(name, refused=[f"{name} failed: {type(error).__name__}: {error}"])
        if actions:
            return _judge(name, before, _inputs(directory))
    return None


def diagnose(  # noqa: PLR0911 - one return per way to end
    text: str, errors: str, *, status: int, converged: bool | None
) -> Diagnosis:
    """Say how a run ended.

    Parameters
    ----------
    text
        Standard output.
    errors
        Standard error.
    status
        Exit status as given by the leash.
    converged
        Whether the SCF converged; None if the output does not tell.

    Returns
    -------
    Diagnosis
        No cause if the run ended well.
    """
    if status == leash.TIME_UP:
        return _failed(FailureCause.WALLTIME, "VASP was ended at the time limit of this label")
    if status in {leash.NOT_STARTED, 126}:
        return _failed(FailureCause.NODE, f"VASP could not be started: {_first(errors)}")
    if converged and status == 0:
        return Diagnosis(None)
    both = f"{text}\n{errors}"
    for pattern, cause, message in MARKS:
        if found := re.search(rf".*(?:{pattern}).*", both):
            line = " ".join(found.group(0).split()).strip("| *")
            return _failed(cause, f"{message}: {line[:160]}")
    if converged is False:
        return _failed(FailureCause.SCF, "the self-consistent cycle did not converge")
    if status - 128 in {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}:
        name = signal.Signals(status - 128).name
        return _failed(FailureCause.KILLED, f"VASP was ended by {name}")
    if status:
        return _failed(FailureCause.UNKNOWN, f"VASP ended with exit status {status}")
    return _failed(FailureCause.PARSE, "the output of VASP is not complete")


def converged_by_oszicar(text: str, *, most_steps: int) -> bool | None:
    """Return False if the last SCF in OSZICAR used up its steps, else None: it cannot tell."""
    last = re.split(r"^\s*N\s+E\s+dE.*$", text, flags=re.MULTILINE)[-1]
    steps = re.findall(r"^\s*(?:DAV|RMM|CGA|DMP|SDA|EIG):\s*(\d+)", last, flags=re.MULTILINE)
    return False if steps and int(steps[-1]) >= most_steps else None


def climb(
    cause: FailureCause,
    numerics: dict[str, Any],
    proposed: Correction | None,
    *,
    times: int,
) -> dict[str, Any] | None:
    """Return the numerical settings of the next try, or None if there is nothing left to try."""
    if cause not in CORRECTED or times >= MOST_CORRECTIONS:
        return None
    if proposed is None:
        # Nothing that custodian knows: once more as it was, if chance may have been against it.
        repeatable = cause in {FailureCause.KILLED, FailureCause.UNKNOWN}
        return dict(numerics) if repeatable and times == 0 else None
    higher = {**numerics, **proposed.numerics}
    return None if proposed.refused or higher == numerics else higher


def _judge(handler: str, before: dict[str, Any], after: dict[str, Any]) -> Correction:
    refused = [
        f"{handler} would change {name}"
        for name in ("KPOINTS", "POSCAR")
        if before[name] != after[name]
    ]
    old, new = before["INCAR"], after["INCAR"]
    numerics: dict[str, Any] = {}
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) == new.get(name):
            continue
        try:
            # None takes a setting out of INCAR.
            numerics |= check_numerics({name: new.get(name)})
        except InputError:
            refused.append(f"{handler} would change {name} from {old.get(name)} to {new.get(name)}")
    return Correction(handler, numerics=numerics, refused=refused)


def _inputs(directory: Path) -> dict[str, Any]:
    from pymatgen.io.vasp import Incar, Kpoints, Poscar

    found: dict[str, Any] = {"INCAR": dict(Incar.from_file(directory / "INCAR"))}
    # Parsed, not as text: handlers write every file anew, in another layout.
    found["POSCAR"] = None
    if (poscar := directory / "POSCAR").exists():
        structure = Poscar.from_file(poscar).structure
        places = (structure.lattice.matrix, structure.frac_coords)
        found["POSCAR"] = [array.round(4).tolist() for array in places]
    kpoints = directory / "KPOINTS"
    found["KPOINTS"] = Kpoints.from_file(kpoints).as_dict() if kpoints.exists() else None
    return found


def _failed(cause: FailureCause, message: str) -> Diagnosis:
    return Diagnosis(cause, message, HINTS.get(cause))


def _first(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")
