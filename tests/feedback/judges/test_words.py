"""Judges that write before they decide, that vote, and that see no video."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from statistics import pstdev
from typing import Any

import pytest

from vlm_rlaif.datagen.engine import Completion, Request, ScriptedEngine
from vlm_rlaif.datagen.job import run_stage
from vlm_rlaif.feedback.judges.plan import judge_spec, judges_of
from vlm_rlaif.feedback.verdict import CHOICES
from vlm_rlaif.warehouse.care.row_checks import check_ids
from vlm_rlaif.warehouse.config import Recipe, Sampling
from vlm_rlaif.warehouse.inspection.card import lines
from vlm_rlaif.warehouse.inspection.show import card, preferences
from vlm_rlaif.warehouse.store import Warehouse

WithJudges = Callable[..., Recipe]
Labeled = Callable[..., Any]
HOT = Sampling(temperature=1.0, max_new_tokens=64)


def critic(request: Request) -> str:
    """Likes the response that comes first in the alphabet, and says why."""
    a, b = (request.user.partition(f"Response {side}: ")[2].partition("\n")[0] for side in "AB")
    return f"Both are short.\n\n**Verdict: {'A' if a < b else 'B'}**\n"


@pytest.fixture
def critical(recipe: Recipe, with_judges: WithJudges) -> Recipe:
    return with_judges(recipe, {"name": "critic", "prompt": "judge_critique_v1", "verdict": "words"})


def test_the_verdict_is_the_last_line_and_the_words_are_kept(
    paired: Warehouse, critical: Recipe, label_all: Labeled
) -> None:
    (outcome,) = label_all(paired, critical, critic, "critic")["critic"]
    assert (outcome.stage, outcome.written, outcome.failed) == ("label", 12, 0)
    for row in paired.rows("SELECT * FROM lineage"):
        assert row["choice"] == ("a" if row["text_a"] < row["text_b"] else "b")
        assert row["p_a"] == float(row["choice"] == "a") and row["reply"].startswith("Both are short.")
    assert paired.rows("SELECT DISTINCT order_agreement, vote_spread, strength FROM preferences") == [
        {"order_agreement": True, "vote_spread": None, "strength": 1.0}
    ]


def test_what_it_writes_is_sampled_with_a_seed_of_its_own(
    paired: Warehouse, recipe: Recipe, with_judges: WithJudges, label_all: Labeled
) -> None:
    heard: list[Request] = []

    def judge(request: Request) -> str:
        heard.append(request)
        return "Verdict: A"

    voting = with_judges(recipe, {"name": "votes", "verdict": "words", "votes": 3, "sampling": HOT})
    assert label_all(paired, voting, judge, "votes")["votes"][0].written == 2 * 3 * 6
    assert {request.choices for request in heard} == {()} and {request.sampling for request in heard} == {HOT}
    assert len({request.seed for request in heard}) == len({request.request_id for request in heard}) == 36
    assert {request.video for request in heard} == {None}, "no frames, no video"


def test_more_votes_are_asked_for_and_those_that_stand_are_kept(
    paired: Warehouse, recipe: Recipe, with_judges: WithJudges, label_all: Labeled
) -> None:
    def judge(request: Request) -> str:
        return f"Verdict: {CHOICES[request.seed % 3]}"

    voting = {"name": "votes", "verdict": "words", "sampling": HOT}
    for votes, written in ((1, 12), (4, 36), (4, 0)):
        more = with_judges(recipe, {**voting, "votes": votes})
        assert label_all(paired, more, judge, "votes")["votes"][0].written == written
    rows = paired.rows("SELECT pair_id, shown_order, choice, p_a + p_tie / 2 AS p FROM labels ORDER BY ALL")
    for found in paired.rows("SELECT * FROM preferences"):
        mine = [row for row in rows if row["pair_id"] == found["pair_id"]]
        orders = [[row["p"] for row in mine if row["shown_order"] == order] for order in ("ab", "ba")]
        assert found["p_a"] == pytest.approx(sum(map(sum, orders)) / 8)
        assert found["vote_spread"] == pytest.approx(sum(map(pstdev, orders)) / 2)
        page = card(paired, found["pair_id"])
        assert [label["vote"] for label in page["labels"]] == [0, 1, 2, 3] * 2
        assert page["preferences"][0]["vote_spread"] == pytest.approx(found["vote_spread"])
        said = "\n".join(lines(page, 120))
        assert "a, b · vote 4" in said
        assert found["conflict"] or f"votes {found['vote_spread']:.2f} apart" in said
    assert list(check_ids(paired, everything=True)) == []
    pending = {row["stage"]: row for row in paired.rows("FROM pending_work")}
    assert (pending["label"]["rows_wanted"], pending["label"]["rows_missing"]) == (48, 0)


def test_words_without_a_verdict_are_asked_for_once_more_and_then_fail(
    paired: Warehouse, critical: Recipe, label_all: Labeled
) -> None:
    heard: list[Request] = []

    def unsure(request: Request) -> str:
        heard.append(request)
        return "Verdict: A\nor perhaps B" if len(heard) % 2 or len(heard) > 6 else "Verdict: tie"

    (outcome,) = label_all(paired, critical, unsure, "critic")["critic"]
    assert outcome.written + outcome.failed == 12 and outcome.failed > 0 and outcome.written > 0
    assert len(heard) > 12 and "could not be used: Its last line is no verdict" in heard[1].user + heard[2].user
    assert paired.rows("SELECT DISTINCT kind, reply FROM open_failures") == [
        {"kind": "unparsable", "reply": "Verdict: A\nor perhaps B"}
    ]
    assert label_all(paired, critical, critic, "critic", retry_failed=True)["critic"][0].failed == 0
    assert paired.value("SELECT count(*) FROM labels") == 12
    assert paired.value("SELECT count(*) FROM open_failures") == 0


def test_a_reply_that_was_cut_off_says_so(paired: Warehouse, critical: Recipe) -> None:
    class ShortEngine(ScriptedEngine):
        def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
            yield from (replace(each, finish="length") for each in super().generate(requests))

    (stage,) = judges_of(critical)["critic"].stages
    run_stage(paired, stage, lambda: ShortEngine(lambda request: "First of all,"), limit=1)
    assert "cut off at `max_new_tokens`" in paired.value("SELECT any_value(message) FROM failures")


def test_a_judge_without_frames_reads_the_narrative_alone(
    paired: Warehouse, recipe: Recipe, with_judges: WithJudges, label_all: Labeled
) -> None:
    heard: list[Request] = []

    def judge(request: Request) -> dict[str, float]:
        heard.append(request)
        return {"A": 0.6, "B": 0.3, "C": 0.1}

    blind = with_judges(recipe, {"name": "text", "prompt": "judge_text_v1", "arm": "context"})
    label_all(paired, blind, judge, "text")
    assert {request.video for request in heard} == {None} and {request.choices for request in heard} == {CHOICES}
    assert all("the narrative {question} ." in request.user for request in heard)
    spec = judge_spec(blind, "text")
    assert spec.frames == "{}" and spec != judge_spec(recipe, "context")
    assert paired.value("SELECT count(context_id) FROM labels WHERE spec_id = ?", [spec.spec_id]) == 12


def test_imported_verdicts_are_whole_in_one_order(paired: Warehouse) -> None:
    label = {"spec_id": "s", "vote": 0, "choice": "a", "p_a": 1.0, "p_tie": 0.0}
    whole = {
        order: preferences([{**label, "shown_order": order}])[0]["complete"] for order in ("ab", "unknown", "both")
    }
    assert whole == {"ab": False, "unknown": True, "both": True}
