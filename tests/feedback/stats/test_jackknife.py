"""Intervals that leave out one video at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binomtest

from vlm_rlaif.feedback.stats.estimates import clustered_mean, t_quantile
from vlm_rlaif.feedback.stats.jackknife import MOST_GROUPS, jackknife, weighted_mean

items = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=40)


@given(items)
def test_for_a_mean_of_equal_weights_it_is_the_clustered_mean(given_items: list[tuple[bool, int]]) -> None:
    values = np.array([value for value, _ in given_items], dtype=float)
    videos = [video for _, video in given_items]
    assume(0 < values.mean() < 1)
    ours, twin = weighted_mean(values, np.ones(len(values)), videos), clustered_mean(values, videos)
    assert ours.value == pytest.approx(twin.value) and (ours.n, ours.clusters) == (twin.n, twin.clusters)
    assert (ours.low is None) == (twin.low is None)
    if ours.low is not None:
        assert (ours.low, ours.high) == pytest.approx((twin.low, twin.high), abs=1e-9)


def test_a_weighted_ratio_worked_by_hand() -> None:
    """Without u 1/3, without v 4/5, without w 4/6, of all 4/7: variance 2/3 of the squared moves."""
    found = weighted_mean(np.array([3.0, 0.0, 1.0]) / np.array([3, 2, 1]), np.array([4.0, 2.0, 1.0]), ["u", "v", "w"])
    whole, without = 5 / 7, [1 / 3, 5 / 5, 4 / 6]
    margin = t_quantile(0.95, 2) * math.sqrt(2 / 3 * sum((each - whole) ** 2 for each in without))
    assert found.value == pytest.approx(whole)
    assert (found.low, found.high) == (max(0.0, whole - margin), min(1.0, whole + margin))


def test_nothing_one_video_and_an_undefined_statistic_have_no_interval() -> None:
    assert weighted_mean(np.array([]), np.array([]), []).value is None
    one = weighted_mean(np.array([1.0, 0.0]), np.ones(2), ["u", "u"])
    assert (one.value, one.low) == (0.5, None)
    fragile = jackknife(lambda kept: 0.5 if kept.all() else math.nan, ["u", "v"])
    assert (fragile.value, fragile.low) == (0.5, None)
    assert weighted_mean(np.array([1.0]), np.zeros(1), ["u"]).value is None


@pytest.mark.parametrize("videos", [2, 10, 100])
def test_where_nothing_differs_the_interval_is_that_of_as_many_coins(videos: int) -> None:
    values, clusters = np.ones(2 * videos), [number // 2 for number in range(2 * videos)]
    exact = binomtest(videos, videos).proportion_ci(0.95, "exact")
    always, never = weighted_mean(values, values, clusters), weighted_mean(1 - values, values, clusters)
    assert (always.low, always.high) == pytest.approx((exact.low, exact.high))
    assert (never.low, never.high) == pytest.approx((0.0, 1 - exact.low))


def test_many_videos_are_left_out_in_groups_and_the_interval_stays_the_same() -> None:
    rng = np.random.default_rng(0)
    values = rng.random(3000)
    grouped, twin = weighted_mean(values, np.ones(3000), range(3000)), clustered_mean(values, range(3000))
    assert twin.low is not None and twin.high is not None and grouped.low is not None and grouped.high is not None
    assert grouped.high - grouped.low == pytest.approx(twin.high - twin.low, rel=3 / math.sqrt(2 * MOST_GROUPS))
