"""Versions of the data set: named, immutable selections of preferences, and what differs between two of them.

A version is known by the hash of its rows. It holds their verdicts as they were; words and videos stay where they
are, so a version whose videos were removed is refused. Versions are made and read in constant memory.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from vlm_rlaif.warehouse.care.transaction import transaction
from vlm_rlaif.warehouse.errors import UserError, nearest
from vlm_rlaif.warehouse.exports.diff import Difference, count_changes, diff, literal, rows_of, said
from vlm_rlaif.warehouse.journal import only_one, replay
from vlm_rlaif.warehouse.records import Dataset
from vlm_rlaif.warehouse.runs import record_run
from vlm_rlaif.warehouse.schema import to_arrow
from vlm_rlaif.warehouse.spool import BATCH_ROWS, Spool
from vlm_rlaif.warehouse.store import Warehouse

MEMORY_LIMIT = "600MB"
"""What DuckDB may use while a version is made or read; beyond it, temporary files."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
COLUMNS = pa.schema(
    [("pair_id", pa.string()), ("judge", pa.string()), ("choice", pa.string()), ("p_a", pa.float64())]
)
"""What a version keeps of a preference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which preferences. Those that were judged in one order so far are never among them."""

    judge: str | None = None
    """A spec id, or the name of the judge's prompt."""
    min_strength: float = 0.0
    split: str | None = None
    where: str | None = None
    """A condition of SQL on the view `preferences`, or `gold`."""
    gold: bool = False
    """The verdict of people where they have judged a pair, the judge's elsewhere."""

    @property
    def view(self) -> str:
        return "gold" if self.gold else "preferences"

    @property
    def query(self) -> str:
        """How the rows were chosen, as `datasets.query` keeps it."""
        return f"gold: {self}" if self.gold else str(self)

    def __str__(self) -> str:
        """The condition in SQL, as it is run."""
        parts = ["complete"]
        if self.judge is not None:
            parts.append(f"{literal(self.judge)} IN (judge, judge_prompt)")
        if self.min_strength > 0:
            parts.append(f"strength >= {self.min_strength!r}")
        if self.split is not None:
            parts.append(f"split = {literal(self.split)}")
        if self.where is not None:
            parts.append(f"({self.where}\n)" if "--" in self.where else f"({self.where})")
        return " AND ".join(parts)


@dataclass(frozen=True, slots=True)
class Taken:
    """Preferences that were selected, copied out of the warehouse in the order of their keys."""

    rows: Spool
    rows_hash: str
    ties: int
    videos: int
    people: int = 0
    """Rows with the verdict of people."""

    def reader(self) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(COLUMNS, self.rows.batches())


@dataclass(frozen=True, slots=True)
class Made:
    """A version, and whether it is new."""

    version: Dataset
    fresh: bool

    def __str__(self) -> str:
        found = self.version
        state = "frozen" if self.fresh else "stands already"
        return f"dataset {found.name}: {state}, {found.preferences:,} preferences ({found.ties:,} ties) of" \
               f" {found.videos:,} videos, rows {found.rows_hash}"  # fmt: skip


def row_key(pair_id: str, judge: str, p_a: float) -> str:
    """What a row says to a reward model; the hash of a version is that of its keys."""
    return f"{pair_id}/{judge}/{p_a!r}"


def hash_of(keys: Iterable[str]) -> str:
    """`row_id(*keys)` of sorted keys, however many there are."""
    digest = hashlib.blake2b(b"[", digest_size=10)
    for number, key in enumerate(keys):
        digest.update(b"," * (number > 0) + json.dumps(key, ensure_ascii=False).encode())
    digest.update(b"]")
    return digest.hexdigest()


