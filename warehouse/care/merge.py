"""Warehouses united by ids: several machines have each made a part.

An id is the hash of what was asked for, so a union is an insert of what is new. Where both have a row, the first
stored one stands, and rows that say different things under one id are listed. One transaction for each warehouse:
it comes whole or not at all. Checkpoint folders and videos are not copied, their places are.
"""

from __future__ import annotations

import fcntl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from vlm_rlaif.warehouse import schema
from vlm_rlaif.warehouse.care.relations import HANGING, KEY, count_gone, gather
from vlm_rlaif.warehouse.care.transaction import finished_run, insert, literal, now, transaction
from vlm_rlaif.warehouse.errors import UserError, WarehouseBusy
from vlm_rlaif.warehouse.journal import only_one, replay
from vlm_rlaif.warehouse.migrations import missing
from vlm_rlaif.warehouse.records import RECORDS, Record, Removal, primary_key
from vlm_rlaif.warehouse.runs import new_run_id
from vlm_rlaif.warehouse.store import Warehouse

OTHER = "the_other_warehouse"
"""The name under which the other file is attached."""
PLACES = {"videos": "uri", "video_files": "uri", "checkpoints": "path", "exports": "path"}
"""Columns that hold a path: relative ones start at the warehouse, and do so at another one after a merge."""
PROBED = ("status", "duration_s", "fps", "frames", "width", "height", "codec", "rotation")
"""What is known of a video by opening it."""
NO_CONTENT: Mapping[str, tuple[str, ...]] = {
    "runs": (
        "ended_at",
        "status",
        "rows_written",
        "rows_failed",
        "tokens_in",
        "tokens_out",
        "cached_tokens",
        "seconds",
        "gpu_seconds",
        "bound_by",
    ),
    "specs": ("model", "prompt"),
    "videos": ("uri", "source", "status"),
    "pairs": ("strategy",),
    "checkpoints": ("path", "config"),
    "exports": ("path",),
    "failures": ("message",),
    "audit_projects": ("closed_at", "config_hash"),
    **dict.fromkeys(
        ("captions", "contexts", "responses", "ratings", "labels", "probes", "answers"), ("cached_tokens",)
    ),
}
"""Columns that may differ under one id, beside the run: places, times, caches, names that are not part of a key, and
who chose a pair first."""
SHOWN = 20


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that both have, and that does not say the same."""

    table: str
    id: str
    columns: list[str]


@dataclass(slots=True)
class Merged:
    """What came of one other warehouse."""

    other: str
    run_id: str | None = None
    journals: int = 0
    """Journals beside the other, of jobs that died: merged into it first, but for a dry run."""
    new: dict[str, int] = field(default_factory=dict)
    """Table -> rows that were new."""
    moved: int = 0
    """Known videos and checkpoints whose file is not here, and is at the other's place."""
    readable: int = 0
    """Known videos that could not be read here, and were read there."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Table -> rows of videos that were removed here."""
    differing: dict[str, int] = field(default_factory=dict)
    """Table -> rows that differ."""
    differences: list[Difference] = field(default_factory=list)
    removed_there: list[str] = field(default_factory=list)
    """Videos that the other has removed, and that are here."""
    elsewhere: list[str] = field(default_factory=list)
    """Places of new checkpoints that do not lie below this warehouse."""

    @property
    def changes(self) -> int:
        return sum(self.new.values()) + self.moved + self.readable


def merge(warehouse: Warehouse, others: Sequence[Path], *, dry_run: bool = False, shown: int = SHOWN) -> list[Merged]:
    """Take the rows of other warehouses in, one after the other. A dry run compares each with this one as it is."""
    for other in others:
        check(warehouse, other)
    with only_one(warehouse, "merge"):
        if not dry_run:
            replay(warehouse)
        return [_merge_one(warehouse, other, dry_run, shown) for other in others]


def check(warehouse: Warehouse, other: Path) -> None:
    """Refuse what cannot be merged, before anything is."""
    if not other.is_file():
        raise UserError(f"There is no warehouse at {other}.", "vlm-rlaif merge --help")
    if other.samefile(warehouse.path):
        raise UserError(f"{other} is {warehouse.path} itself: there is nothing to unite.")
    _check_schema(other)
    if alive := live_runs(Warehouse(other)):
        raise UserError(
            f"A job is still writing to {other} (run {alive[0]}).",
            "Wait for it, or stop it: what it has finished is kept. Then merge again.",
        )


