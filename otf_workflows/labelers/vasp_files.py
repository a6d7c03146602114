"""Write the input of VASP, and read what it says it computed.

VASP wants atoms of one element together, so atomate2 sorts them, and forces come back in that
order. The order is written beside the inputs; an output is accepted only if every atom of it
stands where the frame has the atom that it is mapped to.

Numbers come from ``vasprun.xml``: the energy extrapolated to zero smearing (pymatgen's
``final_energy``, which mends the zero that VASP 5.4 writes there), forces, and the stress, which
VASP gives in kB with compression positive. Site moments are only in ``OUTCAR``. Settings are those
under ``<parameters>``, which VASP used, with INCAR's for what is not listed there.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.labelers.external import UnreadableOutput
from otf_workflows.labelers.vasp_level import (
    hubbard_of,
    kpoint_rule,
    level,
    plain_titel,
    quiet,
    tidy,
)

if TYPE_CHECKING:
    from pathlib import Path

    from pymatgen.io.vasp import Vasprun

    from otf_workflows.labelers.vasp_recipe import VaspRecipe
    from otf_workflows.schemas import Frame

ORDER_FILE = "atom_order.json"
RESULT_FILE = "vasprun.xml"
INPUTS = ("INCAR", "KPOINTS", "POSCAR", "POTCAR", "POTCAR.spec")
OUTPUTS = ("vasprun.xml", "OUTCAR", "OSZICAR", "CONTCAR", "WAVECAR", "CHGCAR", "STOPCAR")
POSCAR_DIGITS = 14
"""pymatgen writes six by default; forces are wanted where the frame is."""

SAME_PLACE_A = 1e-4
"""Largest distance between an atom of the output and of the frame (Å)."""

ENTROPY_WARNING_EV = 1e-3
"""Free energy and extrapolated energy may differ by so much per atom without a word (eV); the
same limit as custodian's."""

DEFAULTS: dict[str, Any] = {
    "LHFCALC": False,
    "LUSE_VDW": False,
    "LSORBIT": False,
    "LNONCOLLINEAR": False,
    "LSPIRAL": False,
    "LDIPOL": False,
    "IDIPOL": 0,
    "EFIELD": 0.0,
    "NUPDOWN": -1.0,
    "PSTRESS": 0.0,
    "NSW": 0,
    "ALDAC": 1.0,
    "AGGAC": 1.0,
    "VOSKOWN": 0,
    "IVDW": 0,
    "ENAUG": None,
    "LSOL": False,
    "LMAXPAW": -100,
    "LDAUTYPE": 2,
}
"""Settings that no recipe touches and that change the physics, with what they are by default."""

ONLY_IF_ASKED = ("IVDW", "ENAUG", "LSOL")
"""Settings that VASP lists with values of its own, or not at all: only INCAR tells."""


@dataclass(frozen=True)
class VaspOutput:
    """One finished run, in the atom order of the frame.

    Attributes
    ----------
    energy_eV
        Energy extrapolated to zero smearing, without corrections (eV).
    free_energy_eV
        Energy that the forces are derivatives of (eV).
    forces_eV_A
        Forces (eV/Å), shape (n, 3).
    stress_eV_A3
        Stress (eV/Å³), shape (3, 3), tension positive.
    magmoms_muB
        Site moments (μB), shape (n,), if VASP printed them.
    converged
        Whether the SCF converged.
    settings
        Level of theory as computed.
    """

    energy_eV: float
    free_energy_eV: float
    forces_eV_A: np.ndarray
    stress_eV_A3: np.ndarray
    magmoms_muB: np.ndarray | None
    converged: bool
    settings: dict[str, Any]

    @property
    def warnings(self) -> list[str]:
        """What a person should know."""
        per_atom = abs(self.free_energy_eV - self.energy_eV) / len(self.forces_eV_A)
        if per_atom <= ENTROPY_WARNING_EV:
            return []
        sentence = f"smearing changes the energy by {1000 * per_atom:.1f} meV/atom"
        return [f"{sentence}: forces belong to the free energy, the label holds the other one"]


