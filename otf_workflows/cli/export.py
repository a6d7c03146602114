"""``otf export``: the labelled set as MACE, NequIP, ASE and CHGNet read it, or as a table."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otf_workflows.cli import output, params
from otf_workflows.cli.session import session
from otf_workflows.types import LabelState, Purpose, Split

if TYPE_CHECKING:
    from ase import Atoms

    from otf_workflows.schemas import LabelDocument
    from otf_workflows.store import Store


class Keys(StrEnum):
    """Names of energy, forces and stress in the file."""

    REF = "ref"
    PLAIN = "plain"


class Format(StrEnum):
    """Formats of the file."""

    EXTXYZ = "extxyz"
    CHGNET = "chgnet"
    PARQUET = "parquet"


_ENDINGS = {Format.EXTXYZ: ".extxyz", Format.CHGNET: ".json", Format.PARQUET: ".parquet"}


def export(
    ctx: typer.Context,
    campaign: params.CampaignName,
    *,
    path: params.OutputPath = None,
    keys: Annotated[
        Keys,
        typer.Option(
            "--keys",
            help="ref: REF_energy, REF_forces, REF_stress (MACE). plain: energy, forces, stress.",
        ),
    ] = Keys.REF,
    format_: Annotated[
        Format | None,
        typer.Option(
            "--format", help="Default: by the ending of --output (.json, .parquet), else extxyz."
        ),
    ] = None,
    split: Annotated[
        list[Split] | None, typer.Option("--split", help="Only of this split. Repeatable.")
    ] = None,
    force: params.Force = False,
) -> None:
    """Write the finished labels of a campaign to a file for other programs.

    Energies in eV, forces in eV/Å, stress in eV/Å³ (tension positive); as CHGNet JSON, energies
    per atom and stress in VASP's kB. Every frame carries its
    label_key, split, purpose, cycle and recipe, so that any of them leads back to its origin.
    """
    from otf_workflows import label_export
    from otf_workflows.errors import InputError, NotFoundError

    store = session(ctx).store
    by_ending = {ending: kind for kind, ending in _ENDINGS.items()}
    kind = format_ or by_ending.get(path.suffix if path else "", Format.EXTXYZ)
    target = path or Path(f"{campaign}-labels{_ENDINGS[kind]}")
    write = {
        Format.EXTXYZ: label_export.write_extxyz,
        Format.CHGNET: label_export.write_chgnet_json,
        Format.PARQUET: label_export.write_parquet,
    }[kind]
    if kind is not Format.EXTXYZ and keys is not Keys.REF:
        raise InputError("--keys is for extxyz files only")
    if target.exists() and not force:
        raise InputError("a file would be overwritten", where=str(target), hint="add --force")
    frames = labelled_atoms(store, campaign, keys=keys, splits=split)
    if not frames:
        store.campaign(campaign)
        raise NotFoundError("no finished label matches", hint=f"otf labels list -c {campaign}")
    target.parent.mkdir(parents=True, exist_ok=True)
    write(target, frames)
    output.data(str(target))
    output.note(f"{len(frames)} labels written.")


def labelled_atoms(
    store: Store, campaign: str, *, keys: Keys = Keys.REF, splits: list[Split] | None = None
) -> list[Atoms]:
    """Return the finished labels of a campaign as ASE atoms, oldest first.

    Parameters
    ----------
    store
        Our collections.
    campaign
        Name of the campaign.
    keys
        Names under which energy (eV), forces (eV/Å) and stress (eV/Å³) are stored.
    splits
        Only labels used for this.
    """
    dataset = store.latest_dataset(campaign)
    used = {entry["key"]: Split(entry["split"]) for entry in dataset.entries} if dataset else {}
    result = []
    for label in store.labels(campaign=campaign, states=[LabelState.DONE]):
        purpose, cycle = store.purpose_of(label, campaign)
        split = used.get(label.key) or (Split.AUDIT if purpose is Purpose.AUDIT else None)
        if splits and split not in splits:
            continue
        atoms = to_atoms(label, keys=keys)
        # A label that came after the last data set has no split yet.
        atoms.info |= {
            "split": str(split) if split else "unassigned",
            "purpose": str(purpose),
            "campaign": campaign,
            "cycle": cycle,
        }
        result.append(atoms)
    return result


def to_atoms(label: LabelDocument, *, keys: Keys = Keys.REF) -> Atoms:
    """Return one finished label as ASE atoms with its results.

    Raises
    ------
    ValueError
        If the label has no result.
    """
    import numpy as np

    if label.result is None:
        msg = f"label {label.key} has no result"
        raise ValueError(msg)
    result, origin = label.result, label.frame.origin
    atoms = result.frame.to_atoms()
    forces = np.array(result.forces_eV_A)
    stress = None if result.stress_eV_A3 is None else np.array(result.stress_eV_A3)
    if keys is Keys.PLAIN:
        from ase.calculators.singlepoint import SinglePointCalculator
        from ase.stress import full_3x3_to_voigt_6_stress

        values = {"energy": result.energy_eV, "forces": forces}
        if stress is not None:
            values["stress"] = full_3x3_to_voigt_6_stress(stress)
        atoms.calc = SinglePointCalculator(atoms, **values)
    else:
        atoms.info["REF_energy"] = result.energy_eV
        atoms.arrays["REF_forces"] = forces
        if stress is not None:
            atoms.info["REF_stress"] = stress
    if result.magmoms_muB is not None:
        atoms.arrays["REF_magmoms" if keys is Keys.REF else "dft_magmoms"] = np.array(
            result.magmoms_muB
        )
    atoms.info |= {"label_key": label.key, "recipe": label.recipe_fingerprint}
    known = {
        "walker": origin.walker,
        "step": origin.step,
        "temperature_K": origin.temperature_K,
        "pressure_GPa": origin.pressure_GPa,
        "sigma_eV_A": label.frame.sigma_eV_A,
    }
    atoms.info |= {key: value for key, value in known.items() if value is not None}
    return atoms
