"""One static calculation with GPAW, as a program of its own: JSON in, JSON and text out.

It imports nothing of ours, so that it runs in any Python environment that has GPAW, and GPAW (which
is under the GPL) is never part of our process. A copy of it lies in the folder of every label::

    python gpaw_runner.py TASK.json
    python gpaw_runner.py --check Si O

The second form prints the checksum of each element's data set, or null, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def check(symbols: list[str]) -> dict[str, str | None]:
    """Return the checksum of the PBE data set of each element, None where there is none."""
    from gpaw.setup_data import SetupData

    found: dict[str, str | None] = {}
    for symbol in symbols:
        try:
            found[symbol] = SetupData(symbol, "PBE").fingerprint
        except FileNotFoundError:
            found[symbol] = None
    return found


def calculate(task: dict) -> dict:
    """Return energy (eV), forces (eV/Å), stress (eV/Å³), moments (μB), and the geometry."""
    from ase import Atoms
    from gpaw import GPAW, PW

    spin = task["moments_muB"]
    atoms = Atoms(
        numbers=task["numbers"],
        cell=task["cell_A"],
        positions=task["positions_A"],
        pbc=True,
        magmoms=spin,
    )
    atoms.calc = GPAW(mode=PW(task["cutoff_eV"]), txt=task["txt"], **task["parameters"])
    # First the SCF, and the free energy: forces are its derivative, the default is not.
    energy = atoms.get_potential_energy(force_consistent=True)
    return {
        "energy_eV": float(energy),
        "forces_eV_A": atoms.get_forces().tolist(),
        "stress_eV_A3": atoms.get_stress(voigt=False).tolist(),
        "numbers": atoms.numbers.tolist(),
        "cell_A": atoms.cell.array.tolist(),
        "positions_A": atoms.positions.tolist(),
        "magmoms_muB": None if spin is None else atoms.get_magnetic_moments().tolist(),
    }


def main(arguments: list[str]) -> None:
    """Do what the command line asks for."""
    if arguments[0] == "--check":
        sys.stdout.write(json.dumps(check(arguments[1:])) + "\n")
        return
    task = json.loads(Path(arguments[0]).read_text())
    if task["data_dir"]:
        os.environ["GPAW_SETUP_PATH"] = task["data_dir"]
    result = calculate(task)
    from gpaw.mpi import world

    if world.rank == 0:
        Path(task["result"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
