"""Video files that arrive: each is known by its bytes, looked at once, and becomes rows, or the reason why not.

The same bytes at two places are one video with two places. A video whose place is empty follows to where it is seen.
One that was taken out with `vlm-rlaif remove` stays out until somebody says `add --again`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vlm_rlaif.warehouse.media.frame_folder import hash_folder
from vlm_rlaif.warehouse.media.frames import VideoError
from vlm_rlaif.warehouse.media.video import hash_file, probe
from vlm_rlaif.warehouse.records import Video, VideoFile, row_id
from vlm_rlaif.warehouse.store import Warehouse

SUFFIXES = {".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".flv", ".ogv", ".gif"}
"""What is taken from a folder. `.ts` is not: it is TypeScript more often than video."""
AT_ONCE = 64
"""Files that are looked up in the warehouse in one visit."""
KNOWN = """
    SELECT s.video_id, v.uri, v.status, v.split, r.reason AS removed, f.places
    FROM (SELECT unnest($ids) AS video_id) s
    LEFT JOIN videos v USING (video_id)
    LEFT JOIN removals r USING (video_id)
    LEFT JOIN (
        SELECT video_id, list(uri) AS places FROM video_files
        WHERE video_id IN (SELECT unnest($ids)) GROUP BY video_id
    ) f USING (video_id)
