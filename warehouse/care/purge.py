"""The warehouse file written anew, without the free blocks in which DuckDB leaves what was deleted.

DuckDB neither overwrites deleted rows nor gives their blocks back: CHECKPOINT and VACUUM leave the words of a removed
video readable in the file. A copy of what is alive does not have them.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import duckdb

from vlm_rlaif.warehouse.care.remove import nobody_else
from vlm_rlaif.warehouse.care.transaction import literal
from vlm_rlaif.warehouse.errors import UserError, WarehouseBusy
from vlm_rlaif.warehouse.inspection.snapshot import LOGS
from vlm_rlaif.warehouse.journal import replay
from vlm_rlaif.warehouse.store import CONFIG, Warehouse


def purge(warehouse: Warehouse) -> tuple[int, int]:
    """Write the warehouse file anew, without the free blocks that may hold deleted words; its bytes before and after.

    The new file lies beside the old one until it is whole, and takes its place by a rename.
    """
    path = warehouse.path.resolve()
    before = path.stat().st_size
    if shutil.disk_usage(path.parent).free < 1.2 * before:
        raise UserError(f"There is no room for a second copy of {warehouse.path} ({before / 1e9:.1f} GB) beside it.")
    with nobody_else(warehouse, "remove"):
        replay(warehouse)
        fresh = path.with_name(f"{path.name}.purge-{os.getpid()}")
        try:
            _copy(warehouse, fresh)
        finally:
            for end in ("", *LOGS):
                Path(f"{fresh}{end}").unlink(missing_ok=True)
    return before, path.stat().st_size


def _copy(warehouse: Warehouse, fresh: Path) -> None:
    """Copy what is alive and put the copy in the place of the file, which nobody can write meanwhile."""
    path = warehouse.path.resolve()
    with warehouse.visit() as connection:
        connection.execute("CHECKPOINT")
    with duckdb.connect(config=CONFIG) as connection:
        try:
            connection.execute(f"ATTACH {literal(path)} AS old (READ_ONLY)")
        except duckdb.IOException as error:
            raise WarehouseBusy(f"{warehouse.path} was opened meanwhile: {error}", "Try again.") from None
        if any(Path(f"{path}{log}").exists() for log in LOGS):
            raise WarehouseBusy(f"{warehouse.path} was written meanwhile.", "Try again.")
        connection.execute(f"ATTACH {literal(fresh)} AS new")
        connection.execute("COPY FROM DATABASE old TO new")
        connection.execute("DETACH new")
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        shutil.copymode(path, fresh)
        os.replace(fresh, path)
