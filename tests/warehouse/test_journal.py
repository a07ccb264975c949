"""The journal: what is finished survives the death of its job, and is merged once."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest

from vlm_rlaif.warehouse import journal
from vlm_rlaif.warehouse.errors import UserError, WarehouseBusy
from vlm_rlaif.warehouse.journal import Journal, only_one, replay
from vlm_rlaif.warehouse.records import Caption, Context, Failure, Record, Run
from vlm_rlaif.warehouse.store import Warehouse

DYING_JOB = """
import os, signal, sys
from pathlib import Path
from vlm_rlaif.warehouse.journal import Journal, only_one
from vlm_rlaif.warehouse.records import Caption
from vlm_rlaif.warehouse.store import Warehouse

warehouse = Warehouse(Path(sys.argv[1]))
with only_one(warehouse, "caption"):
    journal = Journal(warehouse, "dead")
    for n in range(3):
        journal.append([Caption(caption_id=f"dead{n}", clip_id="c", spec_id="s", text="t", run_id="dead")])
    os.kill(os.getpid(), signal.SIGKILL)
"""


def caption(name: str) -> Caption:
    return Caption(caption_id=name, clip_id="c", spec_id="s", text=f'line 1\nline 2 of "{name}"\u2028', run_id="r")


def run(run_id: str) -> Run:
    return Run(
        run_id=run_id, stage="caption", config="{}", code_version="0", engine="e", host="h",
        started_at=datetime.now(UTC).replace(tzinfo=None),
    )  # fmt: skip


def captions(warehouse: Warehouse) -> list[str]:
    return [row["caption_id"] for row in warehouse.rows("SELECT caption_id FROM captions ORDER BY 1")]


def merge_with_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MERGE_S", 0.0)
    monkeypatch.setattr(journal, "MERGE_ROWS", 0)


def die(warehouse: Warehouse) -> Path:
    """A job writes three captions to its journal and is killed; returns what it left behind."""
    killed = subprocess.run([sys.executable, "-c", DYING_JOB, str(warehouse.path)], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    (left,) = warehouse.journal_folder.glob("*.jsonl")
    return left


def test_a_finished_journal_is_merged_and_gone(warehouse: Warehouse) -> None:
    with closing(Journal(warehouse, "r")) as journal:
        journal.append([caption("a"), caption("b")])
        assert len(journal.path.read_text().splitlines()) == 2
        journal.merge()
        journal.remove()
    assert captions(warehouse) == ["a", "b"]
    assert not list(warehouse.journal_folder.glob("*.jsonl"))


def test_rows_of_a_killed_job_are_merged_by_the_next_one(warehouse: Warehouse) -> None:
    warehouse.append([run("dead")])
    left = die(warehouse)
    assert captions(warehouse) == []
    assert replay(warehouse) == 3
    assert captions(warehouse) == ["dead0", "dead1", "dead2"]
    assert not left.exists()
    assert replay(warehouse) == 0


def test_a_killed_run_is_marked_interrupted_with_what_it_did_and_when_it_ended(warehouse: Warehouse) -> None:
    warehouse.append([run("dead")])
    left = die(warehouse)
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    os.utime(left, (an_hour_ago.timestamp(), an_hour_ago.timestamp()))
    replay(warehouse)
    (row,) = warehouse.rows("SELECT * FROM runs")
    assert (row["status"], row["rows_written"], row["rows_failed"]) == ("interrupted", 3, 0)
    assert abs(row["ended_at"] - an_hour_ago.replace(tzinfo=None)) < timedelta(seconds=1)


def test_an_unfinished_last_line_is_ignored(warehouse: Warehouse) -> None:
    left = die(warehouse)
    os.truncate(left, left.stat().st_size - 5)
    assert replay(warehouse) == 2
    assert captions(warehouse) == ["dead0", "dead1"]


def test_a_journal_that_was_merged_already_adds_nothing(warehouse: Warehouse) -> None:
    left = die(warehouse)
    lines = left.read_text()
    replay(warehouse)
    left.write_text(lines)
    assert replay(warehouse) == 0
    assert len(captions(warehouse)) == 3


def test_the_journal_of_a_living_job_is_left_alone(warehouse: Warehouse) -> None:
    with closing(Journal(warehouse, "alive")) as journal:
        journal.append([caption("a")])
        assert replay(warehouse) == 0
        assert journal.path.exists()
    assert replay(warehouse) == 1


def test_every_kind_of_value_survives_the_journal(warehouse: Warehouse) -> None:
    rows: list[Record] = [
        run("r"),
        caption("a"),
        Context(context_id="x", video_id="v", spec_id="s", caption_ids=["b", "a"], text="", run_id="r"),
        Failure(row_id="f", stage="s", attempt=1, kind="empty", message="m", reply=None, run_id="r"),
    ]
    with closing(Journal(warehouse, "r")) as journal:
        journal.append(rows)
    replay(warehouse)
    assert warehouse.value("SELECT text FROM captions") == rows[1].text  # type: ignore[union-attr]
    assert warehouse.value("SELECT started_at FROM runs") == rows[0].started_at  # type: ignore[union-attr]
    assert warehouse.value("SELECT caption_ids FROM contexts") == ["b", "a"]
    assert warehouse.value("SELECT reply FROM failures") is None


def test_a_busy_warehouse_delays_rows_and_loses_none(
    warehouse: Warehouse,
    hold: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merge_with_every_row(monkeypatch)
    with closing(Journal(warehouse, "r")) as writing:
        with hold(warehouse):
            writing.append([caption("a")])
            writing.append([caption("b")])
            lines = [json.loads(line)["row"]["caption_id"] for line in writing.path.read_text().splitlines()]
        assert lines == ["a", "b"]
        assert captions(warehouse) == []
        writing.append([caption("c")])
        assert captions(warehouse) == ["a", "b", "c"]


def test_a_warehouse_that_stays_busy_leaves_the_journal_for_the_next_job(warehouse: Warehouse, hold: Any) -> None:
    impatient = Warehouse(warehouse.path, patience_s=0.05)
    with hold(warehouse), pytest.raises(WarehouseBusy), closing(Journal(impatient, "r")) as writing:
        writing.append([caption("a")])
        writing.merge()
    assert replay(warehouse) == 1
    assert captions(warehouse) == ["a"]


def test_a_second_job_of_a_stage_is_told_who_has_it(warehouse: Warehouse) -> None:
    with only_one(warehouse, "caption"):
        with (
            pytest.raises(UserError, match=rf"running caption .*\(pid {os.getpid()}\)"),
            only_one(warehouse, "caption"),
        ):
            pass
        with only_one(warehouse, "respond"):
            pass


def test_a_stage_is_free_again_after_its_job(warehouse: Warehouse) -> None:
    for _ in range(2):
        with only_one(warehouse, "caption"):
            pass


def test_the_lock_of_a_killed_job_dies_with_it(warehouse: Warehouse) -> None:
    die(warehouse)
    with only_one(warehouse, "caption"):
        assert (warehouse.journal_folder / "caption.lock").read_text() == str(os.getpid())


def test_a_journal_that_cannot_be_read_is_named(warehouse: Warehouse) -> None:
    left = die(warehouse)
    line = json.loads(left.read_text().splitlines()[0])
    line["row"]["of_a_later_version"] = 1
    left.write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match=left.name):
        replay(warehouse)
    assert left.exists()


def test_a_journal_that_ends_while_it_is_found_is_passed_over(warehouse: Warehouse) -> None:
    """A link to nothing stands for a file that its job removed between the listing and the opening."""
    warehouse.journal_folder.mkdir(exist_ok=True)
    (warehouse.journal_folder / "gone.jsonl").symlink_to(warehouse.folder / "nothing")
    assert replay(warehouse) == 0


def test_a_merge_empties_the_journal_so_that_it_stays_small(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_with_every_row(monkeypatch)
    with closing(Journal(warehouse, "r")) as mine:
        assert mine.append([caption("a")]) and mine.append([caption("b")])
        assert mine.path.read_text() == "" and captions(warehouse) == ["a", "b"]
        monkeypatch.setattr(journal, "MERGE_S", 60.0)
        assert not mine.append([caption("c")])
        assert json.loads(mine.path.read_text())["row"]["caption_id"] == "c"


def test_a_killed_run_counts_the_rows_that_were_merged_before(warehouse: Warehouse) -> None:
    warehouse.append([run("dead"), dataclasses.replace(caption("merged"), run_id="dead")])
    die(warehouse)
    replay(warehouse)
    assert warehouse.rows("SELECT rows_written FROM runs") == [{"rows_written": 4}]


def test_a_long_journal_is_replayed_in_parts(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "HELD_ROWS", 2)
    die(warehouse)
    assert replay(warehouse) == 3


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.journal import Journal, replay
from vlm_rlaif.warehouse.records import Caption
from vlm_rlaif.warehouse.store import Warehouse

warehouse = Warehouse(Path(sys.argv[1]))
journal = Journal(warehouse, "full")
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    for n in range(1000):
        journal.append([Caption(caption_id=f"{n:04}", clip_id="c", spec_id="s", text="t" * 100, run_id="full")])
except UserError as error:
    print(n, error)
"""


