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
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm_rlaif.feedback.stats.estimates import Estimate
from vlm_rlaif.feedback.stats.jackknife import Floats, Mask, jackknife, weighted_mean
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
    """theta. No interval where leaving out one video leaves nothing to correct by."""


def rogan_gladen(p: float, q0: float, q1: float) -> float:
    """theta, cut at 0 and 1; NaN where q0 + q1 is not above 1."""
    return min(max((p + q0 - 1) / (q0 + q1 - 1), 0.0), 1.0) if q0 + q1 > 1 else math.nan


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

    def theta(kept: Mask) -> float:
        q1, q0 = _mean(said, weights, yes & kept), _mean(1 - said, weights, no & kept)
        return math.nan if math.isnan(q0 + q1) else rogan_gladen(float(said[kept].mean()), q0, q1)

    q1, q0 = _mean(said, weights, yes), _mean(1 - said, weights, no)
    if q0 + q1 <= 1:
        raise UserError(
            f"The judge sees it in {100 * q1:.1f} % of the cases in which people do, and in {100 * (1 - q0):.1f} % of"
            " the others: from such a judge no rate follows."
        )
    return Corrected(
        rate=weighted_mean(said, np.ones(len(said)), clusters),
        sensitivity=weighted_mean(said[yes], weights[yes], _of(clusters, yes)),
        specificity=weighted_mean(1 - said[no], weights[no], _of(clusters, no)),
        corrected=jackknife(theta, clusters),
    )


def _mean(values: Floats, weights: Floats, kept: NDArray[np.bool_]) -> float:
    total = float(weights[kept].sum())
    return float(values[kept] @ weights[kept]) / total if total > 0 else math.nan


def _of(clusters: Sequence[Hashable], kept: NDArray[np.bool_]) -> list[Hashable]:
    return [cluster for cluster, counted in zip(clusters, kept, strict=True) if counted]
