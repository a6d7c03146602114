"""Read finished calculations from files of others: structures, energies, forces, stress.

Readers are pure: they convert units (eV, Å, eV/Å, eV/Å³ with tension positive), and say what the
file tells of its level of theory. Whether a calculation may be a label of a recipe is decided by
:func:`refusal`, never by guessing.
"""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from otf_workflows.errors import InputError
from otf_workflows.schemas import Frame, Origin
from otf_workflows.types import Purpose

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ase import Atoms

    from otf_workflows.labelers.base import Recipe
    from otf_workflows.labelers.cp2k_recipe import Cp2kRecipe
    from otf_workflows.labelers.vasp_recipe import VaspRecipe

KB_EV_A3 = -0.1 / 160.21766208
"""VASP's kB (compression positive) in eV/Å³ (tension positive): ×(−0.1) GPa, 160.2 GPa in 1."""

ENERGY_KEYS = ("REF_energy", "DFT_energy", "dft_energy", "energy")
FORCES_KEYS = ("REF_forces", "DFT_forces", "dft_forces", "forces", "force")
STRESS_KEYS = ("REF_stress", "DFT_stress", "dft_stress", "stress")
VIRIAL_KEYS = ("REF_virials", "DFT_virials", "virials", "virial")
MAGMOM_KEYS = ("REF_magmoms", "dft_magmoms", "magmoms")
"""Names in extended XYZ files as MACE, NequIP and ASE write them; the first found counts."""


@dataclass(frozen=True)
class Calculation:
    """One calculation as read from a file.

    Attributes
    ----------
    source
        File, and number of the structure in it.
    frame
        Structure.
    energy_eV
        Total energy (eV), without corrections.
    forces_eV_A
        Forces (eV/Å), shape (n, 3).
    stress_eV_A3
        Stress (eV/Å³), shape (3, 3), tension positive, if there is one.
    magmoms_muB
        Site moments (μB), shape (n,), if there are any.
    code
        Program that computed it, if the file says so.
    settings
        Level of theory as run, in the form of the recipe's, if the file tells all of it.
    fingerprint
        Level of theory that our own export wrote beside it.
    warnings
        What a person should know.
    """

    source: str
    frame: Frame
    energy_eV: float
    forces_eV_A: np.ndarray
    stress_eV_A3: np.ndarray | None = None
    magmoms_muB: np.ndarray | None = None
    code: str | None = None
    settings: dict[str, Any] | None = None
    fingerprint: str | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Rejected:
    """One structure (or a whole file) that cannot be a label, and why."""

    source: str
    reason: str


class UnusableError(ValueError):
    """A structure in a file that cannot be a label, in a sentence."""


def read_calculations(path: Path, recipe: Recipe) -> Iterator[Calculation | Rejected]:
    """Yield every calculation in a file, or why it cannot be used.

    Parameters
    ----------
    path
        Extended XYZ, ``vasprun.xml``, XML or text output of ``pw.x``, output of CP2K, or JSON as
        of MPtrj; all but the two of ``pw.x`` may be gzipped.
    recipe
        Names what is compared: its rules for k-points are looked for in the file.

    Raises
    ------
    InputError
        If there is no such file.
    """
    if not path.is_file():
        raise InputError("there is no such file", where=str(path))
    try:
        items = _reader(path)(path, recipe)
        yield from items
    except UnusableError as error:
        yield Rejected(str(path), str(error))
    except Exception as error:  # noqa: BLE001 - foreign parsers stumble over files in any way
        reason = str(error).strip().splitlines()
        yield Rejected(
            str(path), f"cannot be read: {type(error).__name__}: {reason[0] if reason else ''}"
        )


