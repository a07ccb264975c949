"""A recipe resolved: every stage with its spec, bound to the rows of the stages before it. Loads no model."""

from __future__ import annotations

import dataclasses
from typing import Any

from vlm_rlaif.datagen import models, prompt
from vlm_rlaif.datagen.stages.ask import AskStage
from vlm_rlaif.datagen.stages.caption import CaptionStage
from vlm_rlaif.datagen.stages.clip import method_name
from vlm_rlaif.datagen.stages.respond import RespondStage
from vlm_rlaif.warehouse.config import Recipe
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import Spec


def part(recipe: Recipe, stage: str) -> Any:
    """One stage's settings, or an error that says the recipe has none."""
    found = getattr(recipe, stage)
    if found is None:
        raise UserError(f"The recipe {recipe.name} has no `{stage}:` part.")
    return found


def model_spec(stage: str, settings: Any, upstream: dict[str, str]) -> Spec:
    """The spec of a stage that asks a model."""
    sampling, frames = getattr(settings, "sampling", None), getattr(settings, "frames", None)
    return Spec.make(
        stage=stage, model=settings.model, revision=models.revision(settings.model),
        prompt=settings.prompt, prompt_hash=prompt.load(settings.prompt).text_hash,
        frames=dataclasses.asdict(frames) if frames else {},
        sampling=dataclasses.asdict(sampling) if sampling else {}, upstream=upstream,
    )  # fmt: skip


def clip_method(recipe: Recipe) -> str:
    return method_name(part(recipe, "clip"))


def caption_stage(recipe: Recipe) -> CaptionStage:
    settings, method = part(recipe, "caption"), clip_method(recipe)
    return CaptionStage(settings, model_spec("caption", settings, {"clip": method}), method)


def context_spec(recipe: Recipe) -> Spec:
    settings = part(recipe, "context")
    return Spec.make(
        stage="context", model="none", revision="none", prompt=settings.prompt,
        prompt_hash=prompt.load(settings.prompt).text_hash, frames={},
        sampling={"separator": settings.separator},
        upstream={"caption": caption_stage(recipe).spec.spec_id},
    )  # fmt: skip


def ask_stage(recipe: Recipe) -> AskStage:
    settings, context = part(recipe, "ask"), context_spec(recipe).spec_id
    return AskStage(settings, model_spec("ask", settings, {"context": context}), context)


def asked_by(recipe: Recipe) -> str | None:
    """The spec whose questions a recipe reads beside those that were imported."""
    return ask_stage(recipe).spec.spec_id if recipe.ask is not None else None


def respond_stage(recipe: Recipe) -> RespondStage:
    settings = part(recipe, "respond")
    return RespondStage(settings, model_spec("respond", settings, {}), asked_by(recipe))
