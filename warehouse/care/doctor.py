"""A warehouse is looked over: what is wrong, how to mend it, and what can be mended without any risk.

Repairs merge and mark what dead jobs left, look for moved videos at their other places, put the views right and
delete temporary files. They never delete a row.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from vlm_rlaif.warehouse.care import file_checks, row_checks
from vlm_rlaif.warehouse.care.merge import live_runs
from vlm_rlaif.warehouse.care.row_checks import Finding
from vlm_rlaif.warehouse.errors import UserError, WarehouseBusy
from vlm_rlaif.warehouse.journal import replay
from vlm_rlaif.warehouse.migrations import missing, views_are_current
from vlm_rlaif.warehouse.schema import table_names
from vlm_rlaif.warehouse.store import Warehouse


@dataclass(slots=True)
class Diagnosis:
    """What a look at a warehouse has found."""

    path: str
    duckdb: str
    """Version of DuckDB that looked."""
    storage: str
    """Version of the file's format."""
    bytes: int
    rows: dict[str, int]
    findings: list[Finding] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        return all(finding.harmless for finding in self.findings)


def examine(path: Path, *, hashes: bool = False, repair: bool = False) -> Diagnosis:
    """Look at a warehouse, after having mended what is safe to mend; raises `UserError` if it cannot be read."""
    warehouse = Warehouse(path)
    if not path.is_file():
        raise UserError(f"There is no warehouse at {path}.", f"vlm-rlaif init {path}")
    _must_open(warehouse)
    try:
        diagnosis = _open(warehouse)
        if repair:
            diagnosis.repaired = list(_repair(warehouse))
        diagnosis.findings = list(_checks(warehouse, hashes))
    except duckdb.Error as error:
        raise _damaged(path, f"{path} is damaged: {error}") from None
    return diagnosis


def _must_open(warehouse: Warehouse) -> None:
    try:
        with warehouse.visit(read_only=True):
            pass
    except WarehouseBusy:
        raise
    except UserError as error:
        raise _damaged(warehouse.path, str(error)) from None
    except duckdb.Error as error:
        raise _damaged(warehouse.path, f"{warehouse.path} cannot be opened: {error}") from None


def _open(warehouse: Warehouse) -> Diagnosis:
    with warehouse.visit(read_only=True) as connection:
        tables = connection.execute("SELECT table_name FROM duckdb_tables() WHERE NOT internal").fetchall()
        if ("migrations",) not in tables:
            raise UserError(f"{warehouse.path} is a DuckDB file, but no warehouse.", "vlm-rlaif init ANOTHER_NAME")
        if missing(connection):
            raise UserError(
                f"{warehouse.path} is of an older version. This command adds what is missing, and loses nothing:",
                f"vlm-rlaif init {warehouse.path}",
            )
        (tags,) = connection.execute("SELECT tags FROM duckdb_databases() WHERE NOT internal").fetchall()[0]
        counts = [f"SELECT '{name}', count(*) FROM {name}" for name in table_names()]
        return Diagnosis(
            path=str(warehouse.path), duckdb=duckdb.__version__, storage=str(tags.get("storage_version", "unknown")),
            bytes=warehouse.path.stat().st_size, rows=dict(connection.execute(" UNION ALL ".join(counts)).fetchall()),
        )  # fmt: skip


def _checks(warehouse: Warehouse, hashes: bool) -> Iterator[Finding]:
    if not _views_are_current(warehouse):
        yield Finding("views", 1, "sets of views of another version", [], f"vlm-rlaif init {warehouse.path}")
    if hashes:
        _read_everything(warehouse)
    yield from row_checks.check_rows(warehouse)
    yield from row_checks.check_ids(warehouse, everything=hashes)
    yield from file_checks.check_jobs(warehouse)
    yield from file_checks.check_videos(warehouse, hashes=hashes)
    yield from file_checks.check_outputs(warehouse)
    yield from file_checks.check_leftovers(warehouse)


def _views_are_current(warehouse: Warehouse) -> bool:
    with warehouse.visit(read_only=True) as connection:
        return views_are_current(connection)


def _read_everything(warehouse: Warehouse) -> None:
    """DuckDB checks every block that it reads, and raises when one is damaged."""
    for name in table_names():
        warehouse.value(f"SELECT bit_xor(hash({name})) FROM {name}")


def _repair(warehouse: Warehouse) -> Iterator[str]:
    """Mend what is safe to mend, and say it."""
    if not _views_are_current(warehouse):
        Warehouse.create(warehouse.path)
        yield "the views were made anew"
    dead = {path.stem for path in warehouse.journal_folder.glob("*.jsonl")} - set(live_runs(warehouse))
    if dead:
        try:
            yield f"journals of jobs that died were merged: {len(dead)}, with {replay(warehouse):,} new rows"
        except UserError as error:
            yield f"a journal could not be merged: {error}"
    yield from _end_runs(warehouse)
    yield from _follow(warehouse)
    yield from _sweep(warehouse)


def _end_runs(warehouse: Warehouse) -> Iterator[str]:
    runs = [row["run_id"] for row in warehouse.rows("SELECT run_id FROM runs WHERE status = 'running'")]
    journals = {path.stem for path in warehouse.journal_folder.glob("*.jsonl")}  # a new job has its journal first
    if gone := [run_id for run_id in runs if run_id not in journals]:
        warehouse.execute(
            "UPDATE runs SET status = 'interrupted' WHERE status = 'running' AND run_id IN (SELECT unnest(?))", [gone]
        )
        yield f"runs without a job were marked as interrupted: {len(gone)}"


def _follow(warehouse: Warehouse) -> Iterator[str]:
    """A video that is not at its place, and whole at another place that is known, is read there from now on."""
    from vlm_rlaif.warehouse.intake.arrivals import hash_of

    places = warehouse.rows(
        "SELECT video_id, v.uri, f.uri AS other FROM videos v JOIN video_files f USING (video_id)"
        " WHERE f.uri <> v.uri ORDER BY ALL"
    )
    found: dict[str, str] = {}
    for row in places:
        other = warehouse.video_path(row["other"])
        if row["video_id"] in found or warehouse.video_path(row["uri"]).exists() or not other.exists():
            continue
        if hash_of(other) == row["video_id"]:
            found[row["video_id"]] = row["other"]
    for video_id, uri in found.items():
        warehouse.execute("UPDATE videos SET uri = ? WHERE video_id = ?", [uri, video_id])
    if found:
        yield f"videos were found at another place of theirs: {len(found)}"


def _sweep(warehouse: Warehouse) -> Iterator[str]:
    if not (left := file_checks.leftovers(warehouse)):
        return
    with warehouse.visit():  # nobody else has the file open, so nobody uses its temporary folder
        for path in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    yield f"files and folders of killed processes were deleted: {len(left)}"


def _damaged(path: Path, error: str) -> UserError:
    return UserError(
        error,
        "Finished rows of jobs that were not merged yet are safe in the folder of journals beside it.",
        "A snapshot, or the warehouse of another machine, brings back what it has:",
        f"vlm-rlaif init NEW.duckdb && vlm-rlaif merge NEW.duckdb COPY_OF_{path.name}",
    )
