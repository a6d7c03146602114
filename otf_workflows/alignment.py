"""Do labels and potential speak of the same thing? Energy zeros, signs, units; before training.

A universal potential was fitted to one code's total energies; labels of another code or
pseudopotential have other zeros, different for each element. The difference is solved for in
closed form, on the *residual* energies, so that training sees errors of chemistry only. Forces and
stresses have no free zero, but they can have a wrong sign or unit, which training would follow
obediently: they are compared with the parent's, and refused if a factor stands out.
"""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field
from scipy import linalg

from otf_workflows.errors import AlignmentError
from otf_workflows.schemas import Document

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.potentials.base import Prediction
    from otf_workflows.schemas import LabelledFrame

GPA_PER_EV_A3 = 160.21766208
EV_A_PER_RY_BOHR = 25.71104
EV_A3_PER_RY_BOHR3 = 91.81579

RANK_TOLERANCE = 1e-3
"""Compositions that differ by less than this (relative) do not separate the elements."""

MAX_RESIDUAL_EV_ATOM = 1.0
"""No potential worth starting from is this wrong once the zeros agree."""

MIN_COMPONENTS = 12
MIN_FORCE_EV_A = 0.05
MIN_STRESS_EV_A3 = 0.2 / GPA_PER_EV_A3
MIN_CORRELATION = 0.7
"""A factor is read only from so much data, so much signal, and a clear relation."""

LOST_COMPONENTS = 60
LOST_FORCE_EV_A = 0.3
LOST_CORRELATION = 0.2
"""With this much of both, forces that are not correlated are not of the same structures."""

BELIEVABLE = 10**0.5
"""Universal potentials are too soft by up to 2.3 (Deng et al., doi:10.1038/s41524-024-01500-6, and
CHGNet on MoTa, measured); nearer to 10 than to 1 it is a unit."""

FORCE_FACTORS = {
    -1.0: "the sign is reversed (gradients instead of forces)",
    EV_A_PER_RY_BOHR: "the forces look smaller by Ry/bohr, that is, they were converted twice",
    1 / EV_A_PER_RY_BOHR: "the forces look like Ry/bohr instead of eV/Å",
    2 * EV_A_PER_RY_BOHR: "the forces look as if converted twice from hartree/bohr",
    1 / (2 * EV_A_PER_RY_BOHR): "the forces look like hartree/bohr instead of eV/Å",
    10.0: "the forces are ten times too large",
    0.1: "the forces are ten times too small",
    1000.0: "the forces look like meV/Å instead of eV/Å",
}
"""Label over parent, and what it means."""

STRESS_FACTORS = {
    -1.0: "the sign is reversed (pressure or VASP's convention; tension must be positive)",
    10.0: "the stress is ten times too large (kB taken for GPa)",
    -10.0: "the stress looks like VASP's kB taken for GPa, sign included",
    0.1: "the stress is ten times too small (GPa taken for kB)",
    -0.1: "the stress was divided by ten and its sign reversed once too often",
    GPA_PER_EV_A3: "the stress looks like GPa instead of eV/Å³",
    -GPA_PER_EV_A3: "the stress looks like a pressure in GPa instead of eV/Å³",
    10 * GPA_PER_EV_A3: "the stress looks like kB instead of eV/Å³",
    -10 * GPA_PER_EV_A3: "the stress looks like VASP's kB instead of eV/Å³, sign included",
    1 / GPA_PER_EV_A3: "the stress was divided by 160.2 (eV/Å³ in GPa) once too often",
    1 / EV_A3_PER_RY_BOHR3: "the stress looks like Ry/bohr³ instead of eV/Å³",
    -1 / EV_A3_PER_RY_BOHR3: "the stress looks like Ry/bohr³ with the opposite sign",
    1 / (2 * EV_A3_PER_RY_BOHR3): "the stress looks like hartree/bohr³ instead of eV/Å³",
}
"""Label over parent, and what it means."""


class Alignment(Document):
    """How labels relate to the potential they are to train."""

    shifts_eV: dict[str, float] = Field(
        description="Element → energy (eV per atom) to add to the potential's reference."
    )
    separable: bool = Field(description="Whether the shifts hold for each element on its own.")
    compositions: list[str] = Field(description="Compositions of the labels, per formula unit.")
    residual_eV_atom: float = Field(
        description="Mean absolute energy difference left after the shift (eV/atom)."
    )
    force_slope: float | None = Field(
        None, description="Size of label forces over the parent's; none without enough signal."
    )
    force_correlation: float | None = Field(None, description="Correlation of the two.")
    stress_slope: float | None = Field(
        None, description="Size of label stresses over the parent's; none without enough signal."
    )
    stress_correlation: float | None = Field(None, description="Correlation of the two.")
    sentences: list[str] = Field(default_factory=list, description="The same in words.")

    def shift_eV(self, numbers: Sequence[int]) -> float:
        """Return the total shift (eV) of a structure with these atomic numbers."""
        from ase.data import chemical_symbols

        return float(sum(self.shifts_eV[chemical_symbols[number]] for number in numbers))


