"""Intervals of any statistic, clustered by video: the jackknife, which leaves out one video at a time.

Kappa, alpha and corrected rates are smooth functions of means, so the spread of their values with one video left out
gives their standard error (Efron & Tibshirani 1993, chapter 11). No number is drawn, so the same rows always give the
same interval; the bootstrap would need a seed and ten times the work for the same. For a mean it is
`intervals.mean`, and above `MOST_GROUPS` videos several are left out together, which estimates the same
(delete-a-group jackknife, Kott 2001).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from vlm_rlaif.feedback.stats.estimates import Estimate, numbered
from vlm_rlaif.feedback.stats.intervals import Floats, Mask, degrees_of_freedom, quantile

LEVEL = 0.95
MOST_GROUPS = 200
"""How often a statistic is computed anew, at most. With so many its error is known to about 5 %."""


def jackknife(
    statistic: Callable[[Mask], float],
    clusters: Sequence[Hashable],
    *,
    weights: Floats | None = None,
    unit: str = "fraction",
    bounds: tuple[float, float] = (0.0, 1.0),
    level: float = LEVEL,
) -> Estimate:
    """A statistic of items with its interval, clustered by `clusters` (n,) and cut at `bounds`.

    `statistic` takes which items are kept, (n,) bool, and is NaN where it is undefined; nothing that it says is cut
    before the end, or a statistic near a bound would seem not to move. `weights` (n,) are those that it gives the
    items: they decide the degrees of freedom. The estimate has no interval where there is one cluster, or where the
    statistic is undefined without one of them.

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
    group = cluster % groups
    without = [statistic(group != left_out) for left_out in range(groups)] if groups > 1 else [math.nan]
    inside = min(max(value, bounds[0]), bounds[1])
    if np.isnan(without).any():
        return Estimate(value=inside, low=None, high=None, n=n, clusters=videos, unit=unit)
    moves = np.array(without) - value
    error = math.sqrt((groups - 1) / groups * float(moves @ moves))
    margin = quantile(level, degrees_of_freedom(group, weights)) * error
    low, high = (min(max(end, bounds[0]), bounds[1]) for end in (value - margin, value + margin))
    return Estimate(value=inside, low=low, high=high, n=n, clusters=videos, unit=unit)
