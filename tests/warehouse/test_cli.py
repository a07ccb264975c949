"""The command: results on standard output, mistakes in plain words with the next step, and never a traceback."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import duckdb
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
    about = "The narrative of a video: its clips' captions in time order."
    assert found["contexts"] == {"name": "contexts", "kind": "table", "rows": 1, "about": about}
    about = "Which response does a judge prefer?"
    assert found["preferences"] == {"name": "preferences", "kind": "view", "rows": None, "about": about}
    assert "contexts" in command("tables", filled.path).out
    assert all(row["about"] and (row["kind"] == "table" or row["about"].endswith("?")) for row in found.values())


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
        '| x | a \\| b<br>"c", {d} \\[bold\\]e\\[/bold\\] |',
    ]


def test_sql_prints_a_table_with_words_as_they_are(command: Command, filled: Warehouse) -> None:
    result = command("sql", filled.path, "SELECT context_id, text, 1/3 AS third FROM contexts")
    assert result.code == 0
    for part in ("context_id", "a | b", "{d} [bold]e[/bold]", "0.3333"):
        assert part in result.out


def test_sql_shows_both_columns_of_one_name(command: Command, warehouse: Warehouse) -> None:
    result = command("sql", warehouse.path, "SELECT 1 AS n, 2 AS n", "--format", "csv")
    assert result.out.splitlines()[1] == "1,2"


STATEMENTS = {
    "INSERT": "INSERT INTO contexts VALUES ('y', 'v', 's', [], 't', 'r')",
    "DELETE": "DELETE FROM contexts RETURNING text",
    "UPDATE": "UPDATE contexts SET text = ''",
    "MERGE INTO": "MERGE INTO contexts USING contexts o ON true WHEN MATCHED THEN DELETE",
    "DROP": "DROP TABLE contexts",
    "ALTER": "ALTER TABLE contexts ADD COLUMN x INTEGER",
    "CREATE": "CREATE TEMP TABLE mine AS SELECT 1",
    "ATTACH": "ATTACH ':memory:' AS other",
    "DETACH": "DETACH w",
    "COPY": "COPY contexts TO 'out.csv'",
    "EXPORT": "EXPORT DATABASE 'out'",
    "PRAGMA": "PRAGMA enable_progress_bar",
    "LOAD": "INSTALL httpfs",
    "SET": "SET enable_external_access = true",
    "CALL": "CALL enable_logging()",
    "TRANSACTION": "BEGIN",
    "PREPARE": "PREPARE mine AS SELECT 1",
    "VACUUM": "VACUUM",
}
"""What is no query, by the word that says so."""


@pytest.mark.parametrize("kind", STATEMENTS)
def test_sql_only_asks(command: Command, filled: Warehouse, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(filled.folder)
    before = sorted(path.name for path in filled.folder.iterdir())
    result = command("sql", filled.path, STATEMENTS[kind])
    assert (result.code, result.out) == (2, "")
    assert f"Only queries are run here, and they only read: {kind} is none." in result.err
    assert sorted(path.name for path in filled.folder.iterdir()) == before
    assert filled.rows("SELECT context_id, text FROM contexts") == [{"context_id": "x", "text": TEXT}]


@pytest.mark.parametrize(
    "statement",
    [
        "LOAD '{folder}/mine.duckdb_extension'", "SET threads = 1", "RESET threads", "PRAGMA threads = 1",
        "USE memory", "SET VARIABLE x = 1", "CREATE SECRET (TYPE s3)", "CHECKPOINT",
        "IMPORT DATABASE 'out'", "SELECT 1; SELECT 2", "SELECT 1; DROP TABLE contexts", "", "-- nothing",
        "EXPLAIN ANALYZE COPY contexts TO '{folder}/out.csv'",
        "WITH x AS (DELETE FROM contexts RETURNING text) FROM x", "SELECT FROM WHERE",
    ],
)  # fmt: skip
def test_sql_does_nothing_else_either(command: Command, filled: Warehouse, tmp_path: Path, statement: str) -> None:
    result = command("sql", filled.path, statement.format(folder=tmp_path))
    assert (result.code, result.out) == (2, "") and "Traceback" not in result.err
    assert [path.name for path in tmp_path.iterdir()] == [filled.path.name]
    assert filled.value("SELECT count(*) FROM contexts") == 1


@pytest.mark.parametrize(
    "table",
    [
        "read_csv('{secret}')", "read_text('{secret}')", "read_blob('{secret}')", "'{secret}'", "glob('{folder}/*')",
        "sniff_csv('{secret}')", "read_json('{secret}')", "parquet_metadata('{secret}')", "read_text('file://{secret}')",
        "query('FROM read_text(''{secret}'')')", "duckdb_secrets()", "force_checkpoint()",
        "read_duckdb('{folder}/other.duckdb', table_name = 't')",
        "json_execute_serialized_sql(json_serialize_sql('FROM read_text(''{secret}'')'))",
    ],
)  # fmt: skip
def test_sql_sees_the_warehouse_and_no_other_file(
    command: Command, filled: Warehouse, tmp_path: Path, table: str
) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("word\nxyzzy\n")
    with duckdb.connect(str(tmp_path / "other.duckdb")) as other:
        other.execute("CREATE TABLE t AS SELECT 'xyzzy' AS word")
    result = command("sql", filled.path, "FROM " + table.format(secret=secret, folder=tmp_path))
    assert (result.code, result.out) == (2, "")
    assert "xyzzy" not in result.err and "Traceback" not in result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.duckdb", "secret.csv", filled.path.name]


def test_sql_does_not_see_the_variables_of_this_program(command: Command, warehouse: Warehouse) -> None:
    for name in ("connection", "found", "warehouse", "query", "self"):
        result = command("sql", warehouse.path, f"FROM {name}")
        assert result.code == 2 and f"Table with name {name} does not exist" in result.err


def test_every_kind_of_query_is_answered(command: Command, filled: Warehouse) -> None:
    for query in (
        "SELECT 1", "FROM contexts", "VALUES (1)", "TABLE contexts", "WITH x AS (SELECT 1) FROM x", "SHOW TABLES",
        "DESCRIBE contexts", "SUMMARIZE contexts", "EXPLAIN SELECT 1", "/* a word before */ SELECT 1 ;",
    ):  # fmt: skip
        assert command("sql", filled.path, query).code == 0, query


def test_a_query_comes_from_a_file_or_from_standard_input(
    command: Command, filled: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "query.sql").write_text("SELECT 41 + 1 AS n -- how many?\n;\n")
    assert command("sql", filled.path, f"@{tmp_path}/query.sql").out == "n\n42\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("SELECT 43 AS n"))
    assert command("sql", filled.path, "-").out == "n\n43\n"
    missing = command("sql", filled.path, f"@{tmp_path}/none.sql")
    assert missing.code == 2 and f"The query cannot be read from {tmp_path}/none.sql" in missing.err


def test_a_table_is_cut_and_says_so_and_a_program_reads_everything(command: Command, warehouse: Warehouse) -> None:
    query = "SELECT range AS n FROM range(2500)"
    for form, lines in (("table", 1001), ("markdown", 1002), ("csv", 2501)):
        result = command("sql", warehouse.path, query, "--format", form)
        assert len(result.out.splitlines()) == lines
        assert ("... 1,500 more rows" in result.err) == (form != "csv")
    assert len(json.loads(command("sql", warehouse.path, query, "--format", "json").out)) == 2500
    for form in ("table", "csv", "markdown"):
        result = command("sql", warehouse.path, query, "--format", form, "--limit", 2)
        assert result.out.split()[-1].strip("|") in ("1", "") and "... 2,498 more rows" in result.err
    assert len(json.loads(command("sql", warehouse.path, query, "--format", "json", "--limit", 3000).out)) == 2500


def test_a_result_without_an_end_needs_no_more_memory(warehouse: Warehouse, tmp_path: Path) -> None:
    """150,000 rows of 500 characters are 75 MB, and several times that as Python's objects."""
    script = """
import resource, sys
from vlm_rlaif.warehouse import cli
sys.argv = ["vlm-rlaif", "sql", sys.argv[1], sys.argv[2], "--format", "csv"]
try:
    cli.main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr)
"""
    query = "SELECT range AS n, repeat(range::VARCHAR, 500 // length(range::VARCHAR)) AS text FROM range({})"
    peaks_mb = []
    for rows in (1_000, 150_000):
        done = subprocess.run(
            [sys.executable, "-c", script, warehouse.path, query.format(rows)], capture_output=True, text=True
        )
        assert done.stdout.count("\n") == rows + 1, done.stderr
        peaks_mb.append(int(done.stderr.split()[-1]))
    assert peaks_mb[1] - peaks_mb[0] < 50, peaks_mb


