"""Warehouses that were filled on several machines are one again: by ids, whole or not at all, in any order."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_rlaif.warehouse.care import merge as merging
from vlm_rlaif.warehouse.care.merge import merge
from vlm_rlaif.warehouse.care.remove import remove
from vlm_rlaif.warehouse.care.row_checks import check_rows
from vlm_rlaif.warehouse.errors import UserError, WarehouseBusy
from vlm_rlaif.warehouse.journal import Journal, only_one
from vlm_rlaif.warehouse.records import RECORDS, Clip, primary_key
from vlm_rlaif.warehouse.runs import record_run
from vlm_rlaif.warehouse.store import Warehouse

Command = Any
Hold = Callable[[Warehouse], AbstractContextManager["subprocess.Popen[str]"]]
Rows = dict[str, list[dict[str, Any]]]

# The console command, which is killed at its statement of this number that is like the one given.
KILLED_COMMAND = """
import os, signal, sys
from contextlib import contextmanager
from vlm_rlaif.warehouse.cli import main
from vlm_rlaif.warehouse.store import Warehouse

like, visit = sys.argv.pop(1), Warehouse.visit

class Mortal:
    def __init__(self, connection):
        self.connection = connection

    def __getattr__(self, name):
        return getattr(self.connection, name)

    def execute(self, *arguments):
        if arguments[0].startswith(like):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.connection.execute(*arguments)

@contextmanager
def mortal_visit(warehouse, read_only=False, **settings):
    with visit(warehouse, read_only=read_only, **settings) as connection:
        yield Mortal(connection)

