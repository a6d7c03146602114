"""Walkers: MD that collects what it is unsure of, stops where it is lost, and rewinds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.errors import PotentialError
from otf_workflows.exploration.dynamics import Ensemble, first_checkpoint
from otf_workflows.exploration.health import Guards
from otf_workflows.exploration.loop import Check, MdLoop, digest
from otf_workflows.exploration.trajectory import encode_records
from otf_workflows.schemas import Checkpoint, Frame, Origin, WalkerSegment
from otf_workflows.types import CellMotion, Purpose, StopReason

if TYPE_CHECKING:
    from pathlib import Path

    from ase import Atoms

    from otf_workflows.campaign import Exploration
    from otf_workflows.exploration.bias import UncertaintyBias
    from otf_workflows.potentials.base import Potential
    from otf_workflows.schemas import Calibration

STOP_RATIO = 2.0
"""Stop above so many tolerances; VASP's on-the-fly learning interrupts at the same ratio. Where a
model is usually worse than the tolerance, it is so many times the usual: a walker that stops at
what every frame has would see nothing but its start, cycle for cycle
(``benchmarks/alloy_oracle.py``)."""

LEAST_CANDIDATES = 5
"""So many frames a walker collects before the uncertainty ends it, if it has met no trusted state.
A model that is lost at the very start would otherwise be shown nothing else for ever: an alloy's
campaign went through three cycles with one new label (``benchmarks/alloy_oracle.py``)."""

MAX_CANDIDATES = 200
"""Most candidates of a segment, a random sample of all; documents stay small."""

POOL_GAP = 3
"""Only every third check may enter the pool, so that no two of its frames are neighbours."""

MAX_POINTS = 1000
"""Most points of the curves in a segment's document."""


