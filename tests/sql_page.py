"""`docs/sql.md`: its queries, the small warehouse that they are asked, and their real output.

    python tests/sql_page.py    writes the outputs into the page anew

The warehouse is the fixture (a run of `shapes-mini`) with a version of its preferences, and with a second judge that
was interrupted: some of its labels are there, some failed, some are missing.
"""

from __future__ import annotations

import gzip
import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from vlm_rlaif.warehouse.care.keys import label_id
from vlm_rlaif.warehouse.exports.versions import Selection, create
from vlm_rlaif.warehouse.records import Failure, Label, Record, Run, Spec
from vlm_rlaif.warehouse.store import Warehouse

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "sql.md"
FIXTURE = ROOT / "tests" / "fixtures" / "m001_initial.duckdb.gz"
RUN = "20261125-090000-5ec0de"
STARTED = datetime(2026, 11, 25, 9)
RECIPE = """
respond:
  model: mine
  prompt: short_answer.md
  frames: {count: 3, size: 32, repeat: 2}
  sampling: {temperature: 0.7, max_new_tokens: 64}
"""
_BLOCK = re.compile(r'^```console\n\$ (vlm-rlaif (?:[^"\n]|"[^"]*")*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Example:
    """A command of the page, and what it printed."""

    command: str
    output: str

    @property
    def arguments(self) -> list[str]:
        return shlex.split(self.command)[1:]


def examples(text: str) -> Iterator[Example]:
    """Every command of a page that says what it prints."""
    for found in _BLOCK.finditer(text):
        yield Example(found[1], found[2])


def make(folder: Path) -> Warehouse:
    """The warehouse that the page asks, `w.duckdb`, and a recipe beside it whose model is an empty folder."""
    (folder / "w.duckdb").write_bytes(gzip.decompress(FIXTURE.read_bytes()))
    (folder / "mine").mkdir()
    (folder / "mine" / "config.json").write_text("{}")
    (folder / "mine.yaml").write_text(RECIPE)
    (folder / "short_answer.md").write_text("{question} Answer in one sentence.")
    warehouse = Warehouse.create(folder / "w.duckdb")
    create(warehouse, "taught", Selection(judge="judge_context_compact_v1", split="train"))
    warehouse.append(_second_judge(warehouse))
    return warehouse


def _second_judge(warehouse: Warehouse) -> list[Record]:
    """A judge that likes long responses, and a little what it is shown first. It got through 60 of 100 pairs."""
    pairs = warehouse.rows(
        "SELECT p.pair_id, a.spec_id, a.tokens - b.tokens AS longer FROM pairs p"
        " JOIN responses a ON a.response_id = p.response_a JOIN responses b ON b.response_id = p.response_b"
        " ORDER BY p.pair_id LIMIT 60"
    )
    spec = Spec.make(
        stage="label", model="org/second-judge", revision="0123abcd", prompt="judge_v1", prompt_hash="89abcdef",
        frames={"count": 8, "repeat": 1}, sampling={}, upstream={"respond": pairs[0]["spec_id"]}, run_id=RUN,
    )  # fmt: skip
    made = [_verdict(spec, place, pair, order) for place, pair in enumerate(pairs) for order in ("ab", "ba")]
    labels = sum(isinstance(row, Label) for row in made)
    run = Run(
        run_id=RUN, stage="label", config=json.dumps(asdict(spec)), code_version="0.1.0", engine="vllm",
        host="server", started_at=STARTED, ended_at=STARTED + timedelta(seconds=24), status="interrupted",
        rows_written=labels, rows_failed=len(made) - labels, tokens_in=14_520, tokens_out=120, gpu_seconds=24.0,
    )  # fmt: skip
    return [run, spec, *made]


def _verdict(spec: Spec, place: int, pair: dict[str, Any], order: str) -> Label | Failure:
    row_id = label_id(spec.spec_id, pair["pair_id"], None, order)
    if place % 12 == 5:
        message = "The engine gave no probabilities of the labels A, B, C."
        return Failure(row_id=row_id, stage="label", attempt=1, kind="unparsable", message=message,
                       reply="Both are fine.", run_id=RUN)  # fmt: skip
    liking = int(pair["pair_id"][:4], 16) / 0xFFFF
    p_a = round(0.2 + 0.5 * liking + (0.06 if order == "ab" else -0.06) + 0.02 * max(-5, min(5, pair["longer"])), 4)
    choice = "tie" if abs(p_a - 0.45) < 0.02 else "a" if p_a > 0.45 else "b"
    reply = "C" if choice == "tie" else "A" if (choice == "a") == (order == "ab") else "B"
    return Label(label_id=row_id, pair_id=pair["pair_id"], spec_id=spec.spec_id, context_id=None, shown_order=order,
                 vote=0, choice=choice, p_a=p_a, p_tie=0.1, reply=reply, cached_tokens=0, run_id=RUN)  # fmt: skip


def ask(folder: Path, example: Example) -> str:
    """What a command of the page prints where its warehouse lies."""
    command = [Path(sys.executable).with_name("vlm-rlaif"), *example.arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{example.command}\n{done.stderr}"
    return done.stdout.replace("\r\n", "\n")


def rewrite() -> None:
    """Ask every query anew, and write the outputs into the page."""
    text = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        for example in list(examples(text)):
            head = f"```console\n$ {example.command}\n"
            assert text.count(head) == 1, example.command
            start = text.index(head) + len(head)
            text = text[:start] + ask(Path(folder), example) + text[text.index("```", start) :]
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    rewrite()
