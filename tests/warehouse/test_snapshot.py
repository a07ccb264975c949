"""`snapshot`: a copy that is whole at one moment, taken while jobs write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import duckdb
import pytest

from vlm_rlaif.warehouse.errors import WarehouseBusy
from vlm_rlaif.warehouse.inspection.snapshot import LOGS, _mend, take
from vlm_rlaif.warehouse.journal import Journal
from vlm_rlaif.warehouse.records import Clip
from vlm_rlaif.warehouse.store import Warehouse

Command = Any
KILLED = """
import duckdb, os, signal, sys
from vlm_rlaif.warehouse.store import CONFIG
writer = duckdb.connect(sys.argv[1], config=CONFIG)
writer.execute("INSERT INTO clips SELECT 'clip ' || range, 'v', range, range + 1, 'm', 'r' FROM range(1000)")
os.kill(os.getpid(), signal.SIGKILL)
"""


def clip(name: str) -> Clip:
    return Clip(clip_id=name, video_id="v", start_s=0.0, end_s=1.0, method="m", run_id="r")


def rows(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables of a file."""
    with duckdb.connect(str(path), read_only=True) as connection:
        names = connection.execute("SELECT table_name FROM duckdb_tables() WHERE NOT internal ORDER BY 1").fetchall()
        return {name: connection.execute(f"FROM {name} ORDER BY ALL").fetchall() for (name,) in names}


def test_a_copy_holds_every_row_and_every_view(command: Command, full: Warehouse, tmp_path: Path) -> None:
    target = tmp_path / "copy.duckdb"
    result = command("snapshot", full.path, target)
    assert result.code == 0 and result.out.startswith(f"{target}: ") and "MB" in result.out
    assert rows(target) == rows(full.path)
    assert Warehouse.open(target).value("SELECT count(*) FROM preferences") == 200
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.duckdb", "w.duckdb"]


def test_what_a_killed_writer_left_in_the_log_is_in_the_copy(warehouse: Warehouse, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, warehouse.path], check=False)
    assert Path(f"{warehouse.path}.wal").stat().st_size > 0
    before = warehouse.path.read_bytes(), Path(f"{warehouse.path}.wal").read_bytes()
    take(warehouse, tmp_path / "copy.duckdb")
    assert (warehouse.path.read_bytes(), Path(f"{warehouse.path}.wal").read_bytes()) == before
    assert not any(Path(f"{tmp_path}/copy.duckdb{log}").exists() for log in LOGS)
    assert len(rows(tmp_path / "copy.duckdb")["clips"]) == 1000


def test_a_job_goes_on_while_copies_are_taken(warehouse: Warehouse, tmp_path: Path) -> None:
    """Every copy holds the rows of whole transactions, the first ones first, and the job loses none."""
    written, stop = [0], threading.Event()

    def job() -> None:
        while not stop.is_set():
            number = written[0]
            warehouse.append([clip(f"{number}/{part}") for part in range(50)])
            written[0] += 1

    thread = threading.Thread(target=job)
    thread.start()
    counts = []
    for number in range(6):
        before = written[0]
        take(warehouse, tmp_path / f"{number}.duckdb")
        counts.append(len(rows(tmp_path / f"{number}.duckdb")["clips"]))
        assert counts[-1] % 50 == 0 and counts[-1] >= 50 * before
    stop.set()
    thread.join()
    assert counts == sorted(counts)
    assert warehouse.value("SELECT count(*) FROM clips") == 50 * written[0]


