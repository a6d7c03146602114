"""The level of theory of CP2K's Quickstep, by atomate2's input set, and what may change under it.

Inputs are those of atomate2's static maker with the recipe's own values in the places that it
leaves to its users, and :data:`CHANGES` over the rest; all other settings of the set are kept.
"""

from __future__ import annotations

import re
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from otf_workflows.errors import ConfigurationError, InputError
from otf_workflows.labelers.espresso_recipe import Spin, all_symbols, symbols_of, tidy
from otf_workflows.labelers.grid_recipe import GridRecipe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from atomate2.cp2k.sets.core import StaticSetGenerator

    from otf_workflows.schemas import Frame

CHANGES: dict[str, Any] = {"ot": False, "eps_pgf_orb": None}
"""What we change in atomate2's set beside the recipe's own values.

Orbital transformation cannot do k-points nor occupations other than 0 and 1. Overlaps are cut where
EPS_DEFAULT says, not at 1e-16, which takes twice the time (docs/explanation/level_of_theory.md)."""

INSTALL = "apt-get install --no-install-recommends cp2k cp2k-data"

BASIS_FILE = "BASIS_MOLOPT"
POTENTIAL_FILE = "GTH_POTENTIALS"
"""Files of CP2K's own data folder."""

N_GRIDS = 5
"""Levels of the multigrid in atomate2's set; the authors of the MOLOPT basis ask for them."""

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
        # CP2K prints two digits of the precisions and three of the threshold.
        for name in ("precision", "overlap_precision"):
            rounded[name] = float(f"{found[name]:.1e}")
        rounded["scf_threshold"] = float(f"{found['scf_threshold']:.2e}")
        return {**found, **rounded}

    def level_of_theory(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Return what defines the results for these elements; numerics are left out."""
        symbols = symbols_of(numbers)
        return self.level(
            **self.common_level_asked(numbers),
            basis=dict.fromkeys(symbols, self.basis),
            potentials={s: [self.potential(s), float(VALENCE[s])] for s in symbols},
            cutoff_Ry=self.cutoff_Ry,
            relative_cutoff_Ry=self.relative_cutoff_Ry,
            grid_levels=N_GRIDS,
            precision=self.precision,
            # CP2K's own rule for EPS_PGF_ORB.
            overlap_precision=self.precision**0.5,
            scf_threshold=self.scf_threshold,
        )

    def generator(
        self, numbers: Sequence[int], numerics: dict[str, Any], *, data_dir: Path
    ) -> StaticSetGenerator:
        """Return the generator of atomate2's static maker with this recipe in it, less k-points.

        Parameters
        ----------
        numbers
            Atomic numbers.
        numerics
            All numerical settings of a try, in the terms of :class:`Cp2kNumerics`.
        data_dir
            Folder of basis sets and potentials.

        Raises
        ------
        InputError
            If the folder lacks one of them.
        """
        with quiet():
            from atomate2.cp2k.sets.core import StaticSetGenerator

            generator = StaticSetGenerator()
        # Forces come back in the order of the input.
        generator.sort_structure = False
        # Its grids are reduced by the symmetry of the crystal, and then forces are not made whole.
        generator.config_dict = {**generator.config_dict, "KPOINTS": None}
        generator.user_input_settings = {
            **CHANGES,
            # Objects: names would be looked up in whatever folder pymatgen is configured for.
            "basis_and_potential": {s: self.data(s, data_dir) for s in symbols_of(numbers)},
            "xc_functionals": self.functional,
            "cutoff": self.cutoff_Ry,
            "rel_cutoff": self.relative_cutoff_Ry,
            "eps_default": self.precision,
            "eps_scf": self.scf_threshold,
            "spin_polarized": self.spin == Spin.COLLINEAR,
            "smearing": self.electronic_temperature_K is not None,
            "elec_temp": self.electronic_temperature_K,
            "multiplicity": self.multiplicity(numbers),
            "element_defaults": {
                symbol: {"magnetization": moment}
                for symbol, moment in self.starting_moments_muB.items()
            },
            "alpha": numerics["mixing_alpha"],
            "beta": numerics["mixing_beta"],
            "nbuffer": numerics["mixing_history"],
            "mixing_method": numerics["mixing_method"],
            "override_default_params": {
                "FORCE_EVAL": {
                    "DFT": {
                        "SCF": {
                            # A label must not depend on what lies in its folder.
                            "SCF_GUESS": "ATOMIC",
                            "MAX_SCF": numerics["max_scf"],
                            "CHOLESKY": numerics["cholesky"],
                        }
                    }
                }
            },
        }
        return generator

    def multiplicity(self, numbers: Sequence[int]) -> int:
        """Return the multiplicity at the start; smearing lets it change, from 1 it never does."""
        if self.spin == Spin.UNPOLARISED:
            return 1
        electrons = round(self.n_electrons(numbers))
        unpaired = min(round(abs(sum(self.start_moments(numbers)))), electrons)
        return unpaired + (electrons - unpaired) % 2 + 1

    def data(self, symbol: str, data_dir: Path) -> dict[str, Any]:
        """Return basis set and potential of an element, as pymatgen's objects.

        Raises
        ------
        ConfigurationError
            If the folder has no such file.
        InputError
            If the file has no such entry.
        """
        from pymatgen.io.cp2k.inputs import GaussianTypeOrbitalBasisSet, GthPotential

        found: dict[str, Any] = {"aux_basis": None}
        for key, kind, file, name in (
            ("basis", GaussianTypeOrbitalBasisSet, BASIS_FILE, self.basis),
            ("potential", GthPotential, POTENTIAL_FILE, self.potential(symbol)),
        ):
            entry = kind.from_str(find_entry(data_dir / file, symbol, name))
            # An entry has several names; the output shall print the one asked for.
            entry.name, entry.filename = name, str(data_dir / file)
            found[key] = entry
        return found

    def n_electrons(self, numbers: Sequence[int]) -> float:
        """Return the number of valence electrons of these atoms, for the cost model."""
        return float(sum(VALENCE[symbol] for symbol in all_symbols(numbers)))

    def problems(self, frame: Frame) -> list[str]:
        """Return what makes this recipe impossible for a frame, in sentences."""
        if unknown := [s for s in symbols_of(frame.numbers) if s not in VALENCE]:
            return [f"CP2K's GTH-PBE potentials do not know {', '.join(unknown)}"]
        electrons = self.n_electrons(frame.numbers)
        if electrons % 2 and self.spin == Spin.UNPOLARISED:
            return [f"{electrons:g} valence electrons are an odd number: give spin: collinear"]
        return self.spin_problems(frame.numbers)


class Cp2kNumerics(BaseModel):
    """All settings that a retry or a person may change without touching the physics."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_scf: int = Field(60, ge=1, le=2000, description="Most SCF iterations.")
    mixing_alpha: float = Field(0.4, gt=0, le=1, description="Share of the new density.")
    mixing_method: Literal["BROYDEN_MIXING", "PULAY_MIXING", "KERKER_MIXING"] = Field(
        "BROYDEN_MIXING", description="How densities are mixed."
    )
    mixing_beta: float = Field(0.01, ge=0, le=10, description="Damping of long waves of density.")
    mixing_history: int = Field(8, ge=1, le=50, description="Iterations remembered by the mixer.")
    cholesky: Literal["RESTORE", "INVERSE", "REDUCE"] = Field(
        "RESTORE", description="How the overlap matrix is factorised."
    )


def find_entry(path: Path, symbol: str, name: str) -> str:
    """Return the entry of an element in one of CP2K's data files.

    Raises
    ------
    ConfigurationError
        If there is no such file.
    InputError
        If it has no such entry.
    """
    from pymatgen.io.cp2k.utils import chunk

    if not path.is_file():
        raise ConfigurationError(
            f"{path} does not exist", hint=f"{INSTALL}, or give data_dir of cp2k in the site file"
        )
    for entry in chunk(path.read_text(errors="replace")):
        words = entry.partition("\n")[0].split()
        if words[:1] == [symbol] and name in words[1:]:
            return entry
    raise InputError(f"{path.name} has no {name} for {symbol}", where="labels.basis")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence pymatgen's warnings that names of basis sets were not looked up by it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
