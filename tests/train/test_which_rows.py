"""Which rows a trainer reads: the training split and nothing else, of one judge and no other.

Every row that must stay out is there: other splits, another judge, one order only, an unreadable video.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.datagen.plan import ask_stage, context_spec, respond_stage
from vlm_rlaif.feedback.judges.pairwise import label_stage
from vlm_rlaif.train.run import coin, prompt_rows, reward_job
from vlm_rlaif.warehouse.config import Recipe, Rewarding
from vlm_rlaif.warehouse.records import Context, Label, Pair, Question, Record, Response, Spec, Video
from vlm_rlaif.warehouse.store import Warehouse

VIDEOS = {"t1": "train", "t2": "train", "t3": "train", "v1": "val", "x1": "test"}
QUESTIONS = 2
ARM_P = {"context": 0.75, "none": 0.125}
"""What the judge of each arm says of `response_a`: they disagree on every pair."""


@pytest.fixture
def learning(recipe: Recipe) -> Recipe:
    """The shared recipe with a reward model, which the shared one has not."""
    assert recipe.respond is not None
    settings = Rewarding(model=recipe.respond.model, prompt="reward_compact_v1", frames=recipe.respond.frames)
    return dataclasses.replace(recipe, reward=settings)


def taught_by(recipe: Recipe, **changes: Any) -> Recipe:
    assert recipe.reward is not None
    return dataclasses.replace(recipe, reward=dataclasses.replace(recipe.reward, **changes))


def verdicts(recipe: Recipe, pair: str, video: str, arm: str, orders: str = "ab ba") -> list[Record]:
    """One label per order; all speak of `response_a`."""
    spec = label_stage(recipe, arm).spec.spec_id
    return [
        Label(
            label_id=f"{pair}/{arm}/{order}", pair_id=pair, spec_id=spec,
            context_id=f"story/{video}" if arm == "context" else None, shown_order=order, vote=0, cached_tokens=0,
            choice="a" if ARM_P[arm] > 0.5 else "b", p_a=ARM_P[arm], p_tie=0.0, reply="A", run_id="r",
        )
        for order in orders.split()
    ]  # fmt: skip


def about(recipe: Recipe, video: str, number: int) -> list[Record]:
    """A question, two responses, their pair and what both judges say of it."""
    name = f"{video}/{number}"
    spec = respond_stage(recipe).spec.spec_id
    answers = [
        Response(
            response_id=f"{name}/{side}", question_id=name, spec_id=spec, sample_index=i, seed=i,
            text=f"{side} of {name}", tokens=3, finish="stop", logprob=-1.0, run_id="r",
        )
        for i, side in enumerate("ab")
    ]  # fmt: skip
    return [
        Question(question_id=name, video_id=video, text=f"what is {name} ?", source="imported", run_id="r"),
        *answers,
        Pair(
            pair_id=name, question_id=name, response_a=f"{name}/a", response_b=f"{name}/b", strategy="all", run_id="r"
        ),
        *verdicts(recipe, name, video, "context"),
        *verdicts(recipe, name, video, "none"),
    ]


def filmed(video: str, split: str, status: str = "ok") -> Video:
    return Video(
        video_id=video, uri=f"{video}.mp4", source="test", video_group=video, split=split, status=status, run_id="r"
    )


@pytest.fixture
def filled(warehouse: Warehouse, learning: Recipe) -> Warehouse:
    rows: list[Record] = [label_stage(learning, arm).spec for arm in ("context", "none")]
    for video, split in VIDEOS.items():
        rows.append(filmed(video, split))
        for spec, text in ((context_spec(learning).spec_id, "the story"), ("another", "an older story")):
            name = f"story/{video}" if text == "the story" else f"older/{video}"
            rows.append(
                Context(
                    context_id=name, video_id=video, spec_id=spec, caption_ids=[video], text=f"{text} of {video}",
                    run_id="r",
                )
            )  # fmt: skip
        for number in range(QUESTIONS):
            rows += about(learning, video, number)
    warehouse.append(rows)
    return warehouse


def names(split: str) -> list[str]:
    """Ids of the questions, and of the pairs, of a split."""
    return sorted(f"{video}/{n}" for video, its in VIDEOS.items() if its == split for n in range(QUESTIONS))


@pytest.mark.parametrize("arm", ["context", "none"])
def test_a_reward_model_reads_the_training_splits_preferences_of_its_judge_alone(
    filled: Warehouse, learning: Recipe, arm: str
) -> None:
    job, rows = reward_job(filled, taught_by(learning, labels=arm))
    assert [row["pair_id"] for row in rows] == names("train")
    assert {row["judge"] for row in rows} == {label_stage(learning, arm).spec.spec_id}
    assert {row["p_a"] for row in rows} == {ARM_P[arm]}
    assert {row["split"] for row in rows} == {"train"}
    assert len(job.data) == len(set(job.data)) == len(rows)
    assert all(data.startswith(row["pair_id"]) for data, row in zip(job.data, rows, strict=True))


def test_a_pair_brings_its_own_question_words_video_and_narrative(filled: Warehouse, learning: Recipe) -> None:
    _, rows = reward_job(filled, learning)
    for row in rows:
        name, video = row["pair_id"], row["pair_id"].split("/")[0]
        assert (row["question"], row["uri"]) == (f"what is {name} ?", f"{video}.mp4")
        assert (row["text_a"], row["text_b"]) == (f"a of {name}", f"b of {name}")
        assert row["context"] == f"the story of {video}"


def test_the_random_control_reads_the_same_pairs_and_tosses_a_coin(filled: Warehouse, learning: Recipe) -> None:
    _, taught = reward_job(filled, learning)
    job, rows = reward_job(filled, taught_by(learning, labels="random"))
    assert [{**row, "p_a": None} for row in rows] == [{**row, "p_a": None} for row in taught]
    assert [row["p_a"] for row in rows] == [float(coin(row["pair_id"], 0)) for row in rows]
    assert {row["p_a"] for row in rows} == {0.0, 1.0}
    other, again = reward_job(filled, taught_by(learning, labels="random", seed=1))
    assert [row["p_a"] for row in again] != [row["p_a"] for row in rows]
    assert len({job.checkpoint_id, other.checkpoint_id, reward_job(filled, learning)[0].checkpoint_id}) == 3


def test_one_order_is_no_preference_yet(filled: Warehouse, learning: Recipe) -> None:
    """A judge who was asked once may have liked the place and not the answer."""
    extra = [row for row in about(learning, "t1", 7) if not isinstance(row, Label)]
    filled.append([*extra, *verdicts(learning, "t1/7", "t1", "context", "ab")])
    assert [row["pair_id"] for row in reward_job(filled, learning)[1]] == names("train")
    filled.append(verdicts(learning, "t1/7", "t1", "context", "ba"))
    assert [row["pair_id"] for row in reward_job(filled, learning)[1]] == sorted([*names("train"), "t1/7"])


def test_weak_preferences_stay_out_where_the_recipe_says_so(filled: Warehouse, learning: Recipe) -> None:
    weak, strong = (taught_by(learning, min_strength=least) for least in (0.5, 0.51))
    assert len(reward_job(filled, weak)[1]) == len(names("train"))
    assert reward_job(filled, strong)[1] == []


def test_a_judge_of_other_weights_does_not_count(filled: Warehouse, learning: Recipe) -> None:
    """The same prompt and the same pairs; only the judge's spec differs."""
    job, rows = reward_job(filled, learning)
    judge = label_stage(learning, "context").spec
    other = dataclasses.replace(judge, spec_id="other", revision="other weights")
    labels: list[Record] = [other]
    for name in names("train"):
        for label in verdicts(learning, name, name.split("/")[0], "context"):
            assert isinstance(label, Label)
            labels.append(
                dataclasses.replace(label, label_id=f"other/{label.label_id}", spec_id="other", choice="b", p_a=0.0)
            )
    assert isinstance(other, Spec) and filled.append(labels) == len(labels)
    again, found = reward_job(filled, learning)
    assert found == rows and again.checkpoint_id == job.checkpoint_id


