"""The three trainers as a recipe asks for them: which rows they read, and where the result goes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_rlaif.datagen.plan import context_spec, part, questions_of
from vlm_rlaif.datagen.policies import pairs_of
from vlm_rlaif.feedback.judges.plan import judge_spec
from vlm_rlaif.train.jobs import Job, Trained, find, run_training
from vlm_rlaif.warehouse.config import PPO, Recipe, Rewarding
from vlm_rlaif.warehouse.errors import MissingExtra, UserError
from vlm_rlaif.warehouse.exports.versions import freeze, row_key, taken_from
from vlm_rlaif.warehouse.store import Warehouse

if TYPE_CHECKING:
    from vlm_rlaif.train.reward import Scored

MERGED = "merged"
"""Folder inside a policy's checkpoint that any engine loads."""
PACKAGES = ("torch", "transformers", "peft", "safetensors")


def require_packages() -> None:
    """Raise `MissingExtra` unless training can be imported. Ask before hours of other work."""
    if any(find_spec(package) is None for package in PACKAGES):
        raise MissingExtra("Training", "train")


def taught_by(recipe: Recipe) -> str:
    """The judge whose pairs the reward model reads; random labels are coins on the pairs of the first arm."""
    labels = str(part(recipe, "reward").labels)
    return str(part(recipe, "label").arms[0]) if labels == "random" else labels


def reward_job(warehouse: Warehouse, recipe: Recipe) -> tuple[Job, list[dict[str, Any]]]:
    """The reward model of a recipe and the preferences that it learns from."""
    settings: Rewarding = part(recipe, "reward")
    rows = _of_version(warehouse, settings.dataset) if settings.dataset else _of_judge(warehouse, recipe)
    if settings.labels == "random":
        rows = [{**row, "p_a": float(coin(row["pair_id"], settings.seed))} for row in rows]
    return Job("reward", settings, [row_key(r["pair_id"], r["judge"], r["p_a"]) for r in rows], {}), rows


def _of_judge(warehouse: Warehouse, recipe: Recipe) -> list[dict[str, Any]]:
    """Preferences of the training split, of the recipe's own judge, about its own questions and pairs."""
    judge, least = judge_spec(recipe, taught_by(recipe)).spec_id, part(recipe, "reward").min_strength
    known = warehouse.preferences(judge=judge, min_strength=least, split="train")
    read = questions_of(recipe)
    asked = warehouse.rows(f"SELECT question_id FROM questions q WHERE {read.where}", read.parameters)
    mine, meant = {row["question_id"] for row in asked}, set(pairs_of(recipe).ids(warehouse))
    return [row for row in known.to_dicts() if row["question_id"] in mine and row["pair_id"] in meant]


def _of_version(warehouse: Warehouse, name: str) -> list[dict[str, Any]]:
    """The preferences of a version, all of them; those of other splits would be learned before they are tested."""
    rows = warehouse.preferences(dataset=name).to_dicts()
    if elsewhere := Counter(row["split"] for row in rows if row["split"] != "train"):
        counted = ", ".join(f"{count:,} of {split}" for split, count in sorted(elsewhere.items()))
        raise UserError(
            f"The version {name} holds preferences outside of the training split: {counted}.",
            f"vlm-rlaif dataset create {warehouse.path} {name}-train --split train ...",
        )
    return rows


def train_reward(warehouse: Warehouse, recipe: Recipe) -> Trained:
    """Reward model on the training split of one judge's labels, or on a version of the data set.

    What it reads is frozen as a version first, so that the rows behind a checkpoint can be found for ever.
    """
    job, rows = reward_job(warehouse, recipe)
    if not rows:
        raise UserError(
            f"There are no labels of {job.settings.labels!r} in the training split.",
            f"vlm-rlaif feedback label {warehouse.path} --recipe {recipe.name}",
        )
    if find(warehouse, job) is None:
        _freeze(warehouse, job.settings, rows)

    def train(folder: Path, log: Callable[[int, dict[str, float]], None]) -> int:
        from vlm_rlaif.train.reward import RewardTrainer, pairs_from_rows

        trainer = RewardTrainer(job.settings, pairs_from_rows(rows, warehouse.video_path), folder)
        trainer.train(log)
        return trainer.steps

    return run_training(warehouse, job, train)


