"""Write the input of ``pw.x``, and read what it says it computed.

Results and settings come from ``data-file-schema.xml``, which holds full precision and every
setting; checksums of pseudopotentials, the functional in force and site moments are only in the
text output. Settings are those of the *output*, never those that we asked for.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import atomic_numbers
from ase.units import Bohr, Hartree

from otf_workflows.labelers.espresso_recipe import (
    EspressoRecipe,
    Smearing,
    Spin,
    kpoint_grid,
    level,
    tidy,
)
from otf_workflows.labelers.external import Output, UnreadableOutput
from otf_workflows.labelers.kpoints import same_points

if TYPE_CHECKING:
    from pathlib import Path

    from otf_workflows.schemas import Frame

PREFIX = "otf"
XML_NAME = "data-file-schema.xml"
HARTREE_RY = 2.0

FUNCTIONAL_OF_INDICES: dict[tuple[int, ...], str] = {
    (1, 4, 3, 4): "PBE",
    (1, 4, 10, 8): "PBEsol",
    (1, 4, 0, 0): "LDA",
    (1, 1, 0, 0): "LDA (Perdew-Zunger)",
}
"""Exchange, correlation, gradient exchange, gradient correlation: funct.f90 of QE."""

SMEARINGS = {"gaussian": Smearing.GAUSSIAN, "mv": Smearing.COLD}


def write_input(
    path: Path,
    frame: Frame,
    recipe: EspressoRecipe,
    *,
    numerics: dict[str, Any],
    outdir: str,
    max_seconds: float | None,
    data_dir: str | None = None,
) -> None:
    """Write the input file of one try.

    Parameters
    ----------
    path
        File to write.
    frame
        Structure.
    recipe
        Level of theory.
    numerics
        Checked numerical settings; ``pw.x``'s own names, and ``extra_bands``.
    outdir
        Folder for the files of ``pw.x``, absolute or relative to where it runs.
    max_seconds
        Time after which ``pw.x`` stops by itself (s).
    data_dir
        Folder of pseudopotentials on this machine, instead of the recipe's.
    """
    from ase.io.espresso import write_espresso_in

    files = recipe.files(frame.numbers, data_dir)
    atoms = frame.to_atoms()
    control: dict[str, Any] = {
        "calculation": "scf",
        "prefix": PREFIX,
        "outdir": outdir,
        "pseudo_dir": str(next(iter(files.values())).path.parent),
        "tprnfor": True,
        "tstress": True,
        # The least that still writes the XML file and a density to restart from.
        "disk_io": "low",
    }
    if max_seconds is not None:
        control["max_seconds"] = float(max_seconds)
    system: dict[str, Any] = {
        "ecutwfc": recipe.cutoff_Ry,
        "ecutrho": recipe.density_cutoff,
        # Frames of MD have no symmetry; nearly symmetric ones make pw.x stumble over it.
        "nosym": True,
        "occupations": "fixed",
    }
    if recipe.smearing != Smearing.NONE:
        names = {ours: theirs for theirs, ours in SMEARINGS.items()}
        system |= {
            "occupations": "smearing",
            "smearing": names[recipe.smearing],
            "degauss": recipe.width_Ry,
        }
    if recipe.spin == Spin.COLLINEAR:
        system["nspin"] = 2
        # ASE hands initial moments on as starting_magnetization, unchanged.
        moments = [recipe.starting_magnetization.get(s, 0.0) for s in atoms.symbols]
        atoms.set_initial_magnetic_moments(moments)
    electrons = {"conv_thr": recipe.scf_threshold_Ry, **numerics}
    if extra := electrons.pop("extra_bands", 0):
        system["nbnd"] = _usual_bands(recipe, frame) + extra
    points = recipe.points(frame.cell_A)
    with path.open("w") as file:
        write_espresso_in(
            file,
            atoms,
            input_data={"control": control, "system": system, "electrons": electrons},
            pseudopotentials={symbol: found.path.name for symbol, found in files.items()},
            kpts=recipe.grid(frame.cell_A),
            koffset=recipe.shift or (0, 0, 0),
        )
    if points is not None:
        path.write_text(_with_points(path.read_text(), *points))


def _usual_bands(recipe: EspressoRecipe, frame: Frame) -> int:
    """Return how many bands ``pw.x`` takes by itself, or more: a fifth of them empty in metals."""
    occupied = ceil(recipe.n_electrons(frame.numbers) / 2)
    if recipe.smearing == Smearing.NONE:
        return occupied
    # Moments may need more bands of one spin; each of them has the whole shell there.
    largest = occupied if recipe.spin == Spin.UNPOLARISED else 2 * occupied
    return max(ceil(1.2 * largest), largest + 4)


def _with_points(text: str, points: np.ndarray, weights: np.ndarray) -> str:
    """Return an input with a list of k-points in the place of its grid; ASE writes no lists."""
    rows = [
        f"{x:.12f} {y:.12f} {z:.12f} {weight}"
        for (x, y, z), weight in zip(points, weights, strict=True)
    ]
    listed = "\n".join(["K_POINTS crystal", str(len(rows)), *rows, ""])
    return re.sub(r"K_POINTS automatic\n[^\n]*\n", listed, text, count=1)


def read_output(text: str, xml_path: Path, *, recipe: EspressoRecipe | None = None) -> Output:
    """Read a finished run.

    Parameters
    ----------
    text
        Standard output of ``pw.x``.
    xml_path
        Its ``data-file-schema.xml``.
    recipe
        If given, k-points that are those of the recipe in the cell as run are reported in its
        words: a spacing, or a grid folded from another cell.

    Raises
    ------
    UnreadableOutput
        If anything is missing or cannot be read.
    """
    try:
        root = ET.parse(xml_path).getroot()  # noqa: S314 - written by our own process
    except (OSError, ET.ParseError) as error:
        raise UnreadableOutput(f"{xml_path.name} cannot be read: {error}") from error
    try:
        cell = np.array([_floats(root, f"output/atomic_structure/cell/a{i}") for i in (1, 2, 3)])
        atoms = _all(root, "output/atomic_structure/atomic_positions/atom")
        symbols = [re.sub(r"\d+$", "", atom.attrib["name"]) for atom in atoms]
        positions = np.array([[float(x) for x in (atom.text or "").split()] for atom in atoms])
        settings = _settings(root, text, cell_A=cell * Bohr, recipe=recipe)
        spin = settings["spin"] == Spin.COLLINEAR
        return Output(
            energy_eV=float(_text(root, "output/total_energy/etot")) * Hartree,
            forces_eV_A=np.array(_floats(root, "output/forces")).reshape(-1, 3) * Hartree / Bohr,
            # pw.x counts compression as positive, we count tension.
            stress_eV_A3=-np.array(_floats(root, "output/stress")).reshape(3, 3)
            * (Hartree / Bohr**3),
            magmoms_muB=_site_moments(text, len(symbols)) if spin else None,
            numbers=[atomic_numbers[symbol] for symbol in symbols],
            cell_A=cell * Bohr,
            positions_A=positions * Bohr,
            settings=settings,
        )
    except (KeyError, ValueError) as error:
        raise UnreadableOutput(f"the output is incomplete: {error}") from error


def _settings(
    root: ET.Element, text: str, *, cell_A: np.ndarray, recipe: EspressoRecipe | None
) -> dict[str, Any]:
    bands = "output/band_structure"
    grid = _grid(root, f"{bands}/starting_k_points")
    spacing = grid_cell = None
    if recipe is not None and (asked := recipe.kspacing_per_A) is not None:
        if grid == [*kpoint_grid(cell_A, asked), *recipe.shift]:
            spacing = asked
    elif recipe is not None and _is_folded(root, bands, cell_A=cell_A, recipe=recipe):
        grid, grid_cell = [*(recipe.kpoints or ()), *recipe.shift], recipe.kpoints_cell_A
    smearing, width = Smearing.NONE.value, None
    occupations = _text(root, f"{bands}/occupations_kind")
    if (found := root.find(f"{bands}/smearing")) is not None and occupations == "smearing":
        name = (found.text or "").strip()
        smearing = str(SMEARINGS.get(name, name))
        width = float(found.attrib["degauss"]) * HARTREE_RY
    elif occupations != "fixed":
        smearing = occupations
    flags = [f"output/magnetization/{name}" for name in ("lsda", "noncolin", "spinorbit")]
    lsda, noncollinear, spin_orbit = (_text(root, flag) == "true" for flag in flags)
    spin = str(Spin.COLLINEAR if lsda else Spin.UNPOLARISED)
    if noncollinear or spin_orbit:
        spin = "spin-orbit" if spin_orbit else "noncollinear"
    start = {}
    for species in _all(root, "output/atomic_species/species"):
        moment = species.findtext("starting_magnetization")
        start[re.sub(r"\d+$", "", species.attrib["name"])] = float(moment or 0.0)
    settings = level(
        functional=_functional(root, text),
        cutoff_Ry=float(_text(root, "output/basis_set/ecutwfc")) * HARTREE_RY,
        density_cutoff_Ry=float(_text(root, "output/basis_set/ecutrho")) * HARTREE_RY,
        kpoints=grid,
        kspacing_per_A=spacing,
        shifted=recipe is not None and recipe.kpoint_shift,
        kpoints_cell_A=grid_cell,
        smearing=smearing,
        width_Ry=width,
        spin=spin,
        magnetization=start,
        scf_threshold_Ry=float(_text(root, "input/electron_control/conv_thr")) * HARTREE_RY,
        md5=_checksums(text),
    )
    charge = float(root.findtext("input/bands/tot_charge") or 0.0)
    if charge:
        settings["charge_e"] = tidy(charge)
    return settings


def _functional(root: ET.Element, text: str) -> str:
    line = re.search(r"Exchange-correlation=.*?\(([\s\d]+)\)", text, re.DOTALL)
    if line is None:
        raise ValueError("no line with the functional")
    indices = tuple(int(i) for i in line.group(1).split())
    gradient_or_less = len(indices) >= 4 and not any(indices[4:])
    known = FUNCTIONAL_OF_INDICES.get(indices[:4]) if gradient_or_less else None
    name = known or f"indices {' '.join(map(str, indices))}"
    # Hubbard U, dispersion, exact exchange: elements of their own beside the functional.
    extras = sorted(e.tag for e in _all(root, "output/dft/*") if e.tag != "functional")
    return " + ".join([name, *extras])


def _grid(root: ET.Element, path: str) -> Any:
    found = root.find(f"{path}/monkhorst_pack")
    if found is None:
        return f"a list of {len(root.findall(f'{path}/k_point'))} points"
    grid = [int(found.attrib[f"nk{i}"]) for i in (1, 2, 3)]
    shift = [int(found.attrib[f"k{i}"]) for i in (1, 2, 3)]
    return [*grid, *shift] if any(shift) else grid


def _is_folded(root: ET.Element, bands: str, *, cell_A: np.ndarray, recipe: EspressoRecipe) -> bool:
    """Return whether the k-points as run are the recipe's grid, folded into the cell as run."""
    wanted = recipe.points(cell_A)
    if wanted is None:
        return False
    used = _all(root, f"{bands}/ks_energies/k_point")
    # In units of 2π/alat along x, y, z; alat and the cell are both in bohr there.
    vectors = np.array([[float(x) for x in (point.text or "").split()] for point in used])
    alat_A = float(_all(root, "output/atomic_structure")[0].attrib["alat"]) * Bohr
    weights = np.array([float(point.attrib["weight"]) for point in used])
    return same_points(vectors @ cell_A.T / alat_A, weights, *wanted)


def _checksums(text: str) -> dict[str, str]:
    pattern = (
        r"PseudoPot\. #\s*\d+ for\s+([A-Za-z]+)\d*\s+read from file:"
        r"(?:(?!PseudoPot\. #).)*?MD5 check sum:\s*([0-9a-f]{32})"
    )
    found = dict(re.findall(pattern, text, re.DOTALL))
    if not found:
        raise ValueError("no checksum of a pseudopotential")
    return found


def _site_moments(text: str, n_atoms: int) -> np.ndarray | None:
    moments = re.findall(r"^\s+atom:?\s+\d+.*?magn[=:]\s*(-?\d+\.\d+)", text, re.MULTILINE)
    return np.array(moments[-n_atoms:], dtype=float) if len(moments) >= n_atoms else None


def _text(root: ET.Element, path: str) -> str:
    found = root.findtext(path)
    if found is None or not found.strip():
        raise KeyError(f"{path} is not in the XML file")
    return found.strip()


def _floats(root: ET.Element, path: str) -> list[float]:
    return [float(x) for x in _text(root, path).split()]


def _all(root: ET.Element, path: str) -> list[ET.Element]:
    found = root.findall(path)
    if not found:
        raise KeyError(f"{path} is not in the XML file")
    return found
