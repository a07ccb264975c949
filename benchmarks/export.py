"""What memory the export of a million preferences to a Hugging Face data set takes.

    python benchmarks/export.py [--preferences 1000000] [--runs 3] [--keep DIR]

Makes a large warehouse (`big_warehouse.py`), then freezes and exports all of it, each run in a process of its own.
Prints `export_peak_gb` as JSON: the median of the runs' peak resident memory, and the lowest and highest of them. The
time that a run took goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MAIN = "import sys; from vlm_rlaif.warehouse.cli import main; main()"


def make(path: Path, preferences: int) -> None:
    """A warehouse in which one judge has judged this many pairs in both orders.

    In a process of its own: the peak memory that is told of a process counts the one that started it.
    """
    command = [sys.executable, str(Path(__file__).with_name("big_warehouse.py")), str(path)]
    subprocess.run([*command, "--labels", str(2 * preferences), "--judges", "1"], check=True, stdout=sys.stderr)


def export(warehouse: Path, out: Path) -> tuple[float, float]:
    """Export as a user would; (peak resident memory in GB, seconds)."""
    arguments = [sys.executable, "-c", MAIN, "export", str(warehouse), str(out), "--format", "hf", "--json"]
    started = time.monotonic()
    with (out.parent / "told.json").open("w") as told:
        actions = [(os.POSIX_SPAWN_DUP2, told.fileno(), 1), (os.POSIX_SPAWN_DUP2, told.fileno(), 2)]
        process = os.posix_spawn(sys.executable, arguments, os.environ, file_actions=actions)
        _, status, usage = os.wait4(process, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 3):  # 3: the videos of this warehouse have no files
        raise SystemExit(f"the export ended with status {status}: {(out.parent / 'told.json').read_text()[-2000:]}")
    return usage.ru_maxrss / 1e6, time.monotonic() - started


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--preferences", type=int, default=1_000_000)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--keep", type=Path, help="Folder for the warehouse, which a later run uses again.")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        source = folder / f"big-{given.preferences}.duckdb"
        if not source.exists():
            folder.mkdir(parents=True, exist_ok=True)
            make(source, given.preferences)
        peaks_gb = []
        for run in range(given.runs):
            warehouse = Path(shutil.copy(source, Path(temporary) / f"run-{run}.duckdb"))
            peak_gb, seconds = export(warehouse, Path(temporary) / "out")
            print(f"run {run}: {peak_gb:.2f} GB, {seconds:.0f} s", file=sys.stderr)
            peaks_gb.append(peak_gb)
            shutil.rmtree(Path(temporary) / "out")
            warehouse.unlink()
    figure = {
        "value": round(statistics.median(peaks_gb), 3), "low": round(min(peaks_gb), 3),
        "high": round(max(peaks_gb), 3), "n": len(peaks_gb), "unit": "GB",
    }  # fmt: skip
    print(json.dumps({"export_peak_gb": figure}))


if __name__ == "__main__":
    main()
