"""Schema versions: each migration runs in one transaction together with the record that it ran."""

from __future__ import annotations

from collections.abc import Callable

import duckdb

from vlm_rlaif.warehouse import schema
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import RECORDS


def m001_initial(connection: duckdb.DuckDBPyConnection) -> None:
    """All tables of version 0.1."""
    for record in RECORDS:
        connection.execute(schema.create_table(record))


MIGRATIONS: tuple[Callable[[duckdb.DuckDBPyConnection], None], ...] = (m001_initial,)


def migrate(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Bring a warehouse up to date; returns the names of the migrations that were applied."""
    connection.execute("CREATE TABLE IF NOT EXISTS migrations (name VARCHAR PRIMARY KEY, applied_at TIMESTAMP)")
    known = [step.__name__ for step in MIGRATIONS]
    done = {name for (name,) in connection.execute("SELECT name FROM migrations").fetchall()}
    if newer := sorted(done - set(known)):
        raise UserError(
            f"This warehouse was written by a newer vlm-rlaif (it has {newer[0]}).",
            "pip install --upgrade vlm-rlaif",
        )
    applied = []
    for step in MIGRATIONS:
        if step.__name__ in done:
            continue
        connection.execute("BEGIN")
        try:
            step(connection)
            connection.execute("INSERT INTO migrations VALUES (?, now()::TIMESTAMP)", [step.__name__])
            connection.execute(schema.create_views())
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        applied.append(step.__name__)
    return applied
