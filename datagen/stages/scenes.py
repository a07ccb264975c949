"""Clips that begin at cuts: the whole video is decoded to find them, several videos at once.

Each video's clips are in the journal as soon as they are found, so a job that is killed has lost no more than it was
at. A video that cannot be decoded is told and counted, and has no clips; the next run tries it again.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import click

from vlm_rlaif.datagen.portion import Shard
from vlm_rlaif.warehouse.journal import only_one, replay
from vlm_rlaif.warehouse.media.frames import VideoError
from vlm_rlaif.warehouse.media.scenes import cuts
from vlm_rlaif.warehouse.media.video import content_id
from vlm_rlaif.warehouse.progress import Bar
from vlm_rlaif.warehouse.records import Clip, row_id
from vlm_rlaif.warehouse.runs import OpenRun, Outcome, record_run
from vlm_rlaif.warehouse.settings import Scenes
from vlm_rlaif.warehouse.spool import Row
from vlm_rlaif.warehouse.store import Warehouse

STEPS = 40
"""Halvings of an interval of seconds: less than a microsecond is left of it."""
WORKERS = max(1, os.cpu_count() or 1)
T = TypeVar("T")
FindCuts = Callable[[Path, str, float], list[float]]
"""(path, video id, seconds that it lasts) -> seconds of its cuts; raises `VideoError`."""


@dataclass(frozen=True, slots=True)
class Cut(Outcome):
    """How cutting ended. `failed` counts videos that could not be decoded: no rows."""

    def __str__(self) -> str:
        if not self.written and not self.failed:
            return f"{self.stage}: nothing to do"
        failed = f", {self.failed} videos could not be read" if self.failed else ""
        return f"{self.stage}: {self.written} rows written{failed}"


def scenes(duration_s: float, cuts_s: Sequence[float], settings: Scenes) -> list[tuple[float, float]]:
    """(start, end) of every clip: the earliest cuts that leave no clip shorter than `min_s`.

    Where that makes more than `most` clips, they are the longest that `most` of them can be made of.

    >>> scenes(6.0, [2.0, 2.1, 4.0, 5.9], Scenes(min_s=1.0))
    [(0.0, 2.0), (2.0, 4.0), (4.0, 6.0)]
    >>> scenes(6.0, [], Scenes())
    [(0.0, 6.0)]
    """
    starts = _apart(duration_s, cuts_s, settings.min_s)
    if len(starts) > settings.most:
        short_s, long_s = settings.min_s, duration_s
        for _ in range(STEPS):
            middle_s = (short_s + long_s) / 2
            if len(_apart(duration_s, cuts_s, middle_s)) > settings.most:
                short_s = middle_s
            else:
                long_s = middle_s
        starts = _apart(duration_s, cuts_s, long_s)
    return list(zip(starts, [*starts[1:], duration_s], strict=True))


def _apart(duration_s: float, cuts_s: Sequence[float], gap_s: float) -> list[float]:
    """Where clips of at least `gap_s` begin."""
    starts = [0.0]
    for cut_s in cuts_s:
        if cut_s - starts[-1] >= gap_s and duration_s - cut_s >= gap_s and cut_s > starts[-1]:
            starts.append(cut_s)
    return starts


def clip_scenes(
    warehouse: Warehouse, settings: Scenes, method: str, find: FindCuts | None = None, shard: Shard | None = None
) -> Outcome:  # fmt: skip
    """Cut every readable video that has no clips of this method yet."""
    run: OpenRun | None = None
    written = failed = 0

    def cut(video: Row) -> list[tuple[float, float]]:
        path = warehouse.video_path(video["uri"])
        found = (find or _finder(settings))(path, video["video_id"], video["duration_s"])
        return scenes(video["duration_s"], found, settings)

    with only_one(warehouse, "clip"), ExitStack() as stack:
        replay(warehouse)
        waiting = warehouse.stream(
            "SELECT video_id, uri, duration_s FROM videos v WHERE status = 'ok' AND duration_s > 0 AND NOT EXISTS"
            " (SELECT 1 FROM clips c WHERE c.video_id = v.video_id AND c.method = ?) ORDER BY video_id",
            [method],
        )
        mine = len(waiting) if shard is None else sum(shard.holds(video["video_id"]) for video in waiting)
        chosen = (video for video in waiting if shard is None or shard.holds(video["video_id"]))
        with Bar("clip", mine) as bar, closing(ahead(cut, chosen, WORKERS)) as found_ahead:
            for video, parts in found_ahead:
                try:
                    found = parts.result()
                except VideoError as error:
                    failed += 1
                    click.echo(f"left out: {error}", err=True)
                else:
                    run = run or stack.enter_context(record_run(warehouse, "clip", asdict(settings), "none"))
                    run.append([_row(video["video_id"], method, *part, run.run_id) for part in found])
                    written += len(found)
                bar.advance()
        if run is not None:
            run.failed = failed
    return Cut("clip", written, failed, written, run.run_id if run else None)


def _row(video_id: str, method: str, start_s: float, end_s: float, run_id: str) -> Clip:
    clip_id = row_id("clip", video_id, method, start_s, end_s)
    return Clip(clip_id=clip_id, video_id=video_id, start_s=start_s, end_s=end_s, method=method, run_id=run_id)


def _finder(settings: Scenes) -> FindCuts:
    def find(path: Path, video_id: str, duration_s: float) -> list[float]:
        try:
            if content_id(path) != video_id:
                raise VideoError(f"{path}: its bytes are not those that were added.")
        except OSError as error:
            raise VideoError(f"{path}: {error.strerror or error}") from None
        return cuts(path, threshold=settings.threshold, duration_s=duration_s)

    return find


def ahead(
    work: Callable[[Row], T], rows: Iterable[Row], workers: int
) -> Generator[tuple[Row, Future[T]], None, None]:
    """Every row with its work, in order; a few rows more are worked on meanwhile."""
    begun: deque[tuple[Row, Future[T]]] = deque()
    pool = ThreadPoolExecutor(workers, "scenes")
    try:
        for row in rows:
            begun.append((row, pool.submit(work, row)))
            if len(begun) > 2 * workers:
                yield begun.popleft()
        yield from begun
    finally:
        pool.shutdown(cancel_futures=True)
