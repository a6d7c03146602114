"""Labels from GPAW with plane waves and PAW (Mortensen et al., 2024, 10.1063/5.0182685).

GPAW runs outside this process: ``command`` of the site file is a Python that has it, and executes
``gpaw_runner.py``. Results come back as JSON, settings as run from GPAW's own text output, in the
format of version 26.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field

from otf_workflows.errors import InputError
from otf_workflows.labelers import gpaw_runner
from otf_workflows.labelers.cp2k_recipe import VALENCE
from otf_workflows.labelers.espresso_recipe import Spin, all_symbols, symbols_of, tidy
from otf_workflows.labelers.external import (
    ExternalLabeler,
    ExternalRun,
    Mark,
    Output,
    UnreadableOutput,
    command_of,
    kelvin,
)
from otf_workflows.labelers.grid_recipe import GridRecipe, moments_of_elements
from otf_workflows.types import FailureCause

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.labelers.base import Recipe, Resources
    from otf_workflows.schemas import Frame

RUNNER = "gpaw_runner.py"
CHECK_SECONDS = 120.0


class GpawRecipe(GridRecipe):
    """Level of theory of GPAW: plane waves, PAW data sets of gpaw-data 1.2.1."""

    code: Literal["gpaw"] = Field("gpaw", description="GPAW, plane waves.")
    cutoff_eV: float = Field(ge=150, le=2000, description="Cut-off of wave functions (eV).")
    density_threshold: float = Field(
        1e-6, ge=1e-10, le=1e-3, description="Change of the density at which the SCF stops (e/e)."
    )

    def level_of_theory(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Return what defines the results for these elements; numerics are left out."""
        known = data_sets()
        symbols = symbols_of(numbers)
        if unknown := [symbol for symbol in symbols if symbol not in known]:
            raise InputError(f"gpaw-data has no PBE data set for {', '.join(unknown)}")
        return {
            **self.common_level_asked(numbers),
            "cutoff_eV": tidy(self.cutoff_eV),
            "density_threshold": tidy(self.density_threshold),
            "data_sets_md5": {symbol: known[symbol] for symbol in symbols},
        }

    def n_electrons(self, numbers: Sequence[int]) -> float:
        """Return about the number of valence electrons (that of GTH potentials), for the cost."""
        return float(sum(VALENCE.get(symbol, 10) for symbol in all_symbols(numbers)))

    def problems(self, frame: Frame) -> list[str]:
        """Return what makes this recipe impossible for a frame, in sentences."""
        known = data_sets()
        if unknown := [s for s in symbols_of(frame.numbers) if s not in known]:
            return [f"gpaw-data has no PBE data set for {', '.join(unknown)}"]
        if sum(frame.numbers) % 2 and self.electronic_temperature_K is None:
            return ["the number of electrons is odd: give electronic_temperature_K"]
        return self.spin_problems(frame.numbers)


