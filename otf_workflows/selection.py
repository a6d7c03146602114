"""Which frames are worth a DFT calculation: sane, uncertain, new, and unlike each other.

Pure functions on arrays. The order is: geometry filter (before any DFT is spent), copies, the
uncertainty cut, then diversity. Diversity is measured on structure-mean latent features, because
atom-level criteria pick hot cells only and ruin energies.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from otf_workflows.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.schemas import Frame

MIN_ANGLE_DEG = 20.0
"""Cell angles below this, or above 180° minus this, are refused."""

MIN_PACKING_VOLUME = 0.4
"""Least cell volume, in units of the summed volumes of the covalent spheres. Metals, which pack
densest, have about 1.6."""

MAX_VOLUME_PER_ATOM_A3 = 2000.0
"""Most volume per atom; surfaces and molecules in vacuum stay below."""

KMEANS_SAMPLE = 20_000
"""Cluster centres are found on at most so many frames; medoids are then taken from all."""


@dataclass(frozen=True)
class SelectionOutcome:
    """The chosen frames, and an account of all others.

    ``n_duplicates + n_trusted_dropped + n_over_capacity + len(indices)`` is the number of frames.

    Attributes
    ----------
    indices
        Rows of the input, most urgent first: the most uncertain, then representatives of the
        largest groups. Cutting the list short leaves the more urgent ones.
    n_duplicates
        Frames dropped as copies of a label or of a more uncertain frame.
    n_trusted_dropped
        Frames dropped because their uncertainty is not above the threshold.
    n_over_capacity
        Uncertain and new frames dropped because only ``n_select`` may be labelled.
    sentences
        The decision in words.
    """

    indices: list[int]
    n_duplicates: int = 0
    n_trusted_dropped: int = 0
    n_over_capacity: int = 0
    sentences: list[str] = field(default_factory=list)


def geometry_problem(
    numbers: Sequence[int] | np.ndarray,
    cell_A: Sequence[Sequence[float]] | np.ndarray,
    positions_A: Sequence[Sequence[float]] | np.ndarray,
    *,
    min_distance_ratio: float,
) -> str | None:
    """Return what makes a periodic structure absurd, or None if it is fit for DFT.

    Parameters
    ----------
    numbers
        Atomic numbers, shape (n,).
    cell_A
        Lattice vectors as rows (Å), shape (3, 3).
    positions_A
        Positions (Å), shape (n, 3); they may lie outside the cell.
    min_distance_ratio
        Two atoms, periodic images included, may not be nearer than this times the sum of their
        covalent radii (Cordero et al., Dalton Trans. 2008, 2832; the table in ASE).

    Returns
    -------
    str or None
        One sentence.
    """
    from ase.data import chemical_symbols, covalent_radii
    from ase.neighborlist import primitive_neighbor_list

    z = np.asarray(numbers, dtype=int)
    cell = np.asarray(cell_A, dtype=float)
    positions = np.asarray(positions_A, dtype=float)
    if not (np.isfinite(cell).all() and np.isfinite(positions).all()):
        return "The structure has positions or lattice vectors that are not finite."
    radii_A = covalent_radii[z]
    problem = _cell_problem(cell, radii_A)
    if problem:
        return problem
    first, second, distance_A = primitive_neighbor_list(
        "ijd", (True, True, True), cell, positions, min_distance_ratio * radii_A
    )
    if len(distance_A) == 0:
        return None
    ratios = distance_A / (radii_A[first] + radii_A[second])
    worst = int(np.argmin(ratios))
    i, j = int(first[worst]), int(second[worst])
    return (
        f"Atoms {i} ({chemical_symbols[z[i]]}) and {j} ({chemical_symbols[z[j]]}) are "
        f"{distance_A[worst]:.3f} Å apart, {ratios[worst]:.2f} of the sum of their covalent radii "
        f"(at least {min_distance_ratio:g} is asked for)."
    )


def frame_problem(frame: Frame, *, min_distance_ratio: float) -> str | None:
    """Return what makes a frame absurd; see :func:`geometry_problem`."""
    return geometry_problem(
        frame.numbers, frame.cell_A, frame.positions_A, min_distance_ratio=min_distance_ratio
    )


def _cell_problem(cell_A: np.ndarray, radii_A: np.ndarray) -> str | None:
    volume_A3 = abs(float(np.linalg.det(cell_A)))
    least_A3 = MIN_PACKING_VOLUME * float(np.sum(4 / 3 * np.pi * radii_A**3))
    if volume_A3 < least_A3:
        return f"The cell has {volume_A3:.2f} Å³, too little for its atoms ({least_A3:.2f} Å³)."
    if volume_A3 > MAX_VOLUME_PER_ATOM_A3 * len(radii_A):
        return (
            f"The cell has {volume_A3 / len(radii_A):.0f} Å³ per atom, "
            f"more than {MAX_VOLUME_PER_ATOM_A3:.0f}."
        )
    unit = cell_A / np.linalg.norm(cell_A, axis=1, keepdims=True)
    cosines = np.array([unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]])
    angles_deg = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    if np.any((angles_deg < MIN_ANGLE_DEG) | (angles_deg > 180 - MIN_ANGLE_DEG)):
        text = ", ".join(f"{angle:.1f}°" for angle in angles_deg)
        return f"The cell is too skewed: its angles are {text}."
    return None


def select_frames(
    features: np.ndarray,
    sigmas_eV_A: np.ndarray,
    *,
    existing_features: np.ndarray | None,
    n_select: int,
    threshold: float,
    min_labels: int,
    duplicate_distance: float,
    seed: int,
) -> SelectionOutcome:
    """Choose the frames to label: uncertain, not yet known, and unlike each other.

    Copies are dropped first, the most uncertain of a group staying. Of the others those above the
    threshold remain, or the ``min_labels`` most uncertain if they are more. If they exceed
    ``n_select``, a third of the places goes to the largest uncertainties and the rest to the
    medoids of k-means clusters of the standardised features. For 10 to 40 labels this halves to
    quarters the energy error of a random choice; DIRECT (Qi et al., npj Comput. Mater. 10, 43,
    2024) is its equal.

    Parameters
    ----------
    features
        Structure-mean latent features of the candidates, shape (n, d).
    sigmas_eV_A
        Calibrated worst-atom uncertainties (eV/Å), shape (n,).
    existing_features
        Features of all labels there are, shape (m, d); None for none.
    n_select
        Most frames to choose.
    threshold
        Uncertainty above which a frame is a candidate (eV/Å).
    min_labels
        So many frames are chosen even if all are trusted, provided that they are no copies.
    duplicate_distance
        Frames nearer than this are copies: root mean square difference of standardised features.
    seed
        Same input and seed, same choice.

    Returns
    -------
    SelectionOutcome
        Chosen rows and an account of the others.

    Raises
    ------
    InputError
        If shapes do not match, or a value is not finite.
    """
    x, sigma, known = _checked(features, sigmas_eV_A, existing_features)
    if len(x) == 0:
        return SelectionOutcome([], sentences=["No frame was proposed."])
    scaled, scaled_known = _standardised(x, known)
    # Stable sort of the negative: ties keep the order of the input.
    by_sigma = np.argsort(-sigma, kind="stable")
    novel = _without_copies(scaled, scaled_known, by_sigma, duplicate_distance)
    n_uncertain = int(np.sum(sigma[novel] > threshold))
    wanted = novel[: max(n_uncertain, min(min_labels, n_select))]
    chosen = _diverse(scaled, wanted, n_select, seed)
    outcome = SelectionOutcome(
        indices=[int(i) for i in chosen],
        n_duplicates=len(x) - len(novel),
        n_trusted_dropped=len(novel) - len(wanted),
        n_over_capacity=len(wanted) - len(chosen),
    )
    outcome.sentences.extend(_account(outcome, len(x), len(known), n_uncertain, threshold))
    return outcome


def _checked(
    features: np.ndarray, sigmas: np.ndarray, existing: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the inputs as arrays of matching shapes."""
    sigma = np.asarray(sigmas, dtype=float).reshape(-1)
    rows = np.asarray(features, dtype=float)
    if len(rows) != len(sigma):
        raise InputError(f"There are {len(rows)} rows of features but {len(sigma)} uncertainties.")
    x = rows.reshape(len(sigma), -1) if len(sigma) else np.empty((0, 0))
    known = np.empty((0, x.shape[1])) if existing is None else np.asarray(existing, dtype=float)
    if len(known) == 0 or len(x) == 0:
        known = np.empty((0, x.shape[1]))
    if known.ndim != 2 or known.shape[1] != x.shape[1]:
        raise InputError(
            f"Candidates have {x.shape[1]} features, existing labels have shape {known.shape}.",
            hint="compute both with the same model",
        )
    for name, values in (("features", x), ("sigmas", sigma), ("existing features", known)):
        if not np.isfinite(values).all():
            raise InputError(f"Some {name} are not finite.")
    return x, sigma, known