def write_inputs(
    directory: Path,
    frame: Frame,
    recipe: VaspRecipe,
    *,
    numerics: dict[str, Any],
    potcar_spec: bool = False,
) -> list[int]:
    """Write INCAR, KPOINTS, POSCAR, POTCAR and the order of atoms, and remove old files.

    Parameters
    ----------
    directory
        Where; exists.
    frame
        Structure.
    recipe
        Level of theory.
    numerics
        Numerical INCAR settings of this try.
    potcar_spec
        Write the names of the potentials instead of the licensed files, for tests.

    Returns
    -------
    list of int
        For every atom of POSCAR its index in the frame.

    Raises
    ------
    OSError, ValueError
        If a potential is not to be found.
    """
    from pymatgen.core import Element, Lattice, Structure

    structure = Structure(
        Lattice(frame.cell_A),
        [Element.from_Z(number) for number in frame.numbers],
        frame.positions_A,
        coords_are_cartesian=True,
        site_properties={"frame_index": list(range(frame.n_atoms))},
    )
    # Not atomate2's write_vasp_input_set: it clears the current folder instead of this one, and
    # lets a user's ~/.atomate2.yaml change INCAR.
    with quiet():
        generator = recipe.maker(numerics).input_set_generator
        inputs = generator.get_input_set(structure, potcar_spec=potcar_spec)
    poscar = inputs.poscar
    order = [int(index) for index in poscar.structure.site_properties["frame_index"]]
    for name in (*INPUTS, *OUTPUTS):
        (directory / name).unlink(missing_ok=True)
    inputs.write_input(directory)
    poscar.write_file(directory / "POSCAR", significant_figures=POSCAR_DIGITS)
    (directory / ORDER_FILE).write_text(json.dumps(order))
    return order


def read_output(directory: Path, frame: Frame, recipe: VaspRecipe) -> VaspOutput:
    """Return what VASP computed, in the atom order of the frame.

    Parameters
    ----------
    directory
        Folder with ``vasprun.xml`` (plain or gzipped), ``OUTCAR`` if there is one, and the order
        of atoms that :func:`write_inputs` left.
    frame
        The frame asked for.
    recipe
        The recipe asked for: says by which rules to read k-points and EDIFF.

    Raises
    ------
    UnreadableOutput
        If the output is broken, or not that of the frame.
    """
    path = next(
        (p for p in (directory / RESULT_FILE, directory / f"{RESULT_FILE}.gz") if p.exists()), None
    )
    if path is None:
        raise UnreadableOutput(f"VASP left no {RESULT_FILE}")
    try:
        order = np.array(json.loads((directory / ORDER_FILE).read_text()), dtype=int)
        run = _vasprun(path)
        last = run.ionic_steps[-1]
        forces = np.array(last["forces"], dtype=float)
        stress_kB = np.array(last["stress"], dtype=float)
        energy = float(run.final_energy)
        free = float(last["e_fr_energy"])
        settings = settings_as_run(path, recipe, run=run)
        converged = bool(run.converged_electronic)
    except UnreadableOutput:
        raise
    except Exception as error:  # pymatgen's parser may stumble over a broken file in any way
        raise UnreadableOutput(
            f"{path.name} cannot be read: {type(error).__name__}: {str(error)[:200]}"
        ) from error
    mirrored = _mirrored(run, frame, order)
    n = frame.n_atoms
    in_frame_order = np.empty((n, 3))
    # A left-handed cell is written inverted, and the inversion turns forces round, not stress.
    in_frame_order[order] = -forces if mirrored else forces
    return VaspOutput(
        energy_eV=energy,
        free_energy_eV=free,
        forces_eV_A=in_frame_order,
        stress_eV_A3=stress_from_kB(stress_kB),
        magmoms_muB=_moments(directory, order),
        converged=converged,
        settings=settings,
    )


def stress_from_kB(stress_kB: np.ndarray) -> np.ndarray:
    """Return stress in eV/Å³ with tension positive from VASP's kB with compression positive."""
    from ase.units import GPa

    return np.asarray(stress_kB, dtype=float) * (-0.1 * GPa)


def settings_as_run(
    path: Path, recipe: VaspRecipe, *, run: Vasprun | None = None
) -> dict[str, Any]:
    """Return the level of theory that an output was computed at.

    Parameters
    ----------
    path
        ``vasprun.xml``, plain or gzipped.
    recipe
        What it is to be compared with; gives the rules for k-points and EDIFF their names.
    run
        The file, if it is read already.
    """
    run = _vasprun(path) if run is None else run
    counts, titels, charges = _atom_types(path)
    symbols = [_symbol_of(titel) for titel in titels]
    incar = dict(run.incar)
    # What VASP used goes over what it was asked for.
    used = {**incar, **{k: v for k, v in dict(run.parameters).items() if v is not None}}
    # VASP writes this one number as a list.
    if isinstance(used.get("LDAUTYPE"), list) and len(used["LDAUTYPE"]) == 1:
        used["LDAUTYPE"] = used["LDAUTYPE"][0]
    used["ENCUT"] = used.get("ENMAX", used.get("ENCUT"))
    used.setdefault("GGA", "--")
    rule, mesh = kpoint_rule(recipe.recipe, run.final_structure.lattice.matrix)
    as_meshed = _mesh(run)
    others = {
        name: used[name]
        for name, default in DEFAULTS.items()
        if (name in incar or name not in ONLY_IF_ASKED)
        and used.get(name) is not None
        and not (name == "LDAUTYPE" and not used.get("LDAU"))
        and used[name] != default
    }
    valence = sum(n * z for n, z in zip(counts, charges, strict=True))
    charge = tidy(valence - float(used.get("NELECT", valence)))
    if charge:
        others["charge_e"] = charge
    return level(
        recipe.recipe,
        used,
        elements=sorted(set(symbols)),
        n_atoms=sum(counts),
        kpoints=rule if as_meshed == {"gamma": True, "mesh": mesh} else as_meshed,
        hubbard=hubbard_of(used, symbols),
        magmoms=_start_moments(used, symbols, counts),
        potentials=dict(zip(symbols, map(plain_titel, titels), strict=True)),
        others=others,
    )


