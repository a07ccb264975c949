"""The warehouse: one DuckDB file, visited briefly, appended to in bulk.

DuckDB has one writer at a time, so nothing here keeps the file open: every call opens it, does its work and
closes it, and waits a while when somebody else is in. Rows are written once; writing one again does nothing.

    warehouse = Warehouse.open("w.duckdb")
    warehouse.append([Clip(...), Clip(...)])
    warehouse.query("SELECT count(*) FROM clips")
"""

from __future__ import annotations

import functools
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa

from vlm_rlaif.warehouse import schema
from vlm_rlaif.warehouse.errors import UserError, WarehouseBusy, interruptible
from vlm_rlaif.warehouse.migrations import migrate, missing, views_are_current
from vlm_rlaif.warehouse.records import Record, primary_key
from vlm_rlaif.warehouse.spool import BATCH_ROWS, Row, Spool

CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "storage_compatibility_version": "v1.5.0",
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
"""Files that DuckDB 1.5 and 2 both open, and no attempt to reach the network."""
READ_ONLY = {**CONFIG, "enable_external_access": False, "lock_configuration": True}
"""A query sees this file and nothing else: no COPY TO, no ATTACH, no read_csv of other files."""
PATIENCE_S = 30.0
STREAM_MEMORY = "1GB"
"""What DuckDB may hold in memory for a stream, above which it goes on in temporary files."""
_one_visit_at_a_time = threading.RLock()