"""


@dataclass(slots=True)
class Arrivals:
    """The files that one command has seen."""

    warehouse: Warehouse
    split: str | None = None
    """The split of new videos; by default a hash of each."""
    again: bool = False
    """Take back what was taken out."""
    licence: str | None = None
    """The licence of new videos."""
    rows: list[Video | VideoFile] = field(default_factory=list)
    """What waits to be written. Nothing else is written before `settle`, save that `again` ends removals."""
    video_ids: dict[str, str] = field(default_factory=dict)
    """Absolute path -> video id; a link and what it leads to are two paths."""
    problems: dict[str, str] = field(default_factory=dict)
    """Video id, or path of a file without one -> what is wrong with it."""
    refused: list[str] = field(default_factory=list)
    """Files that cannot be a row: they have no bytes, or no name."""
    unreadable: list[str] = field(default_factory=list)
    """What is wrong with the files that cannot be read, and with the refused ones."""
    removed: dict[str, str] = field(default_factory=dict)
    """Video id -> a path, of videos that were taken out and stay out."""
    mended: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Video id -> new columns, of known videos that were unreadable and are not any more."""
    added: int = 0
    places: set[tuple[str, str]] = field(default_factory=set)
    """(Video id, uri) of new places of videos that had one, and have not moved there."""
    other_split: int = 0
    """Known videos that keep a split which is not the one asked for."""
    _known: dict[str, dict[str, Any]] = field(default_factory=dict)
    _first: dict[str, Path] = field(default_factory=dict)
    """Video id -> the first file with these bytes."""

    def see(self, files: Sequence[Path]) -> Iterator[None]:
        """Look at files; after each one its rows wait in `rows`."""
        for start in range(0, len(files), AT_ONCE):
            group = [
                (path := Path(os.path.abspath(file)), self._identify(path)) for file in files[start : start + AT_ONCE]
            ]
            self._look_up({video_id for _, video_id in group if video_id} - self._known.keys())
            for path, video_id in group:
                if video_id:
                    self._arrive(video_id, path)
                yield

    def has_seen(self, path: Path) -> bool:
        return str(path) in self.video_ids or str(path) in self.problems

    def problem(self, path: Path) -> str:
        """Why nothing can be asked about a file that was seen; empty where it can."""
        video_id = self.video_ids.get(str(path))
        return self.problems.get(video_id or str(path), "")

    def take(self, run_id: str) -> list[Video | VideoFile]:
        """The waiting rows, as rows of a run."""
        rows, self.rows = [replace(row, run_id=run_id) for row in self.rows], []
        return rows

    def settle(self) -> int:
        """Bring the rows of known videos up to date; returns how many have moved."""
        for video_id, columns in self.mended.items():
            changes = ", ".join(f"{name} = ?" for name in columns)
            self.warehouse.execute(f"UPDATE videos SET {changes} WHERE video_id = ?", [*columns.values(), video_id])
        moved = {video_id: path for video_id, path in self._first.items() if self._is_gone(video_id)}
        move(self.warehouse, {v: (self._known[v]["uri"], path) for v, path in moved.items()})
        self.places -= {(video_id, uri_of(self.warehouse, path)) for video_id, path in moved.items()}
        return len(moved)

    def _identify(self, path: Path) -> str | None:
        names = [str(path), os.path.realpath(path)]
        try:
            "".join(names).encode()
            video_id = hash_of(path)
        except UnicodeEncodeError:
            self._refuse(path, "its name is not UTF-8")
        except VideoError as error:
            self._refuse(path, str(error))
        except OSError as error:
            self._refuse(path, error.strerror or str(error))
        else:
            self.video_ids |= dict.fromkeys(names, video_id)
            return video_id
        return None

    def _refuse(self, path: Path, reason: str) -> None:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        self.problems[str(path)] = reason
        self.refused.append(shown)
        self.unreadable.append(f"{shown}: {reason}.")

    def _look_up(self, video_ids: set[str]) -> None:
        for row in self.warehouse.rows(KNOWN, {"ids": sorted(video_ids)}) if video_ids else []:
            self._known[row["video_id"]] = {**row, "places": set(row["places"] or [])}

    def _arrive(self, video_id: str, path: Path) -> None:
        known = self._known[video_id]
        if known["removed"] is not None and known["uri"] is None and not self._take_back(video_id, path):
            return
        uri = uri_of(self.warehouse, path)
        if video_id not in self._first:
            self._first[video_id] = path
            self._bring_up_to_date(video_id, path, uri, known)
        if uri not in known["places"]:
            if known["places"]:
                self.places.add((video_id, uri))
            known["places"].add(uri)
            self.rows.append(VideoFile(video_id=video_id, uri=uri, run_id=""))

    def _take_back(self, video_id: str, path: Path) -> bool:
        """Whether a video that was taken out may come back."""
        if not self.again:
            self.removed.setdefault(video_id, str(path))
            self.problems[video_id] = "its video was taken out of the warehouse"
            return False
        self.warehouse.execute("DELETE FROM removals WHERE video_id = ?", [video_id])
        self._known[video_id]["removed"] = None
        return True

    def _bring_up_to_date(self, video_id: str, path: Path, uri: str, known: Mapping[str, Any]) -> None:
        """A video without a row gets one, and a row that says unreadable is given another chance."""
        if known["split"] is not None and self.split not in (None, known["split"]):
            self.other_split += 1
        if known["status"] == "ok":
            return
        found = look(path)
        if found["status"] != "ok":
            self.problems[video_id] = f"its video cannot be read: {found['status']}"
            self.unreadable.append(found["status"])
        if known["uri"] is None:
            self.added += 1
            self.rows.append(
                Video(
                    video_id=video_id, uri=uri, source=path.parent.name, video_group=video_id,
                    split=self.split or split_of(video_id), licence=self.licence, run_id="", **found,
                )
            )  # fmt: skip
        elif found["status"] == "ok":
            self.mended[video_id] = found

    def _is_gone(self, video_id: str) -> bool:
        """Whether a known video's place is empty, or was just seen to hold other bytes."""
        uri = self._known[video_id]["uri"]
        if uri is None:
            return False
        stored = str(self.warehouse.video_path(uri))
        return self.video_ids.get(stored, video_id) != video_id or not os.path.exists(stored)


def move(warehouse: Warehouse, moved: Mapping[str, tuple[str, Path]]) -> None:
    """Give videos their new place: video id -> (the place in its row, the path where it was found)."""
    if not moved:
        return
    columns = {
        "ids": list(moved),
        "old": [old for old, _ in moved.values()],
        "new": [uri_of(warehouse, path) for _, path in moved.values()],
        "sources": [path.parent.name for _, path in moved.values()],
    }
    table = "(SELECT unnest($ids) AS video_id, unnest($old) AS old, unnest($new) AS uri, unnest($sources) AS source)"
    warehouse.execute(
        f"UPDATE videos SET uri = m.uri, source = m.source FROM {table} m WHERE videos.video_id = m.video_id", columns
    )
    del columns["new"], columns["sources"]
    warehouse.execute(
        "DELETE FROM video_files USING (SELECT unnest($ids) AS video_id, unnest($old) AS uri) m"
        " WHERE video_files.video_id = m.video_id AND video_files.uri = m.uri",
        columns,
    )


def hash_of(path: Path) -> str:
    """20 hex digits that identify the bytes of a video file, or of a folder of frames."""
    return hash_folder(path) if path.is_dir() else hash_file(path)


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