class GpawNumerics(BaseModel):
    """All settings that a retry or a person may change without touching the physics."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    maxiter: int = Field(150, ge=1, le=2000, description="Most SCF iterations.")
    mixing_beta: float | None = Field(
        None, gt=0, le=1, description="Share of the new density; none: GPAW's own mixer."
    )
    eigensolver: Literal["ppcg", "davidson", "rmm-diis"] = Field("ppcg", description="Eigensolver.")


class GpawRun(ExternalRun):
    """One label by GPAW."""

    program = "python"
    numerics_model = GpawNumerics
    marks: ClassVar[tuple[Mark, ...]] = (
        (
            r"KohnShamConvergenceError|ConvergenceError",
            FailureCause.SCF,
            "the SCF did not converge",
        ),
        (r"AtomsTooClose|Atoms too close", FailureCause.GEOMETRY, "atoms are too close for GPAW"),
        (
            r"No module named '(?:gpaw|ase)'|_gpaw.*cannot open shared object",
            FailureCause.NODE,
            "the environment of {program} has no GPAW",
        ),
        (
            r"(?:FileNotFoundError: )(Could not find required PAW .*)",
            FailureCause.INPUT,
            "GPAW refused its input",
        ),
    )
    ladder: ClassVar[dict[FailureCause, tuple[dict[str, Any], ...]]] = {
        FailureCause.SCF: (
            {"mixing_beta": 0.05, "maxiter": 300},
            {"mixing_beta": 0.02, "maxiter": 500, "eigensolver": "davidson"},
        ),
        FailureCause.KILLED: ({},),
        FailureCause.UNKNOWN: ({},),
    }
    careful: ClassVar[dict[str, Any]] = {"maxiter": max}

    def write(self, numerics: dict[str, Any], *, number: int) -> list[str]:
        """Write the task of a try and return the arguments of the command."""
        from ase.units import kB

        frame, recipe = self.frame, self.recipe
        parameters: dict[str, Any] = {
            "xc": recipe.functional,
            "kpts": {"size": recipe.grid(frame.cell_A), "gamma": True},
            # Time reversal only: frames of MD have no symmetry.
            "symmetry": {"point_group": False},
            "occupations": {"name": "fixed-uniform"}
            if recipe.electronic_temperature_K is None
            else {"name": "fermi-dirac", "width": recipe.electronic_temperature_K * kB},
            "convergence": {"density": recipe.density_threshold},
            "maxiter": numerics["maxiter"],
            "eigensolver": {"name": numerics["eigensolver"]},
        }
        if numerics["mixing_beta"] is not None:
            parameters["mixer"] = {"backend": "pulay", "beta": numerics["mixing_beta"],
                                   "nmaxold": 5, "weight": 50.0}  # fmt: skip
        task = {
            "numbers": frame.numbers,
            "cell_A": frame.cell_A,
            "positions_A": frame.positions_A,
            "moments_muB": recipe.start_moments(frame.numbers)
            if recipe.spin == Spin.COLLINEAR
            else None,
            "cutoff_eV": recipe.cutoff_eV,
            "parameters": parameters,
            "data_dir": self.resources.data_dir,
            "txt": f"try-{number}.txt",
            "result": f"try-{number}.result.json",
        }
        (self.directory / f"try-{number}.json").write_text(json.dumps(task, indent=1))
        # A copy: beside our own modules it would import those named like others.
        shutil.copyfile(gpaw_runner.__file__, self.directory / RUNNER)
        return [RUNNER, f"try-{number}.json"]

    def read(self, number: int) -> Output:
        """Read a finished try."""
        text = (self.directory / f"try-{number}.txt").read_text(errors="replace")
        found = json.loads((self.directory / f"try-{number}.result.json").read_text())
        cell_A = np.array(found["cell_A"])
        moments = found.get("magmoms_muB")
        return Output(
            energy_eV=found["energy_eV"],
            forces_eV_A=np.array(found["forces_eV_A"]),
            stress_eV_A3=np.array(found["stress_eV_A3"]),
            numbers=found["numbers"],
            cell_A=cell_A,
            positions_A=np.array(found["positions_A"]),
            settings=read_settings(text, self.recipe, cell_A),
            magmoms_muB=None if moments is None else np.array(moments),
        )


class GpawLabeler(ExternalLabeler):
    """Computes labels with GPAW."""

    recipe_model: ClassVar[type[Recipe]] = GpawRecipe
    run_model = GpawRun
    install = "pip install gpaw gpaw-data in an environment of its own"

    def find_data(self, recipe: GpawRecipe, numbers: list[int], resources: Resources) -> None:  # noqa: ARG002
        """Check the recipe's data sets against our list; whether GPAW has them, the run says."""
        recipe.level_of_theory(numbers)

    def check(self, resources: Resources, numbers: list[int], recipe: Any) -> list[str]:
        """Return what is missing on this machine for these elements, in sentences."""
        missing = super().check(resources, numbers, recipe)
        return missing or _ask_gpaw(resources, recipe.level_of_theory(numbers)["data_sets_md5"])


