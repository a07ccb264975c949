"""Damage is found, named with what mends it, and mended where that is safe; a healthy warehouse is called so."""

from __future__ import annotations

import ast
import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.datagen.stages.clip import clip
from vlm_rlaif.warehouse.care import file_checks
from vlm_rlaif.warehouse.care.doctor import examine
from vlm_rlaif.warehouse.care.file_checks import LEFTOVER_AGE_S, WHOLE
from vlm_rlaif.warehouse.care.keys import ROWS
from vlm_rlaif.warehouse.care.relations import CONTENT, KEY, ORIGIN
from vlm_rlaif.warehouse.care.remove import remove
from vlm_rlaif.warehouse.care.row_checks import Finding, check_ids, check_rows, orphans
from vlm_rlaif.warehouse.config import Clips
from vlm_rlaif.warehouse.intake.add import add_videos
from vlm_rlaif.warehouse.journal import Journal
from vlm_rlaif.warehouse.records import RECORDS, Clip, VideoFile, primary_key
from vlm_rlaif.warehouse.runs import record_run
from vlm_rlaif.warehouse.store import Warehouse

Command = Any
ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "m001_initial.duckdb.gz"


@pytest.fixture
def healthy(warehouse: Warehouse, shapes_folder: Path, tmp_path: Path) -> Warehouse:
    """A warehouse beside its three videos."""
    add_videos(warehouse, Path(shutil.copytree(shapes_folder, tmp_path / "mine")))
    clip(warehouse, Clips(parts=2))
    return warehouse


WHERE: dict[str, Callable[[Warehouse], Iterable[Finding]]] = {
    "jobs": file_checks.check_jobs,
    "checkpoints": file_checks.check_outputs,
    "leftovers": file_checks.check_leftovers,
    "disk": file_checks.check_leftovers,
    "videos": lambda warehouse: file_checks.check_videos(warehouse, hashes=False),
    "hashes": lambda warehouse: file_checks.check_videos(warehouse, hashes=True),
    "views": lambda warehouse: examine(warehouse.path).findings,
}


def found(warehouse: Warehouse, check: str) -> list[Finding]:
    """What one kind of check finds, without the time that all of them take."""
    wanted = "videos" if check == "hashes" else check
    return [finding for finding in WHERE.get(check, check_rows)(warehouse) if finding.check == wanted]


def one(warehouse: Warehouse, check: str) -> Finding:
    (finding,) = found(warehouse, check)
    return finding


def content(warehouse: Warehouse) -> dict[str, list[dict[str, Any]]]:
    with warehouse.visit(read_only=True) as connection:
        return {r.table: connection.sql(f"FROM {r.table} ORDER BY ALL").to_arrow_table().to_pylist() for r in RECORDS}


# Health


@pytest.mark.parametrize("how", [[], ["--hashes"], ["--repair"]])
def test_a_healthy_warehouse_is_called_so(healthy: Warehouse, command: Command, how: list[str]) -> None:
    result = command("doctor", healthy.path, *how)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{healthy.path} is healthy: 14 rows, ") and result.out.count("\n") == 1
    assert not list(healthy.folder.glob("*.wal"))


def test_a_new_warehouse_is_healthy(warehouse: Warehouse) -> None:
    assert examine(warehouse.path, hashes=True).healthy


def test_the_diagnosis_as_json(full: Warehouse, command: Command) -> None:
    result = command("doctor", full.path, "--json")
    said = json.loads(result.out)
    assert result.code == 3 and said["healthy"] is False and said["rows"]["labels"] == 400
    by_check = {finding["check"]: finding for finding in said["findings"]}
    assert by_check["videos"]["count"] == 40 and by_check["videos"]["mend"].startswith("vlm-rlaif relocate ")
    assert by_check["exports"]["harmless"] is True


# Rows


def test_rows_without_their_parents_are_found_as_a_loop_would_find_them(full: Warehouse) -> None:
    """The slow twin, on a warehouse of which a fifth is missing."""
    for number, record in enumerate(RECORDS):
        full.execute(f"DELETE FROM {record.table} WHERE hash({', '.join(primary_key(record))}, {number}) % 5 = 0")
    rows = content(full)
    wrong = 0
    for reference in (*CONTENT, *ORIGIN):
        parents = {row[KEY[reference.parent]] for row in rows[reference.parent]}
        children = [row for row in rows[reference.table] if row[reference.column] not in {None, *parents}]
        said = full.rows(f"SELECT * FROM ({orphans(reference)}) ORDER BY ALL")
        assert sorted(next(iter(row.values())) for row in said) == sorted(
            row[KEY[reference.table]] for row in children
        )
        wrong += bool(children)
    counted = [finding for finding in check_rows(full) if finding.check == "orphans"]
    assert len(counted) == wrong + 1, "and contexts without a caption"
    gone = {row["caption_id"] for row in rows["captions"]}
    (contexts,) = [finding for finding in counted if finding.what.startswith("contexts that were made")]
    assert contexts.count == sum(not set(row["caption_ids"]) <= gone for row in rows["contexts"])


