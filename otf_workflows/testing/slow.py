"""A calculator that takes its time, to see what a campaign does while labels are computed.

In a campaign file::

    labels:
      code: ase
      calculator: otf_workflows.testing.slow.SlowCalculator
      kwargs: {seconds: 2.0}
"""

from __future__ import annotations

import time
from typing import Any

from ase.calculators.calculator import all_changes
from ase.calculators.lj import LennardJones


class SlowCalculator(LennardJones):
    """Lennard-Jones, after a pause in which nothing is computed.

    Parameters
    ----------
    seconds
        Length of the pause (s).
    kwargs
        Arguments of ASE's Lennard-Jones calculator.
    """

    def __init__(self, *, seconds: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seconds = seconds

    def calculate(
        self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes
    ) -> None:
        """Wait, then compute."""
        time.sleep(self.seconds)
        super().calculate(atoms, properties, system_changes)
