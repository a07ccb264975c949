"""Schema versions: each migration runs in one transaction together with the record that it ran.

A migration is a file, `mNNN_name.sql`; one that has been released is never edited.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib import resources

import duckdb

from vlm_rlaif.warehouse import schema
from vlm_rlaif.warehouse.errors import UserError


def m001_initial(connection: duckdb.DuckDBPyConnection) -> None:
    """All tables of version 0.1."""
    connection.execute(_file("m001_initial.sql"))


def m002_versions(connection: duckdb.DuckDBPyConnection) -> None:
    """Places of videos, versions of data sets, exports, removals, imported labels."""
    connection.execute(_file("m002_versions.sql"))


def m003_generation(connection: duckdb.DuckDBPyConnection) -> None:
    """Cached tokens, what held a run back, transcripts, ratings."""
    connection.execute(_file("m003_generation.sql"))


def m004_feedback(connection: duckdb.DuckDBPyConnection) -> None:
    """Anchors, probes of judges, audits by people."""
    connection.execute(_file("m004_feedback.sql"))


def _file(name: str) -> str:
    return (resources.files("vlm_rlaif.warehouse") / name).read_text(encoding="utf-8")


Migration = Callable[[duckdb.DuckDBPyConnection], None]
MIGRATIONS: tuple[Migration, ...] = (m001_initial, m002_versions, m003_generation, m004_feedback)


def migrate(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Bring a warehouse up to date, its views always; returns the names of the migrations that were applied."""
    connection.execute("CREATE TABLE IF NOT EXISTS migrations (name VARCHAR PRIMARY KEY, applied_at TIMESTAMP)")
    steps = missing(connection)
    for step in steps:
        connection.execute("BEGIN")
        try:
            step(connection)
            connection.execute("INSERT INTO migrations VALUES (?, now()::TIMESTAMP)", [step.__name__])
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
    connection.execute(f"BEGIN; {schema.create_views()} DELETE FROM migrations WHERE name LIKE 'views %'")
    connection.execute("INSERT INTO migrations VALUES (?, now()::TIMESTAMP)", [_views_version()])
    connection.execute("COMMIT")
    return [step.__name__ for step in steps]


def views_are_current(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether the file's views are those of this code."""
    name = "SELECT name FROM migrations WHERE name LIKE 'views %'"
    return connection.execute(name).fetchall() == [(_views_version(),)]


def _views_version() -> str:
    return f"views {hashlib.sha256(schema.create_views().encode()).hexdigest()[:16]}"


def missing(connection: duckdb.DuckDBPyConnection) -> list[Migration]:
    """The migrations that a file still needs: all of them for a file that is no warehouse yet."""
    there = connection.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'migrations'").fetchall()
    names = "SELECT name FROM migrations WHERE name NOT LIKE 'views %'"
    done = {name for (name,) in connection.execute(names).fetchall()} if there else set()
    if newer := sorted(done - {step.__name__ for step in MIGRATIONS}):
        raise UserError(
            f"This warehouse was written by a newer vlm-rlaif (it has {newer[0]}).",
            "pip install --upgrade vlm-rlaif",
        )
    return [step for step in MIGRATIONS if step.__name__ not in done]
