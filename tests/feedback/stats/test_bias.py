"""Estimators of bias recover what was planted, and say nothing where nothing can be said."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_rlaif.feedback.stats import bias
from vlm_rlaif.feedback.stats.estimates import clustered_mean
from vlm_rlaif.feedback.stats.intervals import degrees_of_freedom, mean, rate

CHOICES = st.sampled_from(["a", "b", "tie"])
ORDERS = st.sampled_from(["ab", "ba"])


def inside(value: float, estimate: Any) -> bool:
    return estimate.low is not None and estimate.low <= value <= estimate.high


# Intervals


def test_of_many_equal_videos_a_mean_has_the_interval_that_it_has_elsewhere() -> None:
    random = np.random.default_rng(0)
    values, videos = random.normal(0, 1, 200), np.repeat(np.arange(50), 4).tolist()
    ours, plain = mean(values, videos), clustered_mean(values, videos, unit="points")
    assert (ours.low, ours.high) == (pytest.approx(plain.low), pytest.approx(plain.high))


def test_videos_of_unequal_sizes_make_it_wider() -> None:
    random = np.random.default_rng(0)
    videos = np.repeat(np.arange(12), [40, 20, *[2] * 10]).tolist()
    values = random.normal(0, 1, len(videos))
    ours, plain = mean(values, videos), clustered_mean(values, videos, unit="points")
    assert ours.value == plain.value and ours.low < plain.low and ours.high > plain.high  # type: ignore[operator]


@given(st.lists(st.integers(1, 30), min_size=2, max_size=30))
def test_degrees_of_freedom_lie_between_one_and_those_of_equal_videos(sizes: list[int]) -> None:
    found = degrees_of_freedom(np.repeat(np.arange(len(sizes)), sizes))
    assert 1 <= found <= len(sizes) - 1 + 1e-6
    assert found == pytest.approx(len(sizes) - 1) or len(set(sizes)) > 1
    assert degrees_of_freedom(np.repeat(np.arange(2000), 3)) == 1999


@pytest.mark.parametrize("weigh", [False, True])
def test_degrees_of_freedom_are_those_of_a_slow_simulation(weigh: bool) -> None:
    """Satterthwaite's: twice the squared mean over the variance of the sum of squared moves."""
    sizes = [12, 6, 3, 2, 2, 1]
    cluster, random, squares = np.repeat(np.arange(6), sizes), np.random.default_rng(1), []
    weights = np.where(np.arange(26) % 3 == 0, 4.0, 1.0) if weigh else np.ones(26)
    total = np.bincount(cluster, weights)
    for _ in range(20_000):
        items = math.sqrt(0.3) * random.normal(size=6)[cluster] + math.sqrt(0.7) * random.normal(size=26)
        centre = np.average(items, weights=weights)
        moves = np.bincount(cluster, weights * (items - centre)) / (total.sum() - total)
        squares.append(float(moves @ moves))
    simulated = 2 * np.mean(squares) ** 2 / np.var(squares)
    assert degrees_of_freedom(cluster, weights) == pytest.approx(simulated, rel=0.05)
    assert degrees_of_freedom(cluster, 7 * weights) == pytest.approx(degrees_of_freedom(cluster, weights))


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 5)), min_size=1, max_size=40))
def test_a_rate_has_an_interval_around_it_within_0_and_1(items: list[tuple[float, int]]) -> None:
    values, videos = [value for value, _ in items], [video for _, video in items]
    found = rate(values, videos)
    assert found.value == pytest.approx(np.mean(values))
    if len(set(videos)) == 1:
        assert found.low is None
    else:
        assert 0 <= found.low <= found.value + 1e-9 and found.value - 1e-9 <= found.high <= 1  # type: ignore[operator]
        assert found.low < found.high  # type: ignore[operator]


def test_without_exception_is_not_without_doubt() -> None:
    assert rate([1.0] * 10, range(10)).low == pytest.approx(0.66, abs=0.01)
    assert rate([0.0] * 1000, [n % 3 for n in range(1000)]).high == pytest.approx(0.86, abs=0.01)
    assert rate([], []).value is None
    assert rate([1.0, None], ["u", "v"]).n == 1


