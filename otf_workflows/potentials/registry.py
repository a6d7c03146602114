"""The universal potentials a campaign can start from; nothing heavy is imported to list them."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from otf_workflows.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otf_workflows.potentials.base import Potential

_MPTRJ = frozenset(range(1, 95)) - {84, 85, 86, 87, 88}
"""MPtrj holds no Po, At, Rn, Fr and Ra: their embeddings are still the random initial ones."""


@dataclass(frozen=True)
class PotentialEntry:
    """What a person should know about a potential before trusting it.

    Attributes
    ----------
    family
        Architecture.
    level_of_theory
        What its training labels were computed with, in words.
    licence
        Licence of code and weights.
    citation
        What to cite.
    elements
        Atomic numbers it was trained on.
    loader
        ``module:function(name, blob, *, device)`` that makes it; imported when needed.
    """

    family: str
    level_of_theory: str
    licence: str
    citation: str
    elements: frozenset[int]
    loader: str


_CHGNET = "Deng et al., Nature Machine Intelligence 5, 1031 (2023), doi:10.1038/s42256-023-00716-3"
_MP_THEORY = (
    "VASP PBE and PBE+U with Materials Project settings (MPtrj); total energies after the MP2020 "
    "corrections"
)

POTENTIALS: dict[str, PotentialEntry] = {
    "chgnet-0.3.0": PotentialEntry(
        family="chgnet",
        level_of_theory=_MP_THEORY,
        licence="BSD-3-Clause",
        citation=_CHGNET,
        elements=_MPTRJ,
        loader="otf_workflows.potentials.chgnet:load",
    ),
    "chgnet-0.2.0": PotentialEntry(
        family="chgnet",
        level_of_theory=_MP_THEORY,
        licence="BSD-3-Clause",
        citation=_CHGNET,
        elements=_MPTRJ,
        loader="otf_workflows.potentials.chgnet:load",
    ),
    "chgnet-r2scan": PotentialEntry(
        family="chgnet",
        level_of_theory="VASP r2SCAN with Materials Project settings (MP-r2SCAN), by transfer "
        "learning from chgnet-0.3.0",
        licence="BSD-3-Clause",
        citation=f"{_CHGNET}; the r2SCAN weights are those shipped with chgnet 0.4",
        elements=_MPTRJ - {70},
        loader="otf_workflows.potentials.chgnet:load",
    ),
    "toy-lj": PotentialEntry(
        family="toy",
        level_of_theory="Lennard-Jones with the size of fcc copper: for tests and teaching only",
        licence="BSD-3-Clause",
        citation="Jones, Proc. R. Soc. Lond. A 106, 463 (1924), doi:10.1098/rspa.1924.0082",
        elements=frozenset(range(1, 119)),
        loader="otf_workflows.testing.potential:load",
    ),
}
"""All potentials by name."""


def potential_entry(name: str) -> PotentialEntry:
    """Return what is known about a potential.

    Raises
    ------
    InputError
        If there is none of this name; a near miss is suggested.
    """
    if name in POTENTIALS:
        return POTENTIALS[name]
    near = difflib.get_close_matches(name, POTENTIALS, n=1, cutoff=0.4)
    raise InputError(
        f"There is no potential '{name}'." + (f" Did you mean '{near[0]}'?" if near else ""),
        hint=f"choose one of {', '.join(POTENTIALS)}",
    )


def check_elements(name: str, numbers: Iterable[int]) -> None:
    """Refuse elements that a potential was never trained on.

    Raises
    ------
    InputError
        Naming every such element.
    """
    missing = sorted({int(z) for z in numbers} - potential_entry(name).elements)
    if not missing:
        return
    from ase.data import chemical_symbols

    names = ", ".join(chemical_symbols[z] if z < len(chemical_symbols) else str(z) for z in missing)
    raise InputError(
        f"{name} was not trained on {names}.",
        hint="choose a material or a potential that covers all elements",
    )


def load_potential(name: str, blob: bytes | None = None, *, device: str = "cpu") -> Potential:
    """Return a potential: as pretrained, or as it was dumped.

    Parameters
    ----------
    name
        Key of :data:`POTENTIALS`.
    blob
        What ``Potential.dump`` returned; the pretrained weights if not given.
    device
        Torch device, for potentials that have one.

    Raises
    ------
    InputError
        If the name is unknown, or the blob belongs to another potential.
    PotentialError
        If the blob is damaged.
    """
    module, function = potential_entry(name).loader.split(":")
    return getattr(importlib.import_module(module), function)(name, blob, device=device)
