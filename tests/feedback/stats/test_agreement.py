"""Agreement, kappa and alpha against published examples, other packages and slow twins."""

from __future__ import annotations

import itertools
import math
import sys

import krippendorff
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from vlm_rlaif.feedback.stats.agreement import (
    CHOICES,
    LEVELS,
    accuracy,
    alpha_of,
    codes,
    cohen_kappa,
    confusion,
    kappa_of,
    krippendorff_alpha,
    pairwise_agreement,
    raw_agreement,
    verdict_counts,
)
from vlm_rlaif.feedback.stats.estimates import numbered
from vlm_rlaif.feedback.stats.intervals import degrees_of_freedom, quantile
from vlm_rlaif.warehouse.errors import MissingExtra

choices = st.sampled_from(["a", "b", "tie", "both_bad"])
judged = st.lists(st.tuples(choices, choices, st.integers(1, 9)), min_size=3, max_size=30)

RELIABILITY = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]
"""Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", example C: four observers, twelve units."""


def test_the_order_is_a_tie_b_and_both_bad_is_a_tie() -> None:
    assert codes([*CHOICES, "both_bad"]).tolist() == [0, 1, 2, 1]


def test_kappa_of_a_textbook() -> None:
    """50 proposals, two readers: 20 yes-yes, 15 no-no, 5 and 10 apart. Agreement 0.7, by chance 0.5: kappa 0.4."""
    assert kappa_of(np.array([[20.0, 5.0], [10.0, 15.0]])) == pytest.approx(0.4)


@given(judged)
def test_kappa_is_that_of_single_items(verdicts: list[tuple[str, str, int]]) -> None:
    """The slow twin gives scikit-learn every item as often as it weighs."""
    one, other = codes([row[0] for row in verdicts]), codes([row[1] for row in verdicts])
    weights = [row[2] for row in verdicts]
    ours = kappa_of(confusion(one, other, np.array(weights, dtype=float)))
    if len({*one, *other}) == 1:
        assert math.isnan(ours)
    else:
        assert ours == pytest.approx(cohen_kappa_score(np.repeat(one, weights), np.repeat(other, weights)), abs=1e-9)


def test_kappa_falls_below_agreement_where_one_verdict_is_common() -> None:
    """90 % agree, and as much would by chance: the reason why agreement alone says little."""
    judge, people = codes(["a"] * 90 + ["b"] * 5 + ["a"] * 5), codes(["a"] * 95 + ["b"] * 5)
    weights = np.ones(100)
    assert raw_agreement(judge, people, weights, range(100)).value == pytest.approx(0.9)
    kappa = cohen_kappa(judge, people, weights, range(100))
    assert kappa.value is not None and kappa.value < 0.0
    assert kappa.low is not None and kappa.high is not None and kappa.low < kappa.value < kappa.high


def test_a_judge_without_any_other_verdict_has_no_kappa_where_people_have_none() -> None:
    same = codes(["a", "a", "a"])
    assert cohen_kappa(same, same, np.ones(3), "uvw").value is None
    assert cohen_kappa(codes(["a", "b", "tie"]), same, np.ones(3), "uvw").value == 0.0


def test_the_interval_of_kappa_leaves_out_one_video_at_a_time() -> None:
    rng = np.random.default_rng(1)
    people, videos = rng.integers(0, 3, 60), rng.integers(0, 12, 60).tolist()
    judge = np.where(rng.random(60) < 0.7, people, rng.integers(0, 3, 60))
    weights = rng.integers(1, 4, 60).astype(float)
    found = cohen_kappa(judge, people, weights, videos)
    without = []
    for video in sorted(set(videos)):
        kept = np.array([each != video for each in videos])
        without.append(cohen_kappa_score(judge[kept], people[kept], sample_weight=weights[kept]))
    variance = 11 / 12 * sum((each - found.value) ** 2 for each in without)
    assert found.low is not None and found.value is not None
    t = quantile(0.95, degrees_of_freedom(numbered(videos), weights))
    assert found.value - found.low == pytest.approx(t * math.sqrt(variance)) and t > 2.200985


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815)])
def test_alpha_of_krippendorffs_example(level: str, published: float) -> None:
    units = [[row[unit] for row in RELIABILITY] for unit in range(12)]
    counts = np.array([[unit.count(value) for value in range(1, 6)] for unit in units], dtype=float)
    assert round(alpha_of(counts, level), 3) == published


def slow_alpha(units: list[list[int]], level: str) -> float:
    """Krippendorff's definition by loops over single values (Krippendorff 2011, sections 3 and 4)."""
    units = [unit for unit in units if len(unit) > 1]
    values = [value for unit in units for value in unit]
    if len(set(values)) < 2:
        return math.nan
    share = [values.count(value) for value in range(3)]

    def delta(c: int, k: int) -> float:
        if level == "nominal":
            return float(c != k)
        low, high = min(c, k), max(c, k)
        return (sum(share[low : high + 1]) - (share[low] + share[high]) / 2) ** 2 if c != k else 0.0

    observed = sum(delta(a, b) / (len(unit) - 1) for unit in units for a, b in itertools.permutations(unit, 2)) / len(
        values
    )
    by_chance = sum(delta(a, b) for a, b in itertools.permutations(values, 2)) / (len(values) * (len(values) - 1))
    return 1 - observed / by_chance


