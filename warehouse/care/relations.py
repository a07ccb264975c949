"""What refers to what, and what therefore hangs on a video.

`CONTENT` leads from a video down to the last score; `ORIGIN` leads from every row to its run and its spec. No foreign
keys stand in the file, so that rows may arrive in any order; whoever needs the relations reads them here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import duckdb
import pyarrow as pa

from vlm_rlaif.warehouse.care.keys import failed_ids
from vlm_rlaif.warehouse.records import RECORDS, primary_key


@dataclass(frozen=True, slots=True)
class Reference:
    """A column that holds the key of another table, which is that table's first column."""

    table: str
    column: str
    parent: str


CONTENT = (
    Reference("video_files", "video_id", "videos"),
    Reference("transcripts", "video_id", "videos"),
    Reference("clips", "video_id", "videos"),
    Reference("captions", "clip_id", "clips"),
    Reference("contexts", "video_id", "videos"),
    Reference("questions", "video_id", "videos"),
    Reference("responses", "question_id", "questions"),
    Reference("responses", "shown_video_id", "videos"),
    Reference("ratings", "question_id", "questions"),
    Reference("ratings", "response_id", "responses"),
    Reference("pairs", "question_id", "questions"),
    Reference("pairs", "response_a", "responses"),
    Reference("pairs", "response_b", "responses"),
    Reference("labels", "pair_id", "pairs"),
    Reference("labels", "context_id", "contexts"),
    Reference("anchors", "pair_id", "pairs"),
    Reference("probes", "question_id", "questions"),
    Reference("probes", "response_a", "responses"),
    Reference("probes", "response_b", "responses"),
    Reference("probes", "context_id", "contexts"),
    Reference("audit_tasks", "pair_id", "pairs"),
    Reference("audits", "pair_id", "pairs"),
    Reference("answers", "question_id", "questions"),
    Reference("scores", "answer_id", "answers"),
)
ORIGIN = (
    *(
        Reference(record.table, column.name, parent)
        for record in RECORDS
        for column in fields(record)
        for parent, key in (("runs", "run_id"), ("specs", "spec_id"))
        if column.name == key and record.table != parent
    ),
    Reference("dataset_rows", "judge", "specs"),
    Reference("audit_plans", "judge", "specs"),
    Reference("audit_tasks", "plan_id", "audit_plans"),
    Reference("audit_projects", "plan_id", "audit_plans"),
    Reference("audits", "plan_id", "audit_plans"),
    Reference("contexts", "base_context_id", "contexts"),  # it goes with its video, as the one that it is made from
)
KEY = {record.table: primary_key(record)[0] for record in RECORDS}
"""The column of every table by which others refer to it."""
MADE = tuple(dict.fromkeys(reference.table for reference in CONTENT if reference.table != "video_files"))
"""Tables whose rows were made of a video, parents first."""
HANGING = ("videos", "video_files", *MADE, "failures")
"""Tables whose rows go when their video goes."""


def gather(connection: duckdb.DuckDBPyConnection, video_ids: Sequence[str], source: str = "") -> None:
    """Make a temporary table `gone_TABLE` (id, video_id) of every row that hangs on the videos.

    `source` is the prefix of an attached database. Rows are found without the row of their video, too.
    """
    connection.register("named", pa.table({"id": pa.array(sorted(set(video_ids)), pa.string())}))
    connection.execute("CREATE OR REPLACE TEMP TABLE gone_videos AS SELECT id, id AS video_id FROM named")
    connection.unregister("named")
    for table in ("video_files", *MADE):
        ways = " UNION ALL ".join(
            f"SELECT t.{KEY[table]} AS id, g.video_id FROM {source}{table} t"
            f" JOIN gone_{way.parent} g ON t.{way.column} = g.id"
            for way in CONTENT
            if way.table == table
        )
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE gone_{table} AS"
            f" SELECT id, any_value(video_id) AS video_id FROM ({ways}) GROUP BY id"
        )
    _gather_failures(connection, source)


def _gather_failures(connection: duckdb.DuckDBPyConnection, source: str) -> None:
    """A failure names a row that may never have come: its id is computed from what was asked for."""
    asked = failed_ids(connection, source)
    table = pa.table({"id": pa.array(asked, pa.string()), "video_id": pa.array(asked.values(), pa.string())})
    connection.register("asked", table)
    refused = (  # what a person submitted about a pair has no id that could be computed
        f"SELECT f.row_id AS id, g.video_id FROM {source}failures f JOIN gone_pairs g"
        " ON g.id = (TRY_CAST(f.reply AS JSON)->>'$.pair_id') WHERE f.stage = 'audit'"
    )
    rows = " UNION ALL ".join(["SELECT id, video_id FROM asked", refused, *(f"FROM gone_{table}" for table in MADE)])
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE gone_failures AS SELECT id, any_value(video_id) AS video_id FROM ({rows})"
        f" WHERE id IN (SELECT row_id FROM {source}failures) GROUP BY id"
    )
    connection.unregister("asked")


def count_gone(connection: duckdb.DuckDBPyConnection, source: str = "") -> dict[str, dict[str, int]]:
    """Table -> video id -> how many of its rows are gathered; tables without any are left out."""
    found = {}
    for table in HANGING:
        rows = connection.execute(
            f"SELECT g.video_id, count(*) FROM {source}{table} t JOIN gone_{table} g ON t.{KEY[table]} = g.id"
            " GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        if rows:
            found[table] = dict(rows)
    return found
