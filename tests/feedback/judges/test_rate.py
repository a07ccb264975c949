"""Ratings of single responses, the pairs that they choose, and the labels that are read of those pairs alone."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from math import exp, inf, log, nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_rlaif.datagen import prompt
from vlm_rlaif.datagen.engine import Request, ScriptedEngine
from vlm_rlaif.datagen.job import Stage, run_stage, run_stages
from vlm_rlaif.datagen.plan import context_spec, respond_stage
from vlm_rlaif.datagen.policies import pairs_of, respond_stages
from vlm_rlaif.datagen.portion import Portion
from vlm_rlaif.datagen.stages.pair import pair
from vlm_rlaif.feedback.judges.pairwise import label_stage
from vlm_rlaif.feedback.judges.rate import RATINGS, expected_rating, rate_stages
from vlm_rlaif.train.run import reward_job
from vlm_rlaif.warehouse.config import Recipe, Rewarding, load
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.judge_settings import Grading
from vlm_rlaif.warehouse.records import Context
from vlm_rlaif.warehouse.runs import Outcome
from vlm_rlaif.warehouse.settings import Pairing, Perturbing
from vlm_rlaif.warehouse.store import Warehouse

Command = Any


@pytest.fixture
def rating(recipe: Recipe) -> Recipe:
    """Three responses a question; a judge rates them, and the best is compared with the worst."""
    assert recipe.respond is not None and recipe.label is not None
    judge = recipe.label
    return dataclasses.replace(
        recipe,
        respond=dataclasses.replace(recipe.respond, samples=3),
        rate=Grading(model=judge.model, prompt="rate_compact_v1", frames=judge.frames),
        pair=Pairing(strategy="best_worst", score="quality"),
    )


@pytest.fixture
def answered(asked: Warehouse, rating: Recipe) -> Warehouse:
    """The three responses to each of six questions say `quality 1`, `quality 3` and `quality 5`."""
    run_stage(asked, respond_stage(rating), lambda: ScriptedEngine(lambda request: str(request.seed)))
    asked.execute("UPDATE responses SET text = 'quality ' || (2 * sample_index::INT + 1)")
    return asked


def grade(request: Request) -> dict[str, float]:
    """A judge who reads the quality off the response, and says it with a probability of 0.8."""
    right = request.user.partition("quality ")[2][0]
    return {rating: 0.8 if rating == right else 0.05 for rating in request.choices}


def rated(warehouse: Warehouse, recipe: Recipe, judge: Callable[[Request], Any] = grade, **options: Any) -> Outcome:
    (stage,) = rate_stages(recipe)
    return run_stage(warehouse, stage, lambda: ScriptedEngine(judge), **options)


probabilities = st.lists(st.floats(1e-6, 1.0), min_size=5, max_size=5)


@given(probabilities, st.floats(-50, 50))
def test_the_value_is_the_mean_rating_whatever_else_the_judge_might_say(given: list[float], shift: float) -> None:
    value = expected_rating({r: log(p) + shift for r, p in zip(RATINGS, given, strict=True)})
    slow = sum(int(r) * p for r, p in zip(RATINGS, given, strict=True)) / sum(given)
    assert value is not None and value == pytest.approx(slow) and 1 <= value <= 5


def test_what_says_nothing_is_no_rating() -> None:
    whole = dict.fromkeys(RATINGS, -1.0)
    assert expected_rating(whole) == 3.0
    for wrong in ({}, {"1": -1.0}, {**whole, "6": -1.0}, {**whole, "1": nan}, dict.fromkeys(RATINGS, -inf)):
        assert expected_rating(wrong) is None
    assert expected_rating({**whole, "1": -inf}) == pytest.approx(3.5)


def test_every_response_is_rated_by_itself_and_once(answered: Warehouse, rating: Recipe) -> None:
    heard: list[Request] = []

    def judge(request: Request) -> dict[str, float]:
        heard.append(request)
        return grade(request)

    assert rated(answered, rating, judge).written == 18
    assert rated(answered, rating).run_id is None
    assert {request.choices for request in heard} == {RATINGS}
    assert heard[0].user.startswith("question what ") and heard[0].user.endswith(" rate")
    rows = answered.rows(
        "SELECT DISTINCT r.text, round(g.value, 6) AS value, g.item, g.reply FROM ratings g"
        " JOIN responses r USING (response_id) ORDER BY 1"
    )
    means = [round(0.8 * n + 0.05 * (15 - n), 6) for n in (1, 3, 5)]
    assert [row["value"] for row in rows] == means
    assert {row["item"] for row in rows} == {"quality"} and [row["reply"] for row in rows] == ["1", "3", "5"]


def test_a_judge_without_probabilities_is_a_failure_and_no_rating(answered: Warehouse, rating: Recipe) -> None:
    assert rated(answered, rating, lambda request: "five").failed == 18
    assert answered.value("SELECT count(*) FROM ratings") == 0
    assert answered.rows("SELECT DISTINCT stage, kind, reply FROM open_failures") == [
        {"stage": "rate", "kind": "unparsable", "reply": "five"}
    ]
    assert rated(answered, rating, retry_failed=True).written == 18
    assert answered.value("SELECT count(*) FROM open_failures") == 0


def test_ratings_choose_the_pairs(answered: Warehouse, rating: Recipe) -> None:
    assert pairs_of(rating).make(answered).dropped == {"without a score": 18}
    rated(answered, rating)
    outcome = pairs_of(rating).make(answered)
    assert (outcome.written, outcome.dropped) == (6, {})
    rows = answered.rows(
        "SELECT DISTINCT least(a.text, b.text) AS worst, greatest(a.text, b.text) AS best, p.strategy FROM pairs p"
        " JOIN responses a ON a.response_id = p.response_a JOIN responses b ON b.response_id = p.response_b"
    )
    assert rows == [{"worst": "quality 1", "best": "quality 5", "strategy": "best_worst(score=quality)"}]


def test_ratings_of_another_judge_choose_nothing(answered: Warehouse, rating: Recipe, tmp_path: Path) -> None:
    assert rating.rate is not None
    (tmp_path / "mine_v1.md").write_text("{question} {response} ?")
    mine = dataclasses.replace(rating, rate=dataclasses.replace(rating.rate, prompt=str(tmp_path / "mine_v1.md")))
    rated(answered, rating)
    assert pairs_of(mine).ids(answered) == []
    assert len(pairs_of(rating).ids(answered)) == 6


def better(request: Request) -> dict[str, float]:
    """The response with the higher quality is better."""
    first, second = request.user.partition(" A : ")[2].removesuffix(" verdict").split(" B : ")
    return {"A": 0.9, "B": 0.1} if first > second else {"A": 0.1, "B": 0.9}


def labeled(warehouse: Warehouse, recipe: Recipe) -> Outcome:
    return run_stage(warehouse, label_stage(recipe, "none"), lambda: ScriptedEngine(better))


def test_labels_are_made_of_the_recipes_own_pairs(answered: Warehouse, rating: Recipe) -> None:
    """Another recipe's pairs stand in the same table. What both ask for is judged once."""
    every = dataclasses.replace(rating, pair=None)
    pair(answered, respond_stage(every).spec.spec_id)
    rated(answered, rating)
    assert pairs_of(rating).make(answered).written == 0
    assert label_stage(rating, "none").spec == label_stage(every, "none").spec
    assert labeled(answered, rating).written == 2 * 6
    assert labeled(answered, rating).run_id is None
    assert labeled(answered, every).written == 2 * 18 - 2 * 6