def explore(
    frame: Frame,
    potential: Potential,
    *,
    walker: int,
    model_id: str,
    rules: Exploration,
    temperature_K: float,
    tolerance_eV_A: float,
    calibration: Calibration,
    seed: int,
    n_pool: int,
    origin: Origin,
    checkpoint: Checkpoint | None = None,
    reference_volume_A3: float | None = None,
    stop_on_uncertainty: bool = True,
    scratch: Path | None = None,
) -> WalkerSegment:
    """Run one walker for one cycle.

    At the start, at the end and every ``rules.check_every`` steps the calibrated uncertainty of
    the worst atom is read, and in between when the latent novelty, which is known at every step,
    rises above all that was read before. Up to the tolerance the state is trusted and becomes the
    checkpoint; above it the frame is collected; above :data:`STOP_RATIO` times the tolerance, or
    what is usual of the model if that is more, the walker stops. One that has met no trusted
    state yet collects a few frames first. Distances, cell, temperature
    and forces are guarded besides, the last two at every step. Whatever the end, the walker is
    rewound to the last trusted state, or to its start if there was none: the trajectory that is
    kept contains trusted ends only, and over the cycles it is one.

    A checkpoint that the present model is lost at (it was trusted by an earlier one) is collected,
    and the walker begins again from ``frame``, heating up through states that the model knows:
    otherwise it would yield a single frame in each cycle.

    The checkpoint has the geometry and velocities of that state, but the random numbers go on
    from where the walker ended. With the same noise a walker whose model did not change would run
    into the same frame for ever.

    Parameters
    ----------
    frame
        Structure at step 0, supercell included: ``rules.supercell`` is not applied here.
    potential
        Model with its uncertainty.
    walker
        Index of the walker.
    model_id
        Name of the model, for the record.
    rules
        Section ``exploration`` of the campaign.
    temperature_K
        Thermostat temperature (K), at step 0 if ``rules`` have a ramp.
    tolerance_eV_A
        Force error that the user can live with (eV/Å).
    calibration
        How the raw uncertainty becomes an honest one.
    seed
        Of velocities, thermostat and samples: same seed, same segment, bit for bit.
    n_pool
        Size of the random sample of checked frames.
    origin
        Campaign and cycle; walker, step, temperature, pressure and model are added here.
    checkpoint
        Where the previous segment was rewound to; None for a first segment.
    reference_volume_A3
        Volume (Å³) that volume ratios refer to; that of ``frame`` by default.
    stop_on_uncertainty
        False while the uncertainty is not calibrated: frames are collected, but only the guards
        stop.
    scratch
        Folder for a state saved every 100 steps. A run that was killed goes on from it, and gives
        what it would have given; a state of other inputs is ignored.

    Returns
    -------
    WalkerSegment
        ``blob['checkpoint']`` is the checkpoint as JSON data, ``blob['trajectory']`` the encoded
        trajectory of the checked steps up to it.

    Raises
    ------
    InputError
        For a cell of one atom, or a potential without uncertainty.
    """
    atoms = frame.to_atoms()
    ensemble = Ensemble(
        temperature_K=temperature_K,
        timestep_fs=rules.timestep_fs,
        friction_per_fs=rules.friction_per_fs,
        pressure_GPa=rules.pressure_GPa,
        cell=rules.cell,
        ramp=rules.ramp,
    )
    bias, unbiased = _bias(rules, walker, potential)
    start = checkpoint or first_checkpoint(atoms, temperature_K=temperature_K, seed=(seed,))
    observer = _Collector(
        start=start,
        origin=origin.model_copy(update={"walker": walker, "model_id": model_id}),
        ensemble=ensemble,
        n_pool=n_pool,
        seed=seed,
        limit_eV_A=STOP_RATIO * max(tolerance_eV_A, calibration.usual_eV_A),
        stop_on_uncertainty=stop_on_uncertainty,
    )
    left = None
    if checkpoint is not None and stop_on_uncertainty:
        left = observer.leave_if_lost(checkpoint, potential, calibration=calibration)
    if checkpoint is not None and left:
        anew = first_checkpoint(
            atoms,
            temperature_K=ensemble.temperature_at_K(checkpoint.step),
            # Of the cycle too: begun anew twice at one step, it would repeat itself.
            seed=(seed, checkpoint.step, origin.cycle or 0),
        )
        start = observer.trusted = anew.model_copy(update={"step": checkpoint.step})
    loop = MdLoop(
        start,
        potential,
        ensemble=ensemble,
        guards=Guards(
            n_atoms=len(atoms),
            reference_volume_A3=reference_volume_A3 or float(atoms.get_volume()),
            min_distance_ratio=rules.min_distance_ratio,
            max_volume_ratio=rules.max_volume_ratio,
            reference_cell_A=atoms.cell.array if rules.cell is CellMotion.FLEXIBLE else None,
        ),
        n_steps=rules.steps_per_cycle,
        check_every=rules.check_every,
        tolerance_eV_A=tolerance_eV_A,
        calibration=calibration,
        observer=observer,
        early_checks=rules.early_checks,
        bias=bias,
        inputs_digest=digest(
            frame=frame.model_dump(mode="json"),
            rules=rules.model_dump(mode="json"),
            start=start.model_dump(mode="json"),
            origin=observer.origin.model_dump(mode="json"),
            calibration=calibration.model_dump(mode="json"),
            numbers=[
                *(tolerance_eV_A, seed, n_pool),
                *(reference_volume_A3, stop_on_uncertainty),
            ],
        ),
        scratch=scratch,
    )
    loop.run()
    return _segment(
        loop, observer, first=checkpoint is None or left is not None, notes=[unbiased, left]
    )


def _bias(
    rules: Exploration, walker: int, potential: Potential
) -> tuple[UncertaintyBias | None, str | None]:
    """Return the bias of a walker, or why one that is to be biased is not."""
    from otf_workflows.exploration.bias import UncertaintyBias

    if rules.bias is None or not rules.is_biased(walker):
        return None, None
    if getattr(potential, "heads", ()) is None:
        return None, "Not biased, the model having no uncertainty heads yet."
    bias = UncertaintyBias(strength_eV=rules.bias.strength_eV, width_eV=rules.bias.width_eV)
    return bias, None


