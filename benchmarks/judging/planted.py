"""Do the estimators of bias recover what was planted? Scripted judges, thousands of simulated warehouses.

    python benchmarks/judging/planted.py [--small]

A scripted judge has a position bias, a length bias, a taste for its own answers and an eye for quality, and each of
them differs from video to video. Warehouses of two sizes are drawn, with as few videos as an audit has and with as
many as a small run, and it is counted how often each 95 % interval holds the value that is right, of 100.

What is right is computed without the estimator, from the probabilities behind the verdicts (`planted`). A coefficient
of length is planted itself, in simple judges of that very form whose effects are the same in every video. For what is
left, named `limit`, it is what the estimator gives on a sample of a million pairs: that tests the interval, and would
not find an estimator that is off. The last line is JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from vlm_rlaif.feedback.stats import agreement, bias
from vlm_rlaif.feedback.stats.estimates import Estimate
from vlm_rlaif.feedback.stats.intervals import Floats, mean, rate

RUNS = 2000
LARGE_VIDEOS = 250_000
DESIGNS = {"few": (20, 6.0), "usual": (80, 4.0)}
"""Name -> videos, and how many pairs each has on average (geometric, so that some have many)."""
NOISE = 0.8
"""Standard deviation of what a judge adds to a verdict by chance, in log-odds."""
TIE = 0.05
"""How close to one half p is called a tie."""
LENGTH, QUALITY, OWN = 0.6, 1.5, 0.5
"""What the simple judges add, in log-odds: for a doubling of length, for all of the margin, for their own answer."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Pairs of simulated videos, and what judges say of them."""

    video: NDArray[np.intp]
    quality: Floats
    """How much better a is in truth; its sign is the known winner."""
    own: NDArray[np.str_]
    """The side of the judge's own answer; empty for neither."""
    length: tuple[Floats, Floats]
    p: dict[str, Floats]
    """Verdict -> probability that a is better: `ab` and `ba`, each once more (`ab2`), and of another judge."""
    probe: Floats
    """Whether a probe was passed."""
    leaning: dict[str, Floats]
    """Behind the verdicts, in log-odds for a: `plain` and, with the narrative, `context`."""
    first: Floats
    """What the place adds to the response that is shown first, in log-odds."""
    passes: Floats
    """How probable it was that a probe is passed."""
    chance: dict[str, Floats]
    """Simple judge -> how probable it finds that a is better: by length alone, by length and margin, by its own."""
    label: dict[str, Floats]
    """What it says: 1 or 0."""


def draw(videos: int, mean_pairs: float, random: np.random.Generator) -> Sample:
    """Simulate: every effect has a value of its own in each video."""
    sizes = random.geometric(1 / mean_pairs, videos)
    video = np.repeat(np.arange(videos), sizes)
    n = len(video)

    def effect(mean: float, spread: float) -> Floats:
        return random.normal(mean, spread, videos)[video]

    quality = random.normal(0, 1, n)
    doublings = random.normal(0, 0.8, n) + 0.3 * quality
    length_b = random.integers(8, 40, n).astype(float)
    length_a = np.maximum(np.rint(length_b * 2.0**doublings), 1)
    own = random.choice(["a", "b", ""], n, p=[0.3, 0.3, 0.4])
    likes_own = np.select([own == "a", own == "b"], [1.0, -1.0], 0.0)
    doublings = np.log2(length_a / length_b)
    merit = effect(1.2, 0.5) * quality + effect(0.6, 0.4) * doublings + effect(0.5, 0.3) * likes_own
    first = effect(0.7, 0.6)
    informed = merit + effect(0.8, 0.4) * quality

    def verdict(leaning: Floats, order: str) -> Floats:
        logit = leaning + (first if order == "ab" else -first) + random.normal(0, NOISE, n)
        return 0.5 * (1 + np.tanh(logit / 2))

    p = {f"{order}{again}": verdict(merit, order) for again in ("", "2") for order in ("ab", "ba")}
    p |= {f"context {order}": verdict(informed, order) for order in ("ab", "ba")}
    p |= {f"later {order}": verdict(1.5 * merit, order) for order in ("ab", "ba")}
    passes = sigmoid(effect(3.5, 1.0))
    probe = (random.random(n) < passes).astype(float)
    chance = {
        "length": sigmoid(LENGTH * doublings),
        "margin": sigmoid(LENGTH * doublings + QUALITY * np.tanh(quality)),
        "own": sigmoid(QUALITY * np.tanh(quality) + OWN * likes_own),
    }
    label = {name: (random.random(n) < each).astype(float) for name, each in chance.items()}
    leaning = {"plain": merit, "context": informed}
    return Sample(video, quality, own, (length_a, length_b), p, probe, leaning, first, passes, chance, label)


