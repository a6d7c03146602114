"""Machine-learned potentials: one protocol, a registry, families. Importing it loads no torch."""

from otf_workflows.potentials.base import Potential, PotentialError, Prediction
from otf_workflows.potentials.registry import (
    POTENTIALS,
    PotentialEntry,
    check_elements,
    load_potential,
    missing_packages,
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
    "missing_packages",
    "potential_entry",
]
