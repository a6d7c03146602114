"""Labels from any ASE calculator, in this process.

Four names are ready: ``emt`` and ``lj`` for tests and teaching; ``tblite``, the tight binding of
xTB (Bannwarth et al., 2021, 10.1002/wcms.1493), for large cells; and ``teacher``, another
machine-learned potential in the place of DFT, so that a whole campaign runs in minutes. Anything
else is the import path of a callable that returns a calculator. Such a path is code of the user's
choice: it comes from their own campaign file, and runs with their own rights.
"""

from __future__ import annotations

import inspect
import json
import time
import traceback
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from otf_workflows.errors import ConfigurationError, InputError, OtfError
from otf_workflows.labelers.base import Recipe, fingerprint
from otf_workflows.labelers.outcome import (
    failed,
    host_name,
    last_lines,
    numbers_problem,
    queue_id,
)
from otf_workflows.schemas import Attempt, Frame, LabelResult, now
from otf_workflows.types import FailureCause

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ase.calculators.calculator import Calculator

    from otf_workflows.labelers.base import Resources

READY = {
    "emt": "ase.calculators.emt.EMT",
    "lj": "ase.calculators.lj.LennardJones",
    "tblite": "otf_workflows.labelers.ase_calculator.tblite",
    "teacher": "otf_workflows.labelers.ase_calculator.teacher",
}
"""Short name → import path."""

TBLITE_METHOD = "GFN2-xTB"

TBLITE_WIDTH_A = 9.0
"""Least distance of opposite faces of a cell (Å): tblite has no k-points but Γ, and silicon in
cells of 5.4 and 10.9 Å differs by 1 eV per atom."""

EMT_ELEMENTS = {"Al", "Cu", "Ag", "Au", "Ni", "Pd", "Pt", "H", "C", "N", "O"}


