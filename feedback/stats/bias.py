"""How a judge is biased, and whether it would say the same again: pure functions over verdicts, no table, no model.

Functions that return an array make one number per verdict or pair, NaN where it says nothing; `intervals.rate`
(shares) or `intervals.mean` (other numbers) then make the estimate, with a 95 % interval clustered by video. `p` is
how probable a judge finds it that response a is better, a tie counting half. `docs/bias.md` says how to read them.

>>> print(rate(named_first(["a", "b", "a", "tie"], ["ab", "ba", "ba", "ab"]), "uvwx").headline())
66.7 %
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlm_rlaif.feedback.stats.estimates import Estimate, numbered
from vlm_rlaif.feedback.stats.intervals import Floats, Mask, degrees_of_freedom, mean, quantile, rate
from vlm_rlaif.warehouse.errors import MissingExtra
from vlm_rlaif.warehouse.records import row_id

Names = Sequence[str] | NDArray[np.object_]
GAP_PARTS = 3
_DECIMALS = 12
"""What is smaller is the rounding of the two p, and no change."""
_CERTAIN = 15.0
"""Log-odds beyond which a fit has found something that separates all verdicts: it has no finite answer."""


def named_first(choice: Names, shown_order: Names) -> Floats:
    """Per verdict: 1 where it names the response that was shown first, 0 the second, NaN a tie. A fair judge's mean
    is 0.5, as every pair is shown in both orders."""
    said, order = np.asarray(choice), np.asarray(shown_order)
    return np.where(said == "tie", math.nan, ((said == "a") == (order == "ab")).astype(float))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The items of one third of the quality gap."""

    low: float
    high: float
    """The smallest and the largest gap among them."""
    estimate: Estimate


def by_gap(values: Floats, gap: Floats, videos: Sequence[Hashable], parts: int = GAP_PARTS) -> list[Part]:
    """The rate of `values` (n,) by thirds of a known or assumed quality gap (n,), the narrowest first.

    Equal gaps stay together, so there may be fewer parts. Items without a gap are left out.
    """
    there = ~np.isnan(gap)
    if not there.any():
        return []
    edges = np.unique(np.quantile(gap[there], np.arange(1, parts) / parts))
    place = np.where(there, np.searchsorted(edges, gap, side="right"), -1)
    found = []
    for number in np.unique(place[there]):
        inside = np.flatnonzero(place == number)
        found.append(
            Part(
                low=float(gap[inside].min()), high=float(gap[inside].max()),
                estimate=rate(values[inside], [videos[int(item)] for item in inside]),
            )
        )  # fmt: skip
    return found


def longer_won(choice: Names, length_a: ArrayLike, length_b: ArrayLike) -> Floats:
    """Per pair: 1 where the longer response wins, 0 the shorter, NaN for a tie or equal lengths."""
    said, difference = np.asarray(choice), np.asarray(length_a, float) - np.asarray(length_b, float)
    says_nothing = (said == "tie") | (difference == 0)
    return np.where(says_nothing, math.nan, ((said == "a") == (difference > 0)).astype(float))


def length_balanced(longer: Floats, ids: Sequence[str]) -> Mask:
    """Which pairs are kept so that the longer response wins exactly as often as the shorter: (n,) bool.

    `longer` is `longer_won`. Of the more frequent kind, pairs go in the order of a hash of their `ids`; ties and
    pairs of one length stay.

    >>> length_balanced(np.array([1.0, 1.0, 0.0, math.nan]), ["p", "q", "r", "s"]).tolist()
    [True, False, True, True]
    """
    won, lost = np.flatnonzero(longer == 1), np.flatnonzero(longer == 0)
    many, few = (won, lost) if len(won) > len(lost) else (lost, won)
    kept = np.ones(len(longer), dtype=bool)
    kept[sorted(many, key=lambda item: row_id("length balanced", ids[int(item)]))[len(few) :]] = False
    return kept


