"""A recipe walked through with scripted engines, and the small warehouse that a real run filled."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vlm_rlaif.datagen.engine import Engine, Request, ScriptedEngine
from vlm_rlaif.datagen.job import run_stage
from vlm_rlaif.datagen.plan import ask_stage, caption_stage, clip_method, context_spec, part, respond_stage
from vlm_rlaif.datagen.stages.clip import clip
from vlm_rlaif.datagen.stages.context import context
from vlm_rlaif.datagen.stages.pair import pair
from vlm_rlaif.feedback.judges.pairwise import label_stage
from vlm_rlaif.warehouse.config import Recipe
from vlm_rlaif.warehouse.store import Warehouse

FIXTURE = Path(__file__).parents[1] / "fixtures" / "m001_initial.duckdb.gz"


@pytest.fixture(scope="session")
def journey_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the warehouse of a real run of `shapes-mini`, to be copied. Its videos have no files."""
    path = tmp_path_factory.mktemp("journey") / "w.duckdb"
    path.write_bytes(gzip.decompress(FIXTURE.read_bytes()))
    return Warehouse.create(path).path


@pytest.fixture
def journey(journey_file: Path, tmp_path: Path) -> Warehouse:
    """The warehouse of a real run of `shapes-mini`. Its videos have no files."""
    return Warehouse(Path(shutil.copy(journey_file, tmp_path / "journey.duckdb")))


def say(request: Request) -> str | dict[str, float]:
    """Two responses differ; the judge likes the first one; a video is asked two questions."""
    if request.choices:
        return {"A": 0.7, "B": 0.2, "C": 0.1}
    return f"what is {request.seed} ?\nand why ?" if "question" in request.user.lower() else f"a cat {request.seed} ."


@pytest.fixture(scope="session")
def scripted() -> Callable[[], Engine]:
    """Makes an engine that has an answer to everything."""
    return lambda: ScriptedEngine(say)


Walk = Callable[..., None]


@pytest.fixture(scope="session")
def walk(scripted: Callable[[], Engine]) -> Walk:
    """Runs the stages of a recipe up to the labels: all of them, those up to one, or one."""

    def walked(warehouse: Warehouse, recipe: Recipe, upto: str = "", only: str = "") -> None:
        captions, respond = caption_stage(recipe), respond_stage(recipe)
        steps: dict[str, Callable[[], object]] = {
            "clip": lambda: clip(warehouse, part(recipe, "clip")),
            "caption": lambda: run_stage(warehouse, captions, scripted),
            "context": lambda: context(warehouse, context_spec(recipe), captions.spec.spec_id, clip_method(recipe)),
            "ask one request per video": lambda: run_stage(warehouse, ask_stage(recipe), scripted),
            "respond": lambda: run_stage(warehouse, respond, scripted),
            "pair": lambda: pair(warehouse, respond.spec.spec_id),
            "label context": lambda: run_stage(warehouse, label_stage(recipe, "context"), scripted),
            "label none": lambda: run_stage(warehouse, label_stage(recipe, "none"), scripted),
        }
        for name, step in steps.items():
            if only in ("", name):
                step()
            if name == upto:
                return

    return walked
