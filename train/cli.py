"""`vlm-rlaif train ...`: models that learned from the warehouse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from vlm_rlaif.warehouse.cli import warehouse_argument
from vlm_rlaif.warehouse.errors import UserError


@click.group()
def train() -> None:
    """Models that learn from the warehouse: SFT, reward model, PPO."""


def train_options(command: Any) -> Any:
    """The options that every trainer has."""
    for option in reversed(
        [
            warehouse_argument,
            click.option("--recipe", "recipe_name", required=True, help="Shipped name or .yaml file."),
            click.option("--model", help="Train this model (folder, hub id, embedded:NAME) instead."),
            click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON."),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


def _report(trained: Any, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({
            "kind": trained.kind, "checkpoint_id": trained.checkpoint_id,
            "path": str(trained.path), "fresh": trained.fresh,
        }))  # fmt: skip
    else:
        click.echo(str(trained))


def _open(warehouse: Path, recipe_name: str, model: str | None) -> tuple[Any, Any]:
    from vlm_rlaif.train.run import require_packages
    from vlm_rlaif.warehouse.config import load
    from vlm_rlaif.warehouse.store import Warehouse

    require_packages()
    return Warehouse.open(warehouse), load(recipe_name, model)


@train.command()
@train_options
def sft(warehouse: Path, recipe_name: str, model: str | None, as_json: bool) -> None:
    """Fine-tune on the reference answers of the training split."""
    opened, recipe = _open(warehouse, recipe_name, model)
    from vlm_rlaif.train.run import train_sft

    _report(train_sft(opened, recipe), as_json)


def teacher_options(command: Any) -> Any:
    """The options that say what teaches the reward model."""
    for option in (
        click.option("--dataset", help="Learn from this version of the data set (vlm-rlaif dataset list)."),
        click.option(
            "--labels", type=click.Choice(["context", "none", "random"]),
            help="Learn from this arm of the labels instead of the recipe's.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def _taught(recipe: Any, labels: str | None, dataset: str | None) -> Any:
    from vlm_rlaif.train.run import with_dataset, with_labels

    if dataset is not None and labels in ("context", "none"):
        raise UserError(f"Both --dataset {dataset} and --labels {labels} say what to learn from: give one of them.")
    recipe = with_labels(recipe, labels) if labels else recipe
    return with_dataset(recipe, dataset) if dataset else recipe


@train.command()
@train_options
@teacher_options
def reward(
    warehouse: Path, recipe_name: str, model: str | None, as_json: bool, labels: str | None, dataset: str | None
) -> None:
    """Train the reward model on preferences: those of the training split, or a version of the data set."""
    opened, recipe = _open(warehouse, recipe_name, model)
    from vlm_rlaif.train.run import train_reward

    _report(train_reward(opened, _taught(recipe, labels, dataset)), as_json)


@train.command()
@train_options
@teacher_options
def ppo(
    warehouse: Path, recipe_name: str, model: str | None, as_json: bool, labels: str | None, dataset: str | None
) -> None:
    """Improve the policy against the reward model (trained first where it does not stand)."""
    opened, recipe = _open(warehouse, recipe_name, model)
    from vlm_rlaif.train.run import train_ppo, train_reward

    recipe = _taught(recipe, labels, dataset)
    _report(train_ppo(opened, recipe, train_reward(opened, recipe)), as_json)


@train.command()
@click.option("--into", type=click.Path(path_type=Path), required=True, help="Folder to train into.")
@click.option("--processes", default=2, show_default=True, help="Processes of one thread each.")
def embedded(into: Path, processes: int) -> None:
    """Rebuild the embedded models from nothing (about 75 minutes on two idle CPU cores; resumes)."""
    from vlm_rlaif.train.run import require_packages

    require_packages()
    from vlm_rlaif.train.embedded import train as build

    build(into, processes)
    click.echo(f"Both checkpoints are in {into}.")
