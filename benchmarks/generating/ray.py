"""C5: Ray on one machine, an engine of 0.2 s a row, two workers against one.

    python benchmarks/generating/ray.py [--small]        # needs pip install 'vlm-rlaif[ray]'

A stage runs into a warehouse of its own each time, through `run_stage`, as a user's job does. The engine sleeps, so
two cores are enough. Starting Ray and its workers is apart [ray_startup_s]. The two take turns; each pair of runs is
one ratio. The figures are the last line of standard output, as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from scripted_job import make_job

from vlm_rlaif.datagen.engine import Engine, Request, ScriptedEngine
from vlm_rlaif.datagen.engines.make import EngineSettings
from vlm_rlaif.datagen.job import run_stage

sys.path.remove(str(Path(__file__).resolve().parent))  # else `import ray` would find this file
ROW_S = 0.2


def engine() -> Engine:
    def answer(request: Request) -> str:
        time.sleep(ROW_S)
        return f"{request.user} {request.seed}"

    return ScriptedEngine(answer)


def run(workers: int, rows: int) -> tuple[float, float]:
    """Seconds that Ray and the workers took to start, and that the stage took then."""
    from vlm_rlaif.datagen.engines.ray_engine import RayEngine

    with tempfile.TemporaryDirectory() as folder:
        warehouse, stage = make_job(Path(folder), rows)
        begun = time.monotonic()
        with closing(RayEngine("scripted", EngineSettings("ray", workers=workers), factory=engine)) as made:
            started = time.monotonic()
            outcome = run_stage(warehouse, stage, lambda: made)
            ended = time.monotonic()
        assert outcome.written == rows, outcome
    print(f"{workers} workers: {started - begun:.1f} s to start, {ended - started:.1f} s", file=sys.stderr)
    return started - begun, ended - started


def figure(values: list[float], unit: str, about: str = "") -> dict[str, object]:
    middle = statistics.median(values)
    found = {"value": middle, "low": min(values), "high": max(values), "n": len(values), "unit": unit}
    return {**found, "about": about} if about else found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--small", action="store_true")
    small = arguments.parse_args().small
    os.environ["RAY_ADDRESS"] = "local"
    rows, repeats = (40, 1) if small else (200, 3)
    runs = [(run(1, rows), run(2, rows)) for _ in range(repeats)]
    startups = [startup for pair in runs for startup, _ in pair]
    figures = {
        "ray_scaling": figure([one / two for (_, one), (_, two) in runs], "ratio"),
        "ray_slot_use": figure(
            [rows * ROW_S / 2 / two for _, (_, two) in runs], "ratio",
            "time that two workers would take at best, over what they took",
        ),
        "ray_startup_s": figure(startups, "s", "start of Ray and its workers, before the first row"),
    }  # fmt: skip
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
