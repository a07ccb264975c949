"""Trainers learn, resume exactly and do not care how a batch is cut up."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from vlm_rlaif.train import checkpoint
from vlm_rlaif.train.ppo import PPOTrainer
from vlm_rlaif.train.reward import LabeledPair, RewardTrainer, Scored
from vlm_rlaif.train.rollout import POLICY, VALUE
from vlm_rlaif.train.vlm import ADAPTER
from vlm_rlaif.warehouse.config import PPO, Rewarding
from vlm_rlaif.warehouse.errors import UserError


def pairs_about_length(clips: list[Path], count: int = 16) -> list[LabeledPair]:
    """A judge with a taste that is easy to learn: the shorter answer is better."""
    return [
        LabeledPair(
            str(i),
            Scored(clips[i % 4], "describe the video .", "a red circle grows ."),
            Scored(clips[i % 4], "describe the video .", "a red circle grows and a blue cross blinks ."),
            1.0,
        )
        for i in range(count)
    ]  # fmt: skip


def test_the_reward_model_learns_a_preference_and_is_normalised(
    reward_settings: Rewarding, clips: list[Path], tmp_path: Path
) -> None:
    """R7: mean 0 and standard deviation 1 over the responses that it was trained on."""
    pairs = pairs_about_length(clips)
    settings = dataclasses.replace(reward_settings, epochs=4)
    model = RewardTrainer(settings, pairs, tmp_path / "rm").train()
    a, b = model.score([p.a for p in pairs]), model.score([p.b for p in pairs])
    assert all(x > y for x, y in zip(a, b, strict=True))
    scores = torch.tensor(a + b)
    assert abs(scores.mean()) < 1e-4 and abs(scores.std() - 1) < 1e-3


def test_no_preferences_is_said_and_not_trained_on(reward_settings: Rewarding, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no preferences"):
        RewardTrainer(reward_settings, [], tmp_path)


@pytest.fixture
def reward_folder(reward_settings: Rewarding, clips: list[Path], tmp_path: Path) -> Path:
    RewardTrainer(reward_settings, pairs_about_length(clips, 4), tmp_path / "rm").train()
    return tmp_path / "rm"


def test_ppo_resumes_exactly(ppo_settings: PPO, reward_folder: Path, rows: list[Scored], tmp_path: Path) -> None:
    """P17: two iterations straight equal one, a stop, and one more."""
    straight = PPOTrainer(ppo_settings, reward_folder, rows, tmp_path / "straight")
    straight.train()
    halted = PPOTrainer(ppo_settings, reward_folder, rows, tmp_path / "halted")

    def stop(step: int, *_: object) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        halted.train(stop)
    resumed = PPOTrainer(ppo_settings, reward_folder, rows, tmp_path / "halted")
    resumed.train()
    for name in (POLICY, VALUE):
        wanted = straight.backbone.adapter_weights(name)
        for key, tensor in resumed.backbone.adapter_weights(name).items():
            assert torch.equal(tensor, wanted[key])
    assert (tmp_path / "halted" / ADAPTER).read_bytes() == (tmp_path / "straight" / ADAPTER).read_bytes()


def test_micro_batches_change_memory_and_nothing_else(
    ppo_settings: PPO, reward_folder: Path, rows: list[Scored], tmp_path: Path
) -> None:
    """P9: gradients accumulate to those of the whole mini-batch."""
    found = []
    for micro in (1, 2, 6):
        settings = dataclasses.replace(ppo_settings, micro_batch=micro, epochs=1, mini_batches=1)
        trainer = PPOTrainer(settings, reward_folder, rows, tmp_path / str(micro))
        rollout = trainer.roll_out(0)
        trainer.learn(rollout, 0)
        found.append(trainer.backbone.adapter_weights(POLICY))
    for other in found[1:]:
        for key, tensor in found[0].items():
            assert (tensor - other[key]).abs().max() < 2e-5


def test_a_rollout_does_not_depend_on_how_it_is_cut_up(
    ppo_settings: PPO, reward_folder: Path, rows: list[Scored], tmp_path: Path
) -> None:
    """Seeds belong to rows: only the padding differs."""
    whole, cut = (
        PPOTrainer(dataclasses.replace(ppo_settings, micro_batch=size), reward_folder, rows, tmp_path).roll_out(0)
        for size in (64, 2)
    )
    assert cut.tokens == whole.tokens and cut.rows == whole.rows
    assert torch.equal(cut.mask, whole.mask) and torch.equal(cut.ended, whole.ended)
    for name in ("logprobs", "reference_logprobs", "values", "rewards", "kl", "scores"):
        assert torch.allclose(getattr(cut, name), getattr(whole, name), atol=1e-4), name


def test_a_checkpoint_that_was_being_written_is_ignored(tmp_path: Path) -> None:
    state = checkpoint.State(3, {"w": torch.ones(2)}, {}, [], "mine")
    checkpoint.save(tmp_path, state)
    (tmp_path / "checkpoint-9").mkdir()
    kept = checkpoint.load_latest(tmp_path, "mine")
    assert kept is not None and kept.step == 3 and torch.equal(kept.weights["w"], torch.ones(2))


def test_the_state_of_another_training_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, checkpoint.State(3, {"w": torch.ones(2)}, {}, [], "mine"))
    with pytest.raises(UserError, match="another training"):
        checkpoint.load_latest(tmp_path, "yours")


def test_a_folder_is_not_trained_further_with_other_settings(
    ppo_settings: PPO, reward_folder: Path, rows: list[Scored], tmp_path: Path
) -> None:
    """Except those that change what it costs and not what it learns."""
    PPOTrainer(dataclasses.replace(ppo_settings, iterations=1, save_every=1), reward_folder, rows, tmp_path).train()
    cheaper = dataclasses.replace(ppo_settings, iterations=1, save_every=3, micro_batch=1)
    PPOTrainer(cheaper, reward_folder, rows, tmp_path).train()
    other = dataclasses.replace(ppo_settings, iterations=1, kl_coef=0.5)
    with pytest.raises(UserError, match="another training"):
        PPOTrainer(other, reward_folder, rows, tmp_path).train()


def test_both_trainers_run_on_a_base_in_half_precision(
    reward_settings: Rewarding, ppo_settings: PPO, clips: list[Path], rows: list[Scored], tmp_path: Path
) -> None:
    """What a GPU does with a checkpoint in bf16: heads and losses stay in fp32."""
    reward = RewardTrainer(reward_settings, pairs_about_length(clips, 4), tmp_path / "rm")
    reward.model.backbone.base.to(torch.bfloat16)
    reward.train()
    ppo = PPOTrainer(dataclasses.replace(ppo_settings, iterations=1), tmp_path / "rm", rows, tmp_path / "ppo")
    ppo.backbone.base.to(torch.bfloat16)
    seen: list[dict[str, float]] = []
    ppo.train(lambda step, metrics, said: seen.append(metrics))
    assert seen and all(torch.isfinite(torch.tensor(list(metrics.values()))).all() for metrics in seen)
