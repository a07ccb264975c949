"""C1: how much of a server's slots each client uses, on a mock endpoint in a process of its own (`mock_server.py`).

    python benchmarks/generating/clients.py [--small]

Ours is `run_stage` into a warehouse, where every row is durable before it counts. `slot_use` is the time of an ideal
client, which hands out the same rows in the same order without any loss (a repeated row at once), over that of this
whole call. Clients are compared by the time from the server's first request to its last answer, so that nobody's
start and end weigh, and by the rows that came back. `vs_saturate` is saturate as its docs advise: it finds its window
itself, on a server that says how full it is, as ours does then. `vs_naive` and `vs_saturate_fixed` are told that
there are 64 slots, ours is not; `vs_naive_limit` is what a client without any loss would reach there. Rivals
(`rivals.txt`) run in an environment of their own, made in the cache folder at the first time. The rounds are
interleaved; figures are medians.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from vlm_rlaif.datagen.plan import ask_stage, context_spec
from vlm_rlaif.warehouse import config
from vlm_rlaif.warehouse.records import Context, Video, row_id
from vlm_rlaif.warehouse.store import Warehouse

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from mock_server import mishap, service_s  # noqa: E402

SLOTS = 64
RIVALS_PYTHON = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vlm-rlaif" / "rivals"
RECIPE = """
clip: {parts: 1}
caption: {model: "served:MODEL", prompt: caption_v1, frames: {count: 2}}
context: {prompt: context_v1}
ask: {model: "served:MODEL", prompt: PROMPT}
"""
OURS = """
import json, sys, time
from pathlib import Path
from vlm_rlaif.datagen.engines.server_engine import ServerEngine
from vlm_rlaif.datagen.job import run_stage
from vlm_rlaif.datagen.plan import ask_stage
from vlm_rlaif.warehouse import config
from vlm_rlaif.warehouse.store import Warehouse

place, url, recipe = sys.argv[1:4]
stage = ask_stage(config.load(recipe))
begun = time.monotonic()
done = run_stage(Warehouse(Path(place)), stage, lambda: ServerEngine(stage.spec.model, servers=[url]))
print(json.dumps({"rows": done.written, "seconds": time.monotonic() - begun, "failed": done.failed}))
"""
RIVALS = ("naive", "saturate_fixed", "curator", "distilabel", "distilabel_500")
ABOUT = {
    "ours_metrics": "ours, where the server says how full it is",
    "naive": "asyncio and httpx, told that there are 64 slots",
    "saturate": "saturate Auto, where the server says how full it is",
    "saturate_blind": "saturate Auto, where it does not",
    "saturate_fixed": "saturate Fixed(64)",
    "distilabel": "distilabel with its default batch of 50",
    "distilabel_500": "distilabel with batches of 500",
}
OURS_NAMES = {"ours": "slot_use", "ours_metrics": "slot_use_metrics"}
NO_HALF_JSON = ("distilabel", "distilabel_500")
"""One reply that is no JSON costs distilabel 1.5.3 a whole batch, and then the run: it is spared that."""


@contextmanager
def mock(*options: str) -> Iterator[str]:
    """The address of a mock endpoint."""
    command = [sys.executable, str(HERE / "mock_server.py"), "--slots", str(SLOTS), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        process.communicate()


def rivals_python() -> str:
    """The interpreter of the rivals' environment, which is made where it is missing."""
    python = RIVALS_PYTHON / "bin" / "python"
    if not (RIVALS_PYTHON / "complete").exists():
        say(f"installing the rivals into {RIVALS_PYTHON}")
        subprocess.run([sys.executable, "-m", "venv", str(RIVALS_PYTHON)], check=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "-r", str(HERE / "rivals.txt")], check=True, stdout=2
        )
        (RIVALS_PYTHON / "complete").touch()
    return str(python)


def write_recipe(folder: Path, *, model: str = "mock", prompt: str = "ask_v1") -> Path:
    path = folder / f"{model}-{Path(prompt).stem}.yaml"
    path.write_text(RECIPE.replace("MODEL", model).replace("PROMPT", prompt), encoding="utf-8")
    return path


def fill(warehouse: Warehouse, recipe: config.Recipe, rows: Sequence[int]) -> None:
    """Videos with a context each, about which a model is to write questions."""
    spec, made = context_spec(recipe).spec_id, []
    for row in rows:
        video = row_id("video", str(row))
        text = f"row-{row:06d} " + "a red circle moves to the left , then a blue square blinks . " * 4
        made.append(
            Video(
                video_id=video, uri=f"{row}.mp4", source="mock", video_group=video, split="train", status="ok",
                duration_s=4.0, run_id="mock",
            )
        )  # fmt: skip
        made.append(
            Context(
                context_id=row_id("context", spec, video), video_id=video, spec_id=spec, caption_ids=(), text=text,
                run_id="mock",
            )
        )  # fmt: skip
    warehouse.append(made)


def prompts(warehouse: Warehouse, recipe: config.Recipe) -> list[dict[str, str]]:
    """What our stage asks, in its order."""
    stage = ask_stage(recipe)
    asked = [stage.request(warehouse, row) for row in stage.pending(warehouse)]
    return [{"id": each.request_id, "system": each.system, "user": each.user} for each in asked]