@lru_cache(maxsize=1)
def data_sets() -> dict[str, str]:
    """Return element → checksum of its PAW data set in gpaw-data 1.2.1."""
    return yaml.safe_load(Path(__file__).with_name("gpaw_data.yaml").read_text())


def read_settings(text: str, recipe: GpawRecipe, cell_A: np.ndarray) -> dict[str, Any]:
    """Return the level of theory that GPAW's text output says was computed.

    Raises
    ------
    UnreadableOutput
        If something is missing.
    """
    from ase.units import kB

    size = json.loads(_one(text, r"Monkhorst-Pack size: (\[.*?\])"))
    shift = json.loads(_one(text, r"Monkhorst-Pack shift: (\[.*?\])"))
    # An even grid of Monkhorst and Pack leaves Γ out unless it is shifted.
    on_gamma = np.allclose(shift, [0.0 if n % 2 else 0.5 / n for n in size], atol=1e-6)
    width = re.search(r"Fermi-Dirac: *\n +width: +(\S+)", text)
    temperature = recipe.electronic_temperature_K if width else None
    if not width and "Fixed-uniform occupations" not in text:
        raise UnreadableOutput("the output names other occupations")
    # GPAW prints four decimals of the width.
    if width and f"{(temperature or 0) * kB:.4f}" != width.group(1):
        temperature = kelvin(float(width.group(1)))
    spins = _one(text, r"Spin-components: (\d)")
    return {
        **recipe.common_level(
            kpoints=size if on_gamma else f"{size} shifted by {shift}",
            electronic_temperature_K=temperature,
            functional=_one(text, r"xc functional:\n +name: (\S+)"),
            spin=Spin.UNPOLARISED if spins == "1" else Spin.COLLINEAR,
            moments_muB=_start_moments(text),
            cell_A=cell_A,
        ),
        "cutoff_eV": tidy(float(_one(text, r"Cutoff: (\S+) eV"))),
        "density_threshold": tidy(
            float(_one(text, r"\[dens\]ity change: (\S+) electrons / valence"))
        ),
        "data_sets_md5": dict(
            sorted(
                re.findall(r"^  ([A-Z][a-z]?):\n    name: .*\n    id: +(\S+)", text, re.MULTILINE)
            )
        ),
    }


def _ask_gpaw(resources: Resources, wanted: dict[str, str]) -> list[str]:
    command = command_of(resources, GpawRun.program)
    place = {"GPAW_SETUP_PATH": resources.data_dir} if resources.data_dir else {}
    try:
        # A copy, for the same reason as in the folder of a label.
        with tempfile.TemporaryDirectory() as folder:
            runner = shutil.copyfile(gpaw_runner.__file__, Path(folder) / RUNNER)
            run = subprocess.run(
                [*command, str(runner), "--check", *wanted],
                capture_output=True,
                text=True,
                timeout=CHECK_SECONDS,
                check=True,
                env={**os.environ, **place},
            )
        found = json.loads(run.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        last = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1:]
        return [
            (
                f"GPAW does not run with '{' '.join(command)}' ({''.join(last)}): "
                f"{GpawLabeler.install}, and name its python in the site file"
            )
        ]
    return [
        f"the PAW data set of {symbol} "
        + ("is missing" if found[symbol] is None else "is not that of gpaw-data 1.2.1")
        + ": pip install gpaw-data==1.2.1, or give data_dir of gpaw in the site file"
        for symbol, md5 in wanted.items()
        if found[symbol] != md5
    ]


def _start_moments(text: str) -> dict[str, Any]:
    """Return element → moment at the start (μB), from the table of atoms."""
    rows = re.findall(
        r"^\| +\d+ \| +([A-Z][a-z]?) \|.*\( *\S+, +\S+, +(\S+)\) \|$", text, re.MULTILINE
    )
    return moments_of_elements([s for s, _ in rows], [float(moment) for _, moment in rows])


def _one(text: str, pattern: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise UnreadableOutput(f"nothing matches {pattern!r}")
    return found.group(1)
