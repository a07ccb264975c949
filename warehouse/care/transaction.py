"""One transaction with its run: all of it happens, or nothing does, the run included.

Jobs that last write their run first and their rows as they come (`warehouse.runs`); what is done here is done at
once, and a kill in the middle leaves no trace.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb

from vlm_rlaif.warehouse import schema
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import Record, Run


def now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


@contextmanager
def transaction(connection: duckdb.DuckDBPyConnection, path: Path) -> Iterator[None]:
    """Commit at the end of the block, unless it raises. A full disk and a damaged file are said in plain words."""
    connection.execute("BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    except (duckdb.ProgrammingError, duckdb.IntegrityError):  # our mistake
        raise
    except duckdb.Error as error:
        raise UserError(
            f"{path} was not changed: {error}",
            "Where the disk is full, make room and run the same command again. Where a file is damaged:",
            f"vlm-rlaif doctor {path} --hashes",
        ) from None


def finished_run(run_id: str, stage: str, config: dict[str, Any], started_at: datetime, written: int) -> Run:
    """The row of a run that is over when it is written."""
    return Run(
        run_id=run_id, stage=stage, config=json.dumps(config, sort_keys=True), code_version=version("vlm-rlaif"),
        engine="none", host=platform.node(), started_at=started_at, ended_at=now(), status="done",
        rows_written=written,
    )  # fmt: skip


def insert(connection: duckdb.DuckDBPyConnection, rows: Sequence[Record]) -> None:
    """Write rows of one table inside a transaction."""
    connection.register("new_rows", schema.to_arrow(rows))
    connection.execute(f"INSERT INTO {rows[0].table} BY NAME SELECT * FROM new_rows ON CONFLICT DO NOTHING")
    connection.unregister("new_rows")


def literal(text: object) -> str:
    """A text, such as a path, inside SQL: ATTACH takes no parameters."""
    quoted = str(text).replace("'", "''")
    return f"'{quoted}'"
