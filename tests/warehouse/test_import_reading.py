"""Files are read one record at a time: whatever is wrong with one is an entry with its place, and never more."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.intake import json_records
from vlm_rlaif.warehouse.intake.reading import files_of, read

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def entries(file: Path, text: str | bytes) -> list[tuple[str, Any, str]]:
    """(line or index, record, problem) of what is read from a file with this text."""
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return [(entry.place.removeprefix(str(file)), entry.record, entry.problem) for entry in read(file)]


# JSON


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(values=st.lists(VALUES, max_size=6), indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_a_list_is_read_as_json_itself_reads_it_in_chunks_of_any_size(
    tmp_path: Path, values: list[Any], indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    for chunk in (1, 7, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(json_records, "CHUNK", chunk)
            found = entries(tmp_path / "a.json", text)
        assert found == [(f"[{index}]", value, "") for index, value in enumerate(values)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    values=st.lists(st.dictionaries(st.text(), VALUES, min_size=1, max_size=3), max_size=5),
    indent=st.sampled_from([None, 2]),
)
def test_objects_one_after_another_are_read_however_many_lines_they_take(
    tmp_path: Path, values: list[Any], indent: int | None
) -> None:
    text = "\n".join(json.dumps(value, indent=indent) for value in values) or "[]"
    assert [record for _, record, _ in entries(tmp_path / "a.json", text)] == values


def test_a_long_list_is_read_in_little_memory(tmp_path: Path) -> None:
    file = tmp_path / "long.json"
    with file.open("w") as opened:
        opened.write("[")
        opened.write(",".join(json.dumps({"id": n, "text": "a cat " * 30}) for n in range(60_000)))
        opened.write("]")
    tracemalloc.start()
    assert sum(1 for entry in read(file) if not entry.problem) == 60_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert os.path.getsize(file) > 12_000_000 and peak < 8_000_000


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("", "", "it is empty"),
        (" \n", "", "it is empty"),
        ('[{"a": 1}, {"b": ', "[1]", "the file ends in the middle of it"),
        ('[{"a": 1}, {"b": "x', "[1]", "the file ends in the middle of it"),
        ('[{"a": 1}', "[1]", "the file ends before the list does"),
        ('[{"a": 1} {"b": 2}]', "[1]", "there is no comma before it"),
        ('[{"a": nope}, {"b": 2}]', "[0]", "this is not JSON: Expecting value"),
        ('[{"a": 1},]', "[1]", "this is not JSON: Expecting value"),
        ('[{"a": 1}] and more', "[1]", "something follows the end of the list"),
        ("[" * 100_000, "[0]", "it is nested too deeply"),
        ('{"a": 1}\n{"b": \n{"c": 3}\n', ":2", "this is not JSON: Expecting value at column 1"),
        ('{"a": 1}\n' + '{"a":' * 100_000, ":2", "it is nested too deeply"),
        ("hello\n", ":1", "this is not JSON"),
    ],
)
def test_what_is_wrong_with_json_is_told_with_its_place(tmp_path: Path, text: str, place: str, problem: str) -> None:
    bad = [(where, what) for where, _, what in entries(tmp_path / "a.json", text) if what]
    assert len(bad) == 1
    assert bad[0][0] == place and bad[0][1].startswith(problem)


def test_a_bad_line_does_not_stop_the_next_one(tmp_path: Path) -> None:
    found = entries(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"b": "\xff"}\r\n{no}\r\n{"c": 3}')
    assert [(place, record) for place, record, problem in found if not problem] == [
        (":1", {"a": 1}), (":3", {"b": "\udcff"}), (":5", {"c": 3}),
    ]  # fmt: skip


def test_a_value_that_never_ends_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_records, "MAX_RECORD", 1 << 16)
    monkeypatch.setattr(json_records, "CHUNK", 1 << 10)
    assert "longer than" in entries(tmp_path / "a.json", '["' + "x" * 300_000)[0][2]
    lines = entries(tmp_path / "a.jsonl", '{"a": "' + "x" * 300_000 + '"}\n{"b": 2}\n')
    assert [(place, bool(problem)) for place, _, problem in lines] == [(":1", True), (":2", False)]


def test_numbers_of_any_length_are_numbers(tmp_path: Path) -> None:
    found = entries(tmp_path / "a.json", f"[{'9' * 10_000}, 123456789012345678, 1e999, NaN]")
    assert [type(record) for _, record, _ in found] == [float, int, float, float]


# Tables


def test_a_table_may_have_commas_tabs_or_semicolons(tmp_path: Path) -> None:
    for delimiter in ",\t;":
        text = '\ufeffvideo, question\r\na.mp4,"what, exactly;\r\nis it ?"\r\n\r\nb.mp4,\r\n'
        text = text.replace("o,", f"o{delimiter}").replace("4,", f"4{delimiter}")
        assert entries(tmp_path / "a.csv", text) == [
            (":3", {"video": "a.mp4", "question": "what, exactly;\r\nis it ?"}, ""),
            (":5", {"video": "b.mp4", "question": ""}, ""),
        ]


def test_a_bad_row_does_not_stop_the_next_one(tmp_path: Path) -> None:
    text = b"video,question\na.mp4\nb.mp4,what ?\nc.mp4,\xff\n" + b"d.mp4," + b"x" * 2_000_000 + b"\ne.mp4,who ?\n"
    found = entries(tmp_path / "a.csv", text)
    assert [(place, problem[:24]) for place, _, problem in found] == [
        (":2", "it has 1 columns, the he"), (":3", ""), (":4", ""), (":5", "this is not CSV: field l"), (":6", ""),
    ]  # fmt: skip
    assert entries(tmp_path / "b.csv", "") == [("", None, "it is empty")]


def test_parquet_and_arrow_files_give_the_same_records(tmp_path: Path) -> None:
    rows = [{"video": f"{n}.mp4", "turns": [{"role": "user", "content": f"what {n} ?"}]} for n in range(150)]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "a.parquet")
    for name, make in (("stream.arrow", pa.ipc.new_stream), ("file.arrow", pa.ipc.new_file)):
        with make(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
    for name in ("a.parquet", "stream.arrow", "file.arrow"):
        file = tmp_path / name
        assert [(e.place, e.record) for e in read(file)] == [(f"{file}[{n}]", row) for n, row in enumerate(rows)]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_binary_file_that_is_cut_off_or_garbage_is_told(tmp_path: Path, name: str) -> None:
    for garbage in (b"", b"PAR1", b"ARROW1\0\0 and so on", os.urandom(4_000)):
        (found,) = entries(tmp_path / name, garbage)
        assert found[0] == "[0]" and found[2].endswith("nothing from here on can be read")


# Folders and pairs of files


def test_a_folder_stands_for_its_files_of_records(tmp_path: Path) -> None:
    for name in ("b.json", "deep/a.parquet", "notes.txt", "dataset_info.json", ".hidden.json", "cache-1.arrow"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("[]")
    (tmp_path / "empty").mkdir()
    assert files_of(tmp_path) == [tmp_path / "b.json", tmp_path / "deep" / "a.parquet"]
    with pytest.raises(UserError, match="nothing to import"):
        files_of(tmp_path / "empty")
    with pytest.raises(UserError, match="no file or folder"):
        files_of(tmp_path / "none.json")


def test_answers_are_read_with_their_questions_by_their_id(tmp_path: Path) -> None:
    questions = [{"video_name": "a", "question": f"{n} ?", "question_id": f"q{n}"} for n in range(4)]
    answers = [{"answer": f"{n} !", "type": n, "question_id": f"q{n}"} for n in (3, 1, 0)]
    (tmp_path / "test_q.json").write_text(json.dumps(questions))
    (tmp_path / "test_a.json").write_text(json.dumps(answers))
    for asked_for in ("test_q.json", "test_a.json"):
        assert files_of(tmp_path / asked_for) == [tmp_path / "test_q.json"]
    found = list(read(tmp_path / "test_q.json"))
    assert [entry.record and entry.record["answer"] for entry in found] == ["0 !", "1 !", None, "3 !"]
    assert found[2].problem == "test_a.json has no answer to it"


def test_answers_without_ids_belong_to_the_questions_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "val_q.json").write_text('[{"question": "a"}, {"question": "b"}]')
    (tmp_path / "val_a.json").write_text('[{"answer": 1}, {"answer": 2}, []]')
    found = list(read(tmp_path / "val_q.json"))
    assert [entry.problem or entry.record["answer"] for entry in found] == ["it is not an object", 1, 2]
