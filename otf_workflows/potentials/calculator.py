"""An ASE calculator around any potential of this package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

if TYPE_CHECKING:
    from ase import Atoms

    from otf_workflows.potentials.base import Potential, Prediction


class PotentialCalculator(Calculator):
    """Energy, forces and stress of a :class:`~otf_workflows.potentials.base.Potential`.

    Attributes
    ----------
    prediction
        The latest prediction, with novelty where the potential knows it; None before.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 (ASE's)

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        self.potential = potential
        self.prediction: Prediction | None = None

    def calculate(  # type: ignore[override]
        self,
        atoms: Atoms,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Compute everything at once; ASE decides when.

        Raises
        ------
        PotentialError
            If the potential has no answer for this structure.
        """
        super().calculate(atoms, properties or ["energy"], system_changes)
        prediction = self.potential.predict(atoms)
        results: dict[str, Any] = {
            "energy": prediction.energy_eV,
            "free_energy": prediction.energy_eV,
            "forces": prediction.forces_eV_A,
            "stress": full_3x3_to_voigt_6_stress(prediction.stress_eV_A3),
        }
        self.prediction, self.results = prediction, results
