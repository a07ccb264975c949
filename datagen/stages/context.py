"""Contexts: the narrative that the judge reads. The captions of a video's clips, in time order.

With transcripts, what is said in a video stands after the caption of the clip in which it begins.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

from vlm_rlaif.datagen import prompt
from vlm_rlaif.warehouse.records import Context, Record, Spec, row_id
from vlm_rlaif.warehouse.runs import Outcome, derive
from vlm_rlaif.warehouse.store import Warehouse

Row = dict[str, Any]


def narrate(
    line: prompt.Prompt, clips: Sequence[Row], separator: str = "\n",
    speech_line: prompt.Prompt | None = None, speech: Sequence[Row] = (),
) -> str:  # fmt: skip
    """What is seen in every clip, with its seconds, and what is said in it.

    >>> line = prompt.parse("line", "{start_s}-{end_s} s: {caption}")
    >>> narrate(line, [{"start_s": 0.0, "end_s": 2.5, "text": "A dog runs."}])
    '0-2.5 s: A dog runs.'
    """
    told = []
    for clip, heard in zip(clips, by_clip(clips, speech), strict=True):
        seconds = {"start_s": figure(clip["start_s"]), "end_s": figure(clip["end_s"])}
        told.append(line.render(**seconds, caption=clip["text"]).user)
        if heard and speech_line is not None:
            end_s = max(cue["end_s"] for cue in heard)
            seconds = {"start_s": figure(heard[0]["start_s"]), "end_s": figure(end_s)}
            told.append(speech_line.render(**seconds, text=" ".join(cue["text"] for cue in heard)).user)
    return separator.join(told)


def by_clip(clips: Sequence[Row], speech: Sequence[Row]) -> list[list[Row]]:
    """What is said, by the clip in which it begins: the last that has begun by then, or the first."""
    starts, found = [clip["start_s"] for clip in clips], [list[Row]() for _ in clips]
    for cue in speech:
        found[max(0, bisect.bisect_right(starts, cue["start_s"]) - 1)].append(cue)
    return found


def figure(seconds: float) -> str:
    return f"{seconds:.2f}".rstrip("0").removesuffix(".")


def context(
    warehouse: Warehouse, spec: Spec, caption_spec: str, clip_method: str, transcripts: str | None = None
) -> Outcome:
    """Build the context of every video all of whose clips have captions. `transcripts` is the prompt of speech."""
    line, separator = prompt.load(spec.prompt), json.loads(spec.sampling)["separator"]
    speech_line = prompt.load(transcripts) if transcripts else None

    def rows(run_id: str) -> Iterator[Record]:
        captions = warehouse.stream(
            "SELECT c.video_id, x.caption_id, x.text, c.start_s, c.end_s FROM clips c"
            " LEFT JOIN captions x ON x.clip_id = c.clip_id AND x.spec_id = $caption"
            " WHERE c.method = $method AND NOT EXISTS"
            " (SELECT 1 FROM contexts t WHERE t.video_id = c.video_id AND t.spec_id = $context)"
            " ORDER BY c.video_id, c.start_s",
            {"caption": caption_spec, "method": clip_method, "context": spec.spec_id},
        )
        spoken = _speech(warehouse, spec) if speech_line else iter(())
        heard = next(spoken, None)
        for video_id, group in itertools.groupby(captions, lambda row: row["video_id"]):
            clips = list(group)
            while heard is not None and heard[0] < video_id:
                heard = next(spoken, None)
            speech = heard[1] if heard is not None and heard[0] == video_id else []
            ids, said = [clip["caption_id"] for clip in clips], [cue["transcript_id"] for cue in speech]
            if None not in ids:
                yield Context(
                    context_id=row_id("context", spec.spec_id, ids, *([said] if said else [])), video_id=video_id,
                    spec_id=spec.spec_id, caption_ids=ids, transcript_ids=said,
                    text=narrate(line, clips, separator, speech_line, speech), run_id=run_id,
                )  # fmt: skip

    return derive(warehouse, "context", dataclasses.asdict(spec), rows)


def _speech(warehouse: Warehouse, spec: Spec) -> Iterator[tuple[str, list[Row]]]:
    """What is said in every video that has no context yet, in the order of the videos' ids."""
    cues = warehouse.stream(
        "SELECT * FROM transcripts s WHERE NOT EXISTS (SELECT 1 FROM contexts t WHERE t.video_id = s.video_id"
        " AND t.spec_id = $context) ORDER BY video_id, start_s, end_s, transcript_id",
        {"context": spec.spec_id},
    )
    return ((video_id, list(group)) for video_id, group in itertools.groupby(cues, lambda cue: cue["video_id"]))
