"""Migrations: a warehouse is brought up to date step by step, each step whole or not at all."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from vlm_rlaif.warehouse import migrations, schema
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import RECORDS, Clip, Record
from vlm_rlaif.warehouse.store import Warehouse

VIEWS = (
    "cost", "judge_bias", "label_agreement", "learning_curves", "length_gap", "lineage", "open_failures",
    "preferences",
)  # fmt: skip


def half_a_step(connection: duckdb.DuckDBPyConnection) -> None:
    """A migration that breaks off."""
    connection.execute("CREATE TABLE half (x INTEGER)")
    raise RuntimeError("the power went out")


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.table)
def test_a_table_has_the_columns_of_its_record(warehouse: Warehouse, record: type[Record]) -> None:
    there = warehouse.rows(
        "SELECT column_name AS name, is_nullable = 'YES' AS optional FROM information_schema.columns"
        " WHERE table_name = ? ORDER BY ordinal_position",
        [record.table],
    )
    assert {row["name"]: row["optional"] for row in there} == {
        name: optional for name, (_, optional) in schema.columns(record).items()
    }


def test_every_view_answers_in_an_empty_warehouse(warehouse: Warehouse) -> None:
    there = warehouse.rows("SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY 1")
    assert tuple(row["view_name"] for row in there) == VIEWS
    assert [warehouse.value(f"SELECT count(*) FROM {view}") for view in VIEWS] == [0] * len(VIEWS)


def test_an_up_to_date_warehouse_keeps_its_rows(warehouse: Warehouse) -> None:
    clip = Clip(clip_id="c", video_id="v", start_s=0.0, end_s=1.0, method="m", run_id="r")
    warehouse.append([clip])
    with warehouse.visit() as connection:
        assert migrations.migrate(connection) == []
    assert Warehouse.create(warehouse.path).value("SELECT count(*) FROM clips") == 1


def test_views_follow_the_code(warehouse: Warehouse) -> None:
    """They hold no data, so an old warehouse gets the views of today."""
    warehouse.execute("CREATE OR REPLACE VIEW cost AS SELECT 'old' AS stage")
    assert Warehouse.create(warehouse.path).value("SELECT count(*) FROM cost") == 0


def test_a_warehouse_from_a_newer_version_is_refused(warehouse: Warehouse) -> None:
    warehouse.execute("INSERT INTO migrations VALUES ('m999_future', NULL)")
    for enter in (Warehouse.open, Warehouse.create):
        with pytest.raises(UserError, match="m999_future") as error:
            enter(warehouse.path)
        assert "pip install --upgrade vlm-rlaif" in str(error.value)


def test_a_step_that_fails_leaves_no_trace(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, half_a_step))
    with pytest.raises(RuntimeError, match="power"):
        Warehouse.create(warehouse.path)
    assert warehouse.value("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'half'") == 0
    steps = "SELECT name FROM migrations WHERE name NOT LIKE 'views %'"
    assert warehouse.rows(steps) == [{"name": "m001_initial"}]


def test_an_older_warehouse_is_opened_after_init(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    def m002_more(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute("CREATE TABLE more (x INTEGER)")

    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, m002_more))
    with pytest.raises(UserError, match="vlm-rlaif init"):
        Warehouse.open(warehouse.path)
    Warehouse.create(warehouse.path)
    assert Warehouse.open(warehouse.path).value("SELECT count(*) FROM more") == 0


def test_the_folders_above_a_new_warehouse_are_made(tmp_path: Path) -> None:
    Warehouse.create(tmp_path / "a" / "b" / "w.duckdb")
    assert Warehouse.open(tmp_path / "a" / "b" / "w.duckdb").value("SELECT count(*) FROM runs") == 0


def test_a_warehouse_with_the_views_of_another_version_is_brought_up_to_date_by_init(warehouse: Warehouse) -> None:
    warehouse.execute("UPDATE migrations SET name = 'views of old' WHERE name LIKE 'views %'")
    warehouse.execute("DROP VIEW learning_curves")
    with pytest.raises(UserError, match="vlm-rlaif init"):
        Warehouse.open(warehouse.path)
    Warehouse.create(warehouse.path)
    assert Warehouse.open(warehouse.path).value("SELECT count(*) FROM learning_curves") == 0