def _check_schema(other: Path) -> None:
    known = "SELECT count(*) FROM duckdb_tables() WHERE table_name IN ('migrations', 'runs', 'videos')"
    try:
        with Warehouse(other).visit(read_only=True) as connection:
            is_warehouse = connection.execute(known).fetchall() == [(3,)]
            older = missing(connection) if is_warehouse else []
    except WarehouseBusy:
        raise
    except (UserError, duckdb.Error) as error:  # a newer one, and a damaged one
        raise UserError(f"{other} cannot be merged: {error}", f"vlm-rlaif doctor {other}") from None
    if not is_warehouse:
        raise UserError(f"{other} is a DuckDB file, but no warehouse.", "vlm-rlaif merge --help")
    if older:
        raise UserError(f"{other} is of an older version. Bring it up to date first:", f"vlm-rlaif init {other}")


def live_runs(warehouse: Warehouse) -> list[str]:
    """Runs whose job is alive: it holds its journal."""
    alive = []
    for path in sorted(warehouse.journal_folder.glob("*.jsonl")):
        try:
            with path.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:  # it has just ended
            continue
        except BlockingIOError:
            alive.append(path.stem)
    return alive


def _merge_one(warehouse: Warehouse, other: Path, dry_run: bool, shown: int) -> Merged:
    merged = Merged(str(other), journals=len(list(Warehouse(other).journal_folder.glob("*.jsonl"))))
    if not dry_run:
        replay(Warehouse(other))
    with warehouse.visit() as connection:
        try:
            connection.execute(f"ATTACH {literal(other.resolve())} AS {OTHER} (READ_ONLY)")
        except duckdb.IOException as error:
            raise WarehouseBusy(f"{other} cannot be opened: {error}", "Nothing was lost. Try again.") from None
        try:
            with transaction(connection, warehouse.path):
                _Union(connection, warehouse, other.resolve().parent, merged, dry_run, shown).make()
        except UserError as error:
            raise UserError(str(error), f"vlm-rlaif doctor {other} --hashes") from None
    return merged