@given(st.lists(st.tuples(st.floats(0.1, 10), st.integers(0, 9)), min_size=2, max_size=40))
def test_what_nobody_contradicts_has_an_interval_whatever_the_weights(items: list[tuple[float, int]]) -> None:
    """Sums of weights are rounded: a unanimous audit must not seem to be sure because 3 x 0.1 is not 0.3."""
    weights, videos = np.array([weight for weight, _ in items]), [video for _, video in items]
    if len(set(videos)) > 1:
        always, never = (rate(np.full(len(items), value), videos, weights=weights) for value in (1.0, 0.0))
        assert (always.value, always.high, never.value, never.low) == (1.0, 1.0, 0.0, 0.0)
        assert always.low < 0.9 and never.high > 0.1  # type: ignore[operator]
        assert always.low == pytest.approx(1 - never.high)  # type: ignore[operator]


def test_a_spread_of_rounding_errors_is_none() -> None:
    """Every video has one of each: nothing moves the mean, but for the last digit."""
    values, videos = [1.0, 0.0] * 7, np.repeat(np.arange(7), 2).tolist()
    found = rate(values, videos, weights=np.full(14, 0.1))
    assert found.high - found.low > 0.5  # type: ignore[operator]


def test_an_item_counts_as_often_as_it_weighs() -> None:
    """With a video for each, weights that differ make the interval wider; weight 0 is nobody."""
    values, videos = np.array([1.0, 0, 1, 1, 0, 1, 0, 1]), list(range(8))
    weights = np.array([3.0, 1, 2, 1, 1, 1, 4, 0])
    found = mean(values, videos, weights=weights)
    assert found.value == pytest.approx(np.repeat(values, weights.astype(int)).mean())
    assert (found.n, found.missing) == (7, 1)
    for measure in (mean, rate):
        equal, scaled = measure(values, videos), measure(values, videos, weights=np.full(8, 3.0))
        assert (equal.low, equal.high) == pytest.approx((scaled.low, scaled.high))
    assert rate([1.0], ["u"], weights=np.zeros(1)).value is None


def test_nine_in_ten_intervals_of_a_weighted_share_hold_the_truth() -> None:
    """Half of an audit are pairs of a stratum that is a tenth of all, and they are right less often."""
    held = 0
    for seed in range(300):
        random = np.random.default_rng(seed)
        hard = np.repeat([True, False], 30)
        values = (random.random(60) < np.where(hard, 0.5, 0.97)).astype(float)
        found = rate(values, list(range(60)), weights=np.where(hard, 1.0, 9.0))
        held += inside(0.1 * 0.5 + 0.9 * 0.97, found)
    assert held >= 279


def test_a_heavy_stratum_without_a_mistake_does_not_make_sure() -> None:
    """The six mistakes are all of pairs that weigh little; one in a pair that weighs much would change all."""
    values, weights = np.array([0.0] * 6 + [1.0] * 54), np.repeat([1.0, 9.0], 30)
    found = rate(values, list(range(60)), weights=weights)
    assert found.value == pytest.approx(0.98) and found.low < 0.93  # type: ignore[operator]


# Position


@given(st.lists(st.tuples(CHOICES, ORDERS), max_size=30))
def test_who_is_named_first_is_counted_as_a_loop_would(said: list[tuple[str, str]]) -> None:
    slow = [
        math.nan if choice == "tie" else float((choice == "a") == (order == "ab")) for choice, order in said
    ]  # fmt: skip
    fast = bias.named_first([choice for choice, _ in said], [order for _, order in said])
    np.testing.assert_array_equal(fast, slow)


def test_a_judge_who_always_names_the_first_and_one_who_never_looks_there() -> None:
    assert rate(bias.named_first(["a", "b"] * 5, ["ab", "ba"] * 5), range(10)).value == 1.0
    assert rate(bias.named_first(["a", "a"] * 5, ["ab", "ba"] * 5), range(10)).value == 0.5


