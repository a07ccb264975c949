"""The ids that rows have by what was asked for: to find failures, and rows whose id is not their content's.

Each function repeats what a stage does when it asks; `tests/warehouse/test_doctor.py` holds them against the rows of
real stages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

import duckdb

from vlm_rlaif.warehouse.records import row_id

MOST_SAMPLES = 64
"""Sample indexes and votes that are looked for among the failures of a question or a pair."""
SENTENCE = r"(?:[^.!?;\n]|[.!?;][^\s.!?;])*[^.!?;\s][ \t]*(?:[.!?;]+|\n|$)"
"""What ends with a full stop and the like, or with the line. A point inside a word or a number ends nothing."""
SENTENCES = f"""
    trim(unnest(CASE WHEN regexp_matches({{text}}, '{SENTENCE}')
                     THEN list_distinct(regexp_extract_all({{text}}, '{SENTENCE}')) ELSE [{{text}}] END),
         chr(32) || chr(9) || chr(10) || chr(13))
    """
"""SQL: the sentences of a text, which are the claims of a response where no model splits it."""
RANKED_TOGETHER = "'rank ' || o.way || ' ' || left(md5(array_to_string(ids, ',')), 8)"
"""SQL: the item of ratings from one list. It says which responses were in it: with a further one it is another."""
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


def rating_id(spec: str, question: str, response: str | None = None, item: str | None = None) -> str:
    """The item is no part of it where a judge is asked for one number alone: quality, or whether it is answerable."""
    return row_id("rating", spec, question, response, *([] if item is None else [item]))


def pair_id(response_a: str, response_b: str) -> str:
    return row_id("pair", response_a, response_b)


def label_id(spec: str, pair: str, context: str | None, shown_order: str, vote: int = 0) -> str:
    return row_id("label", spec, pair, context, shown_order, vote)


def anchor_id(name: str, pair: str) -> str:
    return row_id("anchor", name, pair)


def probe_id(
    spec: str, kind: str, anchor: str | None, engine: str | None, question: str, response_a: str, response_b: str,
    context: str | None, shown_order: str,
) -> str:  # fmt: skip
    """The engine is part of it where what is asked has been answered before: `repeat`, `anchor`."""
    return row_id("probe", spec, kind, anchor, engine, question, response_a, response_b, context, shown_order)


def audit_plan_id(name: str, judge: str, config: str) -> str:
    """The config says which pairs were drawn, so plans of one name in two warehouses are two plans."""
    return row_id("audit_plan", name, judge, config)


def audit_task_id(plan: str, pair: str) -> str:
    return row_id("audit_task", plan, pair)


def audit_project_id(plan: str, url: str, project: int) -> str:
    return row_id("audit_project", plan, url, project)


def audit_id(plan: str, annotation: str, updated_at: datetime) -> str:
    """Of one version of an annotation: an edit has another time."""
    return row_id("audit", plan, annotation, updated_at.isoformat())


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
    "check": Key(
        "SELECT g.video_id, s.spec_id, r.question_id, g.id, i.item FROM {source}specs s, gone_responses g"
        " JOIN {source}responses r ON r.response_id = g.id,"
        " (SELECT DISTINCT spec_id, item FROM {source}ratings) i WHERE s.stage = 'check' AND i.spec_id = s.spec_id",
        rating_id,
    ),
    "split": Key(
        "SELECT g.video_id, s.spec_id, r.question_id, g.id, 'claims' FROM {source}specs s, gone_responses g"
        " JOIN {source}responses r ON r.response_id = g.id WHERE s.stage = 'split'",
        rating_id,
    ),
    "verify": Key(
        f"""
        SELECT g.video_id, s.spec_id, r.question_id, g.id, unnest(string_split(c.reply, chr(10)))
        FROM {{source}}specs s JOIN {{source}}ratings c ON c.spec_id = (s.upstream->>'$.split') AND c.item = 'claims'
        JOIN gone_responses g ON g.id = c.response_id JOIN {{source}}responses r ON r.response_id = g.id
        WHERE s.stage = 'verify'
        UNION ALL
        SELECT g.video_id, s.spec_id, r.question_id, g.id, {SENTENCES.format(text="r.text")}
        FROM {{source}}specs s, gone_responses g JOIN {{source}}responses r ON r.response_id = g.id
        WHERE s.stage = 'verify' AND (s.upstream->>'$.split') IS NULL
        """,
        rating_id,
    ),
    "rank": Key(
        f"""
        SELECT v.video_id, v.spec_id, v.question_id, v.ids[1], {RANKED_TOGETHER} FROM (
            SELECT any_value(g.video_id) AS video_id, s.spec_id, r.question_id,
                   list(r.response_id ORDER BY r.response_id) AS ids
            FROM {{source}}specs s JOIN {{source}}responses r ON r.spec_id = (s.upstream->>'$.respond')
            JOIN gone_responses g ON g.id = r.response_id WHERE s.stage = 'rank' GROUP BY s.spec_id, r.question_id
        ) v CROSS JOIN (VALUES ('forward'), ('reversed')) o(way)
        """,
        rating_id,
    ),
    "label": Key(
        "SELECT p.video_id, s.spec_id, p.id, x.id, o.shown_order, n.vote FROM {source}specs s, gone_pairs p,"
        " (SELECT id, video_id FROM gone_contexts UNION ALL SELECT NULL, id FROM gone_videos) x,"
        " (VALUES ('ab'), ('ba')) o(shown_order), range({samples}) n(vote) WHERE s.stage = 'label'"
        " AND x.video_id = p.video_id AND (n.vote = 0 OR (s.sampling->>'$.verdict') = 'words')",
        label_id,
    ),
    **dict.fromkeys(
        ("probe", "anchor"),
        Key(
            """
            WITH engines AS (SELECT DISTINCT engine FROM {source}probes), asked AS (
                SELECT g.video_id, 'same' AS kind, NULL AS anchor, NULL AS engine, r.question_id, g.id AS a, g.id AS b
                FROM gone_responses g JOIN {source}responses r ON r.response_id = g.id
                UNION ALL
                SELECT g.video_id, 'other_answer', NULL, NULL, r.question_id, g.id, o.response_id
                FROM gone_responses g JOIN {source}responses r ON r.response_id = g.id
                JOIN {source}responses o ON o.spec_id = r.spec_id AND o.question_id <> r.question_id
                UNION ALL
                SELECT g.video_id, 'repeat', NULL, e.engine, p.question_id, p.response_a, p.response_b
                FROM gone_pairs g JOIN {source}pairs p ON p.pair_id = g.id, engines e
                UNION ALL
                SELECT g.video_id, 'anchor', n.name, e.engine, p.question_id, p.response_a, p.response_b
                FROM gone_pairs g JOIN {source}pairs p ON p.pair_id = g.id
                JOIN {source}anchors n ON n.pair_id = g.id, engines e
            )
            SELECT q.video_id, s.spec_id, q.kind, q.anchor, q.engine, q.question_id, q.a, q.b, x.id, o.shown_order
            FROM {source}specs s, asked q, (VALUES ('ab'), ('ba')) o(shown_order),
                 (SELECT id, video_id FROM gone_contexts UNION ALL SELECT NULL, id FROM gone_videos) x
            WHERE s.stage = 'label' AND x.video_id = q.video_id
            """,
            probe_id,
        ),
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
    "ratings": Key(
        "SELECT rating_id, spec_id, question_id, response_id, CASE WHEN s.stage NOT IN ('rate', 'answerable')"
        " THEN item END FROM ratings LEFT JOIN specs s USING (spec_id)",
        rating_id,
    ),
    "responses": Key(
        "SELECT response_id, spec_id, question_id, sample_index FROM responses JOIN specs s USING (spec_id)"
        " WHERE s.stage = 'respond'",
        response_id,
    ),
    "pairs": Key("SELECT pair_id, response_a, response_b FROM pairs", pair_id),
    "labels": Key(
        "SELECT label_id, spec_id, pair_id, context_id, shown_order, vote FROM labels JOIN specs s USING (spec_id)"
        " WHERE s.stage IN ('label', 'rated', 'panel', 'calibrate')",
        label_id,
    ),
    "anchors": Key("SELECT anchor_id, name, pair_id FROM anchors", anchor_id),
    "probes": Key(
        "SELECT probe_id, spec_id, kind, anchor, CASE WHEN kind IN ('repeat', 'anchor') THEN engine END AS engine,"
        " question_id, response_a, response_b, context_id, shown_order FROM probes",
        probe_id,
    ),
    "audit_plans": Key("SELECT plan_id, name, judge, config FROM audit_plans", audit_plan_id),
    "audit_tasks": Key("SELECT audit_task_id, plan_id, pair_id FROM audit_tasks", audit_task_id),
    "audit_projects": Key("SELECT audit_project_id, plan_id, url, project FROM audit_projects", audit_project_id),
    "audits": Key("SELECT audit_id, plan_id, annotation, updated_at FROM audits", audit_id),
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
