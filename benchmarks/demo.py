"""What `make demo` costs, and that running it again costs nothing.

    python benchmarks/demo.py [--into DIR] [--recipe shapes]

Runs the demo's recipe in a fresh folder, then again, then with one prompt's wording changed, and counts rows. Writes
`benchmarks/results/demo.json`: `journey_minutes`, `peak_memory_gb`, `rerun_rows` (rows that the second run wrote, in
any table) and the tables in which a changed judge prompt made new rows: the labels of that judge, and what is trained
on them. The README's sentence about the demo is written from it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import yaml

from vlm_rlaif.datagen import prompt
from vlm_rlaif.warehouse import Warehouse, config
from vlm_rlaif.warehouse.schema import table_names

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "demo.json"


def journey(recipe: str, into: Path) -> tuple[float, float]:
    """Run a recipe as a user would; (minutes, peak memory in GB)."""
    command = [sys.executable, "-c", "from vlm_rlaif.warehouse.cli import main; main()", "run", recipe]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    started = time.monotonic()
    process = subprocess.Popen([*command, "--into", str(into)], env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the journey ended with status {status}")
    return (time.monotonic() - started) / 60, usage.ru_maxrss / 1e6


def counts(into: Path) -> dict[str, int]:
    warehouse = Warehouse.open(into / "warehouse.duckdb")
    return {name: warehouse.value(f"SELECT count(*) FROM {name}") for name in table_names()}


def changed_prompt(recipe: str, folder: Path) -> str:
    """A copy of the recipe whose judge with context has one more word in its prompt."""
    text = (ROOT / "warehouse" / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")
    settings = yaml.safe_load(text)
    old = prompt.load(settings["label"]["context_prompt"])
    (folder / "judge_changed_v1.md").write_text(f"[user]\n{old.user} .\n", encoding="utf-8")
    settings["label"]["context_prompt"] = "judge_changed_v1.md"
    (folder / "changed.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(folder / "changed.yaml")


def publish(results: dict[str, Any]) -> None:
    """Into the README between its marks."""
    minutes, peak_gb, rerun = (results[key]["value"] for key in ("journey_minutes", "peak_memory_gb", "rerun_rows"))
    changed = ", ".join(f"{count:,} {table}" for table, count in results["changed_judge_prompt_rows"].items())
    said = (
        f"Measured on {os.cpu_count()} CPU cores by `benchmarks/demo.py`, installation apart: the demo takes"
        f" {minutes:.1f} minutes and at most {peak_gb:.1f} GB of memory. Running it again writes {rerun} rows, all"
        " tables together. With one word of the judge's prompt changed, its labels and probes are made again, and"
        f" what is trained on them, and nothing else ({changed})."
    )
    readme = ROOT / "README.md"
    marks = r"(<!-- demo:begin -->\n).*(\n<!-- demo:end -->)"
    text = re.sub(marks, lambda m: m[1] + textwrap.fill(said, 118) + m[2], readme.read_text("utf-8"), flags=re.S)
    readme.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path)
    parser.add_argument("--recipe", default="shapes", choices=config.shipped())
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    into = options.into or Path(tempfile.mkdtemp(prefix="vlm-rlaif-demo-"))
    minutes, peak_gb = journey(options.recipe, into)
    first = counts(into)
    journey(options.recipe, into)
    second = counts(into)
    journey(changed_prompt(options.recipe, into), into)
    third = counts(into)
    results = {
        "recipe": options.recipe,
        "journey_minutes": {"value": minutes, "unit": "minutes"},
        "peak_memory_gb": {"value": peak_gb, "unit": "GB"},
        "rerun_rows": {"value": sum(second.values()) - sum(first.values()), "unit": "rows"},
        "changed_judge_prompt_rows": {t: third[t] - second[t] for t in third if third[t] != second[t]},
        "rows": first,
    }
    options.results.parent.mkdir(exist_ok=True)
    options.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))
    if options.results == RESULTS:
        publish(results)


if __name__ == "__main__":
    main()
