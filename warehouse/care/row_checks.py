"""What is wrong with the rows of a warehouse: anti-joins that take seconds for millions of rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import duckdb

from vlm_rlaif.warehouse import schema
from vlm_rlaif.warehouse.care.keys import ROWS
from vlm_rlaif.warehouse.care.relations import CONTENT, KEY, ORIGIN, Reference
from vlm_rlaif.warehouse.records import RECORDS
from vlm_rlaif.warehouse.store import Warehouse

RECORD = {record.table: record for record in RECORDS}
EXAMPLES = 3
SAMPLED_IDS = 20_000
"""About how many ids of a table are computed again, unless all are."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be."""

    check: str
    count: int
    what: str
    """What was counted."""
    examples: list[str] = field(default_factory=list)
    mend: str = ""
    """The command that mends it."""
    harmless: bool = False
    """Worth knowing, and nothing to mend."""


def check_rows(warehouse: Warehouse) -> Iterator[Finding]:
    """Rows without what they refer to, and rows that contradict each other."""
    with warehouse.visit(read_only=True) as connection:
        yield from _orphans(connection, warehouse)
        yield from _versions(connection, warehouse)
        yield from _videos(connection, warehouse)


def _orphans(connection: duckdb.DuckDBPyConnection, warehouse: Warehouse) -> Iterator[Finding]:
    mend = f"vlm-rlaif merge {warehouse.path} WAREHOUSE_THAT_HAS_THEM"
    for reference in (*CONTENT, *ORIGIN):
        yield from _found(
            connection, "orphans", f"{reference.table} whose {reference.column} is not among the {reference.parent}",
            orphans(reference), KEY[reference.table], mend,
        )  # fmt: skip
    yield from _found(
        connection, "orphans", "contexts that were made of captions which are not there",
        "SELECT DISTINCT context_id FROM (SELECT context_id, unnest(caption_ids) AS caption_id FROM contexts)"
        " ANTI JOIN captions USING (caption_id)", "context_id", mend,
    )  # fmt: skip
    yield from _found(
        connection, "orphans", "contexts that were made of what is said in transcripts which are not there",
        "SELECT DISTINCT context_id FROM (SELECT context_id, unnest(transcript_ids) AS transcript_id FROM contexts)"
        " ANTI JOIN transcripts USING (transcript_id)", "context_id", mend,
    )  # fmt: skip
    again = " UNION ".join(
        f"SELECT DISTINCT {column} AS video_id FROM {table}"
        for table, column in (("videos", "video_id"), *((w.table, w.column) for w in CONTENT if w.parent == "videos"))
    )
    yield from _found(
        connection, "removed", "removed videos of which rows have come back",
        f"SELECT video_id FROM ({again}) SEMI JOIN removals USING (video_id)", "video_id",
        f"vlm-rlaif remove {warehouse.path} VIDEO_ID",
    )  # fmt: skip


def orphans(reference: Reference) -> str:
    """SQL: the keys of rows whose parent is not there. Where nothing is NULL, asking for NULL makes it slow."""
    optional = schema.columns(RECORD[reference.table])[reference.column][1]
    named = f"t.{reference.column} IS NOT NULL AND " if optional else ""
    return (
        f"SELECT {KEY[reference.table]} FROM {reference.table} t WHERE {named}NOT EXISTS"
        f" (SELECT 1 FROM {reference.parent} p WHERE p.{KEY[reference.parent]} = t.{reference.column})"
    )


def _versions(connection: duckdb.DuckDBPyConnection, warehouse: Warehouse) -> Iterator[Finding]:
    yield from _found(
        connection, "versions", "versions of the data set that do not have as many rows as they say",
        "SELECT d.name FROM datasets d LEFT JOIN dataset_rows r USING (rows_hash)"
        " GROUP BY d.name, d.preferences HAVING count(r.pair_id) <> d.preferences", "name",
        f"vlm-rlaif merge {warehouse.path} WAREHOUSE_THAT_HAS_THEM",
    )  # fmt: skip
    removed = connection.execute("SELECT count(*) FROM runs WHERE stage = 'remove'").fetchall() != [(0,)]
    yield from _found(
        connection, "versions", "versions of the data set with preferences whose words are gone",
        "SELECT DISTINCT coalesce(d.name, r.rows_hash) AS name FROM dataset_rows r LEFT JOIN datasets d"
        " USING (rows_hash) WHERE NOT EXISTS (SELECT 1 FROM pairs p WHERE p.pair_id = r.pair_id)", "name",
        f"vlm-rlaif dataset create {warehouse.path} NEW_NAME", harmless=removed,
    )  # fmt: skip
    yield from _found(
        connection, "versions", "exports of a version of the data set that is not there",
        "SELECT path FROM exports ANTI JOIN dataset_rows USING (rows_hash) WHERE rows > 0", "path",
        f"vlm-rlaif merge {warehouse.path} WAREHOUSE_THAT_HAS_THEM",
    )  # fmt: skip


def _videos(connection: duckdb.DuckDBPyConnection, warehouse: Warehouse) -> Iterator[Finding]:
    yield from _found(
        connection, "splits", "groups of videos in more than one split, so that what is tested was trained on",
        "SELECT video_group FROM videos GROUP BY video_group HAVING count(DISTINCT split) > 1", "video_group",
        f"vlm-rlaif remove {warehouse.path} VIDEO_ID",
    )  # fmt: skip
    yield from _found(
        connection, "unreadable", "videos that cannot be read",
        "SELECT video_id || ': ' || status AS said FROM videos WHERE status <> 'ok'", "said",
        f"vlm-rlaif add {warehouse.path} FOLDER_OF_WHOLE_VIDEOS, or vlm-rlaif remove {warehouse.path} VIDEO_ID",
    )  # fmt: skip


def _found(
    connection: duckdb.DuckDBPyConnection, check: str, what: str, rows: str, column: str, mend: str,
    *, harmless: bool = False,
) -> Iterator[Finding]:  # fmt: skip
    """A finding, if the query has rows; their smallest values of one column are its examples.

    Counting alone reads no column but those that are joined.
    """
    (count,) = connection.execute(f"SELECT count(*) FROM ({rows})").fetchall()[0]
    if count:
        (examples,) = connection.execute(f"SELECT min({column}, {EXAMPLES}) FROM ({rows})").fetchall()[0]
        yield Finding(check, count, what, list(dict.fromkeys(map(str, examples))), mend, harmless)


def check_ids(warehouse: Warehouse, *, everything: bool) -> Iterator[Finding]:
    """Rows whose id is not the hash of what was asked for: written by hand, or changed afterwards."""
    for table, key in ROWS.items():
        column = KEY[table]
        rows = warehouse.value(f"SELECT count(*) FROM {table}")
        one_in = 1 if everything else max(1, rows // SAMPLED_IDS)
        query = f"SELECT * FROM ({key.query}) WHERE hash({column}) % {one_in} = 0"
        wrong = (row[column] for row in warehouse.stream(query) if row[column] != key.make(*_parts(row, column)))
        examples = list(itertools.islice(wrong, EXAMPLES))
        if examples:
            yield Finding(
                "ids", len(examples) + sum(1 for _ in wrong), f"{table} whose id is not that of their content"
                f"{f' (one row in {one_in} was looked at)' if one_in > 1 else ''}", examples,
                f"vlm-rlaif why {warehouse.path} ID",
            )  # fmt: skip


def _parts(row: dict[str, object], key: str) -> list[object]:
    return [value for column, value in row.items() if column != key]
