"""The ids that rows have by what was asked for: to find failures, and rows whose id is not their content's.

Each function repeats what a stage does when it asks; `tests/warehouse/test_doctor.py` holds them against the rows of
real stages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import duckdb

from vlm_rlaif.warehouse.records import row_id

MOST_SAMPLES = 64
"""Sample indexes that are looked for among the failures of a question."""
FETCHED_ROWS = 10_000


def clip_id(video: str, method: str, start_s: float, end_s: float) -> str:
    return row_id("clip", video, method, start_s, end_s)


def caption_id(spec: str, clip: str) -> str:
    return row_id("caption", spec, clip)


def transcript_id(video: str, start_s: float, end_s: float, text: str) -> str:
    return row_id("transcript", video, start_s, end_s, text)


def context_id(spec: str, captions: list[str], transcripts: list[str], base: str | None = None) -> str:
    """Of captions and what is said, or of the context that it was written from."""
    if base is not None:
        return rewritten_id(spec, base)
    return row_id("context", spec, captions, *([transcripts] if transcripts else []))


def rewritten_id(spec: str, context: str) -> str:
    return row_id("rewrite", spec, context)


def question_id(video: str, text: str, templates: str | None = None) -> str:
    """Of an imported question, or one from the templates of a spec."""
    return row_id("question", video, text) if templates is None else row_id("template", templates, video, text)


def asked_id(spec: str, context: str) -> str:
    """The first question that a model writes from a context; a failure has this id."""
    return row_id("ask", spec, context, 0)


def response_id(spec: str, question: str, sample_index: int) -> str:
    return row_id("response", spec, question, sample_index)


def rating_id(spec: str, question: str, response: str | None = None) -> str:
    return row_id("rating", spec, question, response)


def pair_id(response_a: str, response_b: str) -> str:
    return row_id("pair", response_a, response_b)


def label_id(spec: str, pair: str, context: str | None, shown_order: str) -> str:
    return row_id("label", spec, pair, context, shown_order, 0)


def answer_id(benchmark: str, spec: str, question: str, sample_index: int) -> str:
    return row_id("answer", benchmark, spec, question, sample_index)


def win_id(spec: str, answer: str, old: str, shown_order: str) -> str:
    return row_id("win", spec, answer, old, shown_order)


def spec_id(stage: str, model: str, revision: str, *parts: str) -> str:
    return row_id(stage, model if not revision else "", revision, *parts)


@dataclass(frozen=True, slots=True)
class Key:
    """How the ids of a kind of rows are computed: a query for the parts, and what becomes of them."""

    query: str
    make: Callable[..., str]


REQUESTS: Mapping[str, Key] = {
    "caption": Key(
        "SELECT g.video_id, s.spec_id, g.id FROM {source}specs s, gone_clips g WHERE s.stage = 'caption'", caption_id
    ),
    **dict.fromkeys(
        ("refine", "summarise"),
        Key(
            "SELECT g.video_id, s.spec_id, g.id FROM {source}specs s, gone_contexts g"
            " WHERE s.stage IN ('refine', 'summarise')",
            rewritten_id,
        ),
    ),
    "answerable": Key(
        "SELECT g.video_id, s.spec_id, g.id FROM {source}specs s, gone_questions g WHERE s.stage = 'answerable'",
        rating_id,
    ),
    "ask": Key(
        "SELECT g.video_id, s.spec_id, g.id FROM {source}specs s, gone_contexts g WHERE s.stage = 'ask'", asked_id
    ),
    "respond": Key(
        "SELECT g.video_id, s.spec_id, g.id, i.range FROM {source}specs s, gone_questions g, range({samples}) i"
        " WHERE s.stage = 'respond'",
        response_id,
    ),
    "rate": Key(
        "SELECT g.video_id, s.spec_id, r.question_id, g.id FROM {source}specs s, gone_responses g"
        " JOIN {source}responses r ON r.response_id = g.id WHERE s.stage = 'rate'",
        rating_id,
    ),
    "label": Key(
        "SELECT p.video_id, s.spec_id, p.id, x.id, o.shown_order FROM {source}specs s, gone_pairs p,"
        " (SELECT id, video_id FROM gone_contexts UNION ALL SELECT NULL, id FROM gone_videos) x,"
        " (VALUES ('ab'), ('ba')) o(shown_order) WHERE s.stage = 'label' AND x.video_id = p.video_id",
        label_id,
    ),
    "answer": Key(
        "SELECT g.video_id, 'warehouse/' || v.split, s.spec_id, g.id, i.range FROM {source}specs s,"
        " range({samples}) i, gone_questions g JOIN {source}videos v USING (video_id) WHERE s.stage = 'answer'",
        answer_id,
    ),
    "win": Key(
        "SELECT g.video_id, s.spec_id, n.answer_id, a.answer_id, o.shown_order FROM gone_answers g"
        " JOIN {source}answers n ON n.answer_id = g.id JOIN {source}answers a ON a.question_id = n.question_id,"
        " {source}specs s, (VALUES ('ab'), ('ba')) o(shown_order) WHERE s.stage = 'win'",
        win_id,
    ),
}
"""Stage -> the ids of all requests about the gathered rows; the first column is their video."""

ROWS: Mapping[str, Key] = {
    "specs": Key(
        "SELECT spec_id, stage, model, revision, adapter, prompt_hash, frames, sampling, upstream FROM specs", spec_id
    ),
    "clips": Key("SELECT clip_id, video_id, method, start_s, end_s FROM clips", clip_id),
    "captions": Key("SELECT caption_id, spec_id, clip_id FROM captions", caption_id),
    "transcripts": Key("SELECT transcript_id, video_id, start_s, end_s, text FROM transcripts", transcript_id),
    "contexts": Key(
        "SELECT context_id, spec_id, caption_ids, transcript_ids, base_context_id FROM contexts", context_id
    ),
    "questions": Key(
        "SELECT q.question_id, q.video_id, q.text, s.spec_id AS templates FROM questions q LEFT JOIN specs s"
        " ON s.spec_id = q.spec_id AND s.stage = 'templates' WHERE q.spec_id IS NULL OR s.spec_id IS NOT NULL",
        question_id,
    ),
    "ratings": Key("SELECT rating_id, spec_id, question_id, response_id FROM ratings", rating_id),
    "responses": Key(
        "SELECT response_id, spec_id, question_id, sample_index FROM responses JOIN specs s USING (spec_id)"
        " WHERE s.stage = 'respond'",
        response_id,
    ),
    "pairs": Key("SELECT pair_id, response_a, response_b FROM pairs", pair_id),
    "labels": Key(
        "SELECT label_id, spec_id, pair_id, context_id, shown_order FROM labels JOIN specs s USING (spec_id)"
        " WHERE s.stage = 'label' AND vote = 0",
        label_id,
    ),
    "answers": Key(
        "SELECT answer_id, benchmark, spec_id, question_id, sample_index FROM answers"
        " WHERE benchmark LIKE 'warehouse/%'",
        answer_id,
    ),
}
"""Table -> its ids, each with the parts that it is the hash of. Imported rows with keys of their own are left out."""


def failed_ids(connection: duckdb.DuckDBPyConnection, source: str) -> dict[str, str]:
    """Id -> video, of the failed requests about the gathered rows."""
    found: dict[str, str] = {}
    failed: dict[str, set[str]] = {}
    for stage, request in connection.execute(f"SELECT stage, row_id FROM {source}failures").fetchall():
        failed.setdefault(stage, set()).add(request)
    for stage, key in REQUESTS.items():
        if ids := failed.get(stage):
            connection.execute(key.query.format(source=source, samples=MOST_SAMPLES))
            while rows := connection.fetchmany(FETCHED_ROWS):
                made = ((key.make(*parts), video) for video, *parts in rows)
                found |= {request: video for request, video in made if request in ids}
    return found
