"""How quick is the page of a pair, with a million labels? First contentful paint in a real browser.

    .venv-audit/bin/python benchmarks/judging/page.py [--small]

Needs chromium and the environment that `tests/studio/install.sh` makes. `vlm-rlaif view` serves 500,000 pairs, judged
in both orders; the browser begins every load with an empty cache and counts from the start of the navigation to the
first words on the screen. `view_first_paint_s` is the median of five pairs from all over the list. Beside it: the
same for pages of the list, how long the snapshot takes at the start, and the memory of the server. The videos have no
files.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from big_warehouse import make

LABELS = {False: 1_000_000, True: 20_000}
WORDS = ("cat+ball", "dog+door", "red+knife", "street+falls", "blue+table")
"""Each is searched for once, because what a search found is kept."""
LOADS = len(WORDS)
LISTS = {
    "view_list_s": ([""] * LOADS, "a page of the list"),
    "view_sorted_s": (["sort=unsure&show=conflicts"] * LOADS, "the list of conflicts, least sure first"),
    "view_search_s": ([f"text={words}" for words in WORDS], "the list after a search through all texts"),
}
BROWSER = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
           "--disable-component-update", "--disable-sync"]  # fmt: skip
PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
Figure = dict[str, Any]


@contextmanager
def served(path: Path) -> Iterator[tuple[str, float, int]]:
    """(address, seconds until it answers, pid) of `vlm-rlaif view`."""
    began = time.monotonic()
    command = [Path(sys.executable).with_name("vlm-rlaif"), "view", path, "--port", "0", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        print(process.stdout.readline().strip(), file=sys.stderr)
        yield process.stdout.readline().split()[0], time.monotonic() - began, process.pid
        process.send_signal(signal.SIGTERM)


def paint_s(browser: Any, address: str) -> float:
    """Seconds from the start of the navigation to the first words, with nothing in the browser's cache."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.goto(address)
    page.wait_for_function(PAINT)
    found: float = page.evaluate(PAINT) / 1000
    context.close()
    return found


def pairs(browser: Any, url: str, total: int) -> list[str]:
    """Addresses of pairs from all over the list, the first and the last half among them."""
    rng, found = random.Random(0), []
    page = browser.new_page()
    for load in range(LOADS):
        page.goto(f"{url}?after={(load * total + rng.randrange(total)) // LOADS}")
        found.append(url.rstrip("/") + page.locator(".pairs a").nth(rng.randrange(10)).get_attribute("href"))
    page.close()
    return found


def memory_mb(pid: int, which: str) -> float:
    """`VmHWM`: the most that a process has held; `VmRSS`: what it holds now."""
    found = re.search(rf"{which}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1000


def figure(values: Sequence[float], unit: str, about: str) -> Figure:
    several = len(values) > 1
    return {"value": statistics.median(values), "unit": unit, "low": min(values) if several else None,
            "high": max(values) if several else None, "n": len(values), "about": about}  # fmt: skip


def main() -> None:
    from playwright.sync_api import sync_playwright

    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--small", action="store_true")
    labels = LABELS[arguments.parse_args().small]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = make(Path(folder) / "w.duckdb", labels, judges=1).path
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=BROWSER)
        with served(path) as (url, start_s, pid):
            paints = [paint_s(browser, address) for address in pairs(browser, url, labels // 2)]
            figures = {"view_first_paint_s": figure(paints, "s", "")}
            for name, (queries, about) in LISTS.items():
                paints = [paint_s(browser, f"{url}?{query}") for query in queries]
                figures[name] = figure(paints, "s", f"first paint of {about}")
            figures["view_start_s"] = figure(
                [start_s], "s", f"until `view` answers: the snapshot and its list, {labels:,} labels"
            )
            for name, which, about in (("view_peak_mb", "VmHWM", "at most"), ("view_mb", "VmRSS", "afterwards")):
                figures[name] = figure([memory_mb(pid, which)], "MB", f"memory of the server, {about}")
        browser.close()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
