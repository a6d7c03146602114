"""Labels from CP2K's Quickstep (Kühne et al., 2020, 10.1063/5.0007045), with k-points.

The input is that of atomate2's static set at the recipe's level of theory (:mod:`cp2k_recipe`).
custodian supervises the program by our own job, because its ``Cp2kJob.terminate`` kills every CP2K
on the machine by name; its handlers correct as far as that is numerics (:mod:`cp2k_failures`), and
its validator must accept the output. An SCF that did not converge is only a warning to CP2K 2023.1,
with exit status 0 and forces; here it is a failure.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from otf_workflows.labelers import cp2k_failures as failures
from otf_workflows.labelers import cp2k_files
from otf_workflows.labelers.cp2k_recipe import INSTALL, Cp2kNumerics, Cp2kRecipe
from otf_workflows.labelers.espresso_recipe import symbols_of
from otf_workflows.labelers.external import ExternalLabeler, ExternalRun, Mark, Output
from otf_workflows.labelers.outcome import Diagnosis
from otf_workflows.types import FailureCause

if TYPE_CHECKING:
    from otf_workflows.labelers.base import Recipe, Resources

DATA_DIR = "/usr/share/cp2k"
"""Where Debian puts basis sets and potentials; ``CP2K_DATA_DIR`` and the site file come first."""


class Cp2kRun(ExternalRun):
    """One label by CP2K."""

    program = "cp2k.psmp"
    numerics_model = Cp2kNumerics
    marks: ClassVar[tuple[Mark, ...]] = (
        (r"SCF run NOT converged", FailureCause.SCF, "the self-consistent cycle did not converge"),
        (r"GEOMETRY wrong", FailureCause.GEOMETRY, "{program} found atoms on each other"),
        (
            r"(?i)exceeded requested execution time",
            FailureCause.WALLTIME,
            "{program} stopped at its time limit",
        ),
        (
            (
                r"(?is)\[ABORT\](.*?(?:not found|not defined|unknown|invalid|could not be opened|"
                r"required|number of electrons).*?)\n \*{20}"
            ),
            FailureCause.INPUT,
            "{program} refused its input",
        ),
        (
            r"Cholesky decompos\w+ failed",
            FailureCause.SCF,
            "the basis is close to linear dependence, and the SCF broke down",
        ),
        (r"(?s)\[ABORT\](.*?)\n \*{20}", FailureCause.UNKNOWN, "{program} aborted"),
    )
    must_have: ClassVar[tuple[str, ...]] = (
        r"SCF run converged in",
        r"ENERGY\| Total FORCE_EVAL",
        r"ATOMIC FORCES in",
        r"STRESS\| Analytical",
        r"PROGRAM ENDED AT",
    )
    # The ladder of the SCF is custodian's, see cp2k_failures.
    ladder: ClassVar[dict[FailureCause, tuple[dict[str, Any], ...]]] = {
        FailureCause.SCF: (),
        FailureCause.KILLED: ({},),
        FailureCause.UNKNOWN: ({},),
    }

    def __init__(self, *arguments: Any, **words: Any) -> None:
        super().__init__(*arguments, **words)
        self._handlers = failures.handlers()
        self._proposed: failures.Correction | None = None

    def write(self, numerics: dict[str, Any], *, number: int) -> list[str]:
        """Write the input of a try and return the arguments of the command."""
        path = self.directory / f"try-{number}.inp"
        cp2k_files.write_input(
            path, self.frame, self.recipe, numerics=numerics, data_dir=data_dir_of(self.resources)
        )
        return ["-i", path.name]

    def diagnose(self, *, number: int, status: int) -> Diagnosis:
        """Say how a try ended; custodian's validator has a say in success, too."""
        self._proposed = None
        ending = super().diagnose(number=number, status=status)
        out, source = self.output_files(number)[0], self.directory / f"try-{number}.inp"
        if ending.cause is None and not failures.valid(out):
            self.result = None
            return Diagnosis(FailureCause.PARSE, "custodian's validator does not accept the output")
        if ending.cause in {FailureCause.SCF, FailureCause.UNKNOWN} and source.exists():
            self._proposed = failures.correction(source, out, self._handlers)
            if self._proposed and self._proposed.refused:
                refused = "; ".join(self._proposed.refused)
                message = f"{ending.message} (not done, because it is physics: {refused})"
                ending = Diagnosis(ending.cause, message, ending.hint)
        return ending

    def climb(
        self, cause: FailureCause, numerics: dict[str, Any], *, times: int
    ) -> dict[str, Any] | None:
        """Return the numerical settings of the next try, or None at the end of the ladder."""
        helped = self._proposed is not None and bool(self._proposed.numerics)
        if cause is FailureCause.SCF or helped:
            return failures.climb(numerics, self._proposed, times=times)
        return super().climb(cause, numerics, times=times)

    def read(self, number: int) -> Output:
        """Read a finished try."""
        text = self.output_files(number)[0].read_text(errors="replace")
        return cp2k_files.read_output(text, self.recipe, self.frame)


class Cp2kLabeler(ExternalLabeler):
    """Computes labels with CP2K."""

    recipe_model: ClassVar[type[Recipe]] = Cp2kRecipe
    run_model = Cp2kRun
    install = INSTALL

    def find_data(self, recipe: Cp2kRecipe, numbers: list[int], resources: Resources) -> None:
        """Look for basis sets and potentials; OtfError if one is missing."""
        for symbol in symbols_of(numbers):
            recipe.data(symbol, data_dir_of(resources))


def data_dir_of(resources: Resources) -> Path:
    """Return the folder of basis sets and potentials on this machine."""
    return Path(resources.data_dir or os.environ.get("CP2K_DATA_DIR") or DATA_DIR)
