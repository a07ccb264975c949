"""A version of the preferences becomes files for another trainer: streamed, whole or not at all, recorded.

An export is of a version: a selection without a name is frozen first. The same export again finds that it stands and
writes nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.exports import card, facts, folder
from vlm_rlaif.warehouse.exports.files import SplitFiles, write_json, write_text
from vlm_rlaif.warehouse.exports.formats import Format, llama_factory_entries
from vlm_rlaif.warehouse.exports.places import Places
from vlm_rlaif.warehouse.exports.rows import by_split, count_by_split, keys_of, read
from vlm_rlaif.warehouse.exports.versions import MEMORY_LIMIT, Taken, freeze
from vlm_rlaif.warehouse.intake.arrivals import uri_of
from vlm_rlaif.warehouse.journal import only_one, replay
from vlm_rlaif.warehouse.progress import Bar
from vlm_rlaif.warehouse.records import Dataset, Export, row_id
from vlm_rlaif.warehouse.runs import record_run
from vlm_rlaif.warehouse.store import Warehouse

AUTOMATIC = "preferences"
"""What the name of a version begins with that an export has frozen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An export as somebody wants it."""

    version: Dataset
    kind: Format
    out: Path
    videos: str = "path"
    """`path`, `copy` or `link`."""
    limit: int | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What makes two exports the same, but for their place."""
        return {
            "rows_hash": self.version.rows_hash, "format": self.kind.name, "videos": self.videos, "limit": self.limit
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What came of an export, or would."""

    path: str
    format: str
    dataset: str
    rows_hash: str
    rows: dict[str, int] = field(default_factory=dict)
    """Split -> preferences."""
    ties: int = 0
    """Preferences that a format of chosen and rejected cannot say."""
    unfit: int = 0
    """Preferences whose texts hold marks that the format gives a meaning."""
    judges: int = 1
    """With several, a pair may be there more than once."""
    missing: list[str] = field(default_factory=list)
    """Videos that are not there, and why."""
    fresh: bool = True
    """False: it stood already."""


def export(warehouse: Warehouse, asked: Asked, *, force: bool = False, taken: Taken | None = None) -> Exported:
    """Write an export unless it stands; raises `UserError` where something else is in the way.

    `taken` are the rows of the version where it is not frozen yet.
    """
    if not asked.kind.ties and asked.version.ties == asked.version.preferences:
        raise UserError(f"All preferences of {asked.version.name} are ties, which {asked.kind.name} cannot say.")
    with only_one(warehouse, "export"):
        replay(warehouse)
        stands = folder.stands(asked.out, asked.identity)
        if not stands:
            folder.check_free(asked.out, force=force)
        if taken is not None:
            freeze(warehouse, taken, AUTOMATIC, asked.version.query)
        return _standing(warehouse, asked) if stands else _fresh(warehouse, asked)


def _fresh(warehouse: Warehouse, asked: Asked) -> Exported:
    with record_run(warehouse, "export", {**asked.identity, "path": uri_of(warehouse, asked.out)}, "none") as run:
        try:
            made = _write(warehouse, asked)
        except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
            raise UserError(
                f"{warehouse.path} could not be read: {error}",
                "DuckDB needs room for temporary files beside the warehouse. Nothing was left in the folder.",
            ) from None
        run.written = _record(warehouse, asked, made.rows, run.run_id)
    return made


def preview(warehouse: Warehouse, asked: Asked, taken: Taken) -> Exported:
    """What an export would write. Rows that do not fit the format are found only when it is written."""
    with warehouse.visit(read_only=True, memory_limit=MEMORY_LIMIT) as connection:
        connection.register("taken", taken.reader())
        connection.execute(
            "CREATE TEMP TABLE chosen AS SELECT pair_id, judge, choice FROM taken WHERE choice <> 'tie' OR $ties"
            " ORDER BY pair_id, judge LIMIT $most",
            {"ties": asked.kind.ties, "most": len(taken.rows) if asked.limit is None else asked.limit},
        ).fetchall()
        ((judges,),) = connection.sql("SELECT count(DISTINCT judge) FROM chosen").fetchall()
        splits = connection.sql(by_split("FROM chosen")).to_arrow_table().to_pylist()
        videos = connection.sql(
            "SELECT DISTINCT v.video_id, v.uri FROM chosen JOIN pairs p USING (pair_id) JOIN questions q"
            " ON q.question_id = p.question_id JOIN videos v ON v.video_id = q.video_id ORDER BY v.uri"
        ).fetchall()
    places = Places(warehouse, "path", asked.out)
    for video_id, uri in videos:
        places.of(video_id, uri)
    rows = {row["split"]: row["preferences"] for row in splits}
    ties = 0 if asked.kind.ties else taken.ties
    return _made(asked, rows, ties=ties, missing=places.missing, judges=judges, fresh=False)


def _made(asked: Asked, rows: dict[str, int], **more: Any) -> Exported:
    return Exported(
        path=str(asked.out), format=asked.kind.name, dataset=asked.version.name, rows_hash=asked.version.rows_hash,
        rows=rows, **more,
    )  # fmt: skip


def _standing(warehouse: Warehouse, asked: Asked) -> Exported:
    """An export that stands. One that was killed after its last file is recorded now."""
    note = folder.read_note(asked.out)
    assert note is not None
    rows = note["rows"]
    if not warehouse.value("SELECT count(*) FROM exports WHERE export_id = ?", [_export_id(warehouse, asked)]):
        with record_run(warehouse, "export", {**asked.identity, "path": uri_of(warehouse, asked.out)}, "none") as run:
            run.written = _record(warehouse, asked, rows, run.run_id)
    counted = {name: note[name] for name in ("ties", "unfit", "missing", "judges")}
    return _made(asked, rows, **counted, fresh=False)


def _export_id(warehouse: Warehouse, asked: Asked) -> str:
    return row_id("export", uri_of(warehouse, asked.out), *asked.identity.values())


def _record(warehouse: Warehouse, asked: Asked, rows: dict[str, int], run_id: str) -> int:
    written = Export(
        export_id=_export_id(warehouse, asked), rows_hash=asked.version.rows_hash, format=asked.kind.name,
        path=uri_of(warehouse, asked.out), rows=sum(rows.values()), run_id=run_id,
    )  # fmt: skip
    return warehouse.append([written])


def _write(warehouse: Warehouse, asked: Asked) -> Exported:
    splits = count_by_split(warehouse, asked.version)
    ties = 0 if asked.kind.ties else asked.version.ties
    note: dict[str, Any] = {**asked.identity, "dataset": asked.version.name, "vlm_rlaif": installed("vlm-rlaif")}
    with folder.whole(asked.out, note) as partial:
        places = Places(warehouse, asked.videos, partial)
        files = _write_rows(warehouse, asked, places, partial)
        known = facts.look(warehouse, asked.version)
        counted = {"ties": ties, "unfit": files.unfit, "missing": places.missing, "judges": len(known.judges)}
        made = _made(asked, files.rows, **counted)
        note |= {"rows": files.rows, **counted}
        if asked.kind.name == "hf":
            write_json(partial / "dataset_dict.json", {"splits": list(files.rows)})
        if asked.kind.name == "llama-factory":
            write_json(partial / "dataset_info.json", llama_factory_entries(asked.version.name, files.names))
        write_text(partial / "README.md", card.write(known, asked, made, splits, files.names))
    return made


def _write_rows(warehouse: Warehouse, asked: Asked, places: Places, into: Path) -> SplitFiles:
    """Write every split to its file, with the paths of its videos."""
    keys = keys_of(warehouse, asked.version, ties=asked.kind.ties)
    left = len(keys) if asked.limit is None else min(asked.limit, len(keys))
    files = SplitFiles(into, asked.kind, _export_id(warehouse, asked))
    with Bar("export", left) as bar:
        for batch in read(warehouse, asked.version, keys):
            files.write(_placed(batch.slice(0, left), places))
            bar.advance(min(left, batch.num_rows))
            left -= batch.num_rows
            if left <= 0:
                break
    files.close()
    if not any(files.rows.values()):
        raise UserError(f"No preference of {asked.version.name} can be said in the format {asked.kind.name}.")
    return files


def _placed(batch: pa.RecordBatch, places: Places) -> pa.RecordBatch:
    """Rows whose video is a path instead of a uri."""
    paths = map(places.of, batch["video_id"].to_pylist(), batch["video"].to_pylist())
    number = batch.schema.get_field_index("video")
    return batch.set_column(number, "video", pa.array(list(paths), pa.string()))


def absolute(out: Path) -> Path:
    """The folder of an export, wherever a link leads."""
    return Path(os.path.realpath(out))
