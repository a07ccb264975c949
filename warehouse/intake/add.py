"""The first rows: videos from a folder and questions from a file.

A video is known by the hash of its bytes, so the same file under two names is one row. A file that cannot be read
is a row whose status says why. The split belongs to the video: a hash of it, 80/10/10, and it never changes. What
may change is where the file lies: a row whose file has moved follows it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.intake.questions import match_videos, read_questions
from vlm_rlaif.warehouse.journal import only_one, replay
from vlm_rlaif.warehouse.media.video import VideoError, hash_file, probe
from vlm_rlaif.warehouse.progress import Bar
from vlm_rlaif.warehouse.records import Question, Record, Video, row_id
from vlm_rlaif.warehouse.runs import OpenRun, Outcome, derive, record_run
from vlm_rlaif.warehouse.store import Warehouse

SUFFIXES = {".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".flv", ".ogv", ".gif"}
"""What is taken from a folder. `.ts` is not: it is TypeScript more often than video."""


@dataclass(frozen=True, slots=True)
class Added(Outcome):
    """How `add` ended. `failed` counts files that could not even be hashed or named, and so are no rows."""

    moved: int = 0
    """Known videos that were found at a new place."""
    mended: int = 0
    """Known videos that were unreadable and are not any more."""
    unreadable: tuple[str, ...] = ()
    """What is wrong with each file, seen this time, that cannot be read."""
    video_ids: Mapping[str, str] = field(default_factory=dict)
    """Absolute path -> video id, of every readable file seen this time."""

    def __str__(self) -> str:
        counts = {
            "found at a new place": self.moved,
            "readable now": self.mended,
            "failed": self.failed,
        }
        said = [f"{count} {what}" for what, count in counts.items() if count]
        if not self.written and not said:
            return f"{self.stage}: nothing to do"
        return f"{self.stage}: {', '.join([f'{self.written} rows written', *said])}"


def add_videos(warehouse: Warehouse, folder: Path) -> Added:
    """Add every video file below a folder, or one file.

    Each new video is in the journal as soon as it is probed. The run begins with the first of them, so that adding
    a folder again writes nothing.
    """
    files = video_files(folder, warehouse.path)
    with only_one(warehouse, "add"), ExitStack() as stack:
        replay(warehouse)
        rows = warehouse.rows("SELECT video_id, uri, status FROM videos")

        def start_run() -> OpenRun:
            return stack.enter_context(record_run(warehouse, "add", {"folder": str(folder)}, "none"))

        adding = _Adding(warehouse, {row["video_id"]: row for row in rows}, start_run)
        with Bar("add", len(files)) as bar:
            for file in files:
                adding.see(file)
                bar.advance()
        return adding.end()


def video_files(folder: Path, warehouse: Path) -> list[Path]:
    """The files that a folder, or a file, stands for; links that lead nowhere too, to be told as unreadable."""
    command = f"vlm-rlaif add {warehouse} FOLDER_OF_VIDEOS"
    if folder.is_file():
        if folder.suffix.lower() in SUFFIXES:
            return [folder]
        questions = f" --questions {folder}" if folder.suffix.lower() in (".json", ".jsonl") else ""
        raise UserError(f"{folder} is no video by its name. {_known_suffixes()}", command + questions)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.", command)
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    files = [path for path in found if os.path.isfile(path) or not os.path.exists(path)]
    if not files:
        raise UserError(f"There is no video below {folder}. {_known_suffixes()}", command)
    return files


def _known_suffixes() -> str:
    return f"Videos are {', '.join(sorted(SUFFIXES))}."


@dataclass(slots=True)
class _Adding:
    """An `add` under way."""

    warehouse: Warehouse
    known: dict[str, dict[str, Any]]
    """The rows that stood before, by id."""
    start_run: Callable[[], OpenRun]
    run: OpenRun | None = None
    first: dict[str, Path] = field(default_factory=dict)
    """Video id -> the first file with these bytes."""
    paths: dict[str, str] = field(default_factory=dict)
    """Path -> video id; a link and what it leads to are two paths."""
    bad: set[str] = field(default_factory=set)
    """Ids of videos that cannot be read."""
    unreadable: list[str] = field(default_factory=list)
    failed: int = 0
    mended: int = 0

    def see(self, file: Path) -> None:
        """Look at one file, and at its video when these bytes are met for the first time."""
        path = Path(os.path.abspath(file))
        names = [str(path), os.path.realpath(path)]
        try:
            "".join(names).encode()
            video_id = hash_file(path)
        except UnicodeEncodeError:
            self._refuse(path, "its name is not UTF-8")
            return
        except OSError as error:
            self._refuse(path, error.strerror or str(error))
            return
        self.paths |= dict.fromkeys(names, video_id)
        if video_id not in self.first:
            self.first[video_id] = path
            self._bring_up_to_date(video_id, path)

    def _refuse(self, path: Path, reason: str) -> None:
        """A file without bytes or without a name cannot be a row."""
        self.unreadable.append(f"{os.fsencode(path).decode(errors='backslashreplace')}: {reason}.")
        self.failed += 1

    def _bring_up_to_date(self, video_id: str, path: Path) -> None:
        """A video without a row gets one, and a row that says unreadable is given another chance."""
        row = self.known.get(video_id)
        if row is not None and row["status"] == "ok":
            return
        found = look(path)
        if found["status"] != "ok":
            self.bad.add(video_id)
            self.unreadable.append(found["status"])
        if row is None:
            self._append(video_id, path, found)
        elif found["status"] == "ok":
            columns = ", ".join(f"{name} = ?" for name in found)
            self.warehouse.execute(f"UPDATE videos SET {columns} WHERE video_id = ?", [*found.values(), video_id])
            self.mended += 1

    def _append(self, video_id: str, path: Path, found: dict[str, Any]) -> None:
        self.run = self.run or self.start_run()
        video = Video(
            video_id=video_id, uri=uri_of(self.warehouse, path), source=path.parent.name, video_group=video_id,
            split=split_of(video_id), run_id=self.run.run_id, **found,
        )  # fmt: skip
        self.run.journal.append([video])
        self.run.written += 1

    def _follow(self) -> int:
        """Known videos that are not where they were get the place where they were seen; returns how many."""
        moved = {video_id: path for video_id, path in self.first.items() if self._is_gone(video_id)}
        if moved:
            places = [(uri_of(self.warehouse, path), path.parent.name) for path in moved.values()]
            self.warehouse.execute(
                "UPDATE videos SET uri = moved.uri, source = moved.source FROM (SELECT unnest(?) AS video_id,"
                " unnest(?) AS uri, unnest(?) AS source) AS moved WHERE videos.video_id = moved.video_id",
                [list(moved), *map(list, zip(*places, strict=True))],
            )
        return len(moved)

    def _is_gone(self, video_id: str) -> bool:
        """Whether a known video's place is empty, or was just seen to hold other bytes."""
        if video_id not in self.known:
            return False
        stored = str(self.warehouse.video_path(self.known[video_id]["uri"]))
        return self.paths.get(stored, video_id) != video_id or not os.path.isfile(stored)

    def end(self) -> Added:
        """Settle what can only be settled after the last file."""
        moved = self._follow()
        written, run_id = 0, None
        if self.run is not None:
            self.run.failed = self.failed
            written, run_id = self.run.written, self.run.run_id
        return Added(
            "add", written, self.failed, pending=written, run_id=run_id, moved=moved, mended=self.mended,
            unreadable=tuple(self.unreadable),
            video_ids={path: video_id for path, video_id in self.paths.items() if video_id not in self.bad},
        )  # fmt: skip


