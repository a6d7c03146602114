"""Replay against forgetting: other crystals of the same elements, as they were known before.

A universal potential that is trained on one material drifts everywhere else. Training on a few
structures that the pretrained potential labels itself, beside the real labels and with a small
weight, holds it back; the data it was pretrained on are not needed. How far it went is measured on
crystals of prototypes that are never replayed.

Replay with labels by the foundation model itself: Batatia et al., arXiv:2401.00096, and the
comparison of strategies in arXiv:2606.12704.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from otf_workflows.errors import PotentialError
from otf_workflows.schemas import Forgetting, Frame, LabelledFrame
from otf_workflows.types import Split

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ase import Atoms

    from otf_workflows.potentials.base import Potential, Prediction

REPLAYED = (("fcc", "bcc", "hcp"), ("rocksalt", "cesiumchloride", "fluorite"))
"""Prototypes of elements and of compounds that are trained on."""

HELD_OUT = (("sc", "diamond"), ("zincblende", "wurtzite"))
"""Those that tell how far a model went, and are never trained on."""

N_PROBES = 20
PROBE_SEED = 20240503
"""One set of probes for a set of elements: models of all campaigns can be compared."""

SCALES = np.geomspace(0.85, 1.7, 10)
"""Nearest distances that are tried, in units of the sum of covalent radii (Cordero et al., Dalton
Trans. 2008, 2832); the one of least energy is the start."""

STRAIN = 0.04
"""Largest linear strain; shears are at most half of it."""

RATTLES = (0.01, 0.05)
"""Range of the standard deviation of the rattle, in units of the nearest distance."""

MIN_ATOMS = 6
"""Smaller cells are repeated: in a primitive cell hardly an atom can leave its site."""


def prototypes(numbers: Iterable[int], *, held_out: bool = False) -> list[Atoms]:
    """Return crystals of these elements: each by itself, and each pair.

    Parameters
    ----------
    numbers
        Atomic numbers.
    held_out
        The prototypes that are never trained on, instead of the others.

    Returns
    -------
    list
        Perfect crystals of 6 to 8 atoms. The nearest distance is, for the pair of atoms that
        touches first, the sum of their covalent radii.
    """
    from ase.build import bulk
    from ase.data import chemical_symbols

    symbols = [chemical_symbols[z] for z in sorted(set(numbers))]
    alone, together = HELD_OUT if held_out else REPLAYED
    names = [(symbol, crystal) for symbol in symbols for crystal in alone]
    for first, second in combinations(symbols, 2):
        for crystal in together:
            if crystal == "fluorite":
                names += [(f"{first}{second}2", crystal), (f"{second}{first}2", crystal)]
            else:
                names.append((f"{first}{second}", crystal))
    return [_touching(_repeated(bulk(name, crystal, a=4.0))) for name, crystal in names]


def variations(
    potential: Potential, numbers: Iterable[int], *, n: int, seed: int, held_out: bool = False
) -> Iterator[tuple[Atoms, Prediction]]:
    """Yield strained and rattled crystals, and what the potential says of each.

    Each is taken at the volume of least energy first. Those that the potential cannot treat (atoms
    beyond its cutoff) are left out.

    Parameters
    ----------
    potential
        The pretrained potential.
    numbers
        Atomic numbers; equal ones count once.
    n
        Structures, at most.
    seed
        Same seed, same structures.
    held_out
        As in :func:`prototypes`.
    """
    rng = np.random.default_rng([seed, int(held_out)])
    crystals = prototypes(numbers, held_out=held_out)
    order = rng.permutation(len(crystals))[:n]
    relaxed = [_at_least_energy(potential, crystals[index]) for index in order]
    for number in range(n):
        atoms = relaxed[number % len(relaxed)]
        if atoms is None:
            continue
        varied = _varied(atoms, rng)
        try:
            yield varied, potential.predict(varied)
        except PotentialError:
            continue


def pseudo_labels(
    pretrained: Potential, numbers: Iterable[int], *, n: int, seed: int
) -> list[LabelledFrame]:
    """Return labels by the pretrained potential itself, at its own zero of energy.

    Parameters
    ----------
    pretrained
        What is to be remembered.
    numbers
        Atomic numbers of the material.
    n
        Labels, at most.
    seed
        Same seed, same labels.
    """
    return [
        LabelledFrame(
            key=f"replay-{number}",
            split=Split.TRAIN,
            cycle=0,
            frame=Frame.from_atoms(atoms),
            energy_eV=found.energy_eV,
            forces_eV_A=found.forces_eV_A.tolist(),
            stress_eV_A3=found.stress_eV_A3.tolist(),
        )
        for number, (atoms, found) in enumerate(variations(pretrained, numbers, n=n, seed=seed))
    ]


def forgetting(
    pretrained: Potential, tuned: Potential, numbers: Iterable[int]
) -> Forgetting | None:
    """Return how far a model went from the potential it was trained from, in other crystals.

    A distance is no error: training on DFT of one material may mend what the pretrained potential
    does wrong everywhere. A large one says that the model knows its own material only.

    Parameters
    ----------
    pretrained, tuned
        Before and after.
    numbers
        Atomic numbers of the material.

    Returns
    -------
    Forgetting or None
        None if the pretrained potential can treat none of the structures.
    """
    probes = list(variations(pretrained, numbers, n=N_PROBES, seed=PROBE_SEED, held_out=True))
    if not probes:
        return None
    before = [found.forces_eV_A for _, found in probes]
    after = [found.forces_eV_A for found in tuned.predict_many([atoms for atoms, _ in probes])]
    return Forgetting(
        n_frames=len(probes),
        elements=sorted({symbol for atoms, _ in probes for symbol in atoms.get_chemical_symbols()}),
        force_rmse_eV_A=_rms([b - a for a, b in zip(before, after, strict=True)]),
        force_rms_eV_A=_rms(before),
    )


def _rms(parts: Sequence[np.ndarray]) -> float:
    return float(np.sqrt(np.mean(np.concatenate(parts) ** 2)))


def _repeated(atoms: Atoms) -> Atoms:
    """Return the crystal doubled along its shortest side until it has atoms enough."""
    while len(atoms) < MIN_ATOMS:
        times = [1, 1, 1]
        times[int(np.argmin(atoms.cell.lengths().round(6)))] = 2
        atoms = atoms.repeat(times)
    return atoms


def _touching(atoms: Atoms) -> Atoms:
    """Return the crystal scaled so that its nearest atoms are their covalent radii apart."""
    from ase.data import covalent_radii
    from ase.neighborlist import neighbor_list

    first, second, distances_A = neighbor_list(
        "ijd", atoms, cutoff=1.01 * atoms.cell.lengths().max()
    )
    radii_A = covalent_radii[atoms.numbers]
    ratio = (distances_A / (radii_A[first] + radii_A[second])).min()
    return _scaled(atoms, 1 / ratio)


def _scaled(atoms: Atoms, scale: float) -> Atoms:
    image = atoms.copy()
    image.set_cell(atoms.cell.array * scale, scale_atoms=True)
    return image


def _at_least_energy(potential: Potential, atoms: Atoms) -> Atoms | None:
    """Return the crystal at the volume the potential likes best; None if it can treat none."""
    images = [_scaled(atoms, scale) for scale in SCALES]
    try:
        energies_eV = [found.energy_eV for found in potential.predict_many(images)]
    except PotentialError:
        energies_eV = [_energy_eV(potential, image) for image in images]
    best = int(np.argmin(energies_eV))
    return images[best] if np.isfinite(energies_eV[best]) else None


def _energy_eV(potential: Potential, atoms: Atoms) -> float:
    """Return the energy; infinite if the potential cannot treat the structure."""
    try:
        return potential.predict(atoms).energy_eV
    except PotentialError:
        return np.inf


def _varied(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """Return a strained and rattled copy."""
    from ase.neighborlist import neighbor_list

    linear = np.diag(rng.uniform(-STRAIN, STRAIN, 3))
    shear = np.triu(rng.uniform(-STRAIN / 2, STRAIN / 2, (3, 3)), k=1)
    image = atoms.copy()
    # A symmetric strain has no rotation in it.
    image.set_cell(
        atoms.cell.array @ (np.eye(3) + linear + (shear + shear.T) / 2), scale_atoms=True
    )
    nearest_A = neighbor_list("d", image, cutoff=1.01 * image.cell.lengths().max()).min()
    image.rattle(stdev=rng.uniform(*RATTLES) * nearest_A, rng=rng)
    return image
