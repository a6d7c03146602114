"""The gate and the stop decision: every branch, on numbers a person can follow."""

from __future__ import annotations

import numpy as np
import pytest

from otf_workflows.campaign import Budget, Convergence
from otf_workflows.convergence import CycleEvidence, decide, judge_challenger
from otf_workflows.schemas import ErrorStatistics
from otf_workflows.types import Decision


def stats(rmse, *, high=None, n_frames=8, energy=0.002):
    return ErrorStatistics(
        n_frames=n_frames,
        n_atoms=8 * n_frames,
        force_rmse_eV_A=rmse,
        force_rmse_low_eV_A=0.8 * rmse,
        force_rmse_high_eV_A=high or 1.2 * rmse,
        force_mae_eV_A=0.7 * rmse,
        force_slope=1.0,
        energy_mae_eV_atom=energy,
    )


def arrays(scales, seed):
    """Evaluation arrays whose force errors have the given size in each frame."""
    rng = np.random.default_rng(seed)
    wanted = [rng.normal(size=(8, 3)) for _ in scales]
    errors = [rng.normal(size=(8, 3)) for _ in scales]
    errors = [scale * e / np.sqrt((e**2).mean()) for scale, e in zip(scales, errors, strict=True)]
    return {
        "keys": [f"{index}" for index in range(len(scales))],
        "force_dft": [w.tolist() for w in wanted],
        "force_predicted": [(w + e).tolist() for w, e in zip(wanted, errors, strict=True)],
    }


def judged(old, new):
    return judge_challenger(
        {
            "incumbent/audit": stats(float(np.sqrt(np.mean(np.square(old))))),
            "challenger/audit": stats(float(np.sqrt(np.mean(np.square(new))))),
        },
        arrays={"incumbent/audit": arrays(old, 0), "challenger/audit": arrays(new, 1)},
    )


def test_better_on_every_frame_is_promoted_even_with_few_frames():
    promoted, sentences = judged([0.3, 0.2], [0.15, 0.1])
    assert promoted
    assert "better in 100% of resamples" in sentences[-1]


def test_a_gain_on_one_frame_only_is_a_tie():
    promoted, sentences = judged([0.2, 0.2, 0.2, 0.2], [0.19, 0.21, 0.195, 0.205])
    assert not promoted
    assert sentences[-1].startswith("A tie")


def test_worse_is_kept_aside():
    promoted, sentences = judged([0.1] * 6, [0.2] * 6)
    assert not promoted
    assert "worse" in sentences[-1]


def test_the_same_model_ties_with_itself():
    errors = {"incumbent/audit": stats(0.1), "challenger/audit": stats(0.1)}
    same = arrays([0.1] * 5, 0)
    promoted, sentences = judge_challenger(
        errors, arrays={"incumbent/audit": same, "challenger/audit": same}
    )
    assert not promoted
    assert "better in 50%" in sentences[-1]


def test_without_arrays_a_margin_decides():
    def gate(old, new):
        return judge_challenger({"incumbent/audit": stats(old), "challenger/audit": stats(new)})

    assert gate(0.10, 0.08)[0]
    assert not gate(0.10, 0.098)[0]
    assert gate(0.10, 0.098)[1][-1].startswith("A tie")
    assert "worse" in gate(0.10, 0.12)[1][-1]


def test_audit_and_validation_are_pooled_by_atoms():
    errors = {
        "incumbent/audit": stats(0.10, n_frames=2),
        "challenger/audit": stats(0.12, n_frames=2),
        "incumbent/validation": stats(0.20, n_frames=6),
        "challenger/validation": stats(0.10, n_frames=6),
    }
    promoted, sentences = judge_challenger(errors)
    assert promoted
    assert "0.105 eV/Å against 0.180" in sentences[-1]
    assert "8 audit and validation labels" in sentences[-1]


def test_held_out_labels_judge_where_they_are_given():
    errors = {
        "incumbent/held_out": stats(0.2),
        "challenger/held_out": stats(0.1),
        "incumbent/audit": stats(0.1),
        "challenger/audit": stats(0.1),
    }
    promoted, sentences = judge_challenger(errors)
    assert promoted
    assert "8 held-out labels" in sentences[-1]


def test_nothing_to_judge_by_leaves_the_incumbent():
    promoted, sentences = judge_challenger({"challenger/fresh": stats(0.01)})
    assert not promoted
    assert "neither model was trained on" in sentences[0]


def test_validation_alone_judges_with_a_remark():
    promoted, sentences = judge_challenger(
        {"incumbent/validation": stats(0.2), "challenger/validation": stats(0.1)}
    )
    assert promoted
    assert "no audit label" in sentences[0]


def test_better_forces_do_not_excuse_ruined_energies():
    promoted, sentences = judge_challenger(
        {"incumbent/audit": stats(0.2), "challenger/audit": stats(0.1, energy=0.05)}
    )
    assert not promoted
    assert "2.0 to 50.0 meV/atom" in sentences[-1]