def test_a_full_disk_is_told_in_words_and_what_was_finished_is_kept(warehouse: Warehouse) -> None:
    """A limit on the size of files stands for the full disk."""
    ended = subprocess.run([sys.executable, "-c", FULL_DISK, str(warehouse.path)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    done, said = ended.stdout.split(" ", 1)
    assert "cannot be written: File too large" in said and "what is finished is kept" in said
    assert replay(warehouse) == int(done) == len(captions(warehouse)) > 50


def test_a_job_that_cannot_write_beside_its_warehouse_says_so(warehouse: Warehouse) -> None:
    warehouse.journal_folder.write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be made: File exists"), only_one(warehouse, "caption"):
        pass


def test_after_a_slow_merge_the_next_one_comes_later(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(journal, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def slow(_: Warehouse) -> None:
        now[0] += 0.5

    def merged_at(second: float) -> bool:
        now[0] = max(now[0], second)
        return mine.append([caption(str(second))], slow)

    with closing(Journal(warehouse, "r")) as mine:
        merges = [second for second in range(200) if merged_at(second)]
    assert merges == [4, 30, 56, 82, 108, 134, 160, 186]
    assert 0.5 * len(merges) <= 200 * journal.MERGE_SHARE


def test_many_waiting_rows_are_merged_sooner_than_that(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory comes first: an engine that is so fast is no graphics card."""
    monkeypatch.setattr(journal, "MERGE_ROWS", 3)
    monkeypatch.setattr(journal, "MERGE_S", 1000.0)  # after a slow merge, say
    with closing(Journal(warehouse, "r")) as mine:
        monkeypatch.setattr(journal, "MERGE_S", 0.0)
        assert [mine.append([caption(name)]) for name in "abcd"] == [False, False, True, False]


def test_rows_that_must_wait_long_wait_in_the_file_and_not_in_memory(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch, hold: Any
) -> None:
    monkeypatch.setattr(journal, "HELD_ROWS", 2)
    monkeypatch.setattr(journal, "MERGE_S", 0.0)
    monkeypatch.setattr(journal, "MERGE_ROWS", 0)
    with closing(Journal(warehouse, "r")) as mine:
        with hold(warehouse):
            for name in "abcdefg":
                assert not mine.append([caption(name)]) and len(mine._held) <= 2
        assert mine.append([caption("h")])
        assert captions(warehouse) == list("abcdefgh") and mine.path.read_text() == ""
        mine.append([caption("i")])
        mine.merge()
        assert captions(warehouse) == list("abcdefghi")


def test_a_row_that_failed_twice_in_a_killed_run_failed_once_and_one_that_was_repaired_did_not(
    warehouse: Warehouse,
) -> None:
    def failure(name: str, attempt: int) -> Failure:
        return Failure(
            row_id=name, stage="caption", attempt=attempt, kind="unparsable", message="m", reply="?", run_id="dead"
        )

    warehouse.append([run("dead")])
    with closing(Journal(warehouse, "dead")) as mine:
        mine.append([failure("a", 1), failure("b", 1), failure("c", 1)])
        mine.append([failure("a", 2), dataclasses.replace(caption("b"), run_id="dead")])
    replay(warehouse)
    (row,) = warehouse.rows("SELECT status, rows_written, rows_failed, seconds > 0 AS timed FROM runs")
    assert row == {"status": "interrupted", "rows_written": 1, "rows_failed": 2, "timed": True}


class InterruptedFile:
    """Ctrl-C comes when a line has just been written."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def flush(self) -> None:
        self.file.flush()
        raise KeyboardInterrupt


def test_a_row_whose_writing_is_interrupted_is_merged_all_the_same(warehouse: Warehouse) -> None:
    with closing(Journal(warehouse, "r")) as mine:
        file, mine._file = mine._file, InterruptedFile(mine._file)  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            mine.append([caption("a")])
        mine._file = file
        mine.merge()
    assert captions(warehouse) == ["a"]
