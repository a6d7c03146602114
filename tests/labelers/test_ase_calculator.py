"""Any calculator of ASE can be the source of labels."""

import json

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import Calculator

from otf_workflows.errors import InputError, LabelFailed
from otf_workflows.labelers import get_labeler, parse_recipe
from otf_workflows.labelers.base import Resources, differences
from otf_workflows.schemas import Frame
from otf_workflows.testing.labelers import FailingCalculator
from otf_workflows.types import FailureCause

FAILING = "otf_workflows.testing.labelers.FailingCalculator"


@pytest.fixture
def frame():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=3)
    return Frame.from_atoms(atoms)


def label(frame, directory, **recipe):
    parsed = parse_recipe({"code": "ase", **recipe})
    return parsed, get_labeler("ase").label(
        frame, parsed, key="k", directory=directory, resources=Resources(cores=2)
    )


def test_numbers_are_those_of_the_calculator(frame, tmp_path):
    from ase.calculators.lj import LennardJones

    recipe, result = label(frame, tmp_path, calculator="lj", kwargs={"sigma": 2.3, "epsilon": 0.1})
    atoms = frame.to_atoms()
    atoms.calc = LennardJones(sigma=2.3, epsilon=0.1)
    assert result.energy_eV == atoms.get_potential_energy()
    assert np.array_equal(result.forces_eV_A, atoms.get_forces())
    assert np.array_equal(result.stress_eV_A3, atoms.get_stress(voigt=False))
    asked = recipe.level_of_theory(frame.numbers)
    assert differences(asked, result.settings_as_run) == []
    assert result.fingerprint == recipe.fingerprint(frame.numbers)
    assert result.core_hours == pytest.approx(2 * result.attempts[0].seconds / 3600)


def test_arguments_and_name_are_part_of_the_level_of_theory():
    recipes = [
        parse_recipe({"code": "ase", "calculator": "lj", **more})
        for more in ({}, {"kwargs": {"sigma": 2.0}}, {"level": "mine"})
    ]
    assert len({recipe.fingerprint([29]) for recipe in recipes}) == 3


def test_stress_can_be_left_out(frame, tmp_path):
    _, result = label(frame, tmp_path, calculator="emt", use_stress=False)
    assert result.stress_eV_A3 is None


def test_unknown_elements_are_named():
    recipe = parse_recipe({"code": "ase", "calculator": "emt"})
    frame = Frame(numbers=[11, 29], cell_A=(4 * np.eye(3)).tolist(), positions_A=np.eye(3)[:2])
    assert recipe.problems(frame) == ["the calculator emt does not know Na"]


def test_a_teacher_is_named_in_the_level_of_theory(frame):
    recipe = parse_recipe(
        {"code": "ase", "calculator": "teacher", "kwargs": {"potential": "chgnet-r2scan"}}
    )
    assert recipe.level_of_theory(frame.numbers)["level"] == "teacher:chgnet-r2scan"
    assert recipe.problems(frame) == []
    radium = frame.model_copy(update={"numbers": [88, 29, 29, 29]})
    assert "Ra" in recipe.problems(radium)[0]


def test_a_teacher_labels_what_its_potential_predicts(frame, tmp_path):
    recipe, result = label(frame, tmp_path, calculator="teacher", kwargs={"potential": "toy-lj"})
    from otf_workflows.potentials import load_potential

    expected = load_potential("toy-lj").predict(frame.to_atoms())
    assert result.energy_eV == pytest.approx(expected.energy_eV)
    assert result.forces_eV_A == pytest.approx(expected.forces_eV_A)
    assert result.fingerprint == recipe.fingerprint(frame.numbers)


def test_a_teacher_that_does_not_exist_is_a_problem(frame):
    recipe = parse_recipe(
        {"code": "ase", "calculator": "teacher", "kwargs": {"potential": "chgne"}}
    )
    assert "chgne" in recipe.problems(frame)[0]


@pytest.mark.parametrize(
    ("recipe", "word"),
    [
        ({"calculator": "emmt"}, "did you mean 'emt'"),
        ({"calculator": "import os"}, "import path"),
        ({"calculator": "teacher"}, "potential"),
        ({"calculator": "lj", "kwargs": {"sigma": float("nan")}}, "plain data"),
        ({"calculator": "lj", "argument": 1}, "argument"),
    ],
)
def test_impossible_recipes_are_refused(recipe, word):
    with pytest.raises(InputError) as caught:
        parse_recipe({"code": "ase", **recipe})
    assert word in str(caught.value)


@pytest.mark.parametrize("path", ["no_such_package.thing", "ase.build.nothing", "ase.units.Bohr"])
def test_paths_that_lead_to_no_callable_are_said_before_anything_runs(frame, path, tmp_path):
    recipe = parse_recipe({"code": "ase", "calculator": path})
    assert path in recipe.problems(frame)[0]
    assert get_labeler("ase").check(Resources(), frame.numbers, recipe)
    with pytest.raises(LabelFailed) as caught:
        label(frame, tmp_path, calculator=path)
    assert caught.value.cause == FailureCause.INPUT


