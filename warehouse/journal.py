"""Finished work is durable before it is merged: one JSONL file per run beside the warehouse.

A line is a finished row. Lines reach the operating system at once and the disk at least once a second while rows
arrive. A merge inserts rows by id and then empties the file; rows that are merged twice, or journaled and merged, are
harmless. What a killed job left behind is merged by the next one; an unfinished last line is ignored.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from vlm_rlaif.warehouse import schema
from vlm_rlaif.warehouse.errors import UserError, WarehouseBusy
from vlm_rlaif.warehouse.records import RECORDS, Failure, Record, Run, Spec, primary_key
from vlm_rlaif.warehouse.store import Warehouse

SYNC_S = 1.0
MERGE_S = 3.0
MERGE_SHARE = 0.02
"""Of the time, that merges may take: after a slow one the next one comes later."""
MERGE_ROWS = 50_000
"""With so many rows waiting, a merge comes as soon as it may."""
VISIT_ROWS = 5_000
"""Rows that one visit takes in at most: what DuckDB holds in memory grows with them."""
HELD_ROWS = 2_000
"""Rows in memory at once. When more wait, they wait in the file alone, and are read from it part by part."""
_BY_TABLE: dict[str, type[Record]] = {record.table: record for record in RECORDS}
_COLUMNS = {record.table: schema.columns(record) for record in RECORDS}
_TIMES = {table: [n for n, (kind, _) in columns.items() if kind is datetime] for table, columns in _COLUMNS.items()}


class Journal:
    """The finished rows of one run, on their way into the warehouse.

    The file is locked as long as the job lives; one without a lock is the trace of a job that was killed.
    """

    def __init__(self, warehouse: Warehouse, run_id: str) -> None:
        self._warehouse = warehouse
        make_folder(warehouse)
        self.path = warehouse.journal_folder / f"{run_id}.jsonl"
        self._file = _open_locked(self.path)
        self._waiting = 0
        """Rows that are not merged."""
        self._held: list[Record] = []
        """All of those, or when they are too many the last of them: the file has them too."""
        self._synced = self._merged = time.monotonic()
        self._pause_s = MERGE_S

    def append(self, rows: Sequence[Record], tell: Callable[[Warehouse], None] | None = None) -> bool:
        """Make rows durable, and merge them when it is time and nobody is in the way; whether it was.

        After a merge `tell` is called: what else is to be said on the same visit.
        """
        lines = [json.dumps({"table": row.table, "row": _values(row)}, default=_plain) for row in rows]
        self._held += rows  # before they are written: a merge empties the file, even if Ctrl-C comes in between
        try:
            self._file.write("".join(f"{line}\n" for line in lines))
            self._file.flush()
            now = time.monotonic()
            if now - self._synced > SYNC_S:
                os.fsync(self._file.fileno())
                self._synced = now
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written: {error.strerror}.",
                "Make room on the disk, then run the same command again: what is finished is kept.",
            ) from None
        self._waiting += len(rows)
        if len(self._held) > HELD_ROWS:
            self._held = []
        pause_s = MERGE_S if self._waiting >= MERGE_ROWS else self._pause_s
        return now - self._merged > pause_s and self._try_merge(tell)

    def _try_merge(self, tell: Callable[[Warehouse], None] | None) -> bool:
        """Merge without waiting: a reader who holds the file delays rows, and never loses one."""
        begun = self._merged = time.monotonic()
        brief = Warehouse(self._warehouse.path, patience_s=0.0)
        try:
            self._merge(brief)
            if tell is not None:
                tell(brief)
        except WarehouseBusy:
            return False
        self._merged = time.monotonic()
        self._pause_s = max(MERGE_S, (self._merged - begun) / MERGE_SHARE)
        return True

    def merge(self) -> None:
        """Merge what is left; raises `WarehouseBusy` when somebody does not let go of the warehouse."""
        os.fsync(self._file.fileno())
        self._merge(self._warehouse)

    def _merge(self, warehouse: Warehouse) -> None:
        if self._waiting > len(self._held):
            with self.path.open(encoding="utf-8") as file:
                _take_in(warehouse, file)
        warehouse.append(self._held)
        self._waiting, self._held = 0, []
        self._file.truncate(0)

    def remove(self) -> None:
        """The run is over and recorded: nothing in the file is needed any more."""
        self.path.unlink()

    def close(self) -> None:
        """Let go of the file. Unless it was removed, the next job merges it."""
        self._file.close()


def make_folder(warehouse: Warehouse) -> None:
    """The place of journals and locks: a job must be able to write beside its warehouse."""
    folder = warehouse.journal_folder
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be made: {error.strerror}. Jobs write beside the warehouse.",
            f"vlm-rlaif sql {warehouse.path} QUERY (reading needs no such folder)",
        ) from None


def _open_locked(path: Path) -> IO[str]:
    while True:
        file = path.open("a", encoding="utf-8")
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # another job took the new file for an old one and removed it


def replay(warehouse: Warehouse) -> int:
    """Merge the journals of jobs that died, mark their runs interrupted; returns the rows that were new."""
    written = 0
    for path in sorted(warehouse.journal_folder.glob("*.jsonl")):
        try:
            opened = path.open(encoding="utf-8")
        except FileNotFoundError:  # its job has just ended
            continue
        with opened as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # its job is alive
                continue
            if not os.fstat(file.fileno()).st_nlink:  # another job was faster
                continue
            written += _replay_one(warehouse, path, file)
            path.unlink()
    return written


def _replay_one(warehouse: Warehouse, path: Path, file: IO[str]) -> int:
    """Merge one dead job's journal and close its run, whose counts are those of its rows; how many were new."""
    try:
        written = _take_in(warehouse, file)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} holds finished rows that this version cannot read: {error!r}.",
            "Run the version that wrote it once more, or move the file away to give its rows up.",
        ) from None
    last_word = datetime.fromtimestamp(path.stat().st_mtime, UTC).replace(tzinfo=None)
    warehouse.execute(
        "UPDATE runs SET status = 'interrupted', ended_at = $ended, seconds = epoch($ended - started_at),"
        " rows_written = $written, rows_failed = $failed WHERE run_id = $run AND status = 'running'",
        {"ended": last_word, "run": path.stem, **rows_of_run(warehouse, path.stem)},
    )
    return written


