"""The command: results on standard output, mistakes in plain words with the next step, and never a traceback."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.warehouse.records import Context
from vlm_rlaif.warehouse.store import Warehouse

Command = Any
TEXT = 'a | b\n"c", {d} [bold]e[/bold]'


@pytest.fixture
def filled(warehouse: Warehouse) -> Warehouse:
    """A warehouse with one context, whose text is as awkward as texts are."""
    warehouse.append([Context(context_id="x", video_id="v", spec_id="s", caption_ids=["c"], text=TEXT, run_id="r")])
    return warehouse


def test_init_says_what_comes_next_and_may_be_repeated(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "new" / "w.duckdb"
    for _ in range(2):
        result = command("init", path)
        assert result.code == 0
        assert f"vlm-rlaif add {path}" in result.out


def test_tables_counts_rows(command: Command, filled: Warehouse) -> None:
    found = {row["name"]: row for row in json.loads(command("tables", filled.path, "--json").out)}
    assert found["contexts"] == {"name": "contexts", "kind": "table", "rows": 1}
    assert found["preferences"] == {"name": "preferences", "kind": "view", "rows": 0}
    assert "contexts" in command("tables", filled.path).out


def test_runs_of_a_new_warehouse_are_none(command: Command, warehouse: Warehouse) -> None:
    assert command("runs", warehouse.path).out == "no rows\n"
    assert json.loads(command("runs", warehouse.path, "--json").out) == []


def test_sql_prints_json_that_can_be_read_back(command: Command, filled: Warehouse) -> None:
    result = command(
        "sql", filled.path, "SELECT text, caption_ids, NULL AS n, 0.5 AS x FROM contexts", "--format", "json"
    )
    assert json.loads(result.out) == [{"text": TEXT, "caption_ids": ["c"], "n": None, "x": 0.5}]


def test_sql_prints_csv_that_can_be_read_back(command: Command, filled: Warehouse) -> None:
    result = command("sql", filled.path, "SELECT context_id, text FROM contexts", "--format", "csv")
    assert list(csv.DictReader(io.StringIO(result.out))) == [{"context_id": "x", "text": TEXT}]


def test_csv_of_no_rows_still_has_its_header(command: Command, warehouse: Warehouse) -> None:
    result = command("sql", warehouse.path, "SELECT context_id, text FROM contexts", "--format", "csv")
    assert result.out.splitlines() == ["context_id,text"]


def test_sql_prints_markdown_with_one_line_a_row(command: Command, filled: Warehouse) -> None:
    result = command("sql", filled.path, "SELECT context_id, text FROM contexts", "--format", "markdown")
    assert result.out.splitlines() == [
        "| context_id | text |",
        "| --- | --- |",
        '| x | a \\| b<br>"c", {d} [bold]e[/bold] |',
    ]


def test_sql_prints_a_table_with_words_as_they_are(command: Command, filled: Warehouse) -> None:
    result = command("sql", filled.path, "SELECT context_id, text, 1/3 AS third FROM contexts")
    assert result.code == 0
    for part in ("context_id", "a | b", "{d} [bold]e[/bold]", "0.3333"):
        assert part in result.out


def test_sql_shows_both_columns_of_one_name(command: Command, warehouse: Warehouse) -> None:
    result = command("sql", warehouse.path, "SELECT 1 AS n, 2 AS n", "--format", "csv")
    assert result.out.splitlines()[1] == "1,2"


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO contexts VALUES ('y', 'v', 's', [], 't', 'r')",
        "DELETE FROM contexts",
        "UPDATE contexts SET text = ''",
        "DROP TABLE contexts",
        "CREATE TABLE mine (x INTEGER)",
    ],
)
def test_sql_only_reads(command: Command, filled: Warehouse, statement: str) -> None:
    result = command("sql", filled.path, statement)
    assert result.code == 2
    assert "read-only" in result.err
    assert filled.rows("SELECT context_id, text FROM contexts") == [{"context_id": "x", "text": TEXT}]


def test_sql_sees_the_warehouse_and_no_other_file(command: Command, filled: Warehouse, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("word\nxyzzy\n")
    for statement in (
        f"COPY (SELECT 1) TO '{tmp_path}/out.csv'",
        f"FROM read_csv('{tmp_path}/secret.csv')",
        f"ATTACH '{tmp_path}/other.duckdb' AS other (READ_WRITE); CREATE TABLE other.t AS SELECT 1; SELECT 1",
        f"EXPORT DATABASE '{tmp_path}/out'",
        "SET enable_external_access = true",
        "INSTALL httpfs",
    ):
        result = command("sql", filled.path, statement)
        assert result.code == 2 and "xyzzy" not in result.out and "Traceback" not in result.err, statement
    assert {path.name for path in tmp_path.iterdir()} == {"secret.csv", filled.path.name}


def test_numbers_are_shown_as_what_they_are(command: Command, warehouse: Warehouse) -> None:
    query = "SELECT 123456.0::DOUBLE AS whole, 0.1234567::DOUBLE AS part, 'nan'::DOUBLE AS no, ':smile:' AS words"
    shown = command("sql", warehouse.path, query).out
    assert "123456 " in shown and "0.123457" in shown and ":smile:" in shown
    (row,) = json.loads(command("sql", warehouse.path, query, "--format", "json").out)
    assert row == {"whole": 123456.0, "part": 0.1234567, "no": None, "words": ":smile:"}


def test_a_time_that_python_does_not_know_is_said(command: Command, warehouse: Warehouse) -> None:
    result = command("sql", warehouse.path, "SELECT 'infinity'::TIMESTAMP AS t")
    assert result.code == 2 and "Traceback" not in result.err


def test_tables_of_ones_own_are_counted_whatever_their_name(command: Command, warehouse: Warehouse) -> None:
    warehouse.execute('CREATE TABLE "my ""own"" table" AS SELECT 1 AS x')
    found = {row["name"]: row["rows"] for row in json.loads(command("tables", warehouse.path, "--json").out)}
    assert found['my "own" table'] == 1


def test_a_warehouse_cannot_lie_below_a_file(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = command("init", tmp_path / "file" / "w.duckdb")
    assert result.code == 2 and "cannot be a folder" in result.err


def test_a_slip_in_sql_is_shown_with_the_command_that_helps(command: Command, warehouse: Warehouse) -> None:
    result = command("sql", warehouse.path, "SELECT * FROM captoins")
    assert result.code == 2
    assert "captoins" in result.err and "captions" in result.err
    assert f"vlm-rlaif tables {warehouse.path}" in result.err


@pytest.mark.parametrize("name", ["tables", "runs", "sql"])
def test_a_missing_warehouse_is_said_with_the_command_that_makes_it(
    command: Command, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "none.duckdb"
    result = command(name, path, *(["SELECT 1"] if name == "sql" else []))
    assert result.code == 2
    assert result.err == f"Error: There is no warehouse at {path}.\nvlm-rlaif init {path}\n"
    assert not path.exists()


def test_an_unknown_command_names_the_nearest(command: Command) -> None:
    result = command("tabels")
    assert result.code == 2
    assert "There is no command 'tabels'. Did you mean 'tables'?" in result.err
    assert "vlm-rlaif --help" in result.err


@pytest.mark.parametrize("arguments", [["sql"], ["sql", "w", "SELECT 1", "--fromat", "csv"], ["datagen", "captoin"]])
def test_a_wrong_argument_is_a_usage_error(command: Command, arguments: list[str]) -> None:
    result = command(*arguments)
    assert result.code == 2
    assert "Usage: " in result.err and "Traceback" not in result.err


def test_help_lists_the_commands_of_every_floor(command: Command) -> None:
    result = command("--help")
    assert result.code == 0
    for name in ("add", "datagen", "eval", "feedback", "init", "run", "runs", "sql", "tables", "train"):
        assert f"\n  {name} " in result.out


def test_the_console_script_ends_like_the_function(warehouse: Warehouse, tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("vlm-rlaif")
    good = subprocess.run([script, "sql", warehouse.path, "SELECT 41 + 1 AS n"], capture_output=True, text=True)
    assert (good.returncode, good.stderr) == (0, "")
    assert "42" in good.stdout
    bad = subprocess.run([script, "tables", tmp_path / "none.duckdb"], capture_output=True, text=True)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "Traceback" not in bad.stderr