def look(path: Path) -> dict[str, Any]:
    """The columns of `videos` that come from the file itself; `status` says what is wrong with it."""
    try:
        return {"status": "ok", **asdict(probe(path))}
    except VideoError as error:
        return {"status": str(error)}


def uri_of(warehouse: Warehouse, path: Path) -> str:
    """A file's place as rows hold it: relative where it lies beside the warehouse and moves with it."""
    real = Path(os.path.realpath(path))
    return str(real.relative_to(warehouse.folder) if real.is_relative_to(warehouse.folder) else real)


def split_of(group: str) -> str:
    """80/10/10 by a hash of the group: train, val or test.

    >>> from collections import Counter
    >>> counts = Counter(split_of(str(i)) for i in range(10_000))
    >>> 7_800 < counts["train"] < 8_200 and 900 < counts["val"] < 1_100
    True
    """
    place = int(row_id("split", group), 16) % 100
    return "train" if place < 80 else "val" if place < 90 else "test"


def add_questions(warehouse: Warehouse, file: Path, seen: Mapping[str, str] | None = None) -> Outcome:
    """Add questions from JSONL: `{"video": "name.mp4", "question": "...", "reference": ..., "kind": ...}`.

    A line without a video asks the question of every video. `seen` are further paths of videos (path -> video id):
    a file whose bytes are known under another name has no row of its own, and may be named all the same.
    """
    lines = read_questions(file)

    def rows(run_id: str) -> Sequence[Record]:
        stored = warehouse.rows("SELECT video_id, uri FROM videos WHERE status = 'ok'")
        places = [(str(warehouse.video_path(row["uri"])), row["video_id"]) for row in stored]
        known = {row["question_id"] for row in warehouse.rows("SELECT question_id FROM questions")}
        made: dict[str, Record] = {}
        for line, video_ids in match_videos(lines, [*places, *(seen or {}).items()], file, warehouse.path):
            for video_id in video_ids:
                question = make_question(video_id, line, "imported", run_id)
                if question.question_id not in known:
                    made[question.question_id] = question
        return list(made.values())

    return derive(warehouse, "questions", {"file": str(file)}, rows)


def make_question(video_id: str, line: dict[str, Any], source: str, run_id: str) -> Question:
    text = line["question"].strip()
    return Question(
        question_id=row_id("question", video_id, text), video_id=video_id, text=text,
        reference=line.get("reference"), kind=line.get("kind"), source=source, run_id=run_id,
    )  # fmt: skip