class _Collector:
    """Sorts the checks of a walker into trusted states, candidates and the random pool."""

    def __init__(
        self,
        *,
        start: Checkpoint,
        origin: Origin,
        ensemble: Ensemble,
        n_pool: int,
        seed: int,
        limit_eV_A: float,
        stop_on_uncertainty: bool,
    ) -> None:
        self.trusted = start
        self.met_trusted = False
        self.origin = origin
        self.ensemble = ensemble
        self.limit_eV_A = limit_eV_A
        self.stop_on_uncertainty = stop_on_uncertainty
        self.last: Frame | None = None
        self.candidates = Reservoir(MAX_CANDIDATES, seed=(seed, start.step, 1))
        self.pool = Reservoir(n_pool, seed=(seed, start.step, 2))

    def checked(self, check: Check, loop: MdLoop) -> tuple[StopReason, str] | None:
        """Sort one check; stop if the uncertainty is beyond the limit."""
        lost = (
            self.stop_on_uncertainty
            and check.sigma_eV_A > self.limit_eV_A
            and (self.met_trusted or self.candidates.n_seen + 1 >= LEAST_CANDIDATES)
        )
        if check.stopped or lost:
            self.last = self._checked(check, loop, Purpose.UNCERTAIN)
        elif check.sigma_eV_A <= loop.tolerance_eV_A:
            self.trusted = loop.checkpoint()
            self.met_trusted = True
        elif self.candidates.place() is not None:
            self.candidates.put(self._checked(check, loop, Purpose.UNCERTAIN))
        else:
            self.candidates.skip()
        # The start is either the ideal structure or the end of the previous segment.
        if check.index % POOL_GAP == 1 and check.fair:
            if self.pool.place() is not None:
                self.pool.put(self._checked(check, loop, Purpose.AUDIT))
            else:
                self.pool.skip()
        if lost and not check.stopped:
            usual = self.limit_eV_A > STOP_RATIO * loop.tolerance_eV_A
            than = "what is usual of the model," if usual else "the tolerance of"
            message = (
                f"At step {check.step} the uncertainty is {check.sigma_eV_A:.3f} eV/Å, more than "
                f"{STOP_RATIO:g} times {than} {self.limit_eV_A / STOP_RATIO:.3g} eV/Å."
            )
            return StopReason.UNCERTAIN, message
        return None

    def leave_if_lost(
        self,
        checkpoint: Checkpoint,
        potential: Potential,
        *,
        calibration: Calibration,
    ) -> str | None:
        """Collect a checkpoint whose uncertainty is beyond the limit; say so, or None."""
        atoms = checkpoint.frame.to_atoms()
        try:
            sigmas_eV_A = potential.predict(atoms, uncertainty=True).sigma_eV_A
        except PotentialError as error:
            return f"Begun anew, the potential having given up at the checkpoint: {error.what}"
        if sigmas_eV_A is None:
            return None
        sigma = calibration.of_frame(sigmas_eV_A)
        if sigma <= self.limit_eV_A:
            return None
        self.candidates.put(
            self._frame(atoms, checkpoint.step, sigma, potential, Purpose.UNCERTAIN)
        )
        return (
            f"Begun anew, the checkpoint of step {checkpoint.step} having an uncertainty of "
            f"{sigma:.3f} eV/Å by this model."
        )

    def _checked(self, check: Check, loop: MdLoop, purpose: Purpose) -> Frame:
        return self._frame(check.atoms, check.step, check.sigma_eV_A, loop.potential, purpose)

    def _frame(
        self, atoms: Atoms, step: int, sigma_eV_A: float, potential: Potential, purpose: Purpose
    ) -> Frame:
        return Frame.from_atoms(
            atoms,
            origin=self.origin.model_copy(
                update={
                    "step": step,
                    "temperature_K": self.ensemble.temperature_at_K(step),
                    "pressure_GPa": self.ensemble.pressure_at_GPa(step),
                }
            ),
            purpose=purpose,
            sigma_eV_A=sigma_eV_A,
            features=[float(value) for value in potential.features([atoms])[0]],
        )

    def memory(self) -> dict[str, Any]:
        """Return the state as JSON data."""
        return {
            "trusted": self.trusted.model_dump(mode="json"),
            "met_trusted": self.met_trusted,
            "candidates": self.candidates.memory(),
            "pool": self.pool.memory(),
        }

    def recall(self, memory: dict[str, Any]) -> None:
        """Take the state back."""
        self.trusted = Checkpoint.model_validate(memory["trusted"])
        self.met_trusted = memory["met_trusted"]
        self.candidates.recall(memory["candidates"])
        self.pool.recall(memory["pool"])