RULES = {
    "convergence": Convergence(max_fraction_above=0.05, cycles=2, stall_cycles=3),
    "budget": Budget(max_cycles=10, max_labels=100, max_core_hours=50.0),
    "tolerance_eV_A": 0.1,
    "n_labels": 20,
    "core_hours": 5.0,
}


def record(cycle, *, high=0.2, above=0.5, promoted=True, n_frames=8, calibrated=True, **others):
    errors = stats(high / 1.2, high=high, n_frames=n_frames)
    return CycleEvidence(
        cycle=cycle,
        audit=errors,
        fraction_above=above,
        calibrated=calibrated,
        promoted=promoted,
        **others,
    )


BARREN = {"new_labels": False}
GOOD = {"high": 0.08, "above": 0.02}


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([], Decision.CONTINUE),
        ([{}], Decision.CONTINUE),
        ([GOOD], Decision.CONTINUE),
        ([GOOD, GOOD], Decision.CONVERGED),
        ([GOOD, {}, GOOD], Decision.CONTINUE),
        ([{}, GOOD, GOOD | {"promoted": False}], Decision.CONVERGED),
        ([GOOD, GOOD | {"above": 0.06}], Decision.CONTINUE),
        ([GOOD, GOOD | {"high": 0.101}], Decision.CONTINUE),
        ([GOOD, GOOD | {"above": None}], Decision.CONTINUE),
        ([GOOD, GOOD | {"n_frames": 3}], Decision.CONTINUE),
        ([GOOD | {"calibrated": False}, GOOD], Decision.CONTINUE),
        ([{"promoted": False}] * 2, Decision.CONTINUE),
        ([{"promoted": False}] * 3, Decision.STALLED),
        ([{"promoted": False}, {}, {"promoted": False}, {"promoted": False}], Decision.CONTINUE),
        ([{"promoted": False}] * 2 + [GOOD | {"promoted": False}], Decision.CONTINUE),
        ([{}] * 10, Decision.BUDGET_EXHAUSTED),
        ([{}] * 8 + [GOOD, GOOD], Decision.CONVERGED),
        ([{"promoted": False}] * 10, Decision.BUDGET_EXHAUSTED),
        ([{}, BARREN, BARREN], Decision.CONTINUE),
        ([{}, BARREN, BARREN, BARREN], Decision.STALLED),
        ([BARREN, BARREN, {}, BARREN], Decision.CONTINUE),
        ([{}] * 7 + [BARREN] * 3, Decision.BUDGET_EXHAUSTED),
        ([BARREN, BARREN, GOOD | BARREN], Decision.CONTINUE),
    ],
)
def test_what_follows_a_cycle(records, expected):
    history = [record(cycle, **fields) for cycle, fields in enumerate(records)]
    decision, sentences = decide(history, **RULES)
    assert decision is expected
    assert sentences
    assert all(sentence.endswith(".") for sentence in sentences)


@pytest.mark.parametrize(
    ("used", "words"),
    [
        ({"n_labels": 100}, "100 of 100 labels"),
        ({"n_labels": 95, "min_labels_next": 6}, "needs at least 6"),
        ({"core_hours": 50.0}, "core-hours"),
    ],
)
def test_labels_and_core_hours_end_a_campaign_and_say_so(used, words):
    decision, sentences = decide([record(0)], **(RULES | used))
    assert decision is Decision.BUDGET_EXHAUSTED
    assert words in sentences[-1]


def test_the_share_is_attributed_to_the_model_that_drove_the_cycle():
    promoted = decide([record(0, promoted=True)], **RULES)[1]
    kept = decide([record(0, promoted=False)], **RULES)[1]
    assert "before this cycle's training" in promoted[1]
    assert "driven by the incumbent" in kept[1]


def test_an_interval_from_too_few_audit_labels_is_not_believed():
    decision, sentences = decide([record(0, **GOOD, n_frames=3)] * 2, **RULES)
    assert decision is Decision.CONTINUE
    assert "too few" in sentences[0]


def test_a_cycle_without_a_new_label_is_told_with_what_to_do():
    sentences = decide([record(0), record(1, **BARREN)], **RULES)[1]
    told = next(s for s in sentences if "no new label" in s)
    assert told.startswith("This cycle brought")
    assert "exploration.steps_per_cycle" in told
    assert "no new label" not in " ".join(decide([record(0)], **RULES)[1])


def test_walkers_stopped_at_their_start_are_told_apart():
    decision, sentences = decide(
        [record(0), *(record(n, **BARREN, moved=False, above=None) for n in (1, 2, 3))], **RULES
    )
    assert decision is Decision.STALLED
    assert sentences[-1].startswith("3 cycles in a row brought no new label: every walker was")
    assert "min_distance_ratio" in sentences[-1]