Warehouse.visit = mortal_visit
main()
"""


def everything(warehouse: Warehouse) -> Rows:
    """All rows but those that merges leave about themselves."""
    with warehouse.visit(read_only=True) as connection:
        found = {
            r.table: connection.sql(f"FROM {r.table} ORDER BY ALL").to_arrow_table().to_pylist() for r in RECORDS
        }
    return {**found, "runs": [run for run in found["runs"] if run["stage"] != "merge"]}


def runs(warehouse: Warehouse) -> int:
    return int(warehouse.value("SELECT count(*) FROM runs"))


def new_warehouse(empty: Path, folder: Path) -> Warehouse:
    folder.mkdir(parents=True, exist_ok=True)
    return Warehouse(Path(shutil.copy(empty, folder / "w.duckdb")))


def shard(full_file: Path, path: Path, number: int, of: int, seed: int) -> Warehouse:
    """A part of the rows, drawn by a hash; about a third of them are in the next shard as well."""
    made = Warehouse(Path(shutil.copy(full_file, path)))
    with made.visit() as connection:
        for record in RECORDS:
            drawn = f"hash({', '.join(primary_key(record))}, {seed})"
            connection.execute(
                f"DELETE FROM {record.table} WHERE {drawn} % {of} <> {number}"
                f" AND NOT ({drawn} % {of} = {(number + 1) % of} AND {drawn} // 1000 % 3 = 0)"
            )
    return made


@pytest.fixture
def other(full_file: Path, tmp_path: Path) -> Warehouse:
    """A full warehouse in a folder of its own."""
    (tmp_path / "it's another").mkdir()
    return Warehouse(Path(shutil.copy(full_file, tmp_path / "it's another" / "o.duckdb")))


# The union


@given(seed=st.integers(0, 2**31), of=st.integers(2, 3), order=st.randoms(use_true_random=False))
@settings(max_examples=3)
def test_the_shards_of_a_warehouse_give_it_back_row_for_row_in_any_order(
    seed: int, of: int, order: Any, empty: Path, full_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    whole = everything(Warehouse(full_file))
    shards = [shard(full_file, folder / f"{n}.duckdb", n, of, seed) for n in range(of)]
    assert sum(len(rows) for part in shards for rows in everything(part).values()) > sum(map(len, whole.values()))
    order.shuffle(shards)
    united = new_warehouse(empty, folder)
    found = merge(united, [part.path for part in shards])
    assert everything(united) == whole and all(one.differing == {} for one in found)


def test_merging_again_writes_nothing_not_even_a_run(
    warehouse: Warehouse, other: Warehouse, command: Command
) -> None:
    first = command("merge", warehouse.path, other.path)
    assert first.code == 0 and first.out.startswith(f"merge: {other.path}: ") and "rows new (runs 19, " in first.out
    (run,) = warehouse.rows("SELECT status, rows_written, ended_at FROM runs WHERE stage = 'merge'")
    there = sum(map(len, everything(warehouse).values()))
    assert (run["status"], run["rows_written"]) == ("done", there) and run["ended_at"] is not None
    written = warehouse.path.read_bytes()
    again = command("merge", warehouse.path, other.path)
    assert again.code == 0 and again.out.startswith(f"merge: {other.path}: nothing new\n")
    assert warehouse.path.read_bytes() == written


def test_rows_keep_the_runs_that_made_them(warehouse: Warehouse, other: Warehouse) -> None:
    merge(warehouse, [other.path])
    assert [finding for finding in check_rows(warehouse) if finding.check == "orphans"] == []


def test_a_dry_run_counts_and_changes_nothing(warehouse: Warehouse, other: Warehouse, command: Command) -> None:
    before = warehouse.path.read_bytes()
    result = command("merge", warehouse.path, other.path, "--dry-run", "--json")
    (said,) = json.loads(result.out)
    assert result.code == 0 and said["run_id"] is None and said["new"]["labels"] == 400
    assert warehouse.path.read_bytes() == before and everything(warehouse)["labels"] == []


# Rows that differ


def test_rows_that_differ_under_one_id_are_listed_and_the_first_stands(
    full: Warehouse, other: Warehouse, command: Command
) -> None:
    other.execute(
        "UPDATE labels SET choice = 'tie', reply = 'C' WHERE label_id IN (SELECT min(label_id) FROM labels)"
    )
    other.execute("UPDATE captions SET text = 'other words', run_id = 'other'")
    before = everything(full)
    result = command("merge", full.path, other.path)
    assert result.code == 3 and "(captions 96, labels 1)" in result.out
    assert "choice, reply" not in result.out, "the first 20 are shown, and they are captions"
    assert result.out.count("\ncaptions  ") == 20
    assert f"and 77 more: vlm-rlaif merge {full.path} {other.path} --json" in result.out
    (said,) = json.loads(command("merge", full.path, other.path, "--json").out)
    assert len(said["differences"]) == 97
    label_id = full.value("SELECT min(label_id) FROM labels")
    expected = {"table": "labels", "id": label_id, "columns": ["choice", "reply"]}
    assert said["differences"][-1] == expected or expected in said["differences"]
    after = everything(full)
    assert {t: r for t, r in after.items() if t != "video_files"} == {
        t: r for t, r in before.items() if t != "video_files"
    }


def test_runs_places_times_and_names_may_differ(full: Warehouse, other: Warehouse) -> None:
    other.execute("UPDATE runs SET ended_at = NULL, status = 'running', rows_written = 7")
    other.execute("UPDATE labels SET run_id = 'late'")
    other.execute("UPDATE specs SET model = '/elsewhere/' || model")
    other.execute("UPDATE videos SET uri = '/elsewhere/' || uri, source = 'elsewhere'")
    (found,) = merge(full, [other.path])
    assert found.differing == {}


def test_missing_and_present_differ(full: Warehouse, other: Warehouse) -> None:
    other.execute("UPDATE questions SET reference = NULL, kind = NULL WHERE question_id IN"
                  " (SELECT min(question_id) FROM questions)")  # fmt: skip
    (found,) = merge(full, [other.path])
    (difference,) = found.differences
    assert (difference.table, difference.columns) == ("questions", ["reference", "kind"])


# Places


def test_a_relative_place_is_found_from_the_other_folder(warehouse: Warehouse, other: Warehouse) -> None:
    """The other lies below: its places stay relative."""
    merge(warehouse, [other.path])
    for query in ("SELECT uri FROM videos", "SELECT uri FROM video_files", "SELECT path FROM checkpoints",
                  "SELECT path FROM exports"):  # fmt: skip
        places = [next(iter(row.values())) for row in warehouse.rows(query)]
        assert places and all(place.startswith("it's another/") for place in places)


def test_a_place_that_is_not_below_becomes_absolute_and_comes_back(
    empty: Path, other: Warehouse, tmp_path: Path, command: Command
) -> None:
    far = new_warehouse(empty, tmp_path / "far")
    result = command("merge", far.path, other.path)
    uris = [row["uri"] for row in far.rows("SELECT uri FROM videos")]
    assert uris and all(uri.startswith(f"{other.folder}/videos/") for uri in uris)
    assert "Checkpoints whose folders are not below this warehouse" in result.out
    assert f"  {other.folder}/models/reward-1\n" in result.out
    back = new_warehouse(empty, other.folder / "new")
    back.path.rename(other.folder / "back.duckdb")
    back = Warehouse(other.folder / "back.duckdb")
    merge(back, [far.path])
    assert everything(back) == everything(other)


def test_a_warehouse_that_was_copied_without_its_videos_finds_them_here(
    warehouse: Warehouse, other: Warehouse
) -> None:
    uris = [row["uri"] for row in other.rows("SELECT uri FROM videos ORDER BY uri")]
    for folder, names in ((warehouse.folder, uris[:2]), (other.folder, uris[1:3])):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"video")
    merge(warehouse, [other.path])
    here = {row["uri"] for row in warehouse.rows("SELECT uri FROM videos")}
    assert here == {uris[0], *(f"it's another/{uri}" for uri in uris[1:])}
    assert merge(warehouse, [other.path])[0].changes == 0


def test_a_video_is_read_where_its_file_is(full: Warehouse, other: Warehouse) -> None:
    """Neither, the other's only, both."""
    ids = [row["video_id"] for row in full.rows("SELECT video_id FROM videos ORDER BY video_id LIMIT 3")]
    uris = {row["video_id"]: row["uri"] for row in full.rows("SELECT video_id, uri FROM videos")}
    for folder, known in ((other.folder, ids[1:]), (full.folder, ids[2:])):
        for video_id in known:
            (folder / uris[video_id]).parent.mkdir(parents=True, exist_ok=True)
            (folder / uris[video_id]).write_bytes(b"video")
    (other.folder / "models" / "ppo-1").mkdir(parents=True)
    (found,) = merge(full, [other.path])
    after = {row["video_id"]: row["uri"] for row in full.rows("SELECT video_id, uri FROM videos")}
    changed = {video_id: uri for video_id, uri in after.items() if uri != uris[video_id]}
    assert changed == {ids[1]: f"it's another/{uris[ids[1]]}"} and found.moved == 2
    assert full.value("SELECT path FROM checkpoints WHERE checkpoint_id = 'policy'") == "it's another/models/ppo-1"
    assert full.value("SELECT count(*) FROM video_files") == 80, "both places of every video are known"
    assert merge(full, [other.path])[0].changes == 0