def take(warehouse: Warehouse, selection: Selection) -> Taken:
    """Select preferences now. The condition is read-only: it sees the warehouse and no other file."""
    try:
        if selection.where is not None:
            with warehouse.visit(read_only=True) as connection:  # takes one expression, and nothing that follows it
                connection.sql(f"SELECT * FROM {selection.view} LIMIT 0").filter(selection.where)
        rows = warehouse.stream(
            f"SELECT pair_id, judge, choice, p_a FROM {selection.view} WHERE {selection}"
            " ORDER BY pair_id || '/' || judge || '/'",
            memory_limit=MEMORY_LIMIT,
        )
    except duckdb.Error as error:
        raise UserError(
            f"These preferences cannot be selected: {error}",
            f'vlm-rlaif sql {warehouse.path} "SELECT * FROM preferences WHERE complete LIMIT 5"',
        ) from None
    if not len(rows):
        raise UserError(
            f"No preference fits: {selection.query}.",
            f'vlm-rlaif sql {warehouse.path} "SELECT judge_prompt, split, complete, count(*) FROM preferences'
            ' GROUP BY ALL"',
        )
    return _measured(warehouse, rows, selection.gold)


def taken_of(warehouse: Warehouse, version: Dataset) -> Taken:
    """The rows of a version, as they were taken."""
    rows = warehouse.stream(f"{rows_of(version)} ORDER BY pair_id || '/' || judge || '/'", memory_limit=MEMORY_LIMIT)
    return Taken(rows, version.rows_hash, version.ties, version.videos)


def version_of(warehouse: Warehouse, taken: Taken, prefix: str, query: str) -> Dataset:
    """The version that rows are, or would be if they were frozen now under an automatic name."""
    return _by(warehouse, "rows_hash", taken.rows_hash) or _version(
        f"{prefix}-{taken.rows_hash[:10]}", taken, query, run_id=""
    )


def _version(name: str, taken: Taken, query: str, run_id: str) -> Dataset:
    return Dataset(
        name=name, rows_hash=taken.rows_hash, query=query, preferences=len(taken.rows), ties=taken.ties,
        videos=taken.videos, run_id=run_id,
    )  # fmt: skip


def taken_from(warehouse: Warehouse, rows: Iterable[dict[str, Any]]) -> Taken:
    """Preferences that somebody has read already, with the verdicts as that reader understands them."""
    kept = sorted(({name: row[name] for name in COLUMNS.names} for row in rows), key=_dict_key)
    table = pa.Table.from_pylist(kept, COLUMNS)
    folder = warehouse.journal_folder
    folder.mkdir(exist_ok=True)
    return _measured(warehouse, Spool(table.to_reader(BATCH_ROWS), folder))


def _dict_key(row: dict[str, Any]) -> str:
    return row_key(row["pair_id"], row["judge"], row["p_a"])


def _measured(warehouse: Warehouse, rows: Spool, gold: bool = False) -> Taken:
    ties = people = 0

    def keys() -> Iterator[str]:
        nonlocal ties
        for batch in rows.batches():
            pairs, judges, choices, p_a = (batch[name].to_pylist() for name in COLUMNS.names)
            ties += choices.count("tie")
            yield from map(row_key, pairs, judges, p_a)

    rows_hash = hash_of(keys())
    taken = Taken(rows, rows_hash, ties, 0)
    with warehouse.visit(read_only=True, memory_limit=MEMORY_LIMIT) as connection:
        connection.register("taken", taken.reader())
        ((videos,),) = connection.sql(
            "SELECT count(DISTINCT q.video_id) FROM taken JOIN pairs p USING (pair_id)"
            " JOIN questions q ON q.question_id = p.question_id"
        ).fetchall()
        if gold:
            connection.register("taken", taken.reader())
            ((people,),) = connection.sql(
                "SELECT count(*) FROM taken SEMI JOIN human_preferences USING (pair_id)"
            ).fetchall()
    return Taken(rows, rows_hash, ties, videos, people)


def create(warehouse: Warehouse, name: str, selection: Selection) -> Made:
    """Freeze a selection under a name. A name that stands for other rows is refused, with what differs."""
    if not NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot be the name of a version: letters, digits, `.`, `_` and `-`, at most 100 of them."
        )
    with only_one(warehouse, "dataset"):
        replay(warehouse)
        taken = take(warehouse, selection)
        if (known := _by(warehouse, "name", name)) is None:
            return _write(warehouse, name, taken, selection.query)
        if known.rows_hash == taken.rows_hash:
            return Made(known, False)
        with warehouse.visit(read_only=True, memory_limit=MEMORY_LIMIT) as connection:
            connection.register("taken", taken.reader().read_all())
            counts = count_changes(connection, rows_of(known), "FROM taken")
        raise UserError(
            f"The version {name} stands, with other rows. This selection, compared with it: {said(counts)}.",
            f"vlm-rlaif dataset create {warehouse.path} {_free(warehouse, name)} ...",
        )


