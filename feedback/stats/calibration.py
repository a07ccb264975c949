"""Is a probability of 0.8 right eight times in ten? Calibration of a judge's p: how far off it is, and mending it.

Which response is a and which b is decided by their ids and means nothing. So everything here looks at a pair from the
side that the judge favours: its confidence max(p, 1 - p), held against how often that side is better, a tie counting
half. Whatever is fitted says the same of both sides: f(1 - p) = 1 - f(p), and f(0.5) = 0.5. Pure: no table, no model.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vlm_rlaif.feedback.stats.estimates import Estimate
from vlm_rlaif.feedback.stats.intervals import Floats, Mask, rate
from vlm_rlaif.warehouse.errors import MissingExtra
from vlm_rlaif.warehouse.records import row_id

METHODS = ("temperature", "isotonic")
BINS = 10
FOLDS = 5
DECIMALS = 6
"""Of fitted parameters, so that two machines fit the same ones."""
CUTS = 10_000
"""Strengths are cut at multiples of its inverse, so that they can be typed."""
_CERTAIN = 1e-6
"""No p is taken to be nearer to 0 or 1."""


class Calibrator(Protocol):
    """A symmetric function from p to calibrated p."""

    def __call__(self, p: Floats) -> Floats: ...

    def parameters(self) -> dict[str, object]:
        """What it is known by, for JSON."""
        ...


@dataclass(frozen=True, slots=True)
class Temperature:
    """p' = sigmoid(slope * logit(p)): one number (Guo et al. 2017, with slope = 1 / temperature).

    A slope below 1 makes a judge more modest; 0, that of a judge which is right no more often than a coin, makes
    every p 0.5.

    >>> Temperature(0.5)(np.array([0.9, 0.1, 0.5])).round(3).tolist()
    [0.75, 0.25, 0.5]
    """

    slope: float

    def __call__(self, p: Floats) -> Floats:
        return _sigmoid(self.slope * _logit(p))

    def parameters(self) -> dict[str, object]:
        return {"slope": self.slope}


@dataclass(frozen=True, slots=True)
class Isotonic:
    """A step-wise linear function that never falls, through these points of confidence; mirrored below 0.5."""

    confidence: tuple[float, ...]
    right: tuple[float, ...]

    def __call__(self, p: Floats) -> Floats:
        side = np.sign(p - 0.5)
        return 0.5 + side * (np.interp(np.maximum(p, 1 - p), self.confidence, self.right) - 0.5)

    def parameters(self) -> dict[str, object]:
        return {"confidence": list(self.confidence), "right": list(self.right)}


def fit(method: str, p: Floats, known: Floats, weights: Floats) -> Calibrator:
    """Fit on pairs: the judge's p, what is known (1, 0, 0.5 for a tie; soft values count too), weights; (n,) each."""
    confidence, right = _folded(p, known)
    if method == "isotonic":
        return _isotonic(confidence, right, weights)
    return _temperature(confidence, right, weights)


def _temperature(confidence: Floats, right: Floats, weights: Floats) -> Temperature:
    """The slope of least log-loss. Targets are drawn in a little, as if one more pair of each kind had been seen
    (Platt 1999), so that a judge without a mistake gets a finite slope."""
    try:
        from scipy.optimize import brentq
    except ModuleNotFoundError:
        raise MissingExtra("Calibration", "feedback") from None
    n = len(right)
    logit, target = _logit(confidence), (right * n + 1) / (n + 2)

    def falls(slope: float) -> float:
        """The derivative of the log-loss, which rises with the slope."""
        return float(weights @ (logit * (_sigmoid(slope * logit) - target)))

    if falls(0.0) >= 0:
        return Temperature(0.0)
    steepest = 1.0
    while falls(steepest) < 0:
        steepest *= 2
    return Temperature(round(brentq(falls, 0.0, steepest), DECIMALS))


def _isotonic(confidence: Floats, right: Floats, weights: Floats) -> Isotonic:
    """Least squares among functions that never fall and never lie below 0.5."""
    try:
        from sklearn.isotonic import IsotonicRegression
    except ModuleNotFoundError:
        raise MissingExtra("Calibration", "feedback") from None
    fitted = IsotonicRegression(y_min=0.5, y_max=1.0).fit(confidence, right, sample_weight=weights)
    points = (fitted.X_thresholds_, fitted.y_thresholds_)
    return Isotonic(*(tuple(round(float(value), DECIMALS) for value in each) for each in points))


def held_out(method: str, p: Floats, known: Floats, weights: Floats, videos: Sequence[Hashable]) -> Floats:
    """Calibrated p (n,), each from a fit on the pairs of the other videos: five folds, drawn by hash."""
    names = sorted({*videos}, key=lambda video: row_id("fold", str(video)))
    fold_of = {video: place % FOLDS for place, video in enumerate(names)}
    fold = np.array([fold_of[video] for video in videos])
    made = np.empty(len(p))
    for number in range(FOLDS):
        out = fold == number
        if out.any():
            made[out] = fit(method, p[~out], known[~out], weights[~out])(p[out])
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """A point of the reliability diagram: pairs of similar confidence."""

    confidence: float
    """Their mean."""
    right: Estimate
    """How often the favoured side is better."""
    share: float
    """Of all weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How far a judge's p is off."""

    ece: float
    """Expected calibration error: the mean distance of confidence and truth over bins of equal mass. The default:
    judges crowd at 0.5 or at 1, which leaves bins of equal width almost empty."""
    by_chance: float
    """What this error would be of a perfectly calibrated judge with as many pairs: few pairs make it large."""
    ece_equal_width: float
    brier: Estimate
    """Mean squared error of p; 0.25 is that of always saying 0.5 where nothing is a tie."""
    bins: tuple[Bin, ...]
    """Of equal mass."""


