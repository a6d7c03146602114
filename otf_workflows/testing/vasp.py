"""A stand-in for VASP: reads its input files, writes its output files, computes Lennard-Jones.

For tests of campaigns and of queues without a licence; run as
``python -m otf_workflows.testing.vasp``. Like VASP it takes atoms in the order of POSCAR, uses what
INCAR and KPOINTS say, and reports that in ``vasprun.xml``. Unlike VASP it reads the names of
potentials from ``POTCAR.spec``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from xml.sax.saxutils import escape

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase import Atoms

DEFAULTS: dict[str, Any] = {
    "PREC": "Normal",
    "EDIFF": 1e-4,
    "NELM": 60,
    "ISPIN": 1,
    "ISMEAR": 1,
    "SIGMA": 0.2,
    "LASPH": False,
    "LREAL": False,
    "ADDGRID": False,
    "LDAU": False,
    "NSW": 0,
    "GGA": "--",
}
"""What VASP uses if INCAR is silent, of what is reported."""

UNITS_KB = -10.0
"""kB with compression positive, per GPa with tension positive."""


def lennard_jones(atoms: Atoms) -> tuple[float, np.ndarray, np.ndarray]:
    """Return energy (eV), forces (eV/Å, shape (n, 3)) and stress (GPa, tension positive, (3, 3)).

    Parameters
    ----------
    atoms
        Any periodic structure; all elements are alike.
    """
    from ase.calculators.lj import LennardJones
    from ase.units import GPa

    atoms = atoms.copy()
    atoms.calc = LennardJones(sigma=2.0, epsilon=0.2, rc=5.0, smooth=True)
    stress_GPa = atoms.get_stress(voigt=False) / GPa
    return float(atoms.get_potential_energy()), atoms.get_forces(), stress_GPa


def main(arguments: Sequence[str] | None = None) -> int:
    """Compute the inputs in the current folder and return an exit status."""
    from ase.io import read
    from pymatgen.io.vasp import Incar

    parser = argparse.ArgumentParser(description="Stand-in for VASP.")
    parser.add_argument("--family", default="PBE", help="Family of potentials to name.")
    parser.add_argument("--converges-with", metavar="KEY=VALUE", help="Fails to converge without.")
    parser.add_argument("--prints", default="", help="Extra text on standard output.")
    parser.add_argument(
        "--uses", metavar="KEY=VALUE", help="Computes with this, whatever INCAR says."
    )
    parser.add_argument("--status", type=int, default=0, help="Stop at once with this status.")
    options = parser.parse_args(arguments)
    sys.stdout.write(f"{options.prints}\n")
    if options.status:
        return options.status
    asked = {**DEFAULTS, **Incar.from_file("INCAR")}
    needed, _, value = (options.converges_with or "").partition("=")
    converged = not needed or str(asked.get(needed)) == value
    forced, _, value = (options.uses or "").partition("=")
    if forced:
        asked[forced] = Incar.proc_val(forced, value)
    atoms = cast("Atoms", read("POSCAR", format="vasp"))
    names = Path("POTCAR.spec").read_text().split()
    Path("vasprun.xml").write_text(
        _vasprun(atoms, asked, names, options.family, steps=8 if converged else asked["NELM"])
    )
    return 0


def _vasprun(
    atoms: Atoms, used: dict[str, Any], names: list[str], family: str, *, steps: int
) -> str:
    energy, forces, stress_GPa = lennard_jones(atoms)
    symbols = list(dict.fromkeys(atoms.symbols))
    counts = [list(atoms.symbols).count(symbol) for symbol in symbols]
    titels, charges = _potentials(names, family)
    parameters = {
        **{k: v for k, v in used.items() if k not in {"ENCUT", "METAGGA", "SYSTEM"}},
        "ENMAX": used["ENCUT"],
        "PREC": str(used["PREC"]).lower()[:6],
        "NELECT": float(np.dot(counts, charges)),
    }
    if "LDAUTYPE" in used:
        # VASP writes this one number as a list.
        parameters["LDAUTYPE"] = [used["LDAUTYPE"]]
    energies = "".join(
        f'<i name="{name}">{energy:.8f}</i>' for name in ("e_fr_energy", "e_wo_entrp", "e_0_energy")
    )
    types = "".join(
        f"<rc><c>{n}</c><c>{s}</c><c>1.0</c><c>{z:.4f}</c><c>{t}</c></rc>"
        for n, s, z, t in zip(counts, symbols, charges, titels, strict=True)
    )
    ions = "".join(
        f"<rc><c>{symbol}</c><c>{symbols.index(symbol) + 1}</c></rc>" for symbol in atoms.symbols
    )
    return f"""<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling>
