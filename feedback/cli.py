"""`vlm-rlaif feedback ...`: which answer is better?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vlm_rlaif.datagen.cli import adapter_option, run_stages, stage_options


@click.group()
def feedback() -> None:
    """Which answer is better: AI preference labels."""


@feedback.command()
@stage_options
@adapter_option
def rate(warehouse: Path, recipe_name: str, model: str | None, adapter: str | None, **options: Any) -> int:
    """Let the judge rate every response by itself, from 1 to 5."""
    from vlm_rlaif.feedback.judges.rate import rate_stages
    from vlm_rlaif.warehouse.config import load

    return run_stages(warehouse, rate_stages(load(recipe_name, model, adapter)), **options)


@feedback.command()
@stage_options
@adapter_option
@click.option("--arm", "--context", "arms", multiple=True, help="context, none, or both (default: the recipe's).")
def label(
    warehouse: Path, recipe_name: str, model: str | None, adapter: str | None, arms: tuple[str, ...], **options: Any
) -> int:  # fmt: skip
    """Let the judge label every pair, in both orders, with and without context."""
    from vlm_rlaif.datagen.plan import part
    from vlm_rlaif.feedback.judges.pairwise import label_stage
    from vlm_rlaif.warehouse.config import load

    recipe = load(recipe_name, model, adapter)
    chosen = arms or part(recipe, "label").arms
    return run_stages(warehouse, [label_stage(recipe, arm) for arm in chosen], **options)