def test_a_video_that_was_read_there_is_readable_here(full: Warehouse, other: Warehouse) -> None:
    full.execute("UPDATE videos SET status = 'decoding took longer than it may', width = NULL, duration_s = NULL")
    (found,) = merge(full, [other.path])
    assert found.readable == 40 and found.differing == {}
    columns = "SELECT video_id, status, width, duration_s, split FROM videos ORDER BY 1"
    assert full.rows(columns) == other.rows(columns)
    other.execute("UPDATE videos SET status = 'no', width = NULL")
    (found,) = merge(full, [other.path])
    assert (found.changes, found.differing) == (0, {})


def test_two_places_there_may_be_one_place_here(warehouse: Warehouse, other: Warehouse) -> None:
    other.execute("INSERT INTO video_files SELECT video_id, ? || uri, 'r' FROM video_files", [f"{other.folder}/"])
    (found,) = merge(warehouse, [other.path])
    assert found.new["video_files"] == warehouse.value("SELECT count(*) FROM video_files") == 40
    assert merge(warehouse, [other.path])[0].changes == 0


# Removals


def test_what_was_removed_here_does_not_come_back(full: Warehouse, other: Warehouse, command: Command) -> None:
    video_id = full.value("SELECT q.video_id FROM questions q JOIN pairs USING (question_id) ORDER BY ALL LIMIT 1")
    plan, _ = remove(full, [video_id])
    before = everything(full)
    result = command("merge", full.path, other.path)
    assert f"Left out, of videos that were removed here: {plan.total} rows" in result.out
    after = everything(full)
    del before["video_files"], after["video_files"]
    assert after == before


def test_what_was_removed_there_is_named_with_the_command(
    full: Warehouse, other: Warehouse, command: Command
) -> None:
    video_id = full.value("SELECT min(video_id) FROM videos")
    remove(other, [video_id])
    result = command("merge", full.path, other.path)
    assert result.code == 0 and f"\n  vlm-rlaif remove {full.path} {video_id}\n" in result.out
    assert full.value("SELECT count(*) FROM videos") == 40 and full.rows("SELECT * FROM removals") == []


# Refusals


