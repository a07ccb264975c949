"""A video goes with everything that was made of it, and its words with it; nothing else goes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_rlaif.datagen.plan import model_spec, part
from vlm_rlaif.datagen.stages.ask import AskStage
from vlm_rlaif.warehouse.care import doctor, purge, remove
from vlm_rlaif.warehouse.care.relations import CONTENT, ORIGIN
from vlm_rlaif.warehouse.care.row_checks import check_rows
from vlm_rlaif.warehouse.config import Recipe
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.journal import Journal, only_one
from vlm_rlaif.warehouse.media import frame_cache
from vlm_rlaif.warehouse.records import RECORDS, Caption, Failure, Removal, primary_key
from vlm_rlaif.warehouse.store import Warehouse

Command = Any
Rows = dict[str, list[dict[str, Any]]]
NOT_MADE_OF_VIDEOS = ("runs", "specs", "removals", "datasets", "dataset_rows", "exports", "checkpoints", "steps")

# The console command, which is killed at its statement of this number.
KILLED_COMMAND = """
import os, signal, sys
from contextlib import contextmanager
from vlm_rlaif.warehouse.cli import main
from vlm_rlaif.warehouse.store import Warehouse

number, visit, said = int(sys.argv.pop(1)), Warehouse.visit, []

class Mortal:
    def __init__(self, connection):
        self.connection = connection

    def __getattr__(self, name):
        return getattr(self.connection, name)

    def execute(self, *arguments):
        said.append(arguments[0])
        if len(said) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.connection.execute(*arguments)

@contextmanager
def mortal_visit(warehouse, read_only=False, **settings):
    with visit(warehouse, read_only=read_only, **settings) as connection:
        yield connection if read_only else Mortal(connection)