def test_rows_of_every_table_must_have_their_run(full: Warehouse) -> None:
    full.execute("DELETE FROM runs")
    missing = {finding.what.split()[0] for finding in check_rows(full) if "not among the runs" in finding.what}
    filled = {r.table for r in RECORDS if full.value(f"SELECT count(*) FROM {r.table}") and "run_id" in _names(r)}
    assert missing == filled - {"runs"}


def _names(record: Any) -> set[str]:
    return {column.name for column in fields(record)}


def test_ids_of_the_real_stages_are_the_hashes_of_their_content(full: Warehouse) -> None:
    assert list(check_ids(full, everything=True)) == []
    there = {table for table, key in ROWS.items() if full.value(f"SELECT count(*) FROM ({key.query})")}
    elsewhere = {
        "transcripts",
        "ratings",
        "anchors",
        "probes",
        *(table for table in ROWS if table.startswith("audit")),
    }
    assert ROWS.keys() - there == elsewhere, "other tests have them"


def test_a_row_that_was_changed_by_hand_is_found_by_its_id(full: Warehouse, command: Command) -> None:
    full.execute("UPDATE clips SET end_s = end_s + 1 WHERE clip_id IN (SELECT min(clip_id) FROM clips)")
    full.execute("UPDATE specs SET sampling = '{}' WHERE stage = 'respond'")
    clips, specs = sorted(check_ids(full, everything=False), key=lambda finding: finding.what)
    assert (clips.count, clips.examples) == (1, [full.value("SELECT min(clip_id) FROM clips")])
    assert specs.what.startswith("specs whose id") and specs.count == 1
    assert f"mend: vlm-rlaif why {full.path} ID" in command("doctor", full.path).out


def test_a_group_in_two_splits_would_test_on_what_was_trained_on(full: Warehouse) -> None:
    assert not found(full, "splits")
    full.execute("UPDATE videos SET video_group = 'one film'")
    assert one(full, "splits").examples == ["one film"]


def test_unreadable_videos_are_listed_with_the_reason(healthy: Warehouse, command: Command, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"this is no video")
    assert command("add", healthy.path, tmp_path / "broken.mp4").code == 3
    finding = one(healthy, "unreadable")
    assert finding.count == 1 and "broken.mp4" in finding.examples[0]
    assert "vlm-rlaif remove" in finding.mend


def test_a_version_whose_words_were_removed_is_a_note(full: Warehouse) -> None:
    assert not found(full, "versions")
    held = full.value("SELECT q.video_id FROM dataset_rows JOIN pairs USING (pair_id) JOIN questions q"
                      " USING (question_id) ORDER BY ALL LIMIT 1")  # fmt: skip
    remove(full, [held])
    assert one(full, "versions").examples == ["good"] and one(full, "versions").harmless
    full.execute("DELETE FROM runs WHERE stage = 'remove'")
    assert not one(full, "versions").harmless
    full.execute("DELETE FROM dataset_rows WHERE choice = 'a'")
    assert len(found(full, "versions")) == 2
    full.execute("DELETE FROM dataset_rows")
    assert [finding.examples for finding in found(full, "versions")] == [["good"], ["out/good.jsonl"]]


# Files


def test_a_video_that_is_gone_is_found_and_its_other_place_is_taken(
    healthy: Warehouse, command: Command, tmp_path: Path
) -> None:
    video_id, uri = healthy.rows("SELECT video_id, uri FROM videos ORDER BY uri")[0].values()
    shutil.copy(healthy.video_path(uri), tmp_path / "copy.mp4")
    shutil.copy(healthy.video_path("mine/1.mp4"), tmp_path / "another.mp4")
    healthy.append([VideoFile(video_id=video_id, uri=f"{name}.mp4", run_id="r") for name in ("another", "copy")])
    healthy.video_path(uri).unlink()
    assert one(healthy, "videos").examples == [f"{video_id} ({uri})"]
    assert healthy.value("SELECT uri FROM videos WHERE video_id = ?", [video_id]) == uri
    result = command("doctor", healthy.path, "--repair")
    assert "repaired: videos were found at another place of theirs: 1\n" in result.out
    assert healthy.value("SELECT uri FROM videos WHERE video_id = ?", [video_id]) == "copy.mp4"
    assert not found(healthy, "videos")


