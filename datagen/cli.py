"""`vlm-rlaif datagen ...`: one command per stage, all with the same options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlm_rlaif.warehouse.cli import finish, warehouse_argument

if TYPE_CHECKING:
    from vlm_rlaif.datagen.job import Stage
    from vlm_rlaif.warehouse.config import Recipe
    from vlm_rlaif.warehouse.runs import Outcome
    from vlm_rlaif.warehouse.store import Warehouse


def stage_options(command: Any) -> Any:
    """The options that every stage has."""
    for option in reversed(
        [
            warehouse_argument,
            click.option("--recipe", "recipe_name", required=True, help="Shipped name or .yaml file."),
            click.option("--model", help="Use this model (folder, hub id, embedded:NAME) instead."),
            click.option("--engine", "engine_name", default="auto", show_default=True,
                         type=click.Choice(["auto", "transformers", "vllm"]), help="What runs the model."),
            click.option("--limit", type=click.IntRange(min=1), help="At most this many rows."),
            click.option("--dry-run", is_flag=True, help="Say what would be computed; load no model."),
            click.option("--retry-failed", is_flag=True, help="Try failed rows once more."),
            click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON."),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


@click.group()
def datagen() -> None:
    """What models say about videos: clips, captions, contexts, questions, responses, pairs."""


def run_stages(
    warehouse: Path, stages: Sequence[Stage], *, engine_name: str, limit: int | None,
    dry_run: bool, retry_failed: bool, as_json: bool,
) -> int:  # fmt: skip
    """Run stages that ask a model, or with `dry_run` say what they would do."""
    from vlm_rlaif.datagen.engines.make import Engines
    from vlm_rlaif.datagen.estimate import estimate
    from vlm_rlaif.datagen.job import run_stage
    from vlm_rlaif.warehouse.store import Warehouse

    opened = Warehouse.open(warehouse)
    if dry_run:
        for stage in stages:
            click.echo(estimate(opened, stage, limit=limit, retry_failed=retry_failed, engine=engine_name))
        return 0
    engines = Engines(engine_name)
    outcomes = [
        run_stage(opened, stage, engines.of(stage.spec.model), limit=limit, retry_failed=retry_failed)
        for stage in stages
    ]
    return finish(outcomes, as_json)


def _load(recipe_name: str, model: str | None) -> Recipe:
    from vlm_rlaif.warehouse.config import load

    return load(recipe_name, model)


def _model_stage(name: str, help_text: str, make: Callable[[Recipe], Stage]) -> None:
    @datagen.command(name, help=help_text)
    @stage_options
    def command(warehouse: Path, recipe_name: str, model: str | None, **options: Any) -> int:
        return run_stages(warehouse, [make(_load(recipe_name, model))], **options)


def _derived_stage(name: str, help_text: str, derive: Callable[[Warehouse, Recipe], Outcome]) -> None:
    @datagen.command(name, help=help_text)
    @warehouse_argument
    @click.option("--recipe", "recipe_name", required=True, help="Shipped name or .yaml file.")
    @click.option("--model", help="The model that the other stages used instead of the recipe's.")
    @click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
    def command(warehouse: Path, recipe_name: str, model: str | None, as_json: bool) -> int:
        from vlm_rlaif.warehouse.store import Warehouse

        recipe = _load(recipe_name, model)
        return finish([derive(Warehouse.open(warehouse), recipe)], as_json)


def _caption(recipe: Recipe) -> Stage:
    from vlm_rlaif.datagen.plan import caption_stage

    return caption_stage(recipe)


def _ask(recipe: Recipe) -> Stage:
    from vlm_rlaif.datagen.plan import ask_stage

    return ask_stage(recipe)


def _respond(recipe: Recipe) -> Stage:
    from vlm_rlaif.datagen.plan import respond_stage

    return respond_stage(recipe)


def _clip(warehouse: Warehouse, recipe: Recipe) -> Outcome:
    from vlm_rlaif.datagen.plan import part
    from vlm_rlaif.datagen.stages.clip import clip

    return clip(warehouse, part(recipe, "clip"))


def _context(warehouse: Warehouse, recipe: Recipe) -> Outcome:
    from vlm_rlaif.datagen.plan import caption_stage, clip_method, context_spec
    from vlm_rlaif.datagen.stages.context import context

    caption = caption_stage(recipe).spec.spec_id
    return context(warehouse, context_spec(recipe), caption, clip_method(recipe))


def _pair(warehouse: Warehouse, recipe: Recipe) -> Outcome:
    from vlm_rlaif.datagen.plan import respond_stage
    from vlm_rlaif.datagen.stages.pair import pair

    return pair(warehouse, respond_stage(recipe).spec.spec_id)


_derived_stage("clip", "Cut every video into clips.", _clip)
_model_stage("caption", "Describe every clip in detail.", _caption)
_derived_stage("context", "Join the captions of a video into its narrative.", _context)
_model_stage("ask", "Write questions about videos that have none.", _ask)
_model_stage("respond", "Sample several responses to every question.", _respond)
_derived_stage("pair", "Pair the responses of every question.", _pair)
