"""Uncertainty of forces from last-layer heads, and novelty in latent space. Pure NumPy.

A potential whose energy is linear in its last hidden features, E = Σₐ hₐ·w, has forces that are
linear in w too: F = J w with J = −∂(Σₐ hₐ)/∂r. So which last weights agree with the labels is a
question of linear regression, and the answer is known in closed form: a Gaussian, wide where no
label has said anything. Heads are weights that represent it. How much their forces differ, a share
of the force itself and the distance from the training set together are σ: the last layer knows
nothing of what the layers before it got wrong.

Last-layer prediction rigidities: Bigi et al., Mach. Learn.: Sci. Technol. 5, 045018 (2024); shallow
ensembles: Kellner and Ceriotti, Mach. Learn.: Sci. Technol. 5, 035006 (2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from otf_workflows.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

MAX_STRUCTURES = 100
"""More structures no longer change the heads, but each costs some 24 MD steps."""


LONE_ATOM_RATIO = 2.0
"""An atom that is this much worse than the worst of a calibrated cell speaks for the whole frame.
The worst of 10,000 Gaussian force errors is 1.8 times the worst of 8, so that ordinary atoms do
not get there by chance."""


KEPT_VARIANCE = 0.999
"""Share of the variance of forces, on the training structures, that heads represent."""


MAX_DIRECTIONS = 8
"""Most directions in which heads differ. Those of CHGNet need two to four; each costs a backward
pass when σ is read."""


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and covariance of latent features of the atoms a model was trained on.

    Attributes
    ----------
    mean
        Mean feature, shape (d,).
    whitening
        Matrix W such that ``|(x − mean) W|`` is the novelty of x, shape (d, d).
    """

    mean: np.ndarray
    whitening: np.ndarray

    def novelty(self, features: np.ndarray) -> np.ndarray:
        """Return the Mahalanobis distance of each atom, shape (n,); training atoms have RMS 1."""
        return np.linalg.norm((features - self.mean) @ self.whitening, axis=1)


def latent_statistics(features: np.ndarray, *, ridge: float = 1e-3) -> LatentStatistics:
    """Return the statistics of training atoms.

    Parameters
    ----------
    features
        One row per atom, shape (n, d).
    ridge
        Added to the variance in every direction, relative to the mean variance: without it a
        crystal, which hardly varies in most directions, would make everything infinitely new.

    Raises
    ------
    InputError
        If there are fewer than two atoms, or all are the same.
    """
    features = np.asarray(features, dtype=float)
    if len(features) < 2:
        raise InputError("Latent statistics need at least two atoms.")
    mean = features.mean(axis=0)
    covariance = np.cov(features, rowvar=False, bias=True)
    d = features.shape[1]
    level = np.trace(covariance) / d
    if not level > 0:
        raise InputError("All atoms of the training set have the same latent features.")
    lower = np.linalg.cholesky(covariance + ridge * level * np.eye(d))
    whitening = np.linalg.inv(lower).T
    rms = np.sqrt(np.mean(np.sum(((features - mean) @ whitening) ** 2, axis=1)))
    return LatentStatistics(mean, whitening / rms)


def subsample(n: int, *, limit: int = MAX_STRUCTURES, seed: int) -> np.ndarray:
    """Return sorted indices of at most ``limit`` of ``n`` structures, at random."""
    if n <= limit:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, size=limit, replace=False))


