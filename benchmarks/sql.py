"""How long a question takes: every query of `docs/sql.md` at a million labels, and `show` of one pair at ten million.

    python benchmarks/sql.py [--labels 1000000] [--show-labels 10000000] [--warehouse FILE] [--show-warehouse FILE]

The warehouses are made (`big_warehouse.py`) where none are given. A query counts from the opening of the file to the
last row of its result, as `vlm-rlaif sql` runs it. Prints as JSON `slowest_query_s`, which names its query, and
`show_s`, the median of many pairs (`show_other_ids_s`: of pairs whose labels have ids of another maker); the time of
every query goes to standard error. The warehouse of `show` is changed: twenty of its pairs get labels with real ids.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # the other benchmarks
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from big_warehouse import make
from sql_page import PAGE, examples

from vlm_rlaif.warehouse import Warehouse
from vlm_rlaif.warehouse.care.keys import label_id
from vlm_rlaif.warehouse.inspection.query import ask
from vlm_rlaif.warehouse.inspection.show import card
from vlm_rlaif.warehouse.records import Label

REPEATS = 3
SHOWN_PAIRS = 20
PROMPTS = {"judge_context_compact_v1": "judge_context_v1", "judge_compact_v1": "judge_v1"}
"""What the judges of the page are called in a big warehouse."""
Figures = dict[str, dict[str, Any]]


def figure(values: list[float], **more: Any) -> dict[str, Any]:
    """The median of repetitions, and their range."""
    return {
        "value": statistics.median(values), "low": min(values), "high": max(values), "n": len(values), "unit": "s",
        **more,
    }  # fmt: skip


def seconds(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def queries() -> list[str]:
    """The queries of the page, as a big warehouse is asked them."""
    found = []
    for example in examples(PAGE.read_text(encoding="utf-8")):
        if example.arguments[0] == "sql":
            query = example.arguments[2]
            for name, other in PROMPTS.items():
                query = query.replace(f"'{name}'", f"'{other}'")
            found.append(query)
    return found


def slowest_query(warehouse: Warehouse) -> Figures:
    """Every query some times; the slowest by its median."""
    found: list[tuple[dict[str, Any], str]] = []
    for query in queries():
        times = figure([seconds(partial(ask, warehouse, query)) for _ in range(REPEATS)])
        found.append((times, query))
        print(f"{times['value']:.2f} s  {' '.join(query.split())[:110]}", file=sys.stderr)
    times, query = max(found, key=lambda each: each[0]["value"])
    return {"slowest_query_s": {**times, "query": " ".join(query.split()), "queries": len(found)}}


def show(warehouse: Warehouse) -> Figures:
    """Pairs from everywhere in the warehouse, each looked up once: with labels whose ids are those that a stage gives
    them, and with labels of another maker, for which all labels are looked through.
    """
    pairs = warehouse.rows(f"SELECT pair_id FROM pairs USING SAMPLE {2 * SHOWN_PAIRS} ROWS (reservoir, 1)")
    ids = [row["pair_id"] for row in pairs]
    sql = "SELECT * FROM labels WHERE pair_id IN (SELECT unnest(?))"
    rows = [Label(**row) for row in warehouse.rows(sql, [ids[:SHOWN_PAIRS]])]
    warehouse.execute("DELETE FROM labels WHERE pair_id IN (SELECT unnest(?))", [ids[:SHOWN_PAIRS]])
    warehouse.append([replace(row, label_id=_key(row)) for row in rows])
    shown = [card(warehouse, pair) for pair in ids]
    assert all(len(each["labels"]) == 4 for each in shown)
    times = [seconds(partial(card, warehouse, pair)) for pair in ids]
    return {"show_s": figure(times[:SHOWN_PAIRS]), "show_other_ids_s": figure(times[SHOWN_PAIRS:])}


def _key(row: Label) -> str:
    return label_id(row.spec_id, row.pair_id, row.context_id, row.shown_order)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--labels", type=int, default=1_000_000)
    arguments.add_argument("--show-labels", type=int, default=10_000_000)
    arguments.add_argument("--warehouse", type=Path, help="One of that many labels that is there.")
    arguments.add_argument("--show-warehouse", type=Path, help="The same, for `show`.")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for path, labels, part in (
            (given.warehouse, given.labels, slowest_query), (given.show_warehouse, given.show_labels, show),
        ):  # fmt: skip
            warehouse = Warehouse.create(path) if path else make(Path(folder) / f"{labels}.duckdb", labels)
            print(json.dumps(part(warehouse), indent=1), flush=True)


if __name__ == "__main__":
    main()
