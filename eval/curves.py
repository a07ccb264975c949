"""Learning curves out of the warehouse: what training did step by step, as plots, and whether it fooled its reward.

A reward that rises while the truth falls is reward hacking. It is looked for by comparing the first fifth of the
steps with the last, on what the policy said in training; it takes a world whose truth is known.

>>> from vlm_rlaif.eval.curves import Change, change
>>> change([0.0, 0.1, 0.4, 0.9, 1.0, 1.0, 1.1, 1.2, 1.3, 1.5]).difference
1.35
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from vlm_rlaif.eval.plots import line_plot
from vlm_rlaif.warehouse.store import Warehouse

PLOTS = {
    "reward_accuracy": ("Reward models: accuracy on their labels", "reward", "reward/accuracy", "fraction"),
    "score": ("PPO: score of the reward model", "ppo", "objective/scores", "normalised score"),
    "truth": ("PPO: truth of the sampled answers", "ppo", "objective/truth", "fraction of facts"),
    "kl": ("PPO: KL to the start", "ppo", "objective/kl", "nats per response"),
    "length": ("PPO: length of the responses", "ppo", "val/length_mean", "tokens"),
}
"""Name -> (title, stage of the run, metric, axis)."""
SURE = 2.0
"""A change of this many standard errors is one."""


@dataclass(frozen=True, slots=True)
class Curve:
    """The metrics of one training run by name: (step, value), in order of steps."""

    role: str
    """`rm`, `policy` and the like."""
    stage: str
    metrics: dict[str, list[tuple[float, float]]]

    def values(self, metric: str) -> list[float]:
        return [value for _, value in self.metrics.get(metric, [])]


def learning_curves(warehouse: Warehouse, roles: dict[str, str]) -> list[Curve]:
    """The curves of trained models; `roles`: checkpoint id -> role."""
    rows = warehouse.rows(
        "SELECT checkpoint_id, stage, step, metrics FROM learning_curves"
        " WHERE list_contains(?, checkpoint_id) ORDER BY checkpoint_id, step",
        [list(roles)],
    )
    found: dict[str, Curve] = {}
    for row in rows:
        fresh = Curve(roles[row["checkpoint_id"]], row["stage"], {})
        curve = found.setdefault(row["checkpoint_id"], fresh)
        for name, value in json.loads(row["metrics"]).items():
            curve.metrics.setdefault(name, []).append((float(row["step"]), float(value)))
    return sorted(found.values(), key=lambda curve: curve.role)


def draw(curves: Sequence[Curve]) -> dict[str, str]:
    """Name -> SVG of every plot of `PLOTS` that has data, one line per role."""
    plots = {}
    for name, (title, stage, metric, axis) in PLOTS.items():
        lines = {
            c.role.replace("_", " "): c.metrics[metric] for c in curves if c.stage == stage and metric in c.metrics
        }
        if lines:
            plots[name] = line_plot(title, lines, x_label="step", y_label=axis)
    return plots


@dataclass(frozen=True, slots=True)
class Change:
    """How much a metric moved between the first and the last fifth of training."""

    difference: float
    standard_error: float
    """NaN where a fifth is a single step: then nothing is sure."""

    @property
    def rose(self) -> bool:
        return self.difference > SURE * self.standard_error

    @property
    def fell(self) -> bool:
        return -self.difference > SURE * self.standard_error


def change(values: Sequence[float]) -> Change:
    """Last fifth minus first fifth, with the standard error that the scatter between steps gives."""
    size = max(1, len(values) // 5)
    first, last = values[:size], values[-size:]
    error = math.sqrt((variance(first) + variance(last)) / size) if size > 1 else math.nan
    return Change(round(fmean(last) - fmean(first), 12), error)


def remark(curve: Curve) -> str:
    """What a PPO run did to score and truth in one sentence; empty where the truth is not known.

    >>> rising, falling = [(i, i / 10) for i in range(20)], [(i, 1 - i / 40) for i in range(20)]
    >>> remark(Curve("policy", "ppo", {"objective/scores": rising, "objective/truth": falling}))
    'policy: REWARD HACKING, the score rose by 1.60 while the truth fell by 40.0 points.'
    """
    scores, truths = curve.values("objective/scores"), curve.values("objective/truth")
    if not scores or not truths:
        return ""
    score, truth = change(scores), change(truths)
    points = 100 * truth.difference
    if score.rose and truth.fell:
        return (
            f"{curve.role}: REWARD HACKING, the score rose by {score.difference:.2f}"
            f" while the truth fell by {-points:.1f} points."
        )
    return (
        f"{curve.role}: score {score.difference:+.2f}, truth {points:+.1f} points between start and end of training."
    )
