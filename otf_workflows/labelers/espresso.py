"""Labels from Quantum ESPRESSO's ``pw.x`` (Giannozzi et al., 2009, 10.1088/0953-8984/21/39/395502).

One static calculation per label, supervised by custodian. Files of a label: ``try-1.in``,
``try-1.out``, ``try-1.err`` and so on for every try, ``data-file-schema.xml`` of the last one,
``custodian.json``, and ``label_failure.json`` if there is no result.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from otf_workflows.errors import OtfError
from otf_workflows.labelers.base import fingerprint
from otf_workflows.labelers.espresso_recipe import EspressoRecipe, check_numerics, command_of
from otf_workflows.labelers.outcome import FAILURE_FILE, failed
from otf_workflows.schemas import Frame, LabelResult
from otf_workflows.types import FailureCause

if TYPE_CHECKING:
    from otf_workflows.labelers.base import Recipe, Resources

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
        from otf_workflows.labelers.espresso_run import PwRun
        from otf_workflows.labelers.supervised import supervise

        numerics = check_numerics(numerics or {})
        directory = Path(directory).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        (directory / FAILURE_FILE).unlink(missing_ok=True)
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

    def check_numerics(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Return numerical settings, checked; InputError for physics and impossible values."""
        return check_numerics(changes)

    def check(self, resources: Resources, numbers: list[int], recipe: EspressoRecipe) -> list[str]:
        """Return what is missing on this machine for these elements, in sentences."""
        missing = []
        words = command_of(resources)
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


def _scratch(directory: Path, resources: Resources, key: str) -> Path:
    if resources.scratch_dir is None:
        folder = directory / "pw-scratch"
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