def calibration(p: Floats, known: Floats, weights: Floats, clusters: Sequence[Hashable]) -> Calibration:
    """Measure a judge's p against what is known: (n,) each."""
    confidence, right = _folded(p, known)
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, BINS + 1)))
    bins = _bins(confidence, right, weights, clusters, edges)
    even = _bins(confidence, right, weights, clusters, np.linspace(0.5, 1, BINS + 1))
    return Calibration(
        ece=_ece(bins), by_chance=_by_chance(confidence, weights, edges), ece_equal_width=_ece(even),
        brier=rate((p - known) ** 2, clusters, weights=weights), bins=tuple(bins),
    )  # fmt: skip


def _ece(bins: Sequence[Bin]) -> float:
    return sum(one.share * abs(one.confidence - (one.right.value or 0.0)) for one in bins)


def _bins(
    confidence: Floats, right: Floats, weights: Floats, clusters: Sequence[Hashable], edges: Floats
) -> list[Bin]:  # fmt: skip
    made = []
    for inside in _places(confidence, edges):
        videos = [clusters[int(item)] for item in inside]
        weight = weights[inside]
        made.append(
            Bin(
                confidence=float(np.average(confidence[inside], weights=weight)),
                right=rate(right[inside], videos, weights=weight),
                share=float(weight.sum() / weights.sum()),
            )
        )
    return made


def _places(confidence: Floats, edges: Floats) -> list[NDArray[np.intp]]:
    """The items of every bin that has some; an edge belongs to the bin above it, the last one to the last bin."""
    place = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, max(len(edges) - 2, 0))
    return [np.flatnonzero(place == number) for number in np.unique(place)]


def _by_chance(confidence: Floats, weights: Floats, edges: Floats) -> float:
    """The mean distance that chance alone makes: sqrt(2 / pi) standard errors in each bin, of items that know nothing
    of each other. Pairs of one video do, so it is rather too small than too large."""
    expected = 0.0
    for inside in _places(confidence, edges):
        weight, p = weights[inside], confidence[inside]
        variance = float(weight**2 @ (p * (1 - p))) / float(weight.sum()) ** 2
        expected += float(weight.sum() / weights.sum()) * math.sqrt(2 / math.pi * variance)
    return expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is kept of a judge's labels above a strength."""

    min_strength: float
    """As in `--min-strength`: |2p - 1| is at least this."""
    coverage: float
    """Share of all preferences that are kept; ties never are."""
    accuracy: Estimate
    """How often a kept label names the better response; pairs without a better one are left out."""


def accuracy_coverage(
    p: Floats, decided: Mask, known: Floats, weights: Floats,
    clusters: Sequence[Hashable],
) -> list[Kept]:  # fmt: skip
    """From everything that the judge decided down to the surest tenth; `decided` False where it says tie, (n,) each.

    `known` is 1, 0, or 0.5 where neither response is better.
    """
    if not decided.any():
        return []
    strength, right = np.abs(2 * p - 1), ((p > 0.5) == (known > 0.5)).astype(float)
    cuts = np.array([0.0, *np.quantile(strength[decided], np.arange(1, 10) / 10)])
    curve = []
    for cut in np.unique(np.floor(cuts * CUTS) / CUTS):
        kept = decided & (strength >= cut)
        counts = kept & (known != 0.5)
        videos = [video for video, counted in zip(clusters, counts, strict=True) if counted]
        curve.append(
            Kept(
                min_strength=float(cut), coverage=float(weights[kept].sum() / weights.sum()),
                accuracy=rate(right[counts], videos, weights=weights[counts]),
            )
        )  # fmt: skip
    return curve


def threshold_for(accuracy: float, curve: Sequence[Kept]) -> Kept | None:
    """The point of the curve that keeps most and is as accurate as wanted; None where no point is.

    It looks at tenths of the labels rather than at every strength: the best of many noisy numbers is a lucky one.
    """
    return next((kept for kept in curve if kept.accuracy.value is not None and kept.accuracy.value >= accuracy), None)


def _folded(p: Floats, known: Floats) -> tuple[Floats, Floats]:
    """Confidence in the favoured side, and whether that side is better; p = 0.5 favours none. 1 - p is not exact: it
    is rounded, so that no pair changes its bin with its side."""
    right = np.where(p > 0.5, known, 1 - known)
    return np.maximum(p, 1 - p).round(9), np.where(p == 0.5, 0.5, right)


def _logit(p: Floats) -> Floats:
    inside = np.clip(p, _CERTAIN, 1 - _CERTAIN)
    return np.log(inside) - np.log1p(-inside)


def _sigmoid(x: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(x / 2))