def test_a_warehouse_is_not_merged_with_itself(full: Warehouse, command: Command) -> None:
    link = full.folder / "link.duckdb"
    link.symlink_to(full.path)
    for same in (full.path, link):
        result = command("merge", full.path, same)
        assert result.code == 2 and "itself" in result.err


def test_files_that_are_no_warehouse_are_refused_before_anything_is_written(
    warehouse: Warehouse, other: Warehouse, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("hello\n" * 1000)
    (tmp_path / "nothing").touch()
    (tmp_path / "cut").write_bytes(other.path.read_bytes()[:5000])
    with duckdb.connect(tmp_path / "plain") as connection:
        connection.execute("CREATE TABLE mine (x INT)")
    for name in ("text", "nothing", "cut", "plain", "missing"):
        result = command("merge", warehouse.path, other.path, tmp_path / name)
        assert result.code == 2 and str(tmp_path / name) in result.err, name
    assert everything(warehouse)["videos"] == [] and command("merge", warehouse.path).code == 2


def test_older_and_newer_warehouses_are_refused_with_what_to_do(
    warehouse: Warehouse, other: Warehouse, command: Command
) -> None:
    other.execute("DELETE FROM migrations WHERE name = 'm002_versions'")
    result = command("merge", warehouse.path, other.path)
    assert result.code == 2 and result.err.splitlines()[-1] == f"vlm-rlaif init {other.path}"
    other.execute("INSERT INTO migrations VALUES ('m002_versions', now()::TIMESTAMP), ('m999_x', now()::TIMESTAMP)")
    result = command("merge", warehouse.path, other.path)
    assert result.code == 2 and str(other.path) in result.err and "newer" in result.err


def test_a_warehouse_that_a_job_writes_to_is_refused(
    warehouse: Warehouse, other: Warehouse, command: Command
) -> None:
    with record_run(other, "caption", {}, "none") as run:
        result = command("merge", warehouse.path, other.path)
        assert result.code == 2 and f"A job is still writing to {other.path} (run {run.run_id})" in result.err
    assert command("merge", warehouse.path, other.path).code == 0


def test_rows_in_the_journal_of_a_dead_job_come_along(
    warehouse: Warehouse, other: Warehouse, command: Command
) -> None:
    with closing(Journal(other, "dead")) as dead:
        dead.append([Clip(clip_id="new", video_id="v", start_s=0.0, end_s=1.0, method="parts:1", run_id="dead")])
    assert "not in it yet" in command("merge", warehouse.path, other.path, "--dry-run").out
    assert "were merged into it first" in command("merge", warehouse.path, other.path).out
    assert warehouse.value("SELECT count(*) FROM clips WHERE clip_id = 'new'") == 1


def test_one_merge_at_a_time(warehouse: Warehouse, other: Warehouse, command: Command) -> None:
    with only_one(warehouse, "merge"):
        result = command("merge", warehouse.path, other.path)
    assert result.code == 2 and "Another job is running merge" in result.err


def test_a_warehouse_in_use_is_waited_for(
    warehouse: Warehouse, other: Warehouse, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "check", lambda *_: None)
    with hold(other), pytest.raises(WarehouseBusy, match="cannot be opened"):
        merge(warehouse, [other.path])
    assert merge(warehouse, [other.path])[0].changes > 0


def test_a_damaged_file_is_named_and_nothing_is_taken_from_it(warehouse: Warehouse, other: Warehouse) -> None:
    whole = other.path.read_bytes()
    for first in (40_000, 12_288 + 5 * 262_144):  # what is read first, and what is read in the middle
        data = bytearray(whole)
        for start in range(first, len(data), 262_144):
            data[start : start + 4000] = bytes(4000)
        other.path.write_bytes(data)
        with pytest.raises(UserError, match="vlm-rlaif doctor"):
            merge(warehouse, [other.path])
        assert not any(everything(warehouse).values())


# Death


@pytest.mark.parametrize("statement", ["INSERT INTO questions", "COMMIT"])
def test_a_merge_that_is_killed_has_not_begun(
    warehouse: Warehouse, other: Warehouse, command: Command, statement: str
) -> None:
    arguments = [sys.executable, "-c", KILLED_COMMAND, statement, "merge", str(warehouse.path), str(other.path)]
    killed = subprocess.run(arguments, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not any(everything(warehouse).values()) and runs(warehouse) == 0
    assert command("merge", warehouse.path, other.path).code == 0
    assert warehouse.value("SELECT count(*) FROM labels") == 400
