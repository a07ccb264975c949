"""Is the memory of a job flat? A stage of 1,000 rows against one of 100,000, each in a fresh process.

    python benchmarks/generating/memory.py [--small]

The engine is scripted and makes 1,000 rows a second, more than a machine full of GPUs; the last figure is of one that
takes no time at all. What counts is the peak of the process (VmHWM). Making the warehouse is another process's work.
The figures are the last line of standard output, as JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

from scripted_job import make_job

from vlm_rlaif.datagen.engine import Request, ScriptedEngine
from vlm_rlaif.datagen.job import run_stage

PACE = 1000.0
"""Rows per second."""
WORDS = " ".join(f"word{n}" for n in range(60))
"""What a caption or a response may have."""


def peak_mb() -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def script(pace: float | None) -> Callable[[Request], str]:
    """Answers, so many a second."""
    number, begun = count(1), time.monotonic()

    def answer(request: Request) -> str:
        if pace:
            time.sleep(max(0.0, begun + next(number) / pace - time.monotonic()))
        return f"{request.request_id} {WORDS}"

    return answer


def prepare(folder: Path, rows: int) -> None:
    make_job(folder, rows)


def work(folder: Path, rows: int, pace: float | None, send: Connection) -> None:
    warehouse, stage = make_job(folder, 0)
    begun = time.monotonic()
    outcome = run_stage(warehouse, stage, lambda: ScriptedEngine(script(pace)))
    assert outcome.written == rows, outcome
    send.send((peak_mb(), rows / (time.monotonic() - begun)))


def measure(rows: int, pace: float | None = PACE) -> tuple[float, float]:
    """Peak memory in MB of a job of so many rows, and its rows per second."""
    spawn = multiprocessing.get_context("spawn")
    receive, send = spawn.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        for process in (
            spawn.Process(target=prepare, args=(Path(folder), rows)),
            spawn.Process(target=work, args=(Path(folder), rows, pace, send)),
        ):
            process.start()
            process.join()
            if process.exitcode:
                sys.exit(f"a job of {rows} rows failed")
    found: tuple[float, float] = receive.recv()
    print(f"{rows} rows: {found[0]:.0f} MB, {found[1]:.0f} rows/s", file=sys.stderr)
    return found


def figure(values: list[float], unit: str, about: str = "") -> dict[str, object]:
    middle = statistics.median(values)
    found = {"value": middle, "low": min(values), "high": max(values), "n": len(values), "unit": unit}
    return {**found, "about": about} if about else found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--small", action="store_true")
    small = arguments.parse_args().small
    few, some, many, repeats = (100, 1_000, 5_000, 1) if small else (1_000, 10_000, 100_000, 3)
    runs = [(measure(few), measure(some), measure(many), measure(many, pace=None)) for _ in range(repeats)]
    figures = {
        "memory_growth": figure([large / little for (little, _), _, (large, _), _ in runs], "ratio"),
        "memory_growth_later": figure(
            [large / middle for _, (middle, _), (large, _), _ in runs],
            "ratio",
            f"the same over a job of {some:,} rows: what grows before is DuckDB's room for one merge",
        ),
        "memory_mb": figure([large for *_, (large, _), _ in runs], "MB", f"peak memory of a job of {many:,} rows"),
        "memory_unpaced_mb": figure(
            [large for *_, (large, _) in runs], "MB", "the same job with an engine that takes no time"
        ),
        "job_rows_per_s": figure([pace for *_, (_, pace) in runs], "rows/s", "its pace: the most that a job can do"),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
