"""A batch of frames unlike each other, within a budget, with paid labels in place of new ones.

Pure NumPy and scikit-learn; :func:`otf_workflows.selection.select_frames` is the way in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from otf_workflows.latent_distance import LEAST_DISTANCE, nearest

if TYPE_CHECKING:
    from collections.abc import Callable

KMEANS_SAMPLE = 20_000
"""Cluster centres are found on at most so many frames; medoids are then taken from all."""

TOP_SHARE = 3
"""One place in so many goes to the largest uncertainties, whatever their features."""


@dataclass(frozen=True)
class PaidLabels:
    """Finished labels of others: what is near to one of them need not be computed.

    Attributes
    ----------
    features
        Their features, by the model that made those of the candidates, shape (m, d).
    distance
        A label not farther than this is as good as the frame. Frames that are chosen for a single
        uncertain atom, which structure means do not show, are exchanged for copies only.
    """

    features: np.ndarray
    distance: float


@dataclass(frozen=True)
class HourBudget:
    """What the labels of a batch may cost.

    Attributes
    ----------
    core_hours
        Core-hours that are left.
    price
        Expected core-hours of some candidates: their rows (k,) to hours (k,).
    n_atoms
        Atoms of each candidate, shape (n,). What a label teaches is taken as its uncertainty
        times its atoms, since every atom brings a force.
    """

    core_hours: float
    price: Callable[[np.ndarray], np.ndarray]
    n_atoms: np.ndarray


@dataclass(frozen=True)
class Batch:
    """Chosen rows; the first ``n_top`` of them for the uncertainty of a single atom."""

    rows: np.ndarray
    n_top: int


@dataclass(frozen=True)
class Exchange:
    """Which candidates a paid label could replace.

    Attributes
    ----------
    label
        Nearest paid label of each candidate, −1 for none, shape (n,).
    is_copy
        Whether it is a copy, shape (n,).
    """

    label: np.ndarray
    is_copy: np.ndarray

    @classmethod
    def none(cls, n: int) -> Exchange:
        """Return that nothing can be exchanged."""
        return cls(np.full(n, -1), np.zeros(n, dtype=bool))

    @classmethod
    def between(
        cls, x: np.ndarray, paid: np.ndarray, known: np.ndarray, *, within: float, copies: float
    ) -> Exchange:
        """Return the paid label nearest to each candidate.

        Parameters
        ----------
        x, paid, known
            Scaled features of candidates, of paid labels, and of what is in the data set or
            judges it. A paid label that copies one of the last is not used: it teaches nothing,
            or it would let a model be trained on what judges it.
        within, copies
            Farthest distances of a label that is good enough, and of a copy.
        """
        copies = max(copies, LEAST_DISTANCE)
        _, away = nearest(paid, known, within=copies)
        usable = np.flatnonzero(away > copies)
        found, away = nearest(x, paid[usable], within=max(within, copies))
        near = (found >= 0) & (away <= max(within, copies))
        label = np.full(len(x), -1)
        label[near] = usable[found[near]]
        return cls(label, near & (away <= copies))

    def replaces(self, batch: Batch) -> np.ndarray:
        """Return which rows of a batch a paid label takes the place of, shape (k,)."""
        is_representative = np.arange(len(batch.rows)) >= batch.n_top
        near = self.label[batch.rows] >= 0
        return near & (is_representative | self.is_copy[batch.rows])

    def settle(self, batch: Batch) -> tuple[np.ndarray, dict[int, int]]:
        """Return the rows of a batch and row → label; frames that share a label are one."""
        rows, adopted, used = [], {}, set()
        for row, replaced in zip(batch.rows.tolist(), self.replaces(batch), strict=True):
            label = int(self.label[row])
            if replaced and label in used:
                continue
            rows.append(row)
            if replaced:
                used.add(label)
                adopted[row] = label
        return np.array(rows, dtype=int), adopted


@dataclass(frozen=True)
class Chooser:
    """Chooses batches among candidates that are sorted by falling uncertainty.

    Attributes
    ----------
    x
        Scaled features, shape (n, d).
    benefit
        What a label of each would teach, in any unit, shape (n,).
    exchange
        What costs nothing.
    seed
        Of the clusters.
    core_hours, price
        As in :class:`HourBudget`; ``price`` is None for no limit.
    """

    x: np.ndarray
    benefit: np.ndarray
    exchange: Exchange
    seed: int
    core_hours: float = np.inf
    price: Callable[[np.ndarray], np.ndarray] | None = None
    _prices: dict[int, float] = field(default_factory=dict, repr=False)

    def choose(self, wanted: np.ndarray, n_select: int) -> Batch:
        """Return at most ``n_select`` of the wanted rows, within the core-hours.

        If the best batch is too dear, it is made smaller until it fits, and what is then left of
        the hours goes to those that teach most for each of them.
        """
        batch = self._diverse(wanted, n_select)
        if self._hours(batch) <= self.core_hours:
            return batch
        hours = self._prices_of(wanted)
        hours = np.where(self.exchange.label[wanted] >= 0, 0.0, hours)
        order = wanted[hours <= self.core_hours]
        batch = Batch(order[:0], 0)
        fits, too_many = 0, min(n_select, len(order)) + 1
        while too_many - fits > 1:
            tried = self._diverse(order, (fits + too_many) // 2)
            if self._hours(tried) <= self.core_hours:
                fits, batch = (fits + too_many) // 2, tried
            else:
                too_many = (fits + too_many) // 2
        return self._filled(batch, wanted, hours, n_select)

    def _filled(self, batch: Batch, wanted: np.ndarray, hours: np.ndarray, n_select: int) -> Batch:
        """Add rows by benefit per core-hour as long as they fit."""
        rows = batch.rows.tolist()
        left = self.core_hours - self._hours(batch)
        with np.errstate(divide="ignore"):
            order = np.argsort(-self.benefit[wanted] / hours, kind="stable")
        taken = set(rows)
        for place in order:
            if len(rows) >= n_select or left < hours.min():
                break
            if hours[place] <= left and int(wanted[place]) not in taken:
                rows.append(int(wanted[place]))
                left -= hours[place]
        return Batch(np.array(rows, dtype=int), batch.n_top)

    def _hours(self, batch: Batch) -> float:
        if self.price is None or not len(batch.rows):
            return 0.0
        paid_for = self.exchange.replaces(batch)
        return float(self._prices_of(batch.rows)[~paid_for].sum())

    def _prices_of(self, rows: np.ndarray) -> np.ndarray:
        missing = np.array([row for row in rows.tolist() if row not in self._prices], dtype=int)
        if len(missing) and self.price is not None:
            self._prices.update(zip(missing.tolist(), self.price(missing).tolist(), strict=True))
        return np.array([self._prices[row] for row in rows.tolist()])

    def _diverse(self, wanted: np.ndarray, n: int) -> Batch:
        n_top = n // TOP_SHARE
        if len(wanted) <= n:
            return Batch(wanted, min(n_top, len(wanted)))
        if n <= 0:
            return Batch(wanted[:0], 0)
        rest = wanted[n_top:]
        rows = rest[medoids(self.x[rest], n - n_top, self.seed)]
        return Batch(np.concatenate([wanted[:n_top], rows]), n_top)


def medoids(x: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Return k rows nearest to the centres of k-means clusters, largest cluster first.

    Parameters
    ----------
    x
        Scaled features, shape (n, d), distinct, n ≥ k.
    k
        How many.
    seed
        Of the starts of k-means and of the sample that it sees.
    """
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(seed)
    sample = x if len(x) <= KMEANS_SAMPLE else x[rng.permutation(len(x))[:KMEANS_SAMPLE]]
    means = KMeans(n_clusters=k, n_init=3, random_state=seed).fit(sample)
    labels = means.predict(x)
    away = np.linalg.norm(x - means.cluster_centers_[labels], axis=1)
    sizes = np.bincount(labels, minlength=k)
    by_size = [c for c in np.argsort(-sizes, kind="stable") if sizes[c]]
    chosen = [int(np.flatnonzero(labels == c)[np.argmin(away[labels == c])]) for c in by_size]
    if len(chosen) < k:
        # Empty clusters leave places over; frames farthest from their cluster's centre fill them.
        taken = set(chosen)
        spare = [i for i in np.argsort(-away, kind="stable").tolist() if i not in taken]
        chosen += spare[: k - len(chosen)]
    return np.array(chosen, dtype=int)
