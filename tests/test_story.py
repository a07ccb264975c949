"""One pair from an mp4 file to a policy, step by step. Read this first.

Everything is real: the video is H.264, the models are the embedded ones, the trainers are the ones that a 7B model
would use. Only the amounts are small.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from vlm_rlaif.datagen.engines.make import Engines, EngineSettings
from vlm_rlaif.datagen.job import Stage, run_stage
from vlm_rlaif.datagen.plan import caption_stage, clip_method, context_spec, part, respond_stage
from vlm_rlaif.datagen.shapes.add import add_world
from vlm_rlaif.datagen.stages.clip import clip
from vlm_rlaif.datagen.stages.context import context
from vlm_rlaif.datagen.stages.pair import pair
from vlm_rlaif.eval.answer import answer_stage
from vlm_rlaif.eval.figures import label_figures, policy_figures
from vlm_rlaif.eval.truth import score_answers
from vlm_rlaif.feedback.judges.pairwise import label_stage
from vlm_rlaif.feedback.verdict import Verdict, combine
from vlm_rlaif.train.run import MERGED, train_ppo, train_reward
from vlm_rlaif.warehouse.config import Recipe, World, load
from vlm_rlaif.warehouse.intake.add import add_videos
from vlm_rlaif.warehouse.runs import Outcome
from vlm_rlaif.warehouse.store import Warehouse

VIDEOS = 12


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """The demo's recipe with small amounts; every split has a video of its own in this seed."""
    shapes = load("shapes")
    assert shapes.reward and shapes.ppo
    return dataclasses.replace(
        shapes,
        world=World(videos=VIDEOS, seed=5, questions=4),
        reward=dataclasses.replace(shapes.reward, epochs=1),
        ppo=dataclasses.replace(shapes.ppo, iterations=1, episodes=8),
    )


def test_a_video_becomes_a_better_policy(recipe: Recipe, tmp_path: Path) -> None:
    warehouse = Warehouse.create(tmp_path / "w.duckdb")
    engines = Engines(EngineSettings("transformers"))

    def ask(stage: Stage) -> Outcome:
        return run_stage(warehouse, stage, engines.of(stage.spec.model))

    # 1. Real mp4 files are rendered and become rows: probed, hashed, split by video.
    add_world(warehouse, part(recipe, "world"))
    video = warehouse.rows("SELECT * FROM videos ORDER BY video_id")[0]
    assert video["codec"] == "h264" and video["status"] == "ok" and video["duration_s"] in (2.0, 4.0, 6.0)
    assert add_videos(warehouse, tmp_path / "videos").written == 0  # adding again adds nothing

    # 2. A clip is a part of a video; the captioner sees each one densely.
    clip(warehouse, part(recipe, "clip"))
    assert ask(caption_stage(recipe)).written == warehouse.value("SELECT count(*) FROM clips")

    # 3. The captions in time order are the narrative that the judge reads.
    captions = caption_stage(recipe).spec.spec_id
    context(warehouse, context_spec(recipe), captions, clip_method(recipe))
    story = warehouse.rows("SELECT text FROM contexts WHERE video_id = ?", [video["video_id"]])[0]["text"]
    assert story.startswith("0 s a ")

    # 4. The policy's start answers every question twice, and two different answers are a pair.
    assert ask(respond_stage(recipe)).written == 2 * warehouse.value("SELECT count(*) FROM questions")
    assert pair(warehouse, respond_stage(recipe).spec.spec_id).written > 0

    # 5. The judge sees every pair in both orders, with the narrative and without.
    for arm in ("context", "none"):
        assert ask(label_stage(recipe, arm)).written == 2 * warehouse.value("SELECT count(*) FROM pairs")
    judge = label_stage(recipe, "context").spec.spec_id
    one = warehouse.preferences(judge=judge).to_dicts()[0]
    verdicts = warehouse.rows(
        "SELECT p_a, p_tie FROM labels WHERE pair_id = ? AND spec_id = ?", [one["pair_id"], judge]
    )
    both = combine([Verdict(v["p_a"], 1 - v["p_a"] - v["p_tie"], v["p_tie"]) for v in verdicts])
    assert both.choice == one["choice"] and both.p_a == pytest.approx(one["p_a"])

    # 6. Because this world knows the truth, the labels can be marked.
    assert label_figures(warehouse, recipe)["label_accuracy_context"].n > 0

    # 7. The reward model learns the preferences of the training split, and PPO practises on it.
    reward = train_reward(warehouse, recipe)
    policy = train_ppo(warehouse, recipe, reward)
    assert not train_reward(warehouse, recipe).fresh  # what stands is not trained again

    # 8. Start and policy answer the held-out questions, and every fact is checked.
    start, trained = (answer_stage(recipe, m, split="val") for m in (None, str(policy.path / MERGED)))
    for stage in (start, trained):
        ask(stage)
    score_answers(warehouse)
    found = policy_figures(warehouse, [start.spec.spec_id], [trained.spec.spec_id])
    assert found["policy_gain"].value is not None

    # 9. And every number can be walked back: from a verdict to the words, the video and the run.
    trace = warehouse.rows("SELECT * FROM lineage WHERE pair_id = ? LIMIT 1", [one["pair_id"]])[0]
    assert (warehouse.folder / trace["uri"]).is_file()
    assert warehouse.value("SELECT count(*) FROM runs WHERE run_id = ?", [trace["label_run_id"]]) == 1
    engines.close()
