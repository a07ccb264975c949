"""Records to DDL: tables are rendered from the dataclasses of `records.py`, views live in `views.sql`."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from importlib import resources

import pyarrow as pa

from vlm_rlaif.warehouse.records import RECORDS, Record, primary_key

_SQL_TYPES = {
    str: "VARCHAR", int: "BIGINT", float: "DOUBLE", datetime: "TIMESTAMP", list[str]: "VARCHAR[]",
}  # fmt: skip
_ARROW_TYPES = {
    str: pa.string(), int: pa.int64(), float: pa.float64(), datetime: pa.timestamp("us"),
    list[str]: pa.list_(pa.string()),
}  # fmt: skip
_CHECKS = {
    "runs": ["status IN ('running', 'done', 'interrupted', 'failed')"],
    "videos": ["split IN ('train', 'val', 'test')"],
    "clips": ["start_s >= 0", "end_s > start_s"],
    "pairs": ["response_a < response_b"],
    "labels": [
        "shown_order IN ('ab', 'ba')",
        "choice IN ('a', 'b', 'tie')",
        "p_a >= 0 AND p_tie >= 0 AND p_a + p_tie <= 1.000001",
    ],
}


def columns(record: type[Record]) -> dict[str, tuple[type, bool]]:
    """Column name -> (Python type, may be NULL), in the order of the fields."""
    hints = typing.get_type_hints(record)
    found = {}
    for column in fields(record):
        hint = hints[column.name]
        optional = isinstance(hint, types.UnionType)
        if optional:
            hint = next(part for part in typing.get_args(hint) if part is not type(None))
        found[column.name] = (hint, optional)
    return found


def create_table(record: type[Record]) -> str:
    """The CREATE TABLE statement of one record."""
    lines = [
        f"{name} {_SQL_TYPES[kind]}{'' if optional else ' NOT NULL'}"
        for name, (kind, optional) in columns(record).items()
    ]
    lines.append(f"PRIMARY KEY ({', '.join(primary_key(record))})")
    lines += [f"CHECK ({check})" for check in _CHECKS.get(record.table, [])]
    return f"CREATE TABLE {record.table} ({', '.join(lines)})"


def to_arrow(rows: Sequence[Record]) -> pa.Table:
    """Rows of one record as an Arrow table with the warehouse's types."""
    record = type(rows[0])
    arrow_schema = pa.schema([(name, _ARROW_TYPES[kind]) for name, (kind, _) in columns(record).items()])
    data = {name: [getattr(row, name) for row in rows] for name in arrow_schema.names}
    return pa.table(data, arrow_schema)


def table_names() -> list[str]:
    return [record.table for record in RECORDS]


def create_views() -> str:
    """All views: they hold no data, so they are replaced whenever a warehouse is brought up to date."""
    return (resources.files("vlm_rlaif.warehouse") / "views.sql").read_text(encoding="utf-8")
