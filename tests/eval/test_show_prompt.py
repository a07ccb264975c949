"""`show-prompt`: the finished prompt of any row, done or pending, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.datagen.engine import ScriptedEngine
from vlm_rlaif.datagen.job import run_stage
from vlm_rlaif.datagen.plan import caption_stage, clip_method, context_spec, part, respond_stage
from vlm_rlaif.datagen.stages.clip import clip
from vlm_rlaif.datagen.stages.context import context
from vlm_rlaif.datagen.stages.pair import pair
from vlm_rlaif.feedback.judges.pairwise import label_stage
from vlm_rlaif.warehouse.config import Recipe
from vlm_rlaif.warehouse.store import Warehouse


@pytest.fixture
def paired(asked: Warehouse, recipe: Recipe) -> Warehouse:
    clip(asked, part(recipe, "clip"))
    captions = caption_stage(recipe)
    run_stage(asked, captions, lambda: ScriptedEngine(lambda request: "a cat sleeps ."))
    context(asked, context_spec(recipe), captions.spec.spec_id, clip_method(recipe))
    respond = respond_stage(recipe)
    run_stage(asked, respond, lambda: ScriptedEngine(lambda request: f"answer {request.seed} ."))
    pair(asked, respond.spec.spec_id)
    return asked


def test_the_first_row_of_a_stage_is_shown(paired: Warehouse, recipe_file: Path, command: Any) -> None:
    for stage in ("caption", "ask", "respond", "label"):
        shown = command("show-prompt", paired.path, stage, "--recipe", recipe_file)
        assert shown.code == 0 and "--- user ---" in shown.out, stage


def test_a_judges_row_is_found_in_whichever_arm_it_is(
    paired: Warehouse, recipe: Recipe, recipe_file: Path, command: Any
) -> None:
    for arm in ("context", "none"):
        row = list(label_stage(recipe, arm).pending(paired))[-1]["row_id"]
        shown = command("show-prompt", paired.path, "label", "--recipe", recipe_file, "--row", row)
        assert row in shown.out and ("a cat sleeps" in shown.out) == (arm == "context")


def test_an_unknown_row_is_said(paired: Warehouse, recipe_file: Path, command: Any) -> None:
    said = command("show-prompt", paired.path, "label", "--recipe", recipe_file, "--row", "xyzzy")
    assert said.code == 2 and "has no row xyzzy" in said.err