<generator><i name="program" type="string">vasp</i><i name="version" type="string">6.4.2</i>
</generator>
<incar>{_items(used)}</incar>
<kpoints><generation param="Gamma"><v type="int" name="divisions">{_mesh(atoms, used)}</v>
<v name="usershift">0 0 0</v></generation>
<varray name="kpointlist"><v>0 0 0</v></varray><varray name="weights"><v>1.0</v></varray>
</kpoints>
<parameters>{_items(parameters)}</parameters>
<atominfo><atoms>{len(atoms)}</atoms><types>{len(symbols)}</types>
<array name="atoms"><set>{ions}</set></array>
<array name="atomtypes"><set>{types}</set></array></atominfo>
<structure name="initialpos">{_structure(atoms)}</structure>
<calculation>{f"<scstep><energy>{energies}</energy></scstep>" * steps}
<structure>{_structure(atoms)}</structure>
<varray name="forces">{_rows(forces)}</varray>
<varray name="stress">{_rows(stress_GPa * UNITS_KB)}</varray>
<energy>{energies}</energy></calculation>
<structure name="finalpos">{_structure(atoms)}</structure>
</modeling>
"""


def _potentials(names: list[str], family: str) -> tuple[list[str], list[float]]:
    from otf_workflows.labelers.vasp_level import known_titels

    found = [known_titels(family)[name] for name in names]
    # VASP writes blanks around the name: 'PAW_PBE Fe_pv 06Sep2000'.
    titels = [
        titel.replace(f"PAW_PBE{name}", f"PAW_PBE {name} ", 1)
        for name, (titel, _) in zip(names, found, strict=True)
    ]
    return titels, [charge for _, charge in found]


def _mesh(atoms: Atoms, used: dict[str, Any]) -> str:
    from otf_workflows.labelers.espresso_recipe import kpoint_grid

    if Path("KPOINTS").exists():
        return Path("KPOINTS").read_text().splitlines()[3]
    return " ".join(map(str, kpoint_grid(atoms.cell.array, used["KSPACING"])))


def _structure(atoms: Atoms) -> str:
    return (
        f'<crystal><varray name="basis">{_rows(atoms.cell.array)}</varray></crystal>'
        f'<varray name="positions">{_rows(atoms.get_scaled_positions(wrap=False))}</varray>'
    )


def _rows(array: np.ndarray) -> str:
    return "".join("<v>" + " ".join(f"{x:.10f}" for x in row) + "</v>" for row in array)


def _items(settings: dict[str, Any]) -> str:
    return "".join(_item(name, value) for name, value in settings.items())


def _item(name: str, value: Any) -> str:
    if isinstance(value, list | tuple):
        return f'<v name="{name}">{" ".join(str(float(x)) for x in value)}</v>'
    if isinstance(value, bool):
        return f'<i type="logical" name="{name}">{"T" if value else "F"}</i>'
    if isinstance(value, int):
        return f'<i type="int" name="{name}">{value}</i>'
    if isinstance(value, float):
        return f'<i name="{name}">{value!r}</i>'
    return f'<i type="string" name="{name}">{escape(str(value))}</i>'


if __name__ == "__main__":
    sys.exit(main())
