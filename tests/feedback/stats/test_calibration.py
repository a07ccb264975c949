"""Calibration: what is fitted is symmetric and right, what is measured is what the definitions say."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression

from vlm_rlaif.feedback.stats.calibration import (
    BINS,
    FOLDS,
    METHODS,
    Isotonic,
    Kept,
    Temperature,
    accuracy_coverage,
    calibration,
    fit,
    held_out,
    threshold_for,
)
from vlm_rlaif.warehouse.errors import MissingExtra

Floats = NDArray[np.float64]
pair = st.tuples(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 5))
pairs = st.lists(pair, min_size=3, max_size=40)


def arrays(rows: list[tuple[float, float, int]]) -> tuple[Floats, Floats, Floats]:
    p, known, weights = (np.array([row[column] for row in rows], dtype=float) for column in range(3))
    return p, known, weights


def overconfident(n: int, slope: float = 0.5, seed: int = 0) -> tuple[Floats, Floats]:
    """A judge whose p says more than it knows: the truth follows sigmoid(slope * logit(p))."""
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.01, 0.99, n)
    true = 1 / (1 + ((1 - p) / p) ** slope)
    return p, (rng.random(n) < true).astype(float)


@pytest.mark.parametrize("method", METHODS)
@given(rows=pairs, swapped=st.lists(st.booleans(), min_size=40, max_size=40))
def test_which_response_is_called_a_changes_no_fit(
    method: str, rows: list[tuple[float, float, int]], swapped: list[bool]
) -> None:
    p, known, weights = arrays(rows)
    mirrored = np.array(swapped[: len(p)])
    other = fit(method, np.where(mirrored, 1 - p, p), np.where(mirrored, 1 - known, known), weights)
    probes = np.linspace(0, 1, 21)
    assert fit(method, p, known, weights)(probes) == pytest.approx(other(probes), abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
@given(rows=pairs)
def test_what_is_fitted_is_symmetric_never_falls_and_leaves_a_half_alone(
    method: str, rows: list[tuple[float, float, int]]
) -> None:
    fitted = fit(method, *arrays(rows))
    probes = np.linspace(0, 1, 41)
    made = fitted(probes)
    assert made == pytest.approx(1 - fitted(1 - probes)) and fitted(np.array([0.5]))[0] == 0.5
    assert (np.diff(made) >= -1e-12).all() and made.min() >= 0 and made.max() <= 1


def test_the_slope_of_an_overconfident_judge_is_found() -> None:
    p, known = overconfident(20_000, slope=0.5)
    fitted = fit("temperature", p, known, np.ones(len(p)))
    assert isinstance(fitted, Temperature) and fitted.slope == pytest.approx(0.5, abs=0.03)


@given(rows=pairs)
def test_the_slope_has_the_least_log_loss(rows: list[tuple[float, float, int]]) -> None:
    """The slow twin looks for it among numbers, with both sides of every pair written out."""
    p, known, weights = arrays(rows)
    p = np.clip(p, 0.02, 0.98)
    assume(np.abs(p - 0.5).max() > 0.05)
    n = len(p)
    both = np.concatenate([p, 1 - p]), np.concatenate([known, 1 - known]), np.concatenate([weights, weights])
    target = (both[1] * n + 1) / (n + 2)

    def loss(slope: float) -> float:
        logit = slope * np.log(both[0] / (1 - both[0]))
        return float(both[2] @ (target * np.logaddexp(0, -logit) + (1 - target) * np.logaddexp(0, logit)))

    fitted = fit("temperature", p, known, weights)
    assert isinstance(fitted, Temperature)
    slow = minimize_scalar(loss, bounds=(0, 50), method="bounded", options={"xatol": 1e-9})
    assert loss(fitted.slope) <= slow.fun + 1e-6


def test_a_judge_worse_than_a_coin_is_given_no_probability_but_a_half() -> None:
    p, known = np.array([0.9, 0.8, 0.1]), np.array([0.0, 0.0, 1.0])
    for method in METHODS:
        assert fit(method, p, known, np.ones(3))(p) == pytest.approx([0.5] * 3)


def test_a_judge_without_a_mistake_gets_a_finite_slope() -> None:
    p = np.array([0.6, 0.4, 0.7, 0.3] * 10)
    fitted = fit("temperature", p, (p > 0.5).astype(float), np.ones(40))
    assert isinstance(fitted, Temperature) and 1 < fitted.slope < 20
    assert fitted(np.array([0.0, 1.0])).tolist() == pytest.approx([0, 1], abs=1e-3)


@given(rows=pairs)
def test_isotonic_is_that_of_both_sides_of_every_pair(rows: list[tuple[float, float, int]]) -> None:
    """The slow twin fits scikit-learn's on the doubled data, which makes it symmetric by itself."""
    p, known, weights = arrays(rows)
    p = np.round(p, 3)
    twin = IsotonicRegression(y_min=0, y_max=1).fit(
        np.concatenate([p, 1 - p]), np.concatenate([known, 1 - known]), np.concatenate([weights, weights])
    )
    assert fit("isotonic", p, known, weights)(p) == pytest.approx(twin.predict(p), abs=1e-5)


