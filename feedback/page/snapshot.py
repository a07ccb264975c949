"""A copy of a warehouse for as long as the page is open: jobs go on writing, and nobody waits.

The copy lies in a temporary folder, gets the table of the list, is opened read-only with no access to other files,
and loses its name at once: whatever ends this program from then on, nothing of it stays on the disk. What a program
left that was killed before, the next one removes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from vlm_rlaif.feedback.page.listing import Listing
from vlm_rlaif.warehouse.errors import UserError, interruptible
from vlm_rlaif.warehouse.inspection.snapshot import take
from vlm_rlaif.warehouse.store import CONFIG, READ_ONLY, Warehouse

PREFIX = "vlm-rlaif-view-"
MEMORY = "1GB"
"""What DuckDB may hold of the copy in memory."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """An open copy, and what it took."""

    connection: duckdb.DuckDBPyConnection
    bytes: int
    seconds: float
    journaled_rows: int
    """Finished rows of running jobs that are not in it yet."""


@contextmanager
def frozen(warehouse: Warehouse) -> Iterator[Frozen]:
    """A read-only copy with the table of the list; raises `UserError` where there is no room for it."""
    began = time.monotonic()
    _sweep()
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-") as folder:
        path = Path(folder) / warehouse.path.name
        taken = take(warehouse, path)
        try:
            with interruptible(), duckdb.connect(str(path), config={**CONFIG, "memory_limit": MEMORY}) as writable:
                Listing.make(writable)
            connection = duckdb.connect(str(path), read_only=True, config={**READ_ONLY, "memory_limit": MEMORY})
        except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
            raise UserError(f"The list cannot be made in {folder}: {error}", "Make room, or set TMPDIR.") from None
        size = path.stat().st_size
    try:
        yield Frozen(connection, size, time.monotonic() - began, taken.journaled_rows)
    finally:
        connection.close()


def _sweep() -> None:
    """Remove the folders of processes that were killed while they copied."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdecimal() and not _lives(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # somebody else's, or no pid at all
        return True
    return True
