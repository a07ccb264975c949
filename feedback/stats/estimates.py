"""Means with honest error bars: every number in a report is an `Estimate`.

Several questions about one video are not independent, so the intervals are clustered by video.
Missing values are left out, counted and never replaced. This module knows no table and no model:
series of numbers go in, estimates come out.

>>> right = [1, 1, 0, 1, None, 0]
>>> videos = ["u", "u", "v", "v", "w", "w"]
>>> print(clustered_mean(right, videos))
60.0 % [0.0, 100.0] (n=5, 1 missing)
>>> print(paired_difference([0.9, 0.8, 0.7], [0.5, 0.6, 0.4], ["u", "v", "w"]))
+30.0 points [5.2, 54.8] (n=3)
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = Sequence[float | None] | NDArray[Any]
"""One number per item; None or NaN where there is none."""

_ROUNDING = 1e-9
"""How far outside [0, 1] a fraction may lie, as sums of probabilities do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean, its confidence interval and what it was computed from."""

    value: float | None
    """None: there was nothing to average."""
    low: float | None
    """None: fewer than two clusters, so nothing is known about the spread; never a zero width."""
    high: float | None
    n: int
    """Items that counted."""
    clusters: int
    """Clusters (videos) among the items that counted."""
    missing: int = 0
    """Items without a value; not part of `n`."""
    unit: str = "fraction"
    """`fraction` (in [0, 1], printed as %), `points` (of 100), `tokens`, `minutes`, ..."""

    def as_json(self) -> dict[str, float | int | str | None]:
        """What a report stores.

        >>> clustered_mean([3.0], ["u"], unit="tokens").as_json()
        {'value': 3.0, 'low': None, 'high': None, 'n': 1, 'unit': 'tokens'}
        """
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "n": self.n,
            "unit": self.unit,
        }

    def __str__(self) -> str:
        if self.value is None:
            interval = "no data"
        elif self.low is None or self.high is None:
            interval = f"{self.headline()} [no interval: 1 cluster]"
        else:
            interval = f"{self.headline()} [{self._number(self.low)}, {self._number(self.high)}]"
        missing = f", {self.missing:,} missing" if self.missing else ""
        return f"{interval} (n={self.n:,}{missing})"

    def headline(self) -> str:
        """The value with its unit and without its interval.

        >>> clustered_mean([1, 0, 1, 1], "uvwx").headline()
        '75.0 %'
        >>> clustered_mean([], []).headline()
        'no data'
        """
        if self.value is None:
            return "no data"
        sign = "+" if self.unit == "points" and self.value > 0 else ""
        return f"{sign}{self._number(self.value)} {'%' if self.unit == 'fraction' else self.unit}"

    def _number(self, number: float) -> str:
        """One decimal for % and points; elsewhere three digits of the largest number shown."""
        if self.unit == "fraction":
            return f"{100 * number:.1f}"
        if self.unit == "points":
            return f"{round(number, 1) + 0.0:.1f}"  # never -0.0
        largest = max(abs(bound) for bound in (self.value, self.low, self.high, 0.0) if bound is not None)
        decimals = 2 - math.floor(math.log10(largest)) if largest else 0
        return f"{number:,.{min(max(decimals, 0), 12)}f}"


def plain(value: Any) -> Any:
    """Figures as JSON: dataclasses as their fields, an estimate as `as_json` has it.

    >>> plain([clustered_mean([3.0], ["u"], unit="tokens"), np.float64(0.5)])[1]
    0.5
    """
    if isinstance(value, Estimate):
        return value.as_json()
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value


def clustered_mean(
    values: Values, clusters: Sequence[Hashable], *, unit: str = "fraction", level: float = 0.95
) -> Estimate:
    """The mean of `values` (n,) with a confidence interval clustered by `clusters` (n,).

    Every item weighs the same. The standard error is clustered as Miller 2024, "Adding Error Bars
    to Evals" (arXiv:2411.00640) asks, in its jackknife form: with e_g = sum(x - mean) inside each of
    the G clusters of n_g items, leaving out cluster g moves the mean by e_g / (n - n_g), and the
    variance of the mean is (G-1)/G times the sum of their squares. For clusters of one size that is
    the sandwich estimator with its usual factor, G/(G-1) * sum(e_g^2) / n^2; for unequal ones it is
    the more careful of the two (MacKinnon, Nielsen & Webb 2023, CV3). The interval takes the t
    quantile with G-1 degrees of freedom. When every item is its own cluster, it is exactly the
    textbook t interval.

    An interval of a fraction is cut at 0 and 1. Where all values are equal it has zero width:
    nothing disagreed in this sample, which does not say that nothing could. With few clusters of
    very unequal sizes it is still a little too narrow (simulated, 8 clusters with geometric sizes of
    mean 5: a 95 % interval held the truth in 92 % of 3,000 sets).

    >>> print(clustered_mean([4.0, 6.0, 8.0, 10.0], ["u", "v", "w", "x"], unit="tokens"))
    7.0 tokens [2.9, 11.1] (n=4)
    >>> print(clustered_mean([4.0, 6.0], ["u", "u"], unit="tokens"))
    5.00 tokens [no interval: 1 cluster] (n=2)
    """
    series = as_series("values", values)
    _check_lengths(values=len(series), clusters=len(clusters))
    present = ~np.isnan(series)
    kept = series[present]
    if unit == "fraction":
        _check_fractions(kept)
    cluster = numbered([name for name, counts in zip(clusters, present, strict=True) if counts])
    n, number_of_clusters = len(kept), int(cluster.max(initial=-1)) + 1
    mean = math.fsum(kept) / n if n else None
    low = high = None
    if mean is not None and number_of_clusters > 1:
        rest = n - np.bincount(cluster)  # (G,)
        moves = np.bincount(cluster, weights=kept - mean) / rest  # (G,)
        variance = (number_of_clusters - 1) / number_of_clusters * float(moves @ moves)
        margin = t_quantile(level, number_of_clusters - 1) * math.sqrt(variance)
        low, high = mean - margin, mean + margin
        if unit == "fraction":
            low, high = max(low, 0.0), min(high, 1.0)
    return Estimate(
        value=mean,
        low=low,
        high=high,
        n=n,
        clusters=number_of_clusters,
        missing=len(series) - n,
        unit=unit,
    )


def paired_difference(
    a: Values,
    b: Values,
    clusters: Sequence[Hashable],
    *,
    unit: str = "fraction",
    level: float = 0.95,
) -> Estimate:
    """The mean of a - b over the same items: (n,), (n,), clusters (n,).

    `unit` is that of `a` and `b`; a difference of fractions comes back in `points` (of 100). An
    item without a value on either side is missing. Pairing removes what the two share, above all
    how hard an item is (Miller 2024, paired differences).

    >>> print(paired_difference([1, 1, 0, None], [0, 1, 0, 1], ["u", "v", "w", "x"]))
    +33.3 points [-110.1, 176.8] (n=3, 1 missing)
    """
    first, second = as_series("a", a), as_series("b", b)
    _check_lengths(a=len(first), b=len(second), clusters=len(clusters))
    if unit == "fraction":
        _check_fractions(first[~np.isnan(first)])
        _check_fractions(second[~np.isnan(second)])
        return clustered_mean(100 * (first - second), clusters, unit="points", level=level)
    return clustered_mean(first - second, clusters, unit=unit, level=level)


def agreement_with_truth(choice_is_a: Values, truth_a: Values, truth_b: Values) -> NDArray[np.float64]:
    """Does each label name the truer answer? 1 yes, 0.5 a tie label, 0 no: (n,) float64.

    `choice_is_a` is True (or 1) for a, False (or 0) for b, 0.5 for a tie and None where there is no
    label. NaN, to be left out of the mean: the two truths are equal or missing, or there is no
    label.

    >>> agreement_with_truth([True, False, 0.5, True, None], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0])
    array([1. , 0. , 0.5, nan, nan])
    """
    choice = as_series("choice_is_a", choice_is_a)
    first, second = as_series("truth_a", truth_a), as_series("truth_b", truth_b)
    _check_lengths(choice_is_a=len(choice), truth_a=len(first), truth_b=len(second))
    unknown = sorted(set(choice[~np.isnan(choice)].tolist()) - {0.0, 0.5, 1.0})
    if unknown:
        raise ValueError(f"choice_is_a is 1 (a), 0 (b) or 0.5 (tie), not {unknown[0]}: decide soft labels first")
    agreement = np.where(first > second, choice, 1.0 - choice)
    agreement[(first == second) | np.isnan(first) | np.isnan(second)] = np.nan
    return agreement


@lru_cache(maxsize=1024)
def t_quantile(level: float, freedom: int) -> float:
    """Half-width, in standard errors, of the central `level` of Student's t with `freedom` degrees.

    Bisection on the finite series of Abramowitz & Stegun 26.7.3 and 26.7.4, which is exact for
    whole degrees, in the angle theta = atan(t / sqrt(freedom)).

    >>> round(t_quantile(0.95, 10), 6)
    2.228139
    """
    if not 0.0 < level < 1.0 or freedom < 1:
        raise ValueError(f"t_quantile needs 0 < level < 1 and freedom >= 1, not {level} and {freedom}")
    odd = freedom % 2
    k = np.arange(1, freedom // 2)
    ratios = 2 * k / (2 * k + 1) if odd else (2 * k - 1) / (2 * k)
    coefficients = np.concatenate([[1.0], np.cumprod(ratios)])
    powers = 2 * np.arange(len(coefficients)) + odd

    def central(theta: float) -> float:
        series = math.sin(theta) * float(coefficients @ math.cos(theta) ** powers)
        return 2 / math.pi * (theta + (series if freedom > 1 else 0.0)) if odd else series

    low, high = 0.0, math.pi / 2
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if central(middle) < level else (low, middle)
    return math.sqrt(freedom) * math.tan(high)


def as_series(name: str, values: Values) -> NDArray[np.float64]:
    series = np.array([math.nan if v is None else float(v) for v in values], dtype=np.float64)
    if np.isinf(series).any():
        raise ValueError(f"{name} has an infinite number at item {int(np.isinf(series).argmax())}")
    return series


def numbered(names: Sequence[Hashable]) -> NDArray[np.intp]:
    """Each name as the number of its first appearance: (n,)."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.intp)


def _check_lengths(**lengths: int) -> None:
    if len(set(lengths.values())) > 1:
        raise ValueError(
            "one entry per item is needed: " + ", ".join(f"{name} has {length}" for name, length in lengths.items())
        )


def _check_fractions(present: NDArray[np.float64]) -> None:
    outside = present[(present < -_ROUNDING) | (present > 1 + _ROUNDING)]
    if len(outside):
        raise ValueError(f"a fraction lies in [0, 1], not {outside[0]}: name another unit")
