"""Calibration: coverage as promised out of sample, drift noticed, no noise over noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from otf_workflows import calibration as cal
from otf_workflows import drift, honesty
from otf_workflows.errors import InputError
from otf_workflows.schemas import Calibration


def sample(n, *, rng, scale=1.0):
    """Errors that scatter around a σ whose unit is wrong by 3, as heads give it."""
    sigmas = rng.uniform(0.02, 0.2, n)
    return scale * 3 * sigmas * np.abs(rng.normal(size=n)) + 0.011, sigmas


@pytest.mark.parametrize("n", [9, 12, 15, 20, 27])
def test_coverage_of_new_frames_is_what_was_promised(n):
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(2000):
        errors, sigmas = sample(n, rng=rng)
        calibration = cal.conformal_factor(errors, sigmas, nominal=0.9)
        shares.append(cal.coverage(*sample(50, rng=rng), calibration))
    assert 0.895 < np.mean(shares) < 0.915


def test_the_quantile_is_corrected_for_the_sample_size():
    sigmas = np.full(19, 0.1)
    errors = np.arange(1, 20) * 0.1
    assert cal.conformal_factor(errors, sigmas, nominal=0.9).factor == pytest.approx(18.0)
    assert cal.conformal_factor(errors[:9], sigmas[:9], nominal=0.9).factor == pytest.approx(9.0)
    assert cal.conformal_factor(errors[:14], sigmas[:14], nominal=0.9).factor == pytest.approx(13.5)
    assert cal.conformal_factor(errors[:4], sigmas[:4], nominal=0.9).factor == pytest.approx(4.0)


def test_without_labels_it_says_uncalibrated():
    assert cal.conformal_factor([], []) == Calibration(factor=1.0, nominal=0.9, n=0)
    assert cal.coverage([], [], Calibration()) is None
    assert cal.calibrate([], []) == Calibration()
    assert drift.check_drift(Calibration(), [], [])[1].startswith("No fresh labels")


def test_a_symmetric_crystal_does_not_blow_up_the_factor():
    errors, sigmas = np.array([0.1, 0.2, 0.002]), np.array([0.1, 0.1, 1e-8])
    assert cal.conformal_factor(errors, sigmas).factor == pytest.approx(2.0)
    assert cal.coverage(errors, sigmas, Calibration(factor=2.0)) == 1.0


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


@pytest.mark.parametrize(("n", "nominal"), [(4, 0.9), (9, 0.9), (31, 0.9), (20, 0.5)])
def test_the_luck_of_few_labels_is_told(n, nominal):
    rng = np.random.default_rng(n)
    draws = np.array(
        [
            np.mean(
                rng.random(400)
                < cal.conformal_factor(
                    rng.random(n), np.ones(n), nominal=nominal, resolution_eV_A=0.0
                ).factor
            )
            for _ in range(2000)
        ]
    )
    low, high = honesty.expected_coverage(n, nominal=nominal)
    assert np.mean((low <= draws) & (draws <= high)) == pytest.approx(0.9, abs=0.03)
    assert draws.mean() == pytest.approx(min(nominal, n / (n + 1)), abs=0.01)


def test_nothing_is_promised_without_labels():
    with pytest.raises(InputError, match="Without labels"):
        honesty.expected_coverage(0)


def test_over_confidence_on_a_fresh_batch_tightens_the_factor():
    rng = np.random.default_rng(1)
    calibration = cal.conformal_factor(*sample(50, rng=rng))
    fresh = sample(12, rng=rng, scale=4.0)
    checked, sentence = drift.check_drift(calibration, *fresh)
    assert checked.measured < 0.7
    assert checked.factor > calibration.factor
    assert cal.coverage(*fresh, checked) >= 0.9
    assert "over-confident" in sentence


def test_a_good_batch_or_a_single_miss_leaves_the_factor():
    rng = np.random.default_rng(2)
    calibration = cal.conformal_factor(*sample(50, rng=rng))
    checked, sentence = drift.check_drift(calibration, *sample(12, rng=rng, scale=0.3))
    assert (checked.factor, checked.measured) == (calibration.factor, 1.0)
    assert "stands" in sentence
    one_miss = [10.0, 0.02, 0.02], [0.1, 0.1, 0.1]
    assert drift.check_drift(calibration, *one_miss)[0].factor == calibration.factor


def test_normal_errors_are_reliable_at_all_levels():
    rng = np.random.default_rng(3)
    sigmas = rng.uniform(0.05, 0.5, 20_000)
    errors = np.abs(rng.normal(size=20_000)) * sigmas
    calibration = cal.conformal_factor(errors, sigmas, resolution_eV_A=0.0)
    for level, share in honesty.reliability(errors, sigmas, calibration).items():
        assert share == pytest.approx(float(level) / 100, abs=0.01)


def test_reliability_is_read_at_the_shares_that_calibration_measured():
    """Worst-atom errors are nothing like a half-normal: nobody has a small one."""
    rng = np.random.default_rng(6)
    sigmas = rng.uniform(0.05, 0.5, (2, 4000))
    errors = sigmas * rng.uniform(0.8, 1.2, (2, 4000))
    calibration = cal.calibrate(errors[0, :400], sigmas[0, :400])
    for level, share in honesty.reliability(errors[1], sigmas[1], calibration).items():
        assert share == pytest.approx(float(level) / 100, abs=0.06)
    bare = calibration.model_copy(update={"multiples": {}})
    assert honesty.reliability(errors[1], sigmas[1], bare)["50"] < 0.1


def test_ranking_scores_are_one_for_perfect_and_half_for_random():
    rng = np.random.default_rng(4)
    errors = rng.uniform(size=2000)
    assert honesty.spearman(errors, errors**3) == pytest.approx(1.0)
    assert honesty.auroc_worst(errors, errors**3) == pytest.approx(1.0)
    noise = rng.uniform(size=2000)
    assert abs(honesty.spearman(errors, noise)) < 0.1
    assert honesty.auroc_worst(errors, noise) == pytest.approx(0.5, abs=0.06)


def test_the_report_has_the_force_baseline_and_leaves_out_what_is_undefined():
    errors, sigmas, forces = [0.1, 0.2, 0.3, 0.5], [0.1, 0.2, 0.3, 0.4], [2.0, 1.0, 3.0, 0.5]
    full = honesty.report(errors, sigmas, forces, calibration=Calibration(factor=1.1))
    assert full["spearman"] > full["spearman_baseline_force"]
    assert full["auroc_worst"] > full["auroc_worst_baseline_force"]
    assert full["coverage"] == 0.75
    short = honesty.report(errors[:2], sigmas[:2], forces[:2], calibration=Calibration(factor=1.1))
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
    # the factor lies between two ratios, so the one above it may be missed
    wanted = int((len(errors) + 1) * nominal) / len(errors)
    assert cal.coverage(errors, sigmas, drift.stretched(result, 1 + 1e-12)) >= wanted - 1e-9


# -- floor ---------------------------------------------------------------------------------------


def floored(n, *, rng, floor_eV_A, slope=5.0):
    """Worst-atom errors that do not vanish with σ, as networks of finite size have them."""
    sigmas = 0.004 * np.exp(0.7 * rng.normal(size=n))
    return np.hypot(slope * sigmas, floor_eV_A) * np.exp(0.35 * rng.normal(size=n)), sigmas


@pytest.mark.parametrize("floor_eV_A", [0.0, 0.02, 0.06])
@pytest.mark.parametrize("n", [4, 10, 20])
def test_coverage_holds_with_a_floor_chosen_on_the_same_labels(n, floor_eV_A):
    rng = np.random.default_rng(7)
    shares = []
    for _ in range(150):
        calibration = cal.calibrate(*floored(n, rng=rng, floor_eV_A=floor_eV_A))
        shares.append(cal.coverage(*floored(100, rng=rng, floor_eV_A=floor_eV_A), calibration))
    # n / (n + 1) at the most where n is too small for the nominal share: 4 / 5, and 10 / 11.
    expected = min(n / (n + 1), 0.9)
    assert np.mean(shares) > expected - 0.03
    assert np.mean(shares) < expected + (0.03 if n > 4 else 0.12)


def test_a_floor_is_found_where_there_is_one_and_makes_sigma_tighter():
    rng = np.random.default_rng(8)
    with_floor, without, found = [], [], []
    for _ in range(100):
        pairs = floored(20, rng=rng, floor_eV_A=0.06)
        calibration, alone = cal.calibrate(*pairs), cal.conformal_factor(*pairs)
        _, sigmas = floored(100, rng=rng, floor_eV_A=0.06)
        found.append(calibration.floor_eV_A)
        with_floor.append(np.log(calibration.calibrated(sigmas)).mean())
        without.append(np.log(alone.calibrated(sigmas)).mean())
    assert np.median(found) == pytest.approx(0.06 * np.exp(1.28 * 0.35), rel=0.3)
    assert np.exp(np.mean(with_floor)) < 0.8 * np.exp(np.mean(without))


def test_no_floor_is_put_where_errors_follow_sigma():
    rng = np.random.default_rng(9)
    sigmas = np.geomspace(0.003, 0.1, 20)
    calibration = cal.calibrate(5 * sigmas * np.exp(0.1 * rng.normal(size=20)), sigmas)
    assert calibration.floor_eV_A < 0.02
    assert calibration.factor == pytest.approx(5.7, rel=0.15)


@given(
    st.lists(st.tuples(st.floats(1e-3, 10), st.floats(1e-3, 10)), min_size=1, max_size=12),
    st.floats(2.0, 100.0),
)
def test_sigma_beyond_the_calibrated_ones_still_grows(pairs, times):
    """However odd the labels are: a frame that is far outside must not look like the others."""
    errors, sigmas = np.array(pairs).T
    calibration = cal.calibrate(errors, sigmas)
    far = calibration.calibrated(times * sigmas.max())
    assert far >= times / 2 * calibration.calibrated(sigmas.max()) * (1 - 1e-9)


@pytest.mark.parametrize("floor_eV_A", [0.0, 0.3])
def test_the_usual_uncertainty_is_that_of_the_median_label_and_follows_drift(floor_eV_A):
    sigmas = np.linspace(0.01, 0.2, 21)
    calibration = cal.calibrate(np.hypot(3 * sigmas, floor_eV_A), sigmas)
    assert calibration.usual_eV_A == pytest.approx(calibration.calibrated(sigmas[10]))
    stretched = calibration.model_copy(update={"factor": 2 * calibration.factor})
    assert stretched.usual_eV_A > calibration.usual_eV_A
    assert Calibration().usual_eV_A == 0


def test_three_labels_have_no_floor():
    assert cal.calibrate([0.1, 0.11, 0.1], [0.001, 0.01, 0.1]).floor_eV_A == 0.0


def test_a_floor_above_the_tolerance_is_said_with_what_to_do():
    assert cal.floor_warning(Calibration(n=9, floor_eV_A=0.05), 0.1) is None
    said = cal.floor_warning(Calibration(n=9, floor_eV_A=0.12), 0.1)
    assert "0.120" in said
    assert "tolerance_eV_A" in said


def test_drift_stretches_factor_and_floor_and_the_next_model_inherits_it():
    before = Calibration(factor=2.0, floor_eV_A=0.03, n=20)
    errors, sigmas = np.full(10, 0.4), np.full(10, 0.05)
    after, sentence = drift.check_drift(before, errors, sigmas)
    assert cal.coverage(errors, sigmas, drift.stretched(after, 1 + 1e-12)) == 1.0
    assert after.floor_eV_A / after.factor == pytest.approx(0.015)
    assert "times larger" in sentence
    challenger = Calibration(factor=4.0, floor_eV_A=0.02, n=25)
    heir = drift.inherit_drift(challenger, before, after)
    assert heir.factor / 4.0 == pytest.approx(after.factor / 2.0)
    assert drift.inherit_drift(challenger, before, before) == challenger
    assert drift.inherit_drift(challenger, Calibration(), after) == challenger


# -- size of the cell ----------------------------------------------------------------------------


def gaussian_frames(n_frames, n_atoms, *, rng):
    """Per-atom errors and raw σ of frames that differ in temperature."""
    heat = np.exp(0.3 * rng.normal(size=(n_frames, 1)))
    sigmas = 0.02 * heat * np.exp(0.4 * rng.normal(size=(n_frames, n_atoms)))
    errors = 3 * sigmas * np.linalg.norm(rng.normal(size=(n_frames, n_atoms, 3)), axis=2)
    return errors, sigmas


def test_the_share_above_tolerance_does_not_depend_on_the_size_of_the_cell():
    rng = np.random.default_rng(10)
    errors, sigmas = gaussian_frames(200, 8, rng=rng)
    calibration = cal.calibrate(errors.max(axis=1), sigmas.max(axis=1), n_atoms=8)
    tolerance_eV_A = float(np.median([calibration.of_frame(row) for row in sigmas]))
    above, plain = {}, {}
    for n_atoms in (8, 64, 512):
        _, rows = gaussian_frames(1000, n_atoms, rng=rng)
        above[n_atoms] = np.mean([calibration.of_frame(row) > tolerance_eV_A for row in rows])
        plain[n_atoms] = np.mean(calibration.calibrated(rows.max(axis=1)) > tolerance_eV_A)
    assert plain[512] > 0.95  # what a plain worst atom says of a larger cell
    assert 0.4 < above[8] < 0.7
    assert above[64] == pytest.approx(above[8], abs=0.08)
    assert above[512] == pytest.approx(above[8], abs=0.08)


def test_coverage_carries_over_to_cells_of_another_size():
    rng = np.random.default_rng(11)
    errors, sigmas = gaussian_frames(200, 8, rng=rng)
    calibration = cal.calibrate(errors.max(axis=1), sigmas.max(axis=1), n_atoms=8)
    errors, sigmas = gaussian_frames(500, 64, rng=rng)
    covered = [
        error[part].max() <= calibration.of_frame(row)
        for error, row in zip(errors, sigmas, strict=True)
        for part in [rng.choice(64, size=8, replace=False)]
    ]
    assert np.mean(covered) == pytest.approx(0.9, abs=0.04)


def test_one_lost_atom_in_a_large_cell_is_not_outvoted():
    calibration = Calibration(factor=1.0, n=20, n_atoms=8)
    calm = np.full(512, 0.02)
    assert calibration.of_frame(calm) == pytest.approx(0.02)
    lost = calm.copy()
    lost[100] = 1.0
    assert calibration.of_frame(lost) == pytest.approx(0.5)


def test_frames_of_several_sizes_are_brought_to_the_median_one():
    rng = np.random.default_rng(12)
    sizes = [8, 8, 16]
    arrays = {
        "sigma_eV_A": [rng.uniform(0.1, 0.2, n).tolist() for n in sizes],
        "force_dft": [np.zeros((n, 3)).tolist() for n in sizes],
        "force_predicted": [rng.normal(size=(n, 3)).tolist() for n in sizes],
    }
    pairs = cal.frame_pairs(arrays)
    assert pairs.n_atoms == 8
    assert pairs.sigmas_eV_A[0] == max(arrays["sigma_eV_A"][0])
    assert pairs.sigmas_eV_A[2] < max(arrays["sigma_eV_A"][2])
    np.testing.assert_array_equal(pairs.errors_eV_A, pairs.forces_eV_A)


# -- older documents -----------------------------------------------------------------------------


def test_a_calibration_of_an_older_campaign_reads_and_means_what_it_meant():
    old = Calibration.model_validate({"factor": 2.5, "nominal": 0.9, "n": 12, "measured": 0.8})
    assert (old.floor_eV_A, old.n_atoms) == (0.0, None)
    assert old.calibrated(0.1) == 0.25
    assert old.of_frame([0.02, 0.1]) == 0.25
    np.testing.assert_array_equal(old.calibrated([0.1, 0.2]), [0.25, 0.5])


def test_ranks_and_intervals_are_those_of_scipy():
    rng = np.random.default_rng(5)
    errors, scores = rng.integers(0, 9, 40) / 10.0, rng.integers(0, 9, 40) / 10.0
    wanted = stats.spearmanr(errors, scores).statistic
    assert honesty.spearman(errors, scores) == pytest.approx(wanted)
    worst = np.zeros(40, dtype=bool)
    worst[np.argsort(errors, kind="stable")[-4:]] = True
    wanted = stats.mannwhitneyu(scores[worst], scores[~worst]).statistic / (4 * 36)
    assert honesty.auroc_worst(errors, scores) == pytest.approx(wanted)
    for covered in (0, 7, 12):
        interval = stats.binomtest(covered, 12).proportion_ci(method="wilson")
        assert honesty.wilson_interval(covered, 12) == pytest.approx((interval.low, interval.high))
    low, high = honesty.expected_coverage(31)
    assert (low, high) == pytest.approx(stats.beta.ppf([0.05, 0.95], 28.8, 3.2))
    with pytest.raises(InputError, match="not a share"):
        honesty.wilson_interval(3, 2)
