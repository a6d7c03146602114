"""Functions that ask a potential, in step with each other, and answered together.

Each runs in a thread of its own, but only one of these threads moves at any moment: it goes on
until it asks for something. Once all wait, their questions are answered in the thread that called,
and they go on in turns. So nothing runs at the same time as anything else, the order is always the
same, and the potential is used by one thread alone (torch has settings of single threads).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import StrEnum
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import numpy as np

from otf_workflows.potentials.base import PotentialError, Tiltable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ase import Atoms
    from ase.calculators.calculator import Calculator

    from otf_workflows.potentials.base import Potential, Prediction

T = TypeVar("T")


class _Kind(StrEnum):
    """What can be asked for, in the order in which it is answered.

    Plain forces come last: a σ of the same structures, right after them, finds their forward pass.
    """

    FEATURES = "features"
    SIGMA = "sigma"
    BIASED_FORCES = "biased forces"
    FORCES = "forces"


_STEPS = {_Kind.BIASED_FORCES, _Kind.FORCES}
"""What moves a walker on."""


@dataclass(frozen=True)
class _Question:
    """What one function asks the potential; ``slopes`` are those of a bias."""

    kind: _Kind
    atoms: Atoms
    slopes: Callable[[np.ndarray], np.ndarray] = np.zeros_like


class _Dismissed(BaseException):
    """Ends a function whose answer nobody will give."""


def in_step(runs: Sequence[Callable[[Potential], T]], potential: Potential) -> list[T]:
    """Run functions that ask a potential, and answer together what they ask for.

    Energies and forces are predicted once all functions that have not ended ask for them; whatever
    else they ask for (uncertainty, features) is answered before that.

    Parameters
    ----------
    runs
        Each is given a potential that passes its questions on. An error of one ends all, but for
        a :class:`~otf_workflows.errors.PotentialError`, which is raised where the question of that
        one structure was asked.
    potential
        Gives the answers, in the thread of the caller.

    Returns
    -------
    list
        What the functions returned, in their order.
    """
    members = [_Member(run, potential) for run in runs]
    try:
        for member in members:
            member.go()
        while asking := [(m, m.question) for m in members if m.question is not None]:
            reading = [(m, question) for m, question in asking if question.kind not in _STEPS]
            chosen = reading or asking
            replies = _answers([question for _, question in chosen], potential)
            for (member, _), reply in zip(chosen, replies, strict=True):
                member.go(reply)
    finally:
        for member in members:
            member.dismiss()
    return [member.results[0] for member in members]


class _Member(Generic[T]):
    """One function in its thread, which moves only while the caller waits in :meth:`go`.

    Attributes
    ----------
    question
        What it waits for; None before its start and after its end.
    results
        What it returned, once it has.
    """

    def __init__(self, run: Callable[[Potential], T], potential: Potential) -> None:
        self.question: _Question | None = None
        self.results: list[T] = []
        self._told: SimpleQueue[Any] = SimpleQueue()
        self._said: SimpleQueue[_Question | BaseException | None] = SimpleQueue()
        seen = (_SeenTiltable if isinstance(potential, Tiltable) else _Seen)(potential, self.ask)
        self._thread = threading.Thread(
            target=self._live, args=(run, cast("Potential", seen)), daemon=True
        )

    def go(self, reply: Any = None) -> None:
        """Let the function move until it asks for something or ends; raise its error."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._told.put(reply)
        said = self._said.get()
        self.question = said if isinstance(said, _Question) else None
        if isinstance(said, BaseException):
            raise said

    def ask(self, question: _Question) -> Any:
        """Wait for an answer, in the thread of the function."""
        self._said.put(question)
        reply = self._told.get()
        if isinstance(reply, BaseException):
            raise reply
        return reply

    def dismiss(self) -> None:
        """End the function if it has not ended."""
        if self._thread.is_alive():
            self._told.put(_Dismissed())
            self._thread.join()

    def _live(self, run: Callable[[Potential], T], seen: Potential) -> None:
        try:
            self.results.append(run(seen))
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread of the caller
            self._said.put(error)
        else:
            self._said.put(None)


class _Seen:
    """As much of a potential as a walker uses; each question waits for those of the others."""

    def __init__(self, potential: Potential, ask: Callable[[_Question], Any]) -> None:
        self.name = potential.name
        self._ask = ask

    def predict(self, atoms: Atoms, *, uncertainty: bool = False) -> Prediction:
        """Return energy, forces and stress; σ and novelty as well if asked for."""
        return self._ask(_Question(_Kind.SIGMA if uncertainty else _Kind.FORCES, atoms))

    def features(self, structures: Sequence[Atoms]) -> np.ndarray:
        """Return structure-mean latent features, shape (n_structures, d)."""
        return np.array([self._ask(_Question(_Kind.FEATURES, atoms)) for atoms in structures])

    def calculator(self) -> Calculator:
        """Return an ASE calculator whose every step waits for those of the others."""
        from otf_workflows.potentials.calculator import PotentialCalculator

        return PotentialCalculator(cast("Potential", self))


class _SeenTiltable(_Seen):
    """A potential that can be biased, likewise."""

    def __init__(self, potential: Potential, ask: Callable[[_Question], Any]) -> None:
        super().__init__(potential, ask)
        self.heads: np.ndarray | None = cast("Tiltable", potential).heads

    def predict_tilted(
        self, atoms: Atoms, slopes: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[Prediction, np.ndarray]:
        """Return energy, forces and stress with a bias, and head energies."""
        return self._ask(_Question(_Kind.BIASED_FORCES, atoms, slopes))


def _answers(questions: Sequence[_Question], potential: Potential) -> list[Any]:
    """Return the answer to each question, those of one kind found together."""
    replies: list[Any] = [None] * len(questions)
    for kind in _Kind:
        places = [i for i, question in enumerate(questions) if question.kind is kind]
        if not places:
            continue
        found = _alike([questions[i] for i in places], potential)
        for place, reply in zip(places, found, strict=True):
            replies[place] = reply
    return replies


def _alike(questions: Sequence[_Question], potential: Potential) -> list[Any]:
    """Return answers to questions of one kind; an error where there is none."""
    kind = questions[0].kind
    structures = [question.atoms for question in questions]
    try:
        if kind is _Kind.FEATURES:
            return list(potential.features(structures))
        if kind is not _Kind.BIASED_FORCES:
            return list(potential.predict_many(structures, uncertainty=kind is _Kind.SIGMA))
        if len(questions) == 1:
            biased = cast("Tiltable", potential)
            return [biased.predict_tilted(structures[0], questions[0].slopes)]
    except PotentialError as error:
        if len(questions) == 1:
            return [error]
    # Each bias has slopes of its own. And where one structure is bad, the others are answered.
    return [reply for question in questions for reply in _alike([question], potential)]
