"""Checklists, claims and rankings: what is asked, what the ratings are, and the labels that are made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import exp
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_rlaif.datagen import prompt
from vlm_rlaif.datagen.engine import Request, ScriptedEngine
from vlm_rlaif.datagen.job import run_stage
from vlm_rlaif.feedback.judges.claims import claims_in, sentences_in
from vlm_rlaif.feedback.judges.plan import judge_spec, judges_of
from vlm_rlaif.feedback.judges.rank import read_order
from vlm_rlaif.feedback.judges.rate import YES_NO
from vlm_rlaif.warehouse.care.keys import SENTENCES
from vlm_rlaif.warehouse.care.relations import gather
from vlm_rlaif.warehouse.care.row_checks import check_ids
from vlm_rlaif.warehouse.config import Recipe
from vlm_rlaif.warehouse.store import Warehouse

WithJudges = Callable[..., Recipe]
Labeled = Callable[..., Any]
CHECK: dict[str, Any] = {"name": "steps", "method": "checklist", "prompt": "checklist_v1", "scale": 0.25}
CLAIMS: dict[str, Any] = {"name": "claims", "method": "claims", "prompt": "claim_v1", "split_prompt": "claims_v1"}
RANK: dict[str, Any] = {"name": "rank", "method": "rank", "prompt": "rank_v1"}


def number(text: str) -> float:
    """Something about a response that a judge can like, between 0 and 1: its seed is its last word."""
    return int(text.split()[-1].strip(".")) % 97 / 97


def liked(request: Request) -> dict[str, float]:
    said = request.user.partition("Response: ")[2].partition("\n")[0]
    return {"yes": number(said), "no": 1 - number(said)}


def refuse(request: Request) -> str:
    raise AssertionError("nobody is to be asked")


def texts(warehouse: Warehouse) -> dict[str, str]:
    return {row["response_id"]: row["text"] for row in warehouse.rows("SELECT response_id, text FROM responses")}


# Checklists


def test_every_item_of_a_checklist_is_asked_by_itself(
    paired: Warehouse, recipe: Recipe, with_judges: WithJudges, label_all: Labeled
) -> None:
    heard: list[Request] = []

    def judge(request: Request) -> dict[str, float]:
        heard.append(request)
        return liked(request)

    listed = with_judges(recipe, {**CHECK, "items": ["Is it right?", "Is it short?"]})
    asked, derived = label_all(paired, listed, judge, "steps")["steps"]
    assert (asked.stage, asked.written) == ("check", 12 * 2) and (derived.stage, derived.written) == ("rated", 6)
    assert {request.choices for request in heard} == {YES_NO}
    assert sum("Is it short? Answer with one word" in request.user for request in heard) == 12
    said = texts(paired)
    for row in paired.rows("SELECT * FROM ratings"):
        assert row["item"] in ("Is it right?", "Is it short?")
        assert row["value"] == pytest.approx(number(said[row["response_id"]]), abs=1e-8)
    for row in paired.rows("SELECT * FROM preferences"):
        gap = number(said[row["response_a"]]) - number(said[row["response_b"]])
        assert row["p_a"] == pytest.approx(1 / (1 + exp(-gap / 0.25)), abs=1e-6)
        assert row["choice"] == ("a" if gap > 0 else "b" if gap < 0 else "tie") and row["judge_prompt"] == "steps"
        assert (row["complete"], row["order_agreement"], row["conflict"]) == (True, None, False)
    reply = json.loads(paired.value("SELECT any_value(reply) FROM labels"))
    assert set(reply) == {"a", "b"}
    assert list(check_ids(paired, everything=True)) == []
    assert paired.value("SELECT sum(rows_missing) FROM pending_work WHERE stage = 'check'") == 0


def test_a_further_item_asks_for_itself_alone_and_makes_labels_anew(
    paired: Warehouse, recipe: Recipe, with_judges: WithJudges, label_all: Labeled
) -> None:
    for items, asked in ((["One ?"], 12), (["One ?", "Two ?"], 12), (["One ?"], 0)):
        listed = with_judges(recipe, {**CHECK, "items": items})
        assert label_all(paired, listed, liked, "steps")["steps"][0].written == asked
    assert paired.value("SELECT count(DISTINCT spec_id) FROM labels") == 2


def test_a_pair_without_all_its_ratings_has_no_label_and_is_counted(
    paired: Warehouse, recipe: Recipe, with_judges: WithJudges, label_all: Labeled
) -> None:
    listed = with_judges(recipe, {**CHECK, "items": ["One ?", "Two ?"]})

    def stubborn(request: Request) -> Any:
        return "perhaps" if "what does the cat do" in request.user and "Two ?" in request.user else liked(request)

    asked, derived = label_all(paired, listed, stubborn, "steps")["steps"]
    assert (asked.written, asked.failed) == (22, 2)
    assert derived.written == 5 and derived.dropped == {"without all ratings of steps": 1}
    assert "1 dropped (1 without all ratings of steps)" in str(derived)
    again = label_all(paired, listed, refuse, "steps")["steps"]
    assert again[1].run_id is None and again[1].dropped == {"without all ratings of steps": 1}
    asked, derived = label_all(paired, listed, liked, "steps", retry_failed=True)["steps"]
    assert (asked.written, derived.written, derived.dropped) == (2, 1, {})
    assert paired.value("SELECT count(*) FROM open_failures") == 0


def test_a_small_difference_is_a_tie_where_the_recipe_says_so(
    paired: Warehouse, recipe: Recipe, with_judges: WithJudges, label_all: Labeled
) -> None:
    listed = with_judges(recipe, {**CHECK, "items": ["One ?"], "tie_margin": 1.0})
    label_all(paired, listed, liked, "steps")
    rows = paired.rows("SELECT choice, strength, chosen FROM preferences")
    assert {row["choice"] for row in rows} == {"tie"} and any(row["strength"] > 0 for row in rows)


def test_ratings_of_scores_become_labels_of_the_narratives_that_were_read(
    paired: Warehouse, recipe: Recipe, with_judges: WithJudges, label_all: Labeled
) -> None:
    scored = with_judges(recipe, {"name": "score", "method": "score", "prompt": "rate_context_v1", "arm": "context"})

    def judge(request: Request) -> dict[str, float]:
        return {rating: 0.9 if rating == "4" else 0.025 for rating in request.choices}

    rated, derived = label_all(paired, scored, judge, "score")["score"]
    assert (rated.stage, rated.written, derived.written) == ("rate", 12, 6)
    contexts = "SELECT count(*) FROM labels JOIN contexts USING (context_id)"
    assert paired.value(contexts) == 6
    assert paired.rows("SELECT DISTINCT choice, p_a FROM preferences") == [{"choice": "tie", "p_a": 0.5}]


# Claims


def split(request: Request) -> Any:
    """Two claims of a response; the second is false."""
    if request.choices:
        right = "is long" not in request.user
        return {"yes": 0.9, "no": 0.1} if right else {"yes": 0.2, "no": 0.8}
    said = request.user.partition("Response: ")[2].partition("\n")[0]
    return f"- It says {said}.\n- It is long."


def test_every_claim_is_judged_by_itself(
    paired: Warehouse, recipe: Recipe, with_judges: WithJudges, label_all: Labeled
) -> None:
    claims = with_judges(recipe, CLAIMS)
    first, second, derived = label_all(paired, claims, split, "claims")["claims"]
    assert [(each.stage, each.written) for each in (first, second, derived)] == [
        ("split", 12), ("verify", 24), ("rated", 6),
    ]  # fmt: skip
    rows = paired.rows("SELECT g.* FROM ratings g JOIN specs s USING (spec_id) WHERE s.stage = 'split'")
    assert {(row["item"], row["value"]) for row in rows} == {("claims", 2.0)}
    assert all(row["reply"].endswith("\nIt is long.") for row in rows)
    found = paired.rows("SELECT item, value FROM ratings JOIN specs USING (spec_id) WHERE stage = 'verify'")
    assert {round(row["value"], 6) for row in found if row["item"] == "It is long."} == {0.2}
    assert json.loads(paired.value("SELECT any_value(reply) FROM labels")) == {"a": 0.55, "b": 0.55}
    assert list(check_ids(paired, everything=True)) == []
    pending = paired.rows(
        "SELECT stage, rows_wanted, rows_missing FROM pending_work WHERE stage IN ('split', 'verify')"
    )
    assert sorted(tuple(row.values()) for row in pending) == [("split", 12, 0), ("verify", 24, 0)]


def test_a_response_without_claims_is_a_failure_and_not_a_zero(
    paired: Warehouse, recipe: Recipe, with_judges: WithJudges, label_all: Labeled
) -> None:
    claims = with_judges(recipe, CLAIMS)

    def silent(request: Request) -> Any:
        return "- \n..." if not request.choices and "the cat do" in request.user else split(request)

    first, second, derived = label_all(paired, claims, silent, "claims")["claims"]
    assert (first.written, first.failed, second.written) == (10, 2, 20)
    assert (derived.written, derived.dropped) == (5, {"without all ratings of claims": 1})
    assert paired.rows("SELECT DISTINCT stage, kind FROM open_failures") == [{"stage": "split", "kind": "unparsable"}]


def test_a_kill_in_either_step_loses_nothing_and_asks_nothing_twice(
    paired: Warehouse, recipe: Recipe, with_judges: WithJudges, label_all: Labeled
) -> None:
    claims, heard = with_judges(recipe, CLAIMS), list[Request]()
    first, second = judges_of(claims)["claims"].stages

    def until(count: int) -> Callable[[Request], Any]:
        """Answers so many requests, and is killed."""

        def script(request: Request) -> Any:
            if len(heard) == count:
                raise KeyboardInterrupt
            heard.append(request)
            return split(request)

        return script

    with pytest.raises(KeyboardInterrupt):
        run_stage(paired, first, lambda: ScriptedEngine(until(5)))
    assert paired.value("SELECT count(*) FROM ratings") == 5
    with pytest.raises(KeyboardInterrupt):
        run_stage(paired, second, lambda: ScriptedEngine(until(5 + 9)))
    label_all(paired, claims, until(1000), "claims")
    assert paired.value("SELECT count(*) FROM ratings") == len(heard) == 12 + 24
    assert paired.value("SELECT count(*) FROM labels") == 6


def test_without_a_model_claims_end_with_sentences(
    paired: Warehouse, recipe: Recipe, with_judges: WithJudges, label_all: Labeled
) -> None:
    paired.execute("UPDATE responses SET text = 'The cat is 3.5 feet long. It sleeps ; it wakes . ' || seed")
    whole = with_judges(recipe, {**CLAIMS, "split_prompt": None})
    asked, derived = label_all(paired, whole, split, "claims")["claims"]
    assert (asked.stage, asked.written, derived.written) == ("verify", 12 * 4, 6)
    items = {row["item"] for row in paired.rows("SELECT DISTINCT item FROM ratings")}
    assert items >= {"The cat is 3.5 feet long.", "It sleeps ;", "it wakes ."} and len(items) == 3 + 12
    assert list(check_ids(paired, everything=True)) == []


@given(st.lists(st.text(st.sampled_from("ab3 .!?;\n\t'é"), max_size=30), min_size=1, max_size=20))
def test_sentences_in_sql_are_those_of_the_slow_twin(said: list[str]) -> None:
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE t (n INTEGER, text VARCHAR)")
        connection.executemany("INSERT INTO t VALUES (?, ?)", list(enumerate(said)))
        found: dict[int, list[str]] = {}
        for n, item in connection.execute(f"SELECT n, {SENTENCES.format(text='text')} FROM t").fetchall():
            found.setdefault(n, []).append(item)
    assert {n: set(items) for n, items in found.items()} == {n: set(sentences_in(t)) for n, t in enumerate(said)}


def test_lists_of_claims_are_read_whatever_their_marks() -> None:
    assert claims_in("1. One.\n2) Two.\n* Two.\n\n• Three - and four.\n---\n") == [
        "One.",
        "Two.",
        "Three - and four.",
    ]
    assert claims_in("  \n-\n") == []


# Rankings


def ordering(request: Request) -> str:
    """The best response has the highest number."""
    listed = [line for line in request.user.splitlines() if ". answer " in line]
    best = sorted(range(len(listed)), key=lambda place: number(listed[place]), reverse=True)
    return "I like them all.\nOrder: " + " > ".join(str(place + 1) for place in best)


def test_all_responses_of_a_question_are_put_in_order_twice(
    paired: Warehouse, recipe: Recipe, with_judges: WithJudges, label_all: Labeled
) -> None:
    heard: list[Request] = []

    def judge(request: Request) -> str:
        heard.append(request)
        return ordering(request)

    asked, derived = label_all(paired, with_judges(recipe, RANK), judge, "rank")["rank"]
    assert (asked.stage, asked.written, derived.written, len(heard)) == ("rank", 24, 6, 12)
    said = texts(paired)
    for row in paired.rows("SELECT response_a, response_b, choice, p_a FROM preferences"):
        a, b = number(said[row["response_a"]]), number(said[row["response_b"]])
        assert row["choice"] == ("a" if a > b else "b" if a < b else "tie")
        assert a == b or row["p_a"] == pytest.approx(1 / (1 + exp(-1 if a > b else 1)))
    assert {row["item"][:9] for row in paired.rows("SELECT DISTINCT item FROM ratings")} == {"rank forw", "rank reve"}
    assert list(check_ids(paired, everything=True)) == []


def test_a_judge_who_always_likes_the_first_ranks_nobody(
    paired: Warehouse, recipe: Recipe, with_judges: WithJudges, label_all: Labeled
) -> None:
    label_all(paired, with_judges(recipe, RANK), lambda request: "Order: 1 > 2", "rank")
    assert paired.rows("SELECT DISTINCT choice, p_a FROM preferences") == [{"choice": "tie", "p_a": 0.5}]


def test_with_a_further_response_a_question_is_ranked_anew(
    paired: Warehouse, recipe: Recipe, with_judges: WithJudges, label_all: Labeled
) -> None:
    ranked = with_judges(recipe, RANK)
    label_all(paired, ranked, ordering, "rank")
    paired.execute(
        "INSERT INTO responses BY NAME SELECT * REPLACE (response_id || 'x' AS response_id, 'answer 1' AS text)"
        " FROM responses LIMIT 1"
    )
    asked, _ = label_all(paired, ranked, ordering, "rank")["rank"]
    assert (asked.pending, asked.written) == (2, 6)
    values = paired.rows("SELECT DISTINCT value FROM ratings ORDER BY 1")
    assert [row["value"] for row in values] == [0.0, 0.5, 1.0]


def test_where_all_say_the_same_nobody_is_asked(
    paired: Warehouse, recipe: Recipe, with_judges: WithJudges, label_all: Labeled
) -> None:
    paired.execute("UPDATE responses SET text = 'the same' WHERE question_id = (SELECT min(question_id) FROM pairs)")
    asked, derived = label_all(paired, with_judges(recipe, RANK), lambda request: "Order: 2 > 1", "rank")["rank"]
    assert (asked.pending, derived.written) == (10, 5)


def test_an_order_names_everybody_once() -> None:
    assert read_order("**Order: 2 > 1**", 2) == [2, 1] and read_order("3>1 > 2.", 3) == [3, 1, 2]
    for wrong in ("", "2 > 1\nis my order", "1 > 1", "1 > 2 > 3", "2, 1", "1", "0 > 1"):
        assert read_order(wrong, 2) is None


# Care


def test_failures_of_every_kind_go_with_their_video(
    paired: Warehouse, recipe: Recipe, with_judges: WithJudges, label_all: Labeled
) -> None:
    """The ids of requests that failed are computed again from what was asked for."""
    judges = [{**CHECK, "items": ["One ?"]}, CLAIMS, RANK, {**CLAIMS, "name": "whole", "split_prompt": None}]
    made = with_judges(recipe, *judges)

    def sometimes(request: Request) -> Any:
        if int(request.request_id, 16) % 2:
            raise ValueError("no")
        return split(request) if request.choices else f"{split(request)}\n{ordering(request)}"

    label_all(paired, made, sometimes, "steps", "claims", "rank", "whole")
    stages = "SELECT stage, count(*) AS n FROM failures GROUP BY 1 ORDER BY 1"
    failed = {row["stage"]: row["n"] for row in paired.rows(stages)}
    assert failed.keys() == {"check", "rank", "split", "verify"}
    with paired.visit(read_only=True) as connection:
        gather(connection, [row["video_id"] for row in paired.rows("SELECT video_id FROM videos")])
        (gone,) = connection.execute("SELECT count(*) FROM gone_failures").fetchall()[0]
    assert gone == sum(failed.values())


@pytest.mark.parametrize(
    ("name", "told", "fields"),
    [
        ("judge_critique_v1", "judge_critique_context_v1", {"question", "response_a", "response_b"}),
        ("judge_v1", "judge_text_v1", {"question", "response_a", "response_b"}),
        ("checklist_v1", "checklist_context_v1", {"question", "response", "item"}),
        ("check_compact_v1", "check_context_compact_v1", {"question", "response"}),
        ("claim_v1", "claim_context_v1", {"claim"}),
        ("claim_compact_v1", "claim_context_compact_v1", {"question", "claim"}),
        ("rank_v1", "rank_context_v1", {"question", "responses"}),
    ],
)
def test_every_shipped_prompt_of_the_judges_asks_for_what_it_is_given(name: str, told: str, fields: set[str]) -> None:
    assert prompt.load(name).fields == fields and prompt.load(told).fields == fields | {"context"}


def test_a_judge_is_told_from_its_labels(recipe: Recipe, with_judges: WithJudges) -> None:
    made = with_judges(
        recipe, {**CHECK, "items": ["One ?"]}, {**CHECK, "items": ["One ?"], "name": "other", "scale": 2.0}
    )
    assert judge_spec(made, "steps").spec_id != judge_spec(made, "other").spec_id
    assert json.loads(judge_spec(made, "steps").sampling) == {"items": ["One ?"], "scale": 0.25, "tie_margin": 0.0}
