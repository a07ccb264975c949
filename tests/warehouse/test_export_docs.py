"""docs/export.md is true: its commands are run, in their order, and say what stands there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.warehouse.exports.formats import FORMATS
from vlm_rlaif.warehouse.store import Warehouse

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")


def session() -> list[tuple[list[str], list[str]]]:
    """(arguments, lines that follow) of every command of the page."""
    blocks = re.findall(r"^```console\n(.*?)^```", PAGE, re.M | re.S)
    found = [part.split("\n", 1) for block in blocks for part in re.split(r"^\$ vlm-rlaif ", block, flags=re.M)[1:]]
    return [(shlex.split(line), [row.rstrip() for row in said.splitlines() if row.strip()]) for line, said in found]


def test_the_page_is_what_the_commands_say(
    full_file: Path, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(full_file, "w.duckdb")
    warehouse = Warehouse(Path("w.duckdb"))
    for table in ("datasets", "dataset_rows", "exports", "failures"):
        warehouse.execute(f"DELETE FROM {table}")
    warehouse.execute("DELETE FROM checkpoints WHERE run_id = 'late'")
    for row in warehouse.rows("SELECT uri FROM videos"):
        Path(row["uri"]).parent.mkdir(parents=True, exist_ok=True)
        Path(row["uri"]).touch()
    assert len(session()) > 10
    for arguments, wanted in session():
        ended = command(*arguments)
        said = [line.rstrip() for line in (ended.out + ended.err).splitlines() if line.strip()]
        assert said == wanted, arguments


def test_the_page_names_every_format() -> None:
    (table,) = re.findall(r"^\| `--format` \|.*?\n\n", PAGE, re.M | re.S)
    assert re.findall(r"^\| `(\w[\w-]*)` \|", table, re.M) == list(FORMATS)
