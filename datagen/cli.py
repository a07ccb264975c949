"""`vlm-rlaif datagen ...`: one command per stage, all with the same options."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlm_rlaif.datagen.engines import ENGINES
from vlm_rlaif.warehouse.cli import exit_code, finish, warehouse_argument
from vlm_rlaif.warehouse.errors import UserError

if TYPE_CHECKING:
    from vlm_rlaif.datagen.engines.make import EngineSettings
    from vlm_rlaif.datagen.job import Stage
    from vlm_rlaif.warehouse.config import Recipe
    from vlm_rlaif.warehouse.runs import Outcome
    from vlm_rlaif.warehouse.store import Warehouse


Decorator = Callable[[Any], Any]
READS = "; more when the stage that it reads is done"


def engine_options(command: Any) -> Any:
    """The options that choose what runs a model."""
    for option in reversed(
        [
            click.option("--engine", "engine_name", default="auto", show_default=True,
                         type=click.Choice(ENGINES), help="What runs the model."),
            click.option("--server", "servers", multiple=True, metavar="URL",
                         help="Ask an OpenAI-compatible server, http://HOST:PORT/v1. Several share the work."),
            click.option("--workers", type=click.IntRange(min=1), help="Of --engine ray. Default: one per GPU."),
            click.option("--engine-option", "engine_pairs", multiple=True, metavar="NAME=VALUE",
                         help="Passed to the engine, tensor_parallel_size=2 say. May be repeated."),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


def adapter_option(command: Any) -> Any:
    """The option that puts an adapter on the model of every stage that may have one."""
    said = "Put this LoRA adapter (a folder in peft's format) on the models of the recipe."
    return click.option("--adapter", metavar="FOLDER", help=said)(command)


def stage_options(command: Any) -> Any:
    """The options that every stage has."""
    options: list[Decorator] = [
        warehouse_argument,
        click.option("--recipe", "recipe_name", required=True, help="Shipped name or .yaml file."),
        click.option("--model", help="Use this model (folder, hub id, embedded:NAME, served:NAME) instead."),
        engine_options,
        click.option("--limit", type=click.IntRange(min=1), help="At most this many rows."),
        click.option("--shard", metavar="I/N", help="Only the I-th of N parts of the videos."),
        click.option("--max-hours", type=click.FloatRange(min=0), help="Begin nothing after this time."),
        click.option("--dry-run", is_flag=True, help="Say what would be computed; load no model."),
        click.option("--show", type=click.IntRange(min=0), default=0, metavar="K",
                     help="With --dry-run: print the first K prompts."),
        click.option("--calibrate", type=click.IntRange(min=1), metavar="ROWS",
                     help="Compute so many rows (they are kept), then say what the rest would take."),
        click.option("--retry-failed", is_flag=True, help="Try failed rows once more."),
        click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def engine_settings(
    engine_name: str, servers: tuple[str, ...], workers: int | None, engine_pairs: tuple[str, ...]
) -> EngineSettings:  # fmt: skip
    """What the options of `engine_options` say; a value is read as YAML (`2`, `true`, `fp8`)."""
    import yaml

    from vlm_rlaif.datagen.engines.make import EngineSettings

    options = {}
    for pair in engine_pairs:
        name, sign, value = pair.partition("=")
        try:
            options[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            sign = ""
        if not sign or not name.isidentifier():
            raise UserError(f"--engine-option {pair}: write NAME=VALUE, tensor_parallel_size=2 say.")
    if servers and engine_name not in ("auto", "server"):
        raise UserError(f"--server and --engine {engine_name} do not go together.")
    if workers and engine_name != "ray":
        raise UserError(f"--workers are those of --engine ray, not of {engine_name}.")
    if engine_name == "server" and not servers:
        raise UserError("--engine server needs an address.", "--server http://127.0.0.1:8000/v1")
    return EngineSettings(engine_name, servers, workers, options)


@click.group()
def datagen() -> None:
    """What models say about videos: clips, captions, contexts, questions, responses, pairs."""


def run_stages(
    warehouse: Path, stages: Sequence[Stage], *, engine_name: str, servers: tuple[str, ...], workers: int | None,
    engine_pairs: tuple[str, ...], limit: int | None, shard: str | None, max_hours: float | None, dry_run: bool,
    show: int, calibrate: int | None, retry_failed: bool, as_json: bool, later: Sequence[Sequence[Stage]] = (),
    derived: Sequence[Callable[[Warehouse], Outcome]] = (),
) -> int:  # fmt: skip
    """Run stages that ask models, or with `dry_run` say what they would do.

    Those of one model run together; then, in turn, those of `later`, which read the rows of the ones before.
    `derived` makes rows of all these without a model.
    """
    from vlm_rlaif.datagen import job
    from vlm_rlaif.datagen.engines.make import Engines
    from vlm_rlaif.datagen.estimate import estimate
    from vlm_rlaif.datagen.portion import Portion, Shard
    from vlm_rlaif.warehouse.store import Warehouse

    opened = Warehouse.open(warehouse)
    portion = Portion(calibrate or limit, retry_failed, Shard.parse(shard) if shard else None, max_hours)
    settings = engine_settings(engine_name, servers, workers, engine_pairs)
    every = [*stages, *(stage for turn in later for stage in turn)]
    if calibrate and (dry_run or limit):
        raise UserError("--calibrate ROWS computes that many rows: it goes with neither --dry-run nor --limit.")
    if show and not dry_run:
        raise UserError("--show K prints prompts of a --dry-run.")
    if dry_run:
        from vlm_rlaif.datagen.engines.tokens import count_tokens

        engine = settings.chosen
        would = [estimate(opened, each, portion, engine, show=show, count_tokens=count_tokens) for each in every]
        said = [f"{each}{READS if n >= len(stages) else ''}" for n, each in enumerate(would)]
        click.echo(json.dumps([asdict(each) for each in would]) if as_json else "\n".join(said))
        return 0
    engines = Engines(settings)
    try:
        outcomes = []
        for together in (stages, *later):
            outcomes += job.run_models(opened, together, engines.of, portion)
    finally:
        engines.close()
    if calibrate is None:
        try:
            outcomes += (derive(opened) for derive in derived)
        finally:  # what was made is told, whatever comes of the rest
            code = finish(outcomes, as_json)
        return code
    told, unlimited = [outcome.run_id for outcome in outcomes if outcome.run_id], replace(portion, limit=None)
    rest = [estimate(opened, stage, unlimited, settings.chosen, runs=told) for stage in every]
    if as_json:
        shown = {"done": [asdict(outcome) for outcome in outcomes], "rest": [asdict(each) for each in rest]}
        click.echo(json.dumps(shown))
    else:
        click.echo("\n".join(map(str, [*outcomes, *rest])))
    return exit_code(outcomes)


def _load(recipe_name: str, model: str | None, adapter: str | None) -> Recipe:
    from vlm_rlaif.warehouse.config import load

    return load(recipe_name, model, adapter)


def _model_stage(name: str, help_text: str, make: Callable[[Recipe], Sequence[Stage]]) -> None:
    @datagen.command(name, help=help_text)
    @stage_options
    @adapter_option
    def command(warehouse: Path, recipe_name: str, model: str | None, adapter: str | None, **options: Any) -> int:
        return run_stages(warehouse, make(_load(recipe_name, model, adapter)), **options)


def _derived_stage(name: str, help_text: str, derive: Callable[[Warehouse, Recipe], Outcome]) -> None:
    @datagen.command(name, help=help_text)
    @warehouse_argument
    @click.option("--recipe", "recipe_name", required=True, help="Shipped name or .yaml file.")
    @click.option("--model", help="The model that the other stages used instead of the recipe's.")
    @adapter_option
    @click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
    def command(warehouse: Path, recipe_name: str, model: str | None, adapter: str | None, as_json: bool) -> int:
        from vlm_rlaif.warehouse.store import Warehouse

        recipe = _load(recipe_name, model, adapter)
        return finish([derive(Warehouse.open(warehouse), recipe)], as_json)


def _caption(recipe: Recipe) -> Sequence[Stage]:
    from vlm_rlaif.datagen.plan import caption_stage

    return [caption_stage(recipe)]


def _respond(recipe: Recipe) -> Sequence[Stage]:
    from vlm_rlaif.datagen.policies import respond_stages

    return respond_stages(recipe)


def _clip(warehouse: Warehouse, recipe: Recipe) -> Outcome:
    from vlm_rlaif.datagen.plan import part
    from vlm_rlaif.datagen.stages.clip import clip

    return clip(warehouse, part(recipe, "clip"))


def _context(warehouse: Warehouse, recipe: Recipe) -> Outcome:
    from vlm_rlaif.datagen.plan import narrate_videos

    return narrate_videos(warehouse, recipe)


def _pair(warehouse: Warehouse, recipe: Recipe) -> Outcome:
    from vlm_rlaif.datagen.policies import pairs_of

    return pairs_of(recipe).make(warehouse)


_derived_stage("clip", "Cut every video into clips.", _clip)
_model_stage("caption", "Describe every clip in detail.", _caption)
_derived_stage("context", "Join the captions of a video into its narrative.", _context)


@datagen.command
@stage_options
@adapter_option
def refine(warehouse: Path, recipe_name: str, model: str | None, adapter: str | None, **options: Any) -> int:
    """Let a model that sees the video write its narrative anew, round after round."""
    from vlm_rlaif.datagen.plan import part, refine_stages

    recipe = _load(recipe_name, model, adapter)
    part(recipe, "context.refine")
    first, *further = refine_stages(recipe)
    return run_stages(warehouse, [first], later=[[stage] for stage in further], **options)


@datagen.command
@stage_options
@adapter_option
def summarise(warehouse: Path, recipe_name: str, model: str | None, adapter: str | None, **options: Any) -> int:
    """Let a model sum up narratives that are too long; the others stay as they are."""
    from vlm_rlaif.datagen.plan import summarise_stage
    from vlm_rlaif.warehouse.store import Warehouse

    stage = summarise_stage(_load(recipe_name, model, adapter))
    if not options["dry_run"]:
        passed = stage.pass_short(Warehouse.open(warehouse))
        if passed.written and not options["as_json"]:
            click.echo(f"{passed} (short enough as they are)")
    return run_stages(warehouse, [stage], **options)


@datagen.command
@stage_options
@adapter_option
def ask(warehouse: Path, recipe_name: str, model: str | None, adapter: str | None, **options: Any) -> int:
    """Write questions about videos that have none, by a model or from templates."""
    from vlm_rlaif.datagen.plan import ask_stage, fill_templates
    from vlm_rlaif.warehouse.store import Warehouse

    recipe = _load(recipe_name, model, adapter)
    if recipe.ask is None or not recipe.ask.templates:
        return run_stages(warehouse, [ask_stage(recipe)], **options)
    if options["dry_run"]:
        plan = f"vlm-rlaif plan {warehouse} {recipe_name}"
        raise UserError("Questions from templates ask no model. What there would be:", plan)
    return finish([fill_templates(Warehouse.open(warehouse), recipe)], options["as_json"])


@datagen.command
@stage_options
@adapter_option
def answerable(warehouse: Path, recipe_name: str, model: str | None, adapter: str | None, **options: Any) -> int:
    """Let a model say of every written question whether the narrative answers it."""
    from vlm_rlaif.datagen.plan import answerable_stage
    from vlm_rlaif.datagen.stages.answerable import left_out
    from vlm_rlaif.warehouse.store import Warehouse

    stage = answerable_stage(_load(recipe_name, model, adapter))
    code = run_stages(warehouse, [stage], **options)
    if not (options["as_json"] or options["dry_run"]) and (said := left_out(Warehouse.open(warehouse), stage)):
        click.echo(said)
    return code


_model_stage("respond", "Sample several responses to every question.", _respond)
_derived_stage("pair", "Pair the responses of every question.", _pair)
