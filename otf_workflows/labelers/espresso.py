"""Labels from Quantum ESPRESSO's ``pw.x`` (Giannozzi et al., 2009, 10.1088/0953-8984/21/39/395502).

One static calculation per label, supervised by custodian. Files of a label: ``try-1.in``,
``try-1.out``, ``try-1.err`` and so on for every try, ``data-file-schema.xml`` of the last one,
``custodian.json``, and ``label_failure.json`` if there is no result.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from otf_workflows.errors import OtfError
from otf_workflows.labelers import espresso_failures as failures
from otf_workflows.labelers.base import fingerprint
from otf_workflows.labelers.espresso_files import (
    PREFIX,
    XML_NAME,
    PwOutput,
    UnreadableOutput,
    frame_problem,
    read_output,
    write_input,
)
from otf_workflows.labelers.espresso_recipe import EspressoRecipe, check_numerics
from otf_workflows.labelers.outcome import failed, numbers_problem
from otf_workflows.labelers.supervised import Diagnosis, supervise
from otf_workflows.schemas import Frame, LabelResult
from otf_workflows.types import FailureCause

if TYPE_CHECKING:
    from otf_workflows.labelers.base import Recipe, Resources

DEFAULT_COMMAND = "pw.x"
INSTALL = "apt-get install quantum-espresso"


class EspressoLabeler:
    """Computes labels with ``pw.x``."""

    recipe_model: ClassVar[type[Recipe]] = EspressoRecipe

    def label(
        self,
        frame: Frame,
        recipe: EspressoRecipe,
        *,
        key: str,
        directory: Path,
        resources: Resources,
        numerics: dict[str, Any] | None = None,
    ) -> LabelResult:
        """Compute one label in ``directory``; see :class:`otf_workflows.labelers.base.Labeler`.

        Raises
        ------
        InputError
            If ``numerics`` names something that is not a numerical setting.
        LabelFailed
            After all permitted retries, with the cause and every attempt.
        """
        numerics = check_numerics(numerics or {})
        directory = Path(directory).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        try:
            recipe.files(frame.numbers, resources.data_dir)
        except OtfError as error:
            raise failed(
                error.what,
                cause=FailureCause.INPUT,
                attempts=[],
                directory=directory,
                hint=error.hint,
            ) from error
        scratch = _scratch(directory, resources, key)
        run = PwRun(frame, recipe, directory=directory, resources=resources, scratch=scratch)
        try:
            attempts = supervise(run, directory=directory, resources=resources, numerics=numerics)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        output = run.result
        if output is None:  # the ladder ends in a result or in an exception
            raise RuntimeError("pw.x was said to have succeeded without a result")
        seconds = sum(attempt.seconds or 0.0 for attempt in attempts)
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
            core_hours=seconds * resources.cores / 3600,
            warnings=[
                f"try {attempt.number} failed ({attempt.cause}): {attempt.message}"
                for attempt in attempts
                if attempt.cause
            ],
        )

    def check(self, resources: Resources, numbers: list[int], recipe: EspressoRecipe) -> list[str]:
        """Return what is missing on this machine for these elements, in sentences."""
        missing = []
        words = shlex.split(resources.command or DEFAULT_COMMAND)
        programs = {words[0], *(word for word in words if word.endswith("pw.x"))}
        for program in sorted(programs):
            if shutil.which(program) is None:
                by_pw = program.endswith("pw.x")
                advice = f"{INSTALL}, or give" if by_pw else "load its module, or correct"
                missing.append(
                    f"{program} is not on the PATH: {advice} the command of espresso "
                    "in the site file"
                )
        try:
            recipe.files(numbers, resources.data_dir)
        except OtfError as error:
            missing.append(f"{error.what}: {error.hint}" if error.hint else error.what)
        if resources.scratch_dir and not Path(resources.scratch_dir).is_dir():
            missing.append(f"the scratch folder {resources.scratch_dir} does not exist")
        return missing


class PwRun:
    """``pw.x`` as :func:`otf_workflows.labelers.supervised.supervise` wants it."""

    causes = tuple(failures.LADDER)

    def __init__(
        self,
        frame: Frame,
        recipe: EspressoRecipe,
        *,
        directory: Path,
        resources: Resources,
        scratch: Path,
    ) -> None:
        self.frame = frame
        self.recipe = recipe
        self.directory = directory
        self.resources = resources
        self.scratch = scratch
        self.result: PwOutput | None = None

    def prepare(self, numerics: dict[str, Any], *, number: int, seconds_left: float) -> list[str]:
        """Write the input of a try, remove what an earlier one left, return the command line."""
        # What an earlier try wrote must not be taken for the output of this one.
        for leftover in (self.directory / "CRASH", self._save / XML_NAME):
            leftover.unlink(missing_ok=True)
        limited = seconds_left != float("inf")
        write_input(
            self.directory / f"try-{number}.in",
            self.frame,
            self.recipe,
            numerics=numerics,
            outdir=str(self.scratch),
            # Its own stop comes first, because it closes its files; the leash is the hard limit.
            max_seconds=max(0.9 * seconds_left, 1.0) if limited else None,
            data_dir=self.resources.data_dir,
        )
        return [*shlex.split(self.resources.command or DEFAULT_COMMAND), "-in", f"try-{number}.in"]

    def output_files(self, number: int) -> tuple[Path, Path]:
        """Return the files for standard output and standard error of a try."""
        return self.directory / f"try-{number}.out", self.directory / f"try-{number}.err"

    def diagnose(self, *, number: int, status: int) -> Diagnosis:
        """Say how a try ended, and keep the result if it is good."""
        out, err = self.output_files(number)
        text = out.read_text(errors="replace")
        crash = self.directory / "CRASH"
        errors = "\n".join(f.read_text(errors="replace") for f in (err, crash) if f.exists())
        xml = self._save / XML_NAME
        if xml.exists():
            shutil.copyfile(xml, self.directory / XML_NAME)
        ending = failures.diagnose(text, errors, status=status)
        if ending.cause is not None:
            return ending
        try:
            output = read_output(text, xml, kspacing_per_A=self.recipe.kspacing_per_A)
        except UnreadableOutput as error:
            return Diagnosis(FailureCause.PARSE, str(error))
        problem = frame_problem(output, self.frame) or numbers_problem(
            output.energy_eV,
            output.forces_eV_A,
            output.stress_eV_A3,
            n_atoms=self.frame.n_atoms,
        )
        if problem:
            return Diagnosis(FailureCause.PARSE, problem)
        self.result = output
        return ending

    def telling_output(self, number: int) -> str:
        """Return what a try printed, without the report of timings."""
        texts = (file.read_text(errors="replace") for file in self.output_files(number))
        return failures.telling_lines("\n".join(texts))

    def climb(
        self, cause: FailureCause, numerics: dict[str, Any], *, times: int
    ) -> dict[str, Any] | None:
        """Return the numerical settings of the next try, checked against the permitted ones."""
        density = self._save / "charge-density.dat"
        higher = failures.climb(cause, numerics, times=times, has_density=density.exists())
        return None if higher is None else check_numerics(higher)

    @property
    def _save(self) -> Path:
        return self.scratch / f"{PREFIX}.save"


def _scratch(directory: Path, resources: Resources, key: str) -> Path:
    if resources.scratch_dir is None:
        folder = directory / "scratch"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder
    try:
        return Path(tempfile.mkdtemp(prefix=f"otf-{key[:12]}-", dir=resources.scratch_dir))
    except OSError as error:
        raise failed(
            f"the scratch folder cannot be used: {error.strerror}",
            cause=FailureCause.NODE,
            attempts=[],
            directory=directory,
            hint="correct scratch_dir of espresso in the site file",
        ) from error
