"""The store: rows are written once, ids come from requests, visits are short and wait for others."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_rlaif.warehouse import schema
from vlm_rlaif.warehouse.errors import UserError, WarehouseBusy
from vlm_rlaif.warehouse.records import Clip, Context, Failure, Pair, Run, Spec, row_id
from vlm_rlaif.warehouse.store import Warehouse

SPEC = {
    "stage": "caption", "model": "m", "revision": "r", "adapter": "", "prompt": "p_v1", "prompt_hash": "h",
    "frames": {"count": 2}, "sampling": {"temperature": 0.0}, "upstream": {"clip": "parts:2"},
}  # fmt: skip
texts = st.lists(st.text(max_size=5), max_size=4)


def clip(number: int, run_id: str = "run") -> Clip:
    return Clip(clip_id=f"c{number}", video_id="v", start_s=0.0, end_s=number + 1.0, method="m", run_id=run_id)


def failure(attempt: int) -> Failure:
    return Failure(row_id="x", stage="s", attempt=attempt, kind="empty", message="", reply=None, run_id="r")


def spec_id(**changes: object) -> str:
    return Spec.make(**{**SPEC, **changes}).spec_id  # type: ignore[arg-type]


def test_a_row_that_is_written_again_counts_as_nothing(warehouse: Warehouse) -> None:
    assert warehouse.append([clip(1), clip(2), clip(3)]) == 3
    assert warehouse.append([clip(1), clip(2), clip(3)]) == 0
    assert warehouse.append([clip(3), clip(4)]) == 1
    assert warehouse.append([]) == 0
    assert warehouse.value("SELECT count(*) FROM clips") == 4


def test_a_row_that_comes_twice_in_one_batch_is_written_once(warehouse: Warehouse) -> None:
    assert warehouse.append([clip(1), clip(1), clip(2)]) == 2


def test_the_first_row_of_an_id_stands(warehouse: Warehouse) -> None:
    warehouse.append([clip(1, run_id="first")])
    warehouse.append([clip(1, run_id="second")])
    assert warehouse.value("SELECT run_id FROM clips") == "first"


def test_a_failure_is_known_by_its_row_and_its_attempt(warehouse: Warehouse) -> None:
    assert warehouse.append([failure(1), failure(2), failure(2)]) == 2


def test_rows_of_several_tables_are_written_together_or_not_at_all(warehouse: Warehouse) -> None:
    upside_down = Pair(pair_id="p", question_id="q", response_a="b", response_b="a", strategy="s", run_id="r")
    with pytest.raises(duckdb.ConstraintException):
        warehouse.append([clip(1), upside_down])
    assert warehouse.value("SELECT count(*) FROM clips") == 0


def test_times_lists_and_missing_values_come_back_as_they_went_in(warehouse: Warehouse) -> None:
    started = datetime(2026, 11, 24, 13, 15, 2, 123456)
    context = Context(
        context_id="x", video_id="v", spec_id="s", caption_ids=["b", "a"], text="{'\"\n|} 🎥", run_id="r"
    )
    run = Run(run_id="r", stage="s", config="{}", code_version="0", engine="e", host="h", started_at=started)
    warehouse.append([context, run])
    assert warehouse.rows("SELECT * FROM contexts") == [dataclasses.asdict(context)]
    assert warehouse.rows("SELECT * FROM runs") == [dataclasses.asdict(run)]


@given(texts, texts)
def test_different_requests_have_different_ids(one: list[str], other: list[str]) -> None:
    assert (row_id(*one) == row_id(*other)) == (one == other)


def test_a_specs_id_hangs_on_everything_that_was_asked_for() -> None:
    changes = {
        "stage": "respond", "revision": "r2", "adapter": "a", "prompt_hash": "h2", "frames": {"count": 3},
        "sampling": {"temperature": 1.0}, "upstream": {"clip": "parts:3"},
    }  # fmt: skip
    assert len({spec_id(), *(spec_id(**{name: value}) for name, value in changes.items())}) == len(changes) + 1


def test_a_specs_id_does_not_hang_on_the_run_or_on_names() -> None:
    assert (
        spec_id() == spec_id(run_id="another") == spec_id(prompt="copy_of_p_v1") == spec_id(model="moved/elsewhere")
    )


def test_a_model_without_a_revision_is_known_by_its_name() -> None:
    assert spec_id(model="m1", revision="") != spec_id(model="m2", revision="")


def test_a_query_gives_a_polars_frame(warehouse: Warehouse) -> None:
    warehouse.append([clip(1), clip(2)])
    found = warehouse.query("SELECT clip_id, end_s FROM clips WHERE end_s > ? ORDER BY 1", [2.5])
    assert found.equals(pl.DataFrame({"clip_id": ["c2"], "end_s": [3.0]}))


def test_two_columns_of_one_name_both_come_back(warehouse: Warehouse) -> None:
    warehouse.append([clip(1)])
    (row,) = warehouse.rows("SELECT a.clip_id, b.clip_id, b.clip_id AS clip_id_1 FROM clips a, clips b")
    assert len(row) == 3 and set(row.values()) == {"c1"}


def test_a_statement_without_a_result_is_refused(warehouse: Warehouse) -> None:
    with pytest.raises(UserError, match="Only queries"):
        warehouse.rows("-- nothing")


def test_a_missing_warehouse_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vlm-rlaif init") as error:
        Warehouse.open(tmp_path / "none.duckdb")
    assert "none.duckdb" in str(error.value)


def test_a_file_of_something_else_is_not_a_warehouse(tmp_path: Path) -> None:
    path = tmp_path / "notes.duckdb"
    path.write_text("these are my notes\n" * 1000)
    with pytest.raises(UserError, match=r"notes\.duckdb cannot be opened"):
        Warehouse.open(path).rows("SELECT 1")


def test_somebody_elses_duckdb_file_is_not_a_warehouse(tmp_path: Path) -> None:
    path = tmp_path / "theirs.duckdb"
    duckdb.connect(str(path)).close()
    with pytest.raises(UserError, match=r"vlm-rlaif init .*theirs\.duckdb"):
        Warehouse.open(path)


def test_a_busy_warehouse_names_the_process_that_holds_it(warehouse: Warehouse, hold: Any) -> None:
    with hold(warehouse) as holder, pytest.raises(WarehouseBusy) as error:
        Warehouse(warehouse.path, patience_s=0.1).append([clip(1)])
    assert f"(pid {holder.pid})" in str(error.value)
    assert re.search("Nothing was lost", str(error.value))


def test_a_visit_waits_until_the_other_process_has_left(warehouse: Warehouse, hold: Any) -> None:
    with hold(warehouse) as holder:
        threading.Timer(0.2, holder.stdin.close).start()
        assert Warehouse(warehouse.path, patience_s=30.0).append([clip(1)]) == 1


def test_readers_do_not_disturb_each_other(warehouse: Warehouse) -> None:
    with warehouse.visit(read_only=True), warehouse.visit(read_only=True):
        assert warehouse.value("SELECT 1") == 1


def test_threads_take_turns(warehouse: Warehouse) -> None:
    threads = [threading.Thread(target=warehouse.append, args=([clip(n), clip(n + 1)],)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warehouse.value("SELECT count(*) FROM clips") == 9


def test_a_video_inside_the_folder_is_found_after_the_folder_moves(warehouse: Warehouse, tmp_path: Path) -> None:
    assert warehouse.video_path("videos/a.mp4") == tmp_path / "videos/a.mp4"
    assert warehouse.video_path("/elsewhere/a.mp4") == Path("/elsewhere/a.mp4")


def test_rows_may_come_as_an_arrow_table_with_its_columns_in_any_order(warehouse: Warehouse) -> None:
    clips = [clip(1), clip(2)]
    table = schema.to_arrow(clips)
    assert warehouse.append_table("clips", table.select(table.column_names[::-1])) == 2
    assert warehouse.append(clips) == 0
    assert warehouse.append_table("clips", schema.to_arrow([clip(2), clip(3)])) == 1


def test_arrow_rows_without_a_column_that_must_be_there_are_refused_whole(warehouse: Warehouse) -> None:
    with pytest.raises(duckdb.ConstraintException):
        warehouse.append_table("clips", schema.to_arrow([clip(1)]).drop_columns(["method"]))
    assert warehouse.value("SELECT count(*) FROM clips") == 0


def test_unknown_rows_are_those_whose_keys_do_not_stand(warehouse: Warehouse) -> None:
    warehouse.append([clip(1), failure(1)])
    asked = [clip(1), clip(2), failure(1), failure(2)]
    assert warehouse.unknown(asked) == [asked[1], asked[3]]
    assert warehouse.unknown([]) == []


TOO_BIG = """
import resource, sys
from pathlib import Path
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import Caption
from vlm_rlaif.warehouse.store import Warehouse

