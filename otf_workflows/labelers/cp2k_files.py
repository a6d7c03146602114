"""Write the input of CP2K, and read what it says it computed.

CP2K prints stress with compression positive, and cells to three decimals only.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.labelers.cp2k_recipe import quiet
from otf_workflows.labelers.espresso_recipe import Spin, tidy
from otf_workflows.labelers.external import Output, UnreadableOutput
from otf_workflows.labelers.grid_recipe import moments_of_elements

if TYPE_CHECKING:
    from pathlib import Path

    from otf_workflows.labelers.cp2k_recipe import Cp2kRecipe
    from otf_workflows.schemas import Frame

VOLUME_TOLERANCE = 1e-5
"""Relative; makes up for the three decimals of the cell."""


def write_input(
    path: Path, frame: Frame, recipe: Cp2kRecipe, *, numerics: dict[str, Any], data_dir: Path
) -> None:
    """Write the input of one static calculation with forces and stress.

    Parameters
    ----------
    path
        File to write; its name is that of the run, too.
    frame
        Structure.
    recipe
        Level of theory.
    numerics
        All numerical settings.
    data_dir
        Folder of basis sets and potentials.
    """
    from pymatgen.core import Element, Lattice, Structure
    from pymatgen.io.cp2k.inputs import Kpoints, Section

    structure = Structure(
        Lattice(frame.cell_A),
        [Element.from_Z(number) for number in frame.numbers],
        frame.positions_A,
        coords_are_cartesian=True,
    )
    with quiet():
        generator = recipe.generator(frame.numbers, numerics, data_dir=data_dir)
        inputs = generator.get_input_set(structure, optional_files=False).cp2k_input
    inputs.update({"GLOBAL": {"PROJECT_NAME": path.stem, "PRINT_LEVEL": "MEDIUM"}})
    if recipe.spin == Spin.COLLINEAR:
        # Moments at the start stand nowhere else in an output.
        inputs.update({"GLOBAL": {"ECHO_INPUT": True}})
    dft = inputs["FORCE_EVAL"]["DFT"]
    if (scheme := _kpoint_scheme(recipe.grid(frame.cell_A))) is not None:
        dft.insert(Kpoints(kpts=[[1, 1, 1]], scheme=scheme))
    # Wave functions of a whole campaign would fill the disk.
    off = Section("RESTART", subsections={}, section_parameters=["OFF"])
    dft["SCF"].insert(Section("PRINT", subsections={"RESTART": off}))
    inputs.write_file(path)


def read_output(text: str, recipe: Cp2kRecipe, frame: Frame) -> Output:
    """Read a finished run.

    Parameters
    ----------
    text
        Standard output of CP2K.
    recipe
        What was asked for; only its k-point spacing is used, to recognise it in the grid.
    frame
        What was asked for; only to fill in the digits that CP2K does not print of the cell.

    Raises
    ------
    UnreadableOutput
        If something is missing, or the cell is not that of the frame.
    """
    from ase.units import Bohr, GPa, Hartree

    sites = re.findall(
        r"^ +\d+ +\d+ +([A-Z][a-z]?) +(\d+)((?: +-?\d+\.\d+){3}) +(\d+\.\d+) +\d+\.\d+ *$",
        _after(text, "MODULE QUICKSTEP: "),
        re.MULTILINE,
    )[: frame.n_atoms]
    forces = re.findall(
        rf"^ +\d+ +\d+ +[A-Z][a-z]?((?: +{NUMBER}){{3}}) *$",
        _after(text, "ATOMIC FORCES in [a.u.]").partition("SUM OF")[0],
        re.MULTILINE,
    )
    stress = re.findall(
        rf"^ STRESS\| +[xyz]((?: +{NUMBER}){{3}}) *$",
        _after(text, "Analytical stress tensor [GPa]"),
        re.MULTILINE,
    )[:3]
    cell = np.array(
        [_floats(_one(text, rf"^ CELL\| Vector {v} \[angstrom\]:(.*?)\|")) for v in "abc"]
    )
    asked = np.array(frame.cell_A)
    volume = float(_one(text, r"^ CELL\| Volume \[angstrom\^3\]: +(\S+)"))
    exact = abs(np.linalg.det(asked))
    if np.abs(cell - asked).max() < 6e-4 and abs(volume / exact - 1) < VOLUME_TOLERANCE:
        cell = asked
    return Output(
        energy_eV=float(_one(text, r"^ ENERGY\| Total FORCE_EVAL.*: +(\S+)$")) * Hartree,
        forces_eV_A=np.array([_floats(row) for row in forces]) * Hartree / Bohr,
        # CP2K counts compression as positive, we count tension.
        stress_eV_A3=-np.array([_floats(row) for row in stress]) * GPa,
        numbers=[int(site[1]) for site in sites],
        cell_A=cell,
        positions_A=np.array([_floats(site[2]) for site in sites]),
        settings=_settings(text, recipe, cell, valence={s[0]: float(s[3]) for s in sites}),
        magmoms_muB=_site_moments(text, len(sites)),
    )


NUMBER = r"-?\d+\.\d+(?:E[+-]\d+)?"


def _settings(
    text: str, recipe: Cp2kRecipe, cell_A: np.ndarray, *, valence: dict[str, float]
) -> dict[str, Any]:
    temperature = re.search(r"Electronic temperature \[K\]: +(\S+)", text)
    smearing = re.search(r"Smear method: +(\S+)", text)
    if smearing and smearing.group(1) != "FERMI_DIRAC":
        raise UnreadableOutput(f"occupations by {smearing.group(1)}")
    kinds = re.findall(
        r"Atomic kind: ([A-Z][a-z]?)\S* .*?Orbital Basis Set +(\S+)"
        r".*?Potential information for +(\S+)",
        text,
        re.DOTALL,
    )
    functional = " + ".join(re.findall(r"^ FUNCTIONAL\| (\S+):", text, re.MULTILINE))
    restricted = _one(text, r"^ DFT\| Spin .* (\S+)$") == "RKS"
    level = recipe.level(
        **recipe.common_level(
            kpoints=_grid(text),
            electronic_temperature_K=round(float(temperature.group(1))) if temperature else None,
            functional=functional,
            spin=Spin.UNPOLARISED if restricted else Spin.COLLINEAR,
            moments_muB=None if restricted else _start_moments(text),
            cell_A=cell_A,
        ),
        basis={symbol: basis for symbol, basis, _ in kinds},
        # The charge of the core tells potentials of one name from each other.
        potentials={s: [name, tidy(valence[s])] for s, _, name in kinds},
        cutoff_Ry=2 * float(_one(text, r"^ QS\| Density cutoff \[a\.u\.\]: +(\S+)")),
        relative_cutoff_Ry=2
        * float(_one(text, r"^ QS\| Relative density cutoff \[a\.u\.\]: +(\S+)")),
        grid_levels=int(_one(text, r"^ QS\| Number of grid levels: +(\d+)")),
        precision=float(_one(text, r"eps_rho_gspace: +(\S+)")),
        overlap_precision=float(_one(text, r"eps_pgf_orb: +(\S+)")),
        scf_threshold=float(_one(text, r" eps_scf: +(\S+)")),
    )
    if len({symbol for symbol, *_ in kinds}) != len({tuple(kind) for kind in kinds}):
        level["kinds"] = sorted({" ".join(kind) for kind in kinds})
    fixed = re.search(r"^ +FIXED_MAGNETIC_MOMENT +(\S+)", text, re.MULTILINE)
    if fixed and float(fixed.group(1)) >= 0:
        level["fixed_moment_muB"] = tidy(float(fixed.group(1)))
    charge = float(_one(text, r"^ DFT\| Charge +(\S+)"))
    if charge:
        level["charge_e"] = tidy(charge)
    return level


def _start_moments(text: str) -> dict[str, Any]:
    """Return element → moment at the start; only an output with an echo of its input has it."""
    found: dict[str, list[float]] = {}
    for kind in re.findall(r"^ +&KIND (.*?)^ +&END KIND", text, re.MULTILINE | re.DOTALL):
        symbol = re.search(r"^ +ELEMENT +(\S+)", kind, re.MULTILINE)
        moment = re.search(r"^ +MAGNETIZATION +(\S+)", kind, re.MULTILINE)
        if symbol and moment:
            found.setdefault(symbol.group(1), []).append(float(moment.group(1)))
    return {
        symbol: moments_of_elements([symbol] * len(values), values)[symbol]
        for symbol, values in found.items()
    }


def _site_moments(text: str, n_atoms: int) -> np.ndarray | None:
    """Return Mulliken's moments (μB), of a spin-polarised run."""
    table = text.rpartition("Mulliken Population Analysis")[2].partition("# Total")[0]
    rows = re.findall(
        rf"^ +\d+ +[A-Z][a-z]? +\d+(?: +{NUMBER}){{3}} +({NUMBER}) *$", table, re.MULTILINE
    )
    return np.array(rows, dtype=float) if len(rows) == n_atoms else None


