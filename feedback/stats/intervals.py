"""Intervals that stay honest with few videos, of unequal sizes, and near 0 and 1: `rate` and `mean`.

They are those of `estimates.clustered_mean` with two corrections, which vanish for many videos. Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vlm_rlaif.feedback.stats.estimates import Estimate, Values, clustered_mean, numbered, t_quantile

MANY = 1000
"""Above so many videos the degrees of freedom no longer matter."""
ALIKE = 0.3
"""How alike items of one video are taken to be (intraclass correlation), for the degrees of freedom alone. Verdicts
are mostly less alike; to assume more makes an interval wider, never narrower."""


def freedom(sizes: NDArray[np.float64]) -> float:
    """Degrees of freedom of a jackknife over clusters of these sizes (G,): G - 1 where they are equal, else fewer.

    Satterthwaite's, as Bell & McCaffrey 2002 and Imbens & Kolesar 2016 take them for clustered data: if the moves of
    the mean have the covariance K, their sum of squares has trace(K)^2 / trace(K^2) of them. K is that of items which
    are `ALIKE` within a cluster.

    >>> round(freedom(np.full(10, 4.0)), 2), round(freedom(np.array([30.0] + [4.0] * 9)), 2)
    (9.0, 1.42)
    """
    clusters, n = len(sizes), sizes.sum()
    if clusters > MANY:
        return clusters - 1.0
    variance, share = sizes * (1 - ALIKE) + sizes**2 * ALIKE, sizes / n
    shared = np.outer(share, variance)
    covariance = np.diag(variance) - shared - shared.T + variance.sum() * np.outer(share, share)
    covariance /= np.outer(n - sizes, n - sizes)
    return max(1.0, float(np.trace(covariance) ** 2 / (covariance**2).sum()))


def quantile(level: float, freedom: float) -> float:
    """`estimates.t_quantile` for degrees of freedom that are no whole number: between its neighbours, in 1 / degrees.

    >>> quantile(0.95, 2.0) > quantile(0.95, 2.5) > quantile(0.95, 3.0)
    True
    """
    below, above = math.floor(freedom), math.ceil(freedom)
    if below == above:
        return t_quantile(level, below)
    share = (1 / below - 1 / freedom) / (1 / below - 1 / above)
    return t_quantile(level, below) * (1 - share) + t_quantile(level, above) * share


def mean(values: Values, videos: Sequence[Hashable], *, unit: str = "points", level: float = 0.95) -> Estimate:
    """The mean of `values` (n,), clustered by `videos` (n,), with the t quantile that unequal videos ask for."""
    uncut = "share" if unit == "fraction" else unit
    plain = clustered_mean(values, videos, unit=uncut, level=level)
    if plain.value is None or plain.high is None:
        return replace(plain, unit=unit)
    margin = (plain.high - plain.value) * _widening(values, videos, level)
    low, high = plain.value - margin, plain.value + margin
    if unit == "fraction":
        low, high = max(low, 0.0), min(high, 1.0)
    return replace(plain, low=low, high=high, unit=unit)


def rate(values: Values, videos: Sequence[Hashable], *, level: float = 0.95) -> Estimate:
    """A share of `values` (n,) in [0, 1], with an interval that stays honest near 0 and 1.

    The standard error of the mean says how many independent items would be as sure, n = p(1 - p) / variance, and
    Wilson's interval (1927) is taken for these, as Korn & Graubard 1998 do for clustered samples. Where all values
    are the same they count as many items as there are videos: 50 passed probes do not say that the next one passes.

    >>> print(rate([1.0] * 20, range(20)))
    100.0 % [82.0, 100.0] (n=20)
    """
    plain = clustered_mean(values, videos, unit="share", level=level)
    if plain.value is None or plain.high is None:
        return replace(plain, unit="fraction")
    p, margin = plain.value, (plain.high - plain.value) * _widening(values, videos, level)
    t = quantile(level, freedom(_sizes(values, videos)))
    spread = max(p * (1 - p), 0.0)
    n = spread * (t / margin) ** 2 if margin > 0 else plain.clusters
    shrink = t * t / n
    centre, half = p + shrink / 2, math.sqrt(spread * shrink + shrink * shrink / 4)
    low, high = ((centre + side * half) / (1 + shrink) for side in (-1, 1))
    return replace(plain, low=max(low, 0.0), high=min(high, 1.0), unit="fraction")


def _widening(values: Values, videos: Sequence[Hashable], level: float) -> float:
    """The right t quantile over that of G - 1 degrees of freedom."""
    sizes = _sizes(values, videos)
    return quantile(level, freedom(sizes)) / t_quantile(level, len(sizes) - 1)


def _sizes(values: Values, videos: Sequence[Hashable]) -> NDArray[np.float64]:
    there = [video for value, video in zip(values, videos, strict=True) if value is not None and value == value]
    return np.bincount(numbered(there)).astype(float)
