"""Records to columns: what DuckDB and Arrow call the fields of `records.py`; the views live in `views.sql` and
`views_feedback.sql`."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from importlib import resources

import pyarrow as pa

from vlm_rlaif.warehouse.records import RECORDS, Record

_ARROW_TYPES = {
    str: pa.string(), int: pa.int64(), float: pa.float64(), datetime: pa.timestamp("us"),
    list[str]: pa.list_(pa.string()),
}  # fmt: skip


VIEWS = ("views.sql", "views_feedback.sql")


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


def arrow_schema(record: type[Record]) -> pa.Schema:
    """The Arrow columns of one record."""
    return pa.schema([(name, _ARROW_TYPES[kind]) for name, (kind, _) in columns(record).items()])


def to_arrow(rows: Sequence[Record]) -> pa.Table:
    """Rows of one record as an Arrow table with the warehouse's types."""
    wanted = arrow_schema(type(rows[0]))
    data = {name: [getattr(row, name) for row in rows] for name in wanted.names}
    return pa.table(data, wanted)


def table_names() -> list[str]:
    return [record.table for record in RECORDS]


def create_views() -> str:
    """All views: they hold no data, so they are replaced whenever a warehouse is brought up to date."""
    folder = resources.files("vlm_rlaif.warehouse")
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in VIEWS)
