"""Write the input of CP2K, and read what it says it computed.

CP2K prints stress with compression positive, and cells to three decimals only.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.labelers.espresso_recipe import all_symbols, symbols_of, tidy
from otf_workflows.labelers.external import Output, UnreadableOutput

if TYPE_CHECKING:
    from pathlib import Path

    from otf_workflows.labelers.cp2k import Cp2kRecipe
    from otf_workflows.schemas import Frame

VOLUME_TOLERANCE = 1e-5
"""Relative; makes up for the three decimals of the cell."""


def write_input(
    frame: Frame, recipe: Cp2kRecipe, *, project: str, numerics: dict[str, Any], data_dir: Path
) -> str:
    """Return the input of one static calculation with forces and stress.

    Parameters
    ----------
    frame
        Structure.
    recipe
        Level of theory.
    project
        Name of the run, in all its files.
    numerics
        All numerical settings.
    data_dir
        Folder of basis sets and potentials.
    """
    smear: dict[str, Any] = {}
    if recipe.electronic_temperature_K is not None:
        smear = {
            "ADDED_MOS": -1,
            "SMEAR ON": {
                "METHOD": "FERMI_DIRAC",
                "ELECTRONIC_TEMPERATURE": recipe.electronic_temperature_K,
            },
        }
    scf = {
        "SCF_GUESS": "ATOMIC",
        "MAX_SCF": numerics["max_scf"],
        "EPS_SCF": f"{recipe.scf_threshold:.2E}",
        "DIAGONALIZATION ON": {"ALGORITHM": "STANDARD"},
        "MIXING": {
            "METHOD": numerics["mixing_method"],
            "ALPHA": numerics["mixing_alpha"],
            "NBUFFER": numerics["mixing_history"],
        },
        "PRINT": {"RESTART OFF": {}},
        **smear,
    }
    dft = {
        "BASIS_SET_FILE_NAME": data_dir / "BASIS_MOLOPT",
        "POTENTIAL_FILE_NAME": data_dir / "GTH_POTENTIALS",
        "QS": {"METHOD": "GPW", "EPS_DEFAULT": f"{recipe.precision:.1E}"},
        "MGRID": {"CUTOFF": recipe.cutoff_Ry, "REL_CUTOFF": recipe.relative_cutoff_Ry},
        "SCF": scf,
        "XC": {"XC_FUNCTIONAL PBE": {}},
        **_kpoints(recipe.grid(frame.cell_A)),
    }
    vectors = ([f"{x:.12f}" for x in vector] for vector in frame.cell_A)
    rows = zip(all_symbols(frame.numbers), frame.positions_A, strict=True)
    kinds = {
        f"KIND {symbol}": {
            "ELEMENT": symbol,
            "BASIS_SET": recipe.basis,
            "POTENTIAL": recipe.potential(symbol),
        }
        for symbol in symbols_of(frame.numbers)
    }
    subsys = {
        "CELL": {name: " ".join(row) for name, row in zip("ABC", vectors, strict=True)},
        "COORD": {
            i: f"{symbol} {x:.12f} {y:.12f} {z:.12f}" for i, (symbol, (x, y, z)) in enumerate(rows)
        },
        **kinds,
    }
    return _render(
        {
            "GLOBAL": {"PROJECT": project, "RUN_TYPE": "ENERGY_FORCE", "PRINT_LEVEL": "MEDIUM"},
            "FORCE_EVAL": {
                "METHOD": "QUICKSTEP",
                "STRESS_TENSOR": "ANALYTICAL",
                "PRINT": {"FORCES ON": {}, "STRESS_TENSOR ON": {}},
                "DFT": dft,
                "SUBSYS": subsys,
            },
        }
    )


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
        r"Atomic kind: (\S+) .*?Orbital Basis Set +(\S+).*?Potential information for +(\S+)",
        text,
        re.DOTALL,
    )
    functional = " + ".join(re.findall(r"^ FUNCTIONAL\| (\S+):", text, re.MULTILINE))
    restricted = _one(text, r"^ DFT\| Spin .* (\S+)$") == "RKS"
    return recipe.level(
        **recipe.common_level(
            kpoints=_grid(text),
            electronic_temperature_K=round(float(temperature.group(1))) if temperature else None,
            functional=functional,
            spin="unpolarised" if restricted else "collinear",
            cell_A=cell_A,
        ),
        basis={symbol: basis for symbol, basis, _ in kinds},
        # The charge of the core tells potentials of one name from each other.
        potentials={s: [name, tidy(valence[s])] for s, _, name in kinds},
        cutoff_Ry=2 * float(_one(text, r"^ QS\| Density cutoff \[a\.u\.\]: +(\S+)")),
        relative_cutoff_Ry=2
        * float(_one(text, r"^ QS\| Relative density cutoff \[a\.u\.\]: +(\S+)")),
        precision=float(_one(text, r"eps_rho_gspace: +(\S+)")),
        scf_threshold=float(_one(text, r" eps_scf: +(\S+)")),
    )


def _kpoints(grid: tuple[int, int, int]) -> dict[str, Any]:
    """Return the section that gives a Γ-centred grid; Γ alone needs none."""
    if grid == (1, 1, 1):
        return {}
    numbers = " ".join(map(str, grid))
    if all(n % 2 for n in grid):
        scheme = f"MONKHORST-PACK {numbers}"
    else:
        # Monkhorst and Pack's even grids leave Γ out: shift them onto it.
        scheme = f"MACDONALD {numbers} " + " ".join(map(str, _shift(grid)))
    return {"KPOINTS": {"SCHEME": scheme, "SYMMETRY": "OFF", "FULL_GRID": "OFF"}}


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


def _render(section: dict[Any, Any], depth: int = 0) -> str:
    """Return nested dictionaries in CP2K's format; keys that are numbers are not written."""
    lines = []
    for name, value in section.items():
        if isinstance(value, dict):
            lines.append(f"{'  ' * depth}&{name}\n{_render(value, depth + 1)}")
            lines.append(f"{'  ' * depth}&END {str(name).split()[0]}\n")
        else:
            key = "" if isinstance(name, int) else f"{name} "
            lines.append(f"{'  ' * depth}{key}{value}\n")
    return "".join(lines)


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
