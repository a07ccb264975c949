"""The whole journey of a recipe, stage after stage. Everything that stands is left alone, so a rerun is free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from vlm_rlaif.datagen import models, prompt
from vlm_rlaif.datagen.engines.make import Engines, EngineSettings
from vlm_rlaif.datagen.job import Stage, run_models
from vlm_rlaif.datagen.plan import (
    answerable_stage,
    ask_stage,
    asked_by,
    caption_stage,
    clip_method,
    context_spec,
    fill_templates,
    narrate_videos,
    part,
    questions_of,
    refine_stages,
    summarise_stage,
)
from vlm_rlaif.datagen.policies import pairs_of, respond_stages
from vlm_rlaif.datagen.portion import Portion, Shard
from vlm_rlaif.datagen.shapes.add import add_world
from vlm_rlaif.datagen.stages.answerable import left_out
from vlm_rlaif.datagen.stages.clip import clip
from vlm_rlaif.eval.answer import answer_stage
from vlm_rlaif.eval.figures import (
    Figures,
    best_of_n,
    label_figures,
    policy_figures,
    questions_with_context,
    reward_figures,
    sampled_gain,
    sampled_truth,
    win_figures,
)
from vlm_rlaif.eval.truth import score_answers
from vlm_rlaif.eval.win import win_stage
from vlm_rlaif.feedback.judges.pairwise import LabelStage
from vlm_rlaif.feedback.judges.plan import judge_spec, judges_of, turns
from vlm_rlaif.feedback.judges.probe import anchor_stages, probe_stages
from vlm_rlaif.feedback.judges.rate import rate_stages
from vlm_rlaif.train.jobs import Trained
from vlm_rlaif.train.run import (
    MERGED,
    after_sft,
    require_packages,
    taught_by,
    text_only,
    train_ppo,
    train_reward,
    train_sft,
)
from vlm_rlaif.warehouse.config import PPO, FineTuning, Recipe, Rewarding
from vlm_rlaif.warehouse.runs import Outcome
from vlm_rlaif.warehouse.store import Warehouse

AskModel = Callable[[Sequence[Stage]], None]
"""Runs stages that ask models; those of the same model together."""


class OutOfTime(Exception):
    """The hours that a run was given are over; what it has done is kept."""


@dataclass(slots=True)
class Journey:
    """What a run of a recipe did."""

    portion: Portion = field(default_factory=Portion)
    outcomes: list[Outcome] = field(default_factory=list)
    trained: dict[str, Trained] = field(default_factory=dict)
    """By role: `sft`, `rm`, `rm_text_only`, `policy`."""

    @property
    def failed(self) -> int:
        return sum(outcome.failed + outcome.failed_before for outcome in self.outcomes)

    def add(self, *outcomes: Outcome) -> None:
        for outcome in outcomes:
            self.outcomes.append(outcome)
            click.echo(f"  {outcome}")

    def train(self, role: str, train: Callable[[], Trained]) -> Trained:
        """Train a model, or take the one that stands; raises `OutOfTime`."""
        if self.portion.over:
            raise OutOfTime
        trained = self.trained[role] = train()
        click.echo(f"  {role.replace('_', ' ')}: {trained.where}")
        return trained


def travel(
    warehouse: Warehouse, recipe: Recipe, engine: EngineSettings | None = None, portion: Portion | None = None
) -> tuple[Recipe, Journey]:
    """Run every stage that the recipe has a part for. Of a shard nothing is trained: its rows are to be united first.

    Returned with the recipe as it was run: after fine-tuning, the policy starts as the fine-tuned model. Raises
    `OutOfTime` when the portion's hours are over before the work is.
    """
    check(recipe)
    portion = portion or Portion()
    if trainers(recipe) and portion.shard is None:
        require_packages()
    journey, engines = Journey(portion), Engines(engine)

    def ask_model(stages: Sequence[Stage]) -> None:
        journey.add(*run_models(warehouse, stages, engines.of, portion))
        if any(outcome.left for outcome in journey.outcomes):
            raise OutOfTime

    try:
        recipe = generate(warehouse, recipe, journey, ask_model, portion.shard)
        probe(warehouse, recipe, ask_model, engines.settings.versioned)
        engines.close()  # a GPU is not big enough for an engine and a trainer
        if portion.shard is not None:
            return recipe, journey
        learn(warehouse, recipe, journey)
        if recipe.evaluate is not None and recipe.respond is not None:
            evaluate(warehouse, recipe, journey, ask_model)
    finally:
        engines.close()
    return recipe, journey


def check(recipe: Recipe) -> None:
    """Resolve every part of a recipe: a wrong prompt or model must not show itself after hours of work."""
    makers: dict[str, Callable[[], object]] = {
        "clip": lambda: clip_method(recipe),
        "caption": lambda: caption_stage(recipe),
        "context": lambda: context_spec(recipe),
        "ask": lambda: [asked_by(recipe), questions_of(recipe)],
        "respond": lambda: pairs_of(recipe),
        "rate": lambda: rate_stages(recipe),
        "label": lambda: judges_of(recipe),
        "judges": lambda: judges_of(recipe),
        "panels": lambda: judges_of(recipe),
        "probe": lambda: probe_stages(recipe, part(recipe, "probe"), ""),
    }
    for name, make in makers.items():
        if getattr(recipe, name):
            make()
    for settings in trainers(recipe):
        models.revision(settings.model)
        for wording in (settings.prompt, getattr(settings, "context_prompt", None)):
            if wording is not None:
                prompt.load(wording)
    if recipe.ppo is not None:
        part(recipe, "reward")
    if recipe.reward is not None:
        judge_spec(recipe, taught_by(recipe))


def trainers(recipe: Recipe) -> list[FineTuning | Rewarding | PPO]:
    """The settings of what a recipe trains."""
    return [settings for settings in (recipe.sft, recipe.reward, recipe.ppo) if settings is not None]


def generate(
    warehouse: Warehouse, recipe: Recipe, journey: Journey, ask_model: AskModel, shard: Shard | None = None
) -> Recipe:  # fmt: skip
    """Videos, clips, captions, contexts, questions, then the policy's responses to them, pairs and labels."""
    if recipe.world is not None:
        journey.add(*add_world(warehouse, recipe.world))
    if recipe.clip is not None:
        journey.add(clip(warehouse, recipe.clip, shard))
    if recipe.caption is not None:
        ask_model([caption_stage(recipe)])
    if recipe.context is not None:
        write_contexts(warehouse, recipe, journey, ask_model)
    if recipe.ask is not None:
        write_questions(warehouse, recipe, journey, ask_model)
    if recipe.sft is not None:
        recipe = after_sft(recipe, journey.train("sft", lambda: train_sft(warehouse, recipe)))
    if recipe.respond is not None:
        ask_model(respond_stages(recipe))
        compare(warehouse, recipe, journey, ask_model)
    return recipe