def test_a_policy_practises_on_the_questions_of_the_training_split_alone(filled: Warehouse, learning: Recipe) -> None:
    filled.append(
        [
            filmed("broken", "train", status="no video stream"),
            Question(question_id="broken/0", video_id="broken", text="what ?", source="imported", run_id="r"),
        ]
    )
    found = prompt_rows(filled, learning)
    assert [question for question, _ in found] == names("train")
    for question, row in found:
        video = question.split("/")[0]
        assert (row.path, row.question) == (filled.folder / f"{video}.mp4", f"what is {question} ?")
        assert (row.response, row.context) == ("", None)


def test_a_policy_practises_on_written_questions_of_its_own_recipe_alone(filled: Warehouse, learning: Recipe) -> None:
    """Questions that another recipe's model wrote are not part of this one."""
    ours = ask_stage(learning).spec.spec_id
    filled.append(
        [
            Question(question_id=f"t1/{spec}", video_id="t1", text="why ?", source="ask", spec_id=spec, run_id="r")
            for spec in (ours, "another")
        ]
    )
    assert [question for question, _ in prompt_rows(filled, learning)] == sorted([*names("train"), f"t1/{ours}"])
    unasked = dataclasses.replace(learning, ask=None)
    assert [question for question, _ in prompt_rows(filled, unasked)] == names("train")


def test_a_prompt_brings_the_recipes_narrative_where_the_reward_model_reads_one(
    filled: Warehouse, learning: Recipe
) -> None:
    """Once, although its video has a narrative of another spec too; a video without one is left out."""
    untold: list[Record] = [
        filmed("untold", "train"),
        Question(question_id="untold/0", video_id="untold", text="what ?", source="imported", run_id="r"),
    ]
    filled.append(untold)
    found = prompt_rows(filled, taught_by(learning, context_prompt="reward_context_compact_v1"))
    assert [question for question, _ in found] == names("train")
    assert [row.context for _, row in found] == [f"the story of {name.split('/')[0]}" for name in names("train")]
    assert "untold/0" in [question for question, _ in prompt_rows(filled, learning)]


def test_paths_start_at_the_warehouse(filled: Warehouse, learning: Recipe, tmp_path: Path) -> None:
    assert {row.path.parent for _, row in prompt_rows(filled, learning)} == {tmp_path.resolve()}