def align(
    labels: Sequence[LabelledFrame], predictions: Sequence[Prediction], *, own_zeros: bool = False
) -> Alignment:
    """Return energy shifts and the checks of signs and units.

    Parameters
    ----------
    labels
        Labels of one level of theory.
    predictions
        What the parent says of the same structures, in the same order.
    own_zeros
        Fit the energy zeros to the labels alone, for a network that starts from nothing; the
        parent then serves the checks only.

    Raises
    ------
    AlignmentError
        If a factor between labels and parent is a unit or a sign rather than an error, if the
        forces have nothing in common, or if energies do not follow the composition.
    """
    shifts, separable, residual = _energy_shifts(labels, [p.energy_eV for p in predictions])
    if residual > MAX_RESIDUAL_EV_ATOM:
        raise AlignmentError(
            f"The energies of the labels do not follow those of the potential: "
            f"{residual:.2g} eV/atom are left after the zeros of the elements were aligned.",
            where=f"{len(labels)} labels",
            hint="check that all labels are total energies in eV, of one code and recipe",
        )
    if own_zeros:
        shifts, separable, residual = _energy_shifts(labels, [0.0] * len(labels))
    compositions = sorted({_formula(label.frame.numbers) for label in labels})
    sentences = [_shift_sentence(shifts, compositions, residual, separable=separable)]
    force_slope, force_correlation, sentence = _check_forces(labels, predictions)
    sentences.append(sentence)
    stress_slope, stress_correlation, sentence = _check_stresses(labels, predictions)
    sentences.append(sentence)
    return Alignment(
        shifts_eV=shifts,
        separable=separable,
        compositions=compositions,
        residual_eV_atom=residual,
        force_slope=force_slope,
        force_correlation=force_correlation,
        stress_slope=stress_slope,
        stress_correlation=stress_correlation,
        sentences=sentences,
    )


def _energy_shifts(
    labels: Sequence[LabelledFrame], energies_eV: Sequence[float]
) -> tuple[dict[str, float], bool, float]:
    """Return shift per element (eV), whether elements separate, and what is left (eV/atom).

    Least squares of minimum norm. Directions of composition space that the labels hardly span
    are left out instead of damped: damping shifts of hundreds of eV would cost meV.
    """
    from ase.data import chemical_symbols

    elements = sorted({number for label in labels for number in label.frame.numbers})
    counts = np.array(
        [[label.frame.numbers.count(number) for number in elements] for label in labels],
        dtype=float,
    )
    sizes = counts.sum(axis=1)
    differences = np.array(
        [label.energy_eV - energy_eV for label, energy_eV in zip(labels, energies_eV, strict=True)]
    )
    fractions = counts / sizes[:, None]
    solution, _, rank, _ = linalg.lstsq(fractions, differences / sizes, cond=RANK_TOLERANCE)
    residual = float(np.abs(differences / sizes - fractions @ solution).mean())
    shifts = {chemical_symbols[z]: float(s) for z, s in zip(elements, solution, strict=True)}
    return shifts, bool(rank == len(elements)), residual


def _formula(numbers: Sequence[int]) -> str:
    """Return the reduced formula."""
    from ase.data import chemical_symbols
    from ase.formula import Formula

    counts: dict[str, int] = {}
    for number in sorted(numbers):
        symbol = chemical_symbols[number]
        counts[symbol] = counts.get(symbol, 0) + 1
    reduced, _ = Formula.from_dict(counts).reduce()
    return str(reduced)


def _shift_sentence(
    shifts: dict[str, float], compositions: list[str], residual: float, *, separable: bool
) -> str:
    """Return the shifts in words, with what they are good for."""
    listed = ", ".join(f"{symbol} {shift:+.3f}" for symbol, shift in shifts.items())
    sentence = (
        f"Energy zeros were aligned (eV per atom: {listed}); {1000 * residual:.0f} meV/atom are "
        "left, for training to learn."
    )
    if separable:
        return sentence
    shown = ", ".join(compositions[:4]) + (" …" if len(compositions) > 4 else "")
    return (
        f"{sentence} The labels ({shown}) cannot tell the elements apart: the sum is right for "
        "these compositions, the single shifts mean nothing."
    )


def _check_forces(
    labels: Sequence[LabelledFrame], predictions: Sequence[Prediction]
) -> tuple[float | None, float | None, str]:
    """Return slope, correlation and a sentence; raise if sign or unit are wrong."""
    wanted = np.concatenate([np.asarray(label.forces_eV_A, dtype=float) for label in labels])
    found = np.concatenate([prediction.forces_eV_A for prediction in predictions])
    if wanted.size < MIN_COMPONENTS or _rms(found) < MIN_FORCE_EV_A or not _rms(wanted):
        return None, None, "Forces are too few or too small to check their sign and unit."
    slope, correlation = _relation(found.ravel(), wanted.ravel())
    enough = wanted.size >= LOST_COMPONENTS and _rms(found) > LOST_FORCE_EV_A
    if abs(correlation) < LOST_CORRELATION and enough:
        raise AlignmentError(
            f"The forces of the labels have nothing in common with those of the potential "
            f"(correlation {correlation:.2f} over {wanted.size} components): another order of "
            "atoms, or other structures.",
            where=f"{len(labels)} labels",
            hint="compare one label's output with its structure, atom by atom",
        )
    if abs(correlation) < MIN_CORRELATION:
        return None, correlation, f"Forces are related loosely (correlation {correlation:.2f})."
    _refuse_factor(slope, FORCE_FACTORS, what="forces", unit="eV/Å", n_labels=len(labels))
    return (
        slope,
        correlation,
        _agreement("forces", slope, correlation),
    )


