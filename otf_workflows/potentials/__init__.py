"""Machine-learned potentials: one protocol, a registry, CHGNet. Importing it loads no torch."""

from otf_workflows.potentials.base import Potential, PotentialError, Prediction
from otf_workflows.potentials.registry import (
    POTENTIALS,
    PotentialEntry,
    check_elements,
    load_potential,
    potential_entry,
)

__all__ = [
    "POTENTIALS",
    "Potential",
    "PotentialEntry",
    "PotentialError",
    "Prediction",
    "check_elements",
    "load_potential",
    "potential_entry",
]