def posterior_heads(
    jacobians: Sequence[np.ndarray],
    residuals_eV_A: Sequence[np.ndarray],
    *,
    ridge: float = 1e-4,
    keep: float = KEPT_VARIANCE,
) -> np.ndarray:
    """Return changes of the last weights that represent what the labels leave open.

    With the force errors of the model as targets, Bayesian linear regression has the mean
    ``A⁻¹ Σ Jᵀ (F_label − F_model)`` and the covariance ``s² A⁻¹``, where
    ``A = Σ JᵀJ + ridge · tr(Σ JᵀJ)/d · 1`` and s² is the noise that the fit leaves (MacKay, Neural
    Computation 4, 415, 1992). The covariance is represented by its principal directions on the
    training structures, a pair of heads for each, so that the spread over heads is its square root.

    Parameters
    ----------
    jacobians
        J of each structure, shape (3 n, d).
    residuals_eV_A
        F_label − F_model of each structure (eV/Å), shape (3 n,) or (n, 3).
    ridge
        Regularisation relative to the mean eigenvalue; limits σ where no label says anything.
    keep
        Share of the force variance on the training structures that the heads must have, unless
        that takes more than :data:`MAX_DIRECTIONS`. What is left out is given to the others, so
        that σ is right on average.

    Returns
    -------
    numpy.ndarray
        Δw of each head, shape (n_heads, d), in pairs around the mean.

    Raises
    ------
    InputError
        If there are fewer than two structures, or none that says anything, or shapes do not match.
    """
    n = len(jacobians)
    if n != len(residuals_eV_A):
        raise InputError(f"There are {n} Jacobians but {len(residuals_eV_A)} sets of forces.")
    if n < 2:
        raise InputError(f"{n} structure says too little of the last weights; give at least two.")
    gram, projection = 0.0, 0.0
    rows, targets = [], []
    for jacobian, residual in zip(jacobians, residuals_eV_A, strict=True):
        flat = np.asarray(residual, dtype=float).ravel()
        if len(flat) != len(jacobian):
            raise InputError(
                f"{len(flat)} force components do not fit a Jacobian of {len(jacobian)} rows."
            )
        rows.append(np.asarray(jacobian, dtype=float))
        targets.append(flat)
        gram = gram + rows[-1].T @ rows[-1]
        projection = projection + rows[-1].T @ flat
    values, vectors = np.linalg.eigh(np.asarray(gram))
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    level = ridge * values.mean()
    if not level > 0:
        raise InputError("No force of the training structures depends on the last weights.")
    vectors *= np.sign(vectors[np.abs(vectors).argmax(axis=0), range(len(values))])
    mean = vectors @ ((vectors.T @ projection) / (values + level))
    # J u_k has this share of a parameter's worth of information; their sum is the number of
    # parameters that the labels determine
    known = values / (values + level)
    left = sum(float(((t - j @ mean) ** 2).sum()) for j, t in zip(rows, targets, strict=True))
    noise = np.sqrt(left / max(sum(map(len, targets)) - known.sum(), 1.0))
    share = np.cumsum(known) / known.sum()
    r = min(int(np.searchsorted(share, keep)) + 1, MAX_DIRECTIONS, len(share))
    directions = (vectors[:, :r] / np.sqrt(values[:r] + level)).T * noise / np.sqrt(share[r - 1])
    # the sample variance of 2 r heads, a pair in each direction, is then that of the directions
    away = np.sqrt(r - 0.5) * directions
    return mean + np.concatenate([away, -away])


def directions_of_heads(heads: np.ndarray) -> np.ndarray:
    """Return the few directions in which heads differ, scaled so that σ² = Σ_k |J v_k|².

    M heads span at most M − 1 directions, and pairs of heads half as many.

    Parameters
    ----------
    heads
        Δw of each head, shape (n_heads, d).

    Returns
    -------
    numpy.ndarray
        Shape (r, d).
    """
    centred = (heads - heads.mean(axis=0)) / np.sqrt(len(heads) - 1)
    _, lengths, directions = np.linalg.svd(centred, full_matrices=False)
    spanned = lengths > 1e-10 * lengths.max()
    return lengths[spanned, None] * directions[spanned]


def sigma_of_directions(forces_eV_A: np.ndarray) -> np.ndarray:
    """Return σ of each atom (eV/Å), shape (n,), from J v of each direction, shape (r, n, 3)."""
    return np.sqrt((forces_eV_A**2).sum(axis=(0, 2)))


