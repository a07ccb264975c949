"""At which token everything is read: scores, log-probabilities and values against one unpadded sequence at a time.

The sequences are put together here by hand, without `join`, `collate` and masks, and numbers are read at counted
places: a response of n tokens that follows p tokens of prompt stands at p ... p + n - 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from vlm_rlaif.datagen import prompt
from vlm_rlaif.datagen.engine import VideoPart
from vlm_rlaif.datagen.engines.clips import read_clip
from vlm_rlaif.datagen.engines.encode import Conversation, Encoded
from vlm_rlaif.train.ppo import PPOTrainer
from vlm_rlaif.train.reward import ADAPTER_NAME, RewardModel, Scored
from vlm_rlaif.train.rollout import POLICY, VALUE, Rollout
from vlm_rlaif.train.vlm import Backbone, scalar_head
from vlm_rlaif.warehouse.config import PPO, Frames, Rewarding

START = "embedded:policy-start"
"""It has learned to end its answers: the short ones end within the limit, the long ones are cut off."""
CLOSE = 1e-4
"""Padding changes the order of sums, so equal numbers differ by rounding."""


def stir(backbone: Backbone, name: str, seed: int) -> None:
    """Weights of its own for an adapter, so that a read with any other adapter is another number."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.parameters_of(name):
            parameter.copy_(0.03 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture
def narrated(rows: list[Scored]) -> list[Scored]:
    """Responses of different lengths; their videos have narratives of different lengths."""
    stories = ["0 s a red circle grows .", "0 s a blue cross blinks . 2 s a green square grows .", "0 s a circle ."]
    return [dataclasses.replace(row, context=story) for row, story in zip(rows, stories, strict=True)]


@pytest.fixture
def reward(reward_settings: Rewarding) -> RewardModel:
    """It reads the narrative and fewer frames, so its sequences are not the policy's."""
    frames = Frames(count=2, size=32, repeat=2)
    settings = dataclasses.replace(
        reward_settings, model=START, context_prompt="reward_context_compact_v1", frames=frames
    )
    torch.manual_seed(1)
    backbone = Backbone(settings.model)
    backbone.add_adapter(ADAPTER_NAME, settings.lora)
    stir(backbone, ADAPTER_NAME, seed=1)
    return RewardModel(backbone, scalar_head(backbone.hidden_size), settings, mean=0.3, std=2.0)


@pytest.fixture(params=[1, 4], ids=["one at a time", "four at a time"])
def trainer(
    request: pytest.FixtureRequest, ppo_settings: PPO, reward: RewardModel, narrated: list[Scored], tmp_path: Path
) -> PPOTrainer:
    """Six episodes, alone or in batches of four and two: what is padded differs, what is read does not."""
    reward.save(tmp_path / "reward")
    settings = dataclasses.replace(ppo_settings, model=START, micro_batch=request.param)
    return PPOTrainer(settings, tmp_path / "reward", narrated, tmp_path / "ppo")


@pytest.fixture
def stirred(trainer: PPOTrainer) -> PPOTrainer:
    """A policy and a critic that have learned something, and a critic's head that says something."""
    stir(trainer.backbone, POLICY, seed=2)
    stir(trainer.backbone, VALUE, seed=3)
    with torch.no_grad():
        trainer.value_head.weight.copy_(torch.linspace(-1, 1, trainer.backbone.hidden_size)[None])
        trainer.value_head.bias.fill_(0.25)
    return trainer


def policys_prompt(trainer: PPOTrainer, row: Scored) -> Encoded:
    said = prompt.load("respond_compact_v1").render(question=row.question)
    clip = read_clip(VideoPart(row.path, trainer.settings.frames))
    return trainer.backbone.encoder.encode([Conversation(said.user, said.system, clip)])[0]


def rewards_prompt(reward: RewardModel, row: Scored) -> Encoded:
    said = prompt.load("reward_context_compact_v1").render(question=row.question, context=row.context)
    clip = read_clip(VideoPart(row.path, Frames(count=2, size=32, repeat=2)))
    return reward.backbone.encoder.encode([Conversation(said.user, said.system, clip)])[0]


def unpadded(start: Encoded, response: list[int]) -> dict[str, torch.Tensor]:
    """A forward's inputs: one sequence, every token of it real."""
    ids = torch.tensor([[*start.ids, *response]])
    types = torch.tensor([[*start.types, *(0 for _ in response)]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types, **start.vision}


@contextmanager
def wearing(backbone: Backbone, adapter: str | None) -> Iterator[None]:
    """PEFT's own switch, so that `activate` is not its own witness."""
    assert backbone.peft is not None
    if adapter is None:
        with backbone.peft.disable_adapter():
            yield
    else:
        backbone.peft.set_adapter(adapter)
        yield


@torch.no_grad()
def states_by_hand(backbone: Backbone, adapter: str, inputs: dict[str, Any]) -> torch.Tensor:
    """(T, H) last hidden states of one sequence."""
    with wearing(backbone, adapter):
        states: torch.Tensor = backbone.base.model(**inputs).last_hidden_state[0]
    return states


@torch.no_grad()
def score_by_hand(model: RewardModel, row: Scored, tokens: list[int]) -> float:
    """Before normalisation; the sequence ends in one end-of-sequence token."""
    end = model.backbone.encoder.tokenizer.eos_token_id
    ended = tokens if tokens[-1] == end else [*tokens, end]
    inputs = unpadded(rewards_prompt(model, row), ended)
    last = inputs["input_ids"].shape[1] - 1
    assert inputs["input_ids"][0, last] == end
    state = states_by_hand(model.backbone, ADAPTER_NAME, inputs)[last]
    return float(state @ model.head.weight[0] + model.head.bias[0])


@torch.no_grad()
def logprobs_by_hand(trainer: PPOTrainer, adapter: str | None, row: Scored, tokens: list[int]) -> torch.Tensor:
    """(n,): token t under the logits at t - 1, over all tokens that may be sampled."""
    start = policys_prompt(trainer, row)
    with wearing(trainer.backbone, adapter):
        logits = trainer.backbone.base(**unpadded(start, tokens)).logits[0].float()
    logits[:, trainer.backbone.encoder.visual_ids()] = -torch.inf
    first = len(start.ids)
    return torch.stack([logits[first + i - 1].log_softmax(-1)[token] for i, token in enumerate(tokens)])


@torch.no_grad()
def values_by_hand(trainer: PPOTrainer, row: Scored, tokens: list[int]) -> torch.Tensor:
    """(n,): one per response token, read at the token before it, in the reward model's own sequence."""
    start = rewards_prompt(trainer.sampler.reward, row)
    states = states_by_hand(trainer.backbone, VALUE, unpadded(start, tokens))
    first = len(start.ids)
    weight = torch.linspace(-1, 1, trainer.backbone.hidden_size)
    return torch.stack([states[first + i - 1] @ weight + 0.25 for i in range(len(tokens))])


def assert_rows_equal(found: torch.Tensor, expected: list[torch.Tensor]) -> None:
    """(B, R) padded on the right against one tensor per row."""
    assert len(found) == len(expected) and found.shape[1] == max(map(len, expected))
    for row, wanted in zip(found, expected, strict=True):
        assert (row[: len(wanted)] - wanted).abs().max() < CLOSE
        assert (row[len(wanted) :] == 0).all()


def lengths_differ(rollout: Rollout) -> bool:
    return len({len(tokens) for tokens in rollout.tokens}) > 1


def test_a_score_is_the_head_on_the_state_of_the_last_real_token(reward: RewardModel, narrated: list[Scored]) -> None:
    tokens = reward.backbone.encoder.tokenizer([r.response for r in narrated], add_special_tokens=False)["input_ids"]
    batch = reward.batch(narrated)
    assert not batch.mask.all()
    with reward.backbone.activate(ADAPTER_NAME), torch.no_grad():
        found = reward.raw_scores(batch)
    by_hand = [score_by_hand(reward, row, ids) for row, ids in zip(narrated, tokens, strict=True)]
    assert found.tolist() == pytest.approx(by_hand, abs=CLOSE)
    assert reward.score(narrated) == pytest.approx([(score - 0.3) / 2.0 for score in by_hand], abs=CLOSE)


def test_a_rollout_is_scored_by_the_reward_model_whether_or_not_it_ended(stirred: PPOTrainer) -> None:
    rollout = stirred.roll_out(0)
    assert rollout.ended.any() and not rollout.ended.all()
    model = stirred.sampler.reward
    by_hand = [score_by_hand(model, row, ids) for row, ids in zip(rollout.rows, rollout.tokens, strict=True)]
    assert rollout.scores.tolist() == pytest.approx([(score - 0.3) / 2.0 for score in by_hand], abs=CLOSE)


def test_a_log_probability_is_read_at_the_token_before(stirred: PPOTrainer) -> None:
    rollout = stirred.roll_out(0)
    assert lengths_differ(rollout)
    said = list(zip(rollout.rows, rollout.tokens, strict=True))
    assert_rows_equal(rollout.logprobs, [logprobs_by_hand(stirred, POLICY, *one) for one in said])
    assert_rows_equal(rollout.reference_logprobs, [logprobs_by_hand(stirred, None, *one) for one in said])


def test_a_value_is_read_in_the_rewards_sequence_at_the_token_before(stirred: PPOTrainer) -> None:
    """The critic speaks before the token is chosen: it must not see it."""
    rollout = stirred.roll_out(0)
    assert lengths_differ(rollout)
    by_hand = [values_by_hand(stirred, row, ids) for row, ids in zip(rollout.rows, rollout.tokens, strict=True)]
    assert_rows_equal(rollout.values, by_hand)
    assert torch.cat(by_hand).std() > 100 * CLOSE


def test_sampling_and_training_agree_on_what_was_sampled(stirred: PPOTrainer) -> None:
    """L2, through the trainer: cached decoding with left padding against the forward that training does."""
    rollout = stirred.roll_out(0)
    assert lengths_differ(rollout)
    assert 0 < rollout.sampling_gap < 1e-4


def test_the_policy_leaves_its_reference_with_the_first_step_and_the_reference_stays(trainer: PPOTrainer) -> None:
    first = trainer.roll_out(0)
    assert torch.equal(first.logprobs, first.reference_logprobs)
    trainer.learn(first, 0)
    second = trainer.roll_out(1)
    assert not torch.equal(second.logprobs, second.reference_logprobs)
    assert second.kl.abs().max() > 0
    said = list(zip(first.rows, first.tokens, strict=True))
    assert_rows_equal(first.reference_logprobs, [logprobs_by_hand(trainer, None, *one) for one in said])
