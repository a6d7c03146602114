"""What labelers of external programs share: run under supervision, diagnose, check, report.

A code adds a recipe, a class of its numerical settings, a subclass of :class:`ExternalRun` that
writes an input and reads an output, and a subclass of :class:`ExternalLabeler`. ``abinit.py`` is
the worked example.
"""

from __future__ import annotations

import re
import shlex
import shutil
import signal
from abc import abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from otf_workflows.errors import OtfError
from otf_workflows.labelers import leash
from otf_workflows.labelers.base import fingerprint
from otf_workflows.labelers.espresso_recipe import check_numerics
from otf_workflows.labelers.outcome import FAILURE_FILE, Diagnosis, failed, numbers_problem
from otf_workflows.schemas import Frame, LabelResult, core_hours
from otf_workflows.types import FailureCause

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydantic import BaseModel

    from otf_workflows.labelers.base import Recipe, Resources
    from otf_workflows.labelers.supervised import Program

    class Run(Program, Protocol):
        """A program under supervision that keeps its result."""

        result: Any


Mark = tuple[str, FailureCause, str]
"""Pattern in an output, cause, sentence with ``{program}`` in it."""

COMMON_MARKS: tuple[Mark, ...] = (
    (
        r"No space left on device|Disk quota exceeded",
        FailureCause.NODE,
        "the disk of {program} is full",
    ),
    (
        r"error while loading shared libraries|GLIBC_\S+ not found|Illegal instruction",
        FailureCause.NODE,
        "{program} cannot run on this machine",
    ),
    (
        r"PMIX ERROR|PMI2?_Init failed|not enough slots|MPI_Init\w* failed",
        FailureCause.NODE,
        "MPI could not start {program}",
    ),
    (
        (
            r"(?i)cannot allocate memory|insufficient virtual memory|out of memory|oom[-_ ]kill"
            r"|memory limit|error allocating|MemoryError"
        ),
        FailureCause.MEMORY,
        "{program} ran out of memory",
    ),
)
"""The first that matches counts, after the marks of the code itself."""

HINTS = {
    FailureCause.SCF: "rerun with other numerics, e.g. more steps or less mixing",
    FailureCause.WALLTIME: "rerun it with a longer walltime or more cores",
    FailureCause.MEMORY: "rerun it with more memory, or on more ranks",
    FailureCause.NODE: "look at the machine (disk, libraries, MPI), then rerun",
    FailureCause.KILLED: "often the node's memory killer or an administrator; rerun it",
    FailureCause.INPUT: "correct the recipe or the site file; a rerun alone will not help",
    FailureCause.GEOMETRY: "atoms sit on each other; exclude the frame",
}


class UnreadableOutput(ValueError):  # noqa: N818
    """The output of a run is missing, broken, or not that of the frame asked for."""


@dataclass(frozen=True)
class Output:
    """One finished run, in our units.

    Attributes
    ----------
    energy_eV
        The energy that the forces belong to: with smearing the free energy (eV).
    forces_eV_A
        Forces (eV/Å), shape (n, 3).
    stress_eV_A3
        Stress (eV/Å³), shape (3, 3), tension positive.
    numbers
        Atomic numbers, as the output has them.
    cell_A
        Lattice vectors as rows (Å), as the output has them.
    positions_A
        Positions (Å), shape (n, 3), as the output has them.
    settings
        Level of theory as run, in the form of the recipe's ``level_of_theory``.
    magmoms_muB
        Site moments at the end (μB), shape (n,), of a spin-polarised run.
    warnings
        What a person should know.
    """

    energy_eV: float
    forces_eV_A: np.ndarray
    stress_eV_A3: np.ndarray
    numbers: list[int]
    cell_A: np.ndarray
    positions_A: np.ndarray
    settings: dict[str, Any]
    magmoms_muB: np.ndarray | None = None
    warnings: tuple[str, ...] = ()


class LabelRun:
    """One label by one program: its frame, its files, and in the end its result."""

    tolerance_A: ClassVar[float] = 1e-5
    """How exactly the output prints cell and positions."""

    def __init__(self, frame: Frame, recipe: Any, *, directory: Path, resources: Resources) -> None:
        self.frame = frame
        self.recipe = recipe
        self.directory = directory
        self.resources = resources
        self.result: Output | None = None

    def output_files(self, number: int) -> tuple[Path, Path]:
        """Return the files for standard output and standard error of a try."""
        return self.directory / f"try-{number}.out", self.directory / f"try-{number}.err"

    def judge(self, output: Output) -> Diagnosis:
        """Keep an output as the result if it is that of the frame and can be a label."""
        problem = frame_problem(
            output, self.frame, tolerance_A=self.tolerance_A
        ) or numbers_problem(
            output.energy_eV,
            output.forces_eV_A,
            output.stress_eV_A3,
            n_atoms=self.frame.n_atoms,
        )
        if problem:
            return Diagnosis(FailureCause.PARSE, problem)
        self.result = output
        return Diagnosis(None)


