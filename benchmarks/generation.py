"""How fast generation is, as ratios against named rivals in one run.

    python benchmarks/generation.py [--only clients resume prefix pipeline ray memory] [--small]

Each part lives in `benchmarks/generating/NAME.py`, which says what it needs, and runs in a process of its own:
`clients` (C1) slot use and throughput on a mock endpoint; `resume` (C2) requests paid in every case of the resume
matrix; `prefix` (C3) grouped dispatch and prefix caching on vLLM; `pipeline` (C4) a stage against the bare engine;
`ray` (C5) two workers against one; `memory` a job of 1,000 against one of 100,000 rows. `prefix` and `pipeline` run
in the environment that `tests/vllm/install.sh` makes. Writes `benchmarks/results/generation.json`, its table in
`benchmarks/README.md`, and the figures with a target into the README. `--small` is quick, to try it, and writes
nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "results" / "generation.json"
PAGE, FRONT = HERE / "README.md", ROOT / "README.md"
MARKS = "<!-- generation:begin -->\n", "<!-- generation:end -->"
TARGETS = {
    "slot_use": ("C1: ours on 64 slots, over the best that any client could do in this order", ">= 0.90"),
    "vs_saturate": ("throughput over saturate's, as its docs advise", ">= 1.15"),
    "vs_naive": ("throughput over 64 requests at a time with asyncio and httpx", ">= 1.15"),
    "vs_distilabel": ("throughput over distilabel's default", ">= 3"),
    "resume_excess": ("C2: requests paid beyond the exact minimum, over all cases", "0"),
    "prefix_speedup": ("C3: grouped dispatch with caching over shuffled without", ">= 1.5"),
    "prefix_hit_rate": ("share of prompt tokens found in the cache, grouped with caching", ""),
    "pipeline_overhead": ("C4: wall time of a stage over bare `generate` on the same prompts", "<= 1.05"),
    "ray_scaling": ("C5: two workers over one, 0.2 s a row", ">= 1.7"),
    "memory_growth": ("peak memory of 100,000 rows over that of 1,000", "flat"),
}
"""What a figure is, and what it should be."""
PARTS = {
    "clients": ".venv", "resume": ".venv", "prefix": ".venv-vllm", "pipeline": ".venv-vllm", "ray": ".venv",
    "memory": ".venv",
}  # fmt: skip
"""Part -> the environment that it runs in."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments.add_argument("--small", action="store_true", help="quick; nothing is written")
    given = arguments.parse_args()
    for part in given.only:
        figures = measure(part, given.small)
        print(json.dumps(figures, indent=1))
        if not given.small:
            write(figures)


def measure(part: str, small: bool) -> dict[str, dict[str, object]]:
    """The figures of one part, from the last line of what it prints."""
    command = [str(ROOT / PARTS[part] / "bin" / "python"), str(HERE / "generating" / f"{part}.py")]
    done = subprocess.run([*command, *(["--small"] if small else [])], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{part} failed; `{' '.join(command)}` tries it alone.")
    figures: dict[str, dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    return figures


def write(figures: dict[str, dict[str, object]]) -> None:
    """Add to the results, and bring the page's table up to date."""
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    found |= figures
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    put(PAGE, table(found))
    put(FRONT, table({name: found[name] for name in TARGETS if name in found}))


def put(page: Path, text: str) -> None:
    """Replace what stands between the marks of a page."""
    begin, end = MARKS
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    page.write_text(before + begin + text + end + rest.partition(end)[2], encoding="utf-8")


def table(figures: dict[str, dict[str, object]]) -> str:
    """The figures as a Markdown table: those with a target first, in its order."""
    lines = ["| figure | value | range | n | target | what it is |", "|---|---|---|---|---|---|"]
    for name in [*(n for n in TARGETS if n in figures), *(n for n in figures if n not in TARGETS)]:
        one, (about, target) = figures[name], TARGETS.get(name, (figures[name].get("about", ""), ""))
        lines.append(
            f"| `{name}` | {one['value']:.4g} {one['unit']} | {one['low']:.4g} to {one['high']:.4g} | {one['n']}"
            f" | {target} | {about} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
