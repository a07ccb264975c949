"""Intervals that leave out one video at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vlm_rlaif.feedback.stats.estimates import t_quantile
from vlm_rlaif.feedback.stats.intervals import degrees_of_freedom, mean, quantile
from vlm_rlaif.feedback.stats.jackknife import MOST_GROUPS, jackknife

items = st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(1, 9)), min_size=2, max_size=40)


@given(items)
def test_for_a_weighted_mean_it_is_the_closed_form(given_items: list[tuple[bool, int, int]]) -> None:
    """The slow twin of `intervals.mean`."""
    values, weights = (np.array([item[part] for item in given_items], dtype=float) for part in (0, 2))
    videos = [item[1] for item in given_items]
    assume(0 < values.mean() < 1)
    slow = jackknife(lambda kept: float(np.average(values[kept], weights=weights[kept])) if kept.any() else math.nan,
                     videos, weights=weights)  # fmt: skip
    ours = mean(values, videos, weights=weights, unit="fraction")
    assert ours.value == pytest.approx(slow.value) and (ours.n, ours.clusters) == (slow.n, slow.clusters)
    assert (ours.low is None) == (slow.low is None)
    if ours.low is not None:
        assert (ours.low, ours.high) == pytest.approx((slow.low, slow.high), abs=1e-9)


def test_a_weighted_ratio_worked_by_hand() -> None:
    """Of all 5/7; without u 1/3, without v 1, without w 4/6: variance 2/3 of the squared moves."""
    values, weights = np.array([1.0, 0.0, 1.0]), np.array([4.0, 2.0, 1.0])
    found = jackknife(lambda kept: float(np.average(values[kept], weights=weights[kept])), ["u", "v", "w"],
                      weights=weights)  # fmt: skip
    whole, without = 5 / 7, [1 / 3, 5 / 5, 4 / 6]
    t = quantile(0.95, degrees_of_freedom(np.arange(3), weights))
    margin = t * math.sqrt(2 / 3 * sum((each - whole) ** 2 for each in without))
    assert found.value == pytest.approx(whole) and t > t_quantile(0.95, 2)
    assert (found.low, found.high) == (max(0.0, whole - margin), min(1.0, whole + margin))


def test_nothing_one_video_and_an_undefined_statistic_have_no_interval() -> None:
    assert jackknife(lambda kept: 0.5, []).value is None
    one = jackknife(lambda kept: 0.5, ["u", "u"])
    assert (one.value, one.low) == (0.5, None)
    fragile = jackknife(lambda kept: 0.5 if kept.all() else math.nan, ["u", "v"])
    assert (fragile.value, fragile.low) == (0.5, None)


def test_a_statistic_beyond_its_bounds_is_cut_after_its_spread_is_known() -> None:
    """A mean of 1.1, cut at 1, does not stand still: leaving a video out moves it below."""
    values = np.array([1.0, 1.2, 0.8, 1.4])
    found = jackknife(lambda kept: float(values[kept].mean()), range(4))
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(mean(values, range(4)).low) and found.low < 0.9  # type: ignore[operator]


def test_videos_of_unequal_weight_make_it_wider() -> None:
    values, videos = np.random.default_rng(0).random(30), np.repeat(np.arange(10), 3).tolist()
    few = np.repeat([20.0, *[1.0] * 9], 3)
    even, uneven = (jackknife(lambda kept: float(values[kept].mean()), videos, weights=w) for w in (np.ones(30), few))
    assert even.value == uneven.value and uneven.low < even.low  # type: ignore[operator]


def test_many_videos_are_left_out_in_groups_and_the_interval_stays_the_same() -> None:
    values = np.random.default_rng(0).random(3000)
    grouped = jackknife(lambda kept: float(values[kept].mean()), range(3000))
    whole = mean(values, range(3000))
    assert grouped.low is not None and grouped.high is not None and whole.low is not None and whole.high is not None
    assert grouped.high - grouped.low == pytest.approx(whole.high - whole.low, rel=3 / math.sqrt(2 * MOST_GROUPS))
