"""Rows of a query, copied out of the warehouse: there may be millions, and whoever reads them may take days.

The warehouse is held only while the copy is made. The copy lies in a file without a name, which goes when its
reader does, so memory stays the same however many rows there are. `Warehouse.stream` makes one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

BATCH_ROWS = 10_000
Row = dict[str, Any]


class Spool:
    """The rows of a query in their order; `len()` is how many. One iteration at a time."""

    def __init__(
        self, reader: pa.RecordBatchReader, folder: Path, row_id: Callable[[Row], str] | None = None
    ) -> None:
        """`folder` is where the copy lies; `row_id` makes a further column of that name."""
        self._row_id = row_id
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (it lives as long as this object)
        self._rows = 0
        with pa.ipc.new_stream(self._file, reader.schema) as writer:
            for batch in reader:
                writer.write_batch(batch)
                self._rows += batch.num_rows

    def __len__(self) -> int:
        return self._rows

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows as Arrow batches."""
        self._file.seek(0)
        yield from pa.ipc.open_stream(self._file)

    def __iter__(self) -> Iterator[Row]:
        for batch in self.batches():
            for row in batch.to_pylist():
                if self._row_id is not None:
                    row["row_id"] = self._row_id(row)
                yield row
