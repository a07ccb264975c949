"""A recipe resolved: every stage with its spec, bound to the rows of the stages before it. Loads no model."""

from __future__ import annotations

from typing import Any

from vlm_rlaif.datagen import adapters, models, prompt
from vlm_rlaif.datagen.stages.answerable import AnswerableStage
from vlm_rlaif.datagen.stages.ask import SCHEMA, AskStage
from vlm_rlaif.datagen.stages.caption import CaptionStage
from vlm_rlaif.datagen.stages.clip import method_name
from vlm_rlaif.datagen.stages.context import context
from vlm_rlaif.datagen.stages.questions import Questions
from vlm_rlaif.datagen.stages.respond import RespondStage
from vlm_rlaif.datagen.stages.rewrite import RewriteStage
from vlm_rlaif.datagen.stages.templates import CLIP_FIELDS, ask_templates, fields_of_all, template_hash
from vlm_rlaif.datagen.stages.templates import STAGE as TEMPLATES
from vlm_rlaif.warehouse.config import Recipe, key_parts
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import Spec, row_id
from vlm_rlaif.warehouse.runs import Outcome
from vlm_rlaif.warehouse.settings import Narrative, Summarising
from vlm_rlaif.warehouse.store import Warehouse


def part(recipe: Recipe, stage: str) -> Any:
    """One stage's settings, or an error that says the recipe has none. `context.refine` names a part of a part."""
    found: Any = recipe
    for name in stage.split("."):
        found = getattr(found, name)
        if found is None:
            raise UserError(f"The recipe {recipe.name} has no `{stage}:` part.")
    return found


def model_spec(stage: str, settings: Any, upstream: dict[str, str], **further: Any) -> Spec:
    """The spec of a stage that asks a model; `further` settings are kept beside those of the sampling."""
    sampling, frames = getattr(settings, "sampling", None), getattr(settings, "frames", None)
    return Spec.make(
        stage=stage, model=settings.model, revision=models.revision(settings.model),
        adapter=adapters.revision(getattr(settings, "adapter", "")),
        prompt=settings.prompt, prompt_hash=prompt.load(settings.prompt).text_hash,
        frames=key_parts(frames) if frames else {},
        sampling=(key_parts(sampling) if sampling else {}) | further, upstream=upstream,
    )  # fmt: skip


def clip_method(recipe: Recipe) -> str:
    return method_name(part(recipe, "clip"))


def caption_stage(recipe: Recipe) -> CaptionStage:
    settings, method = part(recipe, "caption"), clip_method(recipe)
    return CaptionStage(settings, model_spec("caption", settings, {"clip": method}), method)


def narrative_spec(recipe: Recipe) -> Spec:
    """The captions of a video joined, and what is said in it, before any model writes them anew."""
    settings: Narrative = part(recipe, "context")
    speech = {"transcripts": prompt.load(settings.transcripts).text_hash} if settings.transcripts else {}
    return Spec.make(
        stage="context", model="none", revision="none", prompt=settings.prompt,
        prompt_hash=prompt.load(settings.prompt).text_hash, frames={},
        sampling={"separator": settings.separator, **speech},
        upstream={"caption": caption_stage(recipe).spec.spec_id},
    )  # fmt: skip


def narrate_videos(warehouse: Warehouse, recipe: Recipe) -> Outcome:
    """Make the contexts of a recipe, as they are before any model writes them anew."""
    captions, speech = caption_stage(recipe).spec.spec_id, part(recipe, "context").transcripts
    return context(warehouse, narrative_spec(recipe), captions, clip_method(recipe), speech)


def refine_stages(recipe: Recipe) -> list[RewriteStage]:
    """One per round; each reads the contexts of the one before."""
    settings: Narrative = part(recipe, "context")
    stages: list[RewriteStage] = []
    for _ in range(settings.refine.rounds if settings.refine else 0):
        base = stages[-1].spec if stages else narrative_spec(recipe)
        spec = model_spec("refine", settings.refine, {"context": base.spec_id})
        stages.append(RewriteStage("refine", part(recipe, "context.refine"), spec, base.spec_id))
    return stages


def refined_spec(recipe: Recipe) -> Spec:
    """The contexts of the last round, whatever their length."""
    return ([narrative_spec(recipe)] + [stage.spec for stage in refine_stages(recipe)])[-1]


def summarise_stage(recipe: Recipe) -> RewriteStage:
    settings: Summarising = part(recipe, "context.summarise")
    base = refined_spec(recipe).spec_id
    spec = model_spec("summarise", settings, {"context": base}, above_words=settings.above_words)
    return RewriteStage("summarise", settings, spec, base)


def context_spec(recipe: Recipe) -> Spec:
    """The contexts that judges and other readers read: with the long ones summed up, if the recipe says so."""
    return refined_spec(recipe) if part(recipe, "context").summarise is None else summarise_stage(recipe).spec


def ask_stage(recipe: Recipe) -> AskStage:
    settings, context = part(recipe, "ask"), context_spec(recipe).spec_id
    if settings.templates:
        raise UserError(f"The recipe {recipe.name} takes its questions from templates: it asks no model for any.")
    form = {"json_schema": row_id(SCHEMA)} if settings.form == "json" else {}
    return AskStage(settings, model_spec("ask", settings, {"context": context}, **form), context)


def template_spec(recipe: Recipe) -> Spec:
    """The spec of questions from templates, which reads clips and captions only where they are filled in."""
    templates, upstream = part(recipe, "ask").templates, {}
    fields = fields_of_all(templates)
    if fields & CLIP_FIELDS:
        upstream["clip"] = clip_method(recipe)
    if "caption" in fields:
        upstream["caption"] = caption_stage(recipe).spec.spec_id
    return Spec.make(
        stage=TEMPLATES, model="none", revision="none", prompt=TEMPLATES, prompt_hash=template_hash(templates),
        frames={}, sampling={}, upstream=upstream,
    )  # fmt: skip


def fill_templates(warehouse: Warehouse, recipe: Recipe) -> Outcome:
    """Ask the questions of a recipe's templates."""
    return ask_templates(warehouse, template_spec(recipe), part(recipe, "ask").templates)


def asked_by(recipe: Recipe) -> str | None:
    """The spec whose questions a recipe reads beside those that were imported."""
    if recipe.ask is None:
        return None
    return (template_spec(recipe) if recipe.ask.templates else ask_stage(recipe).spec).spec_id


def answerable_stage(recipe: Recipe) -> AnswerableStage:
    settings, asked, context = part(recipe, "ask.answerable"), asked_by(recipe), context_spec(recipe).spec_id
    assert asked is not None
    return AnswerableStage(
        settings, model_spec("answerable", settings, {"ask": asked, "context": context}), asked, context
    )  # fmt: skip


def questions_of(recipe: Recipe) -> Questions:
    """Which questions a recipe reads."""
    if recipe.ask is None or recipe.ask.answerable is None:
        return Questions(asked_by(recipe))
    return Questions(asked_by(recipe), answerable_stage(recipe).spec.spec_id, recipe.ask.answerable.at_least)


def respond_stage(recipe: Recipe) -> RespondStage:
    settings = part(recipe, "respond")
    return RespondStage(settings, model_spec("respond", settings, {}), questions_of(recipe))
