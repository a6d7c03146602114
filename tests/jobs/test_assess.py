"""What the end of a cycle decides about the uncertainty: drift, inheritance, words."""

import numpy as np
import pytest

from otf_workflows.campaign import Campaign
from otf_workflows.jobs.assess import _evidence, _has_new_labels, _in_use, _untrained
from otf_workflows.schemas import Calibration, CycleDocument, Frame, TrainingResult
from otf_workflows.types import CycleState


def trained(*, errors_eV_A, sigmas_eV_A, calibration):
    """A challenger, and what the incumbent said about this cycle's labels."""
    direction = np.array([[1.0, 0.0, 0.0]])
    fresh = {
        "sigma_eV_A": [[sigma] * 8 for sigma in sigmas_eV_A],
        "force_dft": [np.zeros((8, 3)).tolist() for _ in errors_eV_A],
        "force_predicted": [
            (error * np.repeat(direction, 8, axis=0)).tolist() for error in errors_eV_A
        ],
    }
    return TrainingResult(
        model_id="c-c1-0",
        parent_id="toy-lj",
        sha256="",
        blob="",
        dataset_hash="",
        history=[],
        alignment={},
        calibration=calibration,
        errors={},
        seconds=0.0,
        evaluation={"incumbent/fresh": fresh} if errors_eV_A else {},
    )


PROMISED = Calibration(factor=2.0, floor_eV_A=0.01, n=20, n_atoms=8)
NEW = Calibration(factor=3.0, floor_eV_A=0.02, n=22, n_atoms=8)


def test_over_confidence_of_the_incumbent_widens_the_challenger_that_replaces_it():
    training = trained(errors_eV_A=[0.4] * 10, sigmas_eV_A=[0.05] * 10, calibration=NEW)
    kept, [said] = _in_use(training, before=PROMISED, promoted=False)
    assert kept.factor > PROMISED.factor
    assert "over-confident" in said
    used, sentences = _in_use(training, before=PROMISED, promoted=True)
    times = kept.factor / PROMISED.factor
    assert used.factor == pytest.approx(3.0 * times)
    assert used.floor_eV_A == pytest.approx(0.02 * times)
    assert f"{times:.2f} times larger as well" in sentences[-1]


def test_a_promise_that_held_leaves_both_as_they_are():
    training = trained(errors_eV_A=[0.05] * 10, sigmas_eV_A=[0.05] * 10, calibration=NEW)
    assert _in_use(training, before=PROMISED, promoted=True)[0] == NEW
    kept, [said] = _in_use(training, before=PROMISED, promoted=False)
    assert (kept.factor, kept.measured) == (2.0, 1.0)
    assert "stands" in said


def test_an_incumbent_without_calibration_gets_one_if_it_stays():
    training = trained(errors_eV_A=[0.05] * 10, sigmas_eV_A=[0.05] * 10, calibration=NEW)
    kept, _ = _in_use(training, before=Calibration(), promoted=False)
    assert (kept.n, kept.n_atoms) == (10, 8)
    assert _in_use(training, before=Calibration(), promoted=True)[0] == NEW


def test_without_fresh_labels_nothing_is_claimed():
    training = trained(errors_eV_A=[], sigmas_eV_A=[], calibration=NEW)
    kept, [said] = _in_use(training, before=PROMISED, promoted=False)
    assert kept == PROMISED
    assert "not checked" in said


@pytest.mark.parametrize(
    ("datasets", "cycle", "expected"),
    [
        ({0: "a"}, 0, True),
        ({0: "a", 1: "b"}, 1, True),
        ({0: "a", 1: "a"}, 1, False),
        ({0: "a", 1: "a", 2: "b"}, 1, False),
        ({0: "a", 2: "a"}, 2, False),
        ({0: "a"}, 1, True),  # nothing was trained: that has a verdict of its own
    ],
)
def test_a_cycle_that_trained_on_the_data_set_before_brought_no_new_label(
    datasets, cycle, expected
):
    assert _has_new_labels(datasets, cycle) is expected


def test_walkers_that_made_no_step_are_noticed():
    def cycle(*steps):
        walkers = [{"n_checked": 0, "n_above": 0, "n_steps_run": n} for n in steps]
        return CycleDocument(
            campaign="c", cycle=1, state=CycleState.RUNNING, incumbent_id="m", walkers=walkers
        )

    assert _evidence(cycle(0, 30), promoted=False)["moved"]
    assert not _evidence(cycle(0, 0), promoted=False)["moved"]


def test_missing_labels_and_none_asked_for_are_told_apart():
    campaign = Campaign(
        name="c",
        structure=Frame(numbers=[3], cell_A=np.eye(3).tolist(), positions_A=[[0.0] * 3]),
        labels={"code": "ase", "calculator": "lj"},
    )
    assert "2 labels are missing" in _untrained(["a", "b"], campaign)[0]
    assert "otf labels rerun --campaign c" in _untrained(["a"], campaign)[1]
    assert "none was asked for" in _untrained([], campaign)[0]
