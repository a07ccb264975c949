"""Files that rows are written to as they come: JSON lines, a JSON list, parquet, a Hugging Face data set on disk.

A file is on the disk when it is closed. Memory holds one batch, and of parquet one row group.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlm_rlaif.warehouse.exports.formats import Format
from vlm_rlaif.warehouse.records import row_id

SPLITS = ("train", "val", "test")
ROW_GROUP = 20_000
_HF_TYPES = {pa.string(): "string", pa.float64(): "float64", pa.int64(): "int64"}


class RowFile(Protocol):
    """A file that is being written."""

    def write(self, batch: pa.RecordBatch) -> int:
        """Write rows; returns how many of them could be said in this format."""

    def close(self) -> None:
        """Finish the file, durably."""


class SplitFiles:
    """A file for every split, opened when its first row comes."""

    def __init__(self, into: Path, kind: Format, name: str) -> None:
        """`name` identifies the content: `datasets` keys its caches with it."""
        self._into, self._kind, self._name = into, kind, name
        self._files: dict[str, RowFile] = {}
        self._rows: dict[str, int] = {}
        self.unfit = 0
        """Rows that could not be said in this format."""

    @property
    def rows(self) -> dict[str, int]:
        """Split -> rows that were written, train first."""
        return {split: self._rows[split] for split in SPLITS if split in self._rows}

    @property
    def names(self) -> dict[str, str]:
        """Split -> its file in the folder."""
        return {split: self._kind.file_name(split) for split in self.rows}

    def write(self, batch: pa.RecordBatch) -> None:
        for split in SPLITS:
            part = batch.filter(pc.equal(batch["split"], split))
            if part.num_rows:
                written = self._file(split, batch.schema).write(part)
                self._rows[split] = self._rows.get(split, 0) + written
                self.unfit += part.num_rows - written

    def _file(self, split: str, schema: pa.Schema) -> RowFile:
        if split not in self._files:
            path = self._into / self._kind.file_name(split)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[split] = _open(path, self._kind, schema, row_id(self._name, split)[:16])
        return self._files[split]

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def _open(path: Path, kind: Format, schema: pa.Schema, fingerprint: str) -> RowFile:
    if kind.suffix == "parquet":
        return ParquetFile(path, schema)
    if kind.suffix == "arrow":
        return DatasetFolder(path, schema, fingerprint)
    return JsonFile(path, kind)


class JsonFile:
    """Records as JSON lines, or as one list with a record a line."""

    def __init__(self, path: Path, kind: Format) -> None:
        self._kind, self._list = kind, kind.suffix == "json"
        self._file = path.open("w", encoding="utf-8")
        self._between = "[\n" if self._list else ""

    def write(self, batch: pa.RecordBatch) -> int:
        assert self._kind.record is not None
        written = 0
        for row in batch.to_pylist():
            if self._kind.fits(row):
                record = json.dumps(self._kind.record(row), ensure_ascii=False, allow_nan=False)
                self._file.write(self._between + record)
                self._between = ",\n" if self._list else "\n"
                written += 1
        return written

    def close(self) -> None:
        if self._list:
            self._file.write("[]\n" if self._between == "[\n" else "\n]\n")
        elif self._between:
            self._file.write("\n")
        _finish(self._file)


class ParquetFile:
    """Columns, compressed, in row groups that are worth their overhead."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = path.open("wb")
        self._writer = pq.ParquetWriter(self._file, schema, compression="zstd")
        self._waiting: list[pa.RecordBatch] = []

    def write(self, batch: pa.RecordBatch) -> int:
        self._waiting.append(batch)
        if sum(waiting.num_rows for waiting in self._waiting) >= ROW_GROUP:
            self._flush()
        return int(batch.num_rows)

    def _flush(self) -> None:
        if self._waiting:
            table = pa.Table.from_batches(self._waiting)
            self._writer.write_table(table, row_group_size=table.num_rows)
            self._waiting = []

    def close(self) -> None:
        self._flush()
        self._writer.close()
        _finish(self._file)


class DatasetFolder:
    """One split as `datasets` saves it to disk: an Arrow stream that is memory-mapped, and two small JSON files."""

    def __init__(self, path: Path, schema: pa.Schema, fingerprint: str) -> None:
        self._path, self._schema, self._fingerprint = path, schema, fingerprint
        self._file = path.open("wb")
        self._writer = pa.ipc.new_stream(self._file, schema)

    def write(self, batch: pa.RecordBatch) -> int:
        self._writer.write_batch(batch)
        return int(batch.num_rows)

    def close(self) -> None:
        self._writer.close()
        _finish(self._file)
        features = {field.name: {"dtype": _HF_TYPES[field.type], "_type": "Value"} for field in self._schema}
        info = {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
        state: dict[str, object] = {
            "_data_files": [{"filename": self._path.name}], "_fingerprint": self._fingerprint,
            "_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False,
            "_split": self._path.parent.name,
        }  # fmt: skip
        write_json(self._path.with_name("dataset_info.json"), info)
        write_json(self._path.with_name("state.json"), state)


def write_json(path: Path, value: object) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        _sync(file)


def write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        _sync(file)


def _finish(file: IO[str] | IO[bytes]) -> None:
    _sync(file)
    file.close()


def _sync(file: IO[str] | IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
