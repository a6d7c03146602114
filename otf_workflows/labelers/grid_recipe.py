"""What recipes of plane-wave and Gaussian codes share: functional, k-points, occupations, spin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from otf_workflows.labelers.base import Recipe
from otf_workflows.labelers.espresso_recipe import Spin, all_symbols, kpoint_grid, symbols_of, tidy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.schemas import Frame


class GridRecipe(Recipe):
    """PBE, Γ-centred k-points, fixed or Fermi–Dirac occupations, with or without collinear spin."""

    functional: Literal["PBE"] = Field("PBE", description="Density functional.")
    kpoints: tuple[int, int, int] | None = Field(
        None, description="Γ-centred grid; either this or kspacing_per_A."
    )
    kspacing_per_A: float | None = Field(
        None, ge=0.05, le=2.0, description="Largest distance of k-points (1/Å, with 2π)."
    )
    electronic_temperature_K: int | None = Field(
        None, ge=10, le=20000, description="Of Fermi–Dirac occupations (K); none: fixed ones."
    )
    spin: Spin = Field(Spin.UNPOLARISED, description="unpolarised or collinear.")
    starting_moments_muB: dict[str, float] = Field(
        default_factory=dict,
        description="Element → moment of each of its atoms at the start (μB), for collinear spin.",
    )

    @field_validator("kpoints")
    @classmethod
    def _grid(cls, value: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        if value is not None and not all(1 <= n <= 64 for n in value):
            msg = f"every number of k-points must be from 1 to 64, not {list(value)}"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _one_grid(self) -> Self:
        if (self.kpoints is None) == (self.kspacing_per_A is None):
            msg = "give either kpoints or kspacing_per_A"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _whole_spin(self) -> Self:
        if (self.spin == Spin.COLLINEAR) != bool(self.starting_moments_muB):
            msg = "spin: collinear and starting_moments_muB belong together"
        elif self.spin == Spin.COLLINEAR and self.electronic_temperature_K is None:
            msg = "spin: collinear needs electronic_temperature_K, or the moment would be fixed"
        elif any(not -10 <= moment <= 10 for moment in self.starting_moments_muB.values()):
            msg = "starting_moments_muB must be from -10 to 10"
        else:
            return self
        raise ValueError(msg)

    def start_moments(self, numbers: Sequence[int]) -> list[float]:
        """Return the moment of every atom at the start (μB); 0 where the recipe names none."""
        return [self.starting_moments_muB.get(symbol, 0.0) for symbol in all_symbols(numbers)]

    def spin_problems(self, numbers: Sequence[int]) -> list[str]:
        """Return what is wrong with the moments for these elements, in sentences."""
        return [
            f"starting_moments_muB names {symbol}, which is not in the structure"
            for symbol in sorted(set(self.starting_moments_muB) - set(symbols_of(numbers)))
        ]

    def grid(self, cell_A: Any) -> tuple[int, int, int]:
        """Return the grid of k-points for a cell."""
        return self.kpoints or kpoint_grid(cell_A, self.kspacing_per_A or 1.0)

    def n_kpoints(self, frame: Frame) -> int:
        """Return the number of k-points computed: time reversal is used, symmetry is not."""
        grid = self.grid(frame.cell_A)
        own_partners = int(np.prod([1 if n % 2 else 2 for n in grid]))
        return (int(np.prod(grid)) + own_partners) // 2

    def common_level(
        self,
        *,
        kpoints: Any,
        electronic_temperature_K: int | None,
        functional: str = "PBE",
        spin: str = Spin.UNPOLARISED,
        moments_muB: dict[str, Any] | None = None,
        cell_A: Any = None,
    ) -> dict[str, Any]:
        """Return the part of a level of theory that all these codes have.

        Parameters
        ----------
        kpoints
            Grid as run, or whatever an output has in its place; None to take the recipe's.
        electronic_temperature_K
            Of the occupations as run (K), None for fixed ones.
        functional, spin
            As run.
        moments_muB
            Element → moment at the start (μB) as run; only read for collinear spin.
        cell_A
            Cell as run, in which a grid is recognised as the spacing asked for.
        """
        found: dict[str, Any] = {"code": self.code, "functional": functional, "spin": str(spin)}
        asked = self.kspacing_per_A
        if asked and (kpoints is None or kpoints == list(kpoint_grid(cell_A, asked))):
            found["kspacing_per_A"] = tidy(asked)
        else:
            found["kpoints"] = kpoints or list(self.kpoints or ())
        if electronic_temperature_K is not None:
            found["electronic_temperature_K"] = electronic_temperature_K
        if spin == Spin.COLLINEAR:
            found["starting_moments_muB"] = dict(sorted((moments_muB or {}).items()))
        return found

    def common_level_asked(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Return the same for the recipe itself, with atoms of these elements."""
        return self.common_level(
            kpoints=None,
            electronic_temperature_K=self.electronic_temperature_K,
            functional=self.functional,
            spin=self.spin,
            moments_muB={s: self.starting_moments_muB.get(s, 0.0) for s in symbols_of(numbers)},
        )


def moments_of_elements(symbols: Sequence[str], moments_muB: Sequence[float]) -> dict[str, Any]:
    """Return element → moment at the start; a list if atoms of one element had several.

    Parameters
    ----------
    symbols
        Element of every atom, as in an output.
    moments_muB
        Moment of every atom at the start (μB), as in the output.
    """
    found: dict[str, Any] = {}
    for symbol in sorted(set(symbols)):
        rows = zip(symbols, moments_muB, strict=True)
        own = sorted({tidy(moment) for name, moment in rows if name == symbol})
        found[symbol] = own[0] if len(own) == 1 else own
    return found