def test_a_soft_verdict_counts_as_the_share_of_people_it_is() -> None:
    p = np.array([0.8, 0.8, 0.8, 0.8])
    soft = fit("isotonic", p, np.full(4, 0.75), np.ones(4))
    assert soft(p) == pytest.approx(fit("isotonic", p, np.array([1.0, 1, 1, 0]), np.ones(4))(p))


def test_weights_count_like_copies() -> None:
    p, known = overconfident(60)
    copies = np.random.default_rng(1).integers(1, 4, 60)
    copied = fit("isotonic", np.repeat(p, copies), np.repeat(known, copies), np.ones(copies.sum()))
    assert fit("isotonic", p, known, copies.astype(float))(p) == pytest.approx(copied(p))


def test_a_perfect_judge_has_an_error_of_what_chance_alone_makes() -> None:
    rng = np.random.default_rng(3)
    errors, expected = [], []
    for _ in range(40):
        p = rng.random(300)
        found = calibration(p, (rng.random(300) < p).astype(float), np.ones(300), range(300))
        errors.append(found.ece)
        expected.append(found.by_chance)
    assert np.mean(errors) == pytest.approx(np.mean(expected), rel=0.15)


def test_ece_is_the_mean_distance_over_bins_as_scikit_learn_makes_them() -> None:
    p, known = overconfident(1000)
    found = calibration(p, known, np.ones(1000), range(1000))
    confidence, right = np.maximum(p, 1 - p), np.where(p > 0.5, known, 1 - known)
    wide = calibration_curve(right, 2 * confidence - 1, n_bins=BINS)
    share = np.histogram(confidence, np.linspace(0.5, 1, BINS + 1))[0] / 1000
    assert found.ece_equal_width == pytest.approx(float(np.abs(wide[0] - (wide[1] + 1) / 2) @ share))
    masses = calibration_curve(right, confidence, n_bins=BINS, strategy="quantile")
    assert [one.right.value for one in found.bins] == pytest.approx(masses[0].tolist())
    assert found.ece == pytest.approx(float(np.abs(masses[0] - masses[1]).mean()), rel=1e-6)
    assert sum(one.share for one in found.bins) == pytest.approx(1)
    assert all(one.right.low is not None for one in found.bins)


@given(rows=pairs, swapped=st.lists(st.booleans(), min_size=40, max_size=40))
def test_which_response_is_called_a_changes_no_error(
    rows: list[tuple[float, float, int]], swapped: list[bool]
) -> None:
    p, known, weights = arrays(rows)
    p, mirrored = np.round(p, 3), np.array(swapped[: len(p)])
    q, turned = np.where(mirrored, 1 - p, p), np.where(mirrored, 1 - known, known)
    one, other = calibration(p, known, weights, range(len(p))), calibration(q, turned, weights, range(len(p)))
    assert (one.ece, one.brier.value) == pytest.approx((other.ece, other.brier.value), abs=1e-9)


def test_brier_is_the_mean_squared_error_and_a_tie_is_half() -> None:
    found = calibration(np.array([0.5, 1.0, 0.2]), np.array([0.5, 1.0, 1.0]), np.ones(3), "uvw")
    assert found.brier.value == pytest.approx(0.64 / 3)