@pytest.mark.parametrize("level", LEVELS)
@given(units=st.lists(st.lists(st.integers(0, 2), max_size=4), min_size=1, max_size=12))
def test_alpha_agrees_with_its_slow_twin(level: str, units: list[list[int]]) -> None:
    counts = np.array([[unit.count(value) for value in range(3)] for unit in units], dtype=float)
    several = counts[counts.sum(axis=1) > 1]
    ours = alpha_of(several, level) if len(several) else math.nan
    assert ours == pytest.approx(slow_alpha(units, level), nan_ok=True)


def test_alpha_with_missing_verdicts_is_that_of_the_package() -> None:
    frame = np.array([[0, 1, 2, 2, np.nan, 0], [0, 1, 2, np.nan, 1, 2], [np.nan, 1, 1, 2, 1, np.nan]])
    people = [
        (unit, int(frame[person, unit])) for person, unit in np.ndindex(3, 6) if not np.isnan(frame[person, unit])
    ]
    units, counts = verdict_counts([unit for unit, _ in people], np.array([verdict for _, verdict in people]))
    for level in LEVELS:
        wanted = krippendorff.alpha(reliability_data=frame, level_of_measurement=level)
        assert krippendorff_alpha(counts, units, level).value == pytest.approx(wanted)


def test_an_order_makes_a_tie_half_a_disagreement() -> None:
    mild, harsh = (
        np.array([[1, 1, 0], [0, 1, 1], [2, 0, 0], [0, 0, 2]]),
        np.array([[1, 0, 1], [1, 0, 1], [2, 0, 0], [0, 0, 2]]),
    )
    assert alpha_of(mild, "ordinal") > alpha_of(mild, "nominal")
    assert alpha_of(mild, "ordinal") > alpha_of(harsh, "ordinal")


def test_people_who_never_differ_or_never_meet_have_no_alpha() -> None:
    assert krippendorff_alpha(np.array([[2.0, 0, 0], [2, 0, 0]]), "uv").value is None
    assert krippendorff_alpha(np.array([[1.0, 0, 0], [0, 1, 0]]), "uv").value is None


def test_two_people_agree_as_often_as_pairs_of_them_do() -> None:
    """Of three people with a, a, b one pair of three agrees; a pair that one person judged does not count."""
    counts = np.array([[2.0, 0, 1], [0, 2, 0], [1, 0, 0]])
    found = pairwise_agreement(counts, np.array([1.0, 3.0, 9.0]), "uvw")
    assert found.value == pytest.approx((1 / 3 + 3 * 1) / 4) and found.n == 2


def test_a_judge_names_the_better_one_half_with_a_tie_and_known_ties_are_left_out() -> None:
    judge, people = codes(["a", "tie", "b", "a"]), codes(["a", "b", "a", "tie"])
    found = accuracy(judge, people, np.ones(4), "uvwx")
    assert (found.value, found.n) == (0.5, 3)


@given(judged)
def test_weights_only_matter_by_their_ratio(verdicts: list[tuple[str, str, int]]) -> None:
    one, other = codes([row[0] for row in verdicts]), codes([row[1] for row in verdicts])
    weights, videos = (
        np.array([row[2] for row in verdicts], dtype=float),
        [place % 5 for place in range(len(verdicts))],
    )
    for measure in (raw_agreement, cohen_kappa):
        found, scaled = measure(one, other, weights, videos), measure(one, other, 7 * weights, videos)
        assert (found.value, found.low, found.high) == pytest.approx(
            (scaled.value, scaled.low, scaled.high), nan_ok=True
        )


@given(judged)
def test_whose_side_is_called_a_does_not_matter(verdicts: list[tuple[str, str, int]]) -> None:
    one, other = codes([row[0] for row in verdicts]), codes([row[1] for row in verdicts])
    weights = np.array([row[2] for row in verdicts], dtype=float)
    before, after = kappa_of(confusion(one, other, weights)), kappa_of(confusion(2 - one, 2 - other, weights))
    assert before == pytest.approx(after, nan_ok=True, abs=1e-9)


@pytest.mark.parametrize("package", ["sklearn.metrics", "krippendorff"])
def test_a_missing_package_is_named_with_the_extra_that_has_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    same = codes(["a", "b"])
    with pytest.raises(MissingExtra, match=r"pip install 'vlm-rlaif\[feedback\]'"):
        cohen_kappa(same, same, np.ones(2), "uv")
        krippendorff_alpha(np.array([[2.0, 0, 0], [0, 0, 2]]), "uv")
