"""Best of n: of a question's sampled answers the one that the reward model likes best counts, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vlm_rlaif.eval.figures import best_of_n
from vlm_rlaif.train.reward import ADAPTER_NAME, RewardModel, Scored
from vlm_rlaif.train.vlm import Backbone, scalar_head
from vlm_rlaif.warehouse.config import Frames, Lora, Rewarding
from vlm_rlaif.warehouse.records import Answer, Question, Record, Score, Video
from vlm_rlaif.warehouse.store import Warehouse

START = "embedded:policy-start"
SAID = ("there are 2 shapes .", "a red circle grows .", "the cross blinks and the square moves left .", "blue .")
FAVOURITE_AT = (1, 3, 0)
"""Which sample of each question's answers is the favourite's."""
TRUTHS = (0.875, 0.5, 0.25)
"""How true the favourite is; every other answer has the truth that stands in `OTHERS`."""
OTHERS = 1.0


@pytest.fixture
def reward(tmp_path: Path) -> RewardModel:
    """Untrained, and with a taste all the same. It reads the narrative."""
    settings = Rewarding(
        model=START, prompt="reward_compact_v1", context_prompt="reward_context_compact_v1",
        frames=Frames(count=3, size=32, repeat=2), lora=Lora(rank=4, alpha=8.0),
    )  # fmt: skip
    torch.manual_seed(0)
    backbone = Backbone(settings.model)
    backbone.add_adapter(ADAPTER_NAME, settings.lora)
    for parameter in backbone.parameters_of(ADAPTER_NAME):
        torch.nn.init.normal_(parameter, std=0.02)
    model = RewardModel(backbone, scalar_head(backbone.hidden_size), settings)
    model.save(tmp_path / "reward")
    return model


@pytest.fixture
def questions(shapes_folder: Path) -> dict[str, dict[str, Any]]:
    """As `questions_with_context` gives them."""
    words = ("describe the video .", "how many shapes are there ?", "what colour is the circle ?")
    return {
        f"q{i}": {"uri": str(shapes_folder / f"{i}.mp4"), "text": text, "context": f"{i} s a red circle grows ."}
        for i, text in enumerate(words)
    }


def liked_most(reward: RewardModel, asked: dict[str, Any]) -> str:
    scores = {
        said: reward.score([Scored(Path(asked["uri"]), asked["text"], said, asked["context"])]) for said in SAID
    }
    ordered = sorted(scores, key=lambda said: scores[said])
    assert scores[ordered[-1]][0] - scores[ordered[-2]][0] > 1e-3
    return ordered[-1]


def sampled(question: str, spec: str, index: int, text: str, truth: float) -> list[Record]:
    name = f"{spec}/{question}/{index}"
    return [
        Answer(
            answer_id=name, benchmark="warehouse/test", question_id=question, spec_id=spec, sample_index=index,
            text=text, tokens=4, run_id="r",
        ),
        Score(
            score_id=name, answer_id=name, metric="truth", judge="truth", value=truth, reply=None, run_id="r"
        ),
    ]  # fmt: skip


def test_the_answer_that_the_reward_model_likes_best_counts(
    warehouse: Warehouse, reward: RewardModel, questions: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    rows: list[Record] = []
    for (name, asked), place, truth in zip(questions.items(), FAVOURITE_AT, TRUTHS, strict=True):
        uri = asked["uri"]
        rows += [
            Video(video_id=name, uri=uri, source="x", video_group=name, split="test", status="ok", run_id="r"),
            Question(question_id=name, video_id=name, text=asked["text"], source="shapes", run_id="r"),
        ]
        favourite = liked_most(reward, asked)
        order = [said for said in SAID if said != favourite]
        order.insert(place, favourite)
        for index, said in enumerate(order):
            rows += sampled(name, "ours", index, said, truth if said == favourite else OTHERS)
        rows += sampled(name, "others", 7, favourite, 0.0)
    warehouse.append(rows)
    found = best_of_n(warehouse, "ours", tmp_path / "reward", questions)
    assert list(found) == [f"best_of_{len(SAID)}_truth"]
    (estimate,) = found.values()
    assert estimate.value == pytest.approx(sum(TRUTHS) / 3) and (estimate.n, estimate.clusters) == (3, 3)
