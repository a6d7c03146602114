"""What a person who publishes these numbers should cite."""

from __future__ import annotations

from typing import Any

_CODES = {
    "espresso": "Quantum ESPRESSO: Giannozzi et al., J. Phys.: Condens. Matter 21, 395502 (2009), "
    "doi:10.1088/0953-8984/21/39/395502; Giannozzi et al., J. Phys.: Condens. Matter 29, 465901 "
    "(2017), doi:10.1088/1361-648X/aa8f79",
    "vasp": "VASP: Kresse and Furthmüller, Phys. Rev. B 54, 11169 (1996), "
    "doi:10.1103/PhysRevB.54.11169",
    "cp2k": "CP2K: Kühne et al., J. Chem. Phys. 152, 194103 (2020), doi:10.1063/5.0007045",
    "gpaw": "GPAW: Mortensen et al., J. Chem. Phys. 160, 092503 (2024), doi:10.1063/5.0182685",
    "abinit": "ABINIT: Gonze et al., Comput. Phys. Commun. 248, 107042 (2020), "
    "doi:10.1016/j.cpc.2019.107042",
}
_FUNCTIONALS = {
    "PBE": "PBE: Perdew, Burke and Ernzerhof, Phys. Rev. Lett. 77, 3865 (1996), "
    "doi:10.1103/PhysRevLett.77.3865",
    "PBEsol": "PBEsol: Perdew et al., Phys. Rev. Lett. 100, 136406 (2008), "
    "doi:10.1103/PhysRevLett.100.136406",
}
_ALWAYS = [
    "ASE: Larsen et al., J. Phys.: Condens. Matter 29, 273002 (2017), doi:10.1088/1361-648X/aa680e",
    "pymatgen: Ong et al., Comput. Mater. Sci. 68, 314 (2013), doi:10.1016/j.commatsci.2012.10.028",
    "jobflow: Rosen et al., J. Open Source Softw. 9, 5995 (2024), doi:10.21105/joss.05995",
    "FireWorks: Jain et al., Concurr. Comput. 27, 5037 (2015), doi:10.1002/cpe.3505",
    "atomate2: Ganose et al., Digital Discovery 4, 1944 (2025), doi:10.1039/D5DD00019J",
]


def citations(potential: str, labels: dict[str, Any]) -> list[str]:
    """Return references of the potential, the DFT code, its functional and the libraries.

    Parameters
    ----------
    potential
        Registry name of the pretrained potential.
    labels
        The section ``labels`` of the campaign file.
    """
    from otf_workflows.potentials.registry import POTENTIALS

    entry = POTENTIALS.get(potential)
    first = [f"{potential}: {entry.citation}"] if entry else []
    code = _CODES.get(str(labels.get("code")))
    functional = _FUNCTIONALS.get(str(labels.get("functional")))
    return [*first, *(text for text in (code, functional) if text), *_ALWAYS]
