"""Labels from VASP (Kresse & Furthmüller, 1996, 10.1103/PhysRevB.54.11169).

Inputs are those of atomate2's makers, corrections those of custodian's handlers as far as they are
numerics. Supervision is the one of all our codes instead of atomate2's ``run_vasp``: a time limit
over all tries, no process that outlives its worker, and a record of every try. Files of a label:
VASP's own, those of failed tries in ``error.*.tar.gz``, ``atom_order.json``, ``custodian.json``,
and ``label_failure.json`` if there is no result.

The energy of a label is the one extrapolated to zero smearing, as in MPtrj and MatPES, without
MP2020 corrections; see :mod:`otf_workflows.labelers.vasp_recipe`.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from otf_workflows.errors import InputError
from otf_workflows.labelers.external import ExternalLabeler
from otf_workflows.labelers.vasp_recipe import VaspRecipe, check_numerics
from otf_workflows.schemas import Frame

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otf_workflows.labelers.base import Recipe, Resources
    from otf_workflows.labelers.vasp_run import VaspRun

POTCAR_HINT = (
    "unpack your licensed potentials and run: pmg config -p UNPACKED POTCARS && "
    "pmg config --add PMG_VASP_PSP_DIR POTCARS; or give data_dir of vasp in the site file"
)

EXECUTABLES = ("vasp", "vasp_std", "vasp_gam", "vasp_ncl")
"""How the programs of VASP end, whatever a cluster puts before."""


class VaspLabeler(ExternalLabeler):
    """Computes labels with VASP.

    Parameters
    ----------
    potcar_spec
        Write the names of potentials instead of the licensed files; for tests with a stand-in.
    """

    recipe_model: ClassVar[type[Recipe]] = VaspRecipe

    def __init__(self, *, potcar_spec: bool = False) -> None:
        self.potcar_spec = potcar_spec

    @contextmanager
    def running(
        self, frame: Frame, recipe: VaspRecipe, *, key: str, directory: Path, resources: Resources
    ) -> Iterator[VaspRun]:
        """Give what supervision runs; after success, remove the potentials."""
        from otf_workflows.labelers.vasp_run import VaspRun

        del key
        yield VaspRun(
            frame, recipe, directory=directory, resources=resources, potcar_spec=self.potcar_spec
        )
        # Megabytes, licensed, and the same for every label; its titles are in vasprun.xml.
        (directory / "POTCAR").unlink(missing_ok=True)

    def refusal(
        self, frame: Frame, recipe: VaspRecipe, resources: Resources
    ) -> tuple[str, str | None] | None:
        """Return why this frame cannot be labelled here, and what may help; None if it can."""
        missing = [*recipe.problems(frame), *self._missing_potcars(resources, frame, recipe)]
        return ("; ".join(missing), POTCAR_HINT) if missing else None

    def check_numerics(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Return numerical settings, checked; InputError for physics and impossible values."""
        return check_numerics(changes)

    def check(self, resources: Resources, numbers: list[int], recipe: VaspRecipe) -> list[str]:
        """Return what is missing on this machine for these elements, in sentences."""
        from otf_workflows.labelers.vasp_run import command_of

        words = command_of(resources)
        programs = {words[0], *(word for word in words if Path(word).name.endswith(EXECUTABLES))}
        advice = (
            "load its module (module load vasp), or correct the command of vasp in the site file"
        )
        missing = [
            f"{program} is not on the PATH: {advice}"
            for program in sorted(programs)
            if shutil.which(program) is None
        ]
        frame = Frame(numbers=numbers, cell_A=[[0.0] * 3] * 3, positions_A=[])
        missing += recipe.problems(frame) or [
            f"{sentence}: {POTCAR_HINT}"
            for sentence in self._missing_potcars(resources, frame, recipe)
        ]
        return missing

    def _missing_potcars(self, resources: Resources, frame: Frame, recipe: VaspRecipe) -> list[str]:
        """Return which potentials are not on this machine, in one sentence; they are read."""
        if self.potcar_spec:
            return []
        from pymatgen.core import SETTINGS
        from pymatgen.io.vasp.inputs import PotcarSingle

        from otf_workflows.labelers.vasp_run import POTCAR_FOLDER, potcars_in

        absent, other = [], []
        with potcars_in(resources.data_dir):
            folder = SETTINGS.get(POTCAR_FOLDER)
            if folder is None:
                return [f"pymatgen does not know where VASP's potentials are ({POTCAR_FOLDER})"]
            try:
                names = recipe.potcar_symbols(frame.numbers).values()
            except InputError:
                return []  # said by recipe.problems
            for name in names:
                try:
                    found = PotcarSingle.from_symbol_and_functional(name, recipe.family)
                except (OSError, ValueError):
                    absent.append(name)
                    continue
                other += wrong_titel(found.TITEL, name, recipe.family)
        if absent:
            other.append(
                f"there is no readable {recipe.family} potential {', '.join(absent)} in {folder}"
            )
        return other


def wrong_titel(titel: str, name: str, family: str) -> list[str]:
    """Return why the potential of a file is not the one of this family, in at most one sentence."""
    from otf_workflows.labelers.vasp_level import known_titels, plain_titel

    wanted = known_titels(family)[name][0]
    if plain_titel(titel) == wanted:
        return []
    return [f"the potential {name} is {titel!r}, not {wanted} of {family}"]
