"""`vlm-rlaif run`, `vlm-rlaif eval ...` and `vlm-rlaif show-prompt`."""

from __future__ import annotations

from pathlib import Path

import click

from vlm_rlaif.warehouse.cli import EXIT_FAILED_ROWS, warehouse_argument
from vlm_rlaif.warehouse.errors import UserError


@click.command()
@click.argument("arguments", nargs=-1, metavar="[WAREHOUSE] RECIPE")
@click.option("--into", type=click.Path(path_type=Path), help="Work in DIR/warehouse.duckdb.")
@click.option("--model", help="Use this model for every stage (folder, hub id, embedded:NAME).")
@click.option("--engine", "engine_name", default="auto", show_default=True,
              type=click.Choice(["auto", "transformers", "vllm"]))  # fmt: skip
def run(
    arguments: tuple[str, ...], into: Path | None, model: str | None, engine_name: str
) -> int:
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
    click.echo(f"{recipe.name}: {(time.monotonic() - started) / 60:.1f} minutes")
    return EXIT_FAILED_ROWS if journey.failed else 0


@click.group()
def evaluate() -> None:
    """Is it true? Answers, scores and reports."""
