"""Do the intervals of corrected rates, kappa and alpha hold the truth? Audits of judges whose errors are known.

    python benchmarks/judging/corrected.py [--small]

A run draws pairs of videos: of many, of few, or of some with very unequal numbers of pairs. How often something
happens differs from video to video. The judge sees it with q1 where it happens and with 1 - q0 where it does not,
less well where it is unsure. 200 pairs are audited: as many unsure ones as sure ones, though fewer are unsure, so
they are weighted back; two people judge 100 of them, each wrong now and then in the second part. `corrected_coverage`
is the least of the cells, of 100 intervals. Where the correction is refused, or has no interval as it hangs on one
video, nothing is claimed: these runs are counted apart.
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
from vlm_rlaif.warehouse.errors import UserError

AUDITED = 200
RUNS = {False: 500, True: 25}
DESIGNS = {"usual": (200, 4, False), "few": (20, 20, False), "unequal": (60, 10, True)}
"""Name -> videos, pairs of each (on average), whether their numbers are geometric: some have many."""
UNSURE = 0.3
"""Share of pairs of which the judge is unsure."""
SETTINGS = ((0.5, 0.85, 0.8), (0.2, 0.85, 0.8), (0.8, 0.7, 0.75), (0.4, 0.65, 0.7), (0.95, 0.75, 0.75))
"""(true rate, q0, q1): from a good judge to one that is little better than a coin, and something that nearly always
happens."""
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


def draw(rng: np.random.Generator, sizes: Ints, rate: float, q0: float, q1: float) -> Pairs:
    """Videos with so many pairs each. Half of the judge's lead over a coin is lost where it is unsure, and made up
    for where it is sure, so that q0 and q1 hold on the whole."""
    of = np.repeat(np.arange(len(sizes)), sizes)
    happens = rng.random(len(of)) < rng.beta(4 * rate, 4 * (1 - rate), len(sizes))[of]
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


def corrected(pairs: Pairs, looked: Ints, weight: NDArray[np.float64]) -> Estimate | None:
    """The corrected rate; None where it is refused."""
    known, weights = np.full(len(pairs.said), np.nan), np.zeros(len(pairs.said))
    known[looked], weights[looked] = pairs.happens[looked], weight
    try:
        return corrected_rate(pairs.said.astype(float), known, weights, pairs.videos.tolist()).corrected
    except UserError:
        return None


@dataclass(slots=True)
class Count:
    """Of the intervals of one statistic."""

    given: int = 0
    held: int = 0


def covered(design: tuple[int, int, bool], setting: tuple[float, float, float], runs: int) -> dict[str, Count]:
    """How many intervals are given and hold the truth, by statistic; of kappa and alpha, that of a million pairs."""
    videos, mean, geometric = design
    rng = np.random.default_rng(0)
    many = draw(rng, np.full(250_000, 4), *setting)
    truths = {
        "corrected": setting[0],
        "kappa": kappa_of(confusion(many.said, many.happens)),
        "alpha": alpha_of(counts_of(rng, many.happens), "ordinal"),
    }
    counts = {name: Count() for name in truths}
    for seed in range(runs):
        rng = np.random.default_rng(1 + seed)
        pairs = draw(rng, rng.geometric(1 / mean, videos) if geometric else np.full(videos, mean), *setting)
        looked, weight = audit(rng, pairs)
        of, both = pairs.videos[looked].tolist(), rng.choice(len(pairs.said), AUDITED // 2, replace=False)
        found = {
            "corrected": corrected(pairs, looked, weight),
            "kappa": cohen_kappa(pairs.said[looked], pairs.happens[looked], weight, of),
            "alpha": krippendorff_alpha(counts_of(rng, pairs.happens[both]), pairs.videos[both].tolist(), "ordinal"),
        }
        for name, estimate in found.items():
            if estimate is not None and estimate.low is not None and estimate.high is not None:
                counts[name].given += 1
                counts[name].held += estimate.low <= truths[name] <= estimate.high
    return counts


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--small", action="store_true")
    runs = RUNS[arguments.parse_args().small]
    cells = []
    for name, design in DESIGNS.items():
        for setting in SETTINGS:
            cells.append(covered(design, setting, runs))
            said = ", ".join(f"{of} {count.held} of {count.given}" for of, count in cells[-1].items())
            print("{}: rate {:g}, q0 {:g}, q1 {:g}:".format(name, *setting), said, flush=True)
    about = {
        "corrected": "true rates that the interval of the corrected rate holds, of 100",
        "kappa": "true kappas of judge and people, weighted by strata, that the interval holds, of 100",
        "alpha": "true ordinal alphas of two people that the interval holds, of 100",
    }
    figures = {}
    for name, words in about.items():
        share = [100 * cell[name].held / cell[name].given for cell in cells]
        given = sum(cell[name].given for cell in cells)
        figures[f"{name}_coverage"] = {
            "value": min(share), "low": min(share), "high": max(share), "n": given, "unit": "of 100",
            "about": f"{words}; the least of {len(DESIGNS)} designs and {len(SETTINGS)} settings, range over them;"
            f" {runs * len(cells) - given:,} runs have no interval",
        }  # fmt: skip
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
