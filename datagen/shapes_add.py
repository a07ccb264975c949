"""Fill a warehouse with the shapes world: render the mp4 files, add them and their questions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from vlm_rlaif.datagen import shapes
from vlm_rlaif.datagen.add import add_videos, make_question
from vlm_rlaif.datagen.job import Outcome, derive
from vlm_rlaif.datagen.progress import Bar
from vlm_rlaif.datagen.shapes_video import write_mp4
from vlm_rlaif.warehouse.config import World
from vlm_rlaif.warehouse.records import Record
from vlm_rlaif.warehouse.store import Warehouse


def add_world(warehouse: Warehouse, recipe: World) -> list[Outcome]:
    """Render what is missing below `videos/` beside the warehouse; add videos and questions."""
    folder = warehouse.folder / "videos"
    folder.mkdir(exist_ok=True)
    world = shapes.World(recipe.seed)
    with Bar("render", recipe.videos) as bar:
        for video in world.videos(recipe.videos):
            path = folder / file_name(recipe, video.index)
            if not path.exists():
                write_mp4(video, path, recipe.size)
            bar.advance()
    return [add_videos(warehouse, folder), _add_questions(warehouse, recipe, world)]


def file_name(recipe: World, index: int) -> str:
    return f"shapes-{recipe.seed}-{index:05d}.mp4"


def _add_questions(warehouse: Warehouse, recipe: World, world: shapes.World) -> Outcome:
    def rows(run_id: str) -> Sequence[Record]:
        found = warehouse.rows("SELECT video_id, uri FROM videos WHERE status = 'ok'")
        by_name = {Path(row["uri"]).name: row["video_id"] for row in found}
        known = {row["question_id"] for row in warehouse.rows("SELECT question_id FROM questions")}
        made = []
        for video in world.videos(recipe.videos):
            rng = random.Random(f"questions/{recipe.seed}/{video.index}")
            for asked in shapes.pick_questions(rng, video, recipe.questions):
                line = {"question": asked.text, "reference": asked.reference, "kind": asked.kind}
                video_id = by_name[file_name(recipe, video.index)]
                question = make_question(video_id, line, "shapes", run_id)
                if question.question_id not in known:
                    made.append(question)
        return made

    return derive(warehouse, "questions", {"seed": recipe.seed, "videos": recipe.videos}, rows)
