"""Do two judges say the same? Agreement, Cohen's kappa, Krippendorff's alpha, confusion, with intervals by video.

Verdicts are numbers in the order a < tie < b. Pure: arrays go in, estimates come out. Kappa is scikit-learn's, with
the weights of the strata; alpha that of the package `krippendorff`, over the verdicts as they are (it knows no
weights): it says how far people can be relied upon, where kappa and agreement say what holds for all pairs.

>>> judge, people = codes(["a", "b", "tie", "a"]), codes(["a", "b", "both_bad", "b"])
>>> print(raw_agreement(judge, people, np.ones(4), "uvwx"))
75.0 % [13.1, 98.4] (n=4)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from vlm_rlaif.feedback.stats.estimates import Estimate
from vlm_rlaif.feedback.stats.intervals import Floats, Mask, rate
from vlm_rlaif.feedback.stats.jackknife import jackknife
from vlm_rlaif.warehouse.errors import MissingExtra

Codes = NDArray[np.intp]
"""Verdicts: 0 = a, 1 = tie, 2 = b."""
CHOICES = ("a", "tie", "b")
_CODE = {"a": 0, "tie": 1, "both_bad": 1, "b": 2}
LEVELS = ("nominal", "ordinal")
"""What alpha counts as disagreement. `nominal`: any two verdicts alike; `ordinal`: a and b more than a and a tie."""


def codes(choices: Sequence[str]) -> Codes:
    """Verdicts as numbers; `both_bad` is a tie.

    >>> codes(["a", "both_bad", "b"]).tolist()
    [0, 1, 2]
    """
    return np.array([_CODE[choice] for choice in choices], dtype=np.intp)


def raw_agreement(one: Codes, other: Codes, weights: Floats, clusters: Sequence[Hashable]) -> Estimate:
    """Share of the items with the same verdict; (n,) each."""
    return rate((one == other).astype(float), clusters, weights=weights)


def accuracy(judge: Codes, known: Codes, weights: Floats, clusters: Sequence[Hashable]) -> Estimate:
    """How often a judge names the better response: a tie counts half, and what is known to be a tie is left out."""
    right = correctness(judge, known)
    counts = ~np.isnan(right)
    videos = [video for video, counted in zip(clusters, counts, strict=True) if counted]
    return rate(right[counts], videos, weights=weights[counts])


def correctness(judge: Codes, known: Codes) -> Floats:
    """Does a verdict name the better response? 1 yes, 0 no, 1/2 a tie; NaN where neither is known to be better.

    >>> correctness(codes(["a", "tie", "b", "a"]), codes(["a", "b", "a", "tie"])).tolist()
    [1.0, 0.5, 0.0, nan]
    """
    right = np.where(judge == 1, 0.5, (judge == known).astype(float))
    return np.where(known == 1, math.nan, right)


def confusion(one: Codes, other: Codes, weights: Floats | None = None) -> Floats:
    """(3, 3): how many items, or how much weight, have verdict i of `one` and verdict j of `other`."""
    return np.bincount(3 * one + other, weights, minlength=9).astype(float).reshape(3, 3)


def cohen_kappa(one: Codes, other: Codes, weights: Floats, clusters: Sequence[Hashable]) -> Estimate:
    """Agreement above chance (Cohen 1960): 0 = two coins with these habits, 1 = always; no value where nobody varies.

    >>> judge, people = codes(["a"] * 20 + ["b"] * 5 + ["a"] * 10 + ["b"] * 15), codes(["a"] * 25 + ["b"] * 25)
    >>> print(cohen_kappa(judge, people, np.ones(50), range(50)).headline())
    0.400 kappa
    """

    def kappa(kept: Mask) -> float:
        return kappa_of(confusion(one[kept], other[kept], weights[kept]))

    return jackknife(kappa, clusters, weights=weights, unit="kappa", bounds=(-1.0, 1.0))


def kappa_of(table: Floats) -> float:
    """Cohen's kappa of a confusion matrix (k, k); NaN where it is undefined."""
    try:
        from sklearn.metrics import cohen_kappa_score
    except ModuleNotFoundError:
        raise MissingExtra("Agreement", "feedback") from None
    if np.count_nonzero(table) == np.count_nonzero(np.diag(table)) < 2:  # both always say the same, or nothing
        return math.nan
    one, other = np.indices(table.shape).reshape(2, -1)
    return float(cohen_kappa_score(one, other, sample_weight=table.ravel()))


def verdict_counts(units: Sequence[Hashable], verdicts: Codes) -> tuple[list[Hashable], Floats]:
    """The units in their order, and how many of each verdict each has: (u, 3)."""
    place = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    row = np.array([place[unit] for unit in units], dtype=np.intp)
    return list(place), np.bincount(3 * row + verdicts, minlength=3 * len(place)).astype(float).reshape(-1, 3)


def pairwise_agreement(counts: Floats, weights: Floats, clusters: Sequence[Hashable]) -> Estimate:
    """How often two people who judged the same unit agree: (u, 3) verdicts, units with two or more of them.

    The mean over units of the share of pairs of people that agree (Fleiss 1971).
    """
    several = counts.sum(axis=1) > 1
    kept, people = counts[several], counts[several].sum(axis=1)
    agreeing = (kept * (kept - 1)).sum(axis=1) / (people * (people - 1))
    videos = [video for video, counted in zip(clusters, several, strict=True) if counted]
    return rate(agreeing, videos, weights=weights[several])


def krippendorff_alpha(counts: Floats, clusters: Sequence[Hashable], level: str = "nominal") -> Estimate:
    """Krippendorff's alpha of units with any number of people each: counts (u, 3), clusters (u,).

    1 = always the same, 0 = as if everybody drew from one bag, below: they contradict each other. Units with fewer
    than two verdicts have nothing to say. No value where nobody varies.
    """
    several = counts.sum(axis=1) > 1
    kept = counts[several]
    videos = [video for video, counted in zip(clusters, several, strict=True) if counted]
    return jackknife(lambda mask: alpha_of(kept[mask], level), videos, unit="alpha", bounds=(-1.0, 1.0))


def alpha_of(counts: Floats, level: str) -> float:
    """Krippendorff's alpha of verdict counts (u, 3); NaN where it is undefined."""
    try:
        import krippendorff
    except ModuleNotFoundError:
        raise MissingExtra("Agreement", "feedback") from None
    if np.count_nonzero(counts.sum(axis=0)) < 2:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(krippendorff.alpha(value_counts=counts.astype(int), level_of_measurement=level))
