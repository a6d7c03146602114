"""What every labeler does with an outcome: check the numbers, or say why there are none."""

from __future__ import annotations

import json
import os
import shutil
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from otf_workflows.errors import LabelFailed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from otf_workflows.schemas import Attempt
    from otf_workflows.types import FailureCause

FAILURE_FILE = "label_failure.json"
"""Written into the folder of a failed label; the same data as ``LabelFailed.to_dict()``."""

LAST_LINES = 30
"""Lines of output kept with a failed attempt."""

QUEUE_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
"""Where the queue systems that we know put the id of a job."""


FULL_BYTES = 2**20
"""A disk with less free space than this is full: no output of a code fits on it."""


@dataclass(frozen=True)
class Diagnosis:
    """How a try ended: a cause of failure with one sentence on it, or no cause for success."""

    cause: FailureCause | None
    message: str = ""
    hint: str | None = None


def host_name() -> str:
    """Return the name of this machine."""
    return socket.gethostname()


def queue_id() -> str | None:
    """Return the id that a queue system gave to this job, if any."""
    return next((os.environ[name] for name in QUEUE_VARIABLES if os.environ.get(name)), None)


def disk_is_full(*folders: Path) -> bool:
    """Return whether any of these folders lies on a full disk.

    Not every code notices: pw.x 6.7 ends with status 0 and leaves an empty file.
    """
    return any(
        folder.is_dir() and shutil.disk_usage(folder).free < FULL_BYTES for folder in folders
    )


def last_lines(text: str) -> list[str]:
    """Return the last lines of an output that say something, at most :data:`LAST_LINES`."""
    return [line.rstrip()[:400] for line in text.splitlines() if line.strip()][-LAST_LINES:]


def failed(
    what: str,
    *,
    cause: FailureCause,
    attempts: Sequence[Attempt],
    directory: Path,
    hint: str | None = None,
) -> LabelFailed:
    """Return the error to raise, after writing it into the folder of the label.

    Parameters
    ----------
    what
        One sentence for a person.
    cause
        Class of the failure.
    attempts
        All tries, oldest first.
    directory
        Folder of the label; created if missing.
    hint
        What may help.
    """
    error = LabelFailed(
        what,
        cause=cause,
        attempts=[attempt.model_dump(mode="json") for attempt in attempts],
        where=str(directory),
        hint=hint,
    )
    # The folder may be on the disk that filled up: the error must reach the caller all the same.
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / FAILURE_FILE).write_text(json.dumps(error.to_dict(), indent=1))
    except OSError as problem:
        error.add_note(f"{FAILURE_FILE} could not be written: {problem}")
    return error


def numbers_problem(  # noqa: PLR0911 - one return per way to be wrong
    energy_eV: float, forces_eV_A: np.ndarray, stress_eV_A3: np.ndarray | None, *, n_atoms: int
) -> str | None:
    """Return why these numbers cannot be a label, or None if they can.

    Parameters
    ----------
    energy_eV
        Total energy (eV).
    forces_eV_A
        Forces (eV/Å), shape (n, 3).
    stress_eV_A3
        Stress (eV/Å³), shape (3, 3), if there is one.
    n_atoms
        Atoms of the frame.
    """
    forces = np.asarray(forces_eV_A, dtype=float)
    if forces.shape != (n_atoms, 3):
        return f"the output has forces of shape {forces.shape}, the frame has {n_atoms} atoms"
    if not np.isfinite(energy_eV):
        return "the energy in the output is not a finite number"
    if not np.isfinite(forces).all():
        return "a force in the output is not a finite number"
    # Loose on purpose: some codes leave a net force on their grid, but none of the size of forces.
    net, largest = np.abs(forces.sum(axis=0)).max(), np.abs(forces).max()
    if net > 0.05 * n_atoms**0.5 + 0.1 * largest:
        return f"the forces do not add up to zero: net {net:.3g} eV/Å, largest {largest:.3g} eV/Å"
    if stress_eV_A3 is not None:
        stress = np.asarray(stress_eV_A3, dtype=float)
        if stress.shape != (3, 3) or not np.isfinite(stress).all():
            return "the stress in the output is not a 3×3 matrix of finite numbers"
        asymmetry = np.abs(stress - stress.T).max()
        if asymmetry > 1e-4 + 0.01 * np.abs(stress).max():
            return f"the stress in the output is not symmetric: {asymmetry:.3g} eV/Å³"
    return None
