"""A calculator that fails on purpose, to test how a campaign lives with failed labels.

In a campaign file::

    labels:
      code: ase
      calculator: otf_workflows.testing.labelers.FailingCalculator
      kwargs: {calculator: lj, share: 0.2}
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from ase.calculators.calculator import Calculator, all_changes

from otf_workflows.errors import InputError
from otf_workflows.hashing import structure_hash
from otf_workflows.labelers.ase_calculator import find_callable
from otf_workflows.schemas import Frame

WAYS = ("raise", "nan")


class FailingCalculator(Calculator):
    """Passes structures on to another calculator, but fails for a fixed share of them.

    The same structure always meets the same fate, on every machine: it is decided by its hash.

    Parameters
    ----------
    calculator
        ``emt``, ``lj``, ``teacher`` or an import path.
    kwargs
        Arguments of that calculator.
    share
        Share of structures that fail, 0 to 1.
    how
        ``raise`` an exception, or return forces that are not numbers (``nan``).
    salt
        Another salt, another choice of structures.
    """

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012 - as ASE declares it

    def __init__(
        self,
        *,
        calculator: str = "lj",
        kwargs: dict[str, Any] | None = None,
        share: float = 0.2,
        how: str = "raise",
        salt: str = "",
    ) -> None:
        super().__init__()
        if how not in WAYS or not 0 <= share <= 1:
            raise InputError(f"a calculator cannot fail for a share of {share} by {how!r}")
        self.inner = find_callable(calculator)(**(kwargs or {}))
        self.share = share
        self.how = how
        self.salt = salt

    def fails(self, frame: Frame) -> bool:
        """Return whether this structure is one of those that fail."""
        digest = hashlib.sha256(f"{self.salt}:{structure_hash(frame)}".encode()).digest()
        return int.from_bytes(digest[:6]) < self.share * 2**48

    def calculate(
        self,
        atoms: Any = None,
        properties: Any = ("energy",),
        system_changes: Any = all_changes,
    ) -> None:
        """Compute, or fail."""
        super().calculate(atoms, properties, system_changes)
        fails = self.fails(Frame.from_atoms(atoms))
        if fails and self.how == "raise":
            raise RuntimeError("this structure was chosen to fail")
        for name in self.implemented_properties:
            self.results[name] = self.inner.get_property(name, atoms)
        if fails:
            self.results["forces"] = np.full((len(atoms), 3), np.nan)
