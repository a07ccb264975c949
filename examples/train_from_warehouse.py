"""The trainers by hand: preferences -> reward model -> PPO -> the new policy's responses back in the warehouse.

    OMP_NUM_THREADS=1 python examples/train_from_warehouse.py w.duckdb RECIPE --into runs/mine [--min-strength 0.1]

Needs `pip install 'vlm-rlaif[train]'` and labels of the recipe's context arm for videos of the training split. This
is the loop in the open: it writes no row of `checkpoints` and no learning curve. `vlm-rlaif train ppo` does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vlm_rlaif.datagen.engines.make import Engines, EngineSettings
from vlm_rlaif.datagen.job import run_stage
from vlm_rlaif.datagen.plan import part, respond_stage
from vlm_rlaif.feedback.judges.pairwise import label_stage
from vlm_rlaif.train import PPOTrainer
from vlm_rlaif.train.reward import RewardTrainer, pairs_from_rows
from vlm_rlaif.train.rollout import POLICY
from vlm_rlaif.train.run import MERGED, prompt_rows
from vlm_rlaif.train.vlm import export
from vlm_rlaif.warehouse import Warehouse
from vlm_rlaif.warehouse.config import Recipe, load, replace_models
from vlm_rlaif.warehouse.runs import Outcome


def train_from_warehouse(warehouse: Warehouse, recipe: Recipe, into: Path, *, min_strength: float = 0.1) -> Outcome:
    """Both trainers write below `into` and resume from there; the policy's responses become rows."""
    judge = label_stage(recipe, "context").spec.spec_id
    rows = warehouse.preferences(judge=judge, min_strength=min_strength, split="train").to_dicts()
    RewardTrainer(part(recipe, "reward"), pairs_from_rows(rows, warehouse.video_path), into / "reward").train()

    prompts = [prompt for _, prompt in prompt_rows(warehouse, recipe)]
    trainer = PPOTrainer(part(recipe, "ppo"), into / "reward", prompts, into / "policy")
    trainer.train()
    export(into / "policy" / MERGED, trainer.backbone, POLICY)  # a plain checkpoint: any engine loads it

    respond = respond_stage(replace_models(recipe, str(into / "policy" / MERGED)))
    return run_stage(warehouse, respond, Engines(EngineSettings("transformers")).of(respond.spec.model))


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("warehouse")
    arguments.add_argument("recipe")
    arguments.add_argument("--into", type=Path, required=True)
    arguments.add_argument("--min-strength", type=float, default=0.1)
    given = arguments.parse_args()
    print(
        train_from_warehouse(
            Warehouse.open(given.warehouse), load(given.recipe), given.into, min_strength=given.min_strength
        )
    )