def _standardised(x: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale to zero mean and unit deviation over candidates and labels together.

    Divided by √d too, so that a distance is a root mean square over features. Features that vary
    by rounding only are not blown up.
    """
    n = len(x) + len(known)
    mean = (x.sum(axis=0) + known.sum(axis=0)) / n
    deviation = np.sqrt((((x - mean) ** 2).sum(axis=0) + ((known - mean) ** 2).sum(axis=0)) / n)
    largest = max(float(np.abs(x).max(initial=0)), float(np.abs(known).max(initial=0)))
    # 1e-6 of the largest feature is the rounding noise of float32 models.
    deviation = np.where(deviation > 1e-6 * largest, deviation, np.inf)
    scale = deviation * np.sqrt(max(x.shape[1], 1))
    return ((x - mean) / scale).astype(np.float32), ((known - mean) / scale).astype(np.float32)


def _without_copies(
    x: np.ndarray, known: np.ndarray, order: np.ndarray, distance: float
) -> np.ndarray:
    """Return the rows of ``order`` that are no copy of a label or of an earlier row.

    k-d trees with a small radius visit few leaves even in 64 dimensions, if the first splits are
    along the directions of most variance; equal rows are merged before, because a tree cannot
    split them.
    """
    from scipy.spatial import cKDTree

    # Of equal rows the first in the order is kept.
    _, first = np.unique(x[order], axis=0, return_index=True)
    order = order[np.sort(first)]
    # Equal structures give features that are equal up to the rounding of float32 only.
    distance = max(distance, 1e-6)
    known = np.unique(known, axis=0)
    x, known = _rotated(x, known)
    if len(known):
        nearest, _ = cKDTree(known).query(x[order], k=1, distance_upper_bound=1.001 * distance)
        order = order[nearest > distance]
    tree = cKDTree(x[order])
    keep = np.ones(len(order), dtype=bool)
    for row in range(len(order)):
        if keep[row]:
            near = np.array(tree.query_ball_point(x[order[row]], distance), dtype=int)
            keep[near[near > row]] = False
    return order[keep]


def _rotated(x: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotate to principal axes, largest variance first; distances stay as they are."""
    covariance = x.T.astype(float) @ x + known.T.astype(float) @ known
    axes = np.linalg.eigh(covariance)[1][:, ::-1]
    return x @ axes, known @ axes


def _diverse(x: np.ndarray, wanted: np.ndarray, n_select: int, seed: int) -> np.ndarray:
    """Return ``n_select`` of ``wanted``, which is sorted by falling uncertainty."""
    if len(wanted) <= n_select:
        return wanted
    if n_select <= 0:
        return wanted[:0]
    n_top = n_select // 3
    rest = wanted[n_top:]
    medoids = _medoids(x[rest], n_select - n_top, seed)
    return np.concatenate([wanted[:n_top], rest[medoids]])


def _medoids(x: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Return k rows nearest to the centres of k-means clusters, largest cluster first."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    # Sums over several threads depend on their timing in the last digit; one thread does not.
    with threadpool_limits(limits=1):
        rng = np.random.default_rng(seed)
        sample = x if len(x) <= KMEANS_SAMPLE else x[rng.permutation(len(x))[:KMEANS_SAMPLE]]
        n_distinct = len(np.unique(sample, axis=0))
        means = KMeans(n_clusters=min(k, n_distinct), n_init=3, random_state=seed).fit(sample)
        labels = means.predict(x)
        away = np.linalg.norm(x - means.cluster_centers_[labels], axis=1)
    sizes = np.bincount(labels, minlength=means.n_clusters)
    by_size = [c for c in np.argsort(-sizes, kind="stable") if sizes[c]]
    chosen = [int(np.flatnonzero(labels == c)[np.argmin(away[labels == c])]) for c in by_size]
    # Empty clusters leave places over; the frames farthest from their medoid's cluster fill them.
    spare = [int(i) for i in np.argsort(-away, kind="stable") if int(i) not in set(chosen)]
    return np.array((chosen + spare)[:k], dtype=int)


def _account(
    outcome: SelectionOutcome, n: int, n_known: int, n_uncertain: int, threshold_eV_A: float
) -> list[str]:
    """Say the decision in words."""
    chosen = len(outcome.indices)
    sentences = [
        f"{chosen} of {n} frames chosen; {n_uncertain} new ones lie above {threshold_eV_A:g} eV/Å."
    ]
    if outcome.n_duplicates:
        sentences.append(
            f"{outcome.n_duplicates} dropped as copies of each other or of {n_known} labels."
        )
    if chosen > n_uncertain:
        sentences.append(
            f"{chosen - n_uncertain} of the chosen are below the threshold: the most uncertain "
            "were added to reach the least number of labels."
        )
    if outcome.n_over_capacity:
        sentences.append(f"{outcome.n_over_capacity} uncertain frames had no place in the batch.")
    return sentences
