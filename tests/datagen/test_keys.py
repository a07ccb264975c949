"""Keys never change: a warehouse that was filled with a shipped recipe is not computed again by a later version."""

from __future__ import annotations

import pytest

from vlm_rlaif.datagen.plan import ask_stage, caption_stage, context_spec, respond_stage
from vlm_rlaif.eval.answer import answer_stage
from vlm_rlaif.feedback.judges.pairwise import label_stage
from vlm_rlaif.train.jobs import identity
from vlm_rlaif.warehouse.config import Recipe, load
from vlm_rlaif.warehouse.records import row_id

EMBEDDED = {
    "caption": "a484748b75dcf65b9958", "context": "6a06279cfb50b7aafea5", "respond": "6e47271107eb818d9755",
    "answer": "347e2ea6f9b2921b2a25", "label context": "cd0b51035e758db4931b", "label none": "6774059e5798aba8c4da",
}  # fmt: skip
FIRST_RELEASE = {
    "shapes": {**EMBEDDED, "reward": "3fe7b62eb0be4e1cb533", "ppo": "a1892280c5b60f233d14"},
    "shapes-full": {**EMBEDDED, "reward": "3fe7b62eb0be4e1cb533", "ppo": "6bd6440bf237d6bde193"},
    "shapes-mini": {**EMBEDDED, "reward": "8f8a4ce841ea2aa2424c", "ppo": "f877a232ebbaec522e30"},
    "natural": {
        "caption": "b3980e74d910de7a1cc9", "context": "985eabfd3eccb8e9b7b0", "ask": "9ef487486926343c663e",
        "respond": "8993a96211a5ab101307", "answer": "af24c9168e77306b7b3b", "label context": "caf61771b13e266283f8",
        "reward": "914f1e2a5fb1613518d6", "ppo": "6df4f99c0c87f9944d6d",
    },
}  # fmt: skip
"""Recipe -> its specs, and what of its trainers' settings goes into their checkpoints, as they were at first."""


def keys(recipe: Recipe) -> dict[str, str]:
    found = {
        "caption": caption_stage(recipe).spec.spec_id, "context": context_spec(recipe).spec_id,
        "respond": respond_stage(recipe).spec.spec_id, "answer": answer_stage(recipe).spec.spec_id,
    }  # fmt: skip
    if recipe.ask is not None:
        found["ask"] = ask_stage(recipe).spec.spec_id
    for arm in recipe.label.arms if recipe.label else ():
        found[f"label {arm}"] = label_stage(recipe, arm).spec.spec_id
    trainers = {"reward": recipe.reward, "ppo": recipe.ppo}
    return found | {name: row_id(*identity(settings)) for name, settings in trainers.items()}


@pytest.mark.parametrize("name", FIRST_RELEASE)
def test_the_keys_of_a_shipped_recipe_are_those_of_the_first_release(name: str) -> None:
    assert keys(load(name, "embedded:judge" if name == "natural" else None)) == FIRST_RELEASE[name]
