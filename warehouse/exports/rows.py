"""The preferences of a version with their words, in the order of their keys and in constant memory.

The keys are sorted first, without words; then the words of a chunk of keys are copied out at a time. The warehouse is
held while they are, and not while anybody reads them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pyarrow as pa

from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.exports.diff import rows_of
from vlm_rlaif.warehouse.exports.versions import MEMORY_LIMIT
from vlm_rlaif.warehouse.records import Dataset
from vlm_rlaif.warehouse.spool import BATCH_ROWS, Spool
from vlm_rlaif.warehouse.store import Warehouse

CHUNK_BATCHES = 10
_KEYS = """
    SELECT pair_id, judge, judge_prompt, choice, p_a, strength, split, kind, video_id, question_id, context_id,
           response_a, response_b
    FROM dataset_preferences WHERE dataset = $dataset AND (choice <> 'tie' OR $ties) ORDER BY pair_id, judge
"""
_WORDS = """
    SELECT k.pair_id, k.judge, k.judge_prompt, k.choice, k.p_a, k.strength, k.split, k.kind, k.video_id,
           v.uri AS video, k.question_id, q.text AS question, q.reference, c.text AS context,
           a.text AS text_a, b.text AS text_b, a.tokens AS tokens_a, b.tokens AS tokens_b
    FROM keys k
    JOIN questions q USING (question_id)
    JOIN responses a ON a.response_id = k.response_a
    JOIN responses b ON b.response_id = k.response_b
    JOIN videos v ON v.video_id = k.video_id
    LEFT JOIN contexts c ON c.context_id = k.context_id
    ORDER BY k.pair_id, k.judge
"""


def keys_of(warehouse: Warehouse, version: Dataset, *, ties: bool) -> Spool:
    """What a version's rows are known by, without their words, in order; with the ties or without them."""
    return warehouse.stream(_KEYS, {"dataset": version.name, "ties": ties}, memory_limit=MEMORY_LIMIT)


def read(warehouse: Warehouse, version: Dataset, keys: Spool) -> Iterator[pa.RecordBatch]:
    """The rows of these keys as Arrow batches; `video` is the uri of the warehouse."""
    batches = keys.batches()
    while chunk := list(itertools.islice(batches, CHUNK_BATCHES)):
        wanted = pa.Table.from_batches(chunk)
        with warehouse.visit(read_only=True, memory_limit=MEMORY_LIMIT) as connection:
            connection.register("keys", wanted)
            found = Spool(connection.sql(_WORDS).to_arrow_reader(BATCH_ROWS), warehouse.journal_folder)
        if len(found) != wanted.num_rows:
            raise UserError(f"Preferences of {version.name} were removed while it was read. Nothing was written.")
        yield from found.batches()


def count_by_split(warehouse: Warehouse, version: Dataset) -> dict[str, dict[str, int]]:
    """Split -> how many `preferences`, `ties` and `videos` a version has; only splits that it has, train first."""
    rows = warehouse.rows(by_split(rows_of(version)))
    return {row["split"]: {name: row[name] for name in ("preferences", "ties", "videos")} for row in rows}


def by_split(rows: str) -> str:
    """The query that counts what `rows`, a query for (pair_id, choice), has of each split."""
    return (
        "SELECT v.split, count(*) AS preferences, count_if(r.choice = 'tie')::BIGINT AS ties,"
        f" count(DISTINCT v.video_id) AS videos FROM ({rows}) r JOIN pairs p USING (pair_id)"
        " JOIN questions q ON q.question_id = p.question_id JOIN videos v ON v.video_id = q.video_id"
        " GROUP BY v.split ORDER BY list_position(['train', 'val', 'test'], v.split)"
    )
