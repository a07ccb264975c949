"""What a rate would be if people had judged every pair: a judge's rate, corrected by what an audit says of the judge.

A judge that is wrong in a tenth of the cases turns a true win rate of 80 % into 74 %. With q1, how often it sees
what people see (sensitivity), and q0, how often it sees nothing where people see nothing (specificity), the true rate
is theta = (p + q0 - 1) / (q0 + q1 - 1) (Rogan & Gladen 1978; for judges arXiv:2511.21140). p, q0 and q1 are all
estimated: leaving out one video moves all three at once, so the interval carries the uncertainty of each, and what
they share.

>>> round(rogan_gladen(0.74, q0=0.9, q1=0.9), 6)
0.8
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vlm_rlaif.feedback.stats.estimates import Estimate
from vlm_rlaif.feedback.stats.intervals import Floats, Mask, rate
from vlm_rlaif.feedback.stats.jackknife import jackknife
from vlm_rlaif.warehouse.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """A rate as a judge sees it, and as people would."""

    rate: Estimate
    """p, of all pairs."""
    sensitivity: Estimate
    """q1, of the audited pairs."""
    specificity: Estimate
    """q0, of the audited pairs."""
    corrected: Estimate
    """theta, cut at 0 and 1. No interval where leaving out one video leaves nothing to correct by."""


def rogan_gladen(p: float, q0: float, q1: float) -> float:
    """theta, which may lie outside [0, 1] where p, q0 and q1 are estimates; NaN where q0 + q1 is not above 1."""
    return (p + q0 - 1) / (q0 + q1 - 1) if q0 + q1 > 1 else math.nan


def corrected_rate(said: Floats, known: Floats, weights: Floats, clusters: Sequence[Hashable]) -> Corrected:
    """Correct how often something happens: (n,) each, one entry per pair of the judge.

    `said` is 1 where the judge says that it happens, else 0; `known` the same of people, NaN where nobody looked;
    `weights` how many pairs one that people looked at stands for.

    Raises `UserError` where people always saw it, or never, and where q0 + q1 is not above 1: then the judge knows no
    more about it than a coin, and no rate follows from what it says.
    """
    yes, no = known == 1, known == 0
    if not yes.any() or not no.any():
        looked = int((yes | no).sum())
        raise UserError(f"People saw it {'always' if yes.any() else 'never'} in the {looked:,} pairs they looked at.")

    q1, q0 = _mean(said, weights, yes), _mean(1 - said, weights, no)
    if q0 + q1 <= 1:
        raise UserError(
            f"The judge sees it in {100 * q1:.1f} % of the cases in which people do, and in {100 * (1 - q0):.1f} % of"
            " the others: from such a judge no rate follows."
        )
    flawless = not (yes & (said == 0)).any() or not (no & (said == 1)).any()
    return Corrected(
        rate=rate(said, clusters),
        sensitivity=rate(said[yes], _of(clusters, yes), weights=weights[yes]),
        specificity=rate(1 - said[no], _of(clusters, no), weights=weights[no]),
        corrected=(_doubted if flawless else _theta)(said, known, weights, clusters),
    )


def _theta(
    said: Floats, known: Floats, weights: Floats, clusters: Sequence[Hashable], real: int | None = None
) -> Estimate:  # fmt: skip
    """theta of items of which the first `real` (all, when left out) are pairs of the judge."""
    yes, no, counts = known == 1, known == 0, np.arange(len(said)) < (len(said) if real is None else real)

    def theta(kept: Mask) -> float:
        q1, q0 = _mean(said, weights, yes & kept), _mean(1 - said, weights, no & kept)
        return math.nan if math.isnan(q0 + q1) else rogan_gladen(float(said[kept & counts].mean()), q0, q1)

    return jackknife(theta, clusters, weights=np.where(yes | no, weights, 0.0))


def _doubted(said: Floats, known: Floats, weights: Floats, clusters: Sequence[Hashable]) -> Estimate:
    """theta of a judge without a mistake of one kind: that none was seen is not that none is made. For the interval
    two more pairs are looked at where people see it, and two where they do not, and in each the judge is right once
    (Lang & Reiczigel 2014)."""
    plain, looked = _theta(said, known, weights, clusters), ~np.isnan(known)
    if plain.value is None or plain.low is None:
        return plain
    more = _theta(
        np.concatenate([said, [1.0, 0.0, 0.0, 1.0]]), np.concatenate([known, [1.0, 1.0, 0.0, 0.0]]),
        np.concatenate([weights, np.full(4, weights[looked].mean())]), [*clusters, *(object() for _ in range(4))],
        len(said),
    )  # fmt: skip
    if more.low is None or more.high is None:
        return plain
    return replace(plain, low=min(more.low, plain.value), high=max(more.high, plain.value))


def _mean(values: Floats, weights: Floats, kept: Mask) -> float:
    total = float(weights[kept].sum())
    return float(values[kept] @ weights[kept]) / total if total > 0 else math.nan


def _of(clusters: Sequence[Hashable], kept: Mask) -> list[Hashable]:
    return [cluster for cluster, counted in zip(clusters, kept, strict=True) if counted]
