"""Fill a warehouse with the shapes world: render the mp4 files, add them and their questions."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path

from vlm_rlaif.datagen.shapes import world as shapes
from vlm_rlaif.datagen.shapes.render import write_mp4
from vlm_rlaif.warehouse.config import World
from vlm_rlaif.warehouse.intake.add import add_videos, make_question
from vlm_rlaif.warehouse.progress import Bar
from vlm_rlaif.warehouse.records import Record
from vlm_rlaif.warehouse.runs import Outcome, derive
from vlm_rlaif.warehouse.store import Warehouse


def add_world(warehouse: Warehouse, recipe: World) -> list[Outcome]:
    """Render what is missing in the world's own folder beside the warehouse; add videos and questions."""
    folder = world_folder(warehouse, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    world = shapes.World(recipe.seed)
    with Bar("render", recipe.videos) as bar:
        for video in world.videos(recipe.videos):
            path = video_file(folder, video.index)
            if not path.exists():
                write_mp4(video, path, recipe.size)
            bar.advance()
    added = add_videos(warehouse, folder)
    return [added, _add_questions(warehouse, recipe, world, added.video_ids)]


def world_folder(warehouse: Warehouse, recipe: World) -> Path:
    """Other pixels lie in another folder, and the user's own videos in none of them."""
    return warehouse.folder / "videos" / f"shapes-{recipe.seed}-{recipe.size}"


def video_file(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.mp4"


def _add_questions(warehouse: Warehouse, recipe: World, world: shapes.World, video_ids: Mapping[str, str]) -> Outcome:
    """Questions about every file that can be read; `video_ids` are by path."""
    folder = world_folder(warehouse, recipe)

    def rows(run_id: str) -> Iterator[Record]:
        for video in world.videos(recipe.videos):
            video_id = video_ids.get(str(video_file(folder, video.index)))
            if video_id is None:
                continue
            rng = random.Random(f"questions/{recipe.seed}/{video.index}")
            for asked in shapes.pick_questions(rng, video, recipe.questions):
                line = {"question": asked.text, "reference": asked.reference, "kind": asked.kind}
                yield make_question(video_id, line, "shapes", run_id)

    return derive(warehouse, "questions", {"seed": recipe.seed, "videos": recipe.videos}, rows)
