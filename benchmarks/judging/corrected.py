"""Do the intervals of corrected rates, kappa and alpha hold the truth? Audits of judges whose errors are known.

    python benchmarks/judging/corrected.py [--small]

A run draws 200 videos with four pairs each. How often something happens differs from video to video. The judge sees
it with q1 where it happens and with 1 - q0 where it does not, less well where it is unsure. 200 pairs are audited: as
many unsure ones as sure ones, though fewer are unsure, so they are weighted back; two people judge 100 of them, each
wrong now and then in the second part. `corrected_coverage` is the least of the settings, of 100.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm_rlaif.feedback.stats.agreement import alpha_of, cohen_kappa, confusion, kappa_of, krippendorff_alpha
from vlm_rlaif.feedback.stats.correction import corrected_rate
from vlm_rlaif.feedback.stats.estimates import Estimate

VIDEOS, PAIRS = 200, 4
AUDITED = 200
RUNS = {False: 1000, True: 50}
UNSURE = 0.3
"""Share of pairs of which the judge is unsure."""
SETTINGS = ((0.5, 0.85, 0.8), (0.2, 0.85, 0.8), (0.8, 0.7, 0.75), (0.4, 0.65, 0.7))
"""(true rate, q0, q1): from a good judge to one that is little better than a coin."""
PERSON = 0.85
"""How often a person sees what is so; otherwise any of the three verdicts."""
Ints = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Pairs:
    """What happens, what the judge says, and of which pairs it is unsure; (n,) each."""

    videos: Ints
    happens: Ints
    said: Ints
    unsure: NDArray[np.bool_]


def draw(rng: np.random.Generator, videos: int, rate: float, q0: float, q1: float) -> Pairs:
    """Videos with four pairs each. Half of the judge's lead over a coin is lost where it is unsure, and made up for
    where it is sure, so that q0 and q1 hold on the whole."""
    of = np.repeat(np.arange(videos), PAIRS)
    happens = rng.random(len(of)) < np.repeat(rng.beta(4 * rate, 4 * (1 - rate), videos), PAIRS)
    unsure = rng.random(len(of)) < UNSURE
    lead = np.where(unsure, 0.5, (1 - 0.5 * UNSURE) / (1 - UNSURE))
    right = rng.random(len(of)) < 0.5 + lead * (np.where(happens, q1, q0) - 0.5)
    return Pairs(of, happens.astype(np.intp), np.where(right, happens, ~happens).astype(np.intp), unsure)


def audit(rng: np.random.Generator, pairs: Pairs) -> tuple[Ints, NDArray[np.float64]]:
    """Which pairs people look at, half of them unsure ones, and how many pairs each stands for."""
    chosen, weights = [], []
    for stratum in (pairs.unsure, ~pairs.unsure):
        there = np.flatnonzero(stratum)
        picked = rng.choice(there, min(AUDITED // 2, len(there)), replace=False)
        chosen.append(picked)
        weights.append(np.full(len(picked), len(there) / len(picked)))
    return np.concatenate(chosen), np.concatenate(weights)


def verdicts(rng: np.random.Generator, happens: Ints) -> Ints:
    """What a person says: a, tie or b; what happens is a or b."""
    return np.where(rng.random(len(happens)) < PERSON, 2 * happens, rng.integers(0, 3, len(happens)))


def counts_of(rng: np.random.Generator, happens: Ints) -> NDArray[np.float64]:
    """Verdicts of two people on every pair: (n, 3)."""
    return np.eye(3)[verdicts(rng, happens)] + np.eye(3)[verdicts(rng, happens)]


def holds(found: Estimate, truth: float) -> bool:
    return found.low is not None and found.high is not None and found.low <= truth <= found.high


def covered(setting: tuple[float, float, float], runs: int) -> dict[str, int]:
    """In how many runs an interval holds the truth, by statistic; of kappa and alpha, that of a million pairs."""
    rng = np.random.default_rng(0)
    many = draw(rng, 250_000, *setting)
    truths = {
        "corrected": setting[0],
        "kappa": kappa_of(confusion(many.said, many.happens)),
        "alpha": alpha_of(counts_of(rng, many.happens), "ordinal"),
    }
    held = dict.fromkeys(truths, 0)
    for seed in range(runs):
        rng = np.random.default_rng(1 + seed)
        pairs = draw(rng, VIDEOS, *setting)
        looked, weight = audit(rng, pairs)
        known, weights = np.full(len(pairs.said), np.nan), np.zeros(len(pairs.said))
        known[looked], weights[looked] = pairs.happens[looked], weight
        videos, both = pairs.videos[looked].tolist(), rng.choice(len(pairs.said), AUDITED // 2, replace=False)
        found = {
            "corrected": corrected_rate(pairs.said.astype(float), known, weights, pairs.videos.tolist()).corrected,
            "kappa": cohen_kappa(pairs.said[looked], pairs.happens[looked], weight, videos),
            "alpha": krippendorff_alpha(counts_of(rng, pairs.happens[both]), pairs.videos[both].tolist(), "ordinal"),
        }
        for name, estimate in found.items():
            held[name] += holds(estimate, truths[name])
    return held


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--small", action="store_true")
    runs = RUNS[arguments.parse_args().small]
    held = []
    for setting in SETTINGS:
        held.append(covered(setting, runs))
        print("rate {:g}, q0 {:g}, q1 {:g}".format(*setting), held[-1], f"of {runs}", flush=True)
    about = {
        "corrected": "true rates that the interval of the corrected rate holds, of 100",
        "kappa": "true kappas of judge and people, weighted by strata, that the interval holds, of 100",
        "alpha": "true ordinal alphas of two people that the interval holds, of 100",
    }
    figures = {}
    for name, words in about.items():
        share = [100 * each[name] / runs for each in held]
        figures[f"{name}_coverage"] = {
            "value": min(share), "low": min(share), "high": max(share), "n": runs * len(SETTINGS),
            "unit": "of 100", "about": f"{words}; the least of {len(SETTINGS)} settings, range over them",
        }  # fmt: skip
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