def _freeze(warehouse: Warehouse, settings: Rewarding, rows: list[dict[str, Any]]) -> None:
    """Make sure that what is read is a version, with the verdicts as the reward model takes them."""
    chosen = f"labels {settings.labels}, strength >= {settings.min_strength:g}, split train"
    if settings.dataset:
        chosen = f"dataset {settings.dataset}"
    if settings.labels == "random":
        chosen += f", verdicts by coin of seed {settings.seed}"
        rows = [{**row, "choice": "a" if row["p_a"] else "b"} for row in rows]
    freeze(warehouse, taken_from(warehouse, rows), "reward", f"read by train reward: {chosen}")


def coin(pair_id: str, seed: int) -> int:
    """A label without meaning, the same on every machine: the control of every claim about labels."""
    return hashlib.blake2b(f"{seed}/{pair_id}".encode()).digest()[0] % 2


def ppo_job(warehouse: Warehouse, recipe: Recipe, reward: Trained) -> tuple[Job, list[dict[str, Any]]]:
    """The policy of a recipe and the questions that it practises on."""
    rows = _practice(warehouse, recipe)
    ids = [row["question_id"] for row in rows]
    return Job("ppo", part(recipe, "ppo"), ids, {"reward": reward.checkpoint_id}), rows


def train_ppo(warehouse: Warehouse, recipe: Recipe, reward: Trained) -> Trained:
    """PPO on the questions of the training split against a reward model."""
    job, rows = ppo_job(warehouse, recipe, reward)
    settings: PPO = job.settings

    def train(folder: Path, log: Callable[[int, dict[str, float]], None]) -> int:
        from vlm_rlaif.train.ppo import PPOTrainer
        from vlm_rlaif.train.rollout import POLICY
        from vlm_rlaif.train.vlm import export

        trainer = PPOTrainer(settings, reward.path, [_prompt(warehouse, row) for row in rows], folder)
        truth = truth_meter(warehouse)
        trainer.train(lambda step, metrics, said: log(step, {**metrics, **truth(said)}))
        export(folder / MERGED, trainer.backbone, POLICY)
        return settings.iterations

    return run_training(warehouse, job, train)


def prompt_rows(warehouse: Warehouse, recipe: Recipe) -> list[tuple[str, Scored]]:
    """(question id, prompt) of the training split; with the context when the reward model reads one."""
    return [(row["question_id"], _prompt(warehouse, row)) for row in _practice(warehouse, recipe)]


def _prompt(warehouse: Warehouse, row: dict[str, Any]) -> Scored:
    from vlm_rlaif.train.reward import Scored

    return Scored(warehouse.video_path(row["uri"]), row["text"], "", row["context"])


def _practice(warehouse: Warehouse, recipe: Recipe) -> list[dict[str, Any]]:
    """The questions that a policy practises on, in order.

    Where the reward model reads contexts, a video without one (a caption failed, say) is left out: it could not be
    scored.
    """
    reads_context = part(recipe, "reward").context_prompt is not None
    context, read = context_spec(recipe).spec_id if reads_context else None, questions_of(recipe)
    return warehouse.rows(
        "SELECT q.question_id, q.text, v.uri, c.text AS context FROM questions q"
        " JOIN videos v USING (video_id)"
        " LEFT JOIN contexts c ON c.video_id = v.video_id AND c.spec_id = $context"
        f" WHERE v.split = 'train' AND v.status = 'ok' AND {read.where}"
        " AND ($context IS NULL OR c.text IS NOT NULL) ORDER BY q.question_id",
        {"context": context, **read.parameters},
    )


def truth_meter(warehouse: Warehouse) -> Callable[[list[Scored]], dict[str, float]]:
    """How true the rollouts of a step are, where the questions come from the shapes world; else nothing.

    A rising score with falling truth is reward hacking, and this is where it shows.
    """
    from vlm_rlaif.datagen.shapes.truth import score

    rows = warehouse.rows(
        "SELECT v.uri, q.text, q.kind, q.reference FROM questions q JOIN videos v USING (video_id)"
        " WHERE q.source = 'shapes'"
    )
    known = {(warehouse.video_path(r["uri"]), r["text"]): (r["kind"], r["reference"]) for r in rows}

    def measure(said: list[Scored]) -> dict[str, float]:
        found = [
            score(*known[row.path, row.question], row.response).fraction
            for row in said
            if (row.path, row.question) in known
        ]
        return {"objective/truth": sum(found) / len(found)} if found else {}

    return measure


