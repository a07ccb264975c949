"""A large warehouse in seconds: as many labels as you like, made by SQL alone.

    python benchmarks/big_warehouse.py PATH [--labels 1000000] [--judges 2]

Every table that a label hangs on is filled: videos (without files), clips, captions, contexts, questions, responses,
pairs, and labels of one or two judges in both orders. Ids, words and verdicts are plausible and mean nothing. The
same numbers give the same rows with one version of DuckDB.
"""

from __future__ import annotations

import argparse
import random
import time
from datetime import UTC, datetime
from pathlib import Path

from vlm_rlaif.warehouse import Warehouse
from vlm_rlaif.warehouse.records import Record, Run, Spec

QUESTIONS_PER_VIDEO = 8
CLIPS_PER_VIDEO = 3
RUN = "20260101-000000-000000"
WORDS = (
    "a the one red blue green small large young old child woman man dog cat ball door table cup knife street kitchen"
    " runs jumps opens closes turns falls pours cuts holds drops slowly quickly twice again before after while near"
    " behind under into with and then is was water bread light paper garden window"
)
SENTENCES = 512


def make(path: str | Path, labels: int, judges: int = 2) -> Warehouse:
    """A new warehouse at `path` with this many labels: every pair is judged in both orders by every judge."""
    warehouse = Warehouse.create(path)
    specs = [_spec("caption", "caption_v1"), _spec("context", "context_v1"), _spec("respond", "respond_v1")]
    judged_by = [_spec("label", name) for name in ("judge_context_v1", "judge_v1")[:judges]]
    run = Run(
        run_id=RUN, stage="big", config="{}", code_version="0", engine="none", host="none", status="done",
        started_at=datetime.now(UTC).replace(tzinfo=None), rows_written=labels,
    )  # fmt: skip
    rows: list[Record] = [run, *specs, *judged_by]
    warehouse.append(rows)
    caption, context, respond = (spec.spec_id for spec in specs)
    pairs = labels // (2 * judges)
    videos = max(1, pairs // QUESTIONS_PER_VIDEO)
    with warehouse.visit() as connection:
        connection.execute(f"CREATE TEMP MACRO sentence(x) AS {_sentences()}[1 + (x % {SENTENCES})::INT]")
        connection.execute("CREATE TEMP MACRO words(i, kind) AS " + " || ' ' || ".join(
            f"sentence(hash(i, kind, {n}))" for n in range(8)))  # fmt: skip
        connection.execute("CREATE TEMP MACRO id(kind, i) AS left(md5(kind || i), 20)")
        connection.execute("CREATE TEMP MACRO coin(i, kind) AS (hash(i, kind) % 1000) / 1000.0")
        for statement in _statements(videos, pairs, caption, context, respond):
            connection.execute(statement)
        for number, judge in enumerate(judged_by):
            connection.execute(_labels(pairs, videos, judge.spec_id, number))
    return warehouse


def _spec(stage: str, prompt: str) -> Spec:
    return Spec.make(
        stage=stage, model="big/model", revision="0", prompt=prompt, prompt_hash=prompt, frames={"count": 8},
        sampling={"temperature": 0.0}, upstream={}, run_id=RUN,
    )  # fmt: skip


def _sentences() -> str:
    """A list of SQL: sentences of about 60 characters."""
    rng = random.Random(0)
    made = (" ".join(rng.choices(WORDS.split(), k=11)) for _ in range(SENTENCES))
    return "[" + ", ".join(f"'{sentence}'" for sentence in made) + "]"


def _statements(videos: int, pairs: int, caption: str, context: str, respond: str) -> list[str]:
    per = QUESTIONS_PER_VIDEO
    return [
        f"""INSERT INTO videos BY NAME SELECT id('video', i) AS video_id, 'videos/' || i || '.mp4' AS uri,
            'videos' AS source, id('video', i) AS video_group,
            CASE WHEN coin(i, 'split') < 0.8 THEN 'train' WHEN coin(i, 'split') < 0.9 THEN 'val' ELSE 'test' END
            AS split, 'ok' AS status, 10.0 AS duration_s, 25.0 AS fps, 250 AS frames, 640 AS width, 360 AS height,
            'h264' AS codec, 0 AS rotation, 'CC-BY-4.0' AS licence, '{RUN}' AS run_id FROM range({videos}) t(i)""",
        f"INSERT INTO video_files SELECT video_id, uri, '{RUN}' FROM videos",
        f"""INSERT INTO clips BY NAME SELECT id('clip', i * 10 + k) AS clip_id, id('video', i) AS video_id,
            k * 10.0 / {CLIPS_PER_VIDEO} AS start_s, (k + 1) * 10.0 / {CLIPS_PER_VIDEO} AS end_s,
            'parts:{CLIPS_PER_VIDEO}' AS method, '{RUN}' AS run_id
            FROM range({videos}) t(i), range({CLIPS_PER_VIDEO}) u(k)""",
        f"""INSERT INTO captions BY NAME SELECT id('caption', i * 10 + k) AS caption_id,
            id('clip', i * 10 + k) AS clip_id, '{caption}' AS spec_id,
            left(words(i * 10 + k, 'caption'), 300) AS text, 0 AS cached_tokens, '{RUN}' AS run_id
            FROM range({videos}) t(i), range({CLIPS_PER_VIDEO}) u(k)""",
        f"""INSERT INTO contexts BY NAME SELECT id('context', i) AS context_id, id('video', i) AS video_id,
            '{context}' AS spec_id, [id('caption', i * 10 + k) for k in range({CLIPS_PER_VIDEO})] AS caption_ids,
            [] AS transcript_ids, words(i, 'context 1') || ' ' || words(i, 'context 2') AS text, 0 AS cached_tokens,
            '{RUN}' AS run_id
            FROM range({videos}) t(i)""",
        f"""INSERT INTO questions BY NAME SELECT id('question', i) AS question_id,
            id('video', (i // {per}) % {videos}) AS video_id, 'what does ' || sentence(hash(i)) || ' ?' AS text,
            sentence(hash(i, 'reference')) AS reference, 'kind ' || (i % 5) AS kind, 'imported' AS source,
            NULL AS spec_id, '{RUN}' AS run_id FROM range({pairs}) t(i)""",
        f"""INSERT INTO responses BY NAME SELECT id('response', i * 2 + k) AS response_id,
            id('question', i) AS question_id, '{respond}' AS spec_id, k AS sample_index, i AS seed,
            left(words(i * 2 + k, 'response'), 100 + (hash(i, k) % 400)::INT) AS text,
            20 + (hash(i, k) % 80)::INT AS tokens, 'stop' AS finish, -10.0 AS logprob, 0 AS cached_tokens,
            '{RUN}' AS run_id
            FROM range({pairs}) t(i), range(2) u(k)""",
        f"""INSERT INTO pairs BY NAME SELECT id('pair', i) AS pair_id, id('question', i) AS question_id,
            least(id('response', i * 2), id('response', i * 2 + 1)) AS response_a,
            greatest(id('response', i * 2), id('response', i * 2 + 1)) AS response_b, 'all' AS strategy,
            '{RUN}' AS run_id FROM range({pairs}) t(i)""",
    ]


def _labels(pairs: int, videos: int, judge: str, number: int) -> str:
    """Verdicts that lean on the pair and less on the judge and the order; some are ties, some orders conflict."""
    context = f"id('context', (i // {QUESTIONS_PER_VIDEO}) % {videos})" if number == 0 else "NULL"
    return f"""
        INSERT INTO labels BY NAME
        WITH verdicts AS (
            SELECT i, k, 0.05 + 0.9 * (0.6 * coin(i, 'pair') + 0.2 * coin(i, 'judge {number}')
                   + 0.2 * coin(i * 2 + k, 'order {number}')) AS p
            FROM range({pairs}) t(i), range(2) u(k)
        )
        SELECT id('label {number}', i * 2 + k) AS label_id, id('pair', i) AS pair_id, '{judge}' AS spec_id,
               {context} AS context_id, CASE k WHEN 0 THEN 'ab' ELSE 'ba' END AS shown_order, 0 AS vote,
               CASE WHEN p > 0.52 THEN 'a' WHEN p < 0.48 THEN 'b' ELSE 'tie' END AS choice, p * 0.95 AS p_a,
               0.05 AS p_tie, words(i * 2 + k, 'reply {number}') AS reply, 0 AS cached_tokens, '{RUN}' AS run_id
        FROM verdicts"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("path", type=Path)
    arguments.add_argument("--labels", type=int, default=1_000_000)
    arguments.add_argument("--judges", type=int, choices=(1, 2), default=2)
    given = arguments.parse_args()
    started = time.monotonic()
    made = make(given.path, given.labels, given.judges)
    counts = made.rows("SELECT (SELECT count(*) FROM pairs) AS pairs, (SELECT count(*) FROM labels) AS labels")
    size = given.path.stat().st_size / 1e9
    print(f"{counts[0]}, {size:.2f} GB in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
