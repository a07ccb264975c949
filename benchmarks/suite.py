"""A benchmark of several parts: each is a script that prints its figures, in a process and an environment of its own.

Not to be run by itself: `generation.py` and `feedback.py` say which parts there are, and what each figure should be.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
PAGE, FRONT = HERE / "README.md", ROOT / "README.md"
Figures = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Suite:
    """The parts of a benchmark, its results in `results/NAME.json`, and its tables in two pages."""

    name: str
    folder: str
    """Of the scripts, below this one."""
    parts: Mapping[str, str]
    """Part -> the environment that it runs in."""
    targets: Mapping[str, tuple[str, str]]
    """Figure -> what it is, and what it should be."""

    @property
    def results(self) -> Path:
        return HERE / "results" / f"{self.name}.json"

    def main(self, about: str | None) -> None:
        """The command line: measures the parts that are asked for."""
        arguments = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
        arguments.add_argument("--only", nargs="+", choices=self.parts, default=list(self.parts))
        arguments.add_argument("--small", action="store_true", help="quick; nothing is written")
        given = arguments.parse_args()
        for part in given.only:
            figures = self.measure(part, given.small)
            print(json.dumps(figures, indent=1))
            if not given.small:
                self.write(figures)

    def measure(self, part: str, small: bool) -> Figures:
        """The figures of one part, from the last line of what it prints."""
        command = [str(ROOT / self.parts[part] / "bin" / "python"), str(HERE / self.folder / f"{part}.py")]
        done = subprocess.run([*command, *(["--small"] if small else [])], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"{part} failed; `{' '.join(command)}` tries it alone.")
        figures: Figures = json.loads(done.stdout.splitlines()[-1])
        return figures

    def write(self, figures: Figures) -> None:
        """Add to the results, and bring the tables of both pages up to date."""
        found = json.loads(self.results.read_text(encoding="utf-8")) if self.results.exists() else {}
        found |= figures
        self.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        self._put(PAGE, self.table(found))
        self._put(FRONT, self.front(found))

    def _put(self, page: Path, text: str) -> None:
        """Replace what stands between the marks of a page."""
        begin, end = f"<!-- {self.name}:begin -->\n", f"<!-- {self.name}:end -->"
        before, found, rest = page.read_text(encoding="utf-8").partition(begin)
        if not found:
            sys.exit(f"{page} has no line {begin}")
        page.write_text(before + begin + text + end + rest.partition(end)[2], encoding="utf-8")

    def front(self, figures: Figures) -> str:
        """The table of the front page: the figures that have a target."""
        return self.table({name: figures[name] for name in self.targets if name in figures})

    def table(self, figures: Figures) -> str:
        """The figures as a Markdown table: those with a target first, in its order."""
        lines = ["| figure | value | range | n | target | what it is |", "|---|---|---|---|---|---|"]
        for name in [*(n for n in self.targets if n in figures), *(n for n in figures if n not in self.targets)]:
            one = figures[name]
            about, target = self.targets.get(name, (one.get("about", ""), ""))
            span = "" if one["low"] is None else f"{one['low']:.4g} to {one['high']:.4g}"
            lines.append(
                f"| `{name}` | {one['value']:.4g} {one['unit']} | {span} | {one['n']} | {target} | {about} |"
            )
        return "\n".join(lines) + "\n"
