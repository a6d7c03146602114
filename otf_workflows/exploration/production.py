"""The long MD with the finished potential, and an audit of it in the labelled cell.

A large cell cannot be computed with DFT, so the model is checked where it can be: a second run at
the same temperature in the cell that labels were computed in gives random frames for DFT.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from otf_workflows.analysis.blocks import block_mean
from otf_workflows.exploration.dynamics import Ensemble, first_checkpoint
from otf_workflows.exploration.health import Guards
from otf_workflows.exploration.loop import Check, MdLoop, digest
from otf_workflows.exploration.trajectory import decode_trajectory, encode_records
from otf_workflows.schemas import Document, Frame, Origin
from otf_workflows.types import CellMotion, Purpose, StopReason

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ase import Atoms

    from otf_workflows.campaign import Production
    from otf_workflows.potentials.base import Potential
    from otf_workflows.schemas import Calibration

EQUILIBRATION = 0.2
"""Share of a run that is left out of all averages."""

MAX_POINTS = 1000
"""Most points of the curves in the document."""


class ProductionRun(Document):
    """What a production run did. Output of a produce job."""

    model_id: str = Field(description="Model that drove it.")
    temperature_K: float = Field(description="Thermostat temperature (K).")
    pressure_GPa: float | None = Field(
        None, description="Barostat pressure (GPa); none for constant volume."
    )
    cell: CellMotion = Field(CellMotion.ISOTROPIC, description="What the pressure changed.")
    supercell: tuple[int, int, int] = Field(description="Repeats of the structure.")
    n_atoms: int = Field(description="Atoms in the supercell.")
    timestep_fs: float = Field(description="MD time step (fs).")
    sample_every: int = Field(description="MD steps between frames, and between checks.")
    n_steps: int = Field(description="MD steps asked for.")
    n_steps_run: int = Field(description="MD steps made.")
    n_equilibration: int = Field(description="First MD steps, left out of the averages.")
    stop_reason: StopReason = Field(description="Why it ended.")
    stop_message: str = Field("", description="One sentence on it.")
    n_checked: int = Field(description="Checks of the uncertainty, equilibration left out.")
    n_above: int = Field(description="Of these, checks above the tolerance.")
    fraction_above: float | None = Field(description="n_above / n_checked; none without checks.")
    worst_of_atoms: int | None = Field(
        None, description="An uncertainty is that of the worst of so many atoms; none for all."
    )
    max_sigma_eV_A: float | None = Field(description="Largest uncertainty met (eV/Å), calibrated.")
    mean_temperature_K: float | None = Field(description="Mean kinetic temperature (K).")
    mean_temperature_error_K: float | None = Field(description="Its standard error (K).")
    mean_energy_eV_atom: float | None = Field(description="Mean potential energy (eV/atom).")
    mean_energy_error_eV_atom: float | None = Field(description="Its standard error (eV/atom).")
    mean_volume_A3_atom: float | None = Field(None, description="Mean volume (Å³/atom).")
    mean_volume_error_A3_atom: float | None = Field(
        None, description="Its standard error (Å³/atom)."
    )
    energy_drift_eV_atom_ps: float | None = Field(
        description="Slope of the potential energy (eV/atom/ps); beyond noise it is no equilibrium."
    )
    steps: list[int] = Field(description="Checked steps (≤ 1000 kept).")
    sigmas_eV_A: list[float] = Field(description="Calibrated uncertainty at these (eV/Å).")
    temperatures_K: list[float] = Field(description="Instantaneous temperature at these (K).")
    energies_eV_atom: list[float] = Field(description="Potential energy at these (eV/atom).")
    audit_n_cells: int = Field(description="Cells of the audit, a run in each; 0 if not made.")
    audit_n_steps_run: int = Field(description="MD steps of all audit runs.")
    audit_stop_reason: StopReason | None = Field(
        description="Why they ended: of the first that a guard ended, if any; none if not made."
    )
    audit_stop_message: str = Field("", description="One sentence on it.")
    audit_fraction_above: float | None = Field(description="As fraction_above, of all audit runs.")
    candidates: list[Frame] = Field(description="Random frames of the audit runs, for DFT.")
    blob: dict[str, Any] = Field(
        description="'trajectory' and 'audit_trajectory' (of the first audit run): encoded text "
        "of every sampled frame."
    )
    steps_per_second: float = Field(description="MD steps per second, checks included.")
    seconds: float = Field(description="Wall time (s).")

    @property
    def n_equilibration_frames(self) -> int:
        """Number of frames in the trajectory that belong to the equilibration."""
        return -(-self.n_equilibration // self.sample_every)

    def summary(self) -> dict[str, Any]:
        """Return all but the frames and trajectories, as plain data."""
        return self.model_dump(mode="json", exclude={"blob", "candidates"})

    def frames(self) -> list[Atoms]:
        """Return the sampled frames after equilibration, for analysis."""
        return decode_trajectory(self.blob["trajectory"])[self.n_equilibration_frames :]


def run_production(
    frame: Frame,
    potential: Potential,
    *,
    rules: Production,
    tolerance_eV_A: float,
    calibration: Calibration,
    seed: int,
    n_audit: int,
    model_id: str = "",
    origin: Origin | None = None,
    audit_starts: Sequence[Frame] = (),
    friction_per_fs: float = 0.01,
    min_distance_ratio: float = 0.6,
    max_volume_ratio: float = 1.5,
    scratch: Path | None = None,
) -> ProductionRun:
    """Run MD in a supercell, then a shorter one in each labelled cell.

    Both keep a frame and read the uncertainty every ``rules.sample_every`` steps. Guards end a
    run with a reason; uncertainty is counted and reported, and ends nothing.

    Parameters
    ----------
    frame
        The campaign's structure; it is repeated by ``rules.supercell``.
    potential
        Model with its uncertainty.
    rules
        Section ``production`` of the campaign.
    tolerance_eV_A
        Force error that the user can live with (eV/Å).
    calibration
        How the raw uncertainty becomes an honest one.
    seed
        Same seed, same run.
    n_audit
        Random frames of the audit run to return, at most.
    model_id
        Name of the model, for the record.
    origin
        Campaign and cycle of the audit frames.
    audit_starts
        Cells that labels are computed in, each audited by a run of its own; ``frame`` by default.
    friction_per_fs
        Langevin friction (1/fs).
    min_distance_ratio, max_volume_ratio
        Guards, as in the section ``exploration``.
    scratch
        Folder for saved states; a run that was killed goes on from them.

    Raises
    ------
    InputError
        For a cell of one atom, or a potential without uncertainty.
    """
    shared: dict[str, Any] = {
        "rules": rules,
        "tolerance_eV_A": tolerance_eV_A,
        "calibration": calibration,
        "friction_per_fs": friction_per_fs,
        "guards": {"min_distance_ratio": min_distance_ratio, "max_volume_ratio": max_volume_ratio},
        "model_id": model_id,
    }
    atoms = frame.to_atoms()
    main = _md(
        atoms.repeat(rules.supercell),
        potential,
        n_steps=rules.steps,
        seed=seed,
        scratch=scratch / "main" if scratch else None,
        **shared,
    )
    wanted = n_audit > 0 and rules.audit_steps > 0
    audits = [
        _md(
            start.to_atoms(),
            potential,
            n_steps=rules.audit_steps,
            seed=seed + 1 + number,
            scratch=scratch / f"audit-{number}" if scratch else None,
            **shared,
        )
        for number, start in enumerate((audit_starts or [frame]) if wanted else [])
    ]
    where = (origin or Origin()).model_copy(
        update={
            "temperature_K": rules.temperature_K,
            "pressure_GPa": rules.pressure_GPa,
            "model_id": model_id,
            "note": "production audit",
        }
    )
    shares = [len(range(i, n_audit, len(audits))) for i in range(len(audits))]
    candidates = [
        candidate
        for audit, share in zip(audits, shares, strict=True)
        for candidate in _audit_frames(audit, n_audit=share, seed=seed, origin=where)
    ]
    return ProductionRun(
        model_id=model_id,
        temperature_K=rules.temperature_K,
        pressure_GPa=rules.pressure_GPa,
        cell=rules.cell,
        supercell=rules.supercell,
        timestep_fs=rules.timestep_fs,
        sample_every=rules.sample_every,
        n_steps=rules.steps,
        n_equilibration=_equilibration(rules.steps),
        worst_of_atoms=calibration.n_atoms,
        **_summary(main),
        audit_n_cells=len(audits),
        **_audit_summary(audits),
        candidates=candidates,
        blob={
            "trajectory": _encoded(main),
            "audit_trajectory": _encoded(audits[0]) if audits else "",
        },
        steps_per_second=main.state.n_steps_run / max(main.state.seconds, 1e-9),
        seconds=main.state.seconds + sum(audit.state.seconds for audit in audits),
    )


class _Bystander:
    """Looks on: in production nothing but the guards ends a run."""

    def checked(self, check: Check, loop: MdLoop) -> None:
        """Take no note; the records have it all."""

    def memory(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def recall(self, memory: dict[str, Any]) -> None:
        """Need nothing."""


def _equilibration(n_steps: int) -> int:
    return round(EQUILIBRATION * n_steps)


def _md(
    atoms: Atoms,
    potential: Potential,
    *,
    rules: Production,
    n_steps: int,
    tolerance_eV_A: float,
    calibration: Calibration,
    friction_per_fs: float,
    guards: dict[str, float],
    model_id: str,
    seed: int,
    scratch: Path | None,
) -> MdLoop:
    """Run one MD to its end and return the finished loop."""
    start = first_checkpoint(atoms, temperature_K=rules.temperature_K, seed=(seed,))
    loop = MdLoop(
        start,
        potential,
        ensemble=Ensemble(
            temperature_K=rules.temperature_K,
            timestep_fs=rules.timestep_fs,
            friction_per_fs=friction_per_fs,
            pressure_GPa=rules.pressure_GPa,
            cell=rules.cell,
        ),
        guards=Guards(
            n_atoms=len(atoms),
            reference_volume_A3=float(atoms.get_volume()),
            reference_cell_A=atoms.cell.array if rules.cell is CellMotion.FLEXIBLE else None,
            **guards,
        ),
        n_steps=n_steps,
        check_every=rules.sample_every,
        tolerance_eV_A=tolerance_eV_A,
        calibration=calibration,
        observer=_Bystander(),
        inputs_digest=digest(
            start=start.model_dump(mode="json"),
            rules=rules.model_dump(mode="json"),
            guards=guards,
            model_id=model_id,
            calibration=calibration.model_dump(mode="json"),
            numbers=[n_steps, tolerance_eV_A, friction_per_fs],
        ),
        scratch=scratch,
    )
    loop.run()
    return loop


def _encoded(loop: MdLoop) -> str:
    return encode_records(loop.state.current.frame.numbers, loop.recorder.records())


def _summary(loop: MdLoop) -> dict[str, Any]:
    """Return averages over the equilibrated part, and the curves of all of it."""
    records = loop.recorder.records()
    n_atoms = loop.state.current.frame.n_atoms
    part = records[records["step"] >= _equilibration(loop.n_steps)]
    shown = records[:: max(1, -(-len(records) // MAX_POINTS))]
    n_above = int(np.sum(part["sigma_eV_A"] > loop.tolerance_eV_A))
    values: dict[str, Any] = dict.fromkeys(
        [
            *("fraction_above", "mean_temperature_K", "mean_temperature_error_K"),
            *("mean_energy_eV_atom", "mean_energy_error_eV_atom", "energy_drift_eV_atom_ps"),
            *("mean_volume_A3_atom", "mean_volume_error_A3_atom"),
        ]
    )
    # Fewer sampled frames than this have no error bar.
    if len(part) >= 3:
        temperature, temperature_error = block_mean(part["temperature_K"])
        energy, energy_error = block_mean(part["energy_eV"] / n_atoms)
        volumes = np.abs(np.linalg.det(part["cell_A"].astype(float))) / n_atoms
        # At constant volume the spread is that of rounding to float32.
        volume, volume_error = (
            (volumes[0], 0.0) if loop.ensemble.pressure_GPa is None else block_mean(volumes)
        )
        time_ps = part["step"] * loop.ensemble.timestep_fs / 1000
        values = {
            "fraction_above": n_above / len(part),
            "mean_temperature_K": float(temperature),
            "mean_temperature_error_K": float(temperature_error),
            "mean_energy_eV_atom": float(energy),
            "mean_energy_error_eV_atom": float(energy_error),
            "mean_volume_A3_atom": float(volume),
            "mean_volume_error_A3_atom": float(volume_error),
            "energy_drift_eV_atom_ps": float(
                np.polyfit(time_ps, part["energy_eV"] / n_atoms, deg=1)[0]
            ),
        }
    return values | {
        "n_atoms": n_atoms,
        "n_steps_run": loop.state.n_steps_run,
        "stop_reason": loop.reason,
        "stop_message": loop.message,
        "n_checked": len(part),
        "n_above": n_above,
        "max_sigma_eV_A": float(records["sigma_eV_A"].max()) if len(records) else None,
        "steps": shown["step"].tolist(),
        "sigmas_eV_A": shown["sigma_eV_A"].tolist(),
        "temperatures_K": shown["temperature_K"].tolist(),
        "energies_eV_atom": (shown["energy_eV"] / n_atoms).tolist(),
    }


def _audit_summary(audits: Sequence[MdLoop]) -> dict[str, Any]:
    """Return what the audit runs did together."""
    reasons = [audit.reason for audit in audits]
    early = next((a for a in audits if a.reason is not StopReason.COMPLETED), None)
    parts = [_summary(audit) for audit in audits]
    n_checked = sum(part["n_checked"] for part in parts)
    known = all(part["fraction_above"] is not None for part in parts) and n_checked
    return {
        "audit_n_steps_run": sum(audit.state.n_steps_run for audit in audits),
        "audit_stop_reason": early.reason if early else next(iter(reasons), None),
        "audit_stop_message": early.message if early else "",
        "audit_fraction_above": sum(part["n_above"] for part in parts) / n_checked
        if known
        else None,
    }


def _audit_frames(loop: MdLoop, *, n_audit: int, seed: int, origin: Origin) -> list[Frame]:
    """Return random frames of the equilibrated part, each with equal chance."""
    records = loop.recorder.records()
    records = records[records["step"] >= _equilibration(loop.n_steps)]
    rng = np.random.default_rng([seed, 3])
    rows = np.sort(rng.permutation(len(records))[:n_audit])
    frames = [
        Frame(
            numbers=loop.state.current.frame.numbers,
            cell_A=record["cell_A"].astype(float).tolist(),
            positions_A=record["positions_A"].astype(float).tolist(),
            origin=origin.model_copy(update={"step": int(record["step"])}),
            purpose=Purpose.AUDIT,
            sigma_eV_A=float(record["sigma_eV_A"]),
        )
        for record in records[rows]
    ]
    if not frames:
        return []
    features = loop.potential.features([frame.to_atoms() for frame in frames])
    return [
        frame.model_copy(update={"features": [float(value) for value in row]})
        for frame, row in zip(frames, features, strict=True)
    ]