def length_coefficient(
    p: Floats, length_a: ArrayLike, length_b: ArrayLike, videos: Sequence[Hashable], margin: Floats | None = None,
    *, weights: Floats | None = None, level: float = 0.95,
) -> Estimate:  # fmt: skip
    """How many log-odds a judge adds to a response for every doubling of its length: (n,) each.

    log-odds(p) = length * log2(length_a / length_b) + quality * margin, by a binomial GLM, which takes soft p,
    without an intercept: a and b are interchangeable. `margin` says how much better a is than b in truth, or as
    somebody else says, in [-1, 1]; with it the coefficient is what length does to responses that are equally good
    (Dubois et al. 2024, 2404.04475). Pairs without a margin are left out; `weights` (n,) say how many pairs one that
    has it stands for.

    The interval is clustered by the jackknife of the fit, in its linear form (CV3L of MacKinnon, Nielsen & Webb
    2024, 2406.00650: leaving cluster g out moves the coefficients by -(H - H_g)^-1 s_g, with its scores s_g and its
    part H_g of the information H), and the t quantile of `intervals.degrees_of_freedom`: few videos make the
    sandwich far too narrow. No value where lengths never differ, cannot be told from the margin, or separate all
    verdicts.
    """
    lengths = np.maximum(np.asarray([length_a, length_b], float), 1.0)
    columns = [np.log2(lengths[0] / lengths[1]), *([] if margin is None else [margin])]
    x = np.column_stack(columns)
    weight = np.ones(len(x)) if weights is None else weights
    kept = np.isfinite(x).all(axis=1) & np.isfinite(p) & (weight > 0)
    x, label, weight = x[kept], p[kept], weight[kept]
    cluster = numbered([video for video, is_in in zip(videos, kept, strict=True) if is_in])
    clusters = int(cluster.max(initial=-1)) + 1
    nothing = Estimate(
        value=None, low=None, high=None, n=len(x), clusters=clusters, missing=len(kept) - len(x), unit="log-odds"
    )
    used = np.abs(x).max(axis=0, initial=0.0) > 0
    if not used[0]:
        return nothing
    x = x[:, used]
    beta = _fit(x, label, weight)
    if beta is None:
        return nothing
    if clusters < 2:
        return replace(nothing, value=float(beta[0]))
    moves = _without_each(x, label, weight, cluster, beta)
    if moves is None:
        return nothing
    spread = math.sqrt((clusters - 1) / clusters * float(moves[:, 0] @ moves[:, 0]))
    half = quantile(level, degrees_of_freedom(cluster, weight)) * spread
    return replace(nothing, value=float(beta[0]), low=float(beta[0]) - half, high=float(beta[0]) + half)


def _fit(x: Floats, label: Floats, weight: Floats) -> Floats | None:
    """Coefficients (k,) of a logistic regression without intercept; None where there is no finite answer."""
    try:
        from statsmodels.genmod.families import Binomial
        from statsmodels.genmod.generalized_linear_model import GLM
    except ModuleNotFoundError:
        raise MissingExtra("Bias by length", "feedback") from None
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            fitted = GLM(label, x, family=Binomial(), var_weights=weight).fit(maxiter=50)
        except (ValueError, np.linalg.LinAlgError):
            return None
    beta = np.asarray(fitted.params, float)
    if not (fitted.converged and np.isfinite(beta).all() and np.abs(x @ beta).max() < _CERTAIN):
        return None
    return beta


def _without_each(
    x: Floats, label: Floats, weight: Floats, cluster: NDArray[np.intp], beta: Floats
) -> Floats | None:  # fmt: skip
    """How the coefficients move when each cluster is left out: (G, k); None where they cannot be told without one."""
    clusters, k = int(cluster.max()) + 1, x.shape[1]
    mu = 0.5 * (1 + np.tanh(x @ beta / 2))
    scores, information = np.zeros((clusters, k)), np.zeros((clusters, k, k))
    np.add.at(scores, cluster, x * (weight * (label - mu))[:, None])
    np.add.at(information, cluster, (weight * mu * (1 - mu))[:, None, None] * x[:, :, None] * x[:, None, :])
    rest = information.sum(axis=0) - information
    if (np.linalg.cond(rest) > 1e10).any():
        return None
    moves: Floats = -np.linalg.solve(rest, scores[:, :, None])[:, :, 0]
    return moves


def self_preference(
    p: Floats, own: Names, expected: Floats, videos: Sequence[Hashable], weights: Floats | None = None
) -> Estimate:  # fmt: skip
    """How much more often the judge's own response wins than somebody else says it does, in points.

    `own` (n,) names the side of the judge's own weights, `a` or `b` (anything else: neither or both, left out);
    `p` and `expected` (n,) say how probable it is that a is better, as the judge and as people, the truth or another
    judge say; `weights` (n,) how many pairs each stands for. Zero is fair: a judge may be right to like its own.
    """
    side = np.asarray(own)
    sign = np.select([side == "a", side == "b"], [1.0, -1.0], math.nan)
    return mean(100 * sign * (p - expected), videos, weights=weights)


def changed(before: Names, after: Names) -> Floats:
    """Per pair: 1 where the verdict is another one, a tie included, else 0."""
    found: Floats = (np.asarray(before) != np.asarray(after)).astype(float)
    return found


def strength_gain(before: Floats, after: Floats) -> Floats:
    """Per pair: by how much |2p - 1| grew; unlike the change of p it knows nothing of which response is called a."""
    gain: Floats = np.round(np.abs(2 * after - 1) - np.abs(2 * before - 1), _DECIMALS) + 0.0
    return gain
