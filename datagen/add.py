"""The first rows: videos from a folder and questions from a file.

A video is known by the hash of its bytes, so the same file under two names is one row. A file that cannot be read
is a row whose status says why. The split belongs to the video: a hash of it, 80/10/10, and it never changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vlm_rlaif.datagen.job import Outcome, derive
from vlm_rlaif.datagen.progress import Bar
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import Question, Record, Video, row_id
from vlm_rlaif.warehouse.store import Warehouse
from vlm_rlaif.warehouse.video import VideoError, hash_file, probe

SUFFIXES = {
    ".mp4",
    ".mkv",
    ".webm",
    ".mov",
    ".avi",
    ".m4v",
    ".ts",
    ".mpg",
    ".mpeg",
    ".flv",
    ".ogv",
    ".gif",
}


def add_videos(warehouse: Warehouse, folder: Path) -> Outcome:
    """Add every video file below a folder, or one file."""
    files = video_files(folder)

    def rows(run_id: str) -> Sequence[Record]:
        known = {row["video_id"] for row in warehouse.rows("SELECT video_id FROM videos")}
        made: dict[str, Record] = {}
        with Bar("add", len(files)) as bar:
            for file in files:
                video_id = hash_file(file)
                if video_id not in known and video_id not in made:
                    made[video_id] = read_video(warehouse, file, video_id, run_id)
                bar.advance()
        return list(made.values())

    return derive(warehouse, "add", {"folder": str(folder)}, rows)


def video_files(folder: Path) -> list[Path]:
    if not folder.exists():
        raise UserError(f"There is no folder {folder}.")
    if folder.is_file():
        return [folder]
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise UserError(f"There is no video below {folder}.", f"Looked for {', '.join(sorted(SUFFIXES))}.")
    return files


def read_video(warehouse: Warehouse, file: Path, video_id: str, run_id: str) -> Video:
    """The row of one file, readable or not."""
    path = file.resolve()
    if path.is_relative_to(warehouse.folder):
        path = path.relative_to(warehouse.folder)
    known: dict[str, Any] = {"status": "ok"}
    try:
        found = probe(file)
        known |= {name: getattr(found, name) for name in found.__dataclass_fields__}
    except VideoError as error:
        known["status"] = str(error)
    return Video(
        video_id=video_id, uri=str(path), source=file.parent.name, video_group=video_id,
        split=split_of(video_id), run_id=run_id, **known,
    )  # fmt: skip


def split_of(group: str) -> str:
    """80/10/10 by a hash of the group: train, val or test.

    >>> from collections import Counter
    >>> counts = Counter(split_of(str(i)) for i in range(10_000))
    >>> 7_800 < counts["train"] < 8_200 and 900 < counts["val"] < 1_100
    True
    """
    place = int(row_id("split", group), 16) % 100
    return "train" if place < 80 else "val" if place < 90 else "test"


def add_questions(warehouse: Warehouse, file: Path) -> Outcome:
    """Add questions from JSONL: `{"video": "name.mp4", "question": "...", "reference": ..., "kind": ...}`.

    A line without a video asks the question of every video.
    """
    lines = read_questions(file)

    def rows(run_id: str) -> Sequence[Record]:
        videos = warehouse.rows("SELECT video_id, uri FROM videos WHERE status = 'ok'")
        known = {row["question_id"] for row in warehouse.rows("SELECT question_id FROM questions")}
        made: dict[str, Record] = {}
        for number, line in lines:
            asked = match_videos(videos, line.get("video"), f"{file}:{number}")
            for video_id in asked:
                question = make_question(video_id, line, "imported", run_id)
                if question.question_id not in known:
                    made[question.question_id] = question
        return list(made.values())

    return derive(warehouse, "questions", {"file": str(file)}, rows)


def read_questions(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """(line number, record) of every line; all malformed lines are reported together."""
    if not file.is_file():
        raise UserError(f"There is no question file {file}.")
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8: {error}.") from None
    good, bad = [], []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            good.append((number, read_question(text)))
        except ValueError as error:
            bad.append(f"{file}:{number}: {error}")
    if bad:
        expected = '{"video": "name.mp4", "question": "What happens?"}'
        raise UserError(*bad[:10], f"{len(bad)} bad lines. A line looks like this: {expected}")
    return good


def read_question(text: str) -> dict[str, Any]:
    """One line; raises `ValueError` when it is not a question in words."""
    record = json.loads(text)
    if not isinstance(record, dict) or record.get("question") is None:
        raise ValueError("it has no question")
    for key in ("question", "reference", "kind", "video"):
        if not isinstance(record.get(key), str | None):
            raise ValueError(f"`{key}` is not text: {record[key]!r}")
    if not record["question"].strip():
        raise ValueError("it has no question")
    return record


def match_videos(videos: Iterable[dict[str, Any]], name: str | None, where: str) -> list[str]:
    """Videos that a question is about: all without a name, else those whose path ends in it."""
    found = [
        v["video_id"] for v in videos if name is None or v["video_id"] == name or f"/{v['uri']}".endswith(f"/{name}")
    ]
    if not found:
        raise UserError(
            f"{where}: no readable video is called {name!r}.",
            "vlm-rlaif tables W shows what is there.",
        )
    return found


def make_question(video_id: str, line: dict[str, Any], source: str, run_id: str) -> Question:
    text = line["question"].strip()
    return Question(
        question_id=row_id("question", video_id, text), video_id=video_id, text=text,
        reference=line.get("reference"), kind=line.get("kind"), source=source, run_id=run_id,
    )  # fmt: skip
