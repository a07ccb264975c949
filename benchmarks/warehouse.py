"""What the warehouse costs at size, as ratios against the plain way in one run.

    python benchmarks/warehouse.py [--only append pending ...] [--small]

`append`: `Warehouse.append_table` against a bare DuckDB insert of the same Arrow columns [append_ratio].
`pending`: start-up of the label stage on 10 M labels, and its memory [pending_10m_s, stage_memory_gb].
`sql`, `export`, `kills`, `decode`: the benchmarks of these names beside this one, each in a process of its own.
Writes `benchmarks/results/warehouse.json` and the table of `benchmarks/README.md`. `--small` divides the sizes by a
hundred, to try it, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parent))  # the other benchmarks

from big_warehouse import make

from vlm_rlaif.datagen.stages.pair import Pairs
from vlm_rlaif.datagen.stages.questions import Questions
from vlm_rlaif.feedback.judges.model import JudgeModel
from vlm_rlaif.feedback.judges.pairwise import LabelStage
from vlm_rlaif.warehouse import Warehouse, schema
from vlm_rlaif.warehouse.config import Frames
from vlm_rlaif.warehouse.records import Label, Spec
from vlm_rlaif.warehouse.store import CONFIG

RESULTS = Path(__file__).parent / "results" / "warehouse.json"
PAGE = Path(__file__).parent / "README.md"
TARGETS = {
    "append_ratio": ("1 M labels through `append_table`, over a bare DuckDB insert of the same columns", ">= 0.6"),
    "append_rows_per_s": ("the same, labels a second", ""),
    "pending_10m_s": ("the label stage finds 1,000 missing labels among 10 M", "< 5 s"),
    "stage_memory_gb": ("peak memory of that process", ""),
    "show_s": ("`show` of one pair among 10 M labels", "< 0.3 s"),
    "show_other_ids_s": ("the same for labels whose ids another maker gave", ""),
    "slowest_query_s": ("the slowest query of `docs/sql.md` at 1 M labels", "< 3 s"),
    "export_peak_gb": (
        "peak memory of freezing and exporting 1 M preferences to a Hugging Face data set",
        "< 1.5 GB",
    ),
    "kills": ("`kill -9` at random moments of the generation and label stages", ">= 200"),
    "lost": ("rows lost by them", "0"),
    "duplicated": ("rows doubled, or requests paid twice beyond the one in flight", "0"),
    "kills_differing": ("tables that differ from an undisturbed run", "0"),
    "decode_ratio_8": ("decord's time over ours, 8 uniform frames, geometric mean over clips", ">= 1"),
    "decode_ratio_32": ("the same, 32 frames", ">= 1"),
    "decode_ratio_50": ("the same, 50 frames", ">= 1"),
    "wrong_frames": ("wrong frames on the odd files", "0"),
    "decord_wrong_frames": ("the same of decord, where it does not refuse the file", ""),
}
"""What a figure is, and what it should be."""
REPEATS = 3
Figures = dict[str, dict[str, Any]]


def figure(values: list[float], unit: str) -> dict[str, Any]:
    """The median of repetitions, and their range."""
    return {
        "value": statistics.median(values), "low": min(values), "high": max(values), "n": len(values), "unit": unit,
    }  # fmt: skip


def label_columns(rows: int) -> pa.Table:
    """Labels with replies of 500 characters, as Arrow columns."""
    with duckdb.connect() as connection:
        return (
            connection.sql(
                f"""SELECT left(md5('l' || i), 20) AS label_id, left(md5('p' || i // 2), 20) AS pair_id,
                'judge' AS spec_id,
                left(md5('c' || i // 16), 20) AS context_id, 
                CASE i % 2 WHEN 0 THEN 'ab' ELSE 'ba' END AS shown_order,
                0::BIGINT AS vote, CASE i % 3 WHEN 0 THEN 'a' ELSE 'b' END AS choice, 0.5 AS p_a, 0.1 AS p_tie,
                left(repeat(md5('r' || i), 16), 500) AS reply, 0::BIGINT AS cached_tokens, 'run' AS run_id
                FROM range({rows}) t(i)"""
            )
            .to_arrow_table()
            .cast(schema.arrow_schema(Label))
        )


def append(rows: int) -> Figures:
    """Rows a second through the warehouse, over those of DuckDB alone; opening and closing included, in turns."""
    columns, ratios, speeds = label_columns(rows), [], []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            with duckdb.connect(f"{folder}/bare.duckdb", config=CONFIG) as bare:
                bare.register("columns", columns)
                bare.execute("CREATE TABLE labels AS SELECT * FROM columns LIMIT 0")
            started = time.monotonic()
            with duckdb.connect(f"{folder}/bare.duckdb", config=CONFIG) as bare:
                bare.register("columns", columns)
                bare.execute("INSERT INTO labels SELECT * FROM columns")
            bare_s = time.monotonic() - started
            warehouse = Warehouse.create(f"{folder}/w.duckdb")
            started = time.monotonic()
            assert warehouse.append_table("labels", columns) == rows
            ours_s = time.monotonic() - started
        ratios.append(bare_s / ours_s)
        speeds.append(rows / ours_s)
    return {"append_ratio": figure(ratios, "ratio"), "append_rows_per_s": figure(speeds, "rows/s")}


def label_stage(warehouse: Warehouse) -> LabelStage:
    """The first judge of a big warehouse."""
    specs = {(row["stage"], row["prompt"]): row for row in warehouse.rows("FROM specs")}
    return LabelStage(
        JudgeModel(model="big/model", prompt="judge_context_v1", frames=Frames(count=8)),
        Spec(**specs["label", "judge_context_v1"]), Pairs(None, (specs["respond", "respond_v1"]["spec_id"],)),
        Questions(), specs["context", "context_v1"]["spec_id"],
    )  # fmt: skip


def _find_pending(path: Path) -> tuple[int, float, float]:
    warehouse = Warehouse.open(path)
    stage = label_stage(warehouse)
    started = time.monotonic()
    pending = stage.pending(warehouse)
    took_s = time.monotonic() - started
    return len(pending), took_s, peak_gb()


def peak_gb() -> float:
    """The most memory that this process has held; what `getrusage` says counts the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e6


def pending(path: Path) -> Figures:
    """Seconds until a stage knows its work, where 1,000 labels are missing, each time in a new process."""
    warehouse = Warehouse.open(path)
    warehouse.execute(
        "DELETE FROM labels WHERE label_id IN (SELECT label_id FROM labels WHERE spec_id = ? LIMIT 1000)",
        [label_stage(warehouse).spec.spec_id],
    )
    context = multiprocessing.get_context("spawn")
    found = []
    for _ in range(REPEATS):
        with context.Pool(1) as pool:
            found.append(pool.apply(_find_pending, (path,)))
    assert {rows for rows, _, _ in found} == {1000}
    return {
        "pending_10m_s": figure([took_s for _, took_s, _ in found], "s"),
        "stage_memory_gb": figure([memory for _, _, memory in found], "GB"),
    }


def of_script(name: str, *arguments: object) -> Figures:
    """The figures among what another benchmark prints: JSON objects, one after the other."""
    command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), *map(str, arguments)]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    found: Figures = {}
    while said:
        part, end = json.JSONDecoder().raw_decode(said)
        found |= {key: value for key, value in part.items() if name == "kills" or "value" in value}
        said = said[end:].strip()
    return found


def kills(number: int) -> Figures:
    """`kill -9` at random moments: what was lost, doubled, paid twice, or different in the end."""
    counted: dict[str, Any] = of_script("kills", "--kills", number)
    counted["differing"] = len(counted["differing"])
    return {
        "kills" if name == "kills" else f"kills_{name}" if name in ("warehouses", "differing") else name: {
            "value": count, "low": count, "high": count, "n": counted["kills"], "unit": "count",
        }
        for name, count in counted.items()
    }  # fmt: skip


def parts(folder: Path, scale: int) -> dict[str, Callable[[], Figures]]:
    """Every part of this benchmark, by name."""

    def big() -> Path:
        path = folder / "big.duckdb"
        if not path.exists():
            make(path, 10_000_000 // scale)
        return path

    return {
        "append": lambda: append(1_000_000 // scale),
        "pending": lambda: pending(big()),
        "sql": lambda: of_script("sql", "--labels", 1_000_000 // scale, "--show-warehouse", big()),
        "export": lambda: of_script("export", "--preferences", 1_000_000 // scale),
        "kills": lambda: kills(200 // min(scale, 10)),
        "decode": lambda: of_script("decode", "--json"),
    }


def table(figures: Figures) -> str:
    """The figures for people, those of `TARGETS` that have been measured."""
    lines = ["| figure | value | range | n | target | what it is |", "|---|---|---|---|---|---|"]
    for name, (meaning, target) in TARGETS.items():
        if name in figures:
            value, low, high = (f"{figures[name][key]:,.4g}" for key in ("value", "low", "high"))
            unit, n = figures[name]["unit"], figures[name]["n"]
            lines.append(f"| `{name}` | {value} {unit} | {low} to {high} | {n} | {target} | {meaning} |")
    return "\n".join(lines)


def write(figures: Figures) -> None:
    """The results as JSON, and the table of this folder's page."""
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split("<!-- warehouse:begin -->", 1)
    _, after = rest.split("<!-- warehouse:end -->", 1)
    marked = f"<!-- warehouse:begin -->\n{table(figures)}\n<!-- warehouse:end -->"
    PAGE.write_text(before + marked + after, encoding="utf-8")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", nargs="+", help="Parts to run; all when left out.")
    arguments.add_argument("--small", action="store_true", help="A hundredth of the rows; writes no results.")
    given = arguments.parse_args()
    figures: Figures = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts(Path(folder), 100 if given.small else 1).items():
            if given.only is not None and name not in given.only:
                continue
            found = part()
            print(json.dumps({name: found}, indent=1), flush=True)
            figures |= found
            if not given.small:
                write(figures)


if __name__ == "__main__":
    main()
