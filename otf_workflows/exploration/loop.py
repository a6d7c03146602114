"""The MD loop that walkers and production runs share: advance, guard, check, save."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import Field, ValidationError

from otf_workflows.errors import InputError, PotentialError
from otf_workflows.exploration.dynamics import Dynamics, Ensemble
from otf_workflows.exploration.trajectory import Recorder, record_type
from otf_workflows.schemas import Checkpoint, Document
from otf_workflows.types import StopReason

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from ase import Atoms

    from otf_workflows.exploration.bias import UncertaintyBias
    from otf_workflows.exploration.health import Guards
    from otf_workflows.potentials.base import Potential
    from otf_workflows.schemas import Calibration

SAVE_EVERY = 100
"""MD steps between saves. At each, saved or not, the dynamics starts anew from its checkpoint, so
that a resumed run and an uninterrupted one are the same to the last bit."""

STATE = "state.json"
"""The newest saved state, in the folder of a run."""

STATE_BEFORE = "state.before.json"
"""The one before it: runs that go on together need one that all have."""

NOVELTY_RISE = 1.1
"""Novelty beyond so many times the highest that was checked so far calls for a check at once. As
each check raises the bar, a walker in equilibrium makes fewer and fewer of them, while one that
leaves what it knows makes them as it goes."""

EARLY_SHARE = 0.2
"""Least distance of an early check from the one before, in units of ``check_every``; two steps at
least."""


@dataclass(frozen=True)
class Check:
    """One reading of the uncertainty.

    Attributes
    ----------
    index
        0 for the check before the first step.
    step
        MD steps of the walker, over all cycles.
    atoms
        Structure, without calculator.
    sigma_eV_A
        Calibrated worst-atom force uncertainty (eV/Å).
    stopped
        Whether a guard has already ended the run here.
    fair
        Whether it was made when due and without a bias. Others are where it is uncertain, so they
        belong in no average and in no random sample.
    """

    index: int
    step: int
    atoms: Atoms
    sigma_eV_A: float
    stopped: bool
    fair: bool = True


class Observer(Protocol):
    """Is told of every check, and may end the run."""

    def checked(self, check: Check, loop: MdLoop) -> tuple[StopReason, str] | None:
        """Take note of a check; return a reason to stop, or None."""

    def memory(self) -> dict[str, Any]:
        """Return, as JSON data, what a resumed run must be given by :meth:`recall`."""

    def recall(self, memory: dict[str, Any]) -> None:
        """Take back what :meth:`memory` returned."""


class LoopState(Document):
    """What is saved of a run, beside its records."""

    digest: str = Field(description="Hash of all inputs: a run resumes only its own state.")
    current: Checkpoint = Field(description="Where the run stands.")
    n_steps_run: int = Field(0, description="MD steps made.")
    n_checked: int = Field(0, description="Checks made.")
    n_above: int = Field(0, description="Checks above the tolerance.")
    n_extra: int = Field(0, description="Further checks, early or with a bias.")
    n_extra_above: int = Field(0, description="Of these, checks above the tolerance.")
    last_check: int = Field(0, description="MD steps made at the last check.")
    highest_novelty: float | None = Field(None, description="Of an atom, at all checks.")
    bias: dict[str, Any] = Field(default_factory=dict, description="Memory of the bias.")
    n_records: int = Field(0, description="Valid records in the file beside.")
    seconds: float = Field(0.0, description="Wall time so far (s).")
    memory: dict[str, Any] = Field(default_factory=dict, description="Of the observer.")


def digest(**inputs: Any) -> str:
    """Return a hash of JSON data, the inputs of a run."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


