"""Who wins: the judge sees the answers of two models in both orders, and a taste for a place is no win."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from vlm_rlaif.datagen.engine import Request, ScriptedEngine
from vlm_rlaif.datagen.job import run_stage
from vlm_rlaif.datagen.plan import context_spec, part
from vlm_rlaif.eval.figures import win_figures
from vlm_rlaif.eval.win import WinStage, win_stage
from vlm_rlaif.feedback.verdict import CHOICES
from vlm_rlaif.warehouse.config import Recipe
from vlm_rlaif.warehouse.records import Answer, Context, Record
from vlm_rlaif.warehouse.runs import Outcome
from vlm_rlaif.warehouse.store import Warehouse

Judge = Callable[[Request], Any]
FIRST, SECOND = {"A": 0.75, "B": 0.125, "C": 0.125}, {"A": 0.125, "B": 0.75, "C": 0.125}


def answer(question: str, spec: str, text: str, sample: int = 0) -> Answer:
    return Answer(
        answer_id=f"{spec}/{question}/{sample}", benchmark="warehouse/test", question_id=question, spec_id=spec,
        sample_index=sample, text=text, tokens=4, run_id="test",
    )  # fmt: skip


@pytest.fixture
def answered(asked: Warehouse, recipe: Recipe) -> Warehouse:
    """Six questions about three videos, answered by two models and a third that nobody asks about."""
    rows: list[Record] = []
    for row in asked.rows("SELECT question_id FROM questions"):
        question = row["question_id"]
        rows += [
            answer(question, "new", f"trained says {question}"),
            answer(question, "old", f"start says {question}"),
        ]
        rows += [answer(question, "third", "nobody asks"), answer(question, "new", "a second sample", 1)]
    for row in asked.rows("SELECT video_id FROM videos"):
        video = row["video_id"]
        for spec, text in ((context_spec(recipe).spec_id, f"the story of {video}"), ("another", "an older story")):
            rows.append(
                Context(
                    context_id=f"{spec}/{video}", video_id=video, spec_id=spec, caption_ids=[video], text=text,
                    run_id="test",
                )
            )  # fmt: skip
    asked.append(rows)
    return asked


@pytest.fixture
def stage(recipe: Recipe) -> WinStage:
    return win_stage(recipe, "new", "old")


def judged(warehouse: Warehouse, stage: WinStage, judge: Judge, **options: Any) -> Outcome:
    return run_stage(warehouse, stage, lambda: ScriptedEngine(judge), **options)


def shown(request: Request) -> tuple[str, str]:
    """The two answers in the order in which the prompt shows them."""
    first, second = request.user.partition(" A : ")[2].removesuffix(" verdict").split(" B : ")
    return first, second


def likes_the_trained_one(request: Request) -> dict[str, float]:
    return {"A": 1.0} if shown(request)[0].startswith("trained says") else {"B": 1.0}


def likes_the_start(request: Request) -> dict[str, float]:
    return {"A": 1.0} if shown(request)[0].startswith("start says") else {"B": 1.0}


@pytest.mark.parametrize("taste", [FIRST, SECOND], ids=["first", "second"])
def test_a_judge_with_a_taste_for_a_place_makes_nobody_win(
    answered: Warehouse, stage: WinStage, taste: dict[str, float]
) -> None:
    judged(answered, stage, lambda request: taste)
    rate = win_figures(answered, stage.spec.spec_id)["win_rate"]
    assert rate.value == 0.5 and (rate.n, rate.clusters) == (6, 3)
    assert {row["value"] for row in answered.rows("SELECT DISTINCT value FROM scores")} == {0.8125, 0.1875}


@pytest.mark.parametrize(("judge", "wins"), [(likes_the_trained_one, 1.0), (likes_the_start, 0.0)])
def test_a_judge_who_likes_one_models_words_makes_it_win_in_both_orders(
    answered: Warehouse, stage: WinStage, judge: Judge, wins: float
) -> None:
    judged(answered, stage, judge)
    assert win_figures(answered, stage.spec.spec_id)["win_rate"].value == pytest.approx(wins, abs=1e-6)
    by_order = answered.rows("SELECT metric, count(*) AS n, avg(value) AS value FROM scores GROUP BY 1 ORDER BY 1")
    assert [(row["metric"], row["n"]) for row in by_order] == [("win:ab", 6), ("win:ba", 6)]
    assert [row["value"] for row in by_order] == pytest.approx([wins, wins], abs=1e-6)


def test_a_tie_is_half_a_win(answered: Warehouse, stage: WinStage) -> None:
    judged(answered, stage, lambda request: {"C": 1.0})
    assert win_figures(answered, stage.spec.spec_id)["win_rate"].value == 0.5
    assert {row["value"] for row in answered.rows("SELECT DISTINCT value FROM scores")} == {0.5}


def test_the_score_belongs_to_the_answer_of_the_new_model(answered: Warehouse, stage: WinStage) -> None:
    judged(answered, stage, likes_the_trained_one)
    assert answered.rows(
        "SELECT DISTINCT a.spec_id, a.sample_index FROM scores JOIN answers a USING (answer_id)"
    ) == [{"spec_id": "new", "sample_index": 0}]


def test_the_judge_reads_the_recipes_narrative_and_the_two_answers_of_one_question(
    answered: Warehouse, stage: WinStage
) -> None:
    heard: list[Request] = []

    def listen(request: Request) -> dict[str, float]:
        heard.append(request)
        return FIRST

    assert judged(answered, stage, listen).written == len(heard) == 12
    known = answered.rows(
        "SELECT q.question_id AS id, q.text, q.video_id, v.uri FROM questions q JOIN videos v USING (video_id)"
    )
    wanted = set()
    for row in known:
        answers = f"trained says {row['id']}", f"start says {row['id']}"
        for first, second in (answers, answers[::-1]):
            user = f"context the story of {row['video_id']} question {row['text']} A : {first} B : {second} verdict"
            wanted.add((user, answered.video_path(row["uri"])))
    assert {(request.user, request.video and request.video.path) for request in heard} == wanted
    assert {request.choices for request in heard} == {CHOICES}


def test_a_reply_that_cannot_be_read_is_a_failure_and_no_win(answered: Warehouse, stage: WinStage) -> None:
    outcome = judged(answered, stage, lambda request: "both are {fine}")
    assert (outcome.written, outcome.failed) == (0, 12)
    assert answered.rows("SELECT DISTINCT stage, kind, reply FROM failures") == [
        {"stage": "win", "kind": "unparsable", "reply": "both are {fine}"}
    ]
    assert answered.value("SELECT count(*) FROM scores") == 0
    assert win_figures(answered, stage.spec.spec_id)["win_rate"].value is None
    assert judged(answered, stage, likes_the_trained_one).pending == 0
    assert judged(answered, stage, likes_the_trained_one, retry_failed=True).written == 12
    assert answered.value("SELECT count(*) FROM open_failures") == 0


def test_one_bad_reply_fails_alone(answered: Warehouse, stage: WinStage) -> None:
    asked = 0

    def moody(request: Request) -> Any:
        nonlocal asked
        asked += 1
        return "no idea" if asked == 3 else likes_the_trained_one(request)

    outcome = judged(answered, stage, moody)
    assert (outcome.written, outcome.failed) == (11, 1)


def test_verdicts_that_stand_are_not_asked_for_again(answered: Warehouse, stage: WinStage) -> None:
    assert judged(answered, stage, likes_the_trained_one, limit=5).written == 5
    assert judged(answered, stage, likes_the_trained_one).written == 7
    assert judged(answered, stage, likes_the_trained_one).run_id is None


def test_two_comparisons_and_two_judges_do_not_mix(answered: Warehouse, stage: WinStage, recipe: Recipe) -> None:
    judged(answered, stage, likes_the_trained_one)
    turned = win_stage(recipe, "old", "new")
    judged(answered, turned, likes_the_trained_one)
    judge = dataclasses.replace(part(recipe, "label"), context_prompt="judge_context_v1")
    worded = win_stage(dataclasses.replace(recipe, label=judge), "new", "old")
    judged(answered, worded, lambda request: SECOND)
    rates = [win_figures(answered, s.spec.spec_id)["win_rate"].value for s in (stage, turned, worded)]
    assert rates == [pytest.approx(1.0, abs=1e-6), pytest.approx(0.0, abs=1e-6), 0.5]