def test_wrong_arguments_are_an_input_failure(frame, tmp_path):
    with pytest.raises(LabelFailed, match="colour") as caught:
        label(frame, tmp_path, calculator="lj", kwargs={"colour": 1})
    assert caught.value.cause == FailureCause.INPUT


@pytest.mark.parametrize(
    ("how", "cause"), [("raise", FailureCause.UNKNOWN), ("nan", FailureCause.PARSE)]
)
def test_failures_are_recorded_with_their_cause(frame, tmp_path, how, cause):
    with pytest.raises(LabelFailed) as caught:
        label(frame, tmp_path, calculator=FAILING, kwargs={"share": 1.0, "how": how})
    failure = caught.value
    assert failure.cause == cause
    assert len(failure.attempts) == 1
    assert failure.attempts[0]["cause"] == cause
    assert len(failure.attempts[0]["last_lines"]) <= 30
    assert json.loads((tmp_path / "label_failure.json").read_text()) == failure.to_dict()


class LopsidedForces(Calculator):
    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def calculate(self, *args):
        super().calculate(*args)
        self.results = {"energy": 0.0, "forces": np.ones((len(self.atoms), 3))}


def test_forces_with_a_net_sum_are_refused(frame, tmp_path):
    with pytest.raises(LabelFailed, match="add up to zero"):
        label(frame, tmp_path, calculator=f"{__name__}.LopsidedForces", use_stress=False)


def test_the_failing_share_is_that_asked_for_and_always_the_same():
    frames = []
    for seed in range(200):
        atoms = bulk("Cu")
        atoms.rattle(0.05, seed=seed)
        atoms.positions += [0, 0, 0.001 * seed]
        frames.append(Frame.from_atoms(atoms))
    first = [FailingCalculator(share=0.2).fails(f) for f in frames]
    assert first == [FailingCalculator(share=0.2).fails(f) for f in frames]
    assert 20 <= sum(first) <= 60
    assert first != [FailingCalculator(share=0.2, salt="b").fails(f) for f in frames]


TBLITE = {"calculator": "tblite", "kwargs": {"method": "GFN1-xTB", "accuracy": 0.1}}


@pytest.fixture
def water():
    from ase.build import molecule

    atoms = molecule("H2O")
    atoms.set_cell([9.2, 9.4, 9.6])
    atoms.pbc = True
    atoms.rattle(0.05, seed=1)
    return Frame.from_atoms(atoms)


def test_tblite_gives_energy_forces_and_stress_that_belong_together(water, tmp_path):
    pytest.importorskip("tblite")
    recipe, result = label(water, tmp_path, **TBLITE)
    assert differences(recipe.level_of_theory(water.numbers), result.settings_as_run) == []
    assert result.settings_as_run["level"] == "tblite:GFN1-xTB"

    def energy(positions, cell=water.cell_A):
        frame = water.model_copy(update={"positions_A": positions.tolist(), "cell_A": cell})
        return label(frame, tmp_path, **TBLITE)[1].energy_eV

    here, step = np.array(water.positions_A), np.zeros((3, 3))
    step[0, 1] = 0.005
    slope = (energy(here + step) - energy(here - step)) / 0.01
    assert result.forces_eV_A[0][1] == pytest.approx(-slope, abs=5e-3)
    cell = np.array(water.cell_A)
    strain = np.diag([0.0, 0.001, 0.0])
    up, down = np.eye(3) + strain, np.eye(3) - strain
    work = energy(here @ up, (cell @ up).tolist()) - energy(here @ down, (cell @ down).tolist())
    stress = work / 0.002 / np.linalg.det(cell)
    assert result.stress_eV_A3[1][1] == pytest.approx(stress, rel=0.02, abs=1e-5)


def test_a_cell_that_is_too_narrow_for_gamma_alone_is_refused(frame):
    recipe = parse_recipe({"code": "ase", **TBLITE})
    (sentence,) = recipe.problems(frame)
    assert "3.6 Å is too narrow for Γ alone" in sentence
    oblique = frame.model_copy(update={"cell_A": [[12, 0, 0], [11, 5, 0], [0, 0, 12]]})
    assert "5.0 Å" in recipe.problems(oblique)[0]
    wide = frame.model_copy(update={"cell_A": (9.5 * np.eye(3)).tolist()})
    assert recipe.problems(wide) == []


def test_tblite_takes_no_unknown_arguments_and_is_asked_for_if_missing(water, monkeypatch):
    import sys

    wrong = parse_recipe({"code": "ase", "calculator": "tblite", "kwargs": {"metod": "GFN1"}})
    assert "metod" in get_labeler("ase").check(Resources(), water.numbers, wrong)[0]
    monkeypatch.setitem(sys.modules, "tblite.ase", None)
    recipe = parse_recipe({"code": "ase", **TBLITE})
    assert get_labeler("ase").check(Resources(), water.numbers, recipe) == [
        "tblite is not installed"
    ]


def test_tblite_without_convergence_is_a_failed_label(water, tmp_path):
    pytest.importorskip("tblite")
    few = {"method": "GFN2-xTB", "max_iterations": 2}
    with pytest.raises(LabelFailed, match="not converged"):
        label(water, tmp_path, calculator="tblite", kwargs=few)
