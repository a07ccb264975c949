"""Moved videos are found again by their bytes. Nothing new is added: only the places of known videos change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.intake.add import below
from vlm_rlaif.warehouse.intake.arrivals import hash_of, move, uri_of
from vlm_rlaif.warehouse.journal import only_one, replay
from vlm_rlaif.warehouse.media.frames import VideoError
from vlm_rlaif.warehouse.records import VideoFile
from vlm_rlaif.warehouse.runs import Outcome, record_run
from vlm_rlaif.warehouse.store import Warehouse


@dataclass(frozen=True, slots=True)
class Relocated(Outcome):
    """How `relocate` ended. `written` counts videos that were found, `failed` those that are still missing."""

    missing_uris: tuple[str, ...] = ()
    """Where the videos that are still missing should be."""

    def __str__(self) -> str:
        if not self.pending:
            return f"{self.stage}: every video lies where its row says"
        still = f", {self.failed} still missing" if self.failed else ""
        return f"{self.stage}: {self.written} found at a new place{still}"


def relocate_videos(warehouse: Warehouse, folder: Path) -> Relocated:
    """Look below a folder for the videos that are not where their rows say.

    Files with the name of a missing video are read first, and others only while something is still missing.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.", f"vlm-rlaif relocate {warehouse.path} FOLDER")
    with only_one(warehouse, "relocate"):
        replay(warehouse)
        missing = {
            row["video_id"]: row["uri"]
            for row in warehouse.stream("SELECT video_id, uri FROM videos ORDER BY uri")
            if not os.path.exists(warehouse.video_path(row["uri"]))
        }
        found: dict[str, tuple[str, Path]] = {}
        for path in _likely_first(warehouse, folder, missing) if missing else ():
            try:
                video_id = hash_of(path)
            except (OSError, VideoError):  # what cannot be read is not what was missing
                continue
            if video_id in missing and video_id not in found:
                found[video_id] = missing[video_id], path
                if len(found) == len(missing):
                    break
        run_id = _write(warehouse, folder, found) if found else None
    still = tuple(uri for video_id, uri in missing.items() if video_id not in found)
    return Relocated("relocate", len(found), len(still), len(missing), run_id, missing_uris=still)


def _likely_first(warehouse: Warehouse, folder: Path, missing: dict[str, str]) -> Iterator[Path]:
    """Files and folders with a missing name, then other places that were known, then all other videos."""
    names = {os.path.basename(uri) for uri in missing.values()}
    videos = below(folder, frames=True)
    yield from (path for path in videos if path.name in names)
    known = warehouse.rows(
        "SELECT uri FROM video_files WHERE video_id IN (SELECT unnest($ids)) ORDER BY uri", {"ids": list(missing)}
    )
    yield from (path for row in known if (path := warehouse.video_path(row["uri"])).exists())
    yield from (path for path in videos if path.name not in names)


def _write(warehouse: Warehouse, folder: Path, found: dict[str, tuple[str, Path]]) -> str:
    with record_run(warehouse, "relocate", {"folder": str(folder)}, "none") as run:
        run.append(
            [
                VideoFile(video_id=video_id, uri=uri_of(warehouse, path), run_id=run.run_id)
                for video_id, (_, path) in found.items()
            ]
        )
        move(warehouse, found)
    return run.run_id
