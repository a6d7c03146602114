"""How a level of theory of VASP is written down: the same by the recipe and by the reader.

Settings are INCAR's with their defaults filled in, k-points the rule that makes the mesh, U and
potentials by element, so that it does not depend on the number of atoms.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ENERGY = "E0 (smearing extrapolated to zero), uncorrected"


def level(
    recipe: str,
    incar: dict[str, Any],
    *,
    elements: Sequence[str],
    n_atoms: int,
    kpoints: Any,
    hubbard: dict[str, list[float]],
    magmoms: dict[str, Any],
    potentials: dict[str, str],
    others: dict[str, Any],
) -> dict[str, Any]:
    """Return a level of theory; the recipe and the reader of outputs both build it here.

    Parameters
    ----------
    recipe
        Name of the recipe, which says whether EDIFF goes with the number of atoms.
    incar
        Settings, with all defaults that matter here filled in.
    elements
        Elements present.
    n_atoms
        Atoms of the cell that ``incar`` is for.
    kpoints
        The recipe's rule if it holds, else the mesh.
    hubbard
        Element → [l, U, J] (eV) where U is not zero.
    magmoms
        Element → moment at the start (μB).
    potentials
        Element → title of its PAW potential.
    others
        Whatever else changes the physics and is not at its default; empty for a recipe.
    """
    found: dict[str, Any] = {
        "code": "vasp",
        "energy": ENERGY,
        "functional": _functional(incar),
        "ENCUT_eV": tidy(incar["ENCUT"]),
        "PREC": str(incar["PREC"])[:1].upper(),
        "ISPIN": int(incar["ISPIN"]),
        "ISMEAR": int(incar["ISMEAR"]),
        "SIGMA_eV": tidy(incar["SIGMA"]),
        "LASPH": bool(incar["LASPH"]),
        "LREAL": bool(incar["LREAL"]),
        "ADDGRID": bool(incar.get("ADDGRID", False)),
        "hubbard_l_U_J": {name: hubbard[name] for name in sorted(hubbard)},
        "kpoints": kpoints,
        "potentials": {name: potentials[name] for name in sorted(elements)},
    }
    if recipe == "mptrj":
        found["EDIFF_eV_per_atom"] = tidy(incar["EDIFF"] / n_atoms)
    else:
        found["EDIFF_eV"] = tidy(incar["EDIFF"])
    if found["ISPIN"] == 2:
        found["start_moments_muB"] = {name: magmoms[name] for name in sorted(elements)}
    if others:
        found["others"] = dict(sorted(others.items()))
    return found


def kpoint_rule(recipe: str, cell_A: Any) -> tuple[dict[str, Any], list[int]]:
    """Return a recipe's rule for k-points, and the Γ-centred mesh it gives for a cell."""
    from otf_workflows.labelers.espresso_recipe import kpoint_grid

    if recipe == "mptrj":
        from pymatgen.core import Lattice, Structure
        from pymatgen.io.vasp import Kpoints

        density = 100
        cell = Structure(Lattice(cell_A), ["H"], [[0, 0, 0]])
        with quiet():
            mesh = Kpoints.automatic_density_by_vol(cell, density, force_gamma=True).kpts[0]
        return {"gamma": True, "per_reciprocal_A3": density}, [int(n) for n in mesh]
    spacing = 0.22
    return {"gamma": True, "kspacing_per_A": spacing}, list(kpoint_grid(cell_A, spacing))


@lru_cache
def known_titels(family: str) -> dict[str, tuple[str, float]]:
    """Return name of a potential → its title and valence, for one family of VASP's potentials.

    They come from the table that pymatgen ships to recognise potentials, so that no licensed file
    is needed to know what a recipe asks for.
    """
    from monty.serialization import loadfn
    from pymatgen.io.vasp.inputs import POTCAR_STATS_PATH

    return {
        entry["symbol"]: (plain_titel(titel), float(entry["ZVAL"]))
        for titel, entries in loadfn(POTCAR_STATS_PATH)[family].items()
        for entry in entries
    }


def plain_titel(titel: str) -> str:
    """Return a title without blanks, as pymatgen's table has it."""
    return "".join(titel.split())


def symbols_of(numbers: Sequence[int]) -> list[str]:
    """Return the elements present, in alphabetical order."""
    from ase.data import chemical_symbols

    return sorted({chemical_symbols[number] for number in numbers})


def tidy(number: float) -> float:
    """Return a number to six significant digits, so that input and output agree on it."""
    return float(f"{float(number):.6g}")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence pymatgen's warnings on input sets: what a recipe does is decided and written here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def hubbard_of(incar: dict[str, Any], types: Sequence[str]) -> dict[str, list[float]]:
    """Return element → [l, U, J] where U or J is not zero; ``types`` in the order of the file.

    Raises
    ------
    ValueError
        If there are more or fewer values than types of atoms.
    """
    if not incar.get("LDAU"):
        return {}
    columns = [_numbers(incar[key]) for key in ("LDAUL", "LDAUU", "LDAUJ")]
    # VASP fills in one zero where LDAU is on and no values are given.
    if not any(columns[1] + columns[2]):
        return {}
    rows = zip(types, *columns, strict=True)
    return {name: [int(shell), tidy(u), tidy(j)] for name, shell, u, j in rows if u or j}


def _numbers(value: Any) -> list[float]:
    return [float(item) for item in (value if isinstance(value, list | tuple) else [value])]


def _functional(incar: dict[str, Any]) -> str:
    """Return the functional; ``--`` is VASP's word for 'as in the potential', PBE for these."""
    meta = str(incar.get("METAGGA") or "--").upper()
    if meta not in {"--", "NONE", "F", "FALSE"}:
        return meta
    gga = str(incar.get("GGA") or "--").upper()
    return {"--": "PBE", "PE": "PBE", "PS": "PBEsol"}.get(gga, gga)
