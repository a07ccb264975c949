"""Videos of a folder become rows: known by their bytes, followed when they move, and never in each other's way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.datagen.stages.clip import clip
from vlm_rlaif.warehouse.config import Clips
from vlm_rlaif.warehouse.intake.add import add_videos
from vlm_rlaif.warehouse.intake.arrivals import split_of
from vlm_rlaif.warehouse.media.video import hash_file
from vlm_rlaif.warehouse.records import Removal, Video
from vlm_rlaif.warehouse.store import Warehouse

Command = Any

# The console command, which gets a signal when it probes its third video.
STOPPED_COMMAND = """
import os, signal, sys
from vlm_rlaif.warehouse.intake import arrivals
from vlm_rlaif.warehouse.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)
number, probe, probed = int(sys.argv.pop(1)), arrivals.probe, []

def mortal_probe(path):
    probed.append(path)
    if len(probed) == 3:
        os.kill(os.getpid(), number)
    return probe(path)

arrivals.probe = mortal_probe
main()
"""


@pytest.fixture
def mine(shapes_folder: Path, tmp_path: Path) -> Path:
    """A folder of the user, beside the warehouse, with three videos."""
    return Path(shutil.copytree(shapes_folder, tmp_path / "mine"))


def row(file: Path, **changes: Any) -> Video:
    """What another machine may have written about a file."""
    video_id = hash_file(file)
    known: dict[str, Any] = {
        "uri": str(file), "source": "theirs", "video_group": video_id, "split": split_of(video_id),
        "status": "ok", "run_id": "import",
    }  # fmt: skip
    return Video(video_id=video_id, **{**known, **changes})


def all_lie_where_their_rows_say(warehouse: Warehouse) -> bool:
    rows = warehouse.rows("SELECT video_id, uri FROM videos")
    return all(row["video_id"] == hash_file(warehouse.video_path(row["uri"])) for row in rows)


def runs(warehouse: Warehouse) -> int:
    return int(warehouse.value("SELECT count(*) FROM runs"))


def places(warehouse: Warehouse) -> set[str]:
    return {row["uri"] for row in warehouse.rows("SELECT uri FROM video_files")}


# What becomes a row


def test_videos_are_known_by_their_bytes(warehouse: Warehouse, shapes_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(shapes_folder, folder / "deep")
    shutil.copy(shapes_folder / "0.mp4", folder / "twin.MP4")
    (folder / "notes.txt").write_text("not a video")
    assert add_videos(warehouse, folder).written == 3
    assert add_videos(warehouse, folder).run_id is None
    for row in warehouse.rows("SELECT * FROM videos"):
        assert row["video_id"] == hash_file(warehouse.video_path(row["uri"]))
        assert (row["status"], row["fps"], row["width"], row["height"]) == ("ok", 12.0, 32, 32)
        assert not row["uri"].startswith("/"), "a video beside the warehouse moves with it"


def test_one_file_may_be_added_alone(warehouse: Warehouse, shapes_folder: Path) -> None:
    assert add_videos(warehouse, shapes_folder / "1.mp4").written == 1
    assert warehouse.value("SELECT uri FROM videos") == str(shapes_folder / "1.mp4")


def test_typescript_is_no_video(warehouse: Warehouse, mine: Path) -> None:
    (mine / "index.ts").write_text("export {}")
    assert add_videos(warehouse, mine).written == 3


def test_a_split_belongs_to_the_video_and_never_changes(warehouse: Warehouse, shapes_folder: Path) -> None:
    video_id = hash_file(shapes_folder / "0.mp4")
    imported = "train" if split_of(video_id) == "test" else "test"
    warehouse.append([row(shapes_folder / "0.mp4", uri="elsewhere.mp4", video_group="g", split=imported)])
    add_videos(warehouse, shapes_folder)
    splits = {row["video_id"]: row["split"] for row in warehouse.rows("SELECT video_id, split FROM videos")}
    assert splits.pop(video_id) == imported
    assert splits == {other: split_of(other) for other in splits} and len(splits) == 2


def test_a_split_is_a_hash_of_the_group_and_nothing_else() -> None:
    assert [split_of(f"group {n}") for n in range(12)] == [split_of(f"group {n}") for n in range(12)]
    assert {split_of(f"group {n}") for n in range(100)} == {"train", "val", "test"}


def test_adding_says_what_it_did_as_json(warehouse: Warehouse, command: Command, shapes_folder: Path) -> None:
    result = command("add", warehouse.path, shapes_folder, "--json")
    assert result.code == 0
    (outcome,) = json.loads(result.out)
    assert (outcome["stage"], outcome["written"], outcome["unreadable"]) == ("add", 3, [])
    assert outcome["video_ids"][str(shapes_folder / "0.mp4")] == hash_file(shapes_folder / "0.mp4")


# What cannot be read


def test_an_unreadable_file_is_a_row_that_says_why_and_ends_with_3(
    warehouse: Warehouse, command: Command, mine: Path
) -> None:
    (mine / "broken.mp4").write_bytes(b"this is no video")
    result = command("add", warehouse.path, mine)
    assert result.code == 3
    assert "unreadable: " in result.err and "mine/broken.mp4: " in result.err
    assert "add: 4 videos written" in result.out
    assert warehouse.value("SELECT status FROM videos WHERE uri = 'mine/broken.mp4'") != "ok"
    assert clip(warehouse, Clips(parts=1)).written == 3


def test_only_the_files_of_this_command_are_complained_about(
    warehouse: Warehouse, command: Command, mine: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"this is no video")
    assert command("add", warehouse.path, broken).code == 3
    result = command("add", warehouse.path, mine)
    assert (result.code, result.err) == (0, "")
    again = command("add", warehouse.path, broken)
    assert (again.code, again.out) == (3, "add: nothing to do\n") and "broken.mp4" in again.err
    assert runs(warehouse) == 2


def test_a_file_that_cannot_be_a_row_does_not_stop_the_others(
    warehouse: Warehouse, command: Command, mine: Path
) -> None:
    odd = os.fsencode(mine) + b"/\xff.mp4"
    shutil.copy(mine / "0.mp4", odd)
    (mine / "1 leads nowhere.mp4").symlink_to(mine / "gone.mp4")
    (mine / "a folder.mp4").mkdir()
    result = command("add", warehouse.path, mine)
    assert (result.code, result.out) == (3, "add: 3 videos written, 2 failed\n")
    assert result.err.splitlines() == [
        f"unreadable: {mine}/1 leads nowhere.mp4: No such file or directory.",
        f"unreadable: {mine}/\\xff.mp4: its name is not UTF-8.",
    ]
    assert warehouse.rows("SELECT rows_written, rows_failed FROM runs") == [{"rows_written": 6, "rows_failed": 2}]


# Rows that stand


def test_a_video_that_has_moved_is_found_again(warehouse: Warehouse, command: Command, mine: Path) -> None:
    add_videos(warehouse, mine)
    mine.rename(mine.with_name("yours"))
    result = command("add", warehouse.path, mine.with_name("yours"))
    assert (result.code, result.out) == (0, "add: 0 videos written, 3 found at a new place\n")
    found = warehouse.rows("SELECT uri, source FROM videos ORDER BY uri")
    assert found == [{"uri": f"yours/{n}.mp4", "source": "yours"} for n in range(3)]
    assert places(warehouse) == {f"yours/{n}.mp4" for n in range(3)}, "the old places are gone"
    assert command("add", warehouse.path, mine.with_name("yours")).out == "add: nothing to do\n"
    assert runs(warehouse) == 2


def test_a_copy_of_a_video_that_is_still_there_is_a_further_place(
    warehouse: Warehouse, command: Command, mine: Path
) -> None:
    shutil.copy(mine / "0.mp4", mine / "twin.mp4")
    result = command("add", warehouse.path, mine)
    assert result.out == "add: 3 videos written, 1 seen at a further place\n"
    shutil.copytree(mine, mine.with_name("copy"))
    result = command("add", warehouse.path, mine.with_name("copy"))
    assert result.out == "add: 0 videos written, 4 seen at a further place\n"
    assert warehouse.value("SELECT count(*) FROM videos WHERE uri LIKE 'mine/%'") == 3
    names = ("0.mp4", "1.mp4", "2.mp4", "twin.mp4")
    assert places(warehouse) == {f"{folder}/{name}" for folder in ("mine", "copy") for name in names}
    assert command("add", warehouse.path, mine.with_name("copy")).out == "add: nothing to do\n"


def test_videos_that_have_swapped_their_names_are_told_apart(warehouse: Warehouse, mine: Path) -> None:
    add_videos(warehouse, mine)
    for old, new in (("0.mp4", "was 0"), ("1.mp4", "0.mp4"), ("was 0", "1.mp4")):
        (mine / old).rename(mine / new)
    assert add_videos(warehouse, mine).moved == 2
    assert all_lie_where_their_rows_say(warehouse)
    for row in warehouse.rows("SELECT video_id, uri FROM video_files"):
        assert row["video_id"] == hash_file(warehouse.video_path(row["uri"]))


def test_a_video_that_was_unreadable_gets_another_chance(warehouse: Warehouse, command: Command, mine: Path) -> None:
    warehouse.append([row(mine / "0.mp4", status="0.mp4: decoding took longer than it may.")])
    result = command("add", warehouse.path, mine)
    assert (result.code, result.out, result.err) == (0, "add: 2 videos written, 1 readable now\n", "")
    (found,) = warehouse.rows("SELECT status, width, duration_s FROM videos WHERE source = 'theirs'")
    assert found["status"] == "ok" and found["width"] == 32 and found["duration_s"] > 0


# Videos that were taken out


def test_a_video_that_was_taken_out_stays_out_until_it_is_taken_back(
    warehouse: Warehouse, command: Command, mine: Path
) -> None:
    removed = Removal(
        video_id=hash_file(mine / "1.mp4"), uri="mine/1.mp4", reason="faces", rows_removed=7, run_id="test"
    )
    warehouse.append([removed])
    for said in ("add: 2 videos written, 1 taken out before\n", "add: 0 videos written, 1 taken out before\n"):
        result = command("add", warehouse.path, mine)
        assert (result.code, result.out) == (0, said)
    why, taken_back = result.err.splitlines()
    assert why == f"left out: {mine}/1.mp4: its video {removed.video_id} was taken out. To take it back:"
    assert taken_back == f"vlm-rlaif add {warehouse.path} {mine}/1.mp4 --again"
    assert runs(warehouse) == 1
    assert command(*taken_back.split()[1:]).out == "add: 1 video written\n"
    assert warehouse.value("SELECT count(*) FROM removals") == 0
    assert command("add", warehouse.path, mine).out == "add: nothing to do\n"
    assert warehouse.value("SELECT count(*) FROM videos") == 3


# Interruption


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_an_interrupted_add_keeps_what_it_has_probed(
    warehouse: Warehouse, mine: Path, number: signal.Signals, code: int
) -> None:
    command = [sys.executable, "-c", STOPPED_COMMAND, str(int(number)), "add", str(warehouse.path), str(mine)]
    assert subprocess.run(command, capture_output=True).returncode == code
    assert add_videos(warehouse, mine).written == 1
    ended = warehouse.rows("SELECT status, rows_written FROM runs ORDER BY started_at")
    assert [tuple(run.values()) for run in ended] == [("interrupted", 4), ("done", 2)], "a video and its place"
    assert all_lie_where_their_rows_say(warehouse)


# Mistakes


def test_a_file_of_questions_is_not_a_video(warehouse: Warehouse, command: Command, tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text('{"question": "what ?"}\n')
    result = command("add", warehouse.path, file)
    assert result.code == 2 and f"{file} is no video" in result.err
    assert result.err.splitlines()[-1] == f"vlm-rlaif add {warehouse.path} FOLDER_OF_VIDEOS --questions {file}"


@pytest.mark.parametrize(
    ("name", "complaint"), [("none", "There is no folder"), ("empty", "There is no video below")]
)
def test_a_folder_without_videos_is_said_with_the_next_command(
    warehouse: Warehouse, command: Command, tmp_path: Path, name: str, complaint: str
) -> None:
    (tmp_path / "empty").mkdir()
    result = command("add", warehouse.path, tmp_path / name)
    assert result.code == 2 and f"{complaint} {tmp_path / name}" in result.err
    assert result.err.splitlines()[-1] == f"vlm-rlaif add {warehouse.path} FOLDER_OF_VIDEOS"


def test_new_videos_have_the_licence_that_is_given_and_known_ones_keep_theirs(
    warehouse: Warehouse, shapes_folder: Path, command: Command
) -> None:
    assert command("add", warehouse.path, shapes_folder / "0.mp4", "--licence", "CC-BY-4.0").code == 0
    assert command("add", warehouse.path, shapes_folder).code == 0
    licences = [row["licence"] for row in warehouse.rows("SELECT licence FROM videos ORDER BY uri")]
    assert licences == ["CC-BY-4.0", None, None]
