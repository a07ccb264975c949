"""`docs/agreement.md`: its commands, the small warehouse that they are run on, and their real output.

    python tests/agreement_page.py    writes the outputs into the page anew

The warehouse is the fixture, a run of `shapes-mini`, with an audit whose two people are played by a script: they know
the truth, and mostly say it. Commands run in the order of the page, as one of them writes labels.
"""

from __future__ import annotations

import gzip
import importlib.util
import random
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from types import ModuleType

from vlm_rlaif.feedback.known import find_judge, known
from vlm_rlaif.warehouse.records import Audit, AuditPlan, AuditTask, Record
from vlm_rlaif.warehouse.store import Warehouse

PAGE = Path(__file__).parents[1] / "docs" / "agreement.md"
JUDGE = "judge_context_compact_v1"
PEOPLE = ("1", "2")
RIGHT = 0.85
"""How often a person says the truth."""
AUDITED = {"conflict": 20, "agreed": 40}
"""Pairs of each stratum."""


def _sql_page() -> ModuleType:
    """The page next door has what pages of commands share."""
    spec = importlib.util.spec_from_file_location("sql_page", Path(__file__).with_name("sql_page.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["sql_page"] = module
    spec.loader.exec_module(module)
    return module


pages = _sql_page()


def make(folder: Path) -> Warehouse:
    """The warehouse of the page, `w.duckdb`."""
    (folder / "w.duckdb").write_bytes(gzip.decompress(pages.FIXTURE.read_bytes()))
    warehouse = Warehouse.create(folder / "w.duckdb")
    warehouse.append(_audit(warehouse))
    return warehouse


def _audit(warehouse: Warehouse) -> list[Record]:
    judge, rng, run = find_judge(warehouse, JUDGE), random.Random(0), pages.RUN
    truth = known(warehouse, "truth")
    right = dict(zip(truth["pair_id"], truth["choice"], strict=True))
    rows: list[Record] = [AuditPlan(plan_id="first", name="first", judge=judge, config="{}", run_id=run)]
    for stratum, most in AUDITED.items():
        there = warehouse.query(
            "SELECT pair_id FROM preferences WHERE judge = ? AND conflict = ? ORDER BY pair_id",
            [judge, stratum == "conflict"],
        )["pair_id"].to_list()
        chosen = there[:most]
        for pair in chosen:
            rows.append(
                AuditTask(
                    audit_task_id=f"first/{pair}", plan_id="first", pair_id=pair, stratum=stratum,
                    weight=len(there) / len(chosen), shown_order="ab", annotators=2, run_id=run,
                )
            )  # fmt: skip
            rows += [_said(pair, person, right[pair], rng) for person in PEOPLE]
    return rows


def _said(pair: str, person: str, right: str, rng: random.Random) -> Audit:
    choice = right if rng.random() < RIGHT else rng.choice(["a", "b", "both_bad"])
    return Audit(
        audit_id=f"first/{pair}/{person}", plan_id="first", pair_id=pair, annotator=person,
        annotation=f"{pair}/{person}",
        choice=choice, shown_order="ab", updated_at=datetime(2026, 11, 25, 10), reply="{}", run_id=pages.RUN,
    )  # fmt: skip


def rewrite() -> None:
    """Run every command anew, and write the outputs into the page."""
    text = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        for example in list(pages.examples(text)):
            head = f"```console\n$ {example.command}\n"
            assert text.count(head) == 1, example.command
            start = text.index(head) + len(head)
            text = text[:start] + pages.ask(Path(folder), example) + text[text.index("```", start) :]
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    rewrite()
