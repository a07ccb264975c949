"""Kill jobs at random moments, run them again, and compare with a run that nobody disturbed.

    python benchmarks/kills.py --kills 200

Every stage that asks a model runs with the scripted engine, which writes down each request that it answers: what was
paid for. `kill -9` comes at a random moment, then the same job starts again, until it ends by itself; then a new
warehouse, until there were enough kills. A request that is paid twice was in flight when its job was killed; an
answered one is in the journal before the next is asked, so at most one a kill is allowed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from vlm_rlaif.datagen.engine import Request, ScriptedEngine
from vlm_rlaif.datagen.job import run_stage
from vlm_rlaif.datagen.plan import ask_stage, caption_stage, clip_method, context_spec, part, respond_stage
from vlm_rlaif.datagen.stages.clip import clip
from vlm_rlaif.datagen.stages.context import context
from vlm_rlaif.datagen.stages.pair import pair
from vlm_rlaif.feedback.judges.pairwise import label_stage
from vlm_rlaif.warehouse import config, journal
from vlm_rlaif.warehouse.records import Question, Record, Video, row_id
from vlm_rlaif.warehouse.schema import table_names
from vlm_rlaif.warehouse.store import Warehouse

RECIPE = """
clip: {parts: 2}
caption: {model: MODEL, prompt: caption_compact_v1, frames: {count: 2}}
context: {prompt: context_compact_v1}
ask: {model: MODEL, prompt: ask_v1}
respond: {model: MODEL, prompt: respond_compact_v1, frames: {count: 2}}
label: {model: MODEL, prompt: judge_compact_v1, context_prompt: judge_context_compact_v1, frames: {count: 2}}
"""
VIDEOS = 24
MERGE_S = 0.2
"""Merge so often that many kills meet a merge."""
LONGEST = 0.8
"""A job is killed at most this long after its start, as a share of the time that an undisturbed one takes."""


def make_world(folder: Path) -> Path:
    """A warehouse of videos without files, half of them without questions, and a recipe; the recipe's path."""
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("MODEL", str(model)))
    rows: list[Record] = []
    for number in range(VIDEOS):
        video_id = row_id("video", number)
        rows.append(
            Video(
                video_id=video_id, uri=f"{number}.mp4", source="test", video_group=video_id, split="train",
                status="ok", duration_s=4.0, run_id="test",
            )
        )  # fmt: skip
        rows += [
            Question(
                question_id=row_id("question", video_id, text), video_id=video_id, text=text, source="imported",
                run_id="test",
            )
            for text in ("what happens ?", "who is it ?")
            if number % 2
        ]  # fmt: skip
    Warehouse.create(folder / "fresh.duckdb").append(rows)
    return recipe


def work(warehouse: Warehouse, recipe_file: Path, paid: Path) -> None:
    """Every generation and label stage, once."""
    recipe = config.load(str(recipe_file))
    with paid.open("a", encoding="utf-8") as log:

        def answer(request: Request) -> str | dict[str, float]:
            log.write(f"{request.request_id}\n")
            log.flush()
            time.sleep(0.002)
            draw = random.Random(request.request_id)
            if draw.random() < 0.03:
                raise ValueError("the engine stumbled")
            if request.choices:
                return {"A": draw.random() / 2, "B": draw.random() / 2, "C": 0.0}
            return f"What is {draw.randrange(10**6)} ?"

        def engine() -> ScriptedEngine:
            return ScriptedEngine(answer)

        clip(warehouse, part(recipe, "clip"))
        run_stage(warehouse, caption_stage(recipe), engine)
        context(warehouse, context_spec(recipe), caption_stage(recipe).spec.spec_id, clip_method(recipe))
        run_stage(warehouse, ask_stage(recipe), engine)
        run_stage(warehouse, respond_stage(recipe), engine)
        pair(warehouse, respond_stage(recipe).spec.spec_id)
        for arm in ("context", "none"):
            run_stage(warehouse, label_stage(recipe, arm), engine)


