"""A video is taken out again, with everything that was made of it; its hash stays, so that it does not come back.

The file of the video is left alone. What lies outside of the tables and may still hold the video's words is named:
exports, checkpoints, versions of the data set. Deleted words may stay in free blocks of the warehouse file until
`purge` writes it anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from vlm_rlaif.warehouse.care.relations import HANGING, KEY, count_gone, gather
from vlm_rlaif.warehouse.care.transaction import finished_run, insert, now, transaction
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.journal import only_one, replay
from vlm_rlaif.warehouse.records import Removal
from vlm_rlaif.warehouse.runs import new_run_id
from vlm_rlaif.warehouse.store import Warehouse


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes with some videos, and what still holds them afterwards."""

    rows: dict[str, dict[str, int]]
    """Table -> video id -> rows."""
    places: list[str]
    """Where the files of the videos lie; they stay."""
    versions: list[str]
    exports: list[str]
    checkpoints: list[str]
    """Trained on preferences of these videos."""
    maybe: list[str]
    """Checkpoints whose rows are not known, trained after the videos came."""
    frames: list[Path]
    """Cached frames of the videos."""

    @property
    def total(self) -> int:
        return sum(sum(by_video.values()) for by_video in self.rows.values())

    def of_video(self, video_id: str) -> int:
        return sum(by_video.get(video_id, 0) for by_video in self.rows.values())

    def of_table(self) -> dict[str, int]:
        return {table: sum(by_video.values()) for table, by_video in self.rows.items()}


def plan(warehouse: Warehouse, video_ids: Sequence[str]) -> Plan:
    """What a removal would take; raises `UserError` for a video that was never here."""
    with warehouse.visit(read_only=True) as connection:
        return _look(warehouse, connection, video_ids)


def _look(warehouse: Warehouse, connection: duckdb.DuckDBPyConnection, video_ids: Sequence[str]) -> Plan:
    gather(connection, video_ids)
    rows = count_gone(connection)
    known = {video_id for by_video in rows.values() for video_id in by_video}
    tombs = {video_id for (video_id,) in connection.execute("SELECT video_id FROM removals").fetchall()}
    if strange := [video_id for video_id in video_ids if video_id not in known | tombs]:
        raise UserError(
            f"There is no video {', '.join(strange)} in {warehouse.path}.",
            f'vlm-rlaif sql {warehouse.path} "SELECT video_id, uri FROM videos"',
        )
    certain, maybe = _checkpoints(connection)
    return Plan(
        rows=rows,
        places=[
            str(warehouse.video_path(uri)) + ("" if warehouse.video_path(uri).exists() else " (nothing is there)")
            for (uri,) in connection.execute(
                "SELECT uri FROM videos WHERE video_id IN (SELECT id FROM gone_videos) UNION"
                " SELECT uri FROM video_files WHERE video_id IN (SELECT id FROM gone_videos) ORDER BY uri"
            ).fetchall()
        ],
        versions=[
            f"{name} ({count} preferences)"
            for name, count in connection.execute(
                "SELECT coalesce(d.name, r.rows_hash), count(*) FROM dataset_rows r"
                " JOIN gone_pairs g ON r.pair_id = g.id LEFT JOIN datasets d USING (rows_hash)"
                " GROUP BY ALL ORDER BY ALL"
            ).fetchall()
        ],
        exports=[
            path
            for (path,) in connection.execute(
                "SELECT path FROM exports WHERE rows_hash IN (SELECT rows_hash FROM dataset_rows r"
                " JOIN gone_pairs g ON r.pair_id = g.id) ORDER BY path"
            ).fetchall()
        ],
        checkpoints=certain,
        maybe=maybe,
        frames=cached_frames(warehouse, video_ids),
    )


