"""Whatever a file holds, an import ends with a list of bad records or a plain sentence, never with a traceback."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.intake.formats import FORMATS
from vlm_rlaif.warehouse.intake.importing import import_files
from vlm_rlaif.warehouse.intake.sources import Wishes
from vlm_rlaif.warehouse.store import Warehouse

TURNS = [{"from": "human", "value": "<video>Who?"}, {"from": "gpt", "value": "A cat."}]
RECORDS: list[dict[str, Any]] = [
    {"video": "0", "conversations": TURNS},
    {"video": "0.mp4", "conversations": TURNS, "output_1": {"value": "x"}, "output_2": "y", "preference": 1},
    {"videos": ["0"], "messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "x"}],
     "rejected_response": "y"},
    {"video": "0", "prompt": "Who?", "chosen": "x", "rejected": "y"},
    {"video_name": "0", "question": "Who?", "answer": "x", "question_id": "1"},
    {"video_id": "0", "q": "Who?", "a": "x"},
    {"images": ["frames/1.jpg"], "conversations": TURNS},
]  # fmt: skip
NASTY = [
    b"\x00", b"\xff", b"\xed\xa0\x80", b"\\ud800", b"\xef\xbb\xbf", b"\r\n", b'"', b"[", b"]", b"{", b"}", b",",
    b"\t", b"NaN", b"1e999", b"-" + b"9" * 400, b"null", b"true", b"../../../etc/passwd", b"/etc/passwd", b"\\u0000",
    b"[" * 3_000, b'{"a":' * 3_000, b"<video>", b"x" * 3_000, b"file://", b"..",
]  # fmt: skip


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, shapes_folder: Path) -> Iterator[tuple[Warehouse, Path]]:
    """A warehouse and a folder with one video, shared by all examples."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "root").mkdir()
    shutil.copy(shapes_folder / "0.mp4", folder / "root")
    yield Warehouse.create(folder / "w.duckdb"), folder


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """(suffix, bytes) of a file that was sound once."""
    records = draw(st.lists(st.sampled_from(RECORDS), min_size=1, max_size=3))
    suffix = draw(st.sampled_from([".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow"]))
    data = bytearray(_sound(suffix, records))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        if draw(st.booleans()):
            data[at : at + draw(st.integers(0, 8))] = draw(st.sampled_from(NASTY))
        else:
            data = data[:at] or data
    return suffix, bytes(data)


def _sound(suffix: str, records: list[dict[str, Any]]) -> bytes:
    if suffix == ".json":
        return json.dumps(records).encode()
    if suffix == ".jsonl":
        return "\n".join(map(json.dumps, records)).encode()
    if suffix in (".csv", ".tsv"):
        mark = "," if suffix == ".csv" else "\t"
        return mark.join(records[0]).encode() + b"\n" + mark.join("0" for _ in records[0]).encode() + b"\n"
    table, sink = pa.Table.from_pylist(records[:1]), io.BytesIO()
    if suffix == ".parquet":
        pq.write_table(table, sink)
    else:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue()


def _import(hostile: tuple[Warehouse, Path], suffix: str, data: bytes, **wishes: Any) -> None:
    warehouse, folder = hostile
    (folder / f"a{suffix}").write_bytes(data)
    try:
        outcome = import_files(warehouse, [folder / f"a{suffix}"], Wishes(videos=folder / "root", **wishes))
    except UserError as said:
        assert str(said)
        return
    assert len(outcome.bad) == min(outcome.failed, 20)
    for line in outcome.bad:
        assert line.startswith(f"{folder}/a{suffix}") and line.encode() and len(line) < 600
    assert warehouse.rows("SELECT uri FROM videos WHERE uri NOT LIKE 'root/%'") == []


@settings(max_examples=60)
@given(file=files())
def test_a_file_that_was_tampered_with_is_never_a_traceback(
    hostile: tuple[Warehouse, Path], file: tuple[str, bytes]
) -> None:
    _import(hostile, *file)


@settings(max_examples=25)
@given(file=files(), form=st.sampled_from([known.name for known in FORMATS]), strict=st.booleans())
def test_a_file_that_is_read_in_another_format_is_never_a_traceback(
    hostile: tuple[Warehouse, Path], file: tuple[str, bytes], form: str, strict: bool
) -> None:
    _import(hostile, *file, format=form, strict=strict)


@settings(max_examples=25)
@given(data=st.binary(max_size=200), suffix=st.sampled_from([".json", ".csv", ".parquet", ".arrow"]))
def test_any_bytes_are_never_a_traceback(hostile: tuple[Warehouse, Path], data: bytes, suffix: str) -> None:
    _import(hostile, suffix, data)


def test_a_record_that_is_nested_deeply_is_one_bad_record(hostile: tuple[Warehouse, Path]) -> None:
    for depth in (100, 900, 990, 5_000):
        deep = '{"video": "0", "conversations": ' + "[" * depth + "]" * depth + "}"
        _import(hostile, ".jsonl", f'{deep}\n{{"video": "0", "conversations": []}}\n'.encode())
        _import(hostile, ".json", f"[{deep}]".encode())