def _check_stresses(
    labels: Sequence[LabelledFrame], predictions: Sequence[Prediction]
) -> tuple[float | None, float | None, str]:
    """Return slope, correlation and a sentence; raise if sign, unit or order are wrong.

    The mean pressure is taken off first: two levels of theory differ in the equilibrium volume,
    which shifts all pressures by a constant.
    """
    pairs = [
        (prediction.stress_eV_A3, np.asarray(label.stress_eV_A3, dtype=float))
        for label, prediction in zip(labels, predictions, strict=True)
        if label.stress_eV_A3 is not None
    ]
    if not pairs:
        return None, None, "The labels have no stress."
    found, wanted = (_without_mean_pressure(np.array(side)) for side in zip(*pairs, strict=True))
    if found.size < MIN_COMPONENTS or _rms(found) < MIN_STRESS_EV_A3 or not _rms(wanted):
        return None, None, "Stresses are too few or too small to check their sign and unit."
    slope, correlation = _relation(found.ravel(), wanted.ravel())
    _refuse_shear_order(found[:, 3:], wanted[:, 3:], n_labels=len(labels))
    if abs(correlation) < MIN_CORRELATION:
        return None, correlation, f"Stresses are related loosely (correlation {correlation:.2f})."
    _refuse_factor(slope, STRESS_FACTORS, what="stresses", unit="eV/Å³", n_labels=len(labels))
    return (
        slope,
        correlation,
        _agreement("stresses", slope, correlation),
    )


def _without_mean_pressure(stresses: np.ndarray) -> np.ndarray:
    """Return xx yy zz yz xz xy of stresses (n, 3, 3) less their mean hydrostatic part."""
    mean = np.trace(stresses, axis1=1, axis2=2).mean() / 3
    return (stresses - mean * np.eye(3))[:, [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


def _refuse_shear_order(found: np.ndarray, wanted: np.ndarray, *, n_labels: int) -> None:
    """Raise if another order of yz, xz, xy fits clearly where the given one does not."""
    if found.size < MIN_COMPONENTS or _rms(found) < MIN_STRESS_EV_A3 or not _rms(wanted):
        return
    fits = {
        order: abs(_relation(found.ravel(), wanted[:, order].ravel())[1])
        for order in permutations(range(3))
    }
    best = max(fits, key=fits.__getitem__)
    if fits[(0, 1, 2)] < 0.5 and fits[best] > 0.85:
        names = [("yz", "xz", "xy")[index] for index in best]
        raise AlignmentError(
            "The shear stresses of the labels are in another order: what the labels call "
            f"{', '.join(names)} fits the potential's yz, xz, xy "
            f"(correlation {fits[best]:.2f}, as given {fits[(0, 1, 2)]:.2f}).",
            where=f"{n_labels} labels",
            hint="VASP lists xx yy zz xy yz zx; check how the output was read",
        )


def _refuse_factor(
    slope: float, factors: dict[float, str], *, what: str, unit: str, n_labels: int
) -> None:
    """Raise if a slope is nearer to a known mistake than to 1."""
    if 1 / BELIEVABLE < slope < BELIEVABLE:
        return
    known = [factor for factor in factors if (factor > 0) == (slope > 0)]
    nearest = min(known, key=lambda factor: abs(np.log(slope / factor)))
    meaning = (
        factors[nearest]
        if abs(np.log(slope / nearest)) < np.log(BELIEVABLE)
        else "this is no unit known to us"
    )
    raise AlignmentError(
        f"The {what} of the labels are {slope:.3g} times those of the potential, where about 1 "
        f"is right: {meaning}.",
        where=f"{what} of {n_labels} labels, in {unit}",
        hint="correct the conversion; training on these would teach nonsense",
    )


def _agreement(what: str, slope: float, correlation: float) -> str:
    """Return the sentence of a check that passed."""
    return (
        f"Label {what} are {slope:.2f} times the parent's (correlation {correlation:.2f}): sign "
        "and unit are right."
    )


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))


def _relation(found: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """Return slope and correlation of two samples through the origin.

    The slope is the ratio of sizes with the sign of the correlation (reduced major axis): unlike
    that of a regression it does not shrink with the scatter.
    """
    correlation = float((found * wanted).mean() / (_rms(found) * _rms(wanted)))
    return float(np.copysign(_rms(wanted) / _rms(found), correlation)), correlation
