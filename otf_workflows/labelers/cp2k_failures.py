"""What custodian's handlers for CP2K would do about a failed try, and what of it may be done.

They are asked in a copy of the folder, because they rewrite the input in place. Their settings are
taken over as far as they are numerics (mixing, the factorisation of overlaps). The rest is physics
and refused, in words: EPS_DEFAULT, EPS_PGF_ORB, the grid of the functional, a smearing where there
was none. Left out are those that watch a run while it lasts (the time limit does that) and the one
for standard error, which looks into the current folder instead of the one it is given.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otf_workflows.errors import InputError
from otf_workflows.labelers.cp2k_recipe import Cp2kNumerics, quiet
from otf_workflows.labelers.espresso_recipe import check_numerics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from custodian.custodian import ErrorHandler

INPUT, OUTPUT = "cp2k.inp", "cp2k.out"
"""Names that custodian's handlers expect."""

SCF = ("FORCE_EVAL", "DFT", "SCF")
NUMERICS: dict[tuple[str, ...], str] = {
    (*SCF, "MAX_SCF"): "max_scf",
    (*SCF, "CHOLESKY"): "cholesky",
    (*SCF, "MIXING", "METHOD"): "mixing_method",
    (*SCF, "MIXING", "ALPHA"): "mixing_alpha",
    (*SCF, "MIXING", "BETA"): "mixing_beta",
    (*SCF, "MIXING", "NBUFFER"): "mixing_history",
}
"""Place in CP2K's input → our name of a setting that a retry may change."""

STEPS_ON_RETRY = 200
"""Handlers mix less and never ask for more steps, which less mixing takes."""

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
        Settings that it changes and that may be changed.
    refused
        Its other changes, one sentence each.
    """

    handler: str
    numerics: dict[str, Any] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


def handlers() -> list[ErrorHandler]:
    """Return custodian's handlers for failed static calculations, in atomate2's order."""
    with quiet():
        from custodian.cp2k import handlers as known

    return [
        known.UnconvergedScfErrorHandler(INPUT, OUTPUT),
        known.DivergingScfErrorHandler(output_file=OUTPUT, input_file=INPUT),
        known.AbortHandler(INPUT, OUTPUT),
        known.NumericalPrecisionHandler(INPUT, OUTPUT),
    ]


def correction(input_file: Path, output_file: Path, known: list[ErrorHandler]) -> Correction | None:
    """Return the correction that the first handler with an answer would make, or None.

    Parameters
    ----------
    input_file
        Input of the failed try; left as it is.
    output_file
        Its standard output.
    known
        The handlers; some of them count how often they were asked.
    """
    with tempfile.TemporaryDirectory(prefix="otf-cp2k-") as folder, quiet():
        shutil.copyfile(input_file, Path(folder) / INPUT)
        shutil.copyfile(output_file, Path(folder) / OUTPUT)
        for handler in known:
            name = type(handler).__name__
            try:
                if not handler.check(folder):
                    continue
                actions = handler.correct(folder)["actions"]
            except Exception as error:  # noqa: BLE001 - handlers parse what may be half a file
                return Correction(name, refused=[f"{name} failed: {type(error).__name__}: {error}"])
            if actions:
                return _judge(name, actions)
    return None


def valid(output_file: Path) -> bool:
    """Return what custodian's validator says of an output: ended, and converged."""
    with quiet():
        from custodian.cp2k.validators import Cp2kOutputValidator

        return not Cp2kOutputValidator(output_file.name).check(str(output_file.parent))


def climb(
    numerics: dict[str, Any], proposed: Correction | None, *, times: int
) -> dict[str, Any] | None:
    """Return the settings of the next try after an SCF that failed, None if nothing is left.

    Parameters
    ----------
    numerics
        Those of the try that failed, as far as they are not the default.
    proposed
        What custodian would do.
    times
        Earlier tries that failed of the same cause.
    """
    if times >= MOST_CORRECTIONS:
        return None
    before = Cp2kNumerics(**numerics)
    changes: dict[str, Any] = dict(proposed.numerics) if proposed else {}
    changes["max_scf"] = max(before.max_scf, changes.get("max_scf", 0), STEPS_ON_RETRY)
    # A person's own choice is never made less careful.
    if "mixing_alpha" in changes:
        changes["mixing_alpha"] = min(changes["mixing_alpha"], before.mixing_alpha)
    higher = check_numerics({**numerics, **changes}, model=Cp2kNumerics)
    return None if Cp2kNumerics(**higher) == before else higher


def _judge(handler: str, actions: list[dict[str, Any]]) -> Correction:
    numerics: dict[str, Any] = {}
    refused = []
    for action in actions:
        for verb, change in action["action"].items():
            for place, value in _leaves(change):
                # Whatever else than setting a known place (unset, copy a file) has no name here.
                name = NUMERICS.get(place, "") if verb == "_set" else ""
                try:
                    numerics |= check_numerics({name: value}, model=Cp2kNumerics)
                except InputError:
                    refused.append(f"{handler} would change {'/'.join(place)} to {value}")
    return Correction(handler, numerics=numerics, refused=refused)


def _leaves(change: dict[str, Any], place: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any]]:
    for name, value in change.items():
        here = (*place, str(name).upper())
        if isinstance(value, dict):
            yield from _leaves(value, here)
        else:
            yield here, value