@pytest.mark.parametrize("method", METHODS)
def test_calibration_helps_on_videos_that_it_has_not_seen(method: str) -> None:
    p, known = overconfident(2000, slope=0.4)
    weights, videos = np.ones(2000), [f"v{number // 4}" for number in range(2000)]
    before = calibration(p, known, weights, videos)
    after = calibration(held_out(method, p, known, weights, videos), known, weights, videos)
    assert before.ece > 0.08 and after.ece < 0.04
    assert after.brier.value is not None and before.brier.value is not None and after.brier.value < before.brier.value


def test_a_held_out_pair_is_calibrated_by_other_videos_alone() -> None:
    """Video by video: another truth of one video changes what all others get, and nothing of its own."""
    p, known = overconfident(100)
    videos = [f"v{number // 5}" for number in range(100)]
    before = held_out("isotonic", p, known, np.ones(100), videos)
    changed = np.where([video == "v3" for video in videos], 1 - known, known)
    after = held_out("isotonic", p, changed, np.ones(100), videos)
    own = np.array([video == "v3" for video in videos])
    assert (before[own] == after[own]).all() and (before[~own] != after[~own]).any()


def test_folds_do_not_depend_on_the_order_of_the_rows() -> None:
    p, known = overconfident(60)
    videos, order = [number // 3 for number in range(60)], np.random.default_rng(0).permutation(60)
    made = held_out("temperature", p, known, np.ones(60), videos)
    again = held_out("temperature", p[order], known[order], np.ones(60), [videos[i] for i in order])
    assert made[order] == pytest.approx(again, abs=1e-5) and FOLDS == 5


def test_labels_above_a_strength_are_more_often_right() -> None:
    p, known = overconfident(4000, slope=1.0)
    decided = np.abs(p - 0.5) > 0.05
    curve = accuracy_coverage(p, decided, known, np.ones(4000), range(4000))
    values = [kept.accuracy.value or 0.0 for kept in curve]
    assert curve[0].min_strength == 0.0 and curve[0].coverage == pytest.approx(decided.mean())
    assert values[-1] > values[0] + 0.1 and len(curve) == 10
    for kept in curve:
        taken = decided & (np.abs(2 * p - 1) >= kept.min_strength)
        assert kept.coverage == pytest.approx(taken.mean())
        assert kept.accuracy.value == pytest.approx(((p > 0.5) == (known > 0.5))[taken].mean())


def test_known_ties_are_neither_right_nor_wrong() -> None:
    (kept,) = accuracy_coverage(
        np.array([1.0, 1.0, 0.0]), np.full(3, True), np.array([1.0, 0.5, 1.0]), np.ones(3), "uvw"
    )[:1]
    assert (kept.accuracy.value, kept.accuracy.n, kept.coverage) == (0.5, 2, 1.0)


def test_the_threshold_keeps_most_of_what_is_accurate_enough() -> None:
    p, known = overconfident(4000, slope=1.0)
    curve = accuracy_coverage(p, np.full(4000, True), known, np.ones(4000), range(4000))
    found = threshold_for(0.85, curve)
    assert isinstance(found, Kept) and (found.accuracy.value or 0) >= 0.85
    assert all((kept.accuracy.value or 0) < 0.85 for kept in curve if kept.coverage > found.coverage)
    assert threshold_for(1.0, curve) is None
    assert accuracy_coverage(p[:2], np.full(2, False), known[:2], np.ones(2), "uv") == []


def test_isotonic_keeps_what_it_was_fitted_on_in_json() -> None:
    fitted = fit("isotonic", *overconfident(200), np.ones(200))
    assert isinstance(fitted, Isotonic)
    kept = fitted.parameters()
    again = Isotonic(tuple(kept["confidence"]), tuple(kept["right"]))  # type: ignore[arg-type]
    assert again == fitted and not math.isnan(again(np.array([0.7]))[0])


@pytest.mark.parametrize(("method", "package"), [("temperature", "scipy.optimize"), ("isotonic", "sklearn.isotonic")])
def test_a_missing_package_is_named_with_the_extra_that_has_it(
    method: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r"pip install 'vlm-rlaif\[feedback\]'"):
        fit(method, *overconfident(10), np.ones(10))
