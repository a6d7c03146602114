"""Calibration: coverage as promised out of sample, drift noticed, no noise over noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otf_workflows import calibration as cal
from otf_workflows.errors import InputError
from otf_workflows.schemas import Calibration


def sample(n, *, rng, scale=1.0):
    """Errors that scatter around a σ whose unit is wrong by 3, as heads give it."""
    sigmas = rng.uniform(0.02, 0.2, n)
    return scale * 3 * sigmas * np.abs(rng.normal(size=n)) + 0.011, sigmas


def test_coverage_of_new_frames_is_what_was_promised():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(2000):
        errors, sigmas = sample(20, rng=rng)
        factor = cal.conformal_factor(errors, sigmas, nominal=0.9).factor
        shares.append(cal.coverage(*sample(50, rng=rng), factor))
    assert np.mean(shares) == pytest.approx(19 / 21, abs=0.006)  # rank 19 of 20, exactly known


def test_the_quantile_is_corrected_for_the_sample_size():
    sigmas = np.full(19, 0.1)
    errors = np.arange(1, 20) * 0.1
    assert cal.conformal_factor(errors, sigmas, nominal=0.9).factor == pytest.approx(18.0)
    assert cal.conformal_factor(errors[:9], sigmas[:9], nominal=0.9).factor == pytest.approx(9.0)
    assert cal.conformal_factor(errors[:4], sigmas[:4], nominal=0.9).factor == pytest.approx(4.0)


def test_without_labels_it_says_uncalibrated():
    assert cal.conformal_factor([], []) == Calibration(factor=1.0, nominal=0.9, n=0)
    assert cal.coverage([], [], 1.0) is None
    assert cal.check_drift(Calibration(), [], [])[1].startswith("No fresh labels")


def test_a_symmetric_crystal_does_not_blow_up_the_factor():
    errors, sigmas = np.array([0.1, 0.2, 0.002]), np.array([0.1, 0.1, 1e-8])
    assert cal.conformal_factor(errors, sigmas).factor == pytest.approx(2.0)
    assert cal.coverage(errors, sigmas, 2.0) == 1.0


def test_errors_below_the_resolution_leave_sigma_on_their_scale():
    result = cal.conformal_factor([0.004, 0.006, 0.002], [0.002, 0.002, 0.002])
    assert result.factor == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("errors", "sigmas"),
    [([0.1], [0.1, 0.2]), ([float("nan")], [0.1]), ([0.1], [-0.1]), ([0.3, 0.3], [0.0, 0.0])],
)
def test_useless_input_is_refused(errors, sigmas):
    with pytest.raises(InputError):
        cal.conformal_factor(errors, sigmas)


def test_over_confidence_on_a_fresh_batch_tightens_the_factor():
    rng = np.random.default_rng(1)
    calibration = cal.conformal_factor(*sample(50, rng=rng))
    fresh = sample(12, rng=rng, scale=4.0)
    checked, sentence = cal.check_drift(calibration, *fresh)
    assert checked.measured < 0.7
    assert checked.factor > calibration.factor
    assert cal.coverage(*fresh, checked.factor) >= 0.9
    assert "over-confident" in sentence


def test_a_good_batch_or_a_single_miss_leaves_the_factor():
    rng = np.random.default_rng(2)
    calibration = cal.conformal_factor(*sample(50, rng=rng))
    checked, sentence = cal.check_drift(calibration, *sample(12, rng=rng, scale=0.3))
    assert (checked.factor, checked.measured) == (calibration.factor, 1.0)
    assert "stands" in sentence
    one_miss = [10.0, 0.02, 0.02], [0.1, 0.1, 0.1]
    assert cal.check_drift(calibration, *one_miss)[0].factor == calibration.factor


def test_normal_errors_are_reliable_at_all_levels():
    rng = np.random.default_rng(3)
    sigmas = rng.uniform(0.05, 0.5, 20_000)
    errors = np.abs(rng.normal(size=20_000)) * sigmas
    factor = cal.conformal_factor(errors, sigmas, resolution_eV_A=0.0).factor
    for level, share in cal.reliability(errors, sigmas, factor).items():
        assert share == pytest.approx(float(level) / 100, abs=0.01)


def test_ranking_scores_are_one_for_perfect_and_half_for_random():
    rng = np.random.default_rng(4)
    errors = rng.uniform(size=2000)
    assert cal.spearman(errors, errors**3) == pytest.approx(1.0)
    assert cal.auroc_worst(errors, errors**3) == pytest.approx(1.0)
    noise = rng.uniform(size=2000)
    assert abs(cal.spearman(errors, noise)) < 0.1
    assert cal.auroc_worst(errors, noise) == pytest.approx(0.5, abs=0.06)


def test_the_report_has_the_force_baseline_and_leaves_out_what_is_undefined():
    errors, sigmas, forces = [0.1, 0.2, 0.3, 0.5], [0.1, 0.2, 0.3, 0.4], [2.0, 1.0, 3.0, 0.5]
    full = cal.report(errors, sigmas, forces, factor=1.1)
    assert full["spearman"] > full["spearman_baseline_force"]
    assert full["auroc_worst"] > full["auroc_worst_baseline_force"]
    assert full["coverage"] == 0.75
    short = cal.report(errors[:2], sigmas[:2], forces[:2], factor=1.1)
    assert "spearman" not in short
    assert "auroc_worst" not in short
    assert not any("." in name or "$" in name for name in full)


@given(
    st.lists(st.tuples(st.floats(0.02, 10), st.floats(1e-3, 10)), min_size=1, max_size=60),
    st.floats(0.05, 0.95),
)
def test_the_calibration_set_itself_is_always_covered_to_the_nominal_share(pairs, nominal):
    errors, sigmas = np.array(pairs).T
    result = cal.conformal_factor(errors, sigmas, nominal=nominal)
    wanted = min(nominal, len(errors) / (len(errors) + 1))
    assert cal.coverage(errors, sigmas, result.factor * (1 + 1e-12)) >= wanted - 1e-9
