"""The shapes world: the same seed is the same world, in words and in pixels."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from vlm_rlaif.datagen.shapes.add import add_world, video_file, world_folder
from vlm_rlaif.datagen.shapes.render import BACKGROUND, FRAMES_PER_SCENE, draw, poses, render, write_mp4
from vlm_rlaif.datagen.shapes.world import (
    COLOURS,
    KINDS,
    MOTIONS,
    ORDINALS,
    SHAPES,
    Shape,
    ShapesQuestion,
    ShapesVideo,
    World,
    caption,
    describe,
    pick_questions,
    questions,
)
from vlm_rlaif.warehouse import config
from vlm_rlaif.warehouse.intake.add import add_videos
from vlm_rlaif.warehouse.media.video import probe
from vlm_rlaif.warehouse.store import Warehouse

VIDEOS = list(World(seed=3).videos(200))


def one(motion: str) -> ShapesVideo:
    """A video of one red circle in the middle."""
    return ShapesVideo(0, ((Shape("red", "circle", motion, 0.5, 0.5, 0.16, 0),),))


def weights(video: ShapesVideo, moments: list[int]) -> NDArray[np.float64]:
    """(moments, H, W): how much of the shape is in each pixel."""
    return np.asarray(np.abs(draw(poses(video, moments), 32).astype(float) - BACKGROUND).sum(-1))


def test_a_seed_is_a_world() -> None:
    assert list(World(seed=3).videos(200)) == VIDEOS
    assert World(seed=3).video(150) == VIDEOS[150]
    assert World(seed=4).video(150) != VIDEOS[150]


def test_the_world_shows_everything_that_it_has_words_for() -> None:
    shapes = [shape for video in VIDEOS for shape in video.shapes]
    assert {s.colour for s in shapes} == set(COLOURS)
    assert {s.shape for s in shapes} == set(SHAPES)
    assert {s.motion for s in shapes} == set(MOTIONS)
    assert {len(video.scenes) for video in VIDEOS} == {1, 2, 3}
    assert {question.kind for video in VIDEOS for question in questions(video)} == set(KINDS)


def test_shapes_are_mentioned_in_a_fixed_order() -> None:
    for video in VIDEOS:
        for scene in video.scenes:
            colours = [COLOURS.index(s.colour) for s in scene]
            assert colours == sorted(colours)
            assert caption(scene) == " and ".join(f"a {s.colour} {s.shape} {s.motion}" for s in scene) + " ."


def test_a_description_tells_the_scenes_in_order() -> None:
    for video in VIDEOS:
        words = describe(video).split()
        assert [word for word in words if word in ORDINALS] == list(ORDINALS[: len(video.scenes)])
        assert [word for word in words if word in SHAPES] == [s.shape for s in video.shapes]


def test_a_question_names_its_shape_without_doubt() -> None:
    for video in VIDEOS:
        for question in questions(video):
            if question.kind in ("action", "after"):
                named = [s for s in video.shapes if f"the {s.colour} {s.shape} " in question.text]
                assert len(named) == 1
            if question.kind == "colour":
                assert sum(f"the {s.shape} " in question.text for s in video.shapes) == 1


def test_no_question_is_asked_twice_about_a_video() -> None:
    for video in VIDEOS:
        texts = [question.text for question in questions(video)]
        assert len(texts) == len(set(texts))


@pytest.mark.parametrize("count", [1, 4, 100])
def test_picked_questions_are_of_every_kind_before_any_kind_repeats(count: int) -> None:
    for video in VIDEOS[:50]:
        there = questions(video)
        picked = pick_questions(random.Random(1), video, count)
        assert picked == pick_questions(random.Random(1), video, count)
        assert len(picked) == len({q.text for q in picked}) == min(count, len(there))
        kinds = {q.kind for q in there}
        assert len({q.kind for q in picked}) == min(len(kinds), count)


@pytest.mark.parametrize(
    ("motion", "direction"),
    [("moves left", (-1, 0)), ("moves right", (1, 0)), ("moves up", (0, -1)), ("moves down", (0, 1))],
)
def test_a_moving_shape_moves_where_it_is_said_to(motion: str, direction: tuple[int, int]) -> None:
    seen = weights(one(motion), [0, FRAMES_PER_SCENE - 1])
    x, y = (
        (seen.sum(axis) * np.arange(32)).sum(-1) / seen.sum((1, 2))
        for axis in (1, 2)
    )  # fmt: skip
    moved = round(x[1] - x[0]), round(y[1] - y[0])
    assert tuple(np.sign(moved)) == direction


def test_growing_shrinking_and_blinking_can_be_seen() -> None:
    grows, shrinks = (weights(one(motion), [0, FRAMES_PER_SCENE - 1]).sum((1, 2)) for motion in ("grows", "shrinks"))
    assert grows[1] > 2 * grows[0]
    assert shrinks[0] > 2 * shrinks[1]
    blinks = weights(one("blinks"), list(range(FRAMES_PER_SCENE))).sum((1, 2))
    assert (blinks > 0.9 * blinks.max()).sum() == (blinks < 0.5 * blinks.max()).sum() == FRAMES_PER_SCENE / 2


def test_the_middle_of_a_shape_never_leaves_the_picture() -> None:
    for video in VIDEOS:
        centres = poses(video, range(FRAMES_PER_SCENE * len(video.scenes)))[..., :2]
        shown = centres[centres[..., 0] != -1]
        assert shown.min() > 0.05 and shown.max() < 0.95


def test_frames_of_any_size_are_pictures_of_the_whole_video() -> None:
    for size in (16, 33):
        frames = render(VIDEOS[0], size)
        assert frames.shape == (FRAMES_PER_SCENE * len(VIDEOS[0].scenes), size, size, 3)
        assert frames.dtype == np.uint8
        assert (frames.max((1, 2, 3)) > 60).all()


def test_a_file_is_what_its_video_says(shapes_folder: Path) -> None:
    for video in World(seed=7).videos(3):
        found = probe(shapes_folder / f"{video.index}.mp4")
        assert found.duration_s == pytest.approx(video.duration_s, abs=0.01)
        assert (found.width, found.height, found.codec) == (32, 32, "h264")
        assert found.frames == FRAMES_PER_SCENE * len(video.scenes)


def test_a_video_has_the_same_bytes_however_often_it_is_encoded(tmp_path: Path) -> None:
    """These five had not: a second rendering of the world made 59 of its 2,400 videos new ones."""
    for number in (36, 118, 195, 207, 245):
        files = [tmp_path / f"{number}-{time}.mp4" for time in range(5)]
        for file in files:
            write_mp4(World(seed=2).video(number), file)
        assert len({file.read_bytes() for file in files}) == 1, number


def test_the_same_video_is_the_same_file(shapes_folder: Path, tmp_path: Path) -> None:
    write_mp4(World(seed=7).video(0), tmp_path / "again.mp4", size=32)
    assert (tmp_path / "again.mp4").read_bytes() == (shapes_folder / "0.mp4").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.mp4"]


def test_a_world_is_added_once(warehouse: Warehouse) -> None:
    world = config.World(videos=3, seed=1, size=32, questions=4)
    assert [outcome.written for outcome in add_world(warehouse, world)] == [3, 12]
    assert [outcome.run_id for outcome in add_world(warehouse, world)] == [None, None]
    larger = config.World(videos=4, seed=1, size=32, questions=4)
    assert [outcome.written for outcome in add_world(warehouse, larger)] == [1, 4]


def test_every_question_of_a_world_stands_beside_its_own_video(warehouse: Warehouse) -> None:
    add_world(warehouse, config.World(videos=3, seed=1, size=32, questions=9))
    for row in warehouse.rows("SELECT v.uri, q.* FROM questions q JOIN videos v USING (video_id)"):
        video = World(1).video(int(Path(row["uri"]).stem))
        assert ShapesQuestion(row["kind"], row["text"], row["reference"]) in questions(video)


def test_a_world_leaves_the_users_own_videos_alone(warehouse: Warehouse, shapes_folder: Path) -> None:
    shutil.copytree(shapes_folder, warehouse.folder / "videos")
    add_world(warehouse, config.World(videos=2, seed=1, size=32, questions=1))
    uris = warehouse.rows("SELECT uri FROM videos ORDER BY uri")
    assert [row["uri"] for row in uris] == ["videos/shapes-1-32/00000.mp4", "videos/shapes-1-32/00001.mp4"]


def test_another_size_is_other_pixels(warehouse: Warehouse) -> None:
    for size in (32, 48):
        add_world(warehouse, config.World(videos=2, seed=1, size=size, questions=1))
    assert [row["width"] for row in warehouse.rows("SELECT width FROM videos ORDER BY width")] == [32, 32, 48, 48]


def test_a_world_may_be_known_under_other_names(warehouse: Warehouse, shapes_folder: Path) -> None:
    add_videos(warehouse, shapes_folder)
    added, asked = add_world(warehouse, config.World(videos=4, seed=7, size=32, questions=2))
    assert (added.written, asked.written) == (1, 8)
    assert warehouse.value("SELECT count(*) FROM videos WHERE uri LIKE 'videos/%'") == 1


def test_no_question_is_asked_about_a_file_that_cannot_be_read(warehouse: Warehouse) -> None:
    world = config.World(videos=2, seed=1, size=32, questions=2)
    broken = video_file(world_folder(warehouse, world), 0)
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"half a video")
    assert [outcome.written for outcome in add_world(warehouse, world)] == [2, 2]