def _plain_or_gzipped(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(f"{path.name}.gz")) if p.exists()), None)


def _vasprun(path: Path) -> Vasprun:
    from pymatgen.io.vasp import Vasprun

    with quiet():
        return Vasprun(path, parse_dos=False, parse_eigen=False, parse_potcar_file=False)


def _mirrored(run: Vasprun, frame: Frame, order: np.ndarray) -> bool:
    """Return whether the output is the frame inverted; raise if it is another structure."""
    found = run.final_structure
    cell = np.asarray(frame.cell_A, dtype=float)
    if sorted(order.tolist()) != list(range(frame.n_atoms)) or len(found) != frame.n_atoms:
        raise UnreadableOutput("the output has another number of atoms than the frame")
    if [site.specie.Z for site in found] != [frame.numbers[i] for i in order]:
        raise UnreadableOutput("the output has other elements than the frame")
    mirrored = bool(np.linalg.det(cell) < 0)
    as_written = -cell if mirrored else cell
    if np.abs(found.lattice.matrix - as_written).max() > SAME_PLACE_A:
        raise UnreadableOutput("the output has another cell than the frame")
    fractions = np.asarray(frame.positions_A, dtype=float)[order] @ np.linalg.inv(cell)
    shifts = found.frac_coords - fractions
    distances = np.linalg.norm((shifts - np.round(shifts)) @ cell, axis=1)
    if distances.max() > SAME_PLACE_A:
        raise UnreadableOutput("the output has other positions, or another order, than the frame")
    return mirrored


def _moments(directory: Path, order: np.ndarray) -> np.ndarray | None:
    from pymatgen.io.vasp import Outcar

    path = _plain_or_gzipped(directory / "OUTCAR")
    if path is None:
        return None
    try:
        with quiet():
            sites = [site["tot"] for site in Outcar(path).magnetization]
    except Exception as error:
        raise UnreadableOutput(f"OUTCAR cannot be read: {error}") from error
    if len(sites) != len(order):
        return None
    moments = np.empty(len(order))
    moments[order] = sites
    return moments


def _atom_types(path: Path) -> tuple[list[int], list[str], list[float]]:
    """Return atoms, title of the potential and valence of each type, in the file's order."""
    from monty.io import zopen

    with zopen(path, "rb") as file:
        for _, element in ET.iterparse(file):  # noqa: S314 - our own run wrote it
            if element.tag == "array" and element.get("name") == "atomtypes":
                rows = [[(c.text or "").strip() for c in rc] for rc in element.iter("rc")]
                counts, _symbols, _masses, charges, titels = zip(*rows, strict=True)
                return [int(c) for c in counts], list(titels), [float(z) for z in charges]
    raise UnreadableOutput("the output does not name its potentials")


def _symbol_of(titel: str) -> str:
    """Return the element of a title; VASP writes 'X' for xenon where the element stands."""
    found = re.match(r"\S+\s+([A-Z][a-z]?)", titel)
    if found is None:
        raise UnreadableOutput(f"the potential {titel!r} names no element")
    return found.group(1)


def _mesh(run: Vasprun) -> dict[str, Any]:
    kpoints = run.kpoints
    style = kpoints.style.name if kpoints is not None else "none"
    if kpoints is None or style not in {"Gamma", "Monkhorst"}:
        return {"listed": len(run.actual_kpoints or [])}
    mesh = [int(n) for n in kpoints.kpts[0]]
    shift = [tidy(s) for s in kpoints.kpts_shift]
    # An odd Monkhorst-Pack mesh contains Γ.
    gamma = style == "Gamma" or all(n % 2 for n in mesh)
    found: dict[str, Any] = {"gamma": gamma, "mesh": mesh}
    return {**found, "shift": shift} if any(shift) else found


def _start_moments(used: dict[str, Any], symbols: list[str], counts: list[int]) -> dict[str, Any]:
    """Return the moment that every element started with; a list if its atoms had several."""
    values = used.get("MAGMOM") or []
    values = [float(m) for m in (values if isinstance(values, list | tuple) else [values])]
    names = [symbol for symbol, n in zip(symbols, counts, strict=True) for _ in range(n)]
    if len(values) != len(names):
        return dict.fromkeys(symbols)
    found: dict[str, Any] = {}
    for symbol in symbols:
        own = sorted({tidy(m) for m, name in zip(values, names, strict=True) if name == symbol})
        found[symbol] = own[0] if len(own) == 1 else own
    return found
