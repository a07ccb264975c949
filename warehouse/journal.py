"""Finished work is durable before it is merged: one JSONL file per run beside the warehouse.

A line is a finished row. Lines reach the operating system at once and the disk at least once a second while rows
arrive. A merge inserts rows by id, so rows that are merged twice, or journaled and merged, are harmless. What a
killed job left behind is merged by the next one; an unfinished last line is ignored.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from vlm_rlaif.warehouse import schema
from vlm_rlaif.warehouse.errors import UserError, WarehouseBusy
from vlm_rlaif.warehouse.records import RECORDS, Failure, Record
from vlm_rlaif.warehouse.store import Warehouse

SYNC_S = 1.0
MERGE_S = 3.0
_BY_TABLE: dict[str, type[Record]] = {record.table: record for record in RECORDS}


class Journal:
    """The finished rows of one run, on their way into the warehouse.

    The file is locked as long as the job lives; one without a lock is the trace of a job that was killed.
    """

    def __init__(self, warehouse: Warehouse, run_id: str) -> None:
        self._warehouse = warehouse
        warehouse.journal_folder.mkdir(exist_ok=True)
        self.path = warehouse.journal_folder / f"{run_id}.jsonl"
        self._file = _open_locked(self.path)
        self._waiting: list[Record] = []
        self._synced = self._merged = time.monotonic()

    def append(self, rows: Sequence[Record]) -> None:
        """Make rows durable, and merge them when it is time and nobody is in the way."""
        lines = [json.dumps({"table": r.table, "row": asdict(r)}, default=_plain) for r in rows]
        self._file.write("".join(f"{line}\n" for line in lines))
        self._file.flush()
        self._waiting += rows
        now = time.monotonic()
        if now - self._synced > SYNC_S:
            os.fsync(self._file.fileno())
            self._synced = now
        if now - self._merged > MERGE_S:
            self._try_merge()

    def _try_merge(self) -> None:
        """Merge without waiting: a reader who holds the file delays rows, and never loses one."""
        self._merged = time.monotonic()
        try:
            Warehouse(self._warehouse.path, patience_s=0.0).append(self._waiting)
        except WarehouseBusy:
            return
        self._waiting = []

    def merge(self) -> None:
        """Merge what is left; raises `WarehouseBusy` when somebody does not let go of the warehouse."""
        os.fsync(self._file.fileno())
        self._warehouse.append(self._waiting)
        self._waiting = []

    def remove(self) -> None:
        """The run is over and recorded: nothing in the file is needed any more."""
        self.path.unlink()

    def close(self) -> None:
        """Let go of the file. Unless it was removed, the next job merges it."""
        self._file.close()


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
            try:
                rows = list(_read(file))
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{path} holds finished rows that this version cannot read: {error!r}.",
                    "Run the version that wrote it once more, or move the file away to give its rows up.",
                ) from None
            written += warehouse.append(rows)
            failed = sum(isinstance(row, Failure) for row in rows)
            last_word = datetime.fromtimestamp(path.stat().st_mtime, UTC).replace(tzinfo=None)
            warehouse.execute(
                "UPDATE runs SET status = 'interrupted', ended_at = ?, rows_written = ?, rows_failed = ?"
                " WHERE run_id = ? AND status = 'running'",
                [last_word, len(rows) - failed, failed, path.stem],
            )
            path.unlink()
    return written


def _read(file: IO[str]) -> Iterator[Record]:
    for line in file:
        if not line.endswith("\n"):
            return
        entry = json.loads(line)
        record = _BY_TABLE[entry["table"]]
        times = {n for n, (kind, _) in schema.columns(record).items() if kind is datetime}
        row: dict[str, Any] = {
            name: datetime.fromisoformat(value) if name in times and value else value
            for name, value in entry["row"].items()
        }
        yield record(**row)


@contextmanager
def only_one(warehouse: Warehouse, stage: str) -> Iterator[None]:
    """Hold the lock of a stage; a second job is told who has it. The lock dies with its process."""
    warehouse.journal_folder.mkdir(exist_ok=True)
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


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} does not belong in a journal")