class ExternalRun(LabelRun):
    """One label by one program, as :func:`otf_workflows.labelers.supervised.supervise` wants it.

    A code sets the class attributes, and writes and reads its files.
    """

    program: ClassVar[str]
    numerics_model: ClassVar[type[BaseModel]]
    marks: ClassVar[tuple[Mark, ...]]
    must_have: ClassVar[tuple[str, ...]] = ()
    ladder: ClassVar[dict[FailureCause, tuple[dict[str, Any], ...]]]
    careful: ClassVar[dict[str, Callable[..., Any]]] = {}
    rubbish: ClassVar[tuple[str, ...]] = ()
    """Patterns of big files that are of no use when the last try is over."""

    def __init__(self, frame: Frame, recipe: Any, *, directory: Path, resources: Resources) -> None:
        super().__init__(frame, recipe, directory=directory, resources=resources)
        self.causes = tuple(self.ladder)

    @abstractmethod
    def write(self, numerics: dict[str, Any], *, number: int) -> list[str]:
        """Write the input of a try and return the arguments of the command."""

    @abstractmethod
    def read(self, number: int) -> Output:
        """Read a finished try; UnreadableOutput, KeyError, ValueError … if it cannot be."""

    def own_files(self, number: int) -> list[Path]:
        """Return what a try writes beside its standard output and error."""
        return list(self.directory.glob(f"try-{number}[o.-]*"))

    def prepare(self, numerics: dict[str, Any], *, number: int, seconds_left: float) -> list[str]:  # noqa: ARG002
        """Write the input of a try, remove what an earlier one left, return the command line."""
        # What an earlier run in this folder wrote must not be taken for the output of this one.
        for leftover in self.own_files(number):
            leftover.unlink()
        every = self.numerics_model(**numerics).model_dump()
        return [*command_of(self.resources, self.program), *self.write(every, number=number)]

    def telling_output(self, number: int) -> str:
        """Return what a try printed."""
        return "\n".join(f.read_text(errors="replace") for f in self.output_files(number))

    def climb(
        self, cause: FailureCause, numerics: dict[str, Any], *, times: int
    ) -> dict[str, Any] | None:
        """Return the numerical settings of the next try, or None at the end of the ladder."""
        rungs = self.ladder.get(cause, ())
        if times >= len(rungs):
            return None
        changes = dict(rungs[times])
        # A person's own choice is never made less careful.
        for name in changes.keys() & numerics.keys() & self.careful.keys():
            changes[name] = self.careful[name](changes[name], numerics[name])
        return check_numerics({**numerics, **changes}, model=self.numerics_model)

    def diagnose(self, *, number: int, status: int) -> Diagnosis:
        """Say how a try ended, and keep the result if it is good."""
        ending = self._ending(self.telling_output(number), status)
        if ending.cause is not None:
            return ending
        try:
            output = self.read(number)
        except (UnreadableOutput, OSError, LookupError, ValueError, TypeError) as error:
            return Diagnosis(FailureCause.PARSE, f"the output cannot be read: {error}")
        return self.judge(output)

    def _ending(self, text: str, status: int) -> Diagnosis:  # noqa: PLR0911 - one return per end
        if status == leash.TIME_UP:
            return self._failed(
                FailureCause.WALLTIME, "{program} was ended at the time limit of this label"
            )
        if status in {leash.NOT_STARTED, 126}:
            first = next((line for line in text.splitlines() if line.strip()), "no message")
            return self._failed(FailureCause.NODE, f"{{program}} could not be started: {first}")
        for pattern, cause, sentence in (*self.marks, *COMMON_MARKS):
            if found := re.search(pattern, text, re.MULTILINE):
                # Frames drawn around messages are left out.
                words = " ".join(found.groups(default="")).split()
                details = " ".join(w for w in words if not re.fullmatch(r"[*|/\\_O]+", w))[:300]
                return self._failed(cause, f"{sentence}: {details}" if details else sentence)
        if status > 128:
            return self._signalled(status - 128)
        if status:
            return self._failed(FailureCause.UNKNOWN, f"{{program}} ended with status {status}")
        if not all(re.search(pattern, text) for pattern in self.must_have):
            return self._failed(FailureCause.PARSE, "the output of {program} is not complete")
        return Diagnosis(None)

    def _signalled(self, number: int) -> Diagnosis:
        known = {int(s): s.name for s in signal.Signals}
        name = known.get(number, f"signal {number}")
        if number in {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}:
            return self._failed(FailureCause.KILLED, f"{{program}} was killed ({name})")
        return self._failed(FailureCause.UNKNOWN, f"{{program}} crashed ({name})")

    def _failed(self, cause: FailureCause, sentence: str) -> Diagnosis:
        return Diagnosis(cause, sentence.replace("{program}", self.program), HINTS.get(cause))


