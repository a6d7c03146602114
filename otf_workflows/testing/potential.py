"""A Lennard-Jones stand-in for a machine-learned potential: milliseconds, no torch.

Its uncertainty is synthetic but behaves as the real one must: it is zero at rest, grows with
thermal motion, and is deterministic. The default parameters describe fcc copper (a₀ = 3.62 Å),
so that molecular dynamics with it is stable up to about 1000 K.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from otf_workflows.errors import InputError
from otf_workflows.potentials.base import Prediction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase import Atoms
    from ase.calculators.calculator import Calculator

N_FEATURES = 8
"""Length of the structure-mean features."""


@dataclass(frozen=True)
class ToyPotential:
    """Lennard-Jones between all atoms, whatever their element, with a synthetic uncertainty.

    Attributes
    ----------
    epsilon_eV
        Depth of the pair potential (eV).
    length_A
        Distance where the pair potential is zero (Å).
    sigma_floor_eV_A
        Raw uncertainty of an atom without force (eV/Å).
    sigma_per_force
        Raw uncertainty added per force on the atom (dimensionless).
    name
        Registry name.
    """

    epsilon_eV: float = 0.4
    length_A: float = 2.34
    sigma_floor_eV_A: float = 0.0
    sigma_per_force: float = 0.1
    name: str = "toy-lj"

    def predict(self, atoms: Atoms, *, uncertainty: bool = False) -> Prediction:
        """Return energy, forces and stress; synthetic σ and novelty if asked for."""
        image = atoms.copy()
        image.calc = self.calculator()
        forces = image.get_forces()
        size = np.linalg.norm(forces, axis=1)
        return Prediction(
            energy_eV=float(image.get_potential_energy()),
            forces_eV_A=forces,
            stress_eV_A3=image.get_stress(voigt=False),
            sigma_eV_A=self.sigma_floor_eV_A + self.sigma_per_force * size if uncertainty else None,
            novelty=size if uncertainty else None,
        )

    def predict_many(
        self, structures: Sequence[Atoms], *, uncertainty: bool = False
    ) -> list[Prediction]:
        """Return predictions for many structures, one after the other."""
        return [self.predict(atoms, uncertainty=uncertainty) for atoms in structures]

    def fit_uncertainty(
        self,
        structures: Sequence[Atoms],
        forces_eV_A: Sequence[np.ndarray],
        *,
        seed: int = 0,
    ) -> ToyPotential:
        """Return a copy whose σ has the size of the errors on these labels.

        ``seed`` is that of the real thing; nothing is random here.
        """
        del seed
        predicted = np.concatenate([p.forces_eV_A for p in self.predict_many(structures)])
        error = np.linalg.norm(predicted - np.concatenate(list(forces_eV_A)), axis=1)
        size = np.linalg.norm(predicted, axis=1)
        return replace(self, sigma_per_force=float(error.mean() / max(size.mean(), 1e-12)))

    def features(self, structures: Sequence[Atoms]) -> np.ndarray:
        """Return smeared histograms of neighbour distances, shape (n_structures, 8)."""
        from ase.neighborlist import neighbor_list

        centres_A = self.length_A * np.linspace(0.9, 2.1, N_FEATURES)
        width_A = centres_A[1] - centres_A[0]
        rows = []
        for atoms in structures:
            distances_A = neighbor_list("d", atoms, cutoff=2.3 * self.length_A)
            weights = np.exp(-(((distances_A[:, None] - centres_A) / width_A) ** 2))
            rows.append(weights.sum(axis=0) / len(atoms))
        return np.array(rows).reshape(-1, N_FEATURES)

    def calculator(self) -> Calculator:
        """Return ASE's Lennard-Jones calculator with these parameters."""
        from ase.calculators.lj import LennardJones

        return LennardJones(
            sigma=self.length_A, epsilon=self.epsilon_eV, rc=2.5 * self.length_A, smooth=True
        )

    def dump(self) -> bytes:
        """Return the parameters as JSON."""
        return json.dumps(asdict(self), sort_keys=True).encode()


def load(name: str = "toy-lj", blob: bytes | None = None, *, device: str = "cpu") -> ToyPotential:
    """Return the default potential, or the one that was dumped.

    Raises
    ------
    InputError
        If the blob is not what :meth:`ToyPotential.dump` wrote.
    """
    del device
    if blob is None:
        return ToyPotential(name=name)
    try:
        return ToyPotential(**json.loads(blob))
    except (ValueError, TypeError) as error:
        raise InputError(f"These {len(blob)} bytes are not a dumped toy potential.") from error
