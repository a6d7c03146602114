"""Write labelled structures for other programs, with every digit.

ASE's writer keeps eight decimals of a position. That is enough to train on, but not to find a
label again by its content, so extended XYZ is written here and read back by ASE.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.errors import ConfigurationError
from otf_workflows.label_import import KB_EV_A3

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from ase import Atoms


def write_extxyz(path: Path, frames: Iterable[Atoms]) -> None:
    """Write an extended XYZ file.

    Parameters
    ----------
    path
        File to write.
    frames
        Structures; ``info`` goes into the comment line, float arrays and results of a calculator
        become columns or entries under their plain names.
    """
    from ase.io.extxyz import key_val_dict_to_str

    with path.open("w", encoding="utf-8") as file:
        for atoms in frames:
            results = dict(atoms.calc.results) if atoms.calc is not None else {}
            if "stress" in results:
                results["stress"] = atoms.get_stress(voigt=False)
            columns = {
                name: values
                for name, values in {**atoms.arrays, **results}.items()
                if name not in {"numbers", "positions"} and np.shape(values)[:1] == (len(atoms),)
                and name != "stress"
            }  # fmt: skip
            info = {**atoms.info, **{k: v for k, v in results.items() if k not in columns}}
            sizes = [f":{name}:R:{np.size(v) // len(atoms)}" for name, v in columns.items()]
            lattice = " ".join(repr(float(x)) for x in atoms.cell.array.ravel())
            file.write(
                f'{len(atoms)}\nLattice="{lattice}" Properties=species:S:1:pos:R:3{"".join(sizes)} '
                f'{key_val_dict_to_str(info)} pbc="T T T"\n'
            )
            for i, symbol in enumerate(atoms.symbols):
                numbers = [atoms.positions[i], *(np.ravel(v[i]) for v in columns.values())]
                text = " ".join(repr(float(x)) for x in np.concatenate(numbers))
                file.write(f"{symbol} {text}\n")


def write_chgnet_json(path: Path, frames: Sequence[Atoms]) -> None:
    """Write what ``chgnet.data.dataset.StructureJsonData`` reads: MPtrj's layout and units.

    Energy per atom (eV), force (eV/Å), stress in VASP's kB with compression positive, magnetic
    moments (μB); beside them the uncorrected total energy, the key of the label and its recipe.

    Parameters
    ----------
    path
        File to write.
    frames
        As of :func:`otf_workflows.cli.export.labelled_atoms` with its default keys.
    """
    from pymatgen.io.ase import AseAtomsAdaptor

    data: dict[str, dict[str, Any]] = {}
    for atoms in frames:
        info, arrays = atoms.info, atoms.arrays
        bare = atoms.copy()
        bare.info = {}
        for name in set(bare.arrays) - {"numbers", "positions"}:
            del bare.arrays[name]
        stress, moments = info.get("REF_stress"), arrays.get("REF_magmoms")
        data.setdefault(info["campaign"], {})[info["label_key"]] = {
            "structure": AseAtomsAdaptor.get_structure(bare).as_dict(),
            "uncorrected_total_energy": info["REF_energy"],
            "energy_per_atom": info["REF_energy"] / len(atoms),
            "force": arrays["REF_forces"].tolist(),
            "stress": None if stress is None else (np.array(stress) / KB_EV_A3).tolist(),
            "magmom": None if moments is None else moments.tolist(),
            **{name: info[name] for name in ("label_key", "recipe", "split", "purpose", "cycle")},
        }
    path.write_text(json.dumps(data), encoding="utf-8")


def write_parquet(path: Path, frames: Sequence[Atoms]) -> None:
    """Write one row per label: structure, results and origin, arrays as nested lists.

    Raises
    ------
    ConfigurationError
        If pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigurationError(
            "parquet files are written with pyarrow, which is not installed",
            hint="pip install pyarrow, or --format extxyz or chgnet",
        ) from error
    rows = []
    for atoms in frames:
        stress, moments = atoms.info.get("REF_stress"), atoms.arrays.get("REF_magmoms")
        rows.append(
            {
                "numbers": atoms.numbers.tolist(),
                "cell_A": atoms.cell.array.tolist(),
                "positions_A": atoms.positions.tolist(),
                "energy_eV": atoms.info["REF_energy"],
                "forces_eV_A": atoms.arrays["REF_forces"].tolist(),
                "stress_eV_A3": None if stress is None else np.array(stress).tolist(),
                "magmoms_muB": None if moments is None else moments.tolist(),
                **{k: v for k, v in atoms.info.items() if not k.startswith("REF_")},
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), path)
