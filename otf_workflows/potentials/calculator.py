"""An ASE calculator around any potential of this package."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

if TYPE_CHECKING:
    from ase import Atoms

    from otf_workflows.potentials.base import Potential, Prediction


class PredictionCalculator(Calculator):
    """Energy, forces and stress of predictions.

    Attributes
    ----------
    prediction
        The latest prediction, with novelty where the potential knows it; None before.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 (ASE's)

    def __init__(self) -> None:
        super().__init__()
        self.prediction: Prediction | None = None

    @abstractmethod
    def evaluate(self, atoms: Atoms) -> tuple[Prediction, float]:
        """Return a prediction, and the energy that its forces belong to (eV).

        Raises
        ------
        PotentialError
            If the potential has no answer for this structure.
        """

    def calculate(  # type: ignore[override]
        self,
        atoms: Atoms,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Compute everything at once; ASE decides when. Raises what :meth:`evaluate` raises."""
        super().calculate(atoms, properties or ["energy"], system_changes)
        prediction, energy_eV = self.evaluate(atoms)
        results: dict[str, Any] = {
            "energy": energy_eV,
            "free_energy": energy_eV,
            "forces": prediction.forces_eV_A,
            "stress": full_3x3_to_voigt_6_stress(prediction.stress_eV_A3),
        }
        self.prediction, self.results = prediction, results


class PotentialCalculator(PredictionCalculator):
    """Energy, forces and stress of a :class:`~otf_workflows.potentials.base.Potential`."""

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        self.potential = potential

    def evaluate(self, atoms: Atoms) -> tuple[Prediction, float]:
        """Return the prediction of the potential, and its energy (eV)."""
        prediction = self.potential.predict(atoms)
        return prediction, prediction.energy_eV