def content(warehouse: Warehouse) -> dict[str, tuple[int, str]]:
    """Rows and their hash, by table; without the runs, which differ, and the rows' names of them."""
    found = {}
    for table in table_names():
        if table not in ("runs", "steps"):
            rows = sorted(repr(sorted({**row, "run_id": ""}.items())) for row in warehouse.rows(f"FROM {table}"))
            found[table] = len(rows), hashlib.sha256("\n".join(rows).encode()).hexdigest()
    return found


def serve() -> None:
    """Start a job per line of input, from a process that has imported everything: its pid, then how it ended."""
    for line in sys.stdin:
        warehouse, recipe, paid = map(Path, line.strip().split("\t"))
        pid = os.fork()
        if not pid:
            journal.MERGE_S, journal.MERGE_SHARE = MERGE_S, 1.0
            work(Warehouse(warehouse), recipe, paid)
            os._exit(0)
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


@dataclass(slots=True)
class Result:
    """What the kills did."""

    kills: int = 0
    warehouses: int = 0
    lost: int = 0
    """Rows of the undisturbed run that are missing."""
    duplicated: int = 0
    """Rows that are too many, and requests paid twice beyond one a kill."""
    paid_twice: int = 0
    differing: list[str] = field(default_factory=list)
    """Tables whose content is not that of the undisturbed run."""
    unfinished_runs: int = 0
    """Runs that still say `running` at the end."""


def torture(folder: Path, kills: int, seed: int = 0) -> Result:
    """At least so many kills, and every disturbed warehouse compared with an undisturbed one."""
    recipe = make_world(folder)
    fresh, calm = folder / "fresh.duckdb", folder / "calm.duckdb"
    shutil.copy(fresh, calm)
    started = time.monotonic()
    work(Warehouse(calm), recipe, folder / "calm.txt")
    longest_s = LONGEST * (time.monotonic() - started)
    expected = content(Warehouse(calm))
    draw, result = random.Random(seed), Result()
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        while result.kills < kills:
            place = folder / f"{result.warehouses}"
            place.mkdir()
            path = Path(shutil.copy(fresh, place / "w.duckdb"))
            before = result.kills
            while not _one_job(server, f"{path}\t{recipe}\t{place / 'paid.txt'}", draw.uniform(0.0, longest_s)):
                result.kills += 1
            _compare(result, Warehouse(path), expected, place / "paid.txt", result.kills - before)
    finally:
        server.kill()
        server.wait()
    return result


def _one_job(server: subprocess.Popen[str], job: str, life_s: float) -> bool:
    """Start a job and kill it after a while; whether it ended by itself."""
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(f"{job}\n")
    server.stdin.flush()
    pid = int(server.stdout.readline())
    time.sleep(life_s)
    with suppress(ProcessLookupError):  # it has ended
        os.kill(pid, signal.SIGKILL)
    status = int(server.stdout.readline())
    if status not in (0, signal.SIGKILL):
        raise RuntimeError(f"A job ended with status {status}.")
    return status == 0


def _compare(
    result: Result, warehouse: Warehouse, expected: dict[str, tuple[int, str]], paid: Path, kills: int
) -> None:
    found = content(warehouse)
    result.warehouses += 1
    for table, (rows, _) in expected.items():
        result.lost += max(0, rows - found[table][0])
        result.duplicated += max(0, found[table][0] - rows)
        if found[table] != expected[table]:
            result.differing.append(table)
    requests = paid.read_text(encoding="utf-8").split()
    twice = len(requests) - len(set(requests))
    result.paid_twice += twice
    result.duplicated += max(0, twice - kills)
    result.unfinished_runs += warehouse.value("SELECT count(*) FROM runs WHERE status = 'running'")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve()
        return
    with tempfile.TemporaryDirectory() as folder:
        result = torture(Path(folder), given.kills, given.seed)
    print(json.dumps({name: getattr(result, name) for name in Result.__slots__}, indent=1))


if __name__ == "__main__":
    main()
