"""What a campaign may still spend on labels, and what each would cost it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from otf_workflows.labelers.cost import CostModel, FinishedCost, label_size
from otf_workflows.types import LabelState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.campaign import Campaign
    from otf_workflows.labelers.base import Recipe
    from otf_workflows.schemas import Frame, LabelDocument
    from otf_workflows.store import Store

_OPEN = (LabelState.PENDING, LabelState.RUNNING)


@dataclass(frozen=True)
class Prices:
    """Expected core-hours of labels of one recipe.

    Attributes
    ----------
    recipe
        Counts electrons and k-points, if it can.
    model
        Of what finished labels of all campaigns cost; None if they have no size.
    mean_h
        Core-hours of a label whatever its size, used where there is no model.
    """

    recipe: Recipe
    model: CostModel | None
    mean_h: float

    def of(self, frames: Sequence[Frame]) -> np.ndarray:
        """Return the expected core-hours of frames, shape (n,)."""
        return np.array([self._one(frame) for frame in frames], dtype=float)

    def _one(self, frame: Frame) -> float:
        size = label_size(self.recipe, frame) if self.model else None
        return self.model.core_hours(*size) if self.model and size else self.mean_h


@dataclass(frozen=True)
class Allowance:
    """What is left of a campaign's budget at the beginning of a cycle.

    Attributes
    ----------
    n_labels
        Labels that may still be asked for, reused ones included: the same campaign under another
        name, which finds all its labels paid for, must end where this one ends.
    core_hours
        Core-hours left, those of labels still running taken off; infinite as long as no label of
        the recipe is finished, since nobody knows what one costs.
    prices
        What labels are expected to cost; None as long as nobody knows.
    """

    n_labels: int
    core_hours: float = np.inf
    prices: Prices | None = None

    def price(self, frames: Sequence[Frame]) -> np.ndarray:
        """Return the expected core-hours of frames, zero as long as nobody knows."""
        return self.prices.of(frames) if self.prices else np.zeros(len(frames))

    def sentence(self) -> str:
        """Return what is left in words; nothing if core-hours are no limit yet."""
        if not np.isfinite(self.core_hours):
            return ""
        return f"{self.core_hours:,.1f} core-hours are left, {self.n_labels} labels at most."

    def spend(self, frames: Sequence[Frame]) -> tuple[list[Frame], Allowance]:
        """Return the first frames that fit, and what is left then.

        Only whole beginnings of the list are taken. To leave the dear ones out of a random sample
        would make it a sample of the cheap ones.
        """
        kept = list(frames[: self.n_labels])
        left = self.core_hours
        spent = np.cumsum(self.price(kept))
        kept = kept[: int(np.searchsorted(spent, left, side="right"))]
        left -= float(spent[len(kept) - 1]) if kept else 0.0
        return kept, Allowance(self.n_labels - len(kept), left, self.prices)


def allowance(
    store: Store, *, campaign: Campaign, cycle: int, fingerprints: Sequence[str]
) -> Allowance:
    """Return what a campaign may spend in a cycle and later.

    Parameters
    ----------
    store
        Our collections.
    campaign, cycle
        Whose budget; labels asked for before this cycle are on it.
    fingerprints
        Levels of theory of its recipe; what labels of these cost any campaign is learned from.
    """
    from otf_workflows.labelers import parse_recipe

    n_before = store.count_labels(campaign.name, before_cycle=cycle)
    n_left = max(campaign.budget.max_labels - n_before, 0)
    n_paid, spent_h = store.label_costs(campaign.name)
    finished = [
        label
        for label in store.newest_done_labels(fingerprints=fingerprints)
        if label.core_hours > 0
    ]
    recipe = parse_recipe(campaign.labels)
    costs = [cost for label in finished if (cost := _cost(recipe, label))]
    if not finished and not spent_h:
        return Allowance(n_left)
    mean_h = (
        spent_h / n_paid if spent_h else float(np.mean([label.core_hours for label in finished]))
    )
    prices = Prices(recipe, CostModel.fit(costs) if costs else None, mean_h)
    committed = [
        label.frame
        for label in store.labels(campaign=campaign.name, states=_OPEN, light=True)
        if label.wanted_by[0]["campaign"] == campaign.name
        and store.purpose_of(label, campaign.name)[1] < cycle
    ]
    left_h = campaign.budget.max_core_hours - spent_h - float(prices.of(committed).sum())
    return Allowance(n_left, max(left_h, 0.0), prices)


def _cost(recipe: Recipe, label: LabelDocument) -> FinishedCost | None:
    size = label_size(recipe, label.frame)
    return FinishedCost(*size, core_hours=label.core_hours) if size else None
