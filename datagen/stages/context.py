"""Contexts: the narrative that the judge reads. The captions of a video's clips, in time order."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

from vlm_rlaif.datagen import prompt
from vlm_rlaif.warehouse.records import Context, Record, Spec, row_id
from vlm_rlaif.warehouse.runs import Outcome, derive
from vlm_rlaif.warehouse.store import Warehouse


def narrate(line: prompt.Prompt, clips: Sequence[dict[str, Any]], separator: str = "\n") -> str:
    """What is said of every clip, with its seconds.

    >>> line = prompt.parse("line", "{start_s}-{end_s} s: {caption}")
    >>> narrate(line, [{"start_s": 0.0, "end_s": 2.5, "text": "A dog runs."}])
    '0-2.5 s: A dog runs.'
    """
    return separator.join(
        line.render(start_s=_figure(clip["start_s"]), end_s=_figure(clip["end_s"]), caption=clip["text"]).user
        for clip in clips
    )


def _figure(seconds: float) -> str:
    return f"{seconds:.2f}".rstrip("0").removesuffix(".")


def context(warehouse: Warehouse, spec: Spec, caption_spec: str, clip_method: str) -> Outcome:
    """Build the context of every video all of whose clips have captions."""
    line, separator = prompt.load(spec.prompt), json.loads(spec.sampling)["separator"]

    def rows(run_id: str) -> Iterator[Record]:
        captions = warehouse.stream(
            "SELECT c.video_id, x.caption_id, x.text, c.start_s, c.end_s FROM clips c"
            " LEFT JOIN captions x ON x.clip_id = c.clip_id AND x.spec_id = $caption"
            " WHERE c.method = $method AND NOT EXISTS"
            " (SELECT 1 FROM contexts t WHERE t.video_id = c.video_id AND t.spec_id = $context)"
            " ORDER BY c.video_id, c.start_s",
            {"caption": caption_spec, "method": clip_method, "context": spec.spec_id},
        )
        for video_id, group in itertools.groupby(captions, lambda row: row["video_id"]):
            clips = list(group)
            ids = [clip["caption_id"] for clip in clips]
            if None not in ids:
                yield Context(
                    context_id=row_id("context", spec.spec_id, ids), video_id=video_id, spec_id=spec.spec_id,
                    caption_ids=ids, text=narrate(line, clips, separator), run_id=run_id,
                )  # fmt: skip

    return derive(warehouse, "context", dataclasses.asdict(spec), rows)
