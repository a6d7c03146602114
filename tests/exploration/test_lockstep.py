"""Functions that ask a potential in step: who is answered with whom, and how errors travel."""

import os
import signal
import threading

import numpy as np
import pytest
from ase.build import bulk

from otf_workflows.errors import PotentialError
from otf_workflows.exploration.lockstep import in_step
from otf_workflows.potentials.base import Prediction

COPPER = bulk("Cu", cubic=True)


class Diary:
    """Notes who asked for what together; the name of a structure stands in its info."""

    name = "diary"

    def __init__(self, *, bad=(), error_at=None, error=RuntimeError):
        self.notes = []
        self.threads = set()
        self.bad = set(bad)
        self.error_at, self.error = error_at, error

    def predict_many(self, structures, *, uncertainty=False):
        self._note("sigma" if uncertainty else "forces", structures)
        return [
            Prediction(float(i), np.zeros((4, 3)), np.zeros((3, 3)))
            for i, _ in enumerate(structures)
        ]

    def features(self, structures):
        self._note("features", structures)
        return np.arange(len(structures), dtype=float)[:, None]

    def _note(self, kind, structures):
        self.threads.add(threading.current_thread())
        who = "".join(atoms.info["who"] for atoms in structures)
        self.notes.append(f"{kind} {who}")
        if len(self.notes) - 1 == self.error_at:
            raise self.error
        if self.bad & set(who):
            raise PotentialError(f"{self.bad & set(who)} exploded")


def named(who):
    atoms = COPPER.copy()
    atoms.info["who"] = who
    return atoms


def asking(who, script):
    """A function that asks for forces (f), uncertainty (s) and features (x)."""

    def run(potential):
        answers = []
        for letter in script:
            if letter == "x":
                answers.append(potential.features([named(who)])[0, 0])
            else:
                answers.append(potential.predict(named(who), uncertainty=letter == "s").energy_eV)
        return answers

    return run


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def test_all_that_have_not_ended_are_answered_together_and_each_gets_its_own_answer():
    diary = Diary()
    results = in_step([asking("a", "fff"), asking("b", "f"), asking("c", "ff")], diary)
    assert diary.notes == ["forces abc", "forces ac", "forces a"]
    assert results == [[0, 0, 0], [1], [2, 1]]


def test_nobody_makes_a_step_while_others_read():
    diary = Diary()
    in_step([asking("a", "fsxf"), asking("b", "ff"), asking("c", "fsf")], diary)
    assert diary.notes == ["forces abc", "sigma ac", "features a", "forces abc"]


def test_the_potential_is_used_in_the_thread_of_the_caller_only():
    diary = Diary()
    in_step([asking("a", "fsx"), asking("b", "fsx")], diary)
    assert diary.threads == {threading.current_thread()}


def test_one_bad_structure_is_the_trouble_of_one_function_only():
    def stops_at_trouble(potential):
        try:
            return asking("b", "ff")(potential)
        except PotentialError as error:
            return error.what

    diary = Diary(bad="b")
    results = in_step([asking("a", "ff"), stops_at_trouble, asking("c", "ff")], diary)
    assert results == [[0, 0], "{'b'} exploded", [0, 1]]
    assert diary.notes == ["forces abc", "forces a", "forces b", "forces c", "forces ac"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
def test_an_error_of_the_potential_ends_all_and_is_raised(error):
    with pytest.raises(error):
        in_step([asking("a", "ff"), asking("b", "ff")], Diary(error_at=1, error=error))


def test_an_error_of_one_function_ends_all_and_is_raised():
    def broken(potential):
        potential.predict(named("b"))
        raise OSError("the disk is full")

    ended = []

    def other(potential):
        try:
            asking("a", "fff")(potential)
        finally:
            ended.append("a")

    with pytest.raises(OSError, match="disk is full"):
        in_step([other, broken], Diary())
    assert ended == ["a"]


def test_a_signal_ends_all_although_a_function_is_on_its_way():
    ended = []

    def interrupted(potential):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):
                potential.predict(named("a"))
        finally:
            ended.append("a")

    with pytest.raises(KeyboardInterrupt):
        in_step([interrupted, asking("b", "f" * 1000)], Diary())
    assert ended == ["a"]


def test_functions_that_ask_nothing_just_return():
    assert in_step([lambda _: 1, lambda _: 2], Diary()) == [1, 2]
    assert in_step([], Diary()) == []
