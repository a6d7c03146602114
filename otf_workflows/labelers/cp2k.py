"""Labels from CP2K's Quickstep (Kühne et al., 2020, 10.1063/5.0007045), with k-points.

The input is our own: atomate2's static maker brings the settings of large insulating cells (165 s
for two atoms of silicon) and needs basis sets converted by ``pmg config`` on every machine.
custodian runs the program, but with our ladder: its own handlers for CP2K tighten EPS_DEFAULT and
the grid, which is another level of theory, and its ``Cp2kJob.terminate`` kills every CP2K on the
machine by name. An SCF that did not converge is only a warning to CP2K 2023.1, with exit status 0
and forces; here it is a failure.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from otf_workflows.errors import ConfigurationError, InputError
from otf_workflows.labelers import cp2k_files
from otf_workflows.labelers.espresso_recipe import all_symbols, symbols_of, tidy
from otf_workflows.labelers.external import ExternalLabeler, ExternalRun, Mark, Output
from otf_workflows.labelers.grid_recipe import GridRecipe
from otf_workflows.types import FailureCause

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.labelers.base import Recipe, Resources
    from otf_workflows.schemas import Frame

DATA_DIR = "/usr/share/cp2k"
"""Where Debian puts basis sets and potentials; ``CP2K_DATA_DIR`` and the site file come first."""

VALENCE = {
    symbol: int(electrons)
    for symbol, electrons in re.findall(
        r"([A-Z][a-z]?)(\d+)",
        "H1 He2 Li3 Be4 B3 C4 N5 O6 F7 Ne8 Na9 Mg10 Al3 Si4 P5 S6 Cl7 Ar8 K9 Ca10 Sc11 Ti12 V13 "
        "Cr14 Mn15 Fe16 Co17 Ni18 Cu11 Zn12 Ga13 Ge4 As5 Se6 Br7 Kr8 Rb9 Sr10 Y11 Zr12 Nb13 Mo14 "
        "Tc15 Ru16 Rh17 Pd18 Ag11 Cd12 In13 Sn4 Sb5 Te6 I7 Xe8 Cs9 Ba10 La11 Hf12 Ta13 W14 Re15 "
        "Os16 Ir17 Pt18 Au11 Hg12 Tl13 Pb4 Bi5 Po6 At7 Rn8",
    )
}
"""Valence electrons of the GTH-PBE potentials that CP2K takes by default (Krack, 2005,
10.1007/s00214-005-0655-y), so that recipes can be read where there is no CP2K."""


class Cp2kRecipe(GridRecipe):
    """Level of theory of CP2K: GPW with GTH potentials. Cut-offs in Ry, as in its own input."""

    code: Literal["cp2k"] = Field("cp2k", description="CP2K, Quickstep.")
    basis: str = Field(
        "DZVP-MOLOPT-SR-GTH", pattern=r"^[\w-]+$", description="Basis set in BASIS_MOLOPT."
    )
    cutoff_Ry: int = Field(400, ge=100, le=2000, description="Cut-off of the finest grid (Ry).")
    relative_cutoff_Ry: int = Field(
        60, ge=20, le=300, description="Cut-off under a Gaussian of exponent 1 (Ry)."
    )
    precision: float = Field(1e-12, ge=1e-16, le=1e-8, description="EPS_DEFAULT.")
    scf_threshold: float = Field(
        1e-7, ge=1e-10, le=1e-5, description="Change of the density at which the SCF stops."
    )

    def potential(self, symbol: str) -> str:
        """Return the name of the potential of an element."""
        if symbol not in VALENCE:
            raise InputError(f"CP2K's GTH-PBE potentials do not know {symbol}", where="labels.code")
        return f"GTH-PBE-q{VALENCE[symbol]}"

    def level(self, **found: Any) -> dict[str, Any]:
        """Return a level of theory; the recipe and the reader of outputs both build it here."""
        numbers = ("cutoff_Ry", "relative_cutoff_Ry")
        rounded = {name: tidy(found[name]) for name in numbers}
        # CP2K prints two digits of the precision and three of the threshold.
        rounded["precision"] = float(f"{found['precision']:.1e}")
        rounded["scf_threshold"] = float(f"{found['scf_threshold']:.2e}")
        return {**found, **rounded}

    def level_of_theory(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Return what defines the results for these elements; numerics are left out."""
        symbols = symbols_of(numbers)
        return self.level(
            **self.common_level_asked(),
            basis=dict.fromkeys(symbols, self.basis),
            potentials={s: [self.potential(s), float(VALENCE[s])] for s in symbols},
            cutoff_Ry=self.cutoff_Ry,
            relative_cutoff_Ry=self.relative_cutoff_Ry,
            precision=self.precision,
            scf_threshold=self.scf_threshold,
        )

    def n_electrons(self, numbers: Sequence[int]) -> float:
        """Return the number of valence electrons of these atoms, for the cost model."""
        return float(sum(VALENCE[symbol] for symbol in all_symbols(numbers)))

    def problems(self, frame: Frame) -> list[str]:
        """Return what makes this recipe impossible for a frame, in sentences."""
        if unknown := [s for s in symbols_of(frame.numbers) if s not in VALENCE]:
            return [f"CP2K's GTH-PBE potentials do not know {', '.join(unknown)}"]
        electrons = self.n_electrons(frame.numbers)
        if electrons % 2:
            return [f"{electrons:g} valence electrons are an odd number: this needs spin"]
        return []


