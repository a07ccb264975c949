"""Migrations: a warehouse is brought up to date step by step, each step whole or not at all."""

from __future__ import annotations

import gzip
from datetime import datetime
from pathlib import Path

import duckdb
import pytest

from vlm_rlaif.warehouse import migrations, schema
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import RECORDS, Clip, Record, primary_key
from vlm_rlaif.warehouse.store import Warehouse

VIEWS = (
    "answerability", "conflicts", "cost", "dataset_preferences", "gold", "human_preferences", "human_verdicts",
    "judge_bias",
    "judge_policies", "label_agreement", "learning_curves", "length_gap", "lineage", "negative_pairs", "negatives",
    "open_failures", "pending_work", "policy_lineage", "preferences", "probe_results", "rounds",
)  # fmt: skip
SQL_TYPES = {str: "VARCHAR", int: "BIGINT", float: "DOUBLE", datetime: "TIMESTAMP", list[str]: "VARCHAR[]"}
FIXTURES = Path(__file__).parents[1] / "fixtures"


def half_a_step(connection: duckdb.DuckDBPyConnection) -> None:
    """A migration that breaks off."""
    connection.execute("CREATE TABLE half (x INTEGER)")
    raise RuntimeError("the power went out")


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.table)
def test_a_table_has_the_columns_of_its_record(warehouse: Warehouse, record: type[Record]) -> None:
    there = warehouse.rows(
        "SELECT column_name AS name, data_type AS type, is_nullable AS optional FROM duckdb_columns()"
        " WHERE table_name = ? ORDER BY column_index",
        [record.table],
    )
    wanted = schema.columns(record).items()
    assert [(row["name"], row["type"], row["optional"]) for row in there] == [
        (name, SQL_TYPES[kind], optional) for name, (kind, optional) in wanted
    ]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.table)
def test_a_table_has_the_primary_key_of_its_record(warehouse: Warehouse, record: type[Record]) -> None:
    (key,) = warehouse.rows(
        "SELECT constraint_column_names AS names FROM duckdb_constraints()"
        " WHERE table_name = ? AND constraint_type = 'PRIMARY KEY'",
        [record.table],
    )
    assert tuple(key["names"]) == primary_key(record)


def test_a_warehouse_of_every_older_version_keeps_its_rows(tmp_path: Path) -> None:
    """The fixtures: a warehouse as every version wrote it, but for the newest."""
    older = [step.__name__ for step in migrations.MIGRATIONS[:-1]]
    assert sorted(path.name.split(".")[0] for path in FIXTURES.glob("m*.duckdb.gz")) == older
    for name in older:
        path = tmp_path / f"{name}.duckdb"
        path.write_bytes(gzip.decompress((FIXTURES / f"{name}.duckdb.gz").read_bytes()))
        with duckdb.connect(str(path), read_only=True) as old:
            tables = [table for (table,) in old.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
            columns = {table: ", ".join(c[0] for c in old.table(table).description) for table in tables}
            rows = {table: old.execute(f"SELECT * FROM {table} ORDER BY ALL").fetchall() for table in tables}
        with pytest.raises(UserError, match="vlm-rlaif init"):
            Warehouse.open(path)
        migrated = Warehouse.create(path)
        assert rows.pop("migrations")
        for table, before in rows.items():
            with migrated.visit(read_only=True) as new:
                assert new.execute(f"SELECT {columns[table]} FROM {table} ORDER BY ALL").fetchall() == before
        assert migrated.value("SELECT count(*) FROM preferences") > 0
        assert migrated.value("SELECT count(*) FROM video_files") == migrated.value("SELECT count(*) FROM videos")


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
    before = migrations.MIGRATIONS
    monkeypatch.setattr(migrations, "MIGRATIONS", (*before, half_a_step))
    with pytest.raises(RuntimeError, match="power"):
        Warehouse.create(warehouse.path)
    assert warehouse.value("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'half'") == 0
    steps = "SELECT name FROM migrations WHERE name NOT LIKE 'views %'"
    assert warehouse.rows(steps) == [{"name": step.__name__} for step in before]


def test_an_older_warehouse_is_opened_after_init(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    def m999_more(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute("CREATE TABLE more (x INTEGER)")

    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, m999_more))
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