def _kpoint_scheme(grid: tuple[int, int, int]) -> str | None:
    """Return CP2K's words for a Γ-centred grid; Γ alone needs none."""
    if grid == (1, 1, 1):
        return None
    numbers = " ".join(map(str, grid))
    if all(n % 2 for n in grid):
        return f"MONKHORST-PACK {numbers}"
    # Monkhorst and Pack's even grids leave Γ out: shift them onto it.
    return f"MACDONALD {numbers} " + " ".join(map(str, _shift(grid)))


def _shift(grid: tuple[int, ...] | list[int]) -> list[float]:
    return [0.0 if n % 2 else 0.5 / n for n in grid]


def _grid(text: str) -> Any:
    """Return the Γ-centred grid that was run, or a sentence on what was run instead."""
    if "BRILLOUIN|" not in text:
        return [1, 1, 1]
    scheme = _one(text, r"^ BRILLOUIN\| K-point scheme +(\S+)")
    found = re.search(r"^ BRILLOUIN\| K-Point grid((?: +\d+){3})", text, re.MULTILINE)
    if found is None:
        return scheme
    grid = [int(n) for n in found.group(1).split()]
    shifted = re.search(r"^ BRILLOUIN\| K-Point shift(.*)$", text, re.MULTILINE)
    shift = _floats(shifted.group(1)) if shifted else [0.0, 0.0, 0.0]
    if np.allclose(shift, _shift(grid), atol=6e-5):
        return grid
    return f"{scheme} {grid} shifted by {shift}"


def _after(text: str, mark: str) -> str:
    _, found, rest = text.partition(mark)
    if not found:
        raise UnreadableOutput(f"there is no line '{mark.strip()}'")
    return rest


def _one(text: str, pattern: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    if found is None:
        raise UnreadableOutput(f"nothing matches {pattern!r}")
    return found.group(1)


def _floats(text: str) -> list[float]:
    return [float(x) for x in text.split()]
