"""`vlm-rlaif plan` and `why`: what a recipe would cost, and where a row comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlm_rlaif.datagen.engines import ENGINES
from vlm_rlaif.warehouse.cli import print_rows, warehouse_argument
from vlm_rlaif.warehouse.errors import UserError

if TYPE_CHECKING:
    from vlm_rlaif.eval.overview import Line


@click.command()
@warehouse_argument
@click.argument("recipe_name", metavar="RECIPE")
@click.option("--model", help="Use this model for every stage, as `run` would.")
@click.option(
    "--engine", "engine_name", default="auto", show_default=True, type=click.Choice(ENGINES),
    help="Whose pace in earlier runs counts.",
)  # fmt: skip
@click.option("--round", "number", type=click.IntRange(min=1), default=1, help="As `run` would with it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the ids of the first pending rows.")
def plan(
    warehouse: Path, recipe_name: str, model: str | None, engine_name: str, number: int, as_json: bool
) -> None:  # fmt: skip
    """Say what `run` would compute, stage by stage, and what it would cost. No model is loaded."""
    from vlm_rlaif.datagen.engines.make import EngineSettings
    from vlm_rlaif.eval.conductor import check
    from vlm_rlaif.eval.overview_learning import overview
    from vlm_rlaif.train.rounds import of_round
    from vlm_rlaif.warehouse.config import load
    from vlm_rlaif.warehouse.store import Warehouse

    opened = Warehouse.open(warehouse)
    recipe = of_round(opened, load(recipe_name, model), number)
    check(recipe)
    lines = overview(opened, recipe, EngineSettings(engine_name).chosen)
    command = f"vlm-rlaif run {warehouse} {recipe_name}" + (f" --model {model}" if model else "")
    command += f" --round {number}" if number > 1 else ""
    if as_json:
        shown = {"stages": [asdict(line) for line in lines], "total": totals(lines), "command": command}
        click.echo(json.dumps(shown, indent=1))
        return
    print_rows([_row(line) for line in lines])
    click.echo(_summary(totals(lines)))
    click.echo(command)


def totals(lines: Sequence[Line]) -> dict[str, Any]:
    """Everything together; `seconds` is of the stages whose pace is known."""
    work = [line for line in lines if line.work]
    return {
        "pending": sum(line.pending for line in work),
        "later": sum(line.later for line in work),
        "failed": sum(line.failed for line in lines),
        "frames": sum(line.frames for line in work),
        "prompt_tokens": sum(line.prompt_tokens for line in work),
        "seconds": sum(line.seconds or 0.0 for line in work),
        "gpu_hours": sum(line.gpu_hours for line in work),
        "pace_unknown": sorted({line.stage for line in work if line.seconds is None}),
    }


def _row(line: Line) -> dict[str, str]:
    from vlm_rlaif.datagen.estimate import in_words

    time = "" if not line.work else "unknown" if line.seconds is None else in_words(line.seconds)
    later = f"{line.bound} {line.later:,}".strip() if line.later else ""
    counts = {name: f"{value:,}" if value else "" for name, value in (
        ("stands", line.stands), ("stale", line.stale), ("failed", line.failed), ("pending", line.pending),
    )}  # fmt: skip
    cost = {"frames": line.frames, "prompt tokens": line.prompt_tokens}
    return {
        "stage": line.stage, "form": line.form, **counts, "later": later,
        **{name: f"{value:,}" if value else "" for name, value in cost.items()}, "time": time, "": line.note,
    }  # fmt: skip


def _summary(total: dict[str, Any]) -> str:
    from vlm_rlaif.datagen.estimate import in_words

    left = f"; {total['failed']:,} failed rows are left alone (--retry-failed tries again)" if total["failed"] else ""
    if not total["pending"] and not total["later"]:
        return f"Everything stands: a run would write nothing{left}."
    unknown = ", ".join(total["pace_unknown"])
    time = f", about {in_words(total['seconds'])}" if total["seconds"] else ""
    time += f" ({total['gpu_hours']:.2g} GPU hours)" if total["gpu_hours"] else ""
    time += f"{' and' if time else ','} the time of {unknown}, which never ran here" if unknown else ""
    return (
        f"{total['pending']:,} rows now, about {total['later']:,} later: {total['frames']:,} frames,"
        f" about {total['prompt_tokens']:,} tokens of prompt{time}{left}."
    )


@click.command()
@warehouse_argument
@click.argument("row_id", metavar="ID")
@click.option("--recipe", "recipe_name", help="Look among the rows that this recipe would compute, too.")
@click.option("--model", help="The model that stands in the recipe's place.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def why(warehouse: Path, row_id: str, recipe_name: str | None, model: str | None, as_json: bool) -> None:
    """Say what the key of a row is made of, which run wrote it, and what it was made from.

    ID is any id of any table, or how it begins (six characters or more). Of a row that failed: what happened, and
    the command that tries again. With --recipe, of a pending row: what changed against the row most like it.
    """
    from vlm_rlaif.warehouse.inspection.cli import page_width
    from vlm_rlaif.warehouse.inspection.printing import finite, plain, printable
    from vlm_rlaif.warehouse.inspection.why import explain, lines
    from vlm_rlaif.warehouse.store import Warehouse

    opened = Warehouse.open(warehouse)
    found = explain(opened, row_id)
    if recipe_name and (found is None or found["table"] == "failures"):
        from vlm_rlaif.eval.relatives import explain_pending
        from vlm_rlaif.warehouse.config import load

        found = explain_pending(opened, load(recipe_name, model), row_id) or found
    if found is None:
        where = f"vlm-rlaif why {warehouse} {printable(row_id)} --recipe RECIPE (looks among pending rows, too)"
        if recipe_name:
            chosen = f"{recipe_name} --model {model}" if model else recipe_name
            where = f"vlm-rlaif plan {warehouse} {chosen} --json (`first` holds ids of pending rows)"
        raise UserError(f"No row has the id {printable(row_id)}.", where)
    found["notes"] = list(_notes(found, warehouse, recipe_name, model))
    if as_json:
        click.echo(json.dumps(finite(found), default=plain, indent=1))
        return
    click.echo("\n".join(lines(found, page_width())))


def _notes(found: dict[str, Any], warehouse: Path, recipe_name: str | None, model: str | None) -> Iterator[str]:
    """What to make of a row that does not stand, and the command that would compute it."""
    from vlm_rlaif.warehouse.inspection.why import COMMANDS

    recipe = f"--recipe {recipe_name or 'RECIPE'}" + (f" --model {model}" if model else "")
    stage = found["stage"]
    if found["table"] == "pending":
        count = found["rows_of_spec"]
        yield f"{count:,} rows of its spec stand: its inputs are new." if count else "No row of its spec stands yet."
        yield f"vlm-rlaif show-prompt {warehouse} {stage} {recipe} --row {found['id']}"
    if found["table"] in ("pending", "failures") and stage in COMMANDS:
        command = f"vlm-rlaif {COMMANDS[stage]} {warehouse} "
        command += f"{recipe_name or 'RECIPE'}" if COMMANDS[stage] == "run" else recipe
        yield command + (" --retry-failed" if found["failures"] else "")
