"""Rounds: the policy of one round answers in the next. The rows that trainers would write stand in for them."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.datagen.engine import Request, ScriptedEngine
from vlm_rlaif.datagen.job import run_stage
from vlm_rlaif.datagen.plan import respond_stage
from vlm_rlaif.datagen.policies import negative_stages
from vlm_rlaif.datagen.stages.pair import pair
from vlm_rlaif.feedback.judges.pairwise import label_stage
from vlm_rlaif.train.jobs import Job, Trained
from vlm_rlaif.train.rounds import of_round
from vlm_rlaif.train.run import MERGED, _freeze, after_sft, ppo_job, reward_job, sft_job
from vlm_rlaif.warehouse.config import PPO, FineTuning, Recipe, Rewarding, load
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import Checkpoint, Record, Run, Step
from vlm_rlaif.warehouse.settings import Pairing, Perturbing
from vlm_rlaif.warehouse.store import Warehouse

Command = Any


@pytest.fixture
def learning(recipe: Recipe) -> Recipe:
    """A recipe that trains a reward model and a policy, on labels without context."""
    respond, label = recipe.respond, recipe.label
    assert respond is not None and label is not None
    return dataclasses.replace(
        recipe, ask=None, context=None, label=dataclasses.replace(label, arms=["none"]),
        reward=Rewarding(model=respond.model, prompt="reward_compact_v1", frames=respond.frames, labels="none"),
        ppo=PPO(model=respond.model, prompt="respond_compact_v1", frames=respond.frames),
    )  # fmt: skip


@pytest.fixture
def learned(asked: Warehouse) -> Warehouse:
    """Three videos for training."""
    asked.execute("UPDATE videos SET split = 'train'")
    return asked


def generate(warehouse: Warehouse, recipe: Recipe, words: int, finish: str = "stop") -> None:
    """Responses of so many words, and a judge who always likes the first one shown: all pairs are conflicts."""

    def say(request: Request) -> str | dict[str, float]:
        if request.choices:
            return {"A": 0.8, "B": 0.1, "C": 0.1}
        return " ".join([f"w{request.seed}"] * words)

    respond = respond_stage(recipe)
    run_stage(warehouse, respond, lambda: ScriptedEngine(say))
    warehouse.execute("UPDATE responses SET finish = ? WHERE spec_id = ?", [finish, respond.spec.spec_id])
    pair(warehouse, respond.spec.spec_id)
    run_stage(warehouse, label_stage(recipe, "none"), lambda: ScriptedEngine(say))


def stand(warehouse: Warehouse, job: Job, weights: str = "") -> Trained:
    """The checkpoint that a trainer would have left, with a merged model of its own."""
    path = f"models/{job.kind}-{job.checkpoint_id[:10]}"
    merged = warehouse.folder / path / MERGED
    merged.mkdir(parents=True)
    (merged / "config.json").write_text(f'{{"weights": "{weights or job.checkpoint_id}"}}')
    config = json.dumps({"checkpoint_id": job.checkpoint_id, "settings": {"use_video": True}})
    run = Run(
        run_id=f"run {job.checkpoint_id}", stage=job.kind, config=config, code_version="", engine="torch", host="",
        started_at=datetime(2026, 1, 1),
    )  # fmt: skip
    rows: list[Record] = [
        run,
        Checkpoint(
            checkpoint_id=job.checkpoint_id, kind=job.kind, path=path, step=1, parent=job.parent,
            data_hash=job.data_hash, config=config, run_id=run.run_id,
        ),
        *(
            Step(run_id=run.run_id, step=step, metrics=json.dumps({"reward/accuracy": 0.75 * (step > 10)}))
            for step in range(1, 21)
        ),
    ]  # fmt: skip
    warehouse.append(rows)
    return Trained(job.kind, job.checkpoint_id, warehouse.folder / path, True)


def train(warehouse: Warehouse, recipe: Recipe) -> Trained:
    """Both trainers of a round; the policy."""
    job, rows = reward_job(warehouse, recipe)
    _freeze(warehouse, job.settings, rows)
    reward = stand(warehouse, job)
    return stand(warehouse, ppo_job(warehouse, recipe, reward)[0])


def test_the_first_round_is_the_recipe(learned: Warehouse, learning: Recipe) -> None:
    assert of_round(learned, learning, 1) is learning


def test_a_round_needs_the_policy_of_the_one_before(learned: Warehouse, learning: Recipe) -> None:
    with pytest.raises(UserError) as wrong:
        of_round(learned, learning, 2)
    assert "Round 2 starts from the policy of round 1, which has not been trained here." in str(wrong.value)
    assert f"vlm-rlaif run {learned.path} {learning.name} --round 1" in str(wrong.value)
    generate(learned, learning, 3)
    train(learned, learning)
    with pytest.raises(UserError, match="policy of round 2"):
        of_round(learned, learning, 3)


def test_the_policy_of_a_round_answers_in_the_next_and_starts_its_training(
    learned: Warehouse, learning: Recipe
) -> None:
    generate(learned, learning, 3)
    policy = train(learned, learning)
    second = of_round(learned, learning, 2)
    merged = str(policy.path / MERGED)
    assert second.respond and second.reward and second.ppo and second.label and learning.label
    assert second.respond.model == second.reward.model == second.ppo.model == merged
    assert second.label == learning.label and second.caption == learning.caption
    assert respond_stage(second).spec.spec_id != respond_stage(learning).spec.spec_id
    assert label_stage(second, "none").spec.spec_id != label_stage(learning, "none").spec.spec_id
    generate(learned, second, 3)
    before = learned.value("SELECT count(*) FROM responses")
    generate(learned, second, 3)
    assert learned.value("SELECT count(*) FROM responses") == before == 24


def test_fine_tuning_belongs_to_the_first_round(learned: Warehouse, learning: Recipe) -> None:
    learned.execute("UPDATE questions SET reference = 'a cat'")
    assert learning.respond is not None
    settings = FineTuning(model=learning.respond.model, prompt="respond_compact_v1", frames=learning.respond.frames)
    tuned = dataclasses.replace(learning, sft=settings)
    start = after_sft(tuned, stand(learned, sft_job(learned, tuned)[0], "tuned"))
    generate(learned, start, 3)
    policy = train(learned, start)
    second = of_round(learned, tuned, 2)
    assert second.sft is None and second.respond and second.respond.model == str(policy.path / MERGED)


def test_a_trained_policy_goes_without_the_adapter_of_its_start(learning: Recipe, tmp_path: Path) -> None:
    assert learning.respond is not None
    adapted = dataclasses.replace(learning, respond=dataclasses.replace(learning.respond, adapter="of the start"))
    after = after_sft(adapted, Trained("ppo", "id", tmp_path, fresh=True)).respond
    assert after is not None and (after.model, after.adapter) == (str(tmp_path / MERGED), "")


def test_a_recipe_that_trains_no_policy_has_one_round(learned: Warehouse, recipe: Recipe) -> None:
    with pytest.raises(UserError, match="trains no policy"):
        of_round(learned, recipe, 2)


def test_the_view_tells_how_answers_drift(learned: Warehouse, learning: Recipe) -> None:
    generate(learned, learning, 2)
    first = train(learned, learning)
    second = of_round(learned, learning, 2)
    generate(learned, second, 3, finish="length")
    last = train(learned, second)
    third = of_round(learned, learning, 3)
    generate(learned, third, 6)
    rows = learned.rows("FROM rounds")
    assert [(row["round"], row["policy"]) for row in rows] == [
        (1, None), (2, first.checkpoint_id), (3, last.checkpoint_id),
    ]  # fmt: skip
    assert [row["respond_spec"] for row in rows] == [respond_stage(r).spec.spec_id for r in (learning, second, third)]
    assert [row["mean_tokens"] for row in rows] == [2.0, 3.0, 6.0] == [row["median_tokens"] for row in rows]
    assert [row["length_drift"] for row in rows] == [1.0, 1.5, 3.0]
    assert [row["cut_off_rate"] for row in rows] == [0.0, 1.0, 0.0]
    assert [row["responses"] for row in rows] == [12, 12, 12] and [row["pairs"] for row in rows] == [6, 6, 6]
    assert {(row["tie_rate"], row["conflict_rate"]) for row in rows} == {(1.0, 1.0)}
    assert [row["reward_accuracy"] for row in rows] == [0.75, 0.75, None]


def test_answers_to_spoilt_videos_are_no_round(learned: Warehouse, learning: Recipe) -> None:
    generate(learned, learning, 2)
    spoilt = dataclasses.replace(learning, pair=Pairing(perturb=Perturbing(kinds=["reversed", "other_video"])))
    for stage in negative_stages(spoilt).values():
        run_stage(learned, stage, lambda: ScriptedEngine(lambda request: "spoilt"))
    assert len(learned.rows("FROM rounds")) == 1


def test_the_commands_know_rounds(learned: Warehouse, command: Command, recipe_file: Path) -> None:
    for words in (("run", learned.path, recipe_file), ("plan", learned.path, recipe_file)):
        result = command(*words, "--round", 2)
        assert result.code == 2 and "trains no policy" in result.err
    result = command("run", learned.path, recipe_file, "--round", 0)
    assert result.code == 2 and "--round" in result.err


def test_a_plan_of_a_round_counts_its_own_rows(
    learned: Warehouse, learning: Recipe, command: Command, recipe_file: Path, tmp_path: Path
) -> None:
    model, path = recipe_file.parent, tmp_path / "learning.yaml"
    frames = "frames: {count: 2}"
    path.write_text(
        f"respond: {{model: {model}, prompt: respond_compact_v1, {frames}}}\n"
        f"label: {{model: {model}, prompt: judge_compact_v1, context_prompt: judge_context_compact_v1, {frames},"
        " arms: [none]}\n"
        f"reward: {{model: {model}, prompt: reward_compact_v1, {frames}, labels: none}}\n"
        f"ppo: {{model: {model}, prompt: respond_compact_v1, {frames}}}\n"
    )
    mine = load(str(path))
    generate(learned, mine, 3)
    train(learned, mine)
    result = command("plan", learned.path, path, "--round", 2)
    assert result.code == 0, result.err
    assert result.out.rstrip().endswith(f"vlm-rlaif run {learned.path} {path} --round 2")
    (respond,) = (line for line in result.out.splitlines() if line.startswith("respond"))
    assert " 12 " in respond
