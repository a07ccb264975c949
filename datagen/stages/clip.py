"""Clips: a video cut into parts by time, or at its scene cuts (`scenes.py`). No model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict

from vlm_rlaif.datagen.portion import Shard
from vlm_rlaif.datagen.stages.scenes import clip_scenes
from vlm_rlaif.warehouse.config import Clips
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import Clip, Record, row_id
from vlm_rlaif.warehouse.runs import Outcome, derive
from vlm_rlaif.warehouse.store import Warehouse

SHORTEST_S = 0.2
"""A rest shorter than this joins the clip before it."""


def method_name(recipe: Clips) -> str:
    """`parts:3`, `seconds:2.0` or `scenes:0.3:1.0:20`; stored with every clip, for later stages to find theirs."""
    if [recipe.parts, recipe.seconds, recipe.scenes].count(None) != 2:
        raise UserError("clip: give either `parts`, `seconds` or `scenes`.")
    if recipe.scenes is not None:
        return f"scenes:{recipe.scenes.threshold}:{recipe.scenes.min_s}:{recipe.scenes.most}"
    if (recipe.parts or recipe.seconds or 0) <= 0:
        raise UserError("clip: `parts` or `seconds` must be above zero.")
    return f"parts:{recipe.parts}" if recipe.parts else f"seconds:{recipe.seconds}"


def cut(duration_s: float, recipe: Clips) -> list[tuple[float, float]]:
    """(start, end) of every clip in seconds.

    >>> cut(6.0, Clips(parts=3))
    [(0.0, 2.0), (2.0, 4.0), (4.0, 6.0)]
    >>> cut(5.1, Clips(seconds=2.5))
    [(0.0, 2.5), (2.5, 5.1)]
    """
    if recipe.parts:
        edges = [duration_s * part / recipe.parts for part in range(recipe.parts + 1)]
    else:
        step = recipe.seconds or duration_s
        edges = [0.0]
        while edges[-1] + step < duration_s - SHORTEST_S:
            edges.append(edges[-1] + step)
        edges.append(duration_s)
    return list(itertools.pairwise(edges))


def clip(warehouse: Warehouse, recipe: Clips, shard: Shard | None = None) -> Outcome:
    """Cut every readable video that has no clips of this method yet.

    Of a shard only its own are decoded to find their scenes; cutting by time costs nothing, and is done for all.
    """
    method = method_name(recipe)
    if recipe.scenes is not None:
        return clip_scenes(warehouse, recipe.scenes, method, shard=shard)

    def rows(run_id: str) -> Iterator[Record]:
        waiting = warehouse.stream(
            "SELECT video_id, duration_s FROM videos v WHERE status = 'ok' AND duration_s > 0 AND NOT EXISTS"
            " (SELECT 1 FROM clips c WHERE c.video_id = v.video_id AND c.method = ?) ORDER BY video_id",
            [method],
        )
        for video in waiting:
            for start_s, end_s in cut(video["duration_s"], recipe):
                yield Clip(
                    clip_id=row_id("clip", video["video_id"], method, start_s, end_s),
                    video_id=video["video_id"], start_s=start_s, end_s=end_s, method=method, run_id=run_id,
                )  # fmt: skip

    return derive(warehouse, "clip", asdict(recipe), rows)