def test_a_place_that_holds_another_video_is_found(healthy: Warehouse) -> None:
    data = bytearray(healthy.video_path("mine/0.mp4").read_bytes())
    data[-1] ^= 1
    healthy.video_path("mine/0.mp4").write_bytes(data)
    assert not found(healthy, "videos"), "its picture is as large as ever"
    assert "mine/0.mp4" in one(healthy, "hashes").examples[0]
    healthy.video_path("mine/0.mp4").write_bytes(b"no video")
    assert one(healthy, "videos").what == "videos whose place holds something else"


def test_checkpoints_must_be_there_and_whole(full: Warehouse) -> None:
    for kind in ("reward", "ppo"):
        for name in WHOLE[kind]:
            path = full.folder / "models" / f"{kind}-1" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    ppo, reward = found(full, "checkpoints")
    assert (ppo.count, reward.count) == (1, 2) and "reward-1" not in "".join(reward.examples)
    (full.folder / "models" / "ppo-1" / "merged" / "config.json").unlink()
    ppo, _ = found(full, "checkpoints")
    assert "models/ppo-1: there is no merged/config.json" in ppo.examples
    assert ppo.mend == f"vlm-rlaif train ppo {full.path} --recipe RECIPE"


def test_what_a_whole_checkpoint_has_is_what_the_trainers_write() -> None:
    """Their constants, read without loading torch."""
    constants: dict[str, str] = {}
    for name in ("vlm.py", "run.py"):
        for node in ast.parse((ROOT / "train" / name).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple | ast.Constant):
                names = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else node.targets
                values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
                constants |= {ast.unparse(n): ast.literal_eval(v) for n, v in zip(names, values, strict=False)}
    card, adapter, head = (constants[name] for name in ("CARD", "ADAPTER", "HEAD"))
    merged = f"{constants['MERGED']}/config.json"
    assert {"sft": (merged,), "reward": (card, adapter, head), "ppo": (card, adapter, merged)} == WHOLE


