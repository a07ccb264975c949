"""Questions from templates: no model, the same for every video but for what is filled in.

    ask:
      templates:
        - {question: "What happens between {start_s} and {end_s} s?", reference: "{caption}", kind: clip}
        - {question: "How does the video of {duration_s} s end?"}

A template with a field of a clip is asked of every clip, any other once of a video.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

from vlm_rlaif.datagen import prompt
from vlm_rlaif.datagen.stages.ask import Written, distinct
from vlm_rlaif.datagen.stages.context import figure
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import Question, Record, Spec, row_id
from vlm_rlaif.warehouse.runs import Outcome, derive
from vlm_rlaif.warehouse.settings import Template
from vlm_rlaif.warehouse.store import Warehouse

STAGE = "templates"
CLIP_FIELDS = frozenset({"start_s", "end_s", "caption"})
FIELDS = CLIP_FIELDS | {"duration_s"}


def fields_of(template: Template) -> frozenset[str]:
    """What a template asks to be filled in; raises `UserError` for what nothing fills in."""
    found = _wording(template.question).fields | _wording(template.reference or "").fields
    if unknown := sorted(found - FIELDS):
        raise UserError(
            f"ask: the template {template.question!r} has a field {{{unknown[0]}}}. There are:"
            f" {', '.join(sorted(FIELDS))}."
        )
    return found


def fields_of_all(templates: Sequence[Template]) -> frozenset[str]:
    return frozenset[str]().union(*map(fields_of, templates))


def template_hash(templates: Sequence[Template]) -> str:
    """Identifies the wording."""
    return row_id("templates", *([each.question, each.reference, each.kind] for each in templates))


def fill(templates: Sequence[Template], duration_s: float, clips: Sequence[dict[str, Any]]) -> list[Written]:
    """The questions about one video.

    >>> fill([Template(question="What is seen at {start_s} s?")], 4.0, [{"start_s": 0.0}, {"start_s": 2.0}])[1].text
    'What is seen at 2 s?'
    """
    found = []
    for template in templates:
        for clip in clips if fields_of(template) & CLIP_FIELDS else [{}]:
            seconds = {"duration_s": duration_s, **clip}
            values = {name: figure(value) if name != "caption" else value for name, value in seconds.items()}
            text = _wording(template.question).render(**values).user
            answer = _wording(template.reference).render(**values).user if template.reference else None
            found.append(Written(text, answer, template.kind))
    return distinct(found)


def _wording(text: str) -> prompt.Prompt:
    return prompt.Prompt("template", "", text)


def unasked(
    warehouse: Warehouse, spec: Spec, templates: Sequence[Template]
) -> Iterator[tuple[str, list[Written]]]:  # fmt: skip
    """Videos without questions whose clips (and captions, if they are filled in) stand, and what is asked of them."""
    needed, upstream = CLIP_FIELDS & fields_of_all(templates), json.loads(spec.upstream)
    found = warehouse.stream(
        "SELECT v.video_id, v.duration_s, c.start_s, c.end_s, x.text AS caption FROM videos v"
        " LEFT JOIN clips c ON c.video_id = v.video_id AND c.method = $method"
        " LEFT JOIN captions x ON x.clip_id = c.clip_id AND x.spec_id = $captions"
        " WHERE v.status = 'ok' AND v.duration_s > 0 AND NOT EXISTS (SELECT 1 FROM questions q"
        " WHERE q.video_id = v.video_id AND (q.spec_id IS NULL OR q.spec_id = $spec))"
        " ORDER BY v.video_id, c.start_s",
        {"method": upstream.get("clip"), "captions": upstream.get("caption"), "spec": spec.spec_id},
    )
    for video_id, group in itertools.groupby(found, lambda row: row["video_id"]):
        clips = list(group)
        if all(clip[name] is not None for clip in clips for name in needed):
            yield video_id, fill(templates, clips[0]["duration_s"], [{n: c[n] for n in needed} for c in clips])


def ask_templates(warehouse: Warehouse, spec: Spec, templates: Sequence[Template]) -> Outcome:
    """Ask the questions."""

    def rows(run_id: str) -> Iterator[Record]:
        for video_id, written in unasked(warehouse, spec, templates):
            for each in written:
                yield Question(
                    question_id=row_id("template", spec.spec_id, video_id, each.text), video_id=video_id,
                    text=each.text, reference=each.reference, kind=each.kind, source=STAGE,
                    spec_id=spec.spec_id, run_id=run_id,
                )  # fmt: skip

    return derive(warehouse, STAGE, dataclasses.asdict(spec), rows)
