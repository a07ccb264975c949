"""The label stage: two orders, one response that is spoken of, and a judge who may read the narrative or not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from math import log, nan
from typing import Any

import pytest

from vlm_rlaif.datagen.engine import Completion, Request, ScriptedEngine
from vlm_rlaif.datagen.job import run_stage
from vlm_rlaif.datagen.plan import caption_stage, clip_method, context_spec, respond_stage
from vlm_rlaif.datagen.stages.context import context
from vlm_rlaif.feedback.judges.pairwise import label_stage
from vlm_rlaif.feedback.verdict import CHOICES
from vlm_rlaif.warehouse.config import Recipe
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.runs import Outcome
from vlm_rlaif.warehouse.store import Warehouse

Judge = Callable[[Request], Any]


def judged(warehouse: Warehouse, recipe: Recipe, judge: Judge, arm: str = "none", **options: Any) -> Outcome:
    return run_stage(warehouse, label_stage(recipe, arm), lambda: ScriptedEngine(judge), **options)


def listening(judge: Judge, heard: list[Request]) -> Judge:
    """The same judge, with an ear on what he is asked."""

    def listen(request: Request) -> Any:
        heard.append(request)
        return judge(request)

    return listen


def shown_first(request: Request) -> dict[str, float]:
    return {"A": 0.8, "B": 0.1, "C": 0.1}


def shown(request: Request) -> tuple[str, str]:
    """The two responses in the order in which a compact prompt shows them."""
    first, second = request.user.partition(" A : ")[2].removesuffix(" verdict").split(" B : ")
    return first, second


def smaller(request: Request) -> dict[str, float]:
    """A fair judge with a taste: the response that comes first in the alphabet, wherever it is shown."""
    first, second = shown(request)
    return {"A": 0.8, "B": 0.1, "C": 0.1} if first < second else {"A": 0.1, "B": 0.8, "C": 0.1}


def test_every_pair_is_judged_in_both_orders(paired: Warehouse, recipe: Recipe) -> None:
    seen: list[Request] = []
    judged(paired, recipe, listening(shown_first, seen))
    assert paired.rows("SELECT shown_order, count(*) AS n FROM labels GROUP BY 1 ORDER BY 1") == [
        {"shown_order": "ab", "n": 6}, {"shown_order": "ba", "n": 6},
    ]  # fmt: skip
    texts = {
        (row["a"], row["b"])
        for row in paired.rows(
            "SELECT a.text AS a, b.text AS b FROM pairs p JOIN responses a ON a.response_id = p.response_a"
            " JOIN responses b ON b.response_id = p.response_b"
        )
    }
    assert {shown(request) for request in seen} == texts | {(b, a) for a, b in texts}
    assert len(seen) == 12
    assert {request.choices for request in seen} == {CHOICES}
    assert {request.sampling.max_new_tokens for request in seen} == {1}


def test_a_judge_who_always_likes_the_first_makes_no_preference(paired: Warehouse, recipe: Recipe) -> None:
    judged(paired, recipe, shown_first)
    rows = paired.rows("SELECT choice, conflict, p_a, strength, chosen FROM preferences")
    assert len(rows) == 6
    for row in rows:
        assert (row["choice"], row["conflict"], row["chosen"]) == ("tie", True, None)
        assert row["p_a"] == pytest.approx(0.5) and row["strength"] == pytest.approx(0.0)
    (bias,) = paired.rows("SELECT * FROM judge_bias")
    assert (bias["verdicts"], bias["first_position_rate"], bias["conflict_rate"]) == (12, 1.0, 1.0)


def test_choice_and_probability_always_speak_of_response_a(paired: Warehouse, recipe: Recipe) -> None:
    judged(paired, recipe, smaller)
    for row in paired.rows("SELECT * FROM lineage"):
        likes_a = row["text_a"] < row["text_b"]
        assert row["choice"] == ("a" if likes_a else "b")
        assert row["p_a"] == pytest.approx(0.8 if likes_a else 0.1)
        assert row["reply"] == ("A" if likes_a == (row["shown_order"] == "ab") else "B")
    for row in paired.preferences().to_dicts():
        assert row["choice"] == ("a" if row["text_a"] < row["text_b"] else "b")
        assert row["chosen"] == (row["response_a"] if row["choice"] == "a" else row["response_b"])
        assert row["order_agreement"] and row["strength"] == pytest.approx(0.7)
    (bias,) = paired.rows("SELECT * FROM judge_bias")
    assert (bias["first_position_rate"], bias["conflict_rate"], bias["tie_rate"]) == (0.5, 0.0, 0.0)


def test_preferences_are_a_frame_that_arrow_and_datasets_take_as_it_is(paired: Warehouse, recipe: Recipe) -> None:
    judged(paired, recipe, smaller)
    preferences = paired.preferences(judge="judge_compact_v1", min_strength=0.2)
    assert len(preferences) == 6 and paired.preferences(min_strength=0.71).is_empty()
    table = preferences.to_arrow()
    assert table.column("p_a").to_pylist() == preferences["p_a"].to_list()
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_polars(preferences)
    assert rows.column_names == preferences.columns
    assert [row["text_a"] for row in rows] == preferences["text_a"].to_list()


def test_one_arm_reads_the_narrative_and_the_other_does_not(paired: Warehouse, recipe: Recipe) -> None:
    with_context: list[Request] = []
    without: list[Request] = []
    judged(paired, recipe, listening(smaller, with_context), "context")
    judged(paired, recipe, listening(smaller, without), "none")
    assert len(with_context) == len(without) == 12
    assert all("the narrative {question} ." in request.user for request in with_context)
    assert not any("narrative" in request.user for request in without)
    arms = paired.rows(
        "SELECT s.prompt, count(*) AS labels, count(l.context_id) AS contexts"
        " FROM labels l JOIN specs s USING (spec_id) GROUP BY 1 ORDER BY 1"
    )
    assert arms == [
        {"prompt": "judge_compact_v1", "labels": 12, "contexts": 0},
        {"prompt": "judge_context_compact_v1", "labels": 12, "contexts": 12},
    ]
    assert paired.value("SELECT count(*) FROM preferences") == 12


def test_braces_in_questions_and_answers_reach_the_judge_as_they_are(paired: Warehouse, recipe: Recipe) -> None:
    seen: list[Request] = []
    judged(paired, recipe, listening(smaller, seen), "context")
    for request in seen:
        assert "the narrative {question} ." in request.user
        assert request.user.count("answer {context} ") == 2


def test_a_pair_without_context_waits_for_one_in_the_arm_that_reads_it(paired: Warehouse, recipe: Recipe) -> None:
    paired.execute("DELETE FROM contexts WHERE video_id = (SELECT min(video_id) FROM videos)")
    assert judged(paired, recipe, smaller, "context").written == 8
    assert judged(paired, recipe, smaller, "none").written == 12
    captions = caption_stage(recipe).spec.spec_id
    context(paired, context_spec(recipe), captions, clip_method(recipe))
    assert judged(paired, recipe, smaller, "context").written == 4


def test_labels_that_stand_are_not_asked_for_again(paired: Warehouse, recipe: Recipe) -> None:
    assert judged(paired, recipe, smaller, limit=5).written == 5
    assert judged(paired, recipe, smaller).written == 7
    assert judged(paired, recipe, smaller).run_id is None


@pytest.mark.parametrize(
    "odd",
    [{}, {"A": -1.0, "B": -2.0}, dict.fromkeys(CHOICES, nan), dict.fromkeys(CHOICES, -float("inf")),
     {"A": nan, "B": -1.0, "C": -1.0}],
    ids=["none", "one is missing", "no numbers", "nothing possible", "one no number"],
)  # fmt: skip
def test_a_verdict_that_cannot_be_read_is_a_failure_and_never_a_default(
    paired: Warehouse, recipe: Recipe, odd: dict[str, float]
) -> None:
    class OddEngine(ScriptedEngine):
        def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
            for completion in super().generate(requests):
                yield replace(completion, choice_logprobs=odd)

    outcome = run_stage(paired, label_stage(recipe, "none"), lambda: OddEngine(smaller))
    assert (outcome.written, outcome.failed) == (0, 12)
    rows = paired.rows("SELECT DISTINCT kind, stage FROM failures")
    assert rows == [{"kind": "unparsable", "stage": "label"}]
    assert paired.value("SELECT count(*) FROM labels") == 0
    assert set(row["reply"] for row in paired.rows("SELECT reply FROM failures")) <= {"A", "B"}
    assert judged(paired, recipe, smaller, retry_failed=True).written == 12
    assert paired.value("SELECT count(*) FROM open_failures") == 0


def test_a_judge_who_answers_in_prose_is_unparsable_with_his_words_kept(paired: Warehouse, recipe: Recipe) -> None:
    assert judged(paired, recipe, lambda request: "I like both {a lot}.").failed == 12
    assert paired.rows("SELECT DISTINCT kind, reply FROM open_failures") == [
        {"kind": "unparsable", "reply": "I like both {a lot}."}
    ]


def test_an_undecided_judge_makes_ties(paired: Warehouse, recipe: Recipe) -> None:
    judged(paired, recipe, lambda request: {"A": 0.2, "B": 0.2, "C": 0.6})
    (row,) = paired.rows("SELECT choice, p_a, p_tie, count(*) AS n FROM labels GROUP BY ALL")
    assert (row["choice"], row["n"]) == ("tie", 12)
    assert (row["p_a"], row["p_tie"]) == pytest.approx((0.2, 0.6))


def test_an_unknown_arm_names_the_nearest(recipe: Recipe) -> None:
    with pytest.raises(UserError, match=r"unknown arm 'contxt'\. Did you mean 'context'"):
        label_stage(recipe, "contxt")


def test_a_dry_run_of_the_command_counts_both_arms(paired: Warehouse, command: Any, recipe_file: Any) -> None:
    result = command("feedback", "label", paired.path, "--recipe", recipe_file, "--dry-run")
    assert result.code == 0
    assert [line.split(" would")[0] for line in result.out.splitlines()] == ["label: 12 rows"] * 2
    wrong = command("feedback", "label", paired.path, "--recipe", recipe_file, "--arm", "nine")
    assert wrong.code == 2 and "Did you mean 'none'?" in wrong.err


def test_the_run_remembers_what_the_judge_was_asked(paired: Warehouse, recipe: Recipe) -> None:
    outcome = judged(paired, recipe, smaller, "context")
    config = json.loads(paired.value("SELECT config FROM runs WHERE run_id = ?", [outcome.run_id]))
    assert config["prompt"] == "judge_context_compact_v1"
    assert json.loads(config["upstream"]) == {
        "respond": respond_stage(recipe).spec.spec_id, "context": context_spec(recipe).spec_id,
    }  # fmt: skip


def test_probabilities_are_those_of_the_labels_alone(paired: Warehouse, recipe: Recipe) -> None:
    class WordyEngine(ScriptedEngine):
        def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
            for completion in super().generate(requests):
                yield replace(completion, choice_logprobs={"A": log(0.03), "B": log(0.01), "C": log(0.01)})

    run_stage(paired, label_stage(recipe, "none"), lambda: WordyEngine(smaller))
    assert {round(row["p_a"], 6) for row in paired.rows("SELECT p_a FROM labels")} == {0.6, 0.2}
