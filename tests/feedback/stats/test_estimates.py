import json
import math
import random
from statistics import fmean, stdev

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_rlaif.feedback.stats.estimates import (
    Estimate,
    agreement_with_truth,
    clustered_mean,
    paired_difference,
    t_quantile,
)

NAN = math.nan
numbers = st.floats(-100, 100).map(lambda x: round(x, 6))
items = st.lists(st.tuples(st.none() | numbers, st.integers(0, 5)), max_size=40)


def bounds(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None and estimate.high is not None
    return estimate.low, estimate.high


def width(estimate: Estimate) -> float:
    low, high = bounds(estimate)
    return high - low


def coverage(sets: int, draw, true_mean: float, unit: str) -> float:
    """The share of `sets` drawn (values, clusters) whose interval holds the true mean."""
    hits = 0
    for seed in range(sets):
        low, high = bounds(clustered_mean(*draw(np.random.default_rng(seed)), unit=unit))
        hits += low <= true_mean <= high
    return hits / sets


def videos_of_five(rng: np.random.Generator):
    """30 videos of 5 questions; half of the variance belongs to the video."""
    values = rng.normal(size=(30, 1)) + rng.normal(size=(30, 5))
    return values.ravel(), np.repeat(np.arange(30), 5).tolist()


def videos_of_any_length(rng: np.random.Generator):
    """60 videos of 1 to 9 right-or-wrong questions; hard and easy videos."""
    sizes = rng.integers(1, 10, size=60)
    clusters = np.repeat(np.arange(60), sizes)
    right = rng.random(len(clusters)) < rng.beta(2, 2, size=60)[clusters]
    return right.astype(float), clusters.tolist()


@pytest.mark.parametrize(
    ("draw", "true_mean", "unit"),
    [(videos_of_five, 0.0, "tokens"), (videos_of_any_length, 0.5, "fraction")],
)
def test_the_interval_holds_the_truth_about_as_often_as_it_says(draw, true_mean, unit):
    assert 0.91 <= coverage(400, draw, true_mean, unit) <= 0.985


def test_items_counted_as_independent_would_hold_the_truth_too_rarely():
    def naive(rng):
        values, _ = videos_of_five(rng)
        return values, range(len(values))

    assert coverage(400, naive, 0.0, "tokens") < 0.85


def test_one_item_per_cluster_is_the_plain_t_interval():
    values = [3.0, 5.0, 4.0, 8.0, 1.0, 9.0]
    margin = 2.5705818366147 * stdev(values) / math.sqrt(6)
    estimate = clustered_mean(values, range(6), unit="tokens")
    assert estimate.value == pytest.approx(5.0)
    assert bounds(estimate) == pytest.approx((5.0 - margin, 5.0 + margin))


def test_the_interval_is_that_of_leaving_out_one_video_at_a_time():
    values, videos = [1.0, 4.0, 2.0, 9.0, 5.0, 3.0], ["u", "v", "v", "w", "w", "w"]
    without = [fmean(x for x, v in zip(values, videos, strict=True) if v != video) for video in "uvw"]
    variance = 2 / 3 * sum((mean - 4.0) ** 2 for mean in without)
    estimate = clustered_mean(values, videos, unit="tokens")
    assert width(estimate) == pytest.approx(2 * t_quantile(0.95, 2) * math.sqrt(variance))


def test_clusters_of_one_size_give_the_sandwich_interval():
    # mean 0.5; residual sums +1, -1; variance 2/1 * 2 / 4^2 = 0.25; t(1) = 12.7062
    estimate = clustered_mean([1, 1, 0, 0], ["u", "u", "v", "v"], unit="share")
    assert bounds(estimate) == pytest.approx((0.5 - 6.3531, 0.5 + 6.3531), abs=1e-4)


def test_the_interval_is_wider_when_a_video_decides_its_answers():
    alike = [float(video % 2) for video in range(20) for _ in range(4)]
    videos = [video for video in range(20) for _ in range(4)]
    assert width(clustered_mean(alike, videos)) > 1.8 * width(clustered_mean(alike, range(80)))


def test_a_higher_level_is_a_wider_interval():
    values, videos = [1.0, 2.0, 4.0, 3.0], [1, 2, 3, 4]
    narrow, wide = (clustered_mean(values, videos, unit="s", level=level) for level in (0.5, 0.99))
    assert width(narrow) < width(wide)


def test_the_interval_of_a_fraction_stays_between_0_and_1():
    assert bounds(clustered_mean([1, 1, 1, 0], range(4))) == (pytest.approx(0.0), 1.0)


@given(items, st.randoms(use_true_random=False))
def test_the_order_of_the_items_does_not_count(rows, shuffler: random.Random):
    shuffled = rows.copy()
    shuffler.shuffle(shuffled)
    one, other = (clustered_mean([v for v, _ in r], [c for _, c in r], unit="tokens") for r in (rows, shuffled))
    assert (one.value, one.n, one.clusters) == (other.value, other.n, other.clusters)
    assert one.low == pytest.approx(other.low, abs=1e-6)


@given(items)
def test_missing_items_change_nothing_but_their_count(rows):
    kept = [(value, cluster) for value, cluster in rows if value is not None]
    with_gaps = clustered_mean([v for v, _ in rows], [c for _, c in rows], unit="tokens")
    without = clustered_mean([v for v, _ in kept], [c for _, c in kept], unit="tokens")
    assert with_gaps.missing == len(rows) - len(kept)
    assert (with_gaps.value, with_gaps.low, with_gaps.n) == (without.value, without.low, without.n)


@given(items)
def test_the_mean_is_the_mean_and_lies_in_its_interval(rows):
    estimate = clustered_mean([v for v, _ in rows], [c for _, c in rows], unit="tokens")
    values = [v for v, _ in rows if v is not None]
    if not values:
        assert estimate.value is None
    else:
        assert estimate.value == pytest.approx(fmean(values), abs=1e-9)
        assert (estimate.low is None) == (estimate.clusters < 2)
        assert estimate.low is None or estimate.low <= estimate.value


@given(items, st.floats(0.1, 10), numbers)
def test_a_change_of_unit_changes_the_interval_alike(rows, factor, shift):
    values, clusters = [v for v, _ in rows], [c for _, c in rows]
    before = clustered_mean(values, clusters, unit="s")
    after = clustered_mean([v if v is None else v * factor + shift for v in values], clusters, unit="s")
    for name in ("value", "low", "high"):
        number = getattr(before, name)
        expected = number if number is None else pytest.approx(number * factor + shift, abs=1e-5)
        assert getattr(after, name) == expected


def test_nothing_to_average_is_no_number():
    for values in ([], [None, NAN]):
        estimate = clustered_mean(values, range(len(values)))
        assert (estimate.value, estimate.low, estimate.high, estimate.n) == (None, None, None, 0)
        assert estimate.missing == len(values)
    assert str(clustered_mean([None], ["u"])) == "no data (n=0, 1 missing)"


def test_one_cluster_has_a_value_and_no_interval():
    estimate = clustered_mean([1, 0, 1, 1], "uuuu")
    assert (estimate.value, estimate.low, estimate.high, estimate.clusters) == (0.75, None, None, 1)
    assert str(estimate) == "75.0 % [no interval: 1 cluster] (n=4)"


def test_an_estimate_says_its_unit():
    def shown(value: float, unit: str, low: float, high: float) -> str:
        return str(Estimate(value=value, low=low, high=high, n=1200, clusters=9, unit=unit))

    assert shown(0.713, "fraction", 0.69, 0.735) == "71.3 % [69.0, 73.5] (n=1,200)"
    assert shown(2.44, "points", -0.3, 5.2) == "+2.4 points [-0.3, 5.2] (n=1,200)"
    assert shown(41.23, "tokens", 38.04, 44.4) == "41.2 tokens [38.0, 44.4] (n=1,200)"
    assert shown(12345.6, "tokens", 12000, 12700) == "12,346 tokens [12,000, 12,700] (n=1,200)"
    assert shown(0.00123, "minutes", 0.001, 0.0015) == "0.00123 minutes [0.00100, 0.00150] (n=1,200)"
    assert shown(0.0, "tokens", 0.0, 0.0) == "0 tokens [0, 0] (n=1,200)"


def test_json_has_no_nan():
    estimate = clustered_mean([None], ["u"], unit="tokens")
    text = json.dumps(estimate.as_json(), allow_nan=False)
    assert json.loads(text) == {"value": None, "low": None, "high": None, "n": 0, "unit": "tokens"}


def test_a_series_does_not_differ_from_itself():
    series = [0.3, 0.9, None, 0.1]
    estimate = paired_difference(series, series, "uvwx")
    assert (estimate.value, *bounds(estimate)) == (0.0, 0.0, 0.0)
    assert (estimate.n, estimate.missing, estimate.unit) == (3, 1, "points")


def test_pairing_removes_how_hard_the_items_are():
    rng = np.random.default_rng(0)
    hard = rng.normal(size=50)
    a, b = hard + 0.3 + 0.1 * rng.normal(size=50), hard + 0.1 * rng.normal(size=50)
    difference = paired_difference(a, b, range(50), unit="reward")
    assert bounds(difference)[0] > 0.2
    assert difference.unit == "reward"
    assert width(difference) < 0.3 * width(clustered_mean(a, range(50), unit="reward"))


def test_a_difference_of_fractions_is_in_points():
    assert paired_difference([1, 1], [0.5, 0.5], "uv").value == pytest.approx(50.0)


@given(items, st.floats(0.5, 2))
def test_swapping_the_sides_changes_the_sign(rows, factor):
    a = [v for v, _ in rows]
    b = [None if v is None else v * factor for v in a]
    clusters = [c for _, c in rows]
    one, other = (
        paired_difference(a, b, clusters, unit="s"),
        paired_difference(b, a, clusters, unit="s"),
    )
    assert one.value == (None if other.value is None else -other.value)
    assert one.low == (None if other.high is None else pytest.approx(-other.high, abs=1e-9))


def test_series_of_different_lengths_are_an_error_that_names_them():
    with pytest.raises(ValueError, match="a has 2, b has 1, clusters has 2"):
        paired_difference([1, 0], [1], "uv")
    with pytest.raises(ValueError, match="values has 1, clusters has 2"):
        clustered_mean([1], "uv")


def test_numbers_that_cannot_be_are_errors():
    with pytest.raises(ValueError, match="infinite number at item 1"):
        clustered_mean([1.0, math.inf], "uv", unit="tokens")
    with pytest.raises(ValueError, match=r"a fraction lies in \[0, 1\], not 71"):
        clustered_mean([71.0, 68.0], "uv")
    assert clustered_mean([1.0 + 1e-12, 0.0], "uv").value == pytest.approx(0.5)


def test_agreement_counts_right_labels_whole_and_ties_half():
    labels = [True, False, False, 0.5, None, True, 1, 0.5]
    truth_a = [0.9, 0.1, 0.9, 0.9, 0.9, 0.5, None, 0.5]
    truth_b = [0.1, 0.9, 0.1, 0.1, 0.1, 0.5, 0.1, 0.5]
    agreement = agreement_with_truth(labels, truth_a, truth_b)
    np.testing.assert_array_equal(agreement, [1, 1, 0, 0.5, NAN, NAN, NAN, NAN])
    estimate = clustered_mean(agreement, range(8))
    assert (estimate.value, estimate.n, estimate.missing) == (0.625, 4, 4)


def test_agreement_does_not_depend_on_which_answer_is_called_a():
    rng = np.random.default_rng(1)
    choice, a, b = rng.choice([0, 0.5, 1], 50), rng.integers(0, 4, 50), rng.integers(0, 4, 50)
    np.testing.assert_array_equal(agreement_with_truth(choice, a, b), agreement_with_truth(1 - choice, b, a))


def test_a_soft_label_must_be_decided_first():
    with pytest.raises(ValueError, match=r"not 0\.7: decide soft labels first"):
        agreement_with_truth([0.7], [1], [0])


@pytest.mark.parametrize(
    ("level", "freedom", "quantile"),
    [
        (0.95, 1, 12.7062047362),
        (0.95, 2, 4.3026527297),
        (0.95, 3, 3.1824463053),
        (0.95, 4, 2.7764451052),
        (0.95, 5, 2.5705818366),
        (0.95, 10, 2.2281388520),
        (0.95, 30, 2.0422724563),
        (0.95, 100, 1.9839715185),
        (0.95, 1000, 1.9623390808),
        (0.90, 10, 1.8124611228),
        (0.99, 10, 3.1692726726),
        (0.50, 1, 1.0),
    ],
)
def test_t_quantiles_are_those_of_the_tables(level, freedom, quantile):
    assert t_quantile(level, freedom) == pytest.approx(quantile, abs=1e-9)


@settings(max_examples=20)
@given(st.integers(1, 300))
def test_t_quantiles_fall_towards_the_normal_one(freedom):
    assert t_quantile(0.95, freedom) > t_quantile(0.95, freedom + 1) > 1.959963984


@pytest.mark.parametrize(("level", "freedom"), [(0.0, 5), (1.0, 5), (0.95, 0)])
def test_a_quantile_that_does_not_exist_is_an_error(level, freedom):
    with pytest.raises(ValueError, match="t_quantile needs"):
        t_quantile(level, freedom)
