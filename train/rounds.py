"""Rounds: the policy that one round has trained answers in the next one, and starts its training.

Round 1 is the recipe. Round k is the same recipe with the policy of round k - 1 in place of its start, so everything
that the policy says, and every judgement of it, is made anew; captions, contexts and questions stay.
"""

from __future__ import annotations

import dataclasses

from vlm_rlaif.train.run import after_sft, standing
from vlm_rlaif.warehouse.config import Recipe
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.store import Warehouse


def of_round(warehouse: Warehouse, recipe: Recipe, number: int) -> Recipe:
    """The recipe of a round; raises `UserError` where the policy of the round before it does not stand."""
    if number > 1 and recipe.ppo is None:
        raise UserError(f"The recipe {recipe.name} trains no policy (`ppo:`), which a second round would start from.")
    for before in range(1, number):
        recipe, trained = standing(warehouse, recipe)
        if "policy" not in trained:
            raise UserError(
                f"Round {number} starts from the policy of round {before}, which has not been trained here.",
                f"vlm-rlaif run {warehouse.path} {recipe.name} --round {before}",
            )
        recipe = dataclasses.replace(after_sft(recipe, trained["policy"]), sft=None)
    return recipe