class Cp2kNumerics(BaseModel):
    """All settings that a retry or a person may change without touching the physics."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_scf: int = Field(60, ge=1, le=2000, description="Most SCF iterations.")
    mixing_alpha: float = Field(0.4, gt=0, le=1, description="Share of the new density.")
    mixing_method: Literal["BROYDEN_MIXING", "PULAY_MIXING", "KERKER_MIXING"] = Field(
        "BROYDEN_MIXING", description="How densities are mixed."
    )
    mixing_history: int = Field(8, ge=1, le=50, description="Iterations remembered by the mixer.")


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
        (r"(?s)\[ABORT\](.*?)\n \*{20}", FailureCause.UNKNOWN, "{program} aborted"),
    )
    must_have: ClassVar[tuple[str, ...]] = (
        r"SCF run converged in",
        r"ENERGY\| Total FORCE_EVAL",
        r"ATOMIC FORCES in",
        r"STRESS\| Analytical",
        r"PROGRAM ENDED AT",
    )
    ladder: ClassVar[dict[FailureCause, tuple[dict[str, Any], ...]]] = {
        FailureCause.SCF: (
            {"mixing_alpha": 0.2, "max_scf": 120},
            {"mixing_alpha": 0.1, "max_scf": 200, "mixing_history": 12},
            {"mixing_method": "PULAY_MIXING", "mixing_alpha": 0.1, "max_scf": 200},
        ),
        FailureCause.KILLED: ({},),
        FailureCause.UNKNOWN: ({},),
    }
    careful: ClassVar[dict[str, Any]] = {"mixing_alpha": min, "max_scf": max, "mixing_history": max}

    def write(self, numerics: dict[str, Any], *, number: int) -> list[str]:
        """Write the input of a try and return the arguments of the command."""
        text = cp2k_files.write_input(
            self.frame,
            self.recipe,
            project=f"try-{number}",
            numerics=numerics,
            data_dir=data_dir_of(self.resources),
        )
        (self.directory / f"try-{number}.inp").write_text(text)
        return ["-i", f"try-{number}.inp"]

    def read(self, number: int) -> Output:
        """Read a finished try."""
        text = self.output_files(number)[0].read_text(errors="replace")
        return cp2k_files.read_output(text, self.recipe, self.frame)


class Cp2kLabeler(ExternalLabeler):
    """Computes labels with CP2K."""

    recipe_model: ClassVar[type[Recipe]] = Cp2kRecipe
    run_model = Cp2kRun
    install = "apt-get install --no-install-recommends cp2k cp2k-data"

    def find_data(self, recipe: Cp2kRecipe, numbers: list[int], resources: Resources) -> None:
        """Look for basis sets and potentials; OtfError if one is missing."""
        folder = data_dir_of(resources)
        for symbol in symbols_of(numbers):
            for file, name in (
                ("BASIS_MOLOPT", recipe.basis),
                ("GTH_POTENTIALS", recipe.potential(symbol)),
            ):
                if not (folder / file).is_file():
                    raise ConfigurationError(
                        f"{folder / file} does not exist",
                        hint=f"{self.install}, or give data_dir of cp2k in the site file",
                    )
                text = (folder / file).read_text(errors="replace")
                if not re.search(
                    rf"^ *{symbol} .*(?<!\S){re.escape(name)}(?!\S)", text, re.MULTILINE
                ):
                    raise InputError(f"{file} has no {name} for {symbol}", where="labels.basis")


def data_dir_of(resources: Resources) -> Path:
    """Return the folder of basis sets and potentials on this machine."""
    return Path(resources.data_dir or os.environ.get("CP2K_DATA_DIR") or DATA_DIR)