def sft_job(warehouse: Warehouse, recipe: Recipe) -> tuple[Job, list[dict[str, Any]]]:
    """Fine-tuning of a recipe and the questions with references that it learns from."""
    rows = warehouse.rows(
        "SELECT q.question_id, q.text, q.reference, v.uri FROM questions q JOIN videos v USING (video_id)"
        " WHERE v.split = 'train' AND v.status = 'ok' AND q.reference IS NOT NULL"
        " ORDER BY q.question_id"
    )
    return Job("sft", part(recipe, "sft"), [row["question_id"] for row in rows], {}), rows


def train_sft(warehouse: Warehouse, recipe: Recipe) -> Trained:
    """Fine-tune on the reference answers of the training split."""
    job, rows = sft_job(warehouse, recipe)
    if not rows:
        raise UserError(
            "No question of the training split has a reference answer to learn from.",
            f"vlm-rlaif add {warehouse.path} FOLDER --questions FILE.jsonl (with `reference`)",
        )

    def train(folder: Path, log: Callable[[int, dict[str, float]], None]) -> int:
        from vlm_rlaif.train.sft import fine_tune

        examples = [(warehouse.video_path(r["uri"]), r["text"], r["reference"]) for r in rows]
        return fine_tune(job.settings, examples, folder, MERGED, log)

    return run_training(warehouse, job, train)


def after_sft(recipe: Recipe, trained: Trained) -> Recipe:
    """The recipe whose policy starts as the fine-tuned model: it answers, is scored and is improved from there."""
    start = str(trained.path / MERGED)
    changed = {
        stage: dataclasses.replace(settings, model=start)
        for stage in ("reward", "ppo")
        if (settings := getattr(recipe, stage)) is not None
    }
    if recipe.respond is not None:
        changed["respond"] = dataclasses.replace(recipe.respond, model=start, adapter="")
    return dataclasses.replace(recipe, **changed)


def with_labels(recipe: Recipe, labels: str) -> Recipe:
    """The recipe with the reward model taught by another judge: an arm of `label:`, a name, or `random`."""
    reward = dataclasses.replace(part(recipe, "reward"), labels=labels)
    return dataclasses.replace(recipe, reward=reward)


def with_dataset(recipe: Recipe, name: str) -> Recipe:
    """The recipe with the reward model taught by a version of the data set."""
    reward = dataclasses.replace(part(recipe, "reward"), dataset=name, min_strength=0.0)
    return dataclasses.replace(recipe, reward=reward)


def text_only(recipe: Recipe) -> Recipe:
    """The control of every claim about seeing: a reward model trained and read without the video."""
    blind = dataclasses.replace(part(recipe, "reward"), use_video=False)
    return dataclasses.replace(recipe, reward=blind)


def standing(warehouse: Warehouse, recipe: Recipe) -> tuple[Recipe, dict[str, Trained]]:
    """The checkpoints of a recipe that stand, by role (`sft`, `rm`, `rm_text_only`, `policy`); trains nothing.

    Returned with the recipe as `after_sft` makes it, where fine-tuning is part of it.
    """
    found: dict[str, Trained] = {}
    if recipe.sft is not None:
        if not (tuned := find(warehouse, sft_job(warehouse, recipe)[0])):
            return recipe, found
        found["sft"], recipe = tuned, after_sft(recipe, tuned)
    if recipe.reward is None:
        return recipe, found
    for role, version in (("rm", recipe), ("rm_text_only", text_only(recipe))):
        if trained := find(warehouse, reward_job(warehouse, version)[0]):
            found[role] = trained
    if recipe.ppo is not None and "rm" in found:
        job, _ = ppo_job(warehouse, recipe, found["rm"])
        if trained := find(warehouse, job):
            found["policy"] = trained
    return recipe, found
