"""Intervals of any statistic, clustered by video: the jackknife, which leaves out one video at a time.

Kappa, alpha and corrected rates are smooth functions of means, so the spread of their values with one video left out
gives their standard error (Efron & Tibshirani 1993, chapter 11). No number is drawn, so the same rows always give the
same interval; the bootstrap would need a seed and ten times the work for the same. For a mean of items that weigh the
same it is `estimates.clustered_mean`, and above `MOST_GROUPS` videos several are left out together, which estimates
the same (delete-a-group jackknife, Kott 2001).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vlm_rlaif.feedback.stats.estimates import Estimate, numbered, t_quantile

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
LEVEL = 0.95
MOST_GROUPS = 200
"""How often a statistic is computed anew, at most. With so many its error is known to about 5 %."""


def jackknife(
    statistic: Callable[[Mask], float],
    clusters: Sequence[Hashable],
    *,
    unit: str = "fraction",
    bounds: tuple[float, float] = (0.0, 1.0),
    level: float = LEVEL,
) -> Estimate:
    """A statistic of items with its interval, clustered by `clusters` (n,) and cut at `bounds`.

    `statistic` takes which items are kept, (n,) bool, and is NaN where it is undefined. The estimate has no interval
    where there is one cluster, or where the statistic is undefined without one of them.

    >>> right = np.array([1.0, 1.0, 0.0, 1.0, 0.0])
    >>> print(jackknife(lambda kept: float(right[kept].mean()), ["u", "u", "v", "v", "w"]))
    60.0 % [0.0, 100.0] (n=5)
    """
    cluster = numbered(clusters)
    n, videos = len(cluster), int(cluster.max(initial=-1)) + 1
    value = statistic(np.ones(n, dtype=bool)) if n else math.nan
    if math.isnan(value):
        return Estimate(value=None, low=None, high=None, n=n, clusters=videos, unit=unit)
    groups = min(videos, MOST_GROUPS)
    without = [statistic(cluster % groups != group) for group in range(groups)] if groups > 1 else [math.nan]
    if np.isnan(without).any():
        return Estimate(value=value, low=None, high=None, n=n, clusters=videos, unit=unit)
    moves = np.array(without) - value
    margin = t_quantile(level, groups - 1) * math.sqrt((groups - 1) / groups * float(moves @ moves))
    low, high = max(value - margin, bounds[0]), min(value + margin, bounds[1])
    return Estimate(value=value, low=low, high=high, n=n, clusters=videos, unit=unit)


def weighted_mean(values: Floats, weights: Floats, clusters: Sequence[Hashable]) -> Estimate:
    """The mean of `values` (n,), fractions, in which an item stands for `weights` (n,) of its kind.

    Where all are 0, or all are 1, no item moves the mean, and the interval is that of as many throws of a coin as
    there are videos (Clopper & Pearson 1934): after ten videos without a mistake the next may well have one.

    >>> print(weighted_mean(np.array([1.0, 0.0]), np.array([3.0, 1.0]), ["u", "v"]).headline())
    75.0 %
    >>> print(weighted_mean(np.ones(10), np.ones(10), range(10)))
    100.0 % [69.2, 100.0] (n=10)
    """

    def mean(kept: Mask) -> float:
        total = float(weights[kept].sum())
        return float(values[kept] @ weights[kept]) / total if total > 0 else math.nan

    found = jackknife(mean, clusters)
    if found.low is None or found.value not in (0.0, 1.0):
        return found
    surely = ((1 - LEVEL) / 2) ** (1 / found.clusters)
    return replace(found, low=surely) if found.value else replace(found, high=1 - surely)
