"""Learning curves: every step once, and a reward that was fooled is named."""

from __future__ import annotations

import json
import random
from datetime import datetime

import pytest

from vlm_rlaif.eval.curves import Curve, change, draw, learning_curves, remark
from vlm_rlaif.warehouse.records import Record, Run, Step
from vlm_rlaif.warehouse.store import Warehouse


def run(run_id: str, hour: int, checkpoint: str = "c") -> Run:
    return Run(
        run_id=run_id, stage="ppo", config=json.dumps({"checkpoint_id": checkpoint}), code_version="0",
        engine="torch", host="h", started_at=datetime(2026, 1, 1, hour),
    )  # fmt: skip


def steps(run_id: str, numbers: range, score: float) -> list[Record]:
    return [Step(run_id=run_id, step=n, metrics=json.dumps({"objective/scores": score})) for n in numbers]


def ppo(scores: list[float], truths: list[float]) -> Curve:
    metrics = {"objective/scores": scores, "objective/truth": truths}
    return Curve("policy", "ppo", {name: list(enumerate(values)) for name, values in metrics.items()})


def noisy(start: float, end: float, spread: float) -> list[float]:
    rng = random.Random(0)
    return [start + (end - start) * i / 59 + rng.gauss(0, spread) for i in range(60)]


def test_a_run_that_was_killed_and_resumed_is_one_curve(warehouse: Warehouse) -> None:
    """It was killed after step 7 and went on from the checkpoint of step 5: steps 6 and 7 are those that counted."""
    warehouse.append([run("killed", 1), run("resumed", 2), run("other", 3, "d")])
    warehouse.append(
        [*steps("killed", range(1, 8), 0.0), *steps("resumed", range(6, 11), 1.0), *steps("other", range(1, 3), 9.0)]
    )
    (curve,) = learning_curves(warehouse, {"c": "policy"})
    assert curve.role == "policy" and curve.stage == "ppo"
    assert curve.metrics["objective/scores"] == [(float(n), float(n > 5)) for n in range(1, 11)]


def test_a_rising_reward_with_falling_truth_is_called_reward_hacking() -> None:
    said = remark(ppo(noisy(0, 1, 0.05), noisy(0.7, 0.6, 0.01)))
    assert "REWARD HACKING" in said and "score rose" in said and "truth fell" in said


def test_a_truth_that_rose_before_it_fell_is_told_from_where_it_falls() -> None:
    truths = [*noisy(0.5, 0.76, 0.01)[::2], *noisy(0.76, 0.54, 0.01)[::2]]
    said = remark(ppo(noisy(0, 1, 0.05), truths))
    assert "REWARD HACKING, from step 24 on" in said or "REWARD HACKING, from step 36 on" in said


def test_a_plateau_is_not_called_hacking() -> None:
    for seed in range(40):
        rng = random.Random(seed)
        flat = [0.7 + rng.gauss(0, 0.02) for _ in range(60)]
        assert "HACKING" not in remark(ppo(noisy(0, 1, 0.05), flat))


@pytest.mark.parametrize(
    ("scores", "truths"),
    [
        (noisy(0, 1, 0.05), noisy(0.5, 0.7, 0.01)),  # both rise
        (noisy(1, 0, 0.05), noisy(0.7, 0.5, 0.01)),  # both fall
        (noisy(0, 1, 0.05), noisy(0.7, 0.699, 0.05)),  # the truth moved by less than its noise
        ([0.0, 1.0], [0.7, 0.1]),  # two steps say nothing
    ],
)
def test_other_curves_are_not(scores: list[float], truths: list[float]) -> None:
    said = remark(ppo(scores, truths))
    assert said.startswith("policy: score") and "HACKING" not in said


def test_nothing_is_said_where_the_truth_is_not_known() -> None:
    assert remark(Curve("policy", "ppo", {"objective/scores": [(1.0, 0.0), (2.0, 1.0)]})) == ""


def test_a_single_step_has_no_trend() -> None:
    assert not change([1.0]).rose and not change([1.0]).fell


def test_what_has_data_is_drawn_with_a_line_per_role() -> None:
    one = ppo(noisy(0, 1, 0.05), noisy(0.5, 0.7, 0.01))
    other = Curve("random_label", "ppo", one.metrics)
    plots = draw([one, other])
    assert set(plots) == {"score", "truth"}
    assert all(plot.startswith("<svg") and "random label" in plot for plot in plots.values())
    assert draw([]) == {}