def test_leftovers_of_killed_processes_are_deleted_and_nothing_else(full: Warehouse, command: Command) -> None:
    old = time.time() - LEFTOVER_AGE_S - 60
    named = (
        "w.duckdb.tmp/duckdb_temp_storage",
        "w.duckdb.purge-999999999",
        "models/ppo-1/.partial-999999999-4/weights",
    )
    left = [full.folder / name for name in named]
    kept = [
        full.folder / name for name in (f"w.duckdb.purge-{os.getpid()}", "mine/.partial-1", "models/ppo-1/weights")
    ]
    for path in (*left, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        os.utime(path, (old, old))
        os.utime(path.parent, (old, old))
    assert one(full, "leftovers").count == 3
    assert "files and folders of killed processes were deleted: 3" in command("doctor", full.path, "--repair").out
    assert not any(path.exists() for path in left) and all(path.exists() for path in kept)
    (full.folder / "w.duckdb.purge-999999999").touch()
    assert not found(full, "leftovers"), "it may be at work on another machine"


def test_a_full_disk_is_told_before_it_is_full(healthy: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(healthy.folder)
    monkeypatch.setattr(file_checks.shutil, "disk_usage", lambda _: usage._replace(free=10_000_000))
    assert one(healthy, "disk").what == "disks with only 0.0 GB left"


# Jobs


def test_what_a_killed_job_left_is_found_and_merged(healthy: Warehouse, command: Command) -> None:
    with record_run(healthy, "caption", {}, "none") as run:
        note = one(healthy, "jobs")
        assert note.harmless and note.examples == [run.run_id]
        assert command("doctor", healthy.path, "--repair").code == 0
        assert healthy.value("SELECT status FROM runs WHERE run_id = ?", [run.run_id]) == "running"
    healthy.execute("UPDATE runs SET status = 'running' WHERE stage = 'clip'")
    video_id = healthy.value("SELECT min(video_id) FROM videos")
    with closing(Journal(healthy, "dead")) as dead:
        dead.append([Clip(clip_id="new", video_id=video_id, start_s=0.0, end_s=1.0, method="m", run_id=run.run_id)])
    assert [finding.what.split()[0] for finding in found(healthy, "jobs")] == ["journals", "runs"]
    result = command("doctor", healthy.path, "--repair")
    assert "repaired: journals of jobs that died were merged: 1, with 1 new rows\n" in result.out
    assert "repaired: runs without a job were marked as interrupted: 1\n" in result.out
    assert not found(healthy, "jobs") and healthy.value("SELECT count(*) FROM clips WHERE clip_id = 'new'") == 1
    assert healthy.value("SELECT status FROM runs WHERE stage = 'clip'") == "interrupted"


def test_a_journal_that_cannot_be_read_stays_and_is_named(healthy: Warehouse, command: Command) -> None:
    healthy.journal_folder.mkdir(exist_ok=True)
    (healthy.journal_folder / "odd.jsonl").write_text('{"table": "unknown", "row": {}}\n')
    result = command("doctor", healthy.path, "--repair")
    assert result.code == 3 and "a journal could not be merged: " in result.out
    assert "    odd\n" in result.out and (healthy.journal_folder / "odd.jsonl").exists()


def test_repairing_never_deletes_a_row(full: Warehouse, command: Command) -> None:
    for table in ("videos", "questions", "runs", "specs"):
        full.execute(f"DELETE FROM {table} WHERE hash({KEY[table]}) % 2 = 0")
    before = content(full)
    assert command("doctor", full.path, "--repair").code == 3
    assert content(full) == before


# The file


def test_views_of_another_version_are_made_anew(full: Warehouse, command: Command) -> None:
    full.execute("UPDATE migrations SET name = 'views old' WHERE name LIKE 'views %'")
    full.execute("DROP VIEW length_gap")
    finding = one(full, "views")
    assert finding.mend == f"vlm-rlaif init {full.path}"
    assert "the views were made anew" in command("doctor", full.path, "--repair").out
    assert not found(full, "views") and full.rows("SELECT * FROM length_gap")


def test_a_file_that_is_no_warehouse_is_said_with_what_to_do(
    tmp_path: Path, command: Command, full: Warehouse
) -> None:
    import duckdb

    path = tmp_path / "x.duckdb"
    assert "There is no warehouse" in command("doctor", path).err
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE mine (x INT)")
    assert "is a DuckDB file, but no warehouse" in command("doctor", path).err
    path.write_bytes(gzip.decompress(FIXTURE.read_bytes()))
    assert command("doctor", path).err.splitlines()[-1] == f"vlm-rlaif init {path}"
    full.execute("INSERT INTO migrations VALUES ('m999_x', now()::TIMESTAMP)")
    assert "newer" in command("doctor", full.path).err


def test_a_damaged_file_ends_with_words_and_not_with_a_crash(tmp_path: Path, full_file: Path) -> None:
    """In processes of their own: DuckDB might take its own down."""
    path, whole = tmp_path / "x.duckdb", full_file.read_bytes()
    zeros = bytearray(whole)
    for start in range(12_288 + 100, len(zeros), 262_144):
        zeros[start : start + 1000] = bytes(1000)
    header = bytearray(whole)
    header[5000] ^= 0xFF
    cases = {"cut": whole[:300_000], "zeros": zeros, "header": header}
    codes = {}
    for name, data in cases.items():
        path.write_bytes(bytes(data))
        command = [sys.executable, "-c", "from vlm_rlaif.warehouse.cli import main; main()", "doctor", str(path)]
        ended = subprocess.run([*command, "--hashes"], capture_output=True, text=True)
        codes[name] = ended.returncode
        assert ended.returncode != 2 or f"vlm-rlaif merge NEW.duckdb COPY_OF_{path.name}" in ended.stderr, name
        assert "Traceback" not in ended.stderr, name
    assert codes == dict.fromkeys(cases, 2)


@pytest.mark.parametrize("data", [b"", b"hello\n" * 999], ids=["empty", "text"])
def test_a_file_that_is_not_duckdbs_is_said(data: bytes, tmp_path: Path, command: Command) -> None:
    path = tmp_path / "x.duckdb"
    path.write_bytes(data)
    result = command("doctor", path)
    assert result.code == 2 and "not a valid DuckDB database file" in result.err
    assert result.err.splitlines()[-1].startswith("vlm-rlaif init NEW.duckdb")