class AseRecipe(Recipe):
    """Level of theory of an ASE calculator: its name and arguments."""

    code: Literal["ase"] = Field("ase", description="Any ASE calculator.")
    calculator: str = Field(description="emt, lj, tblite, teacher, or 'package.module.callable'.")
    kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of the calculator, plain data."
    )
    level: str | None = Field(
        None, description="Name of the level of theory, if the arguments do not say it."
    )

    @field_validator("calculator")
    @classmethod
    def _known(cls, value: str) -> str:
        if value in READY or ("." in value and all(p.isidentifier() for p in value.split("."))):
            return value
        near = get_close_matches(value, READY, n=1, cutoff=0.5)
        advice = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(READY)}"
        msg = f"{value!r} is neither a ready calculator nor an import path; {advice}"
        raise ValueError(msg)

    @field_validator("kwargs")
    @classmethod
    def _plain(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            msg = f"only plain data (numbers, texts, lists) can be hashed: {error}"
            raise ValueError(msg) from error
        return value

    @model_validator(mode="after")
    def _teacher_named(self) -> Self:
        if self.calculator == "teacher" and not isinstance(self.kwargs.get("potential"), str):
            msg = "a teacher needs kwargs: {potential: NAME}, e.g. chgnet-r2scan"
            raise ValueError(msg)
        return self

    def level_of_theory(self, numbers: Sequence[int]) -> dict[str, Any]:  # noqa: ARG002
        """Return calculator, arguments and the name of the level of theory."""
        name = self.level or self.calculator
        if self.calculator == "teacher":
            name = f"teacher:{self.kwargs['potential']}"
        if self.calculator == "tblite":
            name = f"tblite:{self.kwargs.get('method', TBLITE_METHOD)}"
        return {
            "code": self.code,
            "calculator": self.calculator,
            "kwargs": self.kwargs,
            "level": name,
        }

    def problems(self, frame: Frame) -> list[str]:
        """Return what makes this recipe impossible for a frame, in sentences."""
        from ase.data import chemical_symbols

        try:
            known = self._elements()
        except OtfError as error:
            return [error.what]
        symbols = {chemical_symbols[number] for number in frame.numbers}
        if known is not None and (missing := sorted(symbols - known)):
            return [f"the calculator {self.calculator} does not know {', '.join(missing)}"]
        if self.calculator == "tblite" and (width_A := _least_width_A(frame)) < TBLITE_WIDTH_A:
            sentence = (
                f"tblite has no k-points: a cell of {width_A:.1f} Å is too narrow for Γ alone"
            )
            return [f"{sentence}, make a supercell of {TBLITE_WIDTH_A:g} Å or more"]
        return []

    def _elements(self) -> set[str] | None:
        from ase.data import chemical_symbols

        if self.calculator == "emt":
            return EMT_ELEMENTS
        if self.calculator == "tblite":
            return set(chemical_symbols[1:87])
        if self.calculator == "teacher":
            from otf_workflows.potentials import potential_entry

            return {chemical_symbols[z] for z in potential_entry(self.kwargs["potential"]).elements}
        find_callable(self.calculator)
        return None


class AseLabeler:
    """Computes labels with an ASE calculator, in this process."""

    recipe_model: ClassVar[type[Recipe]] = AseRecipe

    def label(
        self,
        frame: Frame,
        recipe: AseRecipe,
        *,
        key: str,
        directory: Path,
        resources: Resources,
        numerics: dict[str, Any] | None = None,
    ) -> LabelResult:
        """Compute one label; see :class:`otf_workflows.labelers.base.Labeler`.

        Raises
        ------
        InputError
            If ``numerics`` is not empty: there is no ladder here.
        LabelFailed
            If the calculator cannot be made, fails, or returns impossible numbers.
        """
        self.check_numerics(numerics or {})
        directory = Path(directory).resolve()
        attempt = Attempt(
            number=1,
            host=host_name(),
            queue_id=queue_id(),
            directory=str(directory),
            started=now(),
            cores=resources.cores,
        )
        begun = time.monotonic()
        cause, message, lines = FailureCause.INPUT, "", []
        try:
            calculator, level = _calculator(recipe)
            cause = FailureCause.UNKNOWN
            energy, forces, stress = _evaluate(calculator, frame, with_stress=recipe.use_stress)
        except Exception as error:  # noqa: BLE001 - foreign code may raise anything
            message = f"{recipe.calculator}: {type(error).__name__}: {error}"
            lines = last_lines(traceback.format_exc())
        else:
            problem = numbers_problem(energy, forces, stress, n_atoms=frame.n_atoms)
            cause, message = FailureCause.PARSE, problem or ""
        seconds = time.monotonic() - begun
        attempt = attempt.model_copy(update={"seconds": seconds})
        if message:
            update = {"cause": cause, "message": message, "last_lines": lines}
            attempts = [attempt.model_copy(update=update)]
            raise failed(message, cause=cause, attempts=attempts, directory=directory)
        return LabelResult(
            key=key,
            frame=frame,
            energy_eV=energy,
            forces_eV_A=forces.tolist(),
            stress_eV_A3=None if stress is None else stress.tolist(),
            fingerprint=fingerprint(level),
            settings_as_run=level,
            attempts=[attempt],
            core_hours=seconds * resources.cores / 3600,
        )

    def check_numerics(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Return ``changes`` if there are none: nothing can be set for a calculator in-process."""
        if changes:
            raise InputError(
                "calculators in this process have no numerical settings to change",
                where=", ".join(f"--set {name}" for name in changes),
            )
        return changes

    def check(self, resources: Resources, numbers: list[int], recipe: AseRecipe) -> list[str]:  # noqa: ARG002
        """Return what is missing on this machine, in sentences."""
        try:
            _calculator(recipe)
        except (OtfError, ImportError, TypeError, ValueError) as error:
            return [getattr(error, "what", str(error))]
        return []


def find_callable(path: str) -> Callable[..., Calculator]:
    """Return the callable that a ready name or an import path stands for.

    Raises
    ------
    InputError
        If it cannot be imported, or is not something to call.
    """
    full = READY.get(path, path)
    module, _, name = full.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"the calculator {path!r} cannot be imported: {error}",
            where="labels.calculator",
            hint="install its package, or correct the path 'package.module.callable'",
        ) from error
    if not callable(found):
        raise InputError(
            f"{path!r} is not a callable that makes a calculator", where="labels.calculator"
        )
    return found


def teacher(potential: str) -> Calculator:
    """Return the calculator of a registered potential that plays the part of DFT.

    Parameters
    ----------
    potential
        Name in the project's registry of potentials, e.g. ``chgnet-r2scan``.
    """
    return _load_teacher(potential).calculator()


def tblite(
    method: str = TBLITE_METHOD,
    *,
    accuracy: float = 1.0,
    electronic_temperature: float = 300.0,
    max_iterations: int = 250,
) -> Calculator:
    """Return tblite's calculator, without its output on the screen.

    Parameters
    ----------
    method
        ``GFN1-xTB``, ``GFN2-xTB`` or ``IPEA1-xTB``.
    accuracy
        Factor on its thresholds; smaller is tighter.
    electronic_temperature
        Of Fermi–Dirac occupations (K).
    max_iterations
        Most SCF iterations.

    Raises
    ------
    ConfigurationError
        If tblite is not installed.
    """
    try:
        from tblite.ase import TBLite
    except ImportError as error:
        raise ConfigurationError(
            "tblite is not installed", hint="pip install tblite==0.8.0, or the extra [tblite]"
        ) from error
    return TBLite(
        method=method,
        accuracy=accuracy,
        electronic_temperature=electronic_temperature,
        max_iterations=max_iterations,
        verbosity=0,
    )


def _least_width_A(frame: Frame) -> float:
    """Return the least distance of opposite faces of a cell (Å)."""
    reciprocal = np.linalg.inv(np.asarray(frame.cell_A, dtype=float))
    return float(1 / np.linalg.norm(reciprocal, axis=0).max())


def _calculator(recipe: AseRecipe) -> tuple[Calculator, dict[str, Any]]:
    """Return a calculator, and the level of theory that the object made says it has."""
    make = find_callable(recipe.calculator)
    try:
        inspect.signature(make).bind(**recipe.kwargs)
    except TypeError as error:
        raise InputError(f"{recipe.calculator}: {error}", where="labels.kwargs") from error
    calculator = make(**recipe.kwargs)
    if recipe.calculator in {"emt", "lj"}:
        # These swallow any argument: a typo would compute something else than was asked for.
        known = calculator.default_parameters
        if unknown := sorted(set(recipe.kwargs) - set(known)):
            raise InputError(
                f"{recipe.calculator} has no argument {', '.join(unknown)}",
                where="labels.kwargs",
                hint=f"it has: {', '.join(known)}",
            )
    level = recipe.level_of_theory([])
    if recipe.calculator == "teacher":
        level["level"] = f"teacher:{_load_teacher(recipe.kwargs['potential']).name}"
    if recipe.calculator == "tblite":
        level["level"] = f"tblite:{calculator.parameters['method']}"
    return calculator, level


@lru_cache(maxsize=2)
def _load_teacher(name: str) -> Any:
    from otf_workflows.potentials import load_potential

    return load_potential(name)


def _evaluate(
    calculator: Calculator, frame: Frame, *, with_stress: bool
) -> tuple[float, np.ndarray, np.ndarray | None]:
    atoms = frame.to_atoms()
    atoms.calc = calculator
    energy_eV = float(atoms.get_potential_energy())
    forces_eV_A = np.array(atoms.get_forces(), dtype=float)
    stress_eV_A3 = np.array(atoms.get_stress(voigt=False), dtype=float) if with_stress else None
    return energy_eV, forces_eV_A, stress_eV_A3
