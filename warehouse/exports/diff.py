"""What differs between two versions of the data set: rows added, removed, flipped, or with another probability.

Rows are compared by pair and judge; where both versions have one judge a pair, by the pair alone, so that two judges
can be compared, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import duckdb

from vlm_rlaif.warehouse.records import Dataset
from vlm_rlaif.warehouse.store import Warehouse

CHANGES = ("added", "removed", "flipped", "p changed")
LISTED = ["flipped", "added", "removed", "p changed"]
"""The order in which changed rows are listed."""
_COMPARED = """
    WITH before AS ({before}), after AS ({after})
    SELECT CASE WHEN b.pair_id IS NULL THEN 'added' WHEN a.pair_id IS NULL THEN 'removed'
                WHEN a.choice <> b.choice THEN 'flipped' WHEN a.p_a <> b.p_a THEN 'p changed'
                ELSE 'the same' END AS change,
           coalesce(a.pair_id, b.pair_id) AS pair_id, coalesce(a.judge, b.judge) AS judge,
           b.choice AS choice_before, a.choice AS choice_after, b.p_a AS p_a_before, a.p_a AS p_a_after
    FROM before b FULL JOIN after a ON a.pair_id = b.pair_id{same_judge}
"""


@dataclass(frozen=True, slots=True)
class Difference:
    """How the second of two versions differs from the first."""

    before: str
    after: str
    counts: dict[str, int]
    """Change -> rows; `the same` are counted, too."""
    rows: list[dict[str, Any]]
    """The first of the changed rows, with their questions."""

    @property
    def changed(self) -> int:
        return sum(self.counts[change] for change in CHANGES)

    def __str__(self) -> str:
        return f"{self.before} -> {self.after}: {said(self.counts)}"


def diff(warehouse: Warehouse, before: Dataset, after: Dataset, limit: int, memory_limit: str) -> Difference:
    """Compare two versions in SQL; `limit` changed rows are listed."""
    relations = rows_of(before), rows_of(after)
    with warehouse.visit(read_only=True, memory_limit=memory_limit) as connection:
        counts = count_changes(connection, *relations)
        rows = connection.sql(
            f"""
            WITH changed AS (
                FROM ({_compared(connection, *relations)}) WHERE change <> 'the same'
                ORDER BY list_position({LISTED}, change), pair_id, judge LIMIT {limit}
            )
            SELECT c.*, q.text AS question
            FROM changed c LEFT JOIN pairs p USING (pair_id) LEFT JOIN questions q USING (question_id)
            ORDER BY list_position({LISTED}, c.change), c.pair_id, c.judge
            """
        ).to_arrow_table()
    return Difference(before.name, after.name, counts, rows.to_pylist())


def count_changes(connection: duckdb.DuckDBPyConnection, before: str, after: str) -> dict[str, int]:
    """Change -> rows, of two queries for (pair_id, judge, choice, p_a)."""
    found = dict(
        connection.sql(f"SELECT change, count(*) FROM ({_compared(connection, before, after)}) GROUP BY 1").fetchall()
    )
    return {change: int(found.get(change, 0)) for change in (*CHANGES, "the same")}


def rows_of(version: Dataset) -> str:
    """The query for the rows of a version."""
    return f"SELECT pair_id, judge, choice, p_a FROM dataset_rows WHERE rows_hash = {literal(version.rows_hash)}"


def literal(text: str) -> str:
    """Text as SQL writes it.

    >>> literal("it's")
    "'it''s'"
    """
    quoted = text.replace("'", "''")
    return f"'{quoted}'"


def said(counts: dict[str, int]) -> str:
    """`3 added, 1 flipped, 40 the same`."""
    return ", ".join(f"{count:,} {change}" for change, count in counts.items() if count) or "nothing on either side"


def _compared(connection: duckdb.DuckDBPyConnection, before: str, after: str) -> str:
    once = " AND ".join(f"(SELECT count(*) = count(DISTINCT pair_id) FROM ({side}))" for side in (before, after))
    ((by_pair,),) = connection.sql(f"SELECT {once}").fetchall()
    return _COMPARED.format(before=before, after=after, same_judge="" if by_pair else " AND a.judge = b.judge")
