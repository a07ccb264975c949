"""The examples run: preferences with a scripted engine, every query, and (slow) training on a tiny warehouse."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from vlm_rlaif.datagen import plan
from vlm_rlaif.datagen.engine import Engine, Request, ScriptedEngine
from vlm_rlaif.datagen.job import run_stage
from vlm_rlaif.datagen.stages.clip import clip
from vlm_rlaif.datagen.stages.context import context
from vlm_rlaif.warehouse.config import PPO, Frames, Lora, Recipe, Rewarding, Sampling
from vlm_rlaif.warehouse.intake.add import add_videos, make_question
from vlm_rlaif.warehouse.store import Warehouse

EXAMPLES = Path(__file__).parents[1] / "examples"
EMBEDDED = Path(__file__).parents[1] / "datagen" / "embedded" / "policy-start"
QUERIES = [query.strip() for query in (EXAMPLES / "inspect.sql").read_text(encoding="utf-8").split(";")][:-1]
ANSWERS = ("a red circle grows .", "a blue cross blinks .", "there are 2 shapes .")


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def say(request: Request) -> str | dict[str, float]:
    """Answers depend on the seed; the judge likes the shorter response, wherever it is shown."""
    if not request.choices:
        return ANSWERS[request.seed % len(ANSWERS)] + f" {request.seed}"
    found = re.search(r"A : (.*) B : (.*) verdict", request.user)
    assert found is not None
    first, second = found.groups()
    better = (len(first), first) < (len(second), second)
    return {"A": 0.8, "B": 0.1, "C": 0.1} if better else {"A": 0.1, "B": 0.8, "C": 0.1}


def scripted(model: str) -> Callable[[], Engine]:
    return lambda: ScriptedEngine(say)


def narrate(warehouse: Warehouse, folder: Path, recipe: Recipe) -> None:
    """Videos with a narrative and two questions each."""
    add_videos(warehouse, folder)
    for row in warehouse.rows("SELECT video_id FROM videos"):
        for text in ("describe the video .", "how many shapes are there ?"):
            warehouse.append([make_question(row["video_id"], {"question": text}, "imported", "test")])
    assert recipe.clip is not None
    clip(warehouse, recipe.clip)
    caption = plan.caption_stage(recipe)
    run_stage(warehouse, caption, scripted("any"))
    context(warehouse, plan.context_spec(recipe), caption.spec.spec_id, plan.clip_method(recipe))


@pytest.fixture
def labeled(warehouse: Warehouse, shapes_folder: Path, recipe: Recipe) -> Warehouse:
    """Three videos of the shapes world with responses, pairs and labels of a script."""
    narrate(warehouse, shapes_folder, recipe)
    example("batch_preferences").batch_preferences(warehouse, recipe, scripted)
    return warehouse


def test_batch_preferences_labels_every_pair_with_both_judges_in_both_orders(labeled: Warehouse) -> None:
    assert labeled.value("SELECT count(*) FROM responses") == 12
    preferences = labeled.preferences()
    assert len(preferences) == 12 and set(preferences["orders"]) == {2}
    assert preferences["judge"].n_unique() == 2 and not preferences["conflict"].any()
    assert labeled.value("SELECT count(*) FROM labels WHERE context_id IS NULL") == 12


def test_batch_preferences_again_has_nothing_to_do(labeled: Warehouse, recipe: Recipe) -> None:
    runs = labeled.value("SELECT count(*) FROM runs")
    again = example("batch_preferences").batch_preferences(labeled, recipe, scripted)
    assert {outcome.written for outcome in again} == {0}
    assert labeled.value("SELECT count(*) FROM runs") == runs


def test_every_query_of_inspect_runs(labeled: Warehouse) -> None:
    may_be_empty = ("open_failures", "learning_curves", "chosen = b.rejected", "FROM conflicts")
    for query in QUERIES:
        assert labeled.rows(query) or any(words in query for words in may_be_empty), query


def test_the_queries_cover_the_views_that_people_need() -> None:
    views = (
        "preferences", "judge_bias", "label_agreement", "length_gap", "cost", "lineage", "open_failures",
        "learning_curves",
    )  # fmt: skip
    assert [view for view in views if not any(f" {view}" in query for query in QUERIES)] == []


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs the extra `train`")
def test_train_from_warehouse_can_be_imported() -> None:
    assert callable(example("train_from_warehouse").train_from_warehouse)


@pytest.mark.slow
@pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded model is not there")
def test_train_from_warehouse_writes_the_new_policys_responses(
    warehouse: Warehouse, shapes_folder: Path, recipe: Recipe, tmp_path: Path
) -> None:
    model, frames = "embedded:policy-start", Frames(count=3, size=32, repeat=2)
    sampling, lora = Sampling(temperature=1.0, max_new_tokens=8), Lora(rank=2, alpha=4.0)
    assert recipe.respond is not None
    recipe = replace(
        recipe,
        respond=replace(recipe.respond, model=model, frames=frames, sampling=sampling),
        reward=Rewarding(
            model=model, prompt="reward_compact_v1", frames=frames, lora=lora, epochs=1, batch_pairs=4
        ),
        ppo=PPO(
            model=model, prompt="respond_compact_v1", frames=frames, lora=lora, sampling=sampling,
            iterations=1, episodes=4, mini_batches=1, epochs=1,
        ),
    )  # fmt: skip
    narrate(warehouse, shapes_folder, recipe)
    example("batch_preferences").batch_preferences(warehouse, recipe, scripted)
    before = warehouse.value("SELECT count(*) FROM responses")
    assert warehouse.value("SELECT count(*) FROM preferences WHERE split = 'train'") > 0

    outcome = example("train_from_warehouse").train_from_warehouse(warehouse, recipe, tmp_path / "out")
    assert (outcome.written, outcome.failed) == (12, 0)
    assert warehouse.value("SELECT count(*) FROM responses") == before + 12
    new = warehouse.rows("SELECT model, revision FROM specs WHERE stage = 'respond' ORDER BY run_id")
    assert len({row["revision"] for row in new}) == 2 and new[-1]["model"].endswith("merged")