def refusal(  # noqa: PLR0911 - one return per reason
    item: Calculation, recipe: Recipe, *, statement: str | None
) -> str | None:
    """Return why a calculation is no label of a recipe, or None.

    Parameters
    ----------
    item
        The calculation.
    recipe
        The level of theory it should have.
    statement
        What a person says the level of theory is; only used where the file does not tell.
    """
    from otf_workflows.labelers.base import differences
    from otf_workflows.labelers.outcome import numbers_problem

    frame = item.frame
    if abs(np.linalg.det(np.array(frame.cell_A))) < 1e-3:
        return "the structure has no cell"
    problem = numbers_problem(
        item.energy_eV, item.forces_eV_A, item.stress_eV_A3, n_atoms=frame.n_atoms
    )
    if problem:
        return problem
    if item.code is not None and item.code != recipe.code:
        return f"computed with {item.code}, the recipe is for {recipe.code}"
    if problems := recipe.problems(frame):
        return "; ".join(problems)
    if item.settings is not None:
        found = differences(recipe.level_of_theory(frame.numbers), item.settings)
        return "another level of theory: " + "; ".join(found) if found else None
    if item.fingerprint is not None:
        if item.fingerprint == recipe.fingerprint(frame.numbers):
            return None
        return f"exported at another level of theory (fingerprint {item.fingerprint})"
    if statement is None:
        return "the file does not tell its level of theory: state it with --level-of-theory"
    return None


def basis_of(item: Calculation, *, statement: str | None) -> str:
    """Return how the level of theory is known: as run, by fingerprint, or stated by a person."""
    if item.settings is not None:
        return "as run"
    return "fingerprint of an export" if item.fingerprint else f"stated by a person: {statement}"


# -- readers ---------------------------------------------------------------------------------------


def _reader(path: Path) -> Callable[[Path, Recipe], Iterator[Calculation | Rejected]]:
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".xyz", ".extxyz")):
        return _extxyz
    if name.endswith(".json"):
        return _json
    beginning = _text(path, most=20_000)
    if "<modeling>" in beginning:
        return _vasprun
    if "espresso" in beginning and name.endswith(".xml"):
        return _pw_xml
    if "Program PWSCF" in beginning:
        return _pw_text
    if "CP2K|" in beginning:
        return _cp2k
    raise UnusableError(
        "not a file that can be imported: extxyz, vasprun.xml, pw.x, CP2K or MPtrj-style JSON"
    )


def _text(path: Path, *, most: int | None = None) -> str:
    if path.suffix == ".gz":
        with gzip.open(path, "rt", errors="replace") as file:
            return file.read(most) if most else file.read()
    with path.open(errors="replace") as file:
        return file.read(most) if most else file.read()


def _frame(atoms: Atoms, source: str, purpose: Purpose = Purpose.SEED) -> Frame:
    origin = Origin(note=f"imported from {source}")
    return Frame.from_atoms(atoms, origin=origin, purpose=purpose)


def _extxyz(path: Path, _recipe: Recipe) -> Iterator[Calculation | Rejected]:
    from ase.io import iread

    for number, atoms in enumerate(iread(path, index=":", format="extxyz")):
        source = f"{path}#{number}"
        results = dict(atoms.calc.results) if atoms.calc is not None else {}
        values = {**atoms.info, **atoms.arrays, **results}
        energy, forces = _first(values, ENERGY_KEYS), _first(values, FORCES_KEYS)
        if energy is None or forces is None:
            missing = "energy" if energy is None else "forces"
            yield Rejected(source, f"no {missing} under any name that MACE, NequIP or ASE use")
            continue
        if not atoms.pbc.all():
            yield Rejected(source, "the structure is not periodic in three dimensions")
            continue
        yield Calculation(
            source=source,
            frame=_frame(atoms, source),
            energy_eV=float(energy),
            forces_eV_A=np.array(forces, dtype=float),
            stress_eV_A3=_stress_of(values, atoms),
            magmoms_muB=_first(values, MAGMOM_KEYS),
            fingerprint=atoms.info.get("recipe"),
        )


def _stress_of(values: dict[str, Any], atoms: Atoms) -> np.ndarray | None:
    from ase.stress import voigt_6_to_full_3x3_stress

    found = _first(values, STRESS_KEYS)
    if found is None:
        virial = _first(values, VIRIAL_KEYS)
        # The virial is −V·σ in the convention of extended XYZ.
        return None if virial is None else -np.reshape(virial, (3, 3)) / atoms.get_volume()
    stress = np.array(found, dtype=float)
    return voigt_6_to_full_3x3_stress(stress) if stress.size == 6 else stress.reshape(3, 3)


