"""How long a label will take here, from the labels finished last; asks the database rarely."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from otf_workflows.labelers.cost import FinishedCost, estimate_core_hours

if TYPE_CHECKING:
    from otf_workflows.labelers.base import Recipe
    from otf_workflows.schemas import LabelDocument
    from otf_workflows.settings import Site
    from otf_workflows.store import Store

FRESH_S = 30.0
"""Finished labels are looked at again after so long."""


def seconds(label: LabelDocument) -> float:
    """Return the wall time of a finished label (s), tries before a rerun left out."""
    return sum(attempt.seconds or 0.0 for attempt in label.attempts)


class LabelCosts:
    """Expected times of labels on this site.

    Parameters
    ----------
    store
        Where finished labels are.
    site
        Tells the cores of a DFT code.
    """

    def __init__(self, store: Store, site: Site) -> None:
        self._store = store
        self._site = site
        self._read = -FRESH_S
        self._done: list[LabelDocument] = []

    def longest_s(self) -> float:
        """Return the longest time of the labels finished last (s); 0 if there are none."""
        return max((seconds(label) for label in self._newest()), default=0.0)

    def expected_s(self, label: LabelDocument) -> float | None:
        """Return how long a label is expected to take (s).

        From electrons and k-points by the cost model, where the code has them; else the longest of
        the same recipe. None as long as no label of this recipe is finished: the guess before any
        measurement is good for a budget, but too rough for a walltime.
        """
        from otf_workflows.labelers import parse_recipe

        alike = self._alike(label)
        if not alike:
            return None
        recipe = parse_recipe(label.recipe)
        measured = [_cost(recipe, item) for item in alike]
        size = _cost(recipe, label)
        if size is None or None in measured:
            return max(seconds(item) for item in alike)
        hours = estimate_core_hours(
            size.n_electrons, size.n_kpoints, history=[cost for cost in measured if cost]
        )
        cores = self._site.resources(label.recipe["code"]).cores
        return 3600 * hours / cores

    def size_ratio(self, label: LabelDocument) -> float | None:
        """Return electrons of a label over those of the largest one finished; None if unknown."""
        from otf_workflows.labelers import parse_recipe

        recipe = parse_recipe(label.recipe)
        mine = _cost(recipe, label)
        costs = [_cost(recipe, item) for item in self._alike(label)]
        largest = max((cost.n_electrons for cost in costs if cost), default=None)
        return mine.n_electrons / largest if mine and largest else None

    def _alike(self, label: LabelDocument) -> list[LabelDocument]:
        return [item for item in self._newest() if item.recipe == label.recipe]

    def _newest(self) -> list[LabelDocument]:
        if time.monotonic() - self._read > FRESH_S:
            self._done = self._store.newest_done_labels()
            self._read = time.monotonic()
        return self._done


def _cost(recipe: Recipe, label: LabelDocument) -> FinishedCost | None:
    """Return size and cost of a label; None for codes that count neither electrons nor k-points."""
    if not (hasattr(recipe, "n_electrons") and hasattr(recipe, "n_kpoints")):
        return None
    hours = sum((a.seconds or 0.0) * a.cores for a in label.attempts) / 3600
    return FinishedCost(
        n_electrons=float(recipe.n_electrons(label.frame.numbers)),
        n_kpoints=int(recipe.n_kpoints(label.frame)),
        core_hours=hours,
    )
