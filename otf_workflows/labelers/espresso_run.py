"""One label by ``pw.x``, try by try, in the terms of supervision."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from otf_workflows.labelers import espresso_failures as failures
from otf_workflows.labelers.espresso_files import PREFIX, XML_NAME, read_output, write_input
from otf_workflows.labelers.espresso_recipe import EspressoRecipe, check_numerics, command_of
from otf_workflows.labelers.external import LabelRun, UnreadableOutput
from otf_workflows.labelers.outcome import Diagnosis, disk_is_full
from otf_workflows.types import FailureCause

if TYPE_CHECKING:
    from pathlib import Path

    from otf_workflows.labelers.base import Resources
    from otf_workflows.schemas import Frame


class PwRun(LabelRun):
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
        super().__init__(frame, recipe, directory=directory, resources=resources)
        self.scratch = scratch

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
        return [*command_of(self.resources), "-in", f"try-{number}.in"]

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
            output = read_output(text, xml, recipe=self.recipe)
        except UnreadableOutput as error:
            if disk_is_full(self.scratch, self.directory):
                return failures.full_disk(str(error))
            return Diagnosis(FailureCause.PARSE, str(error))
        return self.judge(output)

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
