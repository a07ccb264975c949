"""Rates that an audit corrects: worked cases, refusals, and intervals that hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_rlaif.feedback.stats.correction import corrected_rate, rogan_gladen
from vlm_rlaif.warehouse.errors import UserError


@given(st.floats(0, 1), st.floats(0.51, 1), st.floats(0.51, 1))
def test_what_a_judge_of_known_errors_would_say_is_undone(theta: float, q0: float, q1: float) -> None:
    said = theta * q1 + (1 - theta) * (1 - q0)
    assert rogan_gladen(said, q0, q1) == pytest.approx(theta, abs=1e-6)


def test_a_judge_that_is_right_is_not_corrected() -> None:
    assert rogan_gladen(0.3, 1.0, 1.0) == pytest.approx(0.3)


def series(*groups: tuple[int, int, float]) -> tuple[np.ndarray, np.ndarray]:
    """(how many, what the judge says, what people say) one after the other."""
    said = np.repeat([float(each[1]) for each in groups], [each[0] for each in groups])
    return said, np.repeat([each[2] for each in groups], [each[0] for each in groups])


def test_a_case_by_hand() -> None:
    """Of 10 that people see the judge sees 8, of 10 others it sees 1; of 100 it sees 30: (0.3 - 0.1) / 0.7."""
    nan = float("nan")
    said, known = series((8, 1, 1.0), (2, 0, 1.0), (1, 1, 0.0), (9, 0, 0.0), (21, 1, nan), (59, 0, nan))
    found = corrected_rate(said, known, np.ones(100), range(100))
    assert found.rate.value == pytest.approx(0.3)
    assert (found.sensitivity.value, found.specificity.value) == pytest.approx((0.8, 0.9))
    assert found.corrected.value == pytest.approx(0.2 / 0.7)
    assert found.corrected.n == 100 and found.sensitivity.n == 10


def test_the_interval_is_wider_than_that_of_the_rate() -> None:
    """It carries the audit's uncertainty, too, and a factor 1 / (q0 + q1 - 1)."""
    nan = float("nan")
    said, known = series((16, 1, 1.0), (4, 0, 1.0), (2, 1, 0.0), (18, 0, 0.0), (500, 1, nan), (500, 0, nan))
    found = corrected_rate(said, known, np.ones(len(said)), range(len(said)))
    assert found.rate.low is not None and found.rate.high is not None
    assert found.corrected.low is not None and found.corrected.high is not None
    assert found.corrected.high - found.corrected.low > 2 * (found.rate.high - found.rate.low)


def test_where_people_looked_at_everything_the_corrected_rate_is_theirs() -> None:
    rng = np.random.default_rng(2)
    known = (rng.random(80) < 0.4).astype(float)
    said = np.where(rng.random(80) < 0.8, known, 1 - known)
    found = corrected_rate(said, known, np.ones(80), range(80))
    assert found.corrected.value == pytest.approx(known.mean())


def test_a_judge_without_a_mistake_in_a_small_audit_is_not_yet_one_that_makes_none() -> None:
    """Of 1,000 pairs it sees 10 %; in 40 that people looked at it is right. The rate may be lower by far."""
    nan = float("nan")
    said, known = series((4, 1, 1.0), (36, 0, 0.0), (96, 1, nan), (864, 0, nan))
    found = corrected_rate(said, known, np.ones(1000), range(1000))
    one_wrong = np.where(np.arange(1000) == 4, 1.0, known)
    assert found.corrected.value == pytest.approx(0.1) and found.corrected.n == found.corrected.clusters == 1000
    assert found.corrected.low is not None and found.corrected.low < 0.05 and found.rate.low > 0.08  # type: ignore[operator]
    assert corrected_rate(said, one_wrong, np.ones(1000), range(1000)).corrected.value == pytest.approx(0.125)


def test_strata_are_weighted_back() -> None:
    """Two strata: the judge is right where pairs are easy, which were sampled one in ten, and guesses elsewhere."""
    easy, hard = series((10, 1, 1.0), (10, 0, 0.0)), series((5, 1, 1.0), (5, 0, 1.0), (5, 1, 0.0), (5, 0, 0.0))
    said, known = np.concatenate([easy[0], hard[0]]), np.concatenate([easy[1], hard[1]])
    weights = np.repeat([10.0, 1.0], 20)
    found = corrected_rate(said, known, weights, range(40))
    assert found.sensitivity.value == pytest.approx((100 + 5) / 110)
    assert corrected_rate(said, known, np.ones(40), range(40)).sensitivity.value == pytest.approx(15 / 20)


def test_a_judge_that_knows_no_more_than_a_coin_is_refused() -> None:
    said, known = series((5, 1, 1.0), (5, 0, 1.0), (5, 1, 0.0), (5, 0, 0.0))
    with pytest.raises(UserError, match=r"50\.0 % of the cases in which people do, and in 50\.0 %"):
        corrected_rate(said, known, np.ones(20), range(20))


@pytest.mark.parametrize(("seen", "word"), [(1.0, "always"), (0.0, "never")])
def test_an_audit_that_saw_one_kind_alone_is_refused(seen: float, word: str) -> None:
    with pytest.raises(UserError, match=f"People saw it {word} in the 2 pairs"):
        corrected_rate(np.array([1.0, 0.0]), np.array([seen, seen]), np.ones(2), "uv")


def test_an_interval_that_hangs_on_one_video_is_not_given() -> None:
    said, known = series((3, 1, 1.0), (3, 0, 0.0))
    found = corrected_rate(said, known, np.ones(6), ["u", "u", "u", "v", "w", "x"])
    assert found.corrected.value == 0.5 and found.corrected.low is None


@pytest.mark.parametrize(("rate", "right"), [(0.4, 0.82), (0.9, 0.85)])
def test_nine_in_ten_intervals_hold_the_truth(rate: float, right: float) -> None:
    """The benchmark says how many exactly; here 100 clustered audits must not be far off, nor near the bound."""
    held = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        videos = np.repeat(np.arange(120), 4)
        happens = (rng.random(480) < np.repeat(rng.beta(3 * rate, 3 * (1 - rate), 120), 4)).astype(float)
        said = np.where(rng.random(480) < right, happens, 1 - happens)
        looked = rng.random(480) < 0.6
        found = corrected_rate(said, np.where(looked, happens, np.nan), np.ones(480), videos.tolist()).corrected
        assert found.low is not None and found.high is not None
        assert found.low < found.high
        held += found.low <= rate <= found.high
    assert held >= 90