def test_a_recipe_without_a_pair_part_leaves_the_pairs_of_others_alone(
    answered: Warehouse, rating: Recipe, tmp_path: Path
) -> None:
    """Pairs across policies, or with negatives, are no pairs of a recipe that asks for neither."""
    plain = dataclasses.replace(rating, pair=None)
    spoilt = dataclasses.replace(rating, pair=Pairing(perturb=Perturbing(kinds=["reversed"])))
    run_stages(answered, respond_stages(spoilt), lambda: ScriptedEngine(lambda request: "spoilt"), Portion())
    assert pairs_of(spoilt).make(answered).written == 18 + 6
    assert labeled(answered, plain).written == 2 * 18
    assert labeled(answered, spoilt).written == 2 * 6


def test_what_a_reward_model_reads_are_the_recipes_own_pairs(answered: Warehouse, rating: Recipe) -> None:
    answered.execute("UPDATE videos SET split = 'train'")
    assert rating.label is not None
    judge = rating.label
    reward = Rewarding(model=judge.model, prompt="reward_compact_v1", frames=judge.frames, labels="none")
    few = dataclasses.replace(rating, reward=reward, label=dataclasses.replace(judge, arms=["none"]))
    every = dataclasses.replace(few, pair=None)
    rated(answered, rating)
    pair(answered, respond_stage(every).spec.spec_id)
    labeled(answered, every)
    assert len(reward_job(answered, every)[1]) == 18
    rows = reward_job(answered, few)[1]
    assert len(rows) == 6 and {row["pair_id"] for row in rows} == set(pairs_of(few).ids(answered))


