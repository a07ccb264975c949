"""Do the estimators of bias recover what was planted? Scripted judges, thousands of simulated warehouses.

    python benchmarks/judging/planted.py [--small]

A scripted judge has a position bias, a length bias, a taste for its own answers and an eye for quality, and each of
them differs from video to video. The planted value of an estimator is what it gives on a sample of a million pairs of
the same judge. Then warehouses of two sizes are drawn, with as few videos as an audit has and with as many as a small
run, and it is counted how often each 95 % interval holds the planted value, of 100. The last line is JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm_rlaif.feedback.stats import bias
from vlm_rlaif.feedback.stats.estimates import Estimate
from vlm_rlaif.feedback.stats.intervals import mean, rate

Floats = NDArray[np.float64]
RUNS = 2000
LARGE_VIDEOS = 250_000
DESIGNS = {"few": (20, 6.0), "usual": (80, 4.0)}
"""Name -> videos, and how many pairs each has on average (geometric, so that some have many)."""
NOISE = 0.8
"""Standard deviation of what a judge adds to a verdict by chance, in log-odds."""


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
    passes = 0.5 * (1 + np.tanh(effect(3.5, 1.0) / 2))
    return Sample(video, quality, own, (length_a, length_b), p, (random.random(n) < passes).astype(float))


def choice(p: Floats) -> NDArray[np.str_]:
    """The verdict that goes with p; what lies close to the middle is a tie."""
    return np.select([p > 0.55, p < 0.45], ["a", "b"], "tie")


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


def right(said: NDArray[np.str_], quality: Floats) -> Floats:
    return np.where(said == "tie", 0.5, ((said == "a") == (quality > 0)).astype(float))


def estimates(sample: Sample) -> dict[str, Estimate]:
    """Every estimator of `feedback/stats/bias.py` on one sample."""
    videos, judge = sample.video.tolist(), Judged.of(sample)
    context, later = Judged.of(sample, "context ab", "context ba"), Judged.of(sample, "later ab", "later ba")
    said = np.concatenate([choice(sample.p["ab"]), choice(sample.p["ba"])])
    orders, both = np.repeat(["ab", "ba"], len(videos)), [*videos, *videos]
    first, gap = bias.named_first(said, orders), np.abs(sample.quality)
    longer, known = bias.longer_won(judge.choice, *sample.length), (sample.quality > 0).astype(float)
    again = np.concatenate([choice(sample.p["ab2"]), choice(sample.p["ba2"])])
    difference = np.abs(np.concatenate([sample.p["ab"] - sample.p["ab2"], sample.p["ba"] - sample.p["ba2"]]))
    kept = bias.length_balanced(longer, [str(item) for item in range(len(videos))])
    balanced = [video for video, is_kept in zip(videos, kept, strict=True) if is_kept]
    accuracy = right(judge.choice, sample.quality)
    margin = np.tanh(sample.quality)
    return {
        "first wins": rate(first, both),
        "conflicts": rate(judge.conflict, videos),
        **{f"first wins, third {i}": part.estimate
           for i, part in enumerate(bias.by_gap(first, np.concatenate([gap, gap]), both), 1)},
        **{f"conflicts, third {i}": part.estimate
           for i, part in enumerate(bias.by_gap(judge.conflict, gap, videos), 1)},
        "longer wins": rate(longer, videos),
        "length": bias.length_coefficient(judge.p, *sample.length, videos),
        "length, equal quality": bias.length_coefficient(judge.p, *sample.length, videos, margin),
        "length, balanced": bias.length_coefficient(
            judge.p[kept], sample.length[0][kept], sample.length[1][kept], balanced, margin[kept]
        ),
        "own wins": bias.self_preference(judge.p, sample.own, known, videos),
        "accuracy": rate(accuracy, videos),
        "context, accuracy": mean(100 * (right(context.choice, sample.quality) - accuracy), videos),
        "context, shift": mean(np.abs(context.p - judge.p), videos, unit="fraction"),
        "context, changed": rate(bias.changed(judge.choice, context.choice), videos),
        "repeat, shift": mean(difference, both, unit="fraction"),
        "repeat, changed": rate(bias.changed(said, again), both),
        "drift, strength": mean(100 * bias.strength_gain(judge.p, later.p), videos),
        "probe passed": rate(sample.probe, videos),
    }  # fmt: skip


def coverage(design: tuple[int, float], runs: int, planted: dict[str, float]) -> dict[str, float]:
    """Of 100 intervals, how many hold the planted value."""
    held = dict.fromkeys(planted, 0)
    for run in range(runs):
        for name, found in estimates(draw(*design, np.random.default_rng([1, run]))).items():
            if found.low is not None and found.high is not None:
                held[name] += found.low <= planted[name] <= found.high
    return {name: 100 * count / runs for name, count in held.items()}


def main() -> None:
    small = "--small" in sys.argv
    runs, videos = (50, 20_000) if small else (RUNS, LARGE_VIDEOS)
    large: Callable[[], dict[str, Estimate]] = lambda: estimates(draw(videos, 4.0, np.random.default_rng(0)))  # noqa: E731
    planted = {name: float(found.value) for name, found in large().items() if found.value is not None}
    by_design = {name: coverage(design, runs, planted) for name, design in DESIGNS.items()}
    for name, value in planted.items():
        held = ", ".join(f"{design} {found[name]:.1f}" for design, found in by_design.items())
        print(f"{name:24} planted {value:8.4f}   held by {held} of 100", file=sys.stderr)
    every = [held for found in by_design.values() for held in found.values()]
    about = {"n": len(every) * runs, "unit": "of 100"}
    figures = {
        "bias_coverage": {"value": min(every), "low": min(every), "high": max(every), **about},
        "bias_coverage_mean": {
            "value": float(np.mean(every)), "low": None, "high": None, **about,
            "about": f"the same, mean over {len(planted)} estimators and {len(DESIGNS)} designs",
        },
    }  # fmt: skip
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