def freeze(warehouse: Warehouse, taken: Taken, prefix: str, query: str) -> Made:
    """Make sure that rows are a version, under a name made of a prefix and their hash unless they have one.

    Several jobs may do so at once: the same rows have the same name.
    """
    version = version_of(warehouse, taken, prefix, query)
    return Made(version, False) if version.run_id else _write(warehouse, version.name, taken, query)


def _write(warehouse: Warehouse, name: str, taken: Taken, query: str) -> Made:
    config = {"name": name, "query": query} | ({"people": taken.people} if taken.people else {})
    with record_run(warehouse, "dataset", config, "none") as run:
        version = _version(name, taken, query, run.run_id)
        with warehouse.visit() as connection, transaction(connection, warehouse.path):
            connection.register("taken", taken.reader())
            connection.register("version", to_arrow([version]))
            connection.execute(
                "INSERT INTO dataset_rows BY NAME SELECT $rows_hash AS rows_hash, *, $run_id AS run_id FROM taken"
                " ON CONFLICT DO NOTHING",
                {"rows_hash": taken.rows_hash, "run_id": run.run_id},
            )
            connection.execute("INSERT INTO datasets BY NAME SELECT * FROM version ON CONFLICT DO NOTHING")
        run.written = len(taken.rows) + 1
    return Made(version, True)


def named(warehouse: Warehouse, name: str) -> Dataset:
    """The version of a name; raises `UserError` for an unknown one."""
    if (version := _by(warehouse, "name", name)) is None:
        names = [row["name"] for row in warehouse.rows("SELECT name FROM datasets ORDER BY name")]
        raise UserError(
            f"There is no version {name!r} of the data set.{nearest(name, names)}",
            f"vlm-rlaif dataset list {warehouse.path}",
        )
    return version


def find(warehouse: Warehouse, name: str) -> Dataset:
    """The version of a name, to be read; raises `UserError` for an unknown one, and for one whose words are gone."""
    version = named(warehouse, name)
    there = warehouse.value(
        "SELECT count(*) FROM dataset_rows r SEMI JOIN pairs p ON p.pair_id = r.pair_id"
        " SEMI JOIN labels l ON l.pair_id = r.pair_id AND l.spec_id = r.judge WHERE r.rows_hash = ?",
        [version.rows_hash],
    )
    if there != version.preferences:
        gone = version.preferences - there
        raise UserError(
            f"{gone:,} of the {version.preferences:,} preferences of {name} are gone, as videos were removed:"
            " this version cannot be read any more.",
            f"vlm-rlaif dataset create {warehouse.path} {_free(warehouse, name)} ...",
        )
    return version


def list_versions(warehouse: Warehouse) -> list[dict[str, Any]]:
    """Every version, the newest first."""
    return warehouse.rows(
        "SELECT d.name, d.preferences, d.ties, d.videos, d.rows_hash, d.query, r.started_at AS created_at"
        " FROM datasets d LEFT JOIN runs r USING (run_id) ORDER BY r.started_at DESC, d.name"
    )


def _by(warehouse: Warehouse, column: str, value: str) -> Dataset | None:
    found = warehouse.rows(f"SELECT * FROM datasets WHERE {column} = ? ORDER BY name LIMIT 1", [value])
    return Dataset(**found[0]) if found else None


def _free(warehouse: Warehouse, name: str) -> str:
    """A name that is not taken: `v1-2` after `v1`."""
    taken = {row["name"] for row in warehouse.rows("SELECT name FROM datasets")}
    return next(free for number in range(2, len(taken) + 3) if (free := f"{name}-{number}") not in taken)


def compare(warehouse: Warehouse, before: str, after: str, limit: int) -> Difference:
    """How the version `after` differs from `before`; rows whose words are gone are compared all the same."""
    return diff(warehouse, named(warehouse, before), named(warehouse, after), limit, MEMORY_LIMIT)
