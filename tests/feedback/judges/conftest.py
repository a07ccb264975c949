"""Warehouses whose pairs wait for judges."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.datagen.engine import Request, ScriptedEngine
from vlm_rlaif.datagen.job import run_stage
from vlm_rlaif.datagen.plan import caption_stage, clip_method, context_spec, part, respond_stage
from vlm_rlaif.datagen.stages.clip import clip
from vlm_rlaif.datagen.stages.context import context
from vlm_rlaif.datagen.stages.pair import pair
from vlm_rlaif.feedback.judges.plan import judges_of
from vlm_rlaif.warehouse.config import Recipe
from vlm_rlaif.warehouse.judge_settings import Judge, Panel
from vlm_rlaif.warehouse.runs import Outcome
from vlm_rlaif.warehouse.store import Warehouse


@pytest.fixture(scope="module")
def paired_file(asked_file: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a warehouse with a pair for each of six questions and a context for each of three videos."""
    folder = tmp_path_factory.mktemp("paired")
    asked = Warehouse(Path(shutil.copy(asked_file, folder / "paired.duckdb")))
    clip(asked, part(recipe, "clip"))
    captions = caption_stage(recipe)
    run_stage(asked, captions, lambda: ScriptedEngine(lambda request: "the narrative {question} ."))
    context(asked, context_spec(recipe), captions.spec.spec_id, clip_method(recipe))
    respond = respond_stage(recipe)
    run_stage(asked, respond, lambda: ScriptedEngine(lambda request: f"answer {{context}} {request.seed}"))
    pair(asked, respond.spec.spec_id)
    return asked.path


@pytest.fixture
def paired(paired_file: Path, tmp_path: Path) -> Warehouse:
    return Warehouse(Path(shutil.copy(paired_file, tmp_path / "w.duckdb")))


WithJudges = Callable[..., Recipe]


@pytest.fixture(scope="session")
def with_judges() -> WithJudges:
    """`with_judges(recipe, {"name": ...}, panels=[...])`: further judges, of its model unless they name one."""

    def made(recipe: Recipe, *judges: dict[str, Any], panels: Sequence[Panel] = ()) -> Recipe:
        assert recipe.label is not None
        model = {"model": recipe.label.model, "prompt": "judge_compact_v1"}
        return dataclasses.replace(
            recipe, judges=[Judge(**(model | judge)) for judge in judges], panels=list(panels)
        )  # fmt: skip

    return made


Labeled = Callable[..., dict[str, list[Outcome]]]


@pytest.fixture(scope="session")
def label_all() -> Labeled:
    """`label_all(warehouse, recipe, script, *names)`: judges as `feedback label` runs them; name -> its outcomes."""

    def run(
        warehouse: Warehouse, recipe: Recipe, script: Callable[[Request], Any], *names: str, **portion: Any
    ) -> dict[str, list[Outcome]]:
        found = {}
        for name, judge in judges_of(recipe).items():
            if names and name not in names:
                continue
            engine = lambda: ScriptedEngine(script)  # noqa: E731
            found[name] = [run_stage(warehouse, stage, engine, **portion) for stage in judge.stages]
            if judge.derive is not None:
                found[name].append(judge.derive(warehouse))
        return found

    return run
