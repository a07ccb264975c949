"""C2: what a job pays for after a crash or a change, in requests that a mock endpoint counts.

    python benchmarks/generating/resume.py [--small]

Every tool runs the same kind of rows on a calm endpoint: killed (`kill -9`) when half is asked for and started again,
started again unchanged, with one more row, with a changed prompt, with a changed model, and with other bytes behind
the path of one video (a picture, for tools that know none). Ours is the command line with real videos. `excess` is
what was paid beyond the exact minimum; `stale` are rows that had to be asked for and were not: the old answers stand.

Requests that are on their way at the kill are lost to everybody (`resume_lost_*`). A rival is forgiven 64 of them, as
many as it has in flight at most; of ours the minimum is what the warehouse, read after the kill, lacks.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from vlm_rlaif.datagen.engines.server_video import png
from vlm_rlaif.datagen.shapes.render import write_mp4
from vlm_rlaif.datagen.shapes.world import World
from vlm_rlaif.warehouse.journal import replay
from vlm_rlaif.warehouse.store import Warehouse

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from clients import mock, rivals_python, say  # noqa: E402

RECIPE = """
clip: {parts: 1}
respond:
  model: "served:MODEL"
  prompt: PROMPT
  frames: {count: 2, size: 32}
  sampling: {temperature: 1.0}
  samples: 5
"""
PROMPTS = {"prompt": "Look closely. {question}", "other_prompt": "Look again. {question}"}
SAMPLES = 5
RIVALS = ("saturate_fixed", "curator", "distilabel")
NO_MEDIA = ("distilabel",)
"""Its task takes text alone."""
IN_FLIGHT = 64
HANGS_S = 60.0
"""A tool that asks for nothing for so long hangs."""

Paid = dict[str, tuple[int, int]]
"""Case -> (requests paid, the exact minimum)."""


class Counted:
    """The endpoint's count of requests."""

    def __init__(self, url: str) -> None:
        self.url, self.root = url, url.removesuffix("/v1")

    def reset(self) -> None:
        httpx.post(f"{self.root}/reset")

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.root}/stats").json()
        return found

    def paid(self, command: Sequence[str]) -> int:
        """Run a command to its end, and count. One that hangs is ended; what it asked for counts."""
        self.reset()
        self.watch(command, until=10**9)
        return int(self.stats()["requests"])

    def watch(self, command: Sequence[str], until: int) -> dict[str, Any]:
        """Run a command until the server has been asked so often: then it is killed, with all that it started."""
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, start_new_session=True, **quiet)
        seen, since_s = 0, time.monotonic()
        while process.poll() is None:
            found = self.stats()
            if found["requests"] != seen:
                seen, since_s = found["requests"], time.monotonic()
            if seen >= until or time.monotonic() - since_s > HANGS_S:
                if seen < until:
                    say("  it asks for nothing any more: ended")
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                break
            time.sleep(0.01)
        return self.stats()


