"""How ``pw.x`` fails, and what to try next.

"JOB DONE." stands at the end of runs that did not converge, so success is judged by what must be
there: convergence, energy, forces and stress. The order of the marks matters: a run that ran out
of time also leaves no forces, and one that ran out of memory also ends by a signal.
"""

from __future__ import annotations

import re
import signal
from typing import Any

from otf_workflows.labelers import leash
from otf_workflows.labelers.outcome import Diagnosis
from otf_workflows.types import FailureCause

MARKS: tuple[tuple[str, FailureCause, str], ...] = (
    (r"Maximum CPU time exceeded", FailureCause.WALLTIME, "pw.x stopped at its time limit"),
    (
        r"No space left on device|Disk quota exceeded",
        FailureCause.NODE,
        "the disk of pw.x is full",
    ),
    (
        r"error while loading shared libraries|GLIBC_\S+ not found|Illegal instruction",
        FailureCause.NODE,
        "pw.x cannot run on this machine",
    ),
    (
        r"ORTE|PMIX ERROR|PMI2?_Init failed|not enough slots|MPI_Init\w* failed",
        FailureCause.NODE,
        "MPI could not start pw.x",
    ),
    (
        (
            r"(?i)cannot allocate memory|not enough memory|insufficient virtual memory"
            r"|virtual memory exhausted|out of memory|oom[-_ ]kill|memory limit|error allocating"
        ),
        FailureCause.MEMORY,
        "pw.x ran out of memory",
    ),
    (r"Program stopped by user request", FailureCause.KILLED, "somebody asked pw.x to stop"),
    (
        r"convergence NOT achieved",
        FailureCause.SCF,
        "the self-consistent cycle did not converge",
    ),
)
"""Pattern in the output, cause, sentence; the first that matches counts."""

ROUTINES: tuple[tuple[str, FailureCause], ...] = (
    (r"check_atoms|atom\w*overlap", FailureCause.GEOMETRY),
    (r"c_bands|[cr]diagh\w*|[cr]egterg|[cr]cgdiagg|cholesky|electrons\w*", FailureCause.SCF),
    (r"davcio|diropn|seqopn|open_buffer|write_\w*|punch", FailureCause.NODE),
    (r"read\w*|iosys|input\w*|setup|set_cutoff|upf\w*|ppcheck|card_\w*", FailureCause.INPUT),
)
"""Routine named in an error box → cause; whole names, upper or lower case."""

ERROR_BOX = re.compile(r"Error in routine\s+(\S+)\s*\(\s*-?\d+\s*\):\s*\n\s*(.*)")
MUST_HAVE = (
    r"convergence has been achieved",
    r"!\s+total energy\s+=",
    r"Forces acting on atoms",
    r"total\s+stress",
    r"JOB DONE\.",
)

TIMING_REPORT = re.compile(
    r":\s+[\d.hm ]+s CPU|^\s*Called by |^\s*(General|Parallel) routines|^=-+=$|^\s*JOB DONE"
)
"""Lines at the end of every run that tell nothing about why it failed."""

HINTS = {
    FailureCause.SCF: "rerun with e.g. --set mixing_beta=0.1; a frame without a band gap "
    "oscillates for ever under smearing: none",
    FailureCause.WALLTIME: "rerun it with a longer walltime or more cores",
    FailureCause.MEMORY: "rerun it with more memory, or on more ranks",
    FailureCause.NODE: "look at the machine (disk, libraries, MPI), then rerun",
    FailureCause.KILLED: "often the node's memory killer or an administrator; rerun it",
    FailureCause.INPUT: "correct the recipe or the site file; a rerun alone will not help",
    FailureCause.GEOMETRY: "atoms sit on each other; exclude the frame",
}

LADDER: dict[FailureCause, tuple[dict[str, Any], ...]] = {
    FailureCause.SCF: (
        # An eigensolver that was given the occupied bands only may pass one over: the SCF nears
        # its end, jumps up by 0.7 Ry, and no mixing brings it back. With a few more it cannot.
        {"mixing_beta": 0.3, "electron_maxstep": 150, "extra_bands": 4, "startingpot": "file"},
        {
            "mixing_beta": 0.2,
            "mixing_mode": "local-TF",
            "mixing_ndim": 12,
            "electron_maxstep": 150,
            "startingpot": "atomic",
        },
        {
            "mixing_beta": 0.1,
            "mixing_mode": "plain",
            "diagonalization": "cg",
            "electron_maxstep": 250,
        },
    ),
    FailureCause.MEMORY: ({"diagonalization": "cg", "mixing_ndim": 4},),
    FailureCause.KILLED: ({},),
    FailureCause.UNKNOWN: ({},),
}
"""Cause → settings of each further try; an empty one repeats the try as it was. A walltime has no
ladder: what time is left is never more than what was too short. Nor have input, geometry, node and
parse, which another try on the same machine would only repeat."""


