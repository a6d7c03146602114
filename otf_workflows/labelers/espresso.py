"""Labels from Quantum ESPRESSO's ``pw.x`` (Giannozzi et al., 2009, 10.1088/0953-8984/21/39/395502).

One static calculation per label, supervised by custodian. Files of a label: ``try-1.in``,
``try-1.out``, ``try-1.err`` and so on for every try, ``data-file-schema.xml`` of the last one,
``custodian.json``, and ``label_failure.json`` if there is no result.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from otf_workflows.errors import OtfError
from otf_workflows.labelers.espresso_recipe import EspressoRecipe, check_numerics, command_of
from otf_workflows.labelers.external import ExternalLabeler
from otf_workflows.labelers.outcome import failed
from otf_workflows.types import FailureCause

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otf_workflows.labelers.base import Recipe, Resources
    from otf_workflows.labelers.espresso_run import PwRun
    from otf_workflows.schemas import Frame

INSTALL = "apt-get install quantum-espresso"


class EspressoLabeler(ExternalLabeler):
    """Computes labels with ``pw.x``."""

    recipe_model: ClassVar[type[Recipe]] = EspressoRecipe

    @contextmanager
    def running(
        self,
        frame: Frame,
        recipe: EspressoRecipe,
        *,
        key: str,
        directory: Path,
        resources: Resources,
    ) -> Iterator[PwRun]:
        """Give what supervision runs, in a scratch folder of its own."""
        from otf_workflows.labelers.espresso_run import PwRun

        scratch = _scratch(directory, resources, key)
        try:
            yield PwRun(frame, recipe, directory=directory, resources=resources, scratch=scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def refusal(
        self, frame: Frame, recipe: EspressoRecipe, resources: Resources
    ) -> tuple[str, str | None] | None:
        """Return why this frame cannot be labelled here, and what may help; None if it can."""
        try:
            self.find_data(recipe, frame.numbers, resources)
        except OtfError as error:
            return error.what, error.hint
        return None

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
        missing += self.data_problems(recipe, numbers, resources)
        if resources.scratch_dir and not Path(resources.scratch_dir).is_dir():
            missing.append(f"the scratch folder {resources.scratch_dir} does not exist")
        return missing

    def find_data(self, recipe: EspressoRecipe, numbers: list[int], resources: Resources) -> None:
        """Look for pseudopotentials; OtfError if one is missing."""
        recipe.files(numbers, resources.data_dir)


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