def ours(folder: Path, videos: int, server: Counted) -> tuple[Paid, int]:
    """(what was paid, how many answers the kill lost)."""
    files, world = folder / "videos", World(seed=5)
    files.mkdir()
    for i in range(videos):
        write_mp4(world.video(i), files / f"{i}.mp4", size=32)
    for name, text in PROMPTS.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    place = folder / "w.duckdb"
    tool = str(Path(sys.executable).with_name("vlm-rlaif"))

    def add(rows: Sequence[tuple[str, str]]) -> None:
        lines = (json.dumps({"video": video, "question": text}) for video, text in rows)
        (folder / "q.jsonl").write_text("\n".join(lines), encoding="utf-8")
        command = [tool, "add", place, files, "--questions", folder / "q.jsonl"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def respond(model: str = "mock", prompt: str = "prompt") -> list[str]:
        recipe = folder / f"{model}-{prompt}.yaml"
        recipe.write_text(RECIPE.replace("MODEL", model).replace("PROMPT", str(folder / f"{prompt}.md")))
        return [tool, "datagen", "respond", str(place), "--recipe", str(recipe), "--server", server.url]

    subprocess.run([tool, "init", place], check=True, stdout=subprocess.DEVNULL)
    add([(f"{i}.mp4", f"row-{i:06d} what happens ?") for i in range(videos)])
    rows = SAMPLES * videos
    server.reset()
    first = server.watch(respond(), until=rows // 2)["requests"]
    warehouse = Warehouse.open(place)
    replay(warehouse)
    durable = int(warehouse.value("SELECT count(*) FROM responses"))
    say(f"ours: killed after {first} requests, {durable} rows are durable")
    paid: Paid = {"crash": (server.paid(respond()), rows - durable)}
    paid["unchanged"] = server.paid(respond()), 0
    add([("0.mp4", f"row-{videos:06d} and then ?")])
    paid["one_more_row"] = server.paid(respond()), SAMPLES
    rows += SAMPLES
    paid["changed_prompt"] = server.paid(respond(prompt="other_prompt")), rows
    paid["changed_model"] = server.paid(respond(model="other")), rows
    write_mp4(world.video(videos), files / "1.mp4", size=32)
    known = "SELECT list(video_id) FROM videos"
    before = warehouse.value(known)
    add([])
    [new] = set(warehouse.value(known)) - set(before)
    add([(new, "row-000001 what happens ?")])
    paid["changed_media"] = server.paid(respond()), SAMPLES
    return paid, first - durable


def rival(tool: str, folder: Path, rows: int, server: Counted) -> tuple[Paid, int]:
    """The same, for a tool that `rivals.py` knows."""
    picture = folder / "picture.png"
    made = iter(range(100))

    def command(
        count: int, *, system: str = "Answer.", model: str = "mock", into: str = "out", path: str = ""
    ) -> list[str]:
        asked = [{"id": str(i), "system": system, "user": f"row-{i:06d} what happens ?"} for i in range(count)]
        prompts = folder / f"{tool}{next(made)}.jsonl"
        prompts.write_text("\n".join(json.dumps({**row, **({"path": path} if path else {})}) for row in asked))
        script = [rivals_python(), str(HERE / "rivals.py"), tool, server.url]
        return [*script, str(prompts), str(folder / tool / into), model]

    server.reset()
    killed = server.watch(command(rows), until=rows // 2)
    begun = int(killed["requests"])
    rest = server.paid(command(rows))
    paid: Paid = {"crash": (rest, rows - begun + min(IN_FLIGHT, max(0, begun + rest - rows)))}
    whole = "out"
    if rest < rows - begun:  # it did not come to its end: go on with a run that did
        say(f"  {tool} did not finish after the kill")
        whole = "again"
        server.paid(command(rows, into=whole))
    paid["unchanged"] = server.paid(command(rows, into=whole)), 0
    paid["one_more_row"] = server.paid(command(rows + 1, into=whole)), 1
    paid["changed_prompt"] = server.paid(command(rows, system="Answer briefly.", into=whole)), rows
    paid["changed_model"] = server.paid(command(rows, model="other", into=whole)), rows
    if tool not in NO_MEDIA:
        for shade in (0, 255):
            picture.write_bytes(png(np.full((8, 8, 3), shade, dtype=np.uint8)))
            paid["changed_media"] = server.paid(command(SAMPLES, into="media", path=str(picture))), SAMPLES
    return paid, max(0, begun + rest - rows)


def figures(name: str, paid: Paid, lost: int) -> dict[str, dict[str, Any]]:
    """Excess and stale rows of a tool, over all cases and in each."""
    excess = {case: max(0, asked - least) for case, (asked, least) in paid.items()}
    stale = {case: max(0, least - asked) for case, (asked, least) in paid.items()}
    found = {
        f"resume_paid_{name}_{case}": count(asked, f"requests, minimum {least}")
        for case, (asked, least) in paid.items()
    }
    total = "resume_excess" if name == "ours" else f"resume_excess_{name}"
    found[total] = count(sum(excess.values()), "requests beyond the minimum, over all cases")
    found[f"resume_stale_{name}"] = count(sum(stale.values()), "rows that should have been asked for and were not")
    found[f"resume_lost_{name}"] = count(lost, "requests that the kill made pay twice, those on their way included")
    for case, (asked, least) in paid.items():
        say(f"{name:12} {case:15} paid {asked:5} minimum {least:5} excess {excess[case]:5} stale {stale[case]:5}")
    return found


def count(value: int, about: str) -> dict[str, Any]:
    return {"value": value, "low": value, "high": value, "n": 1, "unit": "", "about": about}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--small", action="store_true", help="200 rows, ours and saturate")
    small = arguments.parse_args().small
    videos = 40 if small else 120
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as made, mock("--calm") as url:
        folder, server = Path(made), Counted(url)
        found |= figures("ours", *ours(folder, videos, server))
        for tool in RIVALS[:1] if small else RIVALS:
            found |= figures(tool.removesuffix("_fixed"), *rival(tool, folder, SAMPLES * videos, server))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