class MdLoop:
    """Runs MD with guards and checks until its end or a reason to stop.

    Parameters
    ----------
    start
        Where to begin, if there is nothing to resume.
    potential
        Drives the dynamics and reads the uncertainty.
    ensemble
        Conditions.
    guards
        What MD may not do.
    n_steps
        MD steps to make.
    check_every
        Read the uncertainty every so many steps, at the start and at the end.
    tolerance_eV_A
        Above this a check is counted in ``n_above`` (eV/Å).
    calibration
        How the raw uncertainty becomes an honest one.
    observer
        Told of every check.
    early_checks
        Also read it as soon as the novelty rises above what was checked so far, where the
        calculator of the potential knows the novelty at every step.
    bias
        Pushes the walker, once the steps before the first save have shown it what is thermal.
    inputs_digest
        Hash of all inputs.
    scratch
        Folder for the saved state; None for none.
    """

    def __init__(
        self,
        start: Checkpoint,
        potential: Potential,
        *,
        ensemble: Ensemble,
        guards: Guards,
        n_steps: int,
        check_every: int,
        tolerance_eV_A: float,
        calibration: Calibration,
        observer: Observer,
        inputs_digest: str,
        scratch: Path | None,
        early_checks: bool = False,
        bias: UncertaintyBias | None = None,
    ) -> None:
        self.potential = potential
        self.ensemble = ensemble
        self.guards = guards
        self.n_steps = n_steps
        self.check_every = check_every
        self.tolerance_eV_A = tolerance_eV_A
        self.calibration = calibration
        self.observer = observer
        self.early_checks = early_checks
        self.bias = bias
        self.scratch = scratch
        self.reason: StopReason | None = None
        self.message = ""
        self.state = LoopState(digest=inputs_digest, current=start)
        n_atoms = start.frame.n_atoms
        if scratch is not None:
            scratch.mkdir(parents=True, exist_ok=True)
            saved = read_state(scratch, inputs_digest, n_atoms)
            if saved is not None:
                self.state = saved
                observer.recall(saved.memory)
                if bias is not None:
                    bias.recall(saved.bias)
        self.recorder = Recorder(
            n_atoms,
            path=scratch / "records.bin" if scratch else None,
            n_keep=self.state.n_records,
        )
        self.dynamics: Dynamics | None = None
        self._clock = time.monotonic()

    def run(self) -> None:
        """Run to the end; afterwards :attr:`reason`, :attr:`state` and the records are final."""
        try:
            self._run()
        except PotentialError as error:
            self._stop(StopReason.FORCE, f"The potential gave up: {error.what}")
        self._account()

    def checkpoint(self) -> Checkpoint:
        """Return the state of the dynamics now."""
        return self.dynamics.checkpoint() if self.dynamics else self.state.current

    def _run(self) -> None:
        self._begin()
        if self.state.n_steps_run == 0:
            self._check()
        while self.reason is None and self.state.n_steps_run < self.n_steps:
            self._moving().advance()
            self.state.n_steps_run += 1
            done = self.state.n_steps_run
            self._guard_motion()
            if done % self.check_every == 0 or done == self.n_steps or self.reason:
                self._check()
            elif self._is_new():
                self._check(early=True)
            if done % SAVE_EVERY == 0 and self.reason is None:
                self._save()
        self.reason = self.reason or StopReason.COMPLETED

    def _guard_motion(self) -> None:
        dynamics = self._moving()
        problem = self.guards.motion_problem(
            temperature_K=dynamics.temperature_K,
            target_K=dynamics.target_K,
            forces_eV_A=dynamics.forces_eV_A,
        )
        if problem:
            self._stop(*problem)

    def _is_new(self) -> bool:
        """Return whether the present step is so new that its check should not wait."""
        bar, novelty = self.state.highest_novelty, self._moving().novelty
        if not self.early_checks or bar is None or novelty is None:
            return False
        gap = max(2, round(EARLY_SHARE * self.check_every))
        waited = self.state.n_steps_run - self.state.last_check
        return waited >= gap and novelty > NOVELTY_RISE * bar

    def _check(self, *, early: bool = False) -> None:
        dynamics = self._moving()
        atoms = dynamics.structure()
        problem = self.guards.structure_problem(atoms)
        if problem:
            # Such a structure is no candidate, and its uncertainty says nothing.
            self._stop(*problem)
            return
        prediction = self.potential.predict(atoms, uncertainty=True)
        if prediction.sigma_eV_A is None:
            raise InputError(
                f"The potential {self.potential.name} gives no uncertainty.",
                hint="fit its uncertainty heads, or choose another potential",
            )
        sigma = self.calibration.of_frame(prediction.sigma_eV_A)
        if not math.isfinite(sigma):
            self._stop(StopReason.FORCE, "The uncertainty of the forces is not a finite number.")
            return
        index = self.state.n_checked
        fair = not early and self.bias is None
        self._count(sigma > self.tolerance_eV_A, prediction.novelty, fair=fair)
        self.recorder.append(
            step=dynamics.step_count,
            temperature_K=dynamics.temperature_K,
            energy_eV=prediction.energy_eV,
            sigma_eV_A=sigma,
            bias_eV=dynamics.bias_energy_eV,
            atoms=atoms,
        )
        stopped = self.reason is not None
        check = Check(index, dynamics.step_count, atoms, sigma, stopped=stopped, fair=fair)
        verdict = self.observer.checked(check, self)
        if verdict and self.reason is None:
            self._stop(*verdict)

    def _count(self, above: bool, novelty: np.ndarray | None, *, fair: bool) -> None:
        state = self.state
        state.last_check = state.n_steps_run
        if fair:
            state.n_checked += 1
            state.n_above += above
        else:
            state.n_extra += 1
            state.n_extra_above += above
        if novelty is not None:
            state.highest_novelty = max(state.highest_novelty or 0.0, float(novelty.max()))

    def _stop(self, reason: StopReason, message: str) -> None:
        if self.reason is None:
            self.reason = reason
            self.message = message

    def _save(self) -> None:
        """Write the state, if there is a folder, and start anew from it."""
        self._account()
        self.state.current = self._moving().checkpoint()
        if self.bias is not None:
            self.bias.settle()
            self.state.bias = self.bias.memory()
        if self.scratch is not None:
            self.state.n_records = self.recorder.save()
            self.state.memory = self.observer.memory()
            write_state(self.scratch, self.state)
        self._begin()

    def _begin(self) -> None:
        self.dynamics = Dynamics(self.state.current, self.potential, self.ensemble, bias=self.bias)

    def _account(self) -> None:
        now = time.monotonic()
        self.state.seconds += now - self._clock
        self._clock = now

    def _moving(self) -> Dynamics:
        if self.dynamics is None:
            raise RuntimeError("The loop has not been started.")
        return self.dynamics


def write_state(folder: Path, state: LoopState) -> None:
    """Write a state so that a kill at any moment leaves the old one or the new one."""
    state_file, draft = folder / STATE, folder / f"{STATE}.new"
    with draft.open("w", encoding="utf-8") as file:
        # json writes the shortest text that reads back as the same float.
        json.dump(state.model_dump(mode="json"), file)
        file.flush()
        os.fsync(file.fileno())
    if state_file.exists():
        shutil.copyfile(state_file, folder / STATE_BEFORE)
    draft.replace(state_file)


def read_state(folder: Path, inputs_digest: str, n_atoms: int) -> LoopState | None:
    """Return the saved state of this very run, or None if there is none to go on from."""
    path = folder / STATE
    records = folder / "records.bin"
    if not path.exists():
        return None
    try:
        state = LoopState.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, ValidationError):
        return None
    wanted = state.n_records * record_type(n_atoms).itemsize
    if state.digest != inputs_digest or (wanted and not records.exists()):
        return None
    return state if not wanted or records.stat().st_size >= wanted else None