def test_a_reader_who_holds_the_file_is_no_hindrance(warehouse: Warehouse, tmp_path: Path) -> None:
    reading = (
        "import duckdb, sys; c = duckdb.connect(sys.argv[1], read_only=True); print(1, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", reading, str(warehouse.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as notebook:
        assert notebook.stdout and notebook.stdin and notebook.stdout.readline()
        take(Warehouse(warehouse.path, patience_s=0.1), tmp_path / "copy.duckdb")
        notebook.stdin.close()
    assert (tmp_path / "copy.duckdb").exists()


def test_a_writer_who_does_not_let_go_is_named(warehouse: Warehouse, tmp_path: Path, hold: Any) -> None:
    with hold(warehouse) as writer, pytest.raises(WarehouseBusy, match=f"pid {writer.pid}") as said:
        take(Warehouse(warehouse.path, patience_s=0.1), tmp_path / "copy.duckdb")
    assert "Nothing was lost" in str(said.value)
    assert [path.name for path in tmp_path.iterdir()] == [warehouse.path.name]


def test_rows_that_are_still_in_a_journal_are_counted(command: Command, warehouse: Warehouse, tmp_path: Path) -> None:
    journal = Journal(warehouse, "20260101-000000-aaaaaa")
    journal.append([clip("one"), clip("two")])
    result = command("snapshot", warehouse.path, tmp_path / "copy.duckdb")
    assert "2 finished rows of jobs are not in it yet" in result.out
    as_json = json.loads(command("snapshot", warehouse.path, tmp_path / "copy.duckdb", "--force", "--json").out)
    assert as_json["journaled_rows"] == 2 and as_json["bytes"] == (tmp_path / "copy.duckdb").stat().st_size
    journal.merge()
    assert take(warehouse, tmp_path / "later.duckdb").journaled_rows == 0
    assert len(rows(tmp_path / "later.duckdb")["clips"]) == 2
    journal.close()


def test_a_file_that_is_there_is_replaced_only_by_force(
    command: Command, warehouse: Warehouse, tmp_path: Path
) -> None:
    target = tmp_path / "copy.duckdb"
    target.write_text("mine")
    Path(f"{target}.wal").write_text("the log of another file")
    said = command("snapshot", warehouse.path, target)
    assert said.code == 2 and said.err.endswith(f"vlm-rlaif snapshot {warehouse.path} {target} --force\n")
    assert target.read_text() == "mine"
    assert command("snapshot", warehouse.path, target, "--force").code == 0
    assert rows(target) == rows(warehouse.path) and not Path(f"{target}.wal").exists()


def test_a_place_that_takes_no_copy_is_said_and_nothing_is_left(
    command: Command, warehouse: Warehouse, tmp_path: Path
) -> None:
    (tmp_path / "link.duckdb").symlink_to(warehouse.path)
    for target in (warehouse.path, tmp_path / "link.duckdb", tmp_path, tmp_path / "none" / "copy.duckdb"):
        said = command("snapshot", warehouse.path, target, "--force")
        assert said.code == 2 and "Traceback" not in said.err and "vlm-rlaif snapshot" in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.duckdb", warehouse.path.name]
    assert warehouse.value("SELECT count(*) FROM clips") == 0


def test_a_full_disk_is_said_and_nothing_is_left(
    command: Command, warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vlm_rlaif.warehouse.inspection.snapshot.shutil.copyfile", full)
    said = command("snapshot", warehouse.path, tmp_path / "copy.duckdb")
    assert said.code == 2 and "No space left on device" in said.err and "Make room" in said.err
    assert [path.name for path in tmp_path.iterdir()] == [warehouse.path.name]


def test_a_file_that_may_only_be_read_is_copied(warehouse: Warehouse, tmp_path: Path) -> None:
    warehouse.append([clip("one")])
    warehouse.path.chmod(0o444)
    take(warehouse, tmp_path / "copy.duckdb")
    assert len(rows(tmp_path / "copy.duckdb")["clips"]) == 1


@pytest.mark.parametrize(
    "sizes", [(0, 0), (0, 5), (5, 0), (2**20, 2**20), (3 * 2**20 + 7, 2**20), (2**20, 2**21 + 1)]
)
def test_mending_makes_two_files_equal(tmp_path: Path, sizes: tuple[int, int]) -> None:
    copy, original = tmp_path / "copy", tmp_path / "original"
    copy.write_bytes(os.urandom(sizes[0]))
    original.write_bytes(os.urandom(sizes[1]))
    _mend(copy, original)
    assert copy.read_bytes() == original.read_bytes()
