"""The universal potentials a campaign can start from; nothing heavy is imported to list them."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from otf_workflows.errors import ConfigurationError, InputError

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
    functional
        Density functional of its training labels (U aside); None if it was not trained on DFT.
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
    packages
        Distributions it needs.
    extra
        Extra of this package that installs them, if they are not installed anyway.
    trainable
        Whether it can be fine-tuned.
    moments
        Whether its architecture predicts magnetic moments (this package does not use them).
    """

    family: str
    functional: str | None
    level_of_theory: str
    licence: str
    citation: str
    elements: frozenset[int]
    loader: str
    packages: tuple[str, ...] = ()
    extra: str | None = None
    trainable: bool = True
    moments: bool = False

    @property
    def installation(self) -> str:
        """Command that installs what it needs."""
        if self.extra:
            return f"pip install 'otf-workflows[{self.extra}]'"
        return f"pip install {' '.join(self.packages)}"


_MP_THEORY = (
    "VASP PBE and PBE+U with Materials Project settings (MPtrj); total energies after the MP2020 "
    "corrections"
)
_UNCORRECTED = "VASP PBE and PBE+U with Materials Project settings (MPtrj); uncorrected energies"


def _chgnet(functional: str, level: str, **others: Any) -> PotentialEntry:
    values: dict[str, Any] = {
        "licence": "BSD-3-Clause",
        "citation": _CHGNET,
        "elements": _MPTRJ,
        **others,
    }
    return PotentialEntry(
        family="chgnet",
        functional=functional,
        level_of_theory=level,
        loader="otf_workflows.potentials.chgnet:load",
        packages=("chgnet", "torch"),
        moments=True,
        **values,
    )


def _sevennet(functional: str, level: str, *, citation: str) -> PotentialEntry:
    return PotentialEntry(
        family="sevennet",
        functional=functional,
        level_of_theory=level,
        licence="MIT (code and weights, as in the wheel of sevenn 0.13; GPL-3.0 in older releases)",
        citation=citation,
        elements=_MPTRJ,
        loader="otf_workflows.potentials.sevennet:load",
        packages=("sevenn", "e3nn", "torch"),
        extra="sevennet",
    )


_CHGNET = "Deng et al., Nature Machine Intelligence 5, 1031 (2023), doi:10.1038/s42256-023-00716-3"
_SEVENNET = "Park et al., J. Chem. Theory Comput. 20, 4857 (2024), doi:10.1021/acs.jctc.4c00190"
_SEVENNET_MF = (
    f"{_SEVENNET}; Kim et al., J. Am. Chem. Soc. 147, 1042 (2025), doi:10.1021/jacs.4c14455"
)

POTENTIALS: dict[str, PotentialEntry] = {
    "chgnet-0.3.0": _chgnet("PBE", _MP_THEORY),
    "chgnet-0.2.0": _chgnet("PBE", _MP_THEORY),
    "chgnet-r2scan": _chgnet(
        "r2SCAN",
        "VASP r2SCAN with Materials Project settings (MP-r2SCAN), by transfer learning from "
        "chgnet-0.3.0",
        citation=f"{_CHGNET}; the r2SCAN weights are those shipped with chgnet 0.4",
        elements=_MPTRJ - {70},
    ),
    "sevennet-0": _sevennet(
        "PBE", f"{_UNCORRECTED}; checkpoint of 11 July 2024", citation=_SEVENNET
    ),
    "sevennet-0-may2024": _sevennet(
        "PBE",
        "VASP PBE and PBE+U with Materials Project settings (relaxations of MPF.2021.2.8, the data "
        "set of M3GNet); checkpoint of 22 May 2024",
        citation=_SEVENNET,
    ),
    "sevennet-l3i5": _sevennet("PBE", _UNCORRECTED, citation=_SEVENNET),
    "sevennet-mf-pbe": _sevennet(
        "PBE",
        "VASP PBE and PBE+U relaxations of the Materials Project, learned together with r2SCAN",
        citation=_SEVENNET_MF,
    ),
    "sevennet-mf-r2scan": _sevennet(
        "r2SCAN",
        "VASP r2SCAN relaxations of the Materials Project, learned together with PBE and PBE+U",
        citation=_SEVENNET_MF,
    ),
    "toy-lj": PotentialEntry(
        family="toy",
        functional=None,
        level_of_theory="Lennard-Jones with the size of fcc copper: for tests and teaching only",
        licence="BSD-3-Clause",
        citation="Jones, Proc. R. Soc. Lond. A 106, 463 (1924), doi:10.1098/rspa.1924.0082",
        elements=frozenset(range(1, 119)),
        loader="otf_workflows.testing.potential:load",
        trainable=False,
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


def missing_packages(name: str) -> list[str]:
    """Return packages of a potential that are not installed, without loading any."""
    return [package for package in potential_entry(name).packages if find_spec(package) is None]


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
    ConfigurationError
        If packages that it needs are not installed.
    PotentialError
        If the blob is damaged.
    """
    missing = missing_packages(name)
    if missing:
        raise ConfigurationError(
            f"The potential '{name}' needs {' and '.join(missing)}, not installed here.",
            hint=potential_entry(name).installation,
        )
    module, function = potential_entry(name).loader.split(":")
    return getattr(importlib.import_module(module), function)(name, blob, device=device)
