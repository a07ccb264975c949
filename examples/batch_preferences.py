"""Preferences for every question of a warehouse: sample responses, pair them, let a judge label the pairs.

    python examples/batch_preferences.py w.duckdb RECIPE [--model M] [--engine auto|transformers|vllm]

Needs a warehouse with videos and questions (`vlm-rlaif add`). The arm `context` labels videos that have a
narrative; without one (`datagen clip`, `caption`, `context`) it finds nothing to do. Run again, it does the rest.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from vlm_rlaif.datagen.engine import Engine
from vlm_rlaif.datagen.engines import ENGINES
from vlm_rlaif.datagen.engines.make import Engines, EngineSettings
from vlm_rlaif.datagen.job import run_stage
from vlm_rlaif.datagen.plan import part, respond_stage
from vlm_rlaif.datagen.stages.pair import pair
from vlm_rlaif.feedback.judges.pairwise import label_stage
from vlm_rlaif.warehouse import Warehouse
from vlm_rlaif.warehouse.config import Recipe, load
from vlm_rlaif.warehouse.runs import Outcome


def batch_preferences(
    warehouse: Warehouse, recipe: Recipe, engine_of: Callable[[str], Callable[[], Engine]]
) -> list[Outcome]:
    """`engine_of` takes the name of a model and promises its engine; it loads when there is work for it."""
    respond = respond_stage(recipe)
    outcomes = [
        run_stage(warehouse, respond, engine_of(respond.spec.model)),
        pair(warehouse, respond.spec.spec_id),
    ]
    for arm in part(recipe, "label").arms:
        judge = label_stage(recipe, arm)
        outcomes.append(run_stage(warehouse, judge, engine_of(judge.spec.model)))
    return outcomes


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("warehouse")
    arguments.add_argument("recipe")
    arguments.add_argument("--model")
    arguments.add_argument("--engine", default="auto", choices=ENGINES)
    given = arguments.parse_args()
    opened = Warehouse.open(given.warehouse)
    for outcome in batch_preferences(
        opened, load(given.recipe, given.model), Engines(EngineSettings(given.engine)).of
    ):
        print(outcome)
    print(opened.preferences().select("question", "text_a", "text_b", "choice", "p_a", "strength"))
