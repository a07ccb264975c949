"""Long results are read in constant memory, while the warehouse is free for others."""

from __future__ import annotations

import subprocess
import sys

import duckdb

from vlm_rlaif.warehouse.store import Warehouse


def test_a_stream_has_the_rows_of_its_query_in_order_and_knows_how_many(warehouse: Warehouse) -> None:
    rows = warehouse.stream("SELECT i, 'row ' || i AS name FROM range(25_000) t(i) ORDER BY i DESC")
    assert len(rows) == 25_000
    read = list(rows)
    assert read[0] == {"i": 24_999, "name": "row 24999"} and read[-1] == {"i": 0, "name": "row 0"}
    assert [row["i"] for row in read] == list(range(24_999, -1, -1))
    assert list(rows) == read


def test_a_stream_may_give_every_row_an_id(warehouse: Warehouse) -> None:
    rows = warehouse.stream("SELECT i FROM range(3) t(i) ORDER BY i", row_id=lambda row: f"id-{row['i']}")
    assert [row["row_id"] for row in rows] == ["id-0", "id-1", "id-2"]


def test_a_stream_takes_parameters_by_place_and_by_name(warehouse: Warehouse) -> None:
    assert [row["x"] for row in warehouse.stream("SELECT ? AS x", [7])] == [7]
    assert [row["x"] for row in warehouse.stream("SELECT $a AS x", {"a": None})] == [None]


def test_an_empty_stream_is_false(warehouse: Warehouse) -> None:
    rows = warehouse.stream("SELECT 1 AS x WHERE false")
    assert not rows and list(rows) == []


def test_others_may_write_while_a_stream_is_read(warehouse: Warehouse) -> None:
    rows = iter(warehouse.stream("SELECT i FROM range(30_000) t(i)"))
    next(rows)
    with duckdb.connect(str(warehouse.path)) as connection:
        connection.execute("CREATE TABLE others (x INTEGER)")
    assert sum(1 for _ in rows) == 29_999


def test_a_stream_leaves_no_file_behind(warehouse: Warehouse) -> None:
    warehouse.journal_folder.mkdir()
    rows = warehouse.stream("SELECT 1 AS x")
    assert list(warehouse.journal_folder.iterdir()) == [] and list(rows) == [{"x": 1}]


FULL_DISK = """
import resource, sys
from pathlib import Path
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.store import Warehouse

warehouse = Warehouse(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    warehouse.stream("SELECT i, repeat('x', 1000) AS x FROM range(10_000) t(i)")
except UserError as error:
    print(error)
"""


def test_a_copy_for_which_there_is_no_room_is_told_in_words(warehouse: Warehouse) -> None:
    """A limit on the size of files stands for the full disk."""
    ended = subprocess.run([sys.executable, "-c", FULL_DISK, str(warehouse.path)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "cannot be copied" in ended.stdout and "Make room on the disk" in ended.stdout