class Warehouse:
    """Videos, captions, responses, labels, runs: everything this project knows, in one file."""

    def __init__(self, path: Path, *, patience_s: float = PATIENCE_S) -> None:
        self.path = path
        self.patience_s = patience_s

    @classmethod
    def create(cls, path: str | Path) -> Warehouse:
        """Make a new warehouse, or bring an existing one up to date."""
        warehouse = cls(Path(path))
        try:
            warehouse.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{warehouse.path.parent} cannot be a folder: {error.strerror}.") from None
        with warehouse.visit() as connection:
            migrate(connection)
        return warehouse

    @classmethod
    def open(cls, path: str | Path) -> Warehouse:
        """Open a warehouse that exists."""
        if not Path(path).is_file():
            raise UserError(f"There is no warehouse at {path}.", f"vlm-rlaif init {path}")
        warehouse = cls(Path(path))
        with warehouse.visit(read_only=True) as connection:
            if missing(connection) or not views_are_current(connection):
                raise UserError(
                    f"{path} is no warehouse, or one of an older version. This command adds what is missing:",
                    f"vlm-rlaif init {path}",
                )
        return warehouse

    @functools.cached_property
    def folder(self) -> Path:
        """Where the warehouse lies; videos inside it are stored by relative path."""
        return self.path.resolve().parent

    @property
    def journal_folder(self) -> Path:
        """Journals and lock files of running jobs, beside the warehouse."""
        return self.path.with_name(self.path.name + ".jobs")

    @contextmanager
    def visit(
        self, *, read_only: bool = False, memory_limit: str | None = None
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection for a short piece of work. Waits for other processes up to `patience_s`.

        Above `memory_limit` (`600MB`) DuckDB goes on in temporary files beside the warehouse, if it can.
        """
        with _one_visit_at_a_time:
            connection = self._connect(read_only, memory_limit)
            try:
                with interruptible():
                    yield connection
            finally:
                connection.close()

    def _connect(self, read_only: bool, memory_limit: str | None = None) -> duckdb.DuckDBPyConnection:
        deadline, pause_s = time.monotonic() + self.patience_s, 0.02
        config = READ_ONLY if read_only else CONFIG
        if memory_limit:
            config = {**config, "memory_limit": memory_limit}
        while True:
            try:
                return duckdb.connect(str(self.path), read_only=read_only, config=config)
            except duckdb.Error as error:
                message = str(error)
                if "Could not set lock" not in message:
                    doctor = f"vlm-rlaif doctor {self.path}"
                    raise UserError(f"{self.path} cannot be opened: {message}", doctor) from None
                if time.monotonic() > deadline:
                    raise WarehouseBusy(*_busy(self.path, message)) from None
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)

    def append(self, rows: Sequence[Record]) -> int:
        """Write rows of any tables in one transaction; returns how many were new."""
        return self.append_all([rows]) if rows else 0

    def append_all(self, batches: Iterable[Sequence[Record]]) -> int:
        """Write rows that come in batches in one transaction, with one batch in memory; returns how many were new."""
        return self._insert(
            (name, schema.to_arrow(group)) for batch in batches for name, group in _by_table(batch).items()
        )

    def append_table(self, name: str, rows: pa.Table | pa.RecordBatchReader) -> int:
        """Write rows of one table from Arrow columns of its names, in one transaction; returns how many were new."""
        return self._insert([(name, rows)])

    def _insert(self, tables: Iterable[tuple[str, Any]]) -> int:
        with self.visit() as connection:
            try:
                connection.execute("BEGIN")
                written = sum(_insert(connection, name, rows) for name, rows in tables)
                connection.execute("COMMIT")
            except (duckdb.IOException, duckdb.TransactionException, duckdb.FatalException) as error:
                raise UserError(
                    f"Rows could not be written to {self.path}: {error}",
                    "Make room on the disk, then run the same command again: what is finished is kept.",
                ) from None
        return written

    def unknown(self, rows: Sequence[Record]) -> list[Record]:
        """Those of the rows that do not stand yet, by their keys."""
        fresh: list[Record] = []
        with self.visit(read_only=True) as connection:
            for name, group in _by_table(rows).items():
                key = primary_key(type(group[0]))
                connection.register("wanted", schema.to_arrow(group).select(key))
                same = " AND ".join(f"there.{column} = wanted.{column}" for column in key)
                found = connection.sql(
                    f"SELECT {', '.join(key)} FROM wanted WHERE EXISTS (SELECT 1 FROM {name} there WHERE {same})"
                ).fetchall()
                stands = set(found)
                connection.unregister("wanted")
                fresh += [row for row in group if tuple(getattr(row, column) for column in key) not in stands]
        return fresh

    def query(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> pl.DataFrame:
        """The result of a read-only query."""
        return pl.DataFrame(self.arrow(sql, parameters))

    def rows(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[dict[str, Any]]:
        """The result of a read-only query as dictionaries."""
        found: list[dict[str, Any]] = self.arrow(sql, parameters).to_pylist()
        return found

    def arrow(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> pa.Table:
        """The result of a read-only query as an Arrow table."""
        with self.visit(read_only=True) as connection:
            found = connection.sql(sql, params=parameters or None)
            if found is None:
                raise UserError("That statement returns nothing. Only queries are run here.")
            table = found.to_arrow_table()
        return table.rename_columns(distinct(table.column_names))

    def stream(
        self,
        sql: str,
        parameters: Sequence[Any] | dict[str, Any] = (),
        *,
        row_id: Callable[[Row], str] | None = None,
        first: tuple[str, dict[str, Any]] | None = None,
        memory_limit: str = STREAM_MEMORY,
    ) -> Spool:
        """The result of a read-only query for reading slowly, in constant memory; `row_id` makes one more column.

        `first` is a statement with its parameters that makes a temporary table for the query: DuckDB joins well when
        it knows how long a table is, and does not know how long a subquery will be.
        """
        folder = self.journal_folder if self.journal_folder.is_dir() else Path(tempfile.gettempdir())
        with self.visit(read_only=True, memory_limit=memory_limit) as connection:
            if first is not None:
                connection.execute(*first)
            reader = connection.sql(sql, params=parameters or None).to_arrow_reader(BATCH_ROWS)
            try:
                return Spool(reader, folder, row_id)
            except OSError as error:
                raise UserError(
                    f"The rows that a job works on cannot be copied to {folder}: {error.strerror or error}.",
                    "Make room on the disk, then run the same command again.",
                ) from None

    def value(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> Any:
        """The single value of a query."""
        return next(iter(self.rows(sql, parameters)[0].values()))

    def execute(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> None:
        """Change something that is not written once: the state of a run, or the place of a video."""
        with self.visit() as connection:
            connection.execute(sql, parameters)

    def preferences(
        self,
        *,
        judge: str | None = None,
        min_strength: float = 0.0,
        split: str | None = None,
        dataset: str | None = None,
        gold: bool = False,
    ) -> pl.DataFrame:
        """Both orders averaged, with the question, both answers and the video of every pair.

        `judge` is a spec id, or the name of the judge's prompt; `min_strength` in [0, 1] drops weak preferences.
        Pairs that were judged in one order so far are left out: they may be position bias. `dataset` names a version
        (`vlm-rlaif dataset list`): its preferences, with the verdicts as they were; raises `UserError` if some of
        them are gone. `gold` takes the verdict of people where they have judged the pair, with `source` (`human` or
        `judge`) and what the judge said; a version has decided that already.
        """
        asked = {"judge": judge, "min_strength": min_strength, "split": split}
        source = "gold" if gold else "preferences"
        if gold and dataset is not None:
            raise UserError(f"The version {dataset} holds its verdicts: it goes without gold.")
        if dataset is not None:
            from vlm_rlaif.warehouse.exports.versions import find

            asked["dataset"] = find(self, dataset).name
            source = "(SELECT * EXCLUDE (dataset) FROM dataset_preferences WHERE dataset = $dataset)"
        return self.query(
            f"""
            SELECT p.*, q.text AS question, q.reference, a.text AS text_a, b.text AS text_b,
                   a.tokens AS tokens_a, b.tokens AS tokens_b, v.uri, c.text AS context
            FROM {source} p
            JOIN questions q USING (question_id)
            JOIN responses a ON a.response_id = p.response_a
            JOIN responses b ON b.response_id = p.response_b
            JOIN videos v ON v.video_id = p.video_id
            LEFT JOIN contexts c ON c.context_id = p.context_id
            WHERE p.complete AND ($judge IS NULL OR p.judge = $judge OR p.judge_prompt = $judge)
              AND p.strength >= $min_strength AND ($split IS NULL OR p.split = $split)
            ORDER BY p.pair_id, p.judge
            """,
            asked,
        )

    def video_path(self, uri: str) -> Path:
        """The file of a video: relative paths start at the warehouse."""
        return self.folder / uri


def _by_table(rows: Sequence[Record]) -> dict[str, list[Record]]:
    tables: dict[str, list[Record]] = {}
    for row in rows:
        tables.setdefault(row.table, []).append(row)
    return tables


def _insert(connection: duckdb.DuckDBPyConnection, name: str, rows: Any) -> int:
    """Insert Arrow rows, those that stand excepted; how many were new."""
    connection.register("new_rows", rows)
    (written,) = connection.execute(
        f"INSERT INTO {name} BY NAME SELECT * FROM new_rows ON CONFLICT DO NOTHING"
    ).fetchall()[0]
    connection.unregister("new_rows")
    return int(written)


def distinct(names: Sequence[str]) -> list[str]:
    """Two columns of one name would become one: later ones are numbered, `run_id_1`."""
    made: list[str] = []
    for name in names:
        free, number = name, 0
        while free in made:
            number += 1
            free = f"{name}_{number}"
        made.append(free)
    return made


def _busy(path: Path, message: str) -> list[str]:
    holder = re.search(r"\(PID (\d+)\)", message)
    lines = [f"{path} is in use by another process{f' (pid {holder[1]})' if holder else ''}."]
    return [*lines, "Nothing was lost. Close that program and run the same command again."]