def ideal_s(rows: Sequence[int]) -> float:
    """When a client without any loss is done: a free slot takes the next row, or one that has to be repeated."""
    free = [0.0] * SLOTS
    again: list[tuple[float, int]] = []
    waiting = iter(rows)
    end = 0.0
    row = next(waiting, None)
    while row is not None or again:
        slot = heapq.heappop(free)
        if again and (again[0][0] <= slot or row is None):
            back, repeated = heapq.heappop(again)
            done = max(slot, back) + service_s(repeated)
        else:
            assert row is not None
            done = slot + service_s(row)
            if mishap(row):
                heapq.heappush(again, (done, row))
            row = next(waiting, None)
        heapq.heappush(free, done)
        end = max(end, done)
    return end


def run(command: Sequence[str], url: str, reset: str = "reset") -> dict[str, Any]:
    """What a client says at its end, and what the server has seen of it."""
    root = url.removesuffix("/v1")
    httpx.post(f"{root}/{reset}")
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=900)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    said = json.loads(lines[-1]) if lines and not done.returncode else {"rows": 0, "seconds": None}
    return {**said, "server": httpx.get(f"{root}/stats").json()}


class Race:
    """The same rows for every client, in interleaved rounds."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.folder, self.rows = folder, rows
        self.recipe_file = write_recipe(folder)
        recipe = config.load(str(self.recipe_file))
        self.full = Warehouse.create(folder / "full.duckdb")
        fill(self.full, recipe, range(rows))
        asked = prompts(self.full, recipe)
        self.order = [int(prompt["user"].partition("row-")[2][:6]) for prompt in asked]
        self.prompts = folder / "prompts.jsonl"
        self.prompts.write_text("\n".join(map(json.dumps, asked)), encoding="utf-8")
        self.whole_s: dict[str, list[float]] = {}
        """Client -> seconds of the whole call, in each round."""
        self.times: dict[str, list[float]] = {}
        """Client -> seconds from the first request to the last answer, for all rows."""
        self.busy: dict[str, list[float]] = {}

    def ours(self, url: str, name: str, number: int) -> None:
        place = self.folder / f"{name}{number}.duckdb"
        place.write_bytes(self.full.path.read_bytes())
        command = [sys.executable, "-c", OURS, str(place), url, str(self.recipe_file)]
        self.note(name, run(command, url))

    def rival(self, tool: str, url: str, name: str, number: int) -> None:
        into = self.folder / f"{name}{number}"
        command = [rivals_python(), str(HERE / "rivals.py"), tool, url, str(self.prompts), str(into)]
        done = run(command, url, "reset?whole" if tool in NO_HALF_JSON else "reset")
        self.note(name, done)

    def note(self, name: str, done: dict[str, Any]) -> None:
        rows, server = done["rows"], done["server"]
        say(
            f"{name}: {rows} rows, {server['span_s']:.2f} s, {server['requests']} requests, busy {server['busy']:.3f}"
        )
        if rows < 0.97 * self.rows:
            say(f"  {name} did not finish its rows")
            return
        self.whole_s.setdefault(name, []).append(float(done["seconds"]))
        self.times.setdefault(name, []).append(server["span_s"] / rows * self.rows)
        self.busy.setdefault(name, []).append(server["busy"])


def figures(race: Race) -> dict[str, dict[str, Any]]:
    ideal = ideal_s(race.order)
    say(f"ideal: {ideal:.2f} s")
    found: dict[str, dict[str, Any]] = {}
    for name, times in race.times.items():
        found[f"slot_busy_{name}"] = figure(race.busy[name], "of slots", f"time that slots worked: {words(name)}")
        if name in OURS_NAMES:
            found[OURS_NAMES[name]] = figure([ideal / each for each in race.whole_s[name]], "of ideal", words(name))
            continue
        base = race.times["ours_metrics" if name == "saturate" else "ours"]
        ratios = [theirs / mine for theirs, mine in zip(times, base, strict=False)]
        found[f"vs_{name}"] = figure(ratios, "times", f"throughput over {words(name)}, same rows, same run")
    limits = [each / ideal for each in race.times["naive"]]
    found["vs_naive_limit"] = figure(limits, "times", "what a client without any loss would have over naive")
    return found


def words(name: str) -> str:
    return ABOUT.get(name, name.replace("_", " "))


def figure(values: Sequence[float], unit: str, about: str) -> dict[str, Any]:
    found = {"value": median(values), "low": min(values), "high": max(values), "n": len(values), "unit": unit}
    return {**found, "about": about}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--small", action="store_true", help="300 rows, one round, ours and two rivals")
    small = arguments.parse_args().small
    rivals_python()
    with tempfile.TemporaryDirectory() as made, mock() as url, mock("--metrics") as telling:
        race = Race(Path(made), 300 if small else 2000)
        for number in range(1 if small else 3):
            race.ours(url, "ours", number)
            for tool in RIVALS[:2] if small else RIVALS:
                race.rival(tool, url, tool, number)
            race.ours(telling, "ours_metrics", number)
            race.rival("saturate_auto", telling, "saturate", number)
        if not small:  # minutes
            race.rival("saturate_auto", url, "saturate_blind", 0)
        print(json.dumps(figures(race)))


if __name__ == "__main__":
    main()