def test_a_reader_who_has_seen_enough_ends_the_command_quietly(warehouse: Warehouse) -> None:
    script = Path(sys.executable).with_name("vlm-rlaif")
    for form in ("csv", "json"):
        command = f"'{script}' sql '{warehouse.path}' 'FROM range(30000)' --format {form} | head -n 2"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert done.stdout.count("\n") == 2 and "Traceback" not in done.stderr and "Broken" not in done.stderr


def _listen_to_ctrl_c() -> None:
    """A background job of a shell does not, and its children would not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_query_is_interrupted_by_ctrl_c(warehouse: Warehouse) -> None:
    script = Path(sys.executable).with_name("vlm-rlaif")
    endless = "SELECT count(*) FROM range(10000000000) a, range(1000) b WHERE hash(a.range, b.range) = 1"
    command = [script, "sql", warehouse.path, endless]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=_listen_to_ctrl_c) as process:
        time.sleep(4.0)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Interrupted." in said and "Traceback" not in said


def test_sql_waits_a_moment_for_a_job_that_writes(command: Command, filled: Warehouse, hold: Any) -> None:
    with hold(filled) as writer:
        timer = threading.Timer(1.0, writer.stdin.close)
        timer.start()
        result = command("sql", filled.path, "SELECT count(*) AS n FROM contexts", "--format", "csv")
        timer.join()
    assert result.out.split() == ["n", "1"]


HOSTILE = "\x1b]0;mine\x07\x1b[2J\u202ered\u2028\x9b31m\r| a |\n# <script>&lt; [x](y) `c` **b** _i_ a_b ![i](u)\\"


def test_text_of_a_model_cannot_reach_the_terminal(command: Command, warehouse: Warehouse) -> None:
    row = Context(context_id="x", video_id="v", spec_id="s", caption_ids=[HOSTILE], text=HOSTILE, run_id="r")
    warehouse.append([row])
    query = 'SELECT text, caption_ids, text AS "\x1b[1m" FROM contexts'
    for form in ("table", "markdown"):
        shown = command("sql", warehouse.path, query, "--format", form).out
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202e]", shown)
        assert "\\x1b]0;mine" in shown.replace("\\]", "]") and "\\u202ered" in shown


def test_markdown_of_hostile_text_is_one_cell_without_markup(command: Command, warehouse: Warehouse) -> None:
    warehouse.append([Context(context_id="x", video_id="v", spec_id="s", caption_ids=[], text=HOSTILE, run_id="r")])
    lines = command("sql", warehouse.path, "SELECT text FROM contexts", "--format", "markdown").out.splitlines()
    assert len(lines) == 3
    without_markup = r"\r\| a \|<br># &lt;script>&amp;lt; \[x\](y) \`c\` \*\*b\*\* \_i\_ a_b !\[i\](u)\\ |"
    assert lines[2].endswith(without_markup)


def test_csv_and_json_keep_every_character(command: Command, warehouse: Warehouse) -> None:
    warehouse.append([Context(context_id="x", video_id="v", spec_id="s", caption_ids=[], text=HOSTILE, run_id="r")])
    as_csv = command("sql", warehouse.path, "SELECT text, 1 AS n FROM contexts", "--format", "csv").out
    assert list(csv.DictReader(io.StringIO(as_csv, newline=""))) == [{"text": HOSTILE, "n": "1"}]
    as_json = command("sql", warehouse.path, "SELECT text FROM contexts", "--format", "json").out
    assert json.loads(as_json) == [{"text": HOSTILE}] and "\x1b" not in as_json


def test_values_that_python_has_no_word_for_are_shown_as_duckdb_writes_them(
    command: Command, warehouse: Warehouse
) -> None:
    for form in ("table", "csv", "json", "markdown"):
        result = command("sql", warehouse.path, "FROM test_all_types()", "--format", form)
        assert result.code == 0, result.err
    shown = command(
        "sql", warehouse.path, "SELECT 'infinity'::TIMESTAMP AS t, ['nan'::DOUBLE] AS l", "--format", "json"
    )
    assert json.loads(shown.out) == [{"t": "infinity", "l": [None]}]


def test_numbers_are_shown_as_what_they_are(command: Command, warehouse: Warehouse) -> None:
    query = "SELECT 123456.0::DOUBLE AS whole, 0.1234567::DOUBLE AS part, 'nan'::DOUBLE AS no, ':smile:' AS words"
    shown = command("sql", warehouse.path, query).out
    assert "123456 " in shown and "0.123457" in shown and ":smile:" in shown
    (row,) = json.loads(command("sql", warehouse.path, query, "--format", "json").out)
    assert row == {"whole": 123456.0, "part": 0.1234567, "no": None, "words": ":smile:"}


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
