"""A folder of images is a video, where somebody says so or a record lists them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_rlaif.warehouse.intake.importing import import_files
from vlm_rlaif.warehouse.intake.sources import Wishes
from vlm_rlaif.warehouse.media.frame_folder import hash_folder
from vlm_rlaif.warehouse.store import Warehouse

Command = Any


def write_frames(folder: Path, count: int, *, shade: int) -> None:
    """Small grey pictures, `frame_1.png` to `frame_COUNT.png`."""
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        Image.new("L", (16, 16), shade + 7 * number).save(folder / f"frame_{number}.png")


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Two videos as folders of frames, and one as a file that is none."""
    for name, count in (("cat", 11), ("deep/dog", 3)):
        write_frames(tmp_path / "frames" / name, count, shade=count)
    return tmp_path / "frames"


def test_folders_of_images_are_videos_with_frames(
    warehouse: Warehouse, command: Command, frames: Path, shapes_folder: Path
) -> None:
    shutil.copy(shapes_folder / "0.mp4", frames)
    assert command("add", warehouse.path, frames).out == "add: 1 video written\n"
    result = command("add", warehouse.path, frames, "--frames")
    assert (result.code, result.out, result.err) == (0, "add: 2 videos written\n", "")
    rows = warehouse.rows("SELECT video_id, uri, status, width FROM videos WHERE uri NOT LIKE '%.mp4' ORDER BY uri")
    assert [(row["uri"], row["status"], row["width"]) for row in rows] == [
        ("frames/cat", "ok", 16), ("frames/deep/dog", "ok", 16),
    ]  # fmt: skip
    assert [row["video_id"] for row in rows] == [hash_folder(frames / "cat"), hash_folder(frames / "deep" / "dog")]
    assert command("add", warehouse.path, frames, "--frames").out == "add: nothing to do\n"


def test_a_folder_of_images_that_has_moved_is_found_again(
    warehouse: Warehouse, command: Command, frames: Path
) -> None:
    command("add", warehouse.path, frames, "--frames")
    (frames / "cat").rename(frames / "lion")
    result = command("relocate", warehouse.path, frames)
    assert (result.code, result.out) == (0, "relocate: 1 found at a new place\n")
    assert warehouse.value("SELECT count(*) FROM videos WHERE uri = 'frames/lion'") == 1


def test_whoever_forgets_to_say_frames_is_told(warehouse: Warehouse, command: Command, frames: Path) -> None:
    result = command("add", warehouse.path, frames)
    assert result.code == 2 and f"There is no video below {frames}." in result.err
    assert result.err.splitlines()[-1] == f"vlm-rlaif add {warehouse.path} {frames} --frames"


def test_the_frames_that_vlm_rlaif_lists_are_a_video(warehouse: Warehouse, frames: Path) -> None:
    turns = [{"role": "human", "value": "<image>\nWho?"}, {"role": "gpt", "value": "A cat."}]
    images = [f"cat/frame_{number}.png" for number in range(1, 12)]
    records = [
        {"id": "1", "src_data": "anet", "conversations": turns, "images": listed} for listed in (images, images[1:])
    ]
    (frames / "SFT_short.json").write_text(json.dumps(records))
    outcome = import_files(warehouse, [frames / "SFT_short.json"], Wishes(videos=frames))
    assert outcome.files[0][1] == "vlm-rlaif"
    assert [reason.partition(": ")[2] for reason in outcome.bad] == [
        "its images are not exactly those of the folder 'cat'"
    ]
    (video,) = warehouse.rows("SELECT video_id, uri, status FROM videos")
    assert video == {"video_id": hash_folder(frames / "cat"), "uri": "frames/cat", "status": "ok"}