def _checkpoints(connection: duckdb.DuckDBPyConnection) -> tuple[list[str], list[str]]:
    """Paths of checkpoints that learned from the gathered rows: surely, and perhaps.

    A version of the data set says what was read. Trainers that record none may have read every video of the training
    split that was there when they began.
    """
    found = connection.execute(
        """
        SELECT c.checkpoint_id, c.path, c.config,
               c.data_hash IN (SELECT rows_hash FROM dataset_rows r JOIN gone_pairs g ON r.pair_id = g.id),
               c.data_hash NOT IN (SELECT rows_hash FROM dataset_rows) AND EXISTS
                   (SELECT 1 FROM videos v JOIN gone_videos g ON v.video_id = g.id LEFT JOIN runs b USING (run_id)
                    WHERE v.split = 'train' AND (r.started_at IS NULL OR b.started_at IS NULL
                                                 OR b.started_at <= r.started_at))
        FROM checkpoints c LEFT JOIN runs r USING (run_id) ORDER BY c.path
        """
    ).fetchall()
    certain = {checkpoint for checkpoint, _, _, read, _ in found if read}
    inputs = {checkpoint: _inputs(config) for checkpoint, _, config, _, _ in found}
    while more := {c for c, taught_by in inputs.items() if taught_by & certain} - certain:
        certain |= more
    return (
        [path for checkpoint, path, _, _, _ in found if checkpoint in certain],
        [path for checkpoint, path, _, _, maybe in found if maybe and checkpoint not in certain],
    )


def _inputs(config: str) -> set[str]:
    """The checkpoints that a checkpoint builds on."""
    inputs: dict[str, Any] = json.loads(config).get("inputs", {})
    return set(map(str, inputs.values()))


def cached_frames(warehouse: Warehouse, video_ids: Sequence[str]) -> list[Path]:
    """Files of the frame cache that hold pixels of the videos, or where they lie, and copies for browsers."""
    from vlm_rlaif.warehouse.media.frame_cache import folder_of, proxies_of

    wanted = tuple(f"{video_id}{after}" for video_id in video_ids for after in "-.")
    folders = folder_of(warehouse.path), proxies_of(warehouse.path)
    return sorted(path for folder in folders for path in folder.glob("*") if path.name.startswith(wanted))


@contextmanager
def nobody_else(warehouse: Warehouse, stage: str) -> Iterator[None]:
    """Hold the locks of all stages: no job runs that would write rows of a video while it goes."""
    with only_one(warehouse, stage), ExitStack() as locks:
        for path in sorted(warehouse.journal_folder.glob("*.lock")):
            if path.stem != stage:
                locks.enter_context(only_one(warehouse, path.stem))
        yield


def remove(warehouse: Warehouse, video_ids: Sequence[str], reason: str = "") -> tuple[Plan, str | None]:
    """Take videos out, in one transaction; returns what went, and the run, which is None if nothing was there."""
    with nobody_else(warehouse, "remove"):
        replay(warehouse)
        with warehouse.visit() as connection, transaction(connection, warehouse.path):
            going = _look(warehouse, connection, video_ids)
            run_id = _take_out(connection, video_ids, reason, going)
        for path in going.frames:
            path.unlink(missing_ok=True)
    return going, run_id


def _take_out(
    connection: duckdb.DuckDBPyConnection, video_ids: Sequence[str], reason: str, going: Plan
) -> str | None:
    tombs = {video_id for (video_id,) in connection.execute("SELECT video_id FROM removals").fetchall()}
    fresh = [video_id for video_id in dict.fromkeys(video_ids) if video_id not in tombs]
    if not fresh and not going.total:
        return None
    started_at, run_id = now(), new_run_id()
    uris = dict(
        connection.execute(
            "SELECT video_id, uri FROM videos WHERE video_id IN (SELECT id FROM gone_videos)"
        ).fetchall()
    )
    for table in reversed(HANGING):
        connection.execute(f"DELETE FROM {table} WHERE {KEY[table]} IN (SELECT id FROM gone_{table})")
    if fresh:
        insert(
            connection,
            [
                Removal(
                    video_id=video_id, uri=uris.get(video_id, ""), reason=reason,
                    rows_removed=going.of_video(video_id), run_id=run_id,
                )
                for video_id in fresh
            ],
        )  # fmt: skip
    config = {"videos": list(video_ids), "reason": reason, "removed": going.of_table()}
    insert(connection, [finished_run(run_id, "remove", config, started_at, len(fresh))])
    return run_id


def undo(warehouse: Warehouse, video_ids: Sequence[str]) -> list[str]:
    """Forget that videos were removed, so that they may be added again; returns those that had been."""
    with only_one(warehouse, "remove"), warehouse.visit() as connection, transaction(connection, warehouse.path):
        started_at = now()
        gone = connection.execute(
            "DELETE FROM removals WHERE video_id IN (SELECT unnest(?)) RETURNING video_id", [list(video_ids)]
        ).fetchall()
        found = sorted(video_id for (video_id,) in gone)
        if found:
            insert(connection, [finished_run(new_run_id(), "remove", {"undo": found}, started_at, 0)])
    return found
