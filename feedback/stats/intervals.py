"""Intervals that stay honest with few videos, of unequal sizes or weights, and near 0 and 1: `rate` and `mean`.

They are those of `estimates.clustered_mean` with three additions: an item may stand for several (`weights`), the
degrees of freedom are those of unequal videos, and a share never has an interval of zero width. Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlm_rlaif.feedback.stats.estimates import Estimate, Values, as_series, numbered, t_quantile

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
MANY = 1000
"""Above so many videos the degrees of freedom no longer matter."""
ALIKE = 0.3
"""How alike items of one video are taken to be (intraclass correlation), for the degrees of freedom alone. Verdicts
are mostly less alike; to assume more makes an interval wider, never narrower."""
_NOTHING = 1e-12
"""What is smaller is the rounding of a sum, and no spread."""


def degrees_of_freedom(cluster: NDArray[np.intp], weights: Floats | None = None) -> float:
    """Of a jackknife over the clusters (n,) of items of these weights (n,): G - 1 where they are equal, else fewer.

    Satterthwaite's, as Bell & McCaffrey 2002 and Imbens & Kolesar 2016 take them for clustered data: if the moves of
    the mean have the covariance K, their sum of squares has trace(K)^2 / trace(K^2) of them. K is that of items which
    are `ALIKE` within a cluster.

    >>> equal, one_large = np.repeat(np.arange(10), 4), np.repeat(np.arange(10), [30] + [4] * 9)
    >>> round(degrees_of_freedom(equal), 2), round(degrees_of_freedom(one_large), 2)
    (9.0, 1.42)
    """
    weight = np.ones(len(cluster)) if weights is None else weights
    sizes, squares = np.bincount(cluster, weight), np.bincount(cluster, weight**2)
    sizes, squares = sizes[sizes > 0], squares[sizes > 0]
    clusters, total = len(sizes), sizes.sum()
    if clusters < 2 or clusters > MANY:
        return max(1.0, clusters - 1.0)
    variance, share = squares * (1 - ALIKE) + sizes**2 * ALIKE, sizes / total
    shared = np.outer(share, variance)
    covariance = np.diag(variance) - shared - shared.T + variance.sum() * np.outer(share, share)
    covariance /= np.outer(total - sizes, total - sizes)
    return max(1.0, float(np.trace(covariance) ** 2 / (covariance**2).sum()))


def quantile(level: float, degrees: float) -> float:
    """`estimates.t_quantile` for degrees of freedom that are no whole number: between its neighbours, in 1 / degrees.

    >>> quantile(0.95, 2.0) > quantile(0.95, 2.5) > quantile(0.95, 3.0)
    True
    """
    below, above = math.floor(degrees), math.ceil(degrees)
    if below == above:
        return t_quantile(level, below)
    share = (1 / below - 1 / degrees) / (1 / below - 1 / above)
    return t_quantile(level, below) * (1 - share) + t_quantile(level, above) * share


def mean(
    values: Values, videos: Sequence[Hashable], *, weights: Floats | None = None, unit: str = "points",
    level: float = 0.95,
) -> Estimate:  # fmt: skip
    """The mean of `values` (n,), clustered by `videos` (n,), in which an item stands for `weights` (n,) of its kind.

    Leaving out video g, of weight W_g, moves the mean m by -sum_g w (x - m) / (W - W_g). Weight 0 is no item.
    """
    plain, spread = _clustered(values, videos, weights, unit)
    if plain.value is None or spread is None:
        return plain
    margin = quantile(level, spread.degrees) * spread.error
    low, high = plain.value - margin, plain.value + margin
    if unit == "fraction":
        low, high = max(low, 0.0), min(high, 1.0)
    return replace(plain, low=low, high=high)


def rate(
    values: Values, videos: Sequence[Hashable], *, weights: Floats | None = None, level: float = 0.95
) -> Estimate:  # fmt: skip
    """A share of `values` (n,) in [0, 1], with an interval that stays honest near 0 and 1; `weights` as in `mean`.

    The standard error of the mean says how many independent items would be as sure, n = p(1 - p) / variance, and
    Wilson's interval (1927) is taken for these, as Korn & Graubard 1998 do for clustered samples. Where all values
    are the same they count as many items as there are videos, fewer by Kish's factor (1965) where weights differ: 50
    passed probes do not say that the next one passes. For the same reason items that weigh differently are never
    taken for more than they are: those that weigh most may be all alike by chance.

    >>> print(rate([1.0] * 20, range(20)))
    100.0 % [82.0, 100.0] (n=20)
    """
    plain, spread = _clustered(values, videos, weights, "fraction")
    if plain.value is None or spread is None:
        return plain
    p, t = plain.value, quantile(level, spread.degrees)
    variance = max(p * (1 - p), 0.0)
    n = variance / max(spread.error, spread.least) ** 2 if spread.error > 0 else spread.alike
    shrink = t * t / n
    centre, half = p + shrink / 2, math.sqrt(variance * shrink + shrink * shrink / 4)
    low, high = ((centre + side * half) / (1 + shrink) for side in (-1, 1))
    return replace(plain, low=min(max(low, 0.0), p), high=max(min(high, 1.0), p))


class _Spread(NamedTuple):
    """How far a mean may be off."""

    error: float
    """Standard error; 0 where no video moves the mean."""
    least: float
    """Standard error of as many items that weigh the same and know nothing of each other; 0 where all do weigh so."""
    degrees: float
    """Of freedom."""
    alike: float
    """How many items it is of, where all are the same."""


def _clustered(
    values: Values, videos: Sequence[Hashable], weights: Floats | None, unit: str
) -> tuple[Estimate, _Spread | None]:  # fmt: skip
    """The mean without an interval, and its spread; None where there are fewer than two videos."""
    given = as_series("values", values)
    weight = np.ones(len(given)) if weights is None else weights
    counts = ~np.isnan(given) & (weight > 0)
    kept, weight = given[counts], weight[counts]
    cluster = numbered([video for video, counted in zip(videos, counts, strict=True) if counted])
    n, clusters = len(kept), int(cluster.max(initial=-1)) + 1
    plain = Estimate(
        value=None, low=None, high=None, n=n, clusters=clusters, missing=len(given) - n, unit=unit
    )  # fmt: skip
    if not n:
        return plain, None
    total, same = math.fsum(weight), float(np.ptp(kept)) < _NOTHING
    average = float(kept[0]) if same else math.fsum(weight * kept) / total
    plain = replace(plain, value=average)
    if clusters < 2:
        return plain, None
    alike = clusters * total**2 / (n * float(weight @ weight))
    degrees = degrees_of_freedom(cluster, weight)
    if same:
        return plain, _Spread(0.0, 0.0, degrees, alike)
    least = math.sqrt(float(weight @ (kept - average) ** 2) / total / n) if np.ptp(weight) > _NOTHING * total else 0.0
    moves = np.bincount(cluster, weight * (kept - average)) / (total - np.bincount(cluster, weight))
    error = math.sqrt((clusters - 1) / clusters * float(moves @ moves))
    return plain, _Spread(error if error > _NOTHING else 0.0, least, degrees, alike)