def compare(warehouse: Warehouse, recipe: Recipe, journey: Journey, ask_model: AskModel) -> None:
    """Ratings, pairs and labels of the responses. Pairs that are chosen by ratings wait for them, and what is made of
    the rows of other judges waits for these."""
    pairs, judges = pairs_of(recipe), list(judges_of(recipe).values())
    judge: list[Stage] = [*rate_stages(recipe)] if recipe.rate is not None else []
    if pairs.ratings:
        ask_model(judge)
        judge = []
    journey.add(pairs.make(warehouse))
    first, *later = turns(judges) or [[]]
    for stages in ([*judge, *first], *later):
        ask_model(stages)
    for each in judges:
        if each.derive is not None:
            journey.add(each.derive(warehouse))


def probe(warehouse: Warehouse, recipe: Recipe, ask_model: AskModel, engine: str) -> None:
    """What judges should know, where the recipe asks for it, and pinned pairs that they have not judged yet."""
    stages: list[Stage] = []
    if recipe.probe is not None:
        stages += probe_stages(recipe, recipe.probe, engine)
    compares = [stage for judge in judges_of(recipe).values() for stage in judge.stages]
    stages += anchor_stages(warehouse, [each for each in compares if isinstance(each, LabelStage)], engine)
    ask_model(stages)


def write_contexts(warehouse: Warehouse, recipe: Recipe, journey: Journey, ask_model: AskModel) -> None:
    """The captions joined, written anew by a model in every round, and summed up where they are too long."""
    journey.add(narrate_videos(warehouse, recipe))
    for stage in refine_stages(recipe):
        ask_model([stage])
    if part(recipe, "context").summarise is not None:
        stage = summarise_stage(recipe)
        passed = stage.pass_short(warehouse)
        journey.add(*([passed] if passed.written else []))
        ask_model([stage])


