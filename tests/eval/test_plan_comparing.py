"""`plan` and `why` for several policies, ratings, chosen pairs and negatives: what is told is what is computed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from vlm_rlaif.datagen.engine import Request, ScriptedEngine
from vlm_rlaif.datagen.job import run_models, run_stage
from vlm_rlaif.datagen.policies import pairs_of, respond_stages
from vlm_rlaif.datagen.portion import Portion
from vlm_rlaif.eval.conductor import Journey, check, compare
from vlm_rlaif.eval.overview import Line
from vlm_rlaif.eval.overview_learning import overview
from vlm_rlaif.eval.relatives import explain_pending
from vlm_rlaif.feedback.judges.pairwise import label_stage
from vlm_rlaif.feedback.judges.rate import rate_stages
from vlm_rlaif.warehouse.config import Recipe, Sampling
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.inspection.why import explain
from vlm_rlaif.warehouse.judge_settings import Grading
from vlm_rlaif.warehouse.settings import FurtherPolicy, Pairing, Perturbing
from vlm_rlaif.warehouse.store import Warehouse


@pytest.fixture
def comparing(recipe: Recipe) -> Recipe:
    """Two policies with two samples each, ratings, the best against the rest, and one kind of negative."""
    respond, label = recipe.respond, recipe.label
    assert respond is not None and label is not None
    cooler = FurtherPolicy(sampling=Sampling(temperature=0.5))
    return dataclasses.replace(
        recipe, clip=None, caption=None, context=None, ask=None,
        respond=dataclasses.replace(respond, also=[cooler]),
        rate=Grading(model=label.model, prompt="rate_compact_v1", frames=label.frames),
        pair=Pairing(strategy="best_rest", score="quality", perturb=Perturbing(kinds=["reversed"])),
        label=dataclasses.replace(label, arms=["none"]),
    )  # fmt: skip


def say(request: Request) -> str | dict[str, float]:
    if len(request.choices) == 5:
        return {"1": 0.1, "2": 0.1, "3": 0.1, "4": 0.3, "5": 0.4 + len(request.user) % 7 / 100 + hash_of(request)}
    return {"A": 0.8, "B": 0.1, "C": 0.1} if request.choices else f"answer {request.seed}"


def hash_of(request: Request) -> float:
    """A number for the response that is rated, so that no two have the same rating."""
    digits = "".join(filter(str.isdigit, request.user)) or "0"
    return int(digits[-6:]) / 1e6


def lines(warehouse: Warehouse, recipe: Recipe) -> dict[str, Line]:
    return {f"{line.stage} {line.form}".strip(): line for line in overview(warehouse, recipe, "transformers")}


def ask(warehouse: Warehouse, stages: Any) -> None:
    run_models(warehouse, stages, lambda model: lambda: ScriptedEngine(say), Portion())


def test_what_is_planned_is_what_is_computed(asked: Warehouse, comparing: Recipe) -> None:
    first = lines(asked, comparing)
    counted = {name: (line.pending, line.later) for name, line in first.items()}
    assert counted == {
        "add": (0, 0), "questions": (0, 0), "respond": (12, 0), "respond policy 2": (12, 0),
        "respond perturb: reversed": (6, 0), "pair": (0, 6 * 3 + 6), "label none": (0, 2 * 24),
        "rate": (0, 12), "rate policy 2": (0, 12),
    }  # fmt: skip
    ask(asked, respond_stages(comparing))
    assert asked.value("SELECT count(*) FROM responses") == 30
    rates = [line for line in overview(asked, comparing, "transformers") if line.stage == "rate"]
    assert [(line.pending, line.later) for line in rates] == [(12, 0), (12, 0)]
    ask(asked, rate_stages(comparing))
    pair = lines(asked, comparing)["pair"]
    assert (pair.pending, pair.later) == (24, 0)
    assert pairs_of(comparing).make(asked).written == 24
    label = lines(asked, comparing)["label none"]
    assert (label.pending, label.later) == (48, 0)
    ask(asked, [label_stage(comparing, "none")])
    assert all(line.work == 0 for line in overview(asked, comparing, "transformers"))


def test_the_conductor_rates_before_it_pairs_and_judges_after(asked: Warehouse, comparing: Recipe) -> None:
    journey, asked_for = Journey(), list[list[str]]()

    def ask_model(stages: Any) -> None:
        asked_for.append([stage.name for stage in stages])
        ask(asked, stages)

    check(comparing)
    ask_model(respond_stages(comparing))
    compare(asked, comparing, journey, ask_model)
    assert asked_for == [["respond"] * 3, ["rate", "rate"], ["label"]]
    assert asked.value("SELECT count(*) FROM labels") == 48
    assert asked.value("SELECT sum(rows_missing) FROM pending_work") == 0


def test_ratings_that_choose_nothing_are_asked_for_together_with_the_labels(
    asked: Warehouse, comparing: Recipe
) -> None:
    plain = dataclasses.replace(comparing, pair=None)
    asked_for: list[list[str]] = []
    compare(asked, plain, Journey(), lambda stages: asked_for.append([stage.name for stage in stages]))
    assert asked_for == [["rate", "rate", "label"]]


def test_a_pair_part_without_its_ratings_is_told_before_anything_is_made(comparing: Recipe) -> None:
    with pytest.raises(UserError, match="no `rate:` part"):
        check(dataclasses.replace(comparing, rate=None))


def test_why_explains_a_pending_rating_and_a_pending_negative(asked: Warehouse, comparing: Recipe) -> None:
    ask(asked, respond_stages(comparing)[:2])
    for stage in (rate_stages(comparing)[0], respond_stages(comparing)[2]):
        row = next(iter(stage.pending(asked)))
        found = explain_pending(asked, comparing, row["row_id"])
        assert found is not None and found["stage"] == stage.name and found["spec"]["spec_id"] == stage.spec.spec_id
    assert any("frames.perturb" in change for change in found["changed"])  # type: ignore[index]


def test_why_explains_a_rating_that_stands(asked: Warehouse, comparing: Recipe) -> None:
    ask(asked, respond_stages(comparing))
    run_stage(asked, rate_stages(comparing)[0], lambda: ScriptedEngine(say), limit=1)
    rating = asked.value("SELECT rating_id FROM ratings")
    found = explain(asked, rating)
    assert found is not None and found["stage"] == "rate"
    assert {each["table"] for each in found["from"]} == {"videos", "questions", "responses"}


def test_a_split_with_one_source_is_not_waited_for(asked: Warehouse, comparing: Recipe) -> None:
    """Its questions get no answer to another video, ever."""
    asked.execute("UPDATE videos SET split = if(uri = 'cat.mp4', 'val', 'train')")
    other = dataclasses.replace(comparing, rate=None, pair=Pairing(perturb=Perturbing(kinds=["other_video"])))
    ask(asked, respond_stages(other))
    line = lines(asked, other)["respond perturb: other_video"]
    assert (line.stands, line.work) == (4, 0)
    assert asked.value("SELECT sum(rows_missing) FROM pending_work") == 0
