"""The whole journey of a recipe, stage after stage. Everything that stands is left alone, so a rerun is free."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vlm_rlaif.datagen.clip import clip
from vlm_rlaif.datagen.context import context
from vlm_rlaif.datagen.engines import Engines
from vlm_rlaif.datagen.job import Outcome, Stage, run_stage
from vlm_rlaif.datagen.pair import pair
from vlm_rlaif.datagen.plan import (
    ask_stage,
    caption_stage,
    clip_method,
    context_spec,
    part,
    respond_stage,
)
from vlm_rlaif.datagen.shapes_add import add_world
from vlm_rlaif.eval.answer import answer_stage
from vlm_rlaif.eval.truth import score_answers
from vlm_rlaif.eval.win import win_stage
from vlm_rlaif.feedback.label import label_stage
from vlm_rlaif.warehouse.config import Recipe
from vlm_rlaif.warehouse.store import Warehouse

if TYPE_CHECKING:
    from vlm_rlaif.train.jobs import Trained


@dataclass(slots=True)
class Journey:
    """What a run of a recipe did."""

    outcomes: list[Outcome] = field(default_factory=list)
    trained: list[Trained] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return sum(outcome.failed for outcome in self.outcomes)

    def add(self, *outcomes: Outcome) -> None:
        for outcome in outcomes:
            self.outcomes.append(outcome)
            click.echo(f"  {outcome}")

    def add_trained(self, trained: Trained) -> Trained:
        self.trained.append(trained)
        click.echo(f"  {trained}")
        return trained


def travel(warehouse: Warehouse, recipe: Recipe, engine_name: str = "auto") -> Journey:
    """Run every stage that the recipe has a part for."""
    journey, engines = Journey(), Engines(engine_name)

    def ask_model(stage: Stage) -> None:
        journey.add(run_stage(warehouse, stage, engines.of(stage.spec.model)))

    try:
        generate(warehouse, recipe, journey, ask_model)
        policy = learn(warehouse, recipe, journey)
        if recipe.evaluate is not None:
            evaluate(warehouse, recipe, policy, journey, ask_model)
    finally:
        engines.close()
    return journey


def generate(warehouse, recipe, journey, ask_model) -> None:  # type: ignore[no-untyped-def]
    """Videos, clips, captions, contexts, questions, responses, pairs, labels."""
    if recipe.world is not None:
        journey.add(*add_world(warehouse, recipe.world))
    if recipe.clip is not None:
        journey.add(clip(warehouse, recipe.clip))
    if recipe.caption is not None:
        ask_model(caption_stage(recipe))
    if recipe.context is not None:
        captions = caption_stage(recipe).spec.spec_id
        journey.add(context(warehouse, context_spec(recipe), captions, clip_method(recipe)))
    if recipe.ask is not None:
        ask_model(ask_stage(recipe))
    if recipe.respond is not None:
        ask_model(respond_stage(recipe))
        journey.add(pair(warehouse, respond_stage(recipe).spec.spec_id))
    if recipe.label is not None:
        for arm in recipe.label.arms:
            ask_model(label_stage(recipe, arm))


def learn(warehouse: Warehouse, recipe: Recipe, journey: Journey) -> str | None:
    """Reward model and policy; returns the folder of the trained policy."""
    from vlm_rlaif.train.run import MERGED, train_ppo, train_reward

    if recipe.reward is None:
        return None
    reward = journey.add_trained(train_reward(warehouse, recipe))
    for control in controls(recipe):
        journey.add_trained(train_reward(warehouse, control))
    if recipe.ppo is None:
        return None
    policy = journey.add_trained(train_ppo(warehouse, recipe, reward))
    return str(policy.path / MERGED)


def controls(recipe: Recipe) -> list[Recipe]:
    """Reward models that show what the real one is worth: here the one that cannot see the video."""
    reward = part(recipe, "reward")
    return [dataclasses.replace(recipe, reward=dataclasses.replace(reward, use_video=False))]


def evaluate(warehouse, recipe, policy, journey, ask_model) -> None:  # type: ignore[no-untyped-def]
    """Greedy and sampled answers of the start and of the trained policy, their truth, and who wins."""
    best_of = part(recipe, "evaluate").best_of
    for model in (None, policy) if policy else (None,):
        ask_model(answer_stage(recipe, model))
        if best_of:
            ask_model(answer_stage(recipe, model, samples=best_of))
    journey.add(score_answers(warehouse))
    if policy and part(recipe, "evaluate").win_rate:
        new, old = answer_stage(recipe, policy), answer_stage(recipe)
        ask_model(win_stage(recipe, new.spec.spec_id, old.spec.spec_id))


def place(recipe: Recipe, into: Path | None, warehouse: Path | None) -> Warehouse:
    """The warehouse that a run works on: a given one, or `DIR/warehouse.duckdb`."""
    if into is not None:
        into.mkdir(parents=True, exist_ok=True)
        return Warehouse.create(into / "warehouse.duckdb")
    assert warehouse is not None
    return Warehouse.open(warehouse)
