"""A plan is drawn once: the same settings are the same plan, other settings are another one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vlm_rlaif.feedback.audit.planning import STRATA, Asked, arithmetic, plan_audit
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.store import Warehouse

Command = Any


def asked(warehouse: Warehouse, **settings: Any) -> Asked:
    judge = warehouse.value("SELECT any_value(spec_id) FROM labels")
    return Asked(judge=judge, **({"size": 60} | settings))


def test_a_plan_is_written_with_its_tasks(judged: Warehouse) -> None:
    plan = plan_audit(judged, "spring", asked(judged))
    tasks = judged.rows("FROM audit_tasks")
    assert plan.fresh and plan.population == 200 and plan.videos == 40 and len(tasks) == 60
    assert sum(task["weight"] for task in tasks) == pytest.approx(200)
    assert {task["stratum"] for task in tasks} == {stratum.name for stratum in plan.strata}
    assert sorted(task["shown_order"] for task in tasks) == ["ab"] * 30 + ["ba"] * 30
    assert sorted(task["annotators"] for task in tasks) == [1] * 48 + [2] * 12 and plan.shared == 12
    assert judged.value("SELECT max(n) FROM (SELECT count(*) AS n FROM audit_tasks JOIN pairs USING (pair_id)"
                        " JOIN questions USING (question_id) GROUP BY video_id)") <= 5  # fmt: skip


def test_strata_are_what_they_are_called(judged: Warehouse) -> None:
    plan_audit(judged, "all", asked(judged, size=200))
    rows = judged.rows(
        "SELECT t.stratum, p.strength, p.conflict, abs(length(a.text) - length(b.text)) AS gap FROM audit_tasks t"
        " JOIN preferences p USING (pair_id) JOIN responses a ON a.response_id = p.response_a"
        " JOIN responses b ON b.response_id = p.response_b"
    )
    strengths = {level: [row["strength"] for row in rows if f"confidence {level}" in row["stratum"]]
                 for level in ("low", "middle", "high")}  # fmt: skip
    assert max(strengths["low"]) < min(strengths["middle"]) <= max(strengths["middle"]) < min(strengths["high"])
    assert all(("conflict yes" in row["stratum"]) == row["conflict"] for row in rows)
    near, far = ([row["gap"] for row in rows if f"length {level}" in row["stratum"]] for level in ("near", "far"))
    assert max(near) < min(far)
    assert not any("source" in row["stratum"] for row in rows), "one policy makes no strata"


def test_the_same_plan_again_writes_nothing(judged: Warehouse) -> None:
    first = plan_audit(judged, "spring", asked(judged))
    before = judged.rows("FROM runs")
    again = plan_audit(judged, "spring", asked(judged))
    assert not again.fresh and judged.rows("FROM runs") == before
    assert (again.strata, again.size, again.shared) == (first.strata, first.size, first.shared)


def test_another_plan_of_the_same_name_is_refused(judged: Warehouse) -> None:
    plan_audit(judged, "spring", asked(judged))
    with pytest.raises(UserError, match="size 60, not 70"):
        plan_audit(judged, "spring", asked(judged, size=70))


def test_a_dry_run_says_the_same_and_writes_nothing(judged: Warehouse) -> None:
    dry = plan_audit(judged, "spring", asked(judged), dry_run=True)
    assert judged.rows("FROM audit_plans") == judged.rows("FROM runs") == []
    assert plan_audit(judged, "spring", asked(judged)) == dry


def test_another_seed_draws_other_pairs(judged: Warehouse) -> None:
    for seed in (0, 1):
        plan_audit(judged, f"seed-{seed}", asked(judged, seed=seed))
    assert judged.value("SELECT count(DISTINCT pair_id) FROM audit_tasks") > 70


def test_a_split_is_sampled_alone(judged: Warehouse) -> None:
    assert plan_audit(judged, "test", asked(judged, split="test", size=20)).population == 50
    with pytest.raises(UserError, match="no pair of the split val"):
        plan_audit(judged, "val", asked(judged, split="val"))


def test_no_strata_are_one_stratum(judged: Warehouse) -> None:
    assert [stratum.name for stratum in plan_audit(judged, "flat", asked(judged, strata=[])).strata] == ["all"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": 3}, "strata in 3 pairs"),
        ({"size": None}, "one of the two"),
        ({"half_width": 0.1}, "one of the two"),
        ({"strata": ["confidense"]}, "Did you mean 'confidence'"),
        ({"size": 50_000}, "at most 19,999"),
    ],
)
def test_what_cannot_be_planned_is_said(judged: Warehouse, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan_audit(judged, "x", asked(judged, **settings))
    assert judged.rows("FROM audit_plans") == []


@pytest.mark.parametrize("name", ["", " ", "a b", "a;b", "$(b)", "-x", "a\nb", "x" * 101, "<b>"])
def test_a_name_is_safe_to_type(judged: Warehouse, name: str) -> None:
    with pytest.raises(UserError, match="is no name for a plan"):
        plan_audit(judged, name, asked(judged))


def test_the_arithmetic_is_told(judged: Warehouse) -> None:
    wanted = asked(judged, size=None, half_width=0.1)
    lines = "\n".join(arithmetic(plan_audit(judged, "w", wanted), wanted))
    assert "200 pairs of 40 videos" in lines and "= 96 independent pairs" in lines and "design effect" in lines


def test_the_promise_counts_the_weights_and_says_so(judged: Warehouse) -> None:
    wanted = asked(judged, size=None, half_width=0.2, correlation=0.0)
    plan = plan_audit(judged, "w", wanted)
    weights = [row["weight"] for row in judged.rows("SELECT weight FROM audit_tasks")]
    factor = (len(weights) * sum(weight**2 for weight in weights)) ** 0.5 / sum(weights)
    assert plan.size.unequal == pytest.approx(factor) and factor > 1.001
    assert plan.size.half_width == pytest.approx(1.96 * (0.25 / len(weights)) ** 0.5 * factor, rel=1e-3)
    assert plan.size.half_width <= 0.2 * 1.001 and len(weights) >= 25
    assert f"sqrt(n * sum(w^2)) / sum(w) = {factor:.3f} times as wide." in "\n".join(arithmetic(plan, wanted))


def test_the_command_plans_and_tells_the_next_one(judged: Warehouse, command: Command) -> None:
    result = command("feedback", "audit", "plan", judged.path, "spring", "--size", 40)
    assert result.code == 0 and f"vlm-rlaif feedback audit push {judged.path} spring" in result.out
    again = command("feedback", "audit", "plan", judged.path, "spring", "--size", 40, "--json")
    said = json.loads(again.out)
    assert said["fresh"] is False and said["size"]["pairs"] == 40
    assert command("feedback", "audit", "plan", judged.path, "spring", "--size", 41).code == 2
    assert set(STRATA) == {"confidence", "conflict", "length", "source"}
