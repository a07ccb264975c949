"""A query that reads the warehouse, and can do nothing else: not write, nor see a file, nor change a setting.

Three locks: one statement that is a query, a file that is open for reading only, and a connection without access to
other files, the network or its own settings (`store.READ_ONLY`). The result is copied out before it is printed, so
the file is free again however slowly somebody reads.
"""

from __future__ import annotations

import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import duckdb
import pyarrow as pa

from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.spool import BATCH_ROWS, Spool
from vlm_rlaif.warehouse.store import Warehouse, distinct

QUERIES = ("SELECT", "EXPLAIN", "MULTI")
"""Kinds of statement that ask. `DESCRIBE`, `SHOW` and `SUMMARIZE` are `SELECT`; `PIVOT` is `MULTI`."""
_STRANGE = re.compile(r"DATE|TIME|INTERVAL|BLOB|BIT\b|BIGNUM|UUID|UNION|ENUM|GEOMETRY|VARIANT|JSON|TUPLE")
"""Types some of whose values Python has no word for: an infinite time, say."""


def given(argument: str) -> str:
    """The query that a command was given: SQL, `@FILE`, or `-` for standard input."""
    if argument == "-":
        return sys.stdin.read()
    if not argument.startswith("@"):
        return argument
    try:
        return Path(argument[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The query cannot be read from {argument[1:]}: {error}.") from None


def ask(warehouse: Warehouse, query: str) -> tuple[list[str], Spool]:
    """The columns and the rows of a query. Ctrl-C ends it at once."""
    try:
        with warehouse.visit(read_only=True) as connection, ThreadPoolExecutor(1) as thread:
            answer = thread.submit(_answer, connection, query)
            try:
                while not answer.done():  # DuckDB looks at no signal while it works, and no lock is woken by one
                    wait([answer], timeout=0.1)
            except KeyboardInterrupt:
                connection.interrupt()
                raise
            return answer.result()
    except (duckdb.Error, pa.ArrowException) as error:
        raise UserError(str(error), f"vlm-rlaif tables {warehouse.path}") from None
    except OSError as error:
        raise UserError(
            f"The result does not fit into {tempfile.gettempdir()}: {error.strerror}.",
            "Ask for less (LIMIT), or name a folder with more room: TMPDIR=FOLDER vlm-rlaif sql ...",
        ) from None


def _answer(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[list[str], Spool]:
    _only_a_query(connection, query)
    found = connection.sql(query)
    names = distinct(found.columns)
    columns = [_column(n, name, kind) for n, (name, kind) in enumerate(zip(names, found.types, strict=True), 1)]
    reader = found.project(", ".join(columns)).to_arrow_reader(BATCH_ROWS)
    return names, Spool(reader, Path(tempfile.gettempdir()))


def _column(place: int, name: str, kind: object) -> str:
    """A column under its own name; strange values as DuckDB writes them."""
    quoted = name.replace('"', '""')
    return f'#{place}{"::VARCHAR" if _STRANGE.search(str(kind)) else ""} AS "{quoted}"'


def _only_a_query(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    statements = connection.extract_statements(query)
    if len(statements) != 1:
        raise UserError(f"One query at a time: there are {len(statements)} statements.")
    if (kind := statements[0].type.name) not in QUERIES:
        raise UserError(
            f"Only queries are run here, and they only read: {kind.replace('_', ' ')} is none.",
            'vlm-rlaif sql w.duckdb "SELECT ..." (or FROM, DESCRIBE, SHOW, SUMMARIZE, PIVOT, EXPLAIN)',
        )
