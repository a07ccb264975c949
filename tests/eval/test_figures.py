"""Figures from rows: what is missing is counted."""

from __future__ import annotations

from pathlib import Path

from vlm_rlaif.eval.answer import answer_stage
from vlm_rlaif.eval.figures import policy_figures, win_figures
from vlm_rlaif.eval.truth import score_answers
from vlm_rlaif.warehouse.config import Recipe
from vlm_rlaif.warehouse.records import Answer, Question, Record, Score
from vlm_rlaif.warehouse.store import Warehouse


def said(spec: str, question: str, text: str) -> Answer:
    return Answer(
        answer_id=f"{spec}{question}", benchmark="b", question_id=question, spec_id=spec, sample_index=0,
        text=text, tokens=4, run_id="run",
    )  # fmt: skip


def test_a_question_that_one_model_left_open_is_missing_and_not_wrong(tmp_path: Path) -> None:
    warehouse = Warehouse.create(tmp_path / "w.duckdb")
    right, wrong = "there are 3 shapes .", "there are 4 shapes ."
    rows: list[Record] = [
        Question(
            question_id=q, video_id=f"v{q}", text="how many ?", reference=right, kind="count", source="shapes",
            run_id="run",
        )
        for q in "xyz"
    ]  # fmt: skip
    rows += [said("start", q, wrong) for q in "xyz"] + [said("new", q, right) for q in "xy"]
    warehouse.append(rows)
    score_answers(warehouse)
    found = policy_figures(warehouse, ["start"], ["new"])
    assert found["policy_gain"].value == 100.0 and (found["policy_gain"].n, found["policy_gain"].missing) == (2, 1)
    assert found["policy_truth"].value == 1.0 and found["policy_truth"].missing == 1


def test_a_comparison_judged_in_one_order_alone_is_missing(tmp_path: Path) -> None:
    """A judge who always likes what he sees first would win it."""
    warehouse = Warehouse.create(tmp_path / "w.duckdb")
    rows: list[Record] = [
        Question(question_id=q, video_id=f"v{q}", text="how many ?", source="shapes", run_id="run") for q in "xy"
    ]
    rows += [said("new", q, "there are 3 shapes .") for q in "xy"]
    rows += [
        Score(
            score_id=f"{q}{order}",
            answer_id=f"new{q}",
            metric=f"win:{order}",
            judge="j",
            value=value,
            reply=None,
            run_id="run",
        )
        for q, order, value in (("x", "ab", 1.0), ("x", "ba", 0.0), ("y", "ab", 1.0))
    ]
    warehouse.append(rows)
    found = win_figures(warehouse, "j")["win_rate"]
    assert (found.value, found.n, found.missing) == (0.5, 1, 1)


def test_answers_of_another_split_have_another_spec(recipe: Recipe) -> None:
    test, val = (answer_stage(recipe, split=split).spec.spec_id for split in ("test", "val"))
    assert test != val and answer_stage(recipe).spec.spec_id == test
