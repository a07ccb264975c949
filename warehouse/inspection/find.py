"""Any id, or how it begins: which row is meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.inspection.printing import printable
from vlm_rlaif.warehouse.records import RECORDS, Failure, primary_key

KEYS = {
    record.table: primary_key(record)[0]
    for record in (*(r for r in RECORDS if r is not Failure), Failure)  # a row that stands says more than its failure
    if len(primary_key(record)) == 1 or record is Failure
}
"""Table -> the column of its ids, for tables whose rows have one."""
SHORTEST = 6
"""Characters of an id that are enough, where no other id begins with them."""
LISTED = 5


@dataclass(frozen=True, slots=True)
class Found:
    """One row, by its table and id."""

    table: str
    id: str
    row: dict[str, Any]


def find(connection: duckdb.DuckDBPyConnection, given: str, tables: Sequence[str] = tuple(KEYS)) -> Found | None:
    """The row with this id, or the only one whose id begins so; raises `UserError` when there are several."""
    for table in tables:
        if row := _row(connection, table, given):
            return Found(table, given, row)
    if len(given) < SHORTEST:
        return None
    begins = " UNION ALL ".join(
        f"(SELECT DISTINCT '{table}' AS place, {KEYS[table]} AS id FROM {table}"
        f" WHERE starts_with({KEYS[table]}, $given) LIMIT {LISTED + 1})"
        for table in tables
    )
    places = list(KEYS)
    rows = sorted(connection.execute(begins, {"given": given}).fetchall(), key=lambda row: -places.index(row[0]))
    found = {row_id: table for table, row_id in rows}
    if len(found) > 1:
        lines = [f"  {row_id} ({table})" for row_id, table in sorted(found.items())]
        more = ["  ..."] if len(lines) > LISTED else []
        raise UserError(f"{printable(given)} is how several ids begin:", *lines[:LISTED], *more)
    for row_id, table in found.items():
        row = _row(connection, table, row_id)
        return Found(table, row_id, row) if row else None
    return None


def _row(connection: duckdb.DuckDBPyConnection, table: str, row_id: str) -> dict[str, Any] | None:
    rows = records(connection, f"SELECT * FROM {table} WHERE {KEYS[table]} = ? LIMIT 1", [row_id])
    return rows[0] if rows else None


def records(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()
) -> list[dict[str, Any]]:
    """The rows of a query as dictionaries."""
    result = connection.execute(sql, parameters)
    names = [column[0] for column in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
