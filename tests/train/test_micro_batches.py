"""Gradients of a PPO mini-batch: however it is cut up, and however its rows are shuffled, they are the same.

Adam hides errors of scale, so gradients are compared and not the weights after a step: optimizers that only look
take the place of the trainer's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vlm_rlaif.train.data import join
from vlm_rlaif.train.ppo import PPOTrainer
from vlm_rlaif.train.ppo_math import gae, masked_whiten, policy_loss, value_loss
from vlm_rlaif.train.reward import ADAPTER_NAME, RewardModel, Scored
from vlm_rlaif.train.rollout import POLICY, VALUE, Rollout
from vlm_rlaif.train.vlm import Backbone, scalar_head
from vlm_rlaif.warehouse.config import PPO, Rewarding, Sampling

START, EPISODES = "embedded:policy-start", 8
Gradients = dict[str, list[torch.Tensor]]
"""By role, one per parameter."""


class Onlooker(torch.optim.AdamW):
    """Keeps the gradients of every step and changes no weight."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(list(parameters))
        self.seen: list[list[torch.Tensor]] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.seen.append([gradient(p) for group in self.param_groups for p in group["params"]])


def gradient(parameter: nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()


def stir(parameters: Iterable[nn.Parameter], seed: int, scale: float) -> None:
    """Move weights: a new adapter is half zeros, and half of its gradients would be as well."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


@pytest.fixture
def trainer(ppo_settings: PPO, reward_settings: Rewarding, rows: list[Scored], tmp_path: Path) -> PPOTrainer:
    """One mini-batch per rollout, and a norm that is never clipped. The policy has learned to end its answers."""
    torch.manual_seed(1)
    backbone = Backbone(START)
    backbone.add_adapter(ADAPTER_NAME, reward_settings.lora)
    stir(backbone.parameters_of(ADAPTER_NAME), seed=1, scale=0.02)
    reward = RewardModel(backbone, scalar_head(backbone.hidden_size), reward_settings, mean=0.3, std=2.0)
    reward.save(tmp_path / "reward")
    settings = dataclasses.replace(
        ppo_settings, model=START, episodes=EPISODES, epochs=1, mini_batches=1, micro_batch=EPISODES,
        max_grad_norm=1e9, sampling=Sampling(temperature=1.0, max_new_tokens=32),
    )  # fmt: skip
    made = PPOTrainer(settings, tmp_path / "reward", rows, tmp_path / "ppo")
    stir(made.policy_parameters, seed=2, scale=0.02)
    stir(made.value_parameters, seed=3, scale=0.02)
    return made


@pytest.fixture
def rollout(trainer: PPOTrainer) -> Rollout:
    """Responses of several lengths; the models have moved since, so that ratios and clipping differ by token."""
    made = trainer.roll_out(0)
    assert len({len(tokens) for tokens in made.tokens}) > 2
    stir(trainer.policy_parameters, seed=4, scale=0.01)
    stir(trainer.value_parameters, seed=5, scale=0.01)
    return made


def learned(trainer: PPOTrainer, rollout: Rollout, **changes: Any) -> tuple[list[Gradients], dict[str, float]]:
    """The gradients of every mini-batch, and the metrics."""
    trainer.settings = dataclasses.replace(trainer.settings, **changes)
    onlookers = {POLICY: Onlooker(trainer.policy_parameters), VALUE: Onlooker(trainer.value_parameters)}
    trainer.optimizers.update(onlookers)
    metrics = trainer.learn(rollout, 0)
    steps = zip(*(onlooker.seen for onlooker in onlookers.values()), strict=True)
    return [dict(zip(onlookers, step, strict=True)) for step in steps], metrics


def at_once(
    trainer: PPOTrainer, rollout: Rollout, chosen: Sequence[int] = range(EPISODES)
) -> tuple[Gradients, dict[str, float]]:
    """One backward pass over the chosen responses in their own order, with plain means over real tokens."""
    s, backbone, rows = trainer.settings, trainer.backbone, list(chosen)
    advantages, returns = gae(rollout.rewards, rollout.values, rollout.mask, s.gamma, s.lam)
    advantages = masked_whiten(advantages, rollout.mask)
    width = max(len(rollout.tokens[i]) for i in rows)
    mask, advantages, returns, old, old_values = (
        tensor[rows, :width] for tensor in (rollout.mask, advantages, returns, rollout.logprobs, rollout.values)
    )
    tokens = [rollout.tokens[i] for i in rows]
    batch = join([rollout.prompts[i] for i in rows], tokens, backbone.encoder.pad_id)
    with backbone.activate(POLICY, learn=True):
        policy = policy_loss(trainer.sampler.logprobs(batch), old, advantages, mask, s.clip)
        ours = torch.autograd.grad(policy.loss, trainer.policy_parameters)
    with backbone.activate(VALUE, learn=True):
        values = trainer.sampler.values([rollout.rows[i] for i in rows], tokens)
        value = value_loss(values, old_values, returns, mask, s.value_clip)
        theirs = torch.autograd.grad(s.value_coef * value.loss, trainer.value_parameters)
    metrics = {
        "loss/policy_avg": policy.loss.item(), "loss/value_avg": value.loss.item(),
        "policy/approxkl_avg": policy.approx_kl, "policy/clipfrac_avg": policy.clip_fraction,
        "val/ratio_max": policy.ratio_max_deviation,
    }  # fmt: skip
    return {POLICY: list(ours), VALUE: list(theirs)}, metrics


def same(found: Gradients, wanted: Gradients) -> bool:
    """Equal for every parameter, each measured by its own size."""
    assert all(gradient.norm() > 0 for gradients in wanted.values() for gradient in gradients)
    return all(
        bool((mine - other).norm() < 1e-4 * other.norm())
        for role, gradients in wanted.items()
        for mine, other in zip(found[role], gradients, strict=True)
    )


@pytest.mark.parametrize("micro_batch", [1, 2, EPISODES])
def test_micro_batches_add_up_to_the_gradients_and_metrics_of_the_whole(
    trainer: PPOTrainer, rollout: Rollout, micro_batch: int
) -> None:
    """P9: of the policy and of the critic, at any size and in any order of the rows."""
    wanted, means = at_once(trainer, rollout)
    (found,), metrics = learned(trainer, rollout, micro_batch=micro_batch)
    assert means["val/ratio_max"] > 0.01
    assert same(found, wanted)
    assert {name: metrics[name] for name in means} == pytest.approx(means, rel=1e-4, abs=1e-6)


def test_a_gradient_is_cut_to_its_norm_once_it_is_whole(trainer: PPOTrainer, rollout: Rollout) -> None:
    """Policy and critic each have a norm of their own; what is cut keeps its direction."""
    (whole,), _ = learned(trainer, rollout, micro_batch=1)
    norms = {role: torch.cat([g.flatten() for g in gradients]).norm() for role, gradients in whole.items()}
    limit = 0.5 * min(norms.values()).item()
    (cut,), _ = learned(trainer, rollout, micro_batch=1, max_grad_norm=limit)
    wanted = {role: [g * limit / norms[role] for g in gradients] for role, gradients in whole.items()}
    assert same(cut, wanted)


def test_mini_batches_share_out_the_rollout_and_start_from_nothing(trainer: PPOTrainer, rollout: Rollout) -> None:
    """With one response in each, every response is learned from once, and from its own numbers alone."""
    steps, _ = learned(trainer, rollout, micro_batch=2, mini_batches=EPISODES)
    left = [at_once(trainer, rollout, [i])[0] for i in range(EPISODES)]
    for step in steps:
        found = next(i for i, alone in enumerate(left) if same(step, alone))
        del left[found]
    assert len(steps) == EPISODES and not left