class Reservoir:
    """A uniform random sample of frames of a stream (Vitter's algorithm R).

    The random number of the k-th frame is a function of the seed and k, so there is no generator
    whose state must be saved.
    """

    def __init__(self, capacity: int, *, seed: tuple[int, ...]) -> None:
        self._capacity = capacity
        self._seed = seed
        self._n_seen = 0
        self._frames: list[Frame] = []

    @property
    def n_seen(self) -> int:
        """Frames of the stream so far."""
        return self._n_seen

    def place(self) -> int | None:
        """Return where the next frame of the stream would go; None if it is not taken."""
        if self._n_seen < self._capacity:
            return self._n_seen
        draw = int(np.random.default_rng([*self._seed, self._n_seen]).integers(self._n_seen + 1))
        return draw if draw < self._capacity else None

    def put(self, frame: Frame) -> None:
        """Take the next frame of the stream."""
        place = self.place()
        self._n_seen += 1
        if place is None:
            return
        if place == len(self._frames):
            self._frames.append(frame)
        else:
            self._frames[place] = frame

    def skip(self) -> None:
        """Count a frame of the stream that has no place."""
        self._n_seen += 1

    def frames(self) -> list[Frame]:
        """Return the sample in the order of steps."""
        return sorted(self._frames, key=lambda frame: frame.origin.step or 0)

    def memory(self) -> dict[str, Any]:
        """Return the state as JSON data."""
        return {
            "n_seen": self._n_seen,
            "frames": [frame.model_dump(mode="json") for frame in self._frames],
        }

    def recall(self, memory: dict[str, Any]) -> None:
        """Take the state back."""
        self._n_seen = memory["n_seen"]
        self._frames = [Frame.model_validate(frame) for frame in memory["frames"]]


def _segment(
    loop: MdLoop, observer: _Collector, *, first: bool, notes: list[str | None]
) -> WalkerSegment:
    """Return the document of a finished loop; ``first`` if its start is no earlier end."""
    state = loop.state
    ended = loop.checkpoint()
    kept = observer.trusted.model_copy(update={"rng_state": ended.rng_state})
    first_step = ended.step - state.n_steps_run
    records = loop.recorder.records()
    own = (records["step"] <= kept.step) & ((records["step"] > first_step) | first)
    shown = records[:: max(1, -(-len(records) // MAX_POINTS))]
    return WalkerSegment(
        walker=observer.origin.walker or 0,
        temperature_K=loop.ensemble.temperature_K,
        pressure_GPa=loop.ensemble.pressure_GPa,
        model_id=observer.origin.model_id or "",
        first_step=first_step,
        n_steps=kept.step - first_step,
        n_steps_run=state.n_steps_run,
        n_checked=state.n_checked,
        n_above=state.n_above,
        n_extra=state.n_extra,
        n_extra_above=state.n_extra_above,
        stop_reason=loop.reason or StopReason.COMPLETED,
        stop_message=" ".join(part for part in (*notes, loop.message) if part),
        steps=shown["step"].tolist(),
        sigmas_eV_A=shown["sigma_eV_A"].tolist(),
        temperatures_K=shown["temperature_K"].tolist(),
        targets_K=[loop.ensemble.temperature_at_K(int(step)) for step in shown["step"]],
        bias_eV=shown["bias_eV"].tolist() if loop.bias else [],
        candidates=observer.candidates.frames() + ([observer.last] if observer.last else []),
        pool=observer.pool.frames(),
        blob={
            "checkpoint": kept.model_dump(mode="json"),
            "trajectory": encode_records(ended.frame.numbers, records[own]),
        },
        seconds=state.seconds,
    )
