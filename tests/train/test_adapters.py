"""One base, several adapters: who learns, who is the reference, what is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlm_rlaif.datagen.engine import Request
from vlm_rlaif.datagen.engines.encode import Conversation, collate
from vlm_rlaif.datagen.engines.transformers_engine import TransformersEngine, load_model
from vlm_rlaif.train.ppo import PPOTrainer
from vlm_rlaif.train.reward import ADAPTER_NAME, RewardModel, Scored
from vlm_rlaif.train.rollout import POLICY, VALUE
from vlm_rlaif.train.vlm import ADAPTER, BEFORE, HEAD, Backbone, export, load_adapter, scalar_head
from vlm_rlaif.warehouse.config import PPO, Rewarding
from vlm_rlaif.warehouse.errors import UserError


def reward_model(settings: Rewarding) -> RewardModel:
    torch.manual_seed(1)
    backbone = Backbone(settings.model)
    backbone.add_adapter(ADAPTER_NAME, settings.lora)
    for parameter in backbone.parameters_of(ADAPTER_NAME):
        torch.nn.init.normal_(parameter, std=0.05)
    return RewardModel(backbone, scalar_head(backbone.hidden_size), settings, mean=0.3, std=2.0)


@pytest.fixture
def reward_folder(reward_settings: Rewarding, tmp_path: Path) -> Path:
    reward_model(reward_settings).save(tmp_path / "reward")
    return tmp_path / "reward"


@pytest.fixture
def trainer(ppo_settings: PPO, reward_folder: Path, rows: list[Scored], tmp_path: Path) -> PPOTrainer:
    return PPOTrainer(ppo_settings, reward_folder, rows, tmp_path / "ppo")


def test_the_policy_starts_bit_equal_to_its_reference(trainer: PPOTrainer) -> None:
    """P16: KL is exactly zero before the first step."""
    rollout = trainer.roll_out(0)
    assert torch.equal(rollout.logprobs, rollout.reference_logprobs)
    assert rollout.kl.abs().max() == 0


def test_the_first_ratio_is_exactly_one(trainer: PPOTrainer) -> None:
    """L1."""
    metrics = trainer.learn(trainer.roll_out(0), 0)
    assert metrics["val/first_ratio_max"] < 1e-6


def test_the_first_values_are_all_zero(trainer: PPOTrainer) -> None:
    """P10: a zero head expects nothing."""
    assert trainer.roll_out(0).values.abs().max() == 0


def test_the_critic_with_the_rewards_head_says_what_the_reward_says(trainer: PPOTrainer, rows: list[Scored]) -> None:
    """R12: at the token before the end of sequence's successor both read the same state."""
    reward = trainer.sampler.reward
    batch = reward.batch(rows)
    with trainer.backbone.activate(VALUE), torch.no_grad():
        as_value = reward.raw_scores(batch)
    with trainer.backbone.activate(ADAPTER_NAME), torch.no_grad():
        as_reward = reward.raw_scores(batch)
    assert torch.equal(as_value, as_reward)


def test_only_the_active_adapter_learns_and_nothing_stays_unfrozen(trainer: PPOTrainer, rows: list[Scored]) -> None:
    """P16: gradients where they belong, and the base never changes (L8)."""
    backbone = trainer.backbone
    before = {n: p.clone() for n, p in backbone.base.named_parameters() if ".lora_" not in n}
    batch = trainer.sampler.reward.batch(rows)
    with backbone.activate(POLICY, learn=True):
        backbone.hidden(batch).sum().backward()
    touched = {n for n, p in backbone.base.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert touched and all(f".{POLICY}." in name for name in touched)
    assert not any(p.requires_grad for p in backbone.base.parameters())
    trainer.learn(trainer.roll_out(0), 0)
    for name, old in before.items():
        assert torch.equal(old, dict(backbone.base.named_parameters())[name])


def test_the_reward_adapter_is_frozen_while_the_policy_learns(trainer: PPOTrainer) -> None:
    frozen = trainer.backbone.adapter_weights(ADAPTER_NAME)
    trainer.learn(trainer.roll_out(0), 0)
    for name, tensor in trainer.backbone.adapter_weights(ADAPTER_NAME).items():
        assert torch.equal(tensor, frozen[name])


def test_a_saved_reward_model_scores_the_same(reward_settings: Rewarding, rows: list[Scored], tmp_path: Path) -> None:
    """R7: gain and bias included."""
    model = reward_model(reward_settings)
    model.save(tmp_path / "saved")
    assert RewardModel.load(tmp_path / "saved").score(rows) == model.score(rows)


def test_a_missing_head_is_an_error_and_never_a_random_head(reward_folder: Path) -> None:
    (reward_folder / HEAD).unlink()
    with pytest.raises(UserError, match="not a reward model"):
        RewardModel.load(reward_folder)


def test_an_adapter_of_another_base_is_refused(reward_folder: Path, tmp_path: Path) -> None:
    from vlm_rlaif.train.embedded_model import build, save

    other, processor = build(seed=99)
    save(other, processor, tmp_path / "other")
    with pytest.raises(UserError, match="was trained on"):
        load_adapter(reward_folder, Backbone(str(tmp_path / "other")), "reward")


def test_an_adapter_saved_under_its_former_name_is_still_read(
    reward_settings: Rewarding, rows: list[Scored], tmp_path: Path
) -> None:
    model = reward_model(reward_settings)
    model.save(tmp_path / "saved")
    (tmp_path / "saved" / ADAPTER).rename(tmp_path / "saved" / BEFORE)
    assert RewardModel.load(tmp_path / "saved").score(rows) == model.score(rows)


def test_an_engine_wears_what_a_trainer_has_saved(reward_settings: Rewarding, reward_folder: Path) -> None:
    """`--adapter CHECKPOINT`: peft's format, the same names, the same scale."""
    model = reward_model(reward_settings)
    asked = Request("x", "which ?", choices=("A", "B", "C"), adapter=str(reward_folder))
    encoder = model.backbone.encoder
    inputs = collate(encoder.encode([Conversation(asked.user)]), encoder.pad_id, side="left")
    with model.backbone.activate(ADAPTER_NAME), torch.no_grad():
        wanted = model.backbone.base(**inputs).logits[0, -1].log_softmax(-1)[encoder.choice_ids(asked.choices)]
    [found] = TransformersEngine(reward_settings.model, device="cpu").generate([asked])
    assert list(found.choice_logprobs.values()) == pytest.approx(wanted.tolist(), abs=1e-4)


def test_the_exported_checkpoint_answers_like_the_adapter(
    reward_settings: Rewarding, rows: list[Scored], tmp_path: Path
) -> None:
    model = reward_model(reward_settings)
    batch = model.batch(rows)
    with model.backbone.activate(ADAPTER_NAME), torch.no_grad():
        wanted = model.backbone.base.lm_head(model.backbone.hidden(batch))
    export(tmp_path / "merged", model.backbone, ADAPTER_NAME)
    plain = load_model(str(tmp_path / "merged"), "cpu")
    with torch.no_grad():
        found = plain(**batch.inputs()).logits
    assert (wanted - found)[batch.mask].abs().max() < 1e-4