class ExternalLabeler:
    """A labeler whose code is an external program; see :class:`otf_workflows.labelers.base`."""

    recipe_model: ClassVar[type[Recipe]]
    run_model: ClassVar[type[ExternalRun]]
    install: ClassVar[str]

    def label(
        self,
        frame: Frame,
        recipe: Any,
        *,
        key: str,
        directory: Path,
        resources: Resources,
        numerics: dict[str, Any] | None = None,
    ) -> LabelResult:
        """Compute one label in ``directory``.

        Raises
        ------
        InputError
            If ``numerics`` names something that is not a numerical setting.
        LabelFailed
            After all permitted retries, with the cause and every attempt.
        """
        from otf_workflows.labelers.supervised import supervise

        numerics = self.check_numerics(numerics or {})
        directory = Path(directory).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        (directory / FAILURE_FILE).unlink(missing_ok=True)
        if refused := self.refusal(frame, recipe, resources):
            what, hint = refused
            raise failed(
                what, cause=FailureCause.INPUT, attempts=[], directory=directory, hint=hint
            )
        with self.running(frame, recipe, key=key, directory=directory, resources=resources) as run:
            attempts = supervise(run, directory=directory, resources=resources, numerics=numerics)
        output = run.result
        if output is None:  # supervision ends in a result or in an exception
            raise RuntimeError(f"{recipe.code} was said to have succeeded without a result")
        return LabelResult(
            key=key,
            frame=frame,
            energy_eV=output.energy_eV,
            forces_eV_A=output.forces_eV_A.tolist(),
            stress_eV_A3=output.stress_eV_A3.tolist() if recipe.use_stress else None,
            magmoms_muB=None if output.magmoms_muB is None else output.magmoms_muB.tolist(),
            fingerprint=fingerprint(output.settings),
            settings_as_run=output.settings,
            attempts=attempts,
            core_hours=core_hours(attempts),
            warnings=[
                *output.warnings,
                *(
                    f"try {attempt.number} failed ({attempt.cause}): {attempt.message}"
                    for attempt in attempts
                    if attempt.cause
                ),
            ],
        )

    @contextmanager
    def running(
        self, frame: Frame, recipe: Any, *, key: str, directory: Path, resources: Resources
    ) -> Iterator[Run]:
        """Give what supervision runs, and remove afterwards what is of no use."""
        del key
        run = self.run_model(frame, recipe, directory=directory, resources=resources)
        try:
            yield run
        finally:
            for pattern in run.rubbish:
                for path in directory.glob(pattern):
                    path.unlink()

    def refusal(
        self, frame: Frame, recipe: Any, resources: Resources
    ) -> tuple[str, str | None] | None:
        """Return why this frame cannot be labelled here, and what may help; None if it can."""
        lacking = self.data_problems(recipe, frame.numbers, resources)
        return ("; ".join(lacking), None) if lacking else None

    def check_numerics(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Return numerical settings, checked; InputError for physics and impossible values."""
        return check_numerics(changes, model=self.run_model.numerics_model)

    def check(self, resources: Resources, numbers: list[int], recipe: Any) -> list[str]:
        """Return what is missing on this machine for these elements, in sentences."""
        words = command_of(resources, self.run_model.program)
        missing = [
            f"{program} is not on the PATH: {self.install}, or give the command of {recipe.code} "
            "in the site file"
            for program in sorted({words[0], words[-1]})
            if shutil.which(program) is None
        ]
        return missing or self.data_problems(recipe, numbers, resources)

    def data_problems(self, recipe: Any, numbers: list[int], resources: Resources) -> list[str]:
        """Return which data files are missing for these elements, in sentences."""
        try:
            self.find_data(recipe, numbers, resources)
        except OtfError as error:
            return [f"{error.what}: {error.hint}" if error.hint else error.what]
        return []

    @abstractmethod
    def find_data(self, recipe: Any, numbers: list[int], resources: Resources) -> None:
        """Look for data files; OtfError if one is missing."""


def frame_problem(output: Output, frame: Frame, *, tolerance_A: float) -> str | None:
    """Return why an output is not that of a frame (elements, cell, places, order), or None."""
    if output.numbers != frame.numbers:
        return "the output has other elements, or another order of atoms, than the frame"
    if np.abs(output.cell_A - np.array(frame.cell_A)).max() > tolerance_A:
        return "the output has another cell than the frame"
    if np.abs(output.positions_A - np.array(frame.positions_A)).max() > tolerance_A:
        return "the output has other positions than the frame"
    return None


def command_of(resources: Resources, program: str) -> list[str]:
    """Return the words of the command that starts a program."""
    return shlex.split(resources.command) or [program]


def kelvin(energy_eV: float) -> int:
    """Return the temperature of a width of Fermi–Dirac occupations, in whole kelvins."""
    from ase.units import kB

    return round(energy_eV / kB)