def test_thirds_of_the_gap_hold_every_item_once() -> None:
    random = np.random.default_rng(2)
    gap, values = random.random(90), random.integers(0, 2, 90).astype(float)
    gap[:6] = math.nan
    parts = bias.by_gap(values, gap, list(range(90)))
    assert [part.estimate.n for part in parts] == [28, 28, 28]
    assert all(one.high <= other.low for one, other in itertools.pairwise(parts))
    counted = sum((part.estimate.value or 0) * part.estimate.n for part in parts)
    assert counted == pytest.approx(values[6:].sum())


def test_equal_gaps_stay_together() -> None:
    (only,) = bias.by_gap(np.ones(9), np.full(9, 0.5), list(range(9)))
    assert only.estimate.n == 9
    assert bias.by_gap(np.ones(3), np.full(3, math.nan), [1, 2, 3]) == []


# Length


@given(st.lists(st.tuples(CHOICES, st.integers(0, 5), st.integers(0, 5)), max_size=40))
def test_balanced_pairs_are_won_by_the_longer_exactly_as_often(pairs: list[tuple[str, int, int]]) -> None:
    choice, a, b = ([pair[side] for pair in pairs] for side in range(3))
    longer = bias.longer_won(choice, a, b)  # type: ignore[arg-type]
    ids = [str(number) for number in range(len(pairs))]
    kept = bias.length_balanced(longer, ids)
    assert (longer[kept] == 1).sum() == (longer[kept] == 0).sum() == min((longer == 1).sum(), (longer == 0).sum())
    assert kept[np.isnan(longer)].all()
    turned = bias.length_balanced(longer[::-1], ids[::-1])[::-1]
    np.testing.assert_array_equal(kept, turned)  # whatever the order of the rows


def judged_by_length(
    coefficient: float, quality: float, *, videos: int = 120, seed: int = 0
) -> tuple[np.ndarray[Any, Any], ...]:
    """Hard labels of a judge for whom a doubling of length is worth `coefficient` and a unit of margin `quality`."""
    random = np.random.default_rng(seed)
    video = np.repeat(np.arange(videos), 5)
    b = random.integers(5, 40, len(video))
    a = np.maximum(np.rint(b * 2.0 ** random.normal(0, 1, len(video))), 1)
    margin = random.uniform(-1, 1, len(video)) + 0.3 * np.sign(a - b)
    chance = 1 / (1 + np.exp(-(coefficient * np.log2(a / b) + quality * margin)))
    return (random.random(len(video)) < chance).astype(float), a, b, video, margin


@pytest.mark.parametrize("planted", [-0.8, 0.0, 0.7])
def test_the_planted_coefficient_of_length_lies_in_its_interval(planted: float) -> None:
    label, a, b, video, margin = judged_by_length(planted, 1.5)
    found = bias.length_coefficient(label, a, b, video.tolist(), margin)
    assert inside(planted, found) and found.high - found.low < 0.6  # type: ignore[operator]
    confounded = bias.length_coefficient(label, a, b, video.tolist())
    assert confounded.value > found.value  # type: ignore[operator]


@pytest.mark.parametrize("with_margin", [True, False])
def test_a_pair_that_weighs_three_is_three_pairs_of_its_video(with_margin: bool) -> None:
    label, a, b, video, margin = judged_by_length(0.7, 1.5, videos=30)
    times = np.where(np.arange(len(label)) % 2, 3, 1)
    whole = [np.repeat(each, times) for each in (label, a, b, video, margin)]
    quality, repeated = (margin, whole[4]) if with_margin else (None, None)
    ours = bias.length_coefficient(label, a, b, video.tolist(), quality, weights=times.astype(float))
    twin = bias.length_coefficient(whole[0], whole[1], whole[2], whole[3].tolist(), repeated)
    assert ours.value == pytest.approx(twin.value, abs=1e-6)
    assert ours.high == pytest.approx(twin.high, rel=0.02)


@given(st.integers(0, 20))
def test_it_does_not_matter_which_response_is_called_a(seed: int) -> None:
    label, a, b, video, margin = judged_by_length(0.5, 1.0, videos=15, seed=seed)
    swap = np.random.default_rng(seed).random(len(a)) < 0.5
    turned = bias.length_coefficient(
        np.where(swap, 1 - label, label), np.where(swap, b, a), np.where(swap, a, b), video.tolist(),
        np.where(swap, -margin, margin),
    )  # fmt: skip
    straight = bias.length_coefficient(label, a, b, video.tolist(), margin)
    assert turned.value == pytest.approx(straight.value, abs=1e-5)
    assert turned.low == pytest.approx(straight.low, abs=1e-4)