def _first(values: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((values[name] for name in names if values.get(name) is not None), None)


def _vasprun(path: Path, recipe: Recipe) -> Iterator[Calculation | Rejected]:
    import warnings

    from pymatgen.io.ase import AseAtomsAdaptor
    from pymatgen.io.vasp import Vasprun

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = Vasprun(path, parse_dos=False, parse_eigen=False, parse_potcar_file=False)
    settings = None
    if recipe.code == "vasp":
        from otf_workflows.labelers.vasp_files import settings_as_run

        settings = settings_as_run(path, cast("VaspRecipe", recipe), run=run)
    limit = int(run.parameters.get("NELM", 60))
    for number, step in enumerate(run.ionic_steps):
        source = f"{path}#{number}"
        steps = step["electronic_steps"]
        if len(steps) >= limit:
            yield Rejected(source, f"the SCF did not converge in {limit} steps")
            continue
        if "forces" not in step:
            yield Rejected(source, "no forces in the output")
            continue
        stress = step.get("stress")
        last = len(run.ionic_steps) == 1
        yield Calculation(
            source=source,
            frame=_frame(AseAtomsAdaptor.get_atoms(step["structure"]), source),
            energy_eV=float(run.final_energy if last else steps[-1]["e_0_energy"]),
            forces_eV_A=np.array(step["forces"], dtype=float),
            stress_eV_A3=None if stress is None else np.array(stress, dtype=float) * KB_EV_A3,
            code="vasp",
            settings=settings,
        )


def _pw_xml(path: Path, recipe: Recipe) -> Iterator[Calculation | Rejected]:
    texts = [p for p in _neighbours(path) if "Program PWSCF" in _text(p, most=20_000)]
    if len(texts) != 1:
        raise UnusableError(
            f"{len(texts)} text outputs of pw.x beside it, one is needed: only it says which "
            "functional and pseudopotentials were used"
        )
    yield _pw(path, _text(texts[0]), xml=path, recipe=recipe)


def _pw_text(path: Path, recipe: Recipe) -> Iterator[Calculation | Rejected]:
    xmls = [p for p in [*path.parent.glob("*.xml"), *path.parent.glob("*.save/*.xml")]
            if p.name == "data-file-schema.xml"]  # fmt: skip
    if len(xmls) == 1:
        yield _pw(path, _text(path), xml=xmls[0], recipe=recipe)
        return
    from ase.io import iread

    text = _text(path)
    if "convergence NOT achieved" in text or "convergence has been achieved" not in text:
        raise UnusableError("the SCF did not converge")
    for number, atoms in enumerate(iread(path, index=":", format="espresso-out")):
        source = f"{path}#{number}"
        results = atoms.calc.results
        if "forces" not in results:
            yield Rejected(source, "no forces in the output")
            continue
        yield Calculation(
            source=source,
            frame=_frame(atoms, source),
            energy_eV=float(results["energy"]),
            forces_eV_A=np.array(results["forces"]),
            stress_eV_A3=_stress_of(results, atoms),
            code="espresso",
            warnings=["no data-file-schema.xml beside it: positions as printed"],
        )


def _pw(path: Path, text: str, *, xml: Path, recipe: Recipe) -> Calculation:
    from otf_workflows.labelers.espresso_failures import diagnose
    from otf_workflows.labelers.espresso_files import read_output
    from otf_workflows.labelers.espresso_recipe import EspressoRecipe
    from otf_workflows.labelers.external import UnreadableOutput

    ending = diagnose(text, "", status=0)
    if ending.cause is not None:
        raise UnusableError(ending.message)
    try:
        mine = recipe if isinstance(recipe, EspressoRecipe) else None
        found = read_output(text, xml, recipe=mine)
    except UnreadableOutput as error:
        raise UnusableError(str(error)) from error
    from ase import Atoms

    atoms = Atoms(found.numbers, positions=found.positions_A, cell=found.cell_A, pbc=True)
    return Calculation(
        source=str(path),
        frame=_frame(atoms, str(path)),
        energy_eV=found.energy_eV,
        forces_eV_A=found.forces_eV_A,
        stress_eV_A3=found.stress_eV_A3,
        magmoms_muB=found.magmoms_muB,
        code="espresso",
        settings=found.settings,
    )


def _neighbours(path: Path) -> list[Path]:
    folders = [path.parent] + ([path.parent.parent] if path.parent.suffix == ".save" else [])
    return [p for f in folders for p in sorted(f.iterdir())
            if p.is_file() and p.suffix in {".out", ".pwo", ".log"}]  # fmt: skip


def _cp2k(path: Path, recipe: Recipe) -> Iterator[Calculation | Rejected]:
    from ase import Atoms

    text = _text(path)
    if "SCF run NOT converged" in text or "SCF run converged" not in text:
        raise UnusableError("the SCF did not converge")
    if recipe.code != "cp2k":
        raise UnusableError(f"computed with cp2k, the recipe is for {recipe.code}")
    from otf_workflows.labelers.cp2k_files import read_output

    vectors = [
        re.search(rf"^ CELL\| Vector {v} \[angstrom\]:(.*?)\|", text, re.MULTILINE) for v in "abc"
    ]
    cell = [[float(x) for x in found.group(1).split()] for found in vectors if found]
    counted = re.search(r"- Atoms: +(\d+)", text)
    if len(cell) != 3 or counted is None:
        raise UnusableError("the output does not print its cell and number of atoms")
    n_atoms = int(counted.group(1))
    shell = Frame(numbers=[1] * n_atoms, cell_A=cell, positions_A=[[0.0] * 3] * n_atoms)
    found = read_output(text, cast("Cp2kRecipe", recipe), shell)
    atoms = Atoms(found.numbers, positions=found.positions_A, cell=found.cell_A, pbc=True)
    yield Calculation(
        source=str(path),
        frame=_frame(atoms, str(path)),
        energy_eV=found.energy_eV,
        forces_eV_A=found.forces_eV_A,
        stress_eV_A3=found.stress_eV_A3 if np.size(found.stress_eV_A3) == 9 else None,
        magmoms_muB=found.magmoms_muB,
        code="cp2k",
        settings=found.settings,
        warnings=["CP2K prints the cell to three decimals; the structure has no more"],
    )


def _json(path: Path, _recipe: Recipe) -> Iterator[Calculation | Rejected]:
    """Read JSON as of MPtrj, or as chgnet's ``parse_vasp_dir`` writes it."""
    from pymatgen.core import Structure
    from pymatgen.io.ase import AseAtomsAdaptor

    data = json.loads(_text(path))
    items = list(_json_items(data)) if isinstance(data, dict) else []
    if not items:
        raise UnusableError(
            "not JSON as of MPtrj: {material: {frame: {structure, force, …}}}, nor as chgnet's "
            "parse_vasp_dir writes it"
        )
    for name, item in items:
        source = f"{path}#{name}"
        energy = item.get("uncorrected_total_energy")
        if energy is None or "structure" not in item or "force" not in item:
            yield Rejected(
                source,
                "structure, force and uncorrected_total_energy are needed; corrected energies "
                "have another zero",
            )
            continue
        atoms = AseAtomsAdaptor.get_atoms(Structure.from_dict(item["structure"]))
        stress, moments = item.get("stress"), item.get("magmom")
        yield Calculation(
            source=source,
            frame=_frame(atoms, source),
            energy_eV=float(energy),
            forces_eV_A=np.array(item["force"], dtype=float),
            stress_eV_A3=None if stress is None else np.array(stress, dtype=float) * KB_EV_A3,
            magmoms_muB=None if moments is None else np.array(moments, dtype=float),
            fingerprint=item.get("recipe"),
        )


def _json_items(data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and content of every structure in nested dictionaries, or in lists by key."""
    if isinstance(data.get("structure"), list):
        columns = {key: value for key, value in data.items() if isinstance(value, list)}
        for number in range(len(data["structure"])):
            values = {
                key: column[number] for key, column in columns.items() if number < len(column)
            }
            yield str(number), values
        return
    for material, frames in data.items():
        for name, item in frames.items() if isinstance(frames, dict) else ():
            yield f"{material}/{name}", item if isinstance(item, dict) else {}