@dataclass(frozen=True, slots=True)
class _Union:
    """A transaction in which the rows of an attached warehouse come in."""

    connection: duckdb.DuckDBPyConnection
    warehouse: Warehouse
    theirs: Path
    """The folder of the other warehouse."""
    merged: Merged
    dry_run: bool
    shown: int

    def make(self) -> None:
        started_at, run_id = now(), new_run_id()
        self._leave_removed_out()
        self._keep_places()
        self._follow()
        self._read_there()
        self._say_places()
        for record in RECORDS:
            if record is not Removal:
                self._compare(record)
                self._take(record)
        if self.dry_run:
            self.connection.execute("ROLLBACK; BEGIN")
        elif self.merged.changes:
            self.merged.run_id = run_id
            config = {"other": self.merged.other, "moved": self.merged.moved, "readable": self.merged.readable}
            written = sum(self.merged.new.values())
            insert(self.connection, [finished_run(run_id, "merge", config, started_at, written)])

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self.connection.execute(sql).fetchall()

    def _leave_removed_out(self) -> None:
        """Gather the other's rows of videos that were removed here; name those that it has removed and we have."""
        gather(
            self.connection, [video_id for (video_id,) in self._rows("SELECT video_id FROM removals")], f"{OTHER}."
        )
        counted = count_gone(self.connection, f"{OTHER}.")
        self.merged.left_out = {table: sum(by_video.values()) for table, by_video in counted.items()}
        both = f"SELECT video_id FROM {OTHER}.removals SEMI JOIN videos USING (video_id) ORDER BY video_id"
        self.merged.removed_there = [video_id for (video_id,) in self._rows(both)]

    def _keep_places(self) -> None:
        """What lies at the same relative path here, and not there, stays: the other came without its videos."""
        named = " UNION ".join(f"SELECT {column} AS place FROM {OTHER}.{table}" for table, column in PLACES.items())
        places = [place for (place,) in self._rows(f"SELECT place FROM ({named}) WHERE place NOT LIKE '/%'")]
        kept = [p for p in places if not (self.theirs / p).exists() and (self.warehouse.folder / p).exists()]
        self.connection.register("kept", pa.table({"place": pa.array(kept, pa.string())}))
        self.connection.execute("CREATE OR REPLACE TEMP TABLE kept_places AS FROM kept")
        self.connection.unregister("kept")

    def _placed(self, column: str) -> str:
        """SQL: a path of the other warehouse as this one holds it, relative where it lies below."""
        home, theirs = (literal(f"{folder}/".replace("//", "/")) for folder in (self.warehouse.folder, self.theirs))
        whole = f"CASE WHEN {column} LIKE '/%' THEN {column} ELSE {theirs} || {column} END"
        return (
            f"CASE WHEN {column} IN (FROM kept_places) THEN {column}"
            f" WHEN starts_with({whole}, {home}) THEN substr({whole}, length({home}) + 1) ELSE {whole} END"
        )

    def _follow(self) -> None:
        """What is not at its place here, and is at the other's place, is looked for there from now on."""
        there = self.warehouse.video_path
        for table, column in (("videos", "uri"), ("checkpoints", "path")):
            key, placed = KEY[table], self._placed(f"o.{column}")
            pairs = self._rows(
                f"SELECT m.{key}, m.{column}, {placed} AS placed FROM {table} m JOIN {OTHER}.{table} o USING ({key})"
                f" WHERE m.{column} <> placed"
            )
            found = {row: new for row, old, new in pairs if not there(old).exists() and there(new).exists()}
            if found:
                moved = {"id": pa.array(found, pa.string()), "place": pa.array(found.values(), pa.string())}
                self.connection.register("found", pa.table(moved))
                self.connection.execute(
                    f"UPDATE {table} SET {column} = found.place FROM found WHERE {table}.{key} = found.id"
                )
                self.connection.unregister("found")
                self.merged.moved += len(found)

    def _read_there(self) -> None:
        """The bytes are the same, so a video that was readable there is readable."""
        columns = ", ".join(f"{column} = o.{column}" for column in PROBED)
        ((self.merged.readable,),) = self._rows(
            f"UPDATE videos SET {columns} FROM {OTHER}.videos o"
            " WHERE videos.video_id = o.video_id AND videos.status <> 'ok' AND o.status = 'ok'"
        )

    def _say_places(self) -> None:
        """Checkpoints of the other that lie outside of this warehouse's folder."""
        found = self._rows(
            f"SELECT {self._placed('o.path')} AS placed FROM {OTHER}.checkpoints o"
            " LEFT JOIN checkpoints m USING (checkpoint_id)"
            " WHERE placed LIKE '/%' AND (m.path IS NULL OR m.path = placed) ORDER BY placed"
        )
        self.merged.elsewhere = [place for (place,) in found]

    def _compare(self, record: type[Record]) -> None:
        """Count and list the rows that both have and that say different things. Only hashes are joined."""
        table, keys = record.table, ", ".join(primary_key(record))
        ignored = {*primary_key(record), "run_id", *NO_CONTENT.get(table, ())}
        content = [column for column in schema.columns(record) if column not in ignored]
        if not content:
            return
        said = f"SELECT {keys}, hash({', '.join(content)}) AS content FROM"
        readable = " WHERE status = 'ok'" if table == "videos" else ""
        self.connection.execute(
            f"CREATE OR REPLACE TEMP TABLE differing AS SELECT {keys} FROM ({said} {table}) m"
            f" JOIN ({said} {OTHER}.{table}{readable}) o USING ({keys}) WHERE m.content <> o.content"
        )
        ((count,),) = self._rows("SELECT count(*) FROM differing")
        if count:
            self.merged.differing[table] = count
            self._list(record, keys, content)

    def _list(self, record: type[Record], keys: str, content: list[str]) -> None:
        """Name the rows that `_compare` has found, as long as there is room, and their columns."""
        which = ", ".join(f"m.{column} IS DISTINCT FROM o.{column}" for column in content)
        rows = self._rows(
            f"SELECT {keys}, {which} FROM differing JOIN {record.table} m USING ({keys})"
            f" JOIN {OTHER}.{record.table} o USING ({keys})"
            f" ORDER BY {keys} LIMIT {max(0, self.shown - len(self.merged.differences))}"
        )
        width = len(primary_key(record))
        for row in rows:
            names = [name for name, differs in zip(content, row[width:], strict=True) if differs]
            self.merged.differences.append(Difference(record.table, "/".join(map(str, row[:width])), names))

    def _take(self, record: type[Record]) -> None:
        """Insert the rows of one table that are new, or count them.

        Two places there may be one place here; elsewhere, watching for conflicts costs much memory for nothing.
        """
        table = record.table
        place = PLACES.get(table)
        placed = f" REPLACE ({self._placed(place)} AS {place})" if place else ""
        same = " AND ".join(f"m.{column} = o.{column}" for column in primary_key(record))
        removed = f" AND {KEY[table]} NOT IN (SELECT id FROM gone_{table})" if table in HANGING else ""
        new = (
            f"FROM (SELECT *{placed} FROM {OTHER}.{table}) o"
            f" WHERE NOT EXISTS (SELECT 1 FROM {table} m WHERE {same}){removed}"
        )
        twice = " ON CONFLICT DO NOTHING" if place in primary_key(record) else ""
        writing = f"INSERT INTO {table} BY NAME SELECT * {new}{twice}"
        ((count,),) = self._rows(f"SELECT count(*) {new}" if self.dry_run else writing)
        if count:
            self.merged.new[table] = count