def diagnose(text: str, errors: str, *, status: int) -> Diagnosis:  # noqa: PLR0911
    """Say how a run ended.

    Parameters
    ----------
    text
        Standard output.
    errors
        Standard error and the CRASH file.
    status
        Exit status as given by the leash.

    Returns
    -------
    Diagnosis
        No cause if everything that a finished run prints is there; the numbers themselves are
        looked at when they are read.
    """
    if status == leash.TIME_UP:
        return _failed(FailureCause.WALLTIME, "pw.x was ended at the time limit of this label")
    if status in {leash.NOT_STARTED, 126}:
        return _failed(FailureCause.NODE, f"pw.x could not be started: {_first(errors)}")
    both = f"{text}\n{errors}"
    in_box = _read_box(both)
    # What pw.x says itself comes before what MPI adds when it tears the ranks down.
    if in_box and in_box.cause != FailureCause.UNKNOWN:
        return in_box
    for pattern, cause, sentence in MARKS:
        if re.search(pattern, both):
            return _failed(cause, sentence)
    if in_box:
        return in_box
    if status > 128:
        return _signalled(status - 128)
    missing = [pattern for pattern in MUST_HAVE if not re.search(pattern, text)]
    if missing and status == 0:
        return _failed(FailureCause.PARSE, "the output of pw.x is not complete")
    if missing or status:
        return _failed(FailureCause.UNKNOWN, f"pw.x ended with exit status {status}")
    return Diagnosis(None)


def full_disk(found: str) -> Diagnosis:
    """Return what to say of a run that did not notice that its disk is full.

    Parameters
    ----------
    found
        What is wrong with the files that it left.
    """
    return _failed(FailureCause.NODE, f"the disk of pw.x is full: {found}")


def telling_lines(text: str) -> str:
    """Return an output without the report of timings at its end."""
    return "\n".join(line for line in text.splitlines() if not TIMING_REPORT.search(line))


def climb(
    cause: FailureCause, numerics: dict[str, Any], *, times: int, has_density: bool
) -> dict[str, Any] | None:
    """Return the numerical settings of the next try, or None at the end of the ladder.

    Parameters
    ----------
    cause
        Why the last try failed.
    numerics
        Settings of the last try.
    times
        Earlier tries that failed of the same cause.
    has_density
        Whether a density was saved that a try can start from.
    """
    rungs = LADDER.get(cause, ())
    if times >= len(rungs):
        return None
    changes = dict(rungs[times])
    if changes.get("startingpot") == "file" and not has_density:
        del changes["startingpot"]
    # A person's own choice is never made less careful.
    careful = {"mixing_beta": min, "electron_maxstep": max, "mixing_ndim": max, "extra_bands": max}
    for name, choose in careful.items():
        if cause == FailureCause.SCF and name in changes and name in numerics:
            changes[name] = choose(changes[name], numerics[name])
    return {**numerics, **changes}


def _read_box(text: str) -> Diagnosis | None:
    box = ERROR_BOX.search(text)
    if box is None:
        return None
    routine, message = box.group(1), box.group(2).strip()
    causes = [cause for pattern, cause in ROUTINES if re.fullmatch(pattern, routine, re.IGNORECASE)]
    cause = causes[0] if causes else FailureCause.UNKNOWN
    if "smearing is needed" in message:
        cause = FailureCause.INPUT
    return _failed(cause, f"pw.x failed in {routine}: {message}")


def _signalled(number: int) -> Diagnosis:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if number in {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}:
        return _failed(FailureCause.KILLED, f"pw.x was killed ({name})")
    return _failed(FailureCause.UNKNOWN, f"pw.x crashed ({name})")


def _failed(cause: FailureCause, message: str) -> Diagnosis:
    return Diagnosis(cause, message, HINTS.get(cause))


def _first(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")