def sigma_of_jacobian(jacobian: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return σ of each atom (eV/Å), shape (n,), from J (3 n, d) and directions (r, d)."""
    return sigma_of_directions((directions @ jacobian.T).reshape(len(directions), -1, 3))


def sigma_of_heads(forces_eV_A: np.ndarray) -> np.ndarray:
    """Return the spread of the force vector of each atom over heads (eV/Å), shape (n,).

    Parameters
    ----------
    forces_eV_A
        Forces of all heads, or their differences from the model, shape (n_heads, n, 3).
    """
    return np.sqrt(np.var(forces_eV_A, axis=0, ddof=1).sum(axis=-1))


def force_share(head_sigmas_eV_A: np.ndarray, forces_eV_A: np.ndarray) -> float:
    r"""Return c such that c \|F\| is as large as the spread of the heads, over training atoms.

    Parameters
    ----------
    head_sigmas_eV_A
        Spread of the heads at each atom (eV/Å), shape (n,).
    forces_eV_A
        Predicted forces (eV/Å), shape (n, 3).
    """
    squares = float((np.asarray(forces_eV_A) ** 2).sum(axis=1).mean())
    return float(np.sqrt(np.mean(head_sigmas_eV_A**2) / squares)) if squares > 0 else 0.0


def sigma_of_atoms(
    head_sigma_eV_A: np.ndarray,
    forces_eV_A: np.ndarray,
    novelty: np.ndarray,
    *,
    share: float,
) -> np.ndarray:
    r"""Return √(σ_heads² + (c \|F\|)²) × novelty of each atom, in no unit of truth yet, shape (n,).

    Heads see the last layer only. What a universal potential gets wrong deeper down is mostly a
    surface that is too soft (Deng et al., npj Comput. Mater. 11, 9, 2025), an error in proportion
    to the force; and what it gets wrong far from its labels grows with the distance. Neither needs
    a parameter of its own, because the scale of the whole is fitted to labels anyway: over the
    atoms trained on, c gives heads and force equal shares, and the root mean square of the novelty
    is 1. ``benchmarks/heads.py`` compares σ with its parts.

    Parameters
    ----------
    head_sigma_eV_A
        Spread of the heads (eV/Å), shape (n,).
    forces_eV_A
        Predicted forces (eV/Å), shape (n, 3).
    novelty
        Of :meth:`LatentStatistics.novelty`, shape (n,).
    share
        c, of :func:`force_share`.
    """
    force = np.linalg.norm(forces_eV_A, axis=1)
    return np.hypot(head_sigma_eV_A, share * force) * novelty


def disagreement(forces_eV_A: np.ndarray, other_forces_eV_A: np.ndarray) -> np.ndarray:
    """Return |F − F'| of each atom (eV/Å), shape (n,): the uncertainty before any label."""
    return np.linalg.norm(forces_eV_A - other_forces_eV_A, axis=-1)


def worst_of(values: ArrayLike, n_atoms: int | None) -> float:
    """Return the expected largest of ``n_atoms`` values drawn from those of a frame.

    The worst of many atoms is worse than the worst of few, in the same material at the same
    temperature. This number has the same meaning in cells of all sizes: it is the mean of the
    maximum over all subsets of ``n_atoms`` atoms, in closed form from the sorted values. In a
    cell of ``n_atoms`` it is the maximum. Coverage that was measured on cells of ``n_atoms``
    carries over, for atoms that are exchangeable within a frame, by the argument of repeated
    subsampling (Dunn, Wasserman and Ramdas, arXiv:1809.07441; Lee, Barber and Willett,
    arXiv:2306.06342).

    Parameters
    ----------
    values
        One number for each atom, shape (n,).
    n_atoms
        Size of the subsets; None, or more than there are atoms, for the plain maximum.

    Raises
    ------
    InputError
        If there are no values, or subsets of no atom are asked for.
    """
    found = np.sort(np.asarray(values, dtype=float))[::-1]
    if not len(found) or (n_atoms is not None and n_atoms < 1):
        raise InputError(f"There is no worst of {n_atoms} among {len(found)} atoms.")
    if n_atoms is None or n_atoms >= len(found) or not np.isfinite(found).all():
        # NaN sorts anywhere: the maximum passes it on, and the caller stops.
        return float(np.max(found))
    # The i-th largest is the largest of a subset with probability C(n-1-i, k-1) / C(n, k).
    left = np.arange(len(found), n_atoms, -1.0)
    missed = np.concatenate([[1.0], np.cumprod((left - n_atoms) / left)])
    weights = -np.diff(missed, append=0.0)
    return float(weights @ found[: len(weights)])
