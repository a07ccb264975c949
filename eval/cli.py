"""`vlm-rlaif run`, `vlm-rlaif eval ...` and `vlm-rlaif show-prompt`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vlm_rlaif.warehouse.cli import EXIT_FAILED_ROWS, show
from vlm_rlaif.warehouse.errors import UserError

if TYPE_CHECKING:
    from vlm_rlaif.eval.conductor import Journey
    from vlm_rlaif.warehouse.config import Recipe
    from vlm_rlaif.warehouse.store import Warehouse


@click.command()
@click.argument("arguments", nargs=-1, metavar="[WAREHOUSE] RECIPE")
@click.option("--into", type=click.Path(path_type=Path), help="Work in DIR/warehouse.duckdb.")
@click.option("--model", help="Use this model for every stage (folder, hub id, embedded:NAME).")
@click.option("--engine", "engine_name", default="auto", show_default=True,
              type=click.Choice(["auto", "transformers", "vllm"]))  # fmt: skip
def run(arguments: tuple[str, ...], into: Path | None, model: str | None, engine_name: str) -> int:
    """Run a whole recipe: `run shapes --into demo`, or `run w.duckdb recipe.yaml --model M`."""
    if len(arguments) != (1 if into else 2):
        raise UserError(
            "Give a warehouse and a recipe, or a recipe and --into DIR.",
            "vlm-rlaif run shapes --into demo",
        )
    import time

    from vlm_rlaif.eval.conductor import place, travel
    from vlm_rlaif.warehouse.config import load

    started = time.monotonic()
    recipe = load(arguments[-1], model)
    warehouse = place(recipe, into, Path(arguments[0]))
    journey = travel(warehouse, recipe, engine_name)
    report(warehouse, recipe, journey)
    minutes, peak_gb = (time.monotonic() - started) / 60, peak_memory_gb()
    click.echo(f"{recipe.name}: {minutes:.1f} minutes, at most {peak_gb:.1f} GB of memory.")
    click.echo("Try next:")
    for line in NEXT:
        click.echo(f"  {line.format(w=warehouse.path)}")
    return EXIT_FAILED_ROWS if journey.failed else 0


def report(warehouse: Warehouse, recipe: Recipe, journey: Journey) -> None:
    """Print the table and write `report.html` and `figures.json` beside the warehouse."""
    from vlm_rlaif.eval.conductor import measure
    from vlm_rlaif.eval.figures import as_table, select
    from vlm_rlaif.eval.report import HEADLINES, write_html

    figures = measure(warehouse, recipe, journey)
    runs = [
        row["run_id"]
        for row in warehouse.rows("SELECT run_id, checkpoint_id FROM checkpoints")
        if row["checkpoint_id"] in {t.checkpoint_id for t in journey.trained.values()}
    ]
    write_html(warehouse, figures, runs, warehouse.folder / "report.html")
    as_json = {name: estimate.as_json() for name, estimate in figures.items()}
    (warehouse.folder / "figures.json").write_text(json.dumps(as_json, indent=1), encoding="utf-8")
    if figures:
        show(as_table(select(figures, HEADLINES)))
    click.echo(f"Report: {warehouse.folder / 'report.html'}")


def peak_memory_gb() -> float:
    """The most memory that this process has held."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


NEXT = (
    "vlm-rlaif tables {w}",
    'vlm-rlaif sql {w} "FROM judge_bias"',
    'vlm-rlaif sql {w} "SELECT question, text_a, text_b, choice, p_a FROM lineage LIMIT 5"',
)


@click.group()
def evaluate() -> None:
    """Is it true? Answers, scores and reports."""
