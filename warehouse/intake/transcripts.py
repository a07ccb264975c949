"""Transcripts: files of subtitles become rows, each with the video whose name it has.

`cat.srt`, `cat.vtt` and `cat.en.vtt` belong to `cat.mp4`: to the one in the same folder, or else to the only video of
that name. A video has one transcript, and keeps it: narratives were made of it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.intake.subtitles import SUFFIXES, Cue, read_subtitles
from vlm_rlaif.warehouse.records import Transcript, row_id
from vlm_rlaif.warehouse.runs import Outcome, derive
from vlm_rlaif.warehouse.store import Warehouse

_LANGUAGE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*")
"""`en`, `pt-BR`, `zh_Hant`."""


@dataclass(frozen=True, slots=True)
class Transcribed(Outcome):
    """How it ended. `written` counts cues, `failed` the files that were left out."""

    videos: int = 0
    """Videos that have a transcript now and had none."""
    problems: tuple[str, ...] = ()
    """What is wrong with each file that was left out."""
    late: int = 0
    """Narratives that were made before, without what is said."""

    def __str__(self) -> str:
        if not self.written and not self.failed:
            return f"{self.stage}: nothing to do"
        failed = f", {self.failed} files left out" if self.failed else ""
        return f"{self.stage}: {self.written} lines of {self.videos} videos written{failed}"


@dataclass(frozen=True, slots=True)
class Known:
    """A video that may get a transcript."""

    video_id: str
    duration_s: float
    digest: str | None
    """Identifies the transcript that it has."""


@dataclass(slots=True)
class Chosen:
    """Files and the videos that they belong to."""

    files: dict[str, list[tuple[Path, str | None]]] = field(default_factory=dict)
    """Video id -> (file, its language)."""
    problems: list[str] = field(default_factory=list)


def add_transcripts(warehouse: Warehouse, folder: Path, language: str | None = None) -> Transcribed:
    """Add the subtitles below a folder (or one file). `language` chooses where a video has them in several."""
    if language is not None and not _LANGUAGE.fullmatch(language):
        raise UserError(f"--language {language}: give a code, en or pt-BR say.")
    videos = _videos(warehouse)
    chosen = match(subtitle_files(folder, warehouse), _places(warehouse))
    new: set[str] = set()

    def rows(run_id: str) -> Iterator[Transcript]:
        for video_id, files in chosen.files.items():
            try:
                file = the_one(files, language)
                cues = read_subtitles(file)
                made = _rows(videos[video_id], cues, file, run_id)
            except ValueError as error:
                chosen.problems.append(str(error) if len(files) > 1 else f"{files[0][0]}: {error}")
                continue
            if made:
                new.add(video_id)
                yield from made

    done = derive(warehouse, "transcripts", {"folder": str(folder), "language": language}, rows)
    problems = tuple(chosen.problems)
    return Transcribed(
        "transcripts", done.written, len(problems), done.written, done.run_id, videos=len(new), problems=problems,
        late=_late(warehouse, new),
    )  # fmt: skip


def subtitle_files(folder: Path, warehouse: Warehouse) -> list[Path]:
    """The files below a folder that are subtitles by their names."""
    if folder.is_file() and folder.suffix.lower() in SUFFIXES:
        return [folder]
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.", f"vlm-rlaif transcripts {warehouse.path} FOLDER")
    found = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    found = sorted(file for file in found if file.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(
            f"There are no subtitles below {folder}: files that end in {' or '.join(sorted(SUFFIXES))}.",
            f"vlm-rlaif transcripts {warehouse.path} FOLDER",
        )
    return found


def _videos(warehouse: Warehouse) -> dict[str, Known]:
    rows = warehouse.rows(
        "SELECT video_id, coalesce(duration_s, 0) AS duration_s, digest FROM videos LEFT JOIN"
        " (SELECT video_id, md5(string_agg(transcript_id, '' ORDER BY transcript_id)) AS digest"
        " FROM transcripts GROUP BY video_id) USING (video_id) WHERE status = 'ok'"
    )
    return {row["video_id"]: Known(**row) for row in rows}


def _places(warehouse: Warehouse) -> list[tuple[Path, str]]:
    """Where the readable videos lie: (path, video id)."""
    rows = warehouse.rows(
        "SELECT video_id, uri FROM videos WHERE status = 'ok' UNION"
        " SELECT video_id, f.uri FROM video_files f JOIN videos v USING (video_id) WHERE v.status = 'ok' ORDER BY ALL"
    )
    return [(warehouse.video_path(row["uri"]), row["video_id"]) for row in rows]


def match(files: Sequence[Path], places: Sequence[tuple[Path, str]]) -> Chosen:
    """Which video every file belongs to."""
    named: dict[str, dict[str, set[str]]] = {}
    for path, video_id in places:
        named.setdefault(path.stem, {}).setdefault(video_id, set()).add(os.path.realpath(path.parent))
    chosen = Chosen()
    for file in files:
        stem, language = file.stem, None
        before, dot, ending = stem.rpartition(".")
        if stem not in named and dot and _LANGUAGE.fullmatch(ending):
            stem, language = before, ending.replace("_", "-")
        found = named.get(stem, {})
        beside = [video_id for video_id, folders in found.items() if os.path.realpath(file.parent) in folders]
        videos = beside or list(found)
        if len(videos) == 1:
            chosen.files.setdefault(videos[0], []).append((file, language))
        else:
            what = f"{len(videos)} videos are" if videos else "no readable video is"
            chosen.problems.append(f"{file}: {what} called {stem}.")
    return chosen


def the_one(files: Sequence[tuple[Path, str | None]], language: str | None) -> Path:
    """The file that is read of those that a video has; raises `ValueError` where nothing decides."""
    wanted = [file for file, spoken in files if language and re.match(rf"{language}\b", spoken or "", re.IGNORECASE)]
    plain = [file for file, spoken in files if spoken is None]
    for group in (wanted, plain) if language else ([file for file, _ in files], plain):
        if len(group) == 1:
            return group[0]
    names = ", ".join(str(file) for file, _ in files[:3])
    if language and not wanted and not plain:
        raise ValueError(f"{names}: nothing in the language {language}.")
    raise ValueError(f"{names}: several files for one video; --language en takes the one that is called .en.")


def _rows(video: Known, cues: Sequence[Cue], file: Path, run_id: str) -> list[Transcript]:
    """The rows of a transcript, none if the video has it already; raises `ValueError` if it has another one."""
    if (late := max(cue.start_s for cue in cues)) > video.duration_s:
        raise ValueError(f"it speaks at {late:g} s, and the video ends at {video.duration_s:g} s.")
    made = {
        (transcript_id := row_id("transcript", video.video_id, cue.start_s, cue.end_s, cue.text)): Transcript(
            transcript_id=transcript_id, video_id=video.video_id, start_s=cue.start_s, end_s=cue.end_s,
            text=cue.text, source=file.name, run_id=run_id,
        )
        for cue in cues
    }  # fmt: skip
    digest = hashlib.md5("".join(sorted(made)).encode(), usedforsecurity=False).hexdigest()
    if video.digest not in (None, digest):
        raise ValueError(f"the video {video.video_id} has another transcript already, and keeps it.")
    return [] if video.digest else list(made.values())


def _late(warehouse: Warehouse, video_ids: set[str]) -> int:
    """Narratives of these videos that read transcripts and were made when there was none."""
    return int(
        warehouse.value(
            "SELECT count(*) FROM contexts x JOIN specs s USING (spec_id) WHERE s.stage = 'context'"
            " AND (s.sampling->>'$.transcripts') IS NOT NULL AND len(x.transcript_ids) = 0"
            " AND x.video_id IN (SELECT unnest($ids))",
            {"ids": sorted(video_ids)},
        )
    )  # fmt: skip
