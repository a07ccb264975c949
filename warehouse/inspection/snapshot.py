"""A copy of a warehouse for notebooks and SQL tools, which hold a file open for hours: jobs never wait for a copy.

A first copy is made while jobs write, and may be torn. Then the file is held for reading, so that nobody writes to
it, and the copy is mended where it differs: that is quick, and jobs keep their finished rows in their journals
meanwhile. What DuckDB has not folded into the file yet (its write-ahead log) is copied too, and folded into the copy.
A copy under a temporary name is renamed when it is whole.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import duckdb

from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.store import CONFIG, Warehouse

LOGS = (".wal", ".wal.checkpoint", ".wal.recovery")
"""What DuckDB writes beside a file before it writes into it."""
CHUNK = 2**20


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy that was taken."""

    path: str
    bytes: int
    journaled_rows: int
    """Finished rows of running or killed jobs that had not reached the warehouse yet."""


def take(warehouse: Warehouse, target: Path, *, force: bool = False) -> Snapshot:
    """Copy a warehouse to a file of its own, in constant memory; `force` replaces one that is there."""
    if target.exists() and target.samefile(warehouse.path):
        raise UserError(f"{target} is the warehouse itself.", f"vlm-rlaif snapshot {warehouse.path} copy.duckdb")
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise UserError(f"{target} is no place for a file.", f"vlm-rlaif snapshot {warehouse.path} copy.duckdb")
    if target.exists() and not force:
        raise UserError(f"{target} is there already.", f"vlm-rlaif snapshot {warehouse.path} {target} --force")
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        shutil.copyfile(warehouse.path, part)
        with warehouse.visit(read_only=True):
            journaled = sum(map(_lines, warehouse.journal_folder.glob("*.jsonl")))
            _mend(part, warehouse.path)
            for log in LOGS:
                with suppress(FileNotFoundError):
                    shutil.copyfile(f"{warehouse.path}{log}", f"{part}{log}")
        with duckdb.connect(str(part), config=CONFIG) as connection:
            connection.execute("CHECKPOINT")
        for log in LOGS:  # those of the file that is replaced
            Path(f"{target}{log}").unlink(missing_ok=True)
        part.replace(target)
    except (OSError, duckdb.IOException) as error:
        raise UserError(f"{target} cannot be written: {error}", "Make room, or name another folder.") from None
    finally:
        for log in ("", *LOGS):
            Path(f"{part}{log}").unlink(missing_ok=True)
    return Snapshot(str(target), target.stat().st_size, journaled)


def _mend(copy: Path, original: Path) -> None:
    """Write what differs between a copy and its original."""
    with copy.open("r+b") as there, original.open("rb") as here:
        while wanted := here.read(CHUNK):
            if there.read(CHUNK) != wanted:
                there.seek(here.tell() - len(wanted))
                there.write(wanted)
        there.truncate(here.tell())


def _lines(path: Path) -> int:
    """How many finished rows a journal holds."""
    with suppress(FileNotFoundError), path.open("rb") as file:  # else its job has just ended
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(CHUNK), b""))
    return 0
