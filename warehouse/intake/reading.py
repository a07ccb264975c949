"""Files of records: JSON, CSV, parquet and Hugging Face datasets, read one record at a time in constant memory.

What cannot be read is an entry too, with its place and the reason. Records are plain values: nothing is unpickled,
and no library of datasets is needed. What a record means is not known here.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.intake.json_records import CHUNK, LAST, MAX_RECORD, Entry, Tick, read_json

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
NOTES = {"dataset_dict.json", "dataset_info.json", "dataset_infos.json", "export.json", "state.json"}
"""What Hugging Face, and `vlm-rlaif export`, write beside their data."""
ARROW_ROWS = 64
"""Rows in memory at a time: some hold whole videos."""


def files_of(path: Path) -> list[Path]:
    """The files that a file or a folder stands for; answers that lie beside their questions are read with them."""
    if path.is_file():
        return [_questions_of(path) if _is_answers(path) else path]
    if not path.is_dir():
        raise UserError(f"There is no file or folder {path}.", "vlm-rlaif import --help")
    found = [
        file for file in sorted(path.rglob("*"))
        if file.suffix.lower() in SUFFIXES and file.is_file() and file.name not in NOTES
        and not file.name.startswith((".", "cache-")) and not _is_answers(file)
    ]  # fmt: skip
    if not found:
        raise UserError(f"There is nothing to import below {path}.", f"Files of records are {', '.join(SUFFIXES)}.")
    return found


def _answers_of(questions: Path) -> Path:
    """`test_a.json` of `test_q.json`."""
    return questions.with_name(f"{questions.stem[:-2]}_a{questions.suffix}")


def _questions_of(answers: Path) -> Path:
    return answers.with_name(f"{answers.stem[:-2]}_q{answers.suffix}")


def _is_answers(file: Path) -> bool:
    return file.stem.endswith("_a") and _questions_of(file).is_file()


def read(file: Path, tick: Tick = lambda done: None) -> Iterator[Entry]:
    """The records of a file, in their order."""
    try:
        if file.stem.endswith("_q") and (answers := _answers_of(file)).is_file():
            yield from _with_answers(_read_one(file, tick), answers)
        else:
            yield from _read_one(file, tick)
    except OSError as error:
        yield Entry(str(file), problem=f"it cannot be read: {error.strerror or error}")


def _read_one(file: Path, tick: Tick) -> Iterator[Entry]:
    suffix = file.suffix.lower()
    if suffix in (".parquet", ".arrow"):
        return _read_arrow(file, tick)
    if suffix in (".csv", ".tsv"):
        return _read_csv(file, tick)
    return read_json(file, tick)


# Tables


def _read_csv(file: Path, tick: Tick) -> Iterator[Entry]:
    """Rows under a header; commas, tabs or semicolons, whichever the header has most of."""
    csv.field_size_limit(CHUNK)
    with file.open("rb") as opened:
        text = io.TextIOWrapper(opened, "utf-8-sig", "surrogateescape", newline="")
        first = text.readline(CHUNK)
        delimiter = max(",\t;", key=first.count)
        rows = csv.reader(_chain(first, text), delimiter=delimiter)
        header: list[str] | None = None
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                yield Entry(f"{file}:{rows.line_num}", problem=f"this is not CSV: {error}")
                continue
            if row is None:
                break
            tick(opened.tell())
            place = f"{file}:{rows.line_num}"
            if not row:
                continue
            if header is None:
                header = [name.strip() for name in row]
            elif len(row) != len(header):
                yield Entry(place, problem=f"it has {len(row)} columns, the header has {len(header)}")
            else:
                yield Entry(place, dict(zip(header, row, strict=True)))
        if header is None:
            yield Entry(str(file), problem="it is empty")


def _chain(first: str, text: IO[str]) -> Iterator[str]:
    """Lines; one without an end comes in parts, so that it does not fill the memory."""
    line = first
    while line:
        yield line
        line = text.readline(MAX_RECORD)


def _read_arrow(file: Path, tick: Tick) -> Iterator[Entry]:
    """Parquet, or what `datasets` saves to disk."""
    import pyarrow as pa

    index, size = 0, os.path.getsize(file)
    batches: Iterator[Any] | None = None
    while True:
        try:
            batches = batches or _batches(file)
            if (batch := next(batches, None)) is not None:
                batch.validate(full=True)  # offsets that lead out of the file would end the process
            rows = [] if batch is None else batch.to_pylist()
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            yield Entry(f"{file}[{index}]", problem=f"{said.rstrip('.')}; {LAST}")
            return
        if batch is None:
            tick(size)
            return
        for row in rows:
            yield Entry(f"{file}[{index}]", row)
            index += 1


def _batches(file: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.suffix.lower() == ".parquet":
        with pq.ParquetFile(file) as table:
            yield from table.iter_batches(ARROW_ROWS)
        return
    with pa.memory_map(str(file)) as mapped:
        if mapped.read(6) == b"ARROW1":
            opened = pa.ipc.open_file(mapped)
            batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
        else:
            mapped.seek(0)
            batches = iter(pa.ipc.open_stream(mapped))
        for batch in batches:
            for start in range(0, batch.num_rows, ARROW_ROWS):
                yield batch.slice(start, ARROW_ROWS)


# Questions and answers in two files


def _with_answers(questions: Iterator[Entry], file: Path) -> Iterator[Entry]:
    """Questions with the answers of another file: by `question_id`, or in their order where there is none."""
    answers: dict[tuple[str, Any], dict[str, Any]] = {}
    for index, entry in enumerate(_read_one(file, lambda done: None)):
        if entry.problem or not isinstance(entry.record, dict):
            yield Entry(entry.place, problem=entry.problem or "it is not an object")
            continue
        answers[_key(entry.record, index)] = entry.record
    for index, entry in enumerate(questions):
        if entry.problem or not isinstance(entry.record, dict):
            yield entry
        elif (answer := answers.get(_key(entry.record, index))) is None:
            yield Entry(entry.place, problem=f"{file.name} has no answer to it")
        else:
            yield Entry(entry.place, {**answer, **entry.record})


def _key(record: dict[str, Any], index: int) -> tuple[str, Any]:
    name = record.get("question_id")
    return ("id", str(name)) if isinstance(name, str | int) else ("at", index)