def write_questions(warehouse: Warehouse, recipe: Recipe, journey: Journey, ask_model: AskModel) -> None:
    """Questions by a model or from templates, and whether they can be answered."""
    settings = part(recipe, "ask")
    if settings.templates:
        journey.add(fill_templates(warehouse, recipe))
    else:
        ask_model([ask_stage(recipe)])
    if settings.answerable is not None:
        ask_model([answerable_stage(recipe)])
        if said := left_out(warehouse, answerable_stage(recipe)):
            click.echo(f"  {said}")


def learn(warehouse: Warehouse, recipe: Recipe, journey: Journey) -> None:
    """Reward model, its text-only control, and the policy."""
    if recipe.reward is None:
        return
    reward = journey.train("rm", lambda: train_reward(warehouse, recipe))
    if recipe.evaluate is not None:
        journey.train("rm_text_only", lambda: train_reward(warehouse, text_only(recipe)))
    if recipe.ppo is not None:
        journey.train("policy", lambda: train_ppo(warehouse, recipe, reward))


def merged(journey: Journey) -> str | None:
    """Folder of the trained policy that any engine loads."""
    trained = journey.trained.get("policy")
    return str(trained.path / MERGED) if trained else None


def evaluate(warehouse: Warehouse, recipe: Recipe, journey: Journey, ask_model: AskModel) -> None:
    """Greedy and sampled answers of the start and of the trained policy, their truth, and who wins."""
    settings, policy = part(recipe, "evaluate"), merged(journey)
    for model in (None, policy) if policy else (None,):
        forms = (1, settings.best_of) if settings.best_of else (1,)
        ask_model([answer_stage(recipe, model, samples=samples) for samples in forms])
    journey.add(score_answers(warehouse))
    if policy and settings.win_rate and recipe.label is not None:
        new, old = answer_stage(recipe, policy), answer_stage(recipe)
        ask_model([win_stage(recipe, new.spec.spec_id, old.spec.spec_id)])


def measure(warehouse: Warehouse, recipe: Recipe, journey: Journey) -> Figures:
    """All figures that the rows of this recipe support."""
    found: Figures = {}
    if not warehouse.value("SELECT count(*) FROM questions WHERE source = 'shapes'"):
        return found
    if recipe.label is not None:
        found |= label_figures(warehouse, recipe)
    folders = {role: [t.path] for role, t in journey.trained.items() if t.kind == "reward"}
    if recipe.evaluate is None:
        return found
    settings, policy = recipe.evaluate, merged(journey)
    if folders:
        found |= reward_figures(warehouse, recipe, folders, settings.split)
    if policy:
        new, old = answer_stage(recipe, policy).spec.spec_id, answer_stage(recipe).spec.spec_id
        found |= policy_figures(warehouse, [old], [new])
        if settings.best_of:
            found |= _sampled_figures(warehouse, recipe, policy, journey.trained["rm"].path)
        if settings.win_rate:
            found |= win_figures(warehouse, win_stage(recipe, new, old).spec.spec_id)
    return found


def _sampled_figures(warehouse: Warehouse, recipe: Recipe, policy: str, reward: Path) -> Figures:
    n = part(recipe, "evaluate").best_of
    start = answer_stage(recipe, samples=n).spec.spec_id
    trained = answer_stage(recipe, policy, samples=n).spec.spec_id
    return {
        **sampled_truth(warehouse, start, "start"),
        **sampled_truth(warehouse, trained, "policy"),
        **sampled_gain(warehouse, start, trained, "policy"),
        **best_of_n(warehouse, start, reward, questions_with_context(warehouse, recipe)),
    }


def place(recipe: Recipe, into: Path | None, warehouse: Path | None) -> Warehouse:
    """The warehouse that a run works on: a given one, or `DIR/warehouse.duckdb`."""
    if into is not None:
        into.mkdir(parents=True, exist_ok=True)
        return Warehouse.create(into / "warehouse.duckdb")
    assert warehouse is not None
    return Warehouse.open(warehouse)