def rows_of_run(warehouse: Warehouse, run_id: str) -> dict[str, int]:
    """How many rows of a run stand (`written`), and how many it failed to make, whatever it tried (`failed`)."""
    kinds = [record for record in RECORDS if record not in (Run, Spec, Failure)]
    made = " UNION ALL ".join(
        f"SELECT {primary_key(record)[0]}::VARCHAR AS id FROM {record.table} WHERE run_id = $run" for record in kinds
    )
    (found,) = warehouse.rows(
        f"WITH made AS ({made}) SELECT (SELECT count(*) FROM made) AS written, (SELECT count(DISTINCT row_id)"
        " FROM failures WHERE run_id = $run AND row_id NOT IN (SELECT id FROM made)) AS failed",
        {"run": run_id},
    )
    return {"written": int(found["written"]), "failed": int(found["failed"])}


def _take_in(warehouse: Warehouse, file: IO[str]) -> int:
    """Merge the rows of a journal, many in one visit and few in memory; how many were new."""
    rows, written = _read(file), 0
    while first := list(itertools.islice(rows, 1)):
        part = itertools.chain(first, itertools.islice(rows, VISIT_ROWS - 1))
        written += warehouse.append_all(_batches(part))
    return written


def _batches(rows: Iterator[Record]) -> Iterator[list[Record]]:
    while batch := list(itertools.islice(rows, HELD_ROWS)):
        yield batch


def _read(file: IO[str]) -> Iterator[Record]:
    for line in file:
        if not line.endswith("\n"):
            return
        entry = json.loads(line)
        table, row = entry["table"], entry["row"]
        for name in _TIMES[table]:
            row[name] = row[name] and datetime.fromisoformat(row[name])
        yield _BY_TABLE[table](**row)


@contextmanager
def only_one(warehouse: Warehouse, stage: str) -> Iterator[None]:
    """Hold the lock of a stage; a second job is told who has it. The lock dies with its process."""
    make_folder(warehouse)
    path = warehouse.journal_folder / f"{stage}.lock"
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise UserError(
                f"Another job is running {stage} on {warehouse.path} (pid {file.read().strip()}).",
                "Wait for it, or stop it: what it has finished is kept.",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _values(row: Record) -> dict[str, Any]:
    """What `asdict` would make of a row, without copying what cannot change: this is done for every row."""
    return {name: getattr(row, name) for name in _COLUMNS[row.table]}


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} does not belong in a journal")