def sigmoid(x: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(x / 2))


def choice(p: Floats) -> NDArray[np.str_]:
    """The verdict that goes with p; what lies close to the middle is a tie."""
    return np.select([p > 0.5 + TIE, p < 0.5 - TIE], ["a", "b"], "tie")


def said(leaning: Floats) -> tuple[Floats, Floats, Floats]:
    """How probable a verdict of this leaning is a, a tie, b: `NOISE` is normal, in log-odds."""
    cut = np.log((0.5 + TIE) / (0.5 - TIE))
    a, b = ndtr((leaning - cut) / NOISE), ndtr((-leaning - cut) / NOISE)
    return a, 1 - a - b, b


def put_together(sample: Sample, judge: str = "plain") -> tuple[Floats, Floats, Floats]:
    """How probable both orders together are a, a tie, b: a winner stands beside a tie, two winners are a tie."""
    one, other = (said(sample.leaning[judge] + side * sample.first) for side in (1, -1))
    a, b = ((one[side] + one[1]) * (other[side] + other[1]) - one[1] * other[1] for side in (0, 2))
    return a, 1 - a - b, b


def planted(sample: Sample) -> dict[str, float]:
    """What is right, from the probabilities behind a large sample."""
    one, other = (said(sample.leaning["plain"] + side * sample.first) for side in (1, -1))
    (one_a, _, one_b), (other_a, _, other_b) = one, other
    first, decided = one_a + other_b, one_a + one_b + other_a + other_b
    conflict, gap = one_a * other_b + one_b * other_a, np.abs(sample.quality)
    third = np.searchsorted(np.quantile(gap, [1 / 3, 2 / 3]), gap, side="right")
    thirds = [(number + 1, third == number) for number in range(3)]
    a, tie, b = put_together(sample)
    informed = put_together(sample, "context")
    difference = sample.length[0] - sample.length[1]
    longer = np.where(difference > 0, a, b)[difference != 0].sum() / (a + b)[difference != 0].sum()
    accuracy = np.where(sample.quality > 0, a, b) + tie / 2
    accuracy_informed = np.where(sample.quality > 0, informed[0], informed[2]) + informed[1] / 2
    likes = np.select([sample.own == "a", sample.own == "b"], [1.0, -1.0], np.nan)
    return {
        "first wins": float(first.sum() / decided.sum()),
        "conflicts": float(conflict.mean()),
        **{f"first wins, third {i}": float(first[part].sum() / decided[part].sum()) for i, part in thirds},
        **{f"conflicts, third {i}": float(conflict[part].mean()) for i, part in thirds},
        "longer wins": float(longer),
        "length": LENGTH,
        "length, equal quality": LENGTH,
        "own wins": float(np.nanmean(100 * likes * (sample.chance["own"] - (sample.quality > 0)))),
        "accuracy": float(accuracy.mean()),
        "context, accuracy": float(100 * (accuracy_informed - accuracy).mean()),
        "context, changed": float(1 - sum(x * y for x, y in zip((a, tie, b), informed, strict=True)).mean()),
        "repeat, changed": float(1 - np.mean([sum(x * x for x in each) for each in (one, other)])),
        "probe passed": float(sample.passes.mean()),
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Judged:
    """Both orders of one judge, put together as the view `preferences` does."""

    p: Floats
    choice: NDArray[np.str_]
    conflict: Floats

    @staticmethod
    def of(sample: Sample, ab: str = "ab", ba: str = "ba") -> Judged:
        p, first, second = (sample.p[ab] + sample.p[ba]) / 2, choice(sample.p[ab]), choice(sample.p[ba])
        conflict = ((first == "a") & (second == "b")) | ((first == "b") & (second == "a"))
        says_a, says_b = (first == "a") | (second == "a"), (first == "b") | (second == "b")
        said = np.select([~conflict & says_a & (p > 0.5), ~conflict & says_b & (p < 0.5)], ["a", "b"], "tie")
        return Judged(p, said, conflict.astype(float))


def estimates(sample: Sample) -> dict[str, Estimate]:
    """Every estimator of `feedback/stats/bias.py` on one sample, as `feedback/report/sections.py` uses it."""
    videos, judge = sample.video.tolist(), Judged.of(sample)
    context, later = Judged.of(sample, "context ab", "context ba"), Judged.of(sample, "later ab", "later ba")
    verdicts = np.concatenate([choice(sample.p["ab"]), choice(sample.p["ba"])])
    orders, both = np.repeat(["ab", "ba"], len(videos)), [*videos, *videos]
    first, gap = bias.named_first(verdicts, orders), np.abs(sample.quality)
    longer, better = bias.longer_won(judge.choice, *sample.length), np.where(sample.quality > 0, "a", "b")
    again = np.concatenate([choice(sample.p["ab2"]), choice(sample.p["ba2"])])
    difference = np.abs(np.concatenate([sample.p["ab"] - sample.p["ab2"], sample.p["ba"] - sample.p["ba2"]]))
    kept = bias.length_balanced(longer, [str(item) for item in range(len(videos))])
    balanced = [video for video, is_kept in zip(videos, kept, strict=True) if is_kept]
    known, told, plain = (agreement.codes(each.tolist()) for each in (better, context.choice, judge.choice))
    margin, is_a = np.tanh(sample.quality), (sample.quality > 0).astype(float)
    gain = agreement.correctness(told, known) - agreement.correctness(plain, known)
    return {
        "first wins": rate(first, both),
        "conflicts": rate(judge.conflict, videos),
        **{f"first wins, third {i}": part.estimate
           for i, part in enumerate(bias.by_gap(first, np.concatenate([gap, gap]), both), 1)},
        **{f"conflicts, third {i}": part.estimate
           for i, part in enumerate(bias.by_gap(judge.conflict, gap, videos), 1)},
        "longer wins": rate(longer, videos),
        "length": bias.length_coefficient(sample.label["length"], *sample.length, videos),
        "length, equal quality": bias.length_coefficient(sample.label["margin"], *sample.length, videos, margin),
        "length, limit": bias.length_coefficient(judge.p, *sample.length, videos),
        "length, equal quality, limit": bias.length_coefficient(judge.p, *sample.length, videos, margin),
        "length, balanced, limit": bias.length_coefficient(
            judge.p[kept], sample.length[0][kept], sample.length[1][kept], balanced
        ),
        "own wins": bias.self_preference(sample.label["own"], sample.own, is_a, videos),
        "own wins, limit": bias.self_preference(judge.p, sample.own, is_a, videos),
        "accuracy": agreement.accuracy(plain, known, np.ones(len(videos)), videos),
        "context, accuracy": mean(100 * gain, videos),
        "context, shift, limit": mean(np.abs(context.p - judge.p), videos, unit="fraction"),
        "context, changed": rate(bias.changed(judge.choice, context.choice), videos),
        "repeat, shift, limit": mean(difference, both, unit="fraction"),
        "repeat, changed": rate(bias.changed(verdicts, again), both),
        "drift, strength, limit": mean(100 * bias.strength_gain(judge.p, later.p), videos),
        "probe passed": rate(sample.probe, videos),
    }  # fmt: skip


def right(videos: int) -> dict[str, float]:
    """The value that is right, or the limit, for every estimator."""
    large = draw(videos, 4.0, np.random.default_rng(0))
    limits = {name: found.value for name, found in estimates(large).items() if name.endswith("limit")}
    return planted(large) | {name: float(value) for name, value in limits.items() if value is not None}


def coverage(design: tuple[int, float], runs: int, true: dict[str, float]) -> dict[str, float]:
    """Of 100 intervals, how many hold the value that is right."""
    held = dict.fromkeys(true, 0)
    for run in range(runs):
        for name, found in estimates(draw(*design, np.random.default_rng([1, run]))).items():
            if found.low is not None and found.high is not None:
                held[name] += found.low <= true[name] <= found.high
    return {name: 100 * count / runs for name, count in held.items()}


def main() -> None:
    small = "--small" in sys.argv
    runs, videos = (50, 20_000) if small else (RUNS, LARGE_VIDEOS)
    true = right(videos)
    by_design = {name: coverage(design, runs, true) for name, design in DESIGNS.items()}
    for name, value in true.items():
        held = ", ".join(f"{design} {found[name]:.1f}" for design, found in by_design.items())
        print(f"{name:30} {value:8.4f}   held by {held} of 100", file=sys.stderr)
    every = [held for found in by_design.values() for held in found.values()]
    about = {"n": len(every) * runs, "unit": "of 100"}
    figures = {
        "bias_coverage": {"value": min(every), "low": min(every), "high": max(every), **about},
        "bias_coverage_mean": {
            "value": float(np.mean(every)), "low": None, "high": None, **about,
            "about": f"the same, mean over {len(true)} estimators and {len(DESIGNS)} designs",
        },
    }  # fmt: skip
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
