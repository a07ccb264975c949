"""`kill -9` at random moments of every generation and label stage loses nothing, duplicates nothing, pays once."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

PATH = Path(__file__).parents[2] / "benchmarks" / "kills.py"


def test_a_job_that_is_killed_again_and_again_ends_like_one_that_nobody_disturbed(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("kills", PATH)
    assert spec and spec.loader
    kills = sys.modules["kills"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kills)
    result = kills.torture(tmp_path, kills=20, seed=1)
    assert result.kills >= 20
    assert (result.lost, result.duplicated, result.differing, result.unfinished_runs) == (0, 0, [], 0)
    assert result.paid_twice <= result.kills
