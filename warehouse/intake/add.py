"""Videos from a folder and questions from a file become rows.

A video is known by the hash of its bytes, so the same file under two names is one row with two places. A file that
cannot be read is a row whose status says why. The split belongs to the video: a hash of it, 80/10/10, and it never
changes. What may change is where the file lies: a row whose file has moved follows it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.intake.arrivals import SUFFIXES, Arrivals
from vlm_rlaif.warehouse.intake.questions import match_videos, read_questions
from vlm_rlaif.warehouse.journal import only_one, replay
from vlm_rlaif.warehouse.media.frame_folder import is_frame_folder
from vlm_rlaif.warehouse.progress import Bar
from vlm_rlaif.warehouse.records import Question, row_id
from vlm_rlaif.warehouse.runs import OpenRun, Outcome, derive, record_run
from vlm_rlaif.warehouse.store import Warehouse


@dataclass(frozen=True, slots=True)
class Added(Outcome):
    """How `add` ended. `written` counts videos, `failed` files that could not be hashed or named: no rows."""

    moved: int = 0
    """Known videos that were found at a new place."""
    places: int = 0
    """Further places of videos that have one."""
    mended: int = 0
    """Known videos that were unreadable and are not any more."""
    unreadable: tuple[str, ...] = ()
    """What is wrong with each file, seen this time, that cannot be read."""
    removed: Mapping[str, str] = field(default_factory=dict)
    """Id -> file, of videos that were taken out of the warehouse, and stay out."""
    video_ids: Mapping[str, str] = field(default_factory=dict)
    """Absolute path -> video id, of every readable file seen this time."""

    def __str__(self) -> str:
        counts = {
            "found at a new place": self.moved,
            "seen at a further place": self.places,
            "readable now": self.mended,
            "taken out before": len(self.removed),
            "failed": self.failed,
        }
        said = [f"{count} {what}" for what, count in counts.items() if count]
        if not self.written and not said:
            return f"{self.stage}: nothing to do"
        videos = f"{self.written} video{'s' * (self.written != 1)} written"
        return f"{self.stage}: {', '.join([videos, *said])}"


def add_videos(
    warehouse: Warehouse, folder: Path, *, frames: bool = False, again: bool = False, licence: str | None = None
) -> Added:
    """Add every video file below a folder, or one file; with `frames` every folder of images, too.

    Each new video is in the journal as soon as it is probed. The run begins with the first of them, so that adding
    a folder again writes nothing. `again` takes back what `vlm-rlaif remove` took out.
    """
    files = video_files(folder, warehouse.path, frames=frames)
    arrivals = Arrivals(warehouse, again=again, licence=licence)
    config = {"folder": str(folder), "frames": frames, "licence": licence}
    run: OpenRun | None = None
    with only_one(warehouse, "add"), ExitStack() as stack:
        replay(warehouse)
        with Bar("add", len(files)) as bar:
            for _ in arrivals.see(files):
                if arrivals.rows:
                    run = run or stack.enter_context(record_run(warehouse, "add", config, "none"))
                    run.append(arrivals.take(run.run_id))
                bar.advance()
        moved = arrivals.settle()
        if run is not None:
            run.failed = len(arrivals.refused)
    return Added(
        "add", arrivals.added, len(arrivals.refused), pending=arrivals.added, run_id=run.run_id if run else None,
        moved=moved, places=len(arrivals.places), mended=len(arrivals.mended),
        unreadable=tuple(arrivals.unreadable), removed=arrivals.removed,
        video_ids={path: found for path, found in arrivals.video_ids.items() if found not in arrivals.problems},
    )  # fmt: skip


def video_files(folder: Path, warehouse: Path, *, frames: bool = False) -> list[Path]:
    """The videos that a folder, or a file, stands for; links that lead nowhere too, to be told as unreadable."""
    command = f"vlm-rlaif add {warehouse} FOLDER_OF_VIDEOS"
    if folder.is_file():
        if folder.suffix.lower() in SUFFIXES:
            return [folder]
        questions = f" --questions {folder}" if folder.suffix.lower() in (".json", ".jsonl") else ""
        raise UserError(f"{folder} is no video by its name. {_known_suffixes()}", command + questions)
    if not folder.is_dir():
        if folder.exists():
            raise UserError(f"{folder} is neither a folder nor a plain file.", command)
        raise UserError(f"There is no folder {folder}.", command)
    if not (files := below(folder, frames=frames)):
        hint = f"vlm-rlaif add {warehouse} {folder} --frames" if below(folder, frames=True) else command
        raise UserError(f"There is no video below {folder}. {_known_suffixes()}", hint)
    return files


def below(folder: Path, *, frames: bool = False) -> list[Path]:
    """The video files below a folder, and with `frames` the folders of images; the folder itself may be one."""
    found = []
    for parent, _, names in os.walk(folder):
        files = (Path(parent, name) for name in names if os.path.splitext(name)[1].lower() in SUFFIXES)
        found += [file for file in files if not _is_something_else(file)]
        if frames and is_frame_folder(Path(parent)):
            found.append(Path(parent))
    return sorted(found)


def _is_something_else(path: Path) -> bool:
    """A pipe, or a link to a folder, with the name of a video."""
    return os.path.exists(path) and not os.path.isfile(path)


def _known_suffixes() -> str:
    return f"Videos are {', '.join(sorted(SUFFIXES))}; folders of images are, too, with --frames."


def add_questions(warehouse: Warehouse, file: Path, seen: Mapping[str, str] | None = None) -> Outcome:
    """Add questions from JSONL: `{"video": "name.mp4", "question": "...", "reference": ..., "kind": ...}`.

    A line without a video asks the question of every video. `seen` are further paths of videos (path -> video id):
    a file whose bytes are known under another name has no row of its own, and may be named all the same.
    """
    lines = read_questions(file)

    def rows(run_id: str) -> Iterator[Question]:
        stored = warehouse.rows("SELECT video_id, uri FROM videos WHERE status = 'ok'")
        places = [(str(warehouse.video_path(row["uri"])), row["video_id"]) for row in stored]
        for line, video_ids in match_videos(lines, [*places, *(seen or {}).items()], file, warehouse.path):
            for video_id in video_ids:
                yield make_question(video_id, line, "imported", run_id)

    return derive(warehouse, "questions", {"file": str(file)}, rows)


def make_question(video_id: str, line: dict[str, Any], source: str, run_id: str) -> Question:
    text = line["question"].strip()
    return Question(
        question_id=row_id("question", video_id, text), video_id=video_id, text=text,
        reference=line.get("reference"), kind=line.get("kind"), source=source, run_id=run_id,
    )  # fmt: skip
