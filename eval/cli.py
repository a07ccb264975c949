"""`vlm-rlaif run`, `vlm-rlaif eval ...` and `vlm-rlaif show-prompt`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlm_rlaif.datagen.cli import adapter_option, engine_options, engine_settings, run_stages, stage_options
from vlm_rlaif.warehouse.cli import EXIT_FAILED_ROWS, finish, print_rows, warehouse_argument
from vlm_rlaif.warehouse.errors import MissingExtra, UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vlm_rlaif.datagen.job import Stage
    from vlm_rlaif.eval.conductor import Journey
    from vlm_rlaif.warehouse.config import Recipe
    from vlm_rlaif.warehouse.store import Warehouse


round_option = click.option(
    "--round", "number", type=click.IntRange(min=1), default=1, show_default=True,
    help="With the policy that the round before has trained in place of its start.",
)  # fmt: skip


@click.command()
@click.argument("arguments", nargs=-1, metavar="[WAREHOUSE] RECIPE")
@click.option("--into", type=click.Path(path_type=Path), help="Work in DIR/warehouse.duckdb.")
@click.option("--model", help="Use this model for every stage (folder, hub id, embedded:NAME).")
@engine_options
@click.option("--shard", metavar="I/N", help="Only the I-th of N parts of the videos, and no training.")
@click.option("--max-hours", type=click.FloatRange(min=0), help="Ask models nothing after this time, nor train.")
@click.option("--retry-failed", is_flag=True, help="Try failed rows once more.")
@round_option
def run(
    arguments: tuple[str, ...], into: Path | None, model: str | None, shard: str | None, max_hours: float | None,
    retry_failed: bool, number: int, **engine: Any,
) -> int:  # fmt: skip
    """Run a whole recipe: `run shapes --into demo`, or `run w.duckdb recipe.yaml --model M`."""
    if len(arguments) != (1 if into else 2):
        raise UserError(
            "Give a warehouse and a recipe, or a recipe and --into DIR.",
            "vlm-rlaif run shapes --into demo",
        )
    import time

    from vlm_rlaif.datagen.portion import Portion, Shard
    from vlm_rlaif.eval.conductor import OutOfTime, place, travel
    from vlm_rlaif.train.rounds import of_round
    from vlm_rlaif.warehouse.config import load

    started = time.monotonic()
    settings = engine_settings(**engine)
    portion = Portion(None, retry_failed, Shard.parse(shard) if shard else None, max_hours)
    recipe = load(arguments[-1], model)
    warehouse = place(recipe, into, Path(arguments[0]))
    recipe = of_round(warehouse, recipe, number)
    try:
        recipe, journey = travel(warehouse, recipe, settings, portion)
    except OutOfTime:
        click.echo(f"Stopped after {max_hours} hours. The same command continues from here.")
        return 0
    if shard:
        click.echo(f"Shard {shard} is done. When all are: vlm-rlaif merge {warehouse.path} OTHER_SHARDS...")
        return EXIT_FAILED_ROWS if journey.failed else 0
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
    from vlm_rlaif.eval.curves import learning_curves, remark
    from vlm_rlaif.eval.figures import as_table, select
    from vlm_rlaif.eval.report import HEADLINES, write_html

    figures = measure(warehouse, recipe, journey)
    roles = {trained.checkpoint_id: role for role, trained in journey.trained.items()}
    curves = learning_curves(warehouse, roles)
    write_html(warehouse, figures, curves, warehouse.folder / "report.html")
    as_json = {name: estimate.as_json() for name, estimate in figures.items()}
    (warehouse.folder / "figures.json").write_text(json.dumps(as_json, indent=1), encoding="utf-8")
    if figures:
        print_rows(as_table(select(figures, HEADLINES)))
    for said in filter(None, map(remark, curves)):
        click.echo(said)
    click.echo(f"Report: {warehouse.folder / 'report.html'}")
    report_judges(warehouse, warehouse.folder / "judges.html")


def report_judges(warehouse: Warehouse, path: Path) -> None:
    """Write the page of `feedback report`, where judges have judged and the packages that measure them are there."""
    from vlm_rlaif.feedback.report.assess import assess
    from vlm_rlaif.feedback.report.page import write_page

    if not warehouse.value("SELECT count(*) FROM labels"):
        return
    try:
        write_page(assess(warehouse), f"Judges of {warehouse.path.name}", path)
    except MissingExtra as error:
        click.echo(f"No report on the judges. {error}")
    else:
        click.echo(f"Judges: {path}")


def peak_memory_gb() -> float:
    """The most memory that this process has held."""
    import resource

    units = 1e9 if sys.platform == "darwin" else 1e6  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units


NEXT = (
    "vlm-rlaif tables {w}",
    "vlm-rlaif feedback report {w}",
    'vlm-rlaif sql {w} "SELECT question, text_a, text_b, choice, p_a FROM lineage LIMIT 5"',
)


@click.group()
def evaluate() -> None:
    """Is it true? Answers, scores and reports."""


RECIPE = click.option("--recipe", "recipe_name", required=True, help="Shipped name or .yaml file.")
JUDGED = ("rate", "label", "check", "split", "verify", "rank")
"""Stages of judges."""
STAGES = ("caption", "refine", "summarise", "ask", "answerable", "respond", *JUDGED, "answer")


@evaluate.command()
@stage_options
@adapter_option
@click.option("--samples", default=1, show_default=True, help="1 = greedy; more = sampled answers.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="Default: the recipe's.")
def answer(
    warehouse: Path, recipe_name: str, model: str | None, adapter: str | None, samples: int, split: str | None,
    **options: Any,
) -> int:  # fmt: skip
    """Let a model answer the questions of a split (default model: the policy's start)."""
    from vlm_rlaif.eval.answer import answer_stage
    from vlm_rlaif.warehouse.config import load

    whole = str(Path(adapter).expanduser().resolve()) if adapter else None
    stage = answer_stage(load(recipe_name), model, whole, samples=samples, split=split)
    return run_stages(warehouse, [stage], **options)


@evaluate.command()
@warehouse_argument
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def score(warehouse: Path, as_json: bool) -> int:
    """Score answers by the exact truth, where questions come from the shapes world."""
    from vlm_rlaif.eval.truth import score_answers
    from vlm_rlaif.warehouse.store import Warehouse

    return finish([score_answers(Warehouse.open(warehouse))], as_json)


@evaluate.command("report")
@warehouse_argument
@RECIPE
@click.option("--model", help="The model that the stages used instead of the recipe's.")
@round_option
def report_command(warehouse: Path, recipe_name: str, model: str | None, number: int) -> None:
    """Print the figures of a recipe and write report.html, from the rows that stand."""
    from vlm_rlaif.eval.conductor import Journey
    from vlm_rlaif.train.rounds import of_round
    from vlm_rlaif.train.run import standing
    from vlm_rlaif.warehouse.config import load
    from vlm_rlaif.warehouse.store import Warehouse

    opened = Warehouse.open(warehouse)
    recipe, trained = standing(opened, of_round(opened, load(recipe_name, model), number))
    report(opened, recipe, Journey(trained=trained))


def versions(recipe: Recipe, stage: str, arm: str | None, judge: str | None) -> list[Stage]:
    """The forms of a stage that a recipe runs: of every judge, greedy and sampled answers."""
    from vlm_rlaif.datagen.plan import (
        answerable_stage,
        ask_stage,
        caption_stage,
        refine_stages,
        summarise_stage,
    )
    from vlm_rlaif.datagen.policies import respond_stages
    from vlm_rlaif.eval.answer import answer_stage

    if stage in JUDGED:
        return judged(recipe, stage, arm, judge)
    if stage == "answer":
        most = recipe.evaluate.best_of if recipe.evaluate else 0
        return [answer_stage(recipe, samples=samples) for samples in (1, most) if samples]
    if stage == "respond":
        return [*respond_stages(recipe)]
    if stage == "refine":
        return [*refine_stages(recipe)]
    makers: dict[str, Callable[[Recipe], Stage]] = {
        "caption": caption_stage, "summarise": summarise_stage, "ask": ask_stage, "answerable": answerable_stage,
    }  # fmt: skip
    return [makers[stage](recipe)]


def judged(recipe: Recipe, stage: str, arm: str | None, judge: str | None) -> list[Stage]:
    """The forms of a stage of judges: of an arm, of one judge, or of all."""
    from vlm_rlaif.datagen.plan import part
    from vlm_rlaif.feedback.judges.pairwise import label_stage
    from vlm_rlaif.feedback.judges.plan import judge_named, judges_of
    from vlm_rlaif.feedback.judges.rate import rate_stages

    if arm:
        return [label_stage(recipe, arm)]
    judges = [judge_named(recipe, judge)] if judge else [*judges_of(recipe).values()]
    found: list[Stage] = [each for judging in judges for each in judging.stages if each.name == stage]
    if stage == "rate" and not judge and (recipe.rate is not None or not found):
        found = [*rate_stages(recipe), *found]
    if not found and judge:
        asks = " and ".join(dict.fromkeys(each.name for each in judges[0].stages)) or "nobody"
        raise UserError(f"The judge {judge} has no stage {stage}: it asks {asks}.")
    if not found:
        part(recipe, "label")
        raise UserError(f"No judge of the recipe {recipe.name} has a stage {stage}.")
    return found


@click.command("show-prompt")
@warehouse_argument
@click.argument("stage", type=click.Choice(STAGES))
@RECIPE
@click.option("--model", help="The model that stands in the recipe's place.")
@click.option("--row", help="Id of the row; the first one when left out.")
@click.option("--arm", type=click.Choice(["context", "none"]), help="Of the stage label; the recipe's first.")
@click.option("--judge", help="Of the stages of judges: one of the recipe by name.")
def show_prompt(
    warehouse: Path, stage: str, recipe_name: str, model: str | None, row: str | None, arm: str | None,
    judge: str | None,
) -> None:  # fmt: skip
    """Print the finished prompt of a stage for a row, done or pending, without loading a model."""
    from vlm_rlaif.datagen.preview import Preview
    from vlm_rlaif.warehouse.config import load
    from vlm_rlaif.warehouse.store import Warehouse

    opened, recipe = Warehouse.open(warehouse), load(recipe_name, model)
    for made in versions(recipe, stage, arm, judge):
        rows = made.pending(opened, everything=True)
        found = next((r for r in rows if row in (None, r["row_id"])), None)
        if found is not None:
            break
    else:
        raise UserError(
            f"The stage {stage} has no row {row or 'at all'} for this recipe.",
            f"vlm-rlaif tables {warehouse}",
        )
    click.echo(Preview.of(made.spec, made.request(opened, found)))
