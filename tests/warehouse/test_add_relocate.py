"""Videos that have moved are found again by their bytes, and nothing else is added."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.warehouse.intake import relocate
from vlm_rlaif.warehouse.intake.add import add_videos
from vlm_rlaif.warehouse.intake.relocate import relocate_videos
from vlm_rlaif.warehouse.media.video import hash_file
from vlm_rlaif.warehouse.store import Warehouse

Command = Any


@pytest.fixture
def mine(warehouse: Warehouse, shapes_folder: Path, tmp_path: Path) -> Path:
    """A folder of the user with three videos that are in the warehouse."""
    folder = Path(shutil.copytree(shapes_folder, tmp_path / "mine"))
    add_videos(warehouse, folder)
    return folder


def content(warehouse: Warehouse) -> dict[str, Any]:
    """Every row, of runs only how many."""
    tables = [row["name"] for row in warehouse.rows("SELECT table_name AS name FROM duckdb_tables()")]
    rows = {name: warehouse.rows(f"FROM {name} ORDER BY ALL") for name in tables}
    return {**rows, "runs": len(rows["runs"])}


def test_moved_videos_are_found_and_the_missing_ones_listed(
    warehouse: Warehouse, command: Command, mine: Path, tmp_path: Path
) -> None:
    (tmp_path / "new" / "deep").mkdir(parents=True)
    (mine / "0.mp4").rename(tmp_path / "new" / "deep" / "0.mp4")
    (mine / "1.mp4").rename(tmp_path / "new" / "another name.MKV")
    (mine / "2.mp4").unlink()
    (tmp_path / "new" / "stranger.mp4").write_bytes(b"this is no video")
    result = command("relocate", warehouse.path, tmp_path / "new")
    assert (result.code, result.out) == (3, "relocate: 2 found at a new place, 1 still missing\n")
    assert result.err == "missing: mine/2.mp4\n"
    rows = warehouse.rows("SELECT v.video_id, v.uri, v.source, f.uri AS place FROM videos v JOIN video_files f"
                          " USING (video_id) ORDER BY v.uri")  # fmt: skip
    assert [(row["uri"], row["source"], row["uri"] == row["place"]) for row in rows] == [
        ("mine/2.mp4", "mine", True), ("new/another name.MKV", "new", True), ("new/deep/0.mp4", "deep", True),
    ]  # fmt: skip
    assert all(row["video_id"] == hash_file(warehouse.video_path(row["uri"])) for row in rows[1:])
    before = content(warehouse)
    again = command("relocate", warehouse.path, tmp_path / "new", "--json")
    assert again.code == 3 and content(warehouse) == before, "nothing is written when nothing is found"
    assert json.loads(again.out)[0]["missing_uris"] == ["mine/2.mp4"]


def test_where_nothing_is_missing_nothing_is_read(
    warehouse: Warehouse, command: Command, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relocate, "hash_of", lambda path: pytest.fail("it read a file"))
    result = command("relocate", warehouse.path, mine)
    assert (result.code, result.out) == (0, "relocate: every video lies where its row says\n")


def test_files_with_the_missing_name_are_read_and_no_others(
    warehouse: Warehouse, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").mkdir()
    (mine / "1.mp4").rename(tmp_path / "new" / "1.mp4")
    for n in range(5):
        (tmp_path / "new" / f"a{n}.mp4").write_bytes(bytes(n))
    read: list[str] = []
    monkeypatch.setattr(relocate, "hash_of", lambda path: read.append(path.name) or hash_file(path))
    assert relocate_videos(warehouse, tmp_path / "new").written == 1
    assert read == ["1.mp4"]


def test_a_copy_that_was_known_all_along_takes_over(warehouse: Warehouse, mine: Path, tmp_path: Path) -> None:
    shutil.copytree(mine, tmp_path / "copy")
    add_videos(warehouse, tmp_path / "copy")
    shutil.rmtree(mine)
    (tmp_path / "empty").mkdir()
    assert relocate_videos(warehouse, tmp_path / "empty").written == 3
    assert warehouse.value("SELECT count(*) FROM videos WHERE uri LIKE 'copy/%'") == 3
    assert warehouse.value("SELECT count(*) FROM video_files") == 3


def test_a_folder_that_is_not_there_is_said_with_the_next_command(warehouse: Warehouse, command: Command) -> None:
    result = command("relocate", warehouse.path, "none")
    assert result.code == 2
    assert result.err == f"Error: There is no folder none.\nvlm-rlaif relocate {warehouse.path} FOLDER\n"