def test_the_linear_jackknife_is_close_to_leaving_every_video_out() -> None:
    from statsmodels.api import GLM
    from statsmodels.genmod.families import Binomial

    label, a, b, video, margin = judged_by_length(0.7, 1.5, videos=60)
    x = np.column_stack([np.log2(a / b), margin])
    whole = GLM(label, x, family=Binomial()).fit().params[0]
    without = [GLM(label[video != v], x[video != v], family=Binomial()).fit().params[0] for v in range(60)]
    slow = math.sqrt(59 / 60 * sum((one - whole) ** 2 for one in without))
    found = bias.length_coefficient(label, a, b, video.tolist(), margin)
    assert found.value == pytest.approx(whole, abs=1e-6)
    assert (found.high - found.low) / 2 / 2.001 == pytest.approx(slow, rel=0.03)  # type: ignore[operator]


def test_soft_labels_of_that_very_form_are_fitted_exactly() -> None:
    a, b = np.array([10, 20, 40, 8, 16, 5.0]), np.array([20, 10, 10, 9, 4, 5.0])
    p = 1 / (1 + np.exp(-0.9 * np.log2(a / b)))
    assert bias.length_coefficient(p, a, b, list(range(6))).value == pytest.approx(0.9, abs=1e-6)


def test_no_coefficient_where_there_is_none() -> None:
    videos = [0, 1, 2, 3]
    same = bias.length_coefficient(np.array([1.0, 0, 1, 0]), [5] * 4, [5] * 4, videos)
    assert same.value is None and str(same) == "no data (n=4)"
    separated = bias.length_coefficient(np.array([1.0, 0, 1, 0]), [9, 5, 9, 5], [5, 9, 5, 9], videos)
    assert separated.value is None
    one_video = bias.length_coefficient(np.array([1.0, 0.4, 0.2]), [9, 5, 9], [5, 9, 5], [0, 0, 0])
    assert one_video.value is not None and one_video.low is None
    margin = np.log2([9 / 5, 5 / 9, 9 / 5, 5 / 9])
    confused = bias.length_coefficient(np.array([0.9, 0.4, 0.3, 0.2]), [9, 5, 9, 5], [5, 9, 5, 9], videos, margin)
    assert confused.value is None
    unknown = bias.length_coefficient(np.array([0.9, 0.4]), [9, 5], [5, 9], [0, 1], np.array([math.nan, math.nan]))
    assert (unknown.value, unknown.n, unknown.missing) == (None, 0, 2)


# The others


def test_a_judge_may_be_right_to_like_its_own() -> None:
    own, p, truth = ["a", "b", "a", "", "both"], np.array([0.9, 0.1, 0.7, 0.9, 0.1]), np.array([1, 0, 1, 1, 1.0])
    fair = bias.self_preference(truth, own, truth, list(range(5)))
    assert (fair.value, fair.n, fair.missing) == (0.0, 3, 2)
    assert bias.self_preference(p, own, truth, list(range(5))).value == pytest.approx(100 * (-0.1 - 0.1 - 0.3) / 3)
    assert bias.self_preference(np.ones(5), ["a"] * 5, np.full(5, 0.5), list(range(5))).value == pytest.approx(50)


def test_a_changed_verdict_may_be_a_tie() -> None:
    assert bias.changed(["a", "b", "tie", "a"], ["a", "a", "b", "tie"]).tolist() == [0, 1, 1, 1]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=20))
def test_the_gain_of_strength_knows_no_sides(moves: list[tuple[float, float]]) -> None:
    before, after = (np.array([move[side] for move in moves]) for side in (0, 1))
    gain = bias.strength_gain(before, after)
    np.testing.assert_allclose(gain, bias.strength_gain(1 - before, 1 - after), atol=1e-9)
    np.testing.assert_allclose(gain, -bias.strength_gain(after, before), atol=1e-9)
    assert not np.signbit(gain[gain == 0]).any()
