"""Questions of a file reach the videos that they name, and a file with mistakes reaches none."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.intake.add import add_questions, add_videos
from vlm_rlaif.warehouse.intake.questions import match_videos
from vlm_rlaif.warehouse.media.video import hash_file
from vlm_rlaif.warehouse.store import Warehouse

Command = Any


def write_questions(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), "utf-8")
    return path


@pytest.fixture
def deep(shapes_folder: Path, tmp_path: Path) -> Path:
    """A folder with a folder of three videos in it."""
    folder = tmp_path / "mine"
    shutil.copytree(shapes_folder, folder / "kitchen")
    return folder


# Questions and their videos


def test_questions_are_asked_of_the_video_that_they_name(
    warehouse: Warehouse, shapes_folder: Path, tmp_path: Path
) -> None:
    add_videos(warehouse, shapes_folder)
    file = write_questions(
        tmp_path / "q.jsonl",
        {"video": "1.mp4", "question": " what happens\u2028{here} ? ", "reference": "a lot", "kind": "describe"},
        "",
        {"question": "of every video ?"},
    )
    assert add_questions(warehouse, file).written == 4
    assert add_questions(warehouse, file).run_id is None
    (row,) = warehouse.rows("SELECT * FROM questions JOIN videos USING (video_id) WHERE kind = 'describe'")
    assert (Path(row["uri"]).name, row["text"], row["reference"]) == ("1.mp4", "what happens\u2028{here} ?", "a lot")
    assert row["spec_id"] is None


def test_unicode_in_a_question_is_not_a_new_line(warehouse: Warehouse, shapes_folder: Path, tmp_path: Path) -> None:
    add_videos(warehouse, shapes_folder)
    line = json.dumps({"video": "1.mp4", "question": "one\u2028two ?"}, ensure_ascii=False)
    assert add_questions(warehouse, write_questions(tmp_path / "q.jsonl", line)).written == 1


@pytest.mark.parametrize(
    "name", ["1.mp4", "kitchen/1.mp4", "./kitchen/1.mp4", "mine//kitchen/1.mp4", "{folder}/kitchen/1.mp4", "{id}"]
)
def test_a_video_may_be_named_by_any_spelling_of_its_path(
    warehouse: Warehouse, deep: Path, tmp_path: Path, name: str
) -> None:
    add_videos(warehouse, deep)
    video_id = hash_file(deep / "kitchen" / "1.mp4")
    name = name.format(folder=deep, id=video_id)
    add_questions(warehouse, write_questions(tmp_path / "q.jsonl", {"video": name, "question": "what ?"}))
    assert warehouse.rows("SELECT video_id FROM questions") == [{"video_id": video_id}]


def test_a_path_through_a_link_is_the_same_path(warehouse: Warehouse, deep: Path, tmp_path: Path) -> None:
    add_videos(warehouse, deep)
    (tmp_path / "link").symlink_to(deep)
    line = {"video": str(tmp_path / "link" / "kitchen" / "1.mp4"), "question": "what ?"}
    assert add_questions(warehouse, write_questions(tmp_path / "q.jsonl", line)).written == 1


def test_a_copy_under_another_name_is_the_same_video(
    warehouse: Warehouse, command: Command, deep: Path, tmp_path: Path
) -> None:
    shutil.copy(deep / "kitchen" / "1.mp4", deep / "twin.mp4")
    names = ("twin.mp4", "1.mp4", f"{deep}/twin.mp4")
    file = write_questions(tmp_path / "q.jsonl", *({"video": n, "question": f"about {n} ?"} for n in names))
    result = command("add", warehouse.path, deep, "--questions", file)
    assert (result.code, result.err) == (0, "")
    about = warehouse.rows("SELECT DISTINCT video_id FROM questions")
    assert about == [{"video_id": hash_file(deep / "twin.mp4")}]


def test_many_questions_about_many_videos_are_matched_at_once(tmp_path: Path) -> None:
    """Line by line this would be a thousand million comparisons."""
    places = [(f"/clips/{n}/video.mp4", f"id {n}") for n in range(10_000)]
    lines = [(n, {"question": "what ?", "video": f"{n % 10_000}/video.mp4"}) for n in range(100_000)]
    matched = match_videos(lines, places, Path("q.jsonl"), Path("w.duckdb"))
    assert [video_ids for _, video_ids in matched] == [[f"id {n % 10_000}"] for n in range(100_000)]


# Mistakes


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{not json", "q.jsonl:2: "),
        ('["a list"]', "q.jsonl:2: it has no question"),
        ({"video": "1.mp4"}, "q.jsonl:2: it has no question"),
        ({"question": "  "}, "q.jsonl:2: it has no question"),
        ({"question": 7}, "q.jsonl:2: `question` is not text: 7"),
        ({"question": "how many ?", "reference": 3}, "q.jsonl:2: `reference` is not text: 3"),
        ({"question": "what ?", "video": 1}, "q.jsonl:2: `video` is not text: 1"),
        ({"question": "what ?", "vidoe": "1.mp4"}, "q.jsonl:2: unknown key 'vidoe'. Did you mean 'video'?"),
        ({"question": "what ?", "x": 1}, "q.jsonl:2: unknown key 'x'. Known: video, question, reference, kind."),
    ],
)
def test_a_bad_line_of_questions_is_told_by_its_number(
    warehouse: Warehouse, command: Command, shapes_folder: Path, tmp_path: Path, line: object, complaint: str
) -> None:
    file = write_questions(tmp_path / "q.jsonl", {"question": "fine ?"}, line)
    result = command("add", warehouse.path, shapes_folder, "--questions", file)
    assert result.code == 2
    assert complaint in result.err and 'A line looks like this: {"video"' in result.err
    assert warehouse.value("SELECT count(*) FROM videos") == 0, "a bad file stops the command before it writes"


def test_questions_that_are_not_utf_8_are_refused(warehouse: Warehouse, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_bytes('{"question": "où ?"}'.encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        add_questions(warehouse, tmp_path / "q.jsonl")


def test_a_missing_question_file_is_said_with_the_next_command(
    warehouse: Warehouse, command: Command, shapes_folder: Path, tmp_path: Path
) -> None:
    result = command("add", warehouse.path, shapes_folder, "--questions", tmp_path / "none.jsonl")
    assert result.code == 2 and "There is no question file" in result.err
    assert result.err.splitlines()[-1] == "vlm-rlaif add --help"


def test_questions_without_their_video_are_told_together_with_a_command_that_helps(
    warehouse: Warehouse, command: Command, shapes_folder: Path, tmp_path: Path
) -> None:
    lines = [{"video": name, "question": "what ?"} for name in ("none.mp4", "1.mp4", "", ".mp4")]
    result = command(
        "add", warehouse.path, shapes_folder, "--questions", write_questions(tmp_path / "q.jsonl", *lines)
    )
    assert result.code == 2
    assert "q.jsonl:1: no readable video is called 'none.mp4'" in result.err
    assert "q.jsonl:2" not in result.err and "q.jsonl:3" in result.err and "q.jsonl:4" in result.err
    assert warehouse.value("SELECT count(*) FROM questions") == 0
    helped = command(*shlex.split(result.err.splitlines()[-1])[1:])
    assert helped.code == 0 and "1.mp4" in helped.out


def test_a_question_of_every_video_needs_one(warehouse: Warehouse, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"q\.jsonl:1: there is no readable video"):
        add_questions(warehouse, write_questions(tmp_path / "q.jsonl", {"question": "what ?"}))


def test_a_name_of_several_videos_lists_some_of_them(
    warehouse: Warehouse, command: Command, shapes_folder: Path, tmp_path: Path
) -> None:
    for n, folder in enumerate(("a", "b", "c", "d")):
        (tmp_path / "mine" / folder).mkdir(parents=True)
        (tmp_path / "mine" / folder / "1.mp4").write_bytes((shapes_folder / "1.mp4").read_bytes() + bytes(n))
    file = write_questions(tmp_path / "q.jsonl", {"video": "1.mp4", "question": "what ?"})
    result = command("add", warehouse.path, tmp_path / "mine", "--questions", file)
    assert result.code == 2
    some = ", ".join(f"{tmp_path}/mine/{folder}/1.mp4" for folder in "abc")
    assert f"q.jsonl:1: 4 videos are called '1.mp4', such as {some}.\n" in result.err
    assert warehouse.value("SELECT count(*) FROM questions") == 0
