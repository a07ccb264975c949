"""What a reward model reads is frozen as a version of the data set, and a version can be what it reads."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.datagen.plan import respond_stage
from vlm_rlaif.feedback.judges.pairwise import label_stage
from vlm_rlaif.train.run import coin, reward_job, train_reward, with_dataset, with_labels
from vlm_rlaif.warehouse.config import Recipe, Rewarding
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.exports.versions import Selection, create
from vlm_rlaif.warehouse.records import Audit, Checkpoint, Label, Pair, Question, Record, Response, Video
from vlm_rlaif.warehouse.store import Warehouse

SPLITS = ("train", "train", "train", "val")


@pytest.fixture
def learning(recipe: Recipe, reward_settings: Rewarding) -> Recipe:
    """One epoch on the tiny model, taught by the judge without context."""
    assert recipe.label is not None
    return dataclasses.replace(
        recipe, label=dataclasses.replace(recipe.label, arms=["none"]),
        reward=dataclasses.replace(reward_settings, labels="none", epochs=1),
    )  # fmt: skip


def verdicts(recipe: Recipe, pair: str, p_a: float, vote: int = 0) -> list[Record]:
    return [
        Label(
            label_id=f"{pair}/{order}/{vote}", pair_id=pair, spec_id=label_stage(recipe, "none").spec.spec_id,
            context_id=None, shown_order=order, vote=vote, choice="a" if p_a > 0.5 else "b", p_a=p_a, p_tie=0.0,
            reply="A", cached_tokens=0, run_id="r",
        )
        for order in ("ab", "ba")
    ]  # fmt: skip


@pytest.fixture
def labeled(warehouse: Warehouse, learning: Recipe, clips: list[Path]) -> Warehouse:
    """A pair about each of four clips, the last of which is not for training."""
    rows: list[Record] = [label_stage(learning, "none").spec]
    policy = respond_stage(learning).spec.spec_id
    for number, (clip, split) in enumerate(zip(clips, SPLITS, strict=True)):
        name = f"n{number}"
        rows += [
            Video(video_id=name, uri=str(clip), source="s", video_group=name, split=split, status="ok", run_id="r"),
            Question(question_id=name, video_id=name, text="what moves ?", source="imported", run_id="r"),
            *(
                Response(
                    response_id=f"{name}{side}", question_id=name, spec_id=policy, sample_index=i, seed=i,
                    text=f"a {('red', 'blue')[i]} circle moves .", tokens=5, finish="stop", logprob=None, run_id="r",
                )
                for i, side in enumerate("ab")
            ),
            Pair(
                pair_id=name, question_id=name, response_a=f"{name}a", response_b=f"{name}b", strategy="all",
                run_id="r",
            ),
            *verdicts(learning, name, 0.75),
        ]  # fmt: skip
    warehouse.append(rows)
    return warehouse


def counts(warehouse: Warehouse) -> list[dict[str, Any]]:
    tables = ("runs", "datasets", "dataset_rows", "checkpoints", "steps")
    return warehouse.rows("SELECT " + ", ".join(f"(SELECT count(*) FROM {table}) AS {table}" for table in tables))


def test_what_is_read_is_frozen_and_found_again(labeled: Warehouse, learning: Recipe) -> None:
    trained = train_reward(labeled, learning)
    (version,) = labeled.rows("SELECT * FROM datasets")
    (checkpoint,) = labeled.rows("SELECT * FROM checkpoints")
    assert version["name"] == f"reward-{version['rows_hash'][:10]}" and version["preferences"] == 3
    assert checkpoint["data_hash"] == version["rows_hash"]
    assert labeled.query("SELECT pair_id FROM dataset_rows ORDER BY 1")["pair_id"].to_list() == ["n0", "n1", "n2"]
    before = counts(labeled)
    assert not train_reward(labeled, learning).fresh and counts(labeled) == before

    same = train_reward(labeled, with_dataset(learning, version["name"]))
    assert not same.fresh and same.checkpoint_id == trained.checkpoint_id and counts(labeled) == before

    config = json.dumps({"inputs": {"reward": trained.checkpoint_id}})
    policy = Checkpoint(
        checkpoint_id="policy", kind="ppo", path="p", step=1, parent="", data_hash="", config=config, run_id="r"
    )
    labeled.append([policy])
    lineage = labeled.rows("SELECT * FROM policy_lineage ORDER BY pair_id")
    assert [(row["checkpoint_id"], row["pair_id"], row["video_id"]) for row in lineage] == [
        ("policy", name, name) for name in ("n0", "n1", "n2")
    ]
    assert {row["reward_checkpoint_id"] for row in lineage} == {trained.checkpoint_id}


def test_a_named_version_is_read_exactly_with_its_verdicts_as_they_were(labeled: Warehouse, learning: Recipe) -> None:
    made = create(labeled, "two", Selection(split="train", where="pair_id < 'n2'"))
    labeled.append([row for name in ("n0", "n1", "n2") for row in verdicts(learning, name, 0.0, vote=1)])
    job, rows = reward_job(labeled, with_dataset(learning, "two"))
    assert [(row["pair_id"], row["p_a"], row["choice"]) for row in rows] == [("n0", 0.75, "a"), ("n1", 0.75, "a")]
    assert job.data_hash == made.version.rows_hash
    assert [row["p_a"] for row in reward_job(labeled, learning)[1]] == [0.375] * 3


def test_a_reward_model_learns_from_people_where_they_have_judged(labeled: Warehouse, learning: Recipe) -> None:
    person = Audit(
        audit_id="1", plan_id="p", pair_id="n1", annotator="1", annotation="1", choice="b", shown_order="ab",
        updated_at=datetime(2026, 1, 1), reply="{}", run_id="r",
    )  # fmt: skip
    labeled.append([person])
    create(labeled, "gold", Selection(split="train", gold=True))
    _, rows = reward_job(labeled, with_dataset(learning, "gold"))
    assert [(row["pair_id"], row["p_a"], row["choice"]) for row in rows] == [
        ("n0", 0.75, "a"), ("n1", 0.0, "b"), ("n2", 0.75, "a"),
    ]  # fmt: skip
    assert [row["p_a"] for row in reward_job(labeled, learning)[1]] == [0.75] * 3


def test_a_version_with_other_splits_is_refused(labeled: Warehouse, learning: Recipe) -> None:
    create(labeled, "all", Selection())
    with pytest.raises(UserError, match="outside of the training split: 1 of val") as error:
        reward_job(labeled, with_dataset(learning, "all"))
    assert "--split train" in str(error.value)
    with pytest.raises(UserError, match="Did you mean 'all'"):
        reward_job(labeled, with_dataset(learning, "al"))


def test_the_random_control_is_frozen_as_it_was_read(labeled: Warehouse, learning: Recipe) -> None:
    trained = train_reward(labeled, with_labels(learning, "random"))
    (version,) = labeled.rows("SELECT * FROM datasets")
    assert trained.fresh and "coin of seed 0" in version["query"]
    for row in labeled.rows("SELECT * FROM dataset_rows"):
        assert (row["choice"], row["p_a"]) == (("b", 0.0), ("a", 1.0))[coin(row["pair_id"], 0)]


def test_a_recipe_may_name_a_version_or_a_strength_and_not_both(reward_settings: Rewarding) -> None:
    assert dataclasses.replace(reward_settings, dataset="v1").dataset == "v1"
    with pytest.raises(ValueError, match="min_strength"):
        dataclasses.replace(reward_settings, dataset="v1", min_strength=0.1)


def test_the_command_takes_a_version_or_an_arm_and_not_both(
    labeled: Warehouse, recipe_file: Path, command: Any
) -> None:
    ended = command(
        "train", "reward", labeled.path, "--recipe", recipe_file, "--dataset", "v1", "--labels", "none"
    )  # fmt: skip
    assert ended.code == 2 and "give one of them" in ended.err