warehouse = Warehouse(Path(sys.argv[1]))
rows = [Caption(caption_id=str(n), clip_id="c", spec_id="s", text=str(n) * 500, run_id="r") for n in range(20_000)]
warehouse.append(rows[:10])
resource.setrlimit(resource.RLIMIT_FSIZE, (warehouse.path.stat().st_size + 100_000, resource.RLIM_INFINITY))
try:
    warehouse.append(rows)
except UserError as error:
    print(error)
"""


def test_a_disk_that_is_full_while_rows_are_written_is_told_in_words_and_nothing_is_half_written(
    warehouse: Warehouse,
) -> None:
    """A limit on the size of files stands for the full disk."""
    ended = subprocess.run([sys.executable, "-c", TOO_BIG, str(warehouse.path)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "could not be written" in ended.stdout and "Make room on the disk" in ended.stdout
    assert warehouse.value("SELECT count(*) FROM captions") == 10


def test_a_damaged_file_is_told_in_words(warehouse: Warehouse) -> None:
    damaged = bytearray(warehouse.path.read_bytes())
    damaged[8:4096] = bytes(len(damaged[8:4096]))
    warehouse.path.write_bytes(damaged)
    with pytest.raises(UserError, match="cannot be opened"):
        Warehouse.open(warehouse.path)
