"""The sample of an audit: no stratum is left out, every pair is as likely as its weight says, no side is favoured."""

from __future__ import annotations

import itertools
from collections import Counter
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_rlaif.feedback.audit.sampling import allocate, draw, expected, overlapping, sides, size_for, weighting

populations = st.dictionaries(st.text("abcdef", min_size=1), st.integers(1, 500), min_size=1, max_size=12)


@given(populations, st.integers(1, 600))
def test_every_stratum_has_some_and_no_more_than_there_are(populations: dict[str, int], size: int) -> None:
    if size < len(populations):
        with pytest.raises(ValueError, match="strata"):
            allocate(populations, size)
        return
    taken = allocate(populations, size)
    assert sum(taken.values()) == min(size, sum(populations.values()))
    assert all(1 <= taken[name] <= population for name, population in populations.items())


@given(populations, st.integers(1, 600))
def test_weights_sum_to_the_population(populations: dict[str, int], size: int) -> None:
    taken = allocate(populations, max(size, len(populations)))
    weights = [populations[name] / taken[name] for name in populations for _ in range(taken[name])]
    assert sum(weights) == pytest.approx(sum(populations.values()))


def test_large_samples_are_in_proportion() -> None:
    assert allocate({"a": 6000, "b": 3000, "c": 1000}, 100) == {"a": 60, "b": 30, "c": 10}


def test_small_strata_have_their_floor() -> None:
    assert allocate({"a": 6000, "b": 3}, 100) == {"a": 97, "b": 3}


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 200), st.integers(0, 5))
def test_a_draw_is_distinct_repeatable_and_spread_over_videos(videos: list[int], count: int, seed: int) -> None:
    pairs = [(f"v{video}", f"p{video}-{number}") for video, many in enumerate(videos) for number in range(many)]
    count = min(count, len(pairs))
    drawn = draw(pairs, count, seed)
    assert len(set(drawn)) == count and drawn == draw(list(reversed(pairs)), count, seed)
    of = Counter(pair.split("-")[0] for pair in drawn)
    for video, many in enumerate(videos):
        assert of[f"p{video}"] <= ceil(many * count / len(pairs)) + 1


def test_every_pair_is_as_likely_as_any_other() -> None:
    """Videos of one pair are drawn no more often than pairs of a video with nine."""
    pairs = [("big", f"b{number}") for number in range(9)] + [(f"v{number}", f"s{number}") for number in range(9)]
    drawn = Counter(pair for seed in range(3000) for pair in draw(pairs, 6, seed))
    assert len(drawn) == 18 and all(0.29 < count / 3000 < 0.375 for count in drawn.values())


@given(st.sets(st.text("abcdefgh", min_size=1), min_size=1, max_size=50), st.integers(0, 5))
def test_half_of_the_pairs_are_shown_the_other_way_round(pairs: set[str], seed: int) -> None:
    side = sides(sorted(pairs), seed)
    assert side == sides(sorted(pairs, reverse=True), seed)
    shown = Counter(side.values())
    assert set(side) == pairs and abs(shown["ab"] - shown["ba"]) <= 1


def test_sides_have_no_pattern_that_people_could_learn() -> None:
    names = [f"p{number:03}" for number in range(200)]
    side = sides(names, 0)
    changes = sum(side[one] != side[other] for one, other in itertools.pairwise(names))
    assert 70 < changes < 130


@given(st.integers(1, 80), st.floats(0, 1))
def test_the_overlap_is_as_large_as_it_was_asked_for(count: int, share: float) -> None:
    names = [f"p{number}" for number in range(count)]
    assert len(overlapping(names, share, 0)) == round(share * count)


@given(populations, st.integers(1, 600))
def test_the_price_of_unequal_weights_is_that_of_their_list(populations: dict[str, int], size: int) -> None:
    taken = allocate(populations, max(size, len(populations)))
    weights = [populations[name] / taken[name] for name in populations for _ in range(taken[name])]
    slow = (len(weights) * sum(weight**2 for weight in weights)) ** 0.5 / sum(weights)
    assert weighting(populations, taken) == pytest.approx(slow) and slow >= 1 - 1e-12


def test_unequal_weights_need_more_pairs_for_the_same_interval() -> None:
    fair, unfair = (
        size_for(0.05, 10**6, 10**6, agreement=0.5, correlation=0.1, unequal=unequal) for unequal in (1.0, 1.2)
    )
    assert (fair.pairs, unfair.pairs) == (385, 554) and unfair.half_width == pytest.approx(0.05, rel=0.01)


def test_independent_pairs_need_the_textbooks_size() -> None:
    assert size_for(0.05, 10**6, 10**6, agreement=0.5, correlation=0.1).pairs == 385
    assert size_for(0.05, 10**6, 10**6, agreement=0.75, correlation=0.1).pairs == 289


@given(st.floats(0.02, 0.3), st.integers(5, 5000), st.floats(0, 0.9))
def test_the_size_promises_the_width_that_was_asked_for(width: float, videos: int, correlation: float) -> None:
    size = size_for(width, 10**9, videos, agreement=0.5, correlation=correlation)
    if size.pairs < 10**9:
        assert size.half_width <= width * 1.0001
        fewer = expected(size.pairs - 2, videos, agreement=0.5, correlation=correlation)
        assert fewer.half_width > width * 0.9999


def test_a_sample_cannot_be_larger_than_everything() -> None:
    size = size_for(0.01, 300, 20, agreement=0.5, correlation=0.1)
    assert size.pairs == 300 and size.half_width > 0.05