Warehouse.visit = mortal_visit
main()
"""


def everything(warehouse: Warehouse) -> Rows:
    with warehouse.visit(read_only=True) as connection:
        return {r.table: connection.sql(f"FROM {r.table} ORDER BY ALL").to_arrow_table().to_pylist() for r in RECORDS}


def reached(rows: Rows, ids: set[str]) -> Rows:
    """The slow twin of `gather`: every row that holds one of the ids in any column makes its own id one of them."""
    found: Rows = {}
    grown = True
    while grown:
        grown = False
        for record in RECORDS:
            if record.table in NOT_MADE_OF_VIDEOS:
                continue
            hits = [row for row in rows[record.table] if ids & _texts(row.values())]
            grown |= len(hits) > len(found.get(record.table, []))
            found[record.table] = hits
            ids = ids | {str(row[primary_key(record)[0]]) for row in hits}
    return found


def _texts(values: Iterable[Any]) -> set[str]:
    flat = (part for value in values for part in (value if isinstance(value, list) else [value]))
    return {part for part in flat if isinstance(part, str)}


def video_ids(warehouse: Warehouse, where: str = "true") -> list[str]:
    return [row["video_id"] for row in warehouse.rows(f"SELECT video_id FROM videos WHERE {where} ORDER BY video_id")]


def a_video_with_labels(warehouse: Warehouse) -> str:
    query = "SELECT q.video_id FROM questions q JOIN pairs USING (question_id) ORDER BY ALL LIMIT 1"
    return str(warehouse.value(query))


# What goes and what stays


@given(data=st.data())
@settings(max_examples=4)
def test_what_reaches_the_video_goes_and_nothing_else(
    data: st.DataObject, full_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    warehouse = Warehouse(Path(shutil.copy(full_file, tmp_path_factory.mktemp("one") / "w.duckdb")))
    chosen = data.draw(st.lists(st.sampled_from(video_ids(warehouse)), min_size=1, max_size=5, unique=True))
    before = everything(warehouse)
    going = reached(before, set(chosen))
    plan, run_id = remove.remove(warehouse, chosen)
    after = everything(warehouse)
    assert plan.of_table() == {table: len(rows) for table, rows in going.items() if rows}
    for table, rows in before.items():
        kept = [row for row in rows if row not in going.get(table, [])]
        assert [row for row in after[table] if row["run_id"] != run_id] == kept
    assert not any(reached(after, set(chosen)).values())
    assert [finding for finding in check_rows(warehouse) if not finding.harmless] == []


def test_every_column_with_an_id_is_a_known_relation() -> None:
    known = {(reference.table, reference.column) for reference in (*CONTENT, *ORIGIN)}
    ids = {
        (record.table, c.name) for record in RECORDS for c in fields(record) if c.name.endswith(("_id", "_a", "_b"))
    }
    own = {(record.table, primary_key(record)[0]) for record in RECORDS}
    others = {
        ("labels", "p_a"), ("dataset_rows", "p_a"), ("probes", "p_a"),  # probabilities
        ("removals", "video_id"),  # a tombstone has no video
        ("dataset_rows", "pair_id"),  # a version keeps its ids
    }  # fmt: skip
    assert ids - own - others <= known and ("videos", "video_id") in own


def test_a_removal_leaves_the_hash_the_reason_and_a_run(full: Warehouse, command: Command) -> None:
    video_id = a_video_with_labels(full)
    uri = full.value("SELECT uri FROM videos WHERE video_id = ?", [video_id])
    result = command("remove", full.path, video_id, "--yes", "--reason", "its owner asked", "--json")
    assert result.code == 0
    said = json.loads(result.out)
    (tomb,) = full.rows("SELECT * FROM removals")
    assert tomb == {
        "video_id": video_id, "uri": uri, "reason": "its owner asked",
        "rows_removed": sum(rows[video_id] for rows in said["rows"].values()), "run_id": said["run_id"],
    }  # fmt: skip
    (run,) = full.rows("SELECT stage, status, rows_written FROM runs WHERE run_id = ?", [said["run_id"]])
    assert run == {"stage": "remove", "status": "done", "rows_written": 1}


def test_removing_again_writes_nothing(full: Warehouse, command: Command) -> None:
    video_id = a_video_with_labels(full)
    command("remove", full.path, video_id, "--yes")
    before = everything(full)
    result = command("remove", full.path, video_id, "--yes")
    assert (result.code, result.out.splitlines()[0]) == (0, "remove: nothing to do")
    assert everything(full) == before


def test_rows_that_came_back_go_again(full: Warehouse) -> None:
    """A job that was started on another machine may bring rows of the video."""
    video_id = a_video_with_labels(full)
    before = everything(full)
    remove.remove(full, [video_id])
    lost = reached(before, {video_id})
    full.append([record(**row) for record in RECORDS if record is not Removal for row in lost.get(record.table, [])])
    assert full.value("SELECT count(*) FROM videos WHERE video_id = ?", [video_id]) == 1
    (finding,) = [finding for finding in check_rows(full) if finding.check == "removed"]
    assert finding.examples == [video_id] and finding.mend == f"vlm-rlaif remove {full.path} VIDEO_ID"
    remove.remove(full, [video_id])
    assert not any(reached(everything(full), {video_id}).values())
    assert full.value("SELECT count(*) FROM removals") == 1


def test_failures_go_although_their_rows_never_came(full: Warehouse, recipe: Recipe) -> None:
    """A failure has the id that its row would have had: every row of the real stages becomes a failure."""
    ask = AskStage(part(recipe, "ask"), model_spec("ask", part(recipe, "ask"), {}), "")
    full.append([ask.spec])
    contexts = [row["context_id"] for row in full.rows("SELECT context_id FROM contexts")]
    ids = {"ask": [ask._question_id(context_id, 0) for context_id in contexts]}
    stages = {
        "caption": "captions", "respond": "responses", "label": "labels", "win": "scores WHERE metric LIKE 'win%'",
        "answer": "answers",
    }  # fmt: skip
    for stage, table in stages.items():
        key = primary_key(next(record for record in RECORDS if record.table == table.split()[0]))[0]
        ids[stage] = [row[key] for row in full.rows(f"SELECT {key} FROM {table}")]
    for table in ("captions", "labels", "scores", "failures"):
        full.execute(f"DELETE FROM {table}")
    full.append(
        [
            Failure(
                row_id=row_id, stage=stage, attempt=1, kind="unparsable", message="", reply="secret words", run_id="r"
            )
            for stage, row_ids in ids.items()
            for row_id in row_ids
        ]
    )
    plan, _ = remove.remove(full, video_ids(full))
    assert plan.of_table()["failures"] == sum(map(len, ids.values())) > 700
    assert full.value("SELECT count(*) FROM failures") == 0


# What still holds the video is named


def test_versions_exports_and_models_that_held_it_are_named(full: Warehouse, command: Command) -> None:
    held = full.value("SELECT q.video_id FROM dataset_rows JOIN pairs USING (pair_id) JOIN questions q"
                      " USING (question_id) ORDER BY ALL LIMIT 1")  # fmt: skip
    plan = remove.plan(full, [held])
    (version,) = plan.versions
    assert version.startswith("good (") and plan.exports == ["out/good.jsonl"]
    assert plan.checkpoints == ["models/ppo-1", "models/reward-1"], "a policy learns from its reward model"
    assert len(plan.maybe) == 3, "the trainers of old recorded no version"
    assert plan.places == [f"{full.folder / uri} (nothing is there)" for uri in _places(full, held)]
    out = command("remove", full.path, held, "--yes").out
    assert all(said in out for said in ("good (", "out/good.jsonl", "models/reward-1", "The files stay"))
    assert full.value("SELECT count(*) FROM dataset_rows") == 30


def _places(warehouse: Warehouse, video_id: str) -> Iterator[str]:
    rows = warehouse.rows("SELECT uri FROM video_files WHERE video_id = ? ORDER BY uri", [video_id])
    return (row["uri"] for row in rows)


def test_models_did_not_learn_from_a_video_of_the_test_split(full: Warehouse) -> None:
    for video_id in video_ids(full, "split = 'test'"):
        assert remove.plan(full, [video_id]).maybe == []


def test_cached_frames_go_too(full: Warehouse, command: Command) -> None:
    video_id, other = video_ids(full)[:2]
    folder = frame_cache.folder_of(full.path)
    folder.mkdir()
    for name in (
        f"{video_id}-{'0' * 20}.frames",
        f"{video_id}-{'1' * 20}.seen",
        f"{other}-{'0' * 20}.frames",
        "a.lock",
    ):
        (folder / name).write_bytes(b"pixels")
    copies = frame_cache.proxies_of(full.path)
    copies.mkdir()
    for name in (video_id, other):
        (copies / f"{name}.mp4").write_bytes(b"pixels")
    said = command("remove", full.path, video_id, "--yes").out
    assert "Files of cached frames and copies for browsers, deleted too: 3\n" in said
    assert [path.name for path in copies.iterdir()] == [f"{other}.mp4"]
    assert sorted(path.name for path in folder.iterdir()) == [f"{other}-{'0' * 20}.frames", "a.lock"]


# Asking and refusing


def test_a_dry_run_tells_and_changes_nothing(full: Warehouse, command: Command) -> None:
    video_id, before = a_video_with_labels(full), everything(full)
    result = command("remove", full.path, video_id, "--dry-run")
    assert result.code == 0 and "rows would go" in result.out
    assert json.loads(command("remove", full.path, video_id, "--dry-run", "--json").out)["rows"]["videos"]
    assert everything(full) == before and not full.journal_folder.exists()


@pytest.mark.parametrize(("answer", "videos"), [("n\n", 40), ("y\n", 39)])
def test_a_person_is_asked(
    full: Warehouse, command: Command, monkeypatch: pytest.MonkeyPatch, answer: str, videos: int
) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

        def readline(self, _: int = -1) -> str:
            return answer

    monkeypatch.setattr(sys, "stdin", Terminal())
    result = command("remove", full.path, a_video_with_labels(full))
    assert result.code == (130 if answer == "n\n" else 0)
    assert "rows would go" in result.err and len(video_ids(full)) == videos


def test_text_from_data_has_no_power_over_the_terminal(full: Warehouse, command: Command) -> None:
    video_id = a_video_with_labels(full)
    full.execute("UPDATE videos SET uri = ? WHERE video_id = ?", ["evil\x1b[2J\n.mp4", video_id])
    out = command("remove", full.path, video_id, "--yes").out
    assert "evil\\x1b[2J .mp4 (nothing is there)\n" in out and "\x1b" not in out


def test_ctrl_c_in_a_long_query_is_ctrl_c(full: Warehouse, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise RuntimeError("Query interrupted")  # what DuckDB makes of it

    monkeypatch.setattr(remove, "_take_out", interrupted)
    result = command("remove", full.path, a_video_with_labels(full), "--yes")
    assert result.code == 130 and "Interrupted" in result.err and len(video_ids(full)) == 40


def test_a_script_must_say_that_it_means_it(full: Warehouse, command: Command) -> None:
    video_id = a_video_with_labels(full)
    result = command("remove", full.path, video_id)
    assert result.code == 2 and len(video_ids(full)) == 40
    assert result.err.splitlines()[-1] == f"vlm-rlaif remove {full.path} {video_id} --yes"


def test_a_video_that_was_never_here_is_named(full: Warehouse, command: Command) -> None:
    result = command("remove", full.path, a_video_with_labels(full), "ffff", "--yes")
    assert result.code == 2 and "There is no video ffff in" in result.err and len(video_ids(full)) == 40
    assert command("remove", full.path).code == 2
    assert "There is no warehouse" in command("remove", full.folder / "none.duckdb", "ffff", "--yes").err


def test_no_video_goes_while_a_job_may_write_its_rows(full: Warehouse, command: Command) -> None:
    video_id = a_video_with_labels(full)
    with only_one(full, "caption"):
        result = command("remove", full.path, video_id, "--yes")
    assert result.code == 2 and "Another job is running caption" in result.err
    assert command("remove", full.path, video_id, "--yes").code == 0


def test_rows_that_a_killed_job_left_in_its_journal_go_too(full: Warehouse) -> None:
    video_id = a_video_with_labels(full)
    clip_id = full.value("SELECT clip_id FROM clips WHERE video_id = ? LIMIT 1", [video_id])
    dead = Journal(full, "dead")
    dead.append([Caption(caption_id="new", clip_id=clip_id, spec_id="s", text="words", run_id="dead")])
    dead.close()
    remove.remove(full, [video_id])
    assert full.value("SELECT count(*) FROM captions WHERE caption_id = 'new'") == 0
    assert list(full.journal_folder.glob("*.jsonl")) == []


# Undoing


def test_undo_forgets_the_removal_and_brings_no_rows_back(full: Warehouse, command: Command) -> None:
    video_id = a_video_with_labels(full)
    command("remove", full.path, video_id, "--yes")
    result = command("remove", full.path, "--undo", video_id)
    assert result.code == 0 and result.out == f"remove: may be added again: {video_id}\n"
    assert full.value("SELECT count(*) FROM removals") == 0 and len(video_ids(full)) == 39
    runs = full.value("SELECT count(*) FROM runs")
    assert "nothing was removed" in command("remove", full.path, "--undo", video_id).out
    assert full.value("SELECT count(*) FROM runs") == runs


# The bytes


def test_deleted_words_stay_in_the_file_until_it_is_purged(full: Warehouse, command: Command) -> None:
    video_id, words = a_video_with_labels(full), "a zebra reads Voynich aloud"
    clip_id = full.value("SELECT clip_id FROM clips WHERE video_id = ? LIMIT 1", [video_id])
    full.append([Caption(caption_id="c", clip_id=clip_id, spec_id="s", text=words, run_id="r")])
    full.path.chmod(0o640)
    command("remove", full.path, video_id, "--yes")
    assert words.encode() in full.path.read_bytes(), "then there is no need for `purge` any more"
    before, schema = everything(full), _schema(full)
    result = command("remove", full.path, "--purge")
    assert result.code == 0 and "written anew" in result.out
    assert words.encode() not in full.path.read_bytes()
    assert everything(full) == before and _schema(full) == schema and full.path.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in full.folder.iterdir()) == ["w.duckdb", "w.duckdb.jobs"]
    assert doctor.examine(full.path).storage.startswith("v1.5")


def _schema(warehouse: Warehouse) -> list[dict[str, Any]]:
    return [
        *warehouse.rows("SELECT sql FROM duckdb_tables() ORDER BY ALL"),
        *warehouse.rows("SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY ALL"),
    ]


def test_a_purge_needs_room_for_a_copy(full: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(full.folder)
    monkeypatch.setattr(purge.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match="no room for a second copy"):
        purge.purge(full)


def test_a_purge_follows_a_link_to_the_file(full: Warehouse) -> None:
    link = full.folder / "link.duckdb"
    link.symlink_to(full.path)
    purge.purge(Warehouse(link))
    assert link.is_symlink() and len(video_ids(full)) == 40


# Death


@pytest.mark.parametrize("number", [22, 34])
def test_a_removal_that_is_killed_has_not_begun(full: Warehouse, command: Command, number: int) -> None:
    video_id, before = a_video_with_labels(full), everything(full)
    arguments = [sys.executable, "-c", KILLED_COMMAND, str(number), "remove", str(full.path), video_id, "--yes"]
    killed = subprocess.run(arguments, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert everything(full) == before
    assert [finding for finding in check_rows(full) if not finding.harmless] == []
    assert command("remove", full.path, video_id, "--yes").code == 0
