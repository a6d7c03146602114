"""One label by VASP, try by try, in the terms of supervision."""

from __future__ import annotations

import re
import shlex
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from otf_workflows.labelers import vasp_failures as failures
from otf_workflows.labelers.external import UnreadableOutput
from otf_workflows.labelers.outcome import Diagnosis, numbers_problem
from otf_workflows.labelers.vasp_files import VaspOutput, read_output, write_inputs
from otf_workflows.labelers.vasp_recipe import VaspRecipe, check_numerics
from otf_workflows.types import FailureCause

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from otf_workflows.labelers.base import Resources
    from otf_workflows.schemas import Frame

POTCAR_FOLDER = "PMG_VASP_PSP_DIR"
"""pymatgen's own setting for where potentials are."""


class VaspRun:
    """VASP as :func:`otf_workflows.labelers.supervised.supervise` wants it."""

    causes = failures.CORRECTED

    def __init__(
        self,
        frame: Frame,
        recipe: VaspRecipe,
        *,
        directory: Path,
        resources: Resources,
        potcar_spec: bool = False,
    ) -> None:
        self.frame = frame
        self.recipe = recipe
        self.directory = directory
        self.resources = resources
        self.potcar_spec = potcar_spec
        self.result: VaspOutput | None = None
        self._handlers = failures.handlers()
        self._proposed: failures.Correction | None = None

    def prepare(self, numerics: dict[str, Any], *, number: int, seconds_left: float) -> list[str]:  # noqa: ARG002
        """Write the input of a try, remove what an earlier one left, return the command line."""
        with potcars_in(self.resources.data_dir):
            write_inputs(
                self.directory,
                self.frame,
                self.recipe,
                numerics=numerics,
                potcar_spec=self.potcar_spec,
            )
        return command_of(self.resources)

    def output_files(self, number: int) -> tuple[Path, Path]:  # noqa: ARG002
        """Return the files for standard output and standard error, named as custodian wants."""
        return self.directory / failures.STDOUT, self.directory / failures.STDERR

    def diagnose(self, *, number: int, status: int) -> Diagnosis:
        """Say how a try ended, and keep the result if it is good."""
        self._proposed = None
        text, errors = (f.read_text(errors="replace") for f in self.output_files(number))
        output, problem = None, ""
        converged: bool | None
        try:
            output = read_output(self.directory, self.frame, self.recipe)
            converged = output.converged
        except UnreadableOutput as error:
            problem = str(error)
            converged = self._converged_by_oszicar()
        ending = failures.diagnose(text, errors, status=status, converged=converged)
        if ending.cause is FailureCause.PARSE and problem:
            return Diagnosis(FailureCause.PARSE, problem)
        if ending.cause is None and output is not None:
            ending = self._judge(output)
        if ending.cause in failures.CORRECTED:
            self._proposed = failures.correction(self.directory, self._handlers)
            if self._proposed and self._proposed.refused:
                refused = "; ".join(self._proposed.refused)
                message = f"{ending.message} (not tried, because it is physics: {refused})"
                ending = Diagnosis(ending.cause, message, ending.hint)
        return ending

    def telling_output(self, number: int) -> str:
        """Return what a try printed, with the course of the SCF at the end."""
        files = (self.directory / "OSZICAR", *self.output_files(number))
        return "\n".join(f.read_text(errors="replace") for f in files if f.exists())

    def climb(
        self, cause: FailureCause, numerics: dict[str, Any], *, times: int
    ) -> dict[str, Any] | None:
        """Return the numerical settings of the next try, checked against the permitted ones."""
        higher = failures.climb(cause, numerics, self._proposed, times=times)
        return None if higher is None else check_numerics(higher)

    def _judge(self, output: VaspOutput) -> Diagnosis:
        problem = numbers_problem(
            output.energy_eV,
            output.forces_eV_A,
            output.stress_eV_A3,
            n_atoms=self.frame.n_atoms,
        )
        if problem:
            return Diagnosis(FailureCause.PARSE, problem)
        if output.energy_eV > 0:
            # Zero is that of free atoms: custodian takes this for a wrong SCF solution, too.
            return Diagnosis(FailureCause.SCF, f"the energy is positive: {output.energy_eV:.3f} eV")
        self.result = output
        return Diagnosis(None)

    def _converged_by_oszicar(self) -> bool | None:
        oszicar, incar = self.directory / "OSZICAR", self.directory / "INCAR"
        if not (oszicar.exists() and incar.exists()):
            return None
        found = re.search(r"^\s*NELM\s*=\s*(\d+)", incar.read_text(), re.MULTILINE)
        text = oszicar.read_text(errors="replace")
        # 60 is VASP's own default.
        return failures.converged_by_oszicar(text, most_steps=int(found.group(1)) if found else 60)


def command_of(resources: Resources) -> list[str]:
    """Return the words of the command that starts VASP."""
    return shlex.split(resources.command) or ["vasp_std"]


@contextmanager
def potcars_in(folder: str | None) -> Iterator[None]:
    """Let pymatgen look for potentials in a folder; in its own configured one if None."""
    from pymatgen.core import SETTINGS

    before = SETTINGS.get(POTCAR_FOLDER)
    if folder is not None:
        SETTINGS[POTCAR_FOLDER] = folder
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if folder is not None:
            if before is None:
                SETTINGS.pop(POTCAR_FOLDER, None)
            else:
                SETTINGS[POTCAR_FOLDER] = before
