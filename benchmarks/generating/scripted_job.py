"""A job of as many rows as asked for, for engines that need no model: videos without files, questions, responses."""

from __future__ import annotations

from pathlib import Path

from vlm_rlaif.datagen.plan import respond_stage
from vlm_rlaif.datagen.stages.respond import RespondStage
from vlm_rlaif.warehouse import config
from vlm_rlaif.warehouse.records import Question, Record, Video, row_id
from vlm_rlaif.warehouse.store import Warehouse

RECIPE = "respond: {model: MODEL, prompt: respond_compact_v1, frames: {count: 2}, samples: 2}\n"
QUESTIONS = 5
SAMPLES = 2
ROWS_OF_A_VIDEO = QUESTIONS * SAMPLES
APPEND_VIDEOS = 5_000


def make_job(folder: Path, rows: int) -> tuple[Warehouse, RespondStage]:
    """A warehouse in which `rows` responses are pending, and the stage that makes them; ten rows are of one video."""
    (folder / "config.json").write_text("{}")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("MODEL", str(folder)))
    warehouse = Warehouse.create(folder / "w.duckdb")
    for first in range(0, rows // ROWS_OF_A_VIDEO, APPEND_VIDEOS):
        made: list[Record] = []
        for number in range(first, min(first + APPEND_VIDEOS, rows // ROWS_OF_A_VIDEO)):
            video_id = row_id("video", number)
            made.append(
                Video(
                    video_id=video_id, uri=f"{number}.mp4", source="test", video_group=video_id, split="train",
                    status="ok", duration_s=4.0, run_id="test",
                )
            )  # fmt: skip
            made += [
                Question(
                    question_id=row_id("question", video_id, str(n)), video_id=video_id, text=f"what happens {n} ?",
                    source="imported", run_id="test",
                )
                for n in range(QUESTIONS)
            ]  # fmt: skip
        warehouse.append(made)
    return warehouse, respond_stage(config.load(str(recipe)))
