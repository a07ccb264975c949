"""Whose responses a recipe compares: its policies, the answers to spoilt videos, their ratings, and the pairs.

Like `plan.py`, from which it goes on, it resolves a recipe and loads no model.
"""

from __future__ import annotations

import dataclasses

from vlm_rlaif.datagen.plan import context_spec, model_spec, part, questions_of
from vlm_rlaif.datagen.stages.pair import Pairs
from vlm_rlaif.datagen.stages.respond import RespondStage
from vlm_rlaif.warehouse.config import Recipe
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.judge_settings import Grading
from vlm_rlaif.warehouse.records import Spec
from vlm_rlaif.warehouse.settings import OTHER_VIDEO, Perturbing, Responding


def policy_stages(recipe: Recipe) -> list[RespondStage]:
    """The recipe's own policy, then its further ones. Two that come to the same are one."""
    settings: Responding = part(recipe, "respond")
    asked, found = questions_of(recipe), dict[str, RespondStage]()
    for policy in settings.policies():
        spec = model_spec("respond", policy, {})
        found.setdefault(spec.spec_id, RespondStage(policy, spec, asked))
    return list(found.values())


def negative_stages(recipe: Recipe) -> dict[str, RespondStage]:
    """Kind of perturbation -> the recipe's own policy, answering from a spoilt video."""
    if recipe.pair is None or recipe.pair.perturb is None:
        return {}
    settings: Responding = part(recipe, "respond")
    perturb = recipe.pair.perturb
    if perturb.samples > settings.samples:
        raise UserError(
            f"The recipe {recipe.name} asks for {perturb.samples} answers to spoilt videos, and for"
            f" {settings.samples} to the videos as they are: those beyond would have no partner."
        )
    try:
        return {kind: _negative(recipe, settings.policies()[0], perturb, kind) for kind in perturb.kinds}
    except ValueError as error:
        raise UserError(f"{recipe.name}: pair: perturb: {error}") from None


def _negative(recipe: Recipe, own: Responding, perturb: Perturbing, kind: str) -> RespondStage:
    shown = dataclasses.replace(own, samples=perturb.samples)
    if kind == OTHER_VIDEO:
        return RespondStage(shown, model_spec("respond", shown, {}, perturb=kind), questions_of(recipe), True)
    frames = dataclasses.replace(own.frames, perturb=kind, perturb_seed=perturb.seed)
    shown = dataclasses.replace(shown, frames=frames)
    return RespondStage(shown, model_spec("respond", shown, {}), questions_of(recipe))


def respond_stages(recipe: Recipe) -> list[RespondStage]:
    """All that is asked for responses."""
    return [*policy_stages(recipe), *negative_stages(recipe).values()]


def rating_specs(recipe: Recipe) -> dict[str, Spec]:
    """Spec of a policy's responses -> the spec of their ratings."""
    settings: Grading = part(recipe, "rate")
    upstream = {}
    if settings.arm == "context":
        assert settings.context_prompt is not None
        upstream = {"context": context_spec(recipe).spec_id}
        settings = dataclasses.replace(settings, prompt=settings.context_prompt)
    rated = (stage.spec.spec_id for stage in policy_stages(recipe))
    return {spec: model_spec("rate", settings, upstream | {"respond": spec}) for spec in rated}


def pairs_of(recipe: Recipe) -> Pairs:
    """The pairs that a recipe asks for."""
    rated = recipe.pair is not None and recipe.pair.score == "quality"
    return Pairs(
        recipe.pair,
        tuple(stage.spec.spec_id for stage in policy_stages(recipe)),
        tuple((stage.spec.spec_id, kind) for kind, stage in negative_stages(recipe).items()),
        tuple(spec.spec_id for spec in rating_specs(recipe).values()) if rated else (),
    )  # fmt: skip
