"""`vlm-rlaif feedback probe` and `feedback anchor ...`: judges are asked what is known, or once more."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from vlm_rlaif.datagen.cli import adapter_option, engine_settings, run_stages, stage_options
from vlm_rlaif.warehouse.cli import finish, print_rows, warehouse_argument
from vlm_rlaif.warehouse.judge_settings import PROBES

OF_THE_ENGINE = ("engine_name", "servers", "workers", "engine_pairs")


def engine_of(options: dict[str, Any]) -> str:
    """What will run the judges, with its version."""
    return engine_settings(**{name: options[name] for name in OF_THE_ENGINE}).versioned


@click.command()
@stage_options
@adapter_option
@click.option("--kind", "kinds", multiple=True, type=click.Choice(PROBES), help="May be repeated [default: all].")
@click.option("--pairs", type=click.IntRange(min=1), help="Probes of each kind [default: the recipe's, or 100].")
@click.option("--judge", "names", multiple=True, help="A pairwise judge of the recipe, or an arm; may be repeated.")
@click.option("--seed", type=int, help="Draws other pairs.")
def probe(
    warehouse: Path, recipe_name: str, model: str | None, adapter: str | None, kinds: tuple[str, ...],
    pairs: int | None, names: tuple[str, ...], seed: int | None, **options: Any,
) -> int:  # fmt: skip
    """Ask judges what they should know: the same answer twice, another video's answer, the same pair again."""
    from vlm_rlaif.feedback.judges.probe import probe_stages
    from vlm_rlaif.warehouse.config import Probing, load

    recipe = load(recipe_name, model, adapter)
    given: dict[str, Any] = {
        "kinds": list(kinds) or None, "pairs": pairs, "judges": list(names) or None, "seed": seed,
    }  # fmt: skip
    asked = {name: value for name, value in given.items() if value is not None}
    settings = dataclasses.replace(recipe.probe or Probing(), **asked)
    return run_stages(warehouse, probe_stages(recipe, settings, engine_of(options)), **options)


@click.group()
def anchor() -> None:
    """Pairs that are judged again whenever a judge, its prompt or its engine changes."""


@anchor.command("pin")
@warehouse_argument
@click.argument("name")
@click.option("--judge", help="Spec id of the judge whose pairs they are, or the name of its prompt.")
@click.option("--size", type=click.IntRange(min=1), default=200, show_default=True, help="Pairs.")
@click.option("--seed", default=0, show_default=True, help="Draws other pairs.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def pin_command(warehouse: Path, name: str, judge: str | None, size: int, seed: int, as_json: bool) -> int:
    """Pin pairs of a judge: as many sure as unsure ones, of many videos. A set is never changed."""
    from vlm_rlaif.feedback.judges.anchors import pin
    from vlm_rlaif.warehouse.store import Warehouse

    return finish([pin(Warehouse.open(warehouse), name, judge, size=size, seed=seed)], as_json)


@anchor.command("list")
@warehouse_argument
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(warehouse: Path, as_json: bool) -> None:
    """The anchor sets, and how many judges and engines have judged each."""
    from vlm_rlaif.feedback.judges.anchors import sets
    from vlm_rlaif.warehouse.store import Warehouse

    found = sets(Warehouse.open(warehouse))
    if not found and not as_json:
        click.echo(f"No pairs are pinned yet.\nvlm-rlaif feedback anchor pin {warehouse} NAME")
        return
    print_rows(found, "json" if as_json else "table")


@anchor.command("judge")
@stage_options
@adapter_option
@click.argument("name")
@click.option("--judge", "names", multiple=True, help="A pairwise judge of the recipe, or an arm; may be repeated.")
def judge_command(
    warehouse: Path, recipe_name: str, model: str | None, adapter: str | None, name: str, names: tuple[str, ...],
    **options: Any,
) -> int:  # fmt: skip
    """Let judges of a recipe judge a set, unless they have. `feedback label` and `run` do so for every set."""
    from vlm_rlaif.feedback.judges.anchors import named
    from vlm_rlaif.feedback.judges.probe import anchor_stages, pairwise_judges
    from vlm_rlaif.warehouse.config import load
    from vlm_rlaif.warehouse.store import Warehouse

    opened = Warehouse.open(warehouse)
    judges = pairwise_judges(load(recipe_name, model, adapter), names)
    return run_stages(warehouse, anchor_stages(opened, judges, engine_of(options), named(opened, name)), **options)
