"""What recipes of plane-wave and Gaussian codes share: functional, k-points, occupations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from otf_workflows.labelers.base import Recipe
from otf_workflows.labelers.espresso_recipe import kpoint_grid, tidy

if TYPE_CHECKING:
    from otf_workflows.schemas import Frame


class GridRecipe(Recipe):
    """Unpolarised PBE on a Γ-centred grid of k-points, with fixed or Fermi–Dirac occupations."""

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
        spin: str = "unpolarised",
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
        cell_A
            Cell as run, in which a grid is recognised as the spacing asked for.
        """
        found: dict[str, Any] = {"code": self.code, "functional": functional, "spin": spin}
        asked = self.kspacing_per_A
        if asked and (kpoints is None or kpoints == list(kpoint_grid(cell_A, asked))):
            found["kspacing_per_A"] = tidy(asked)
        else:
            found["kpoints"] = kpoints or list(self.kpoints or ())
        if electronic_temperature_K is not None:
            found["electronic_temperature_K"] = electronic_temperature_K
        return found

    def common_level_asked(self) -> dict[str, Any]:
        """Return the same for the recipe itself."""
        return self.common_level(
            kpoints=None,
            electronic_temperature_K=self.electronic_temperature_K,
            functional=self.functional,
        )