def test_ratings_and_labels_of_the_same_judge_run_together(answered: Warehouse, rating: Recipe) -> None:
    pair(answered, respond_stage(rating).spec.spec_id)
    plain = dataclasses.replace(rating, pair=None)
    heard: list[str] = []

    def judge(request: Request) -> dict[str, float]:
        assert request.video is not None
        heard.append(request.video.path.name)
        return grade(request) if len(request.choices) == 5 else better(request)

    stages: list[Stage] = [*rate_stages(plain), label_stage(plain, "none")]
    outcomes = run_stages(answered, stages, lambda: ScriptedEngine(judge), Portion())
    assert [(outcome.stage, outcome.written) for outcome in outcomes] == [("rate", 18), ("label", 36)]
    assert len([1 for one, other in itertools.pairwise(heard) if one != other]) == 2


def test_with_context_the_judge_reads_the_narrative(answered: Warehouse, rating: Recipe, tmp_path: Path) -> None:
    assert rating.rate is not None
    (tmp_path / "rate_told_v1.md").write_text("{context} {question} {response}")
    told = dataclasses.replace(
        rating, rate=dataclasses.replace(rating.rate, arm="context", context_prompt=str(tmp_path / "rate_told_v1.md"))
    )
    assert rated(answered, told).pending == 0
    video = answered.value("SELECT video_id FROM videos WHERE uri = 'cat.mp4'")
    answered.append(
        [
            Context(
                context_id="c", video_id=video, spec_id=context_spec(told).spec_id, caption_ids=[], text="told .",
                run_id="r",
            )
        ]
    )  # fmt: skip
    heard: list[str] = []

    def judge(request: Request) -> dict[str, float]:
        heard.append(request.user)
        return grade(request)

    assert rated(answered, told, judge).written == 6
    assert all(said.startswith("told . what ") for said in heard)
    upstream = json.loads(rate_stages(told)[0].spec.upstream)
    assert upstream == {"context": context_spec(told).spec_id, "respond": respond_stage(told).spec.spec_id}


def test_a_judge_with_context_needs_a_prompt_for_it(rating: Recipe) -> None:
    assert rating.rate is not None
    with pytest.raises(ValueError, match="context_prompt"):
        dataclasses.replace(rating.rate, arm="context")
    with pytest.raises(ValueError, match="is one of context, none"):
        dataclasses.replace(rating.rate, arm="contxt")


def test_the_command_rates(answered: Warehouse, command: Command, recipe_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    model = recipe_file.parent
    path.write_text(
        recipe_file.read_text() + f"rate: {{model: {model}, prompt: rate_compact_v1, frames: {{count: 2}}}}\n"
    )
    result = command("feedback", "rate", answered.path, "--recipe", path, "--dry-run")
    assert result.code == 0 and "rate: 18 rows would be computed" in result.out
    result = command("feedback", "rate", answered.path, "--recipe", recipe_file)
    assert result.code == 2 and "has no `rate:` part" in result.err
    shown = command("show-prompt", answered.path, "rate", "--recipe", path)
    assert shown.code == 0 and "choices  1 2 3 4 5" in shown.out


def test_every_shipped_prompt_of_the_stage_asks_for_what_it_is_given() -> None:
    assert prompt.load("rate_v1").fields == prompt.load("rate_compact_v1").fields == {"question", "response"}
    assert prompt.load("rate_context_v1").fields == {"question", "response", "context"}


def test_a_probability_that_is_rounded_to_nothing_is_no_error() -> None:
    logprobs = dict.fromkeys(RATINGS, -1000.0) | {"4": -1.0}
    assert exp(-999) == 0.0 and expected_rating(logprobs) == 4.0


def test_a_rating_part_with_a_slip_names_its_neighbour(tmp_path: Path, recipe_file: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(recipe_file.read_text() + "pair: {stratgy: all}\n")
    with pytest.raises(UserError, match="Did you mean 'strategy'"):
        load(str(path))
