"""PPO on videos: the policy learns what the reward model likes without leaving its start too far.

One base model carries four roles: policy and value are adapters that learn, reward is one that is frozen, and the
reference is the base without an adapter, which is the policy as it started. Every iteration samples
episodes, scores them, and takes several epochs of clipped steps over mini-batches; gradients accumulate over
micro-batches exactly.

    PPOTrainer(settings, reward_folder, prompts, folder).train()
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from vlm_rlaif.train import checkpoint
from vlm_rlaif.train.data import join
from vlm_rlaif.train.jobs import identity
from vlm_rlaif.train.ppo_math import (
    explained_variance,
    gae,
    masked_mean,
    masked_whiten,
    policy_loss,
    value_loss,
)
from vlm_rlaif.train.reward import ADAPTER_NAME as REWARD
from vlm_rlaif.train.reward import RewardModel, Scored
from vlm_rlaif.train.rollout import POLICY, VALUE, Rollout, Sampler
from vlm_rlaif.train.vlm import Backbone, save_adapter, scalar_head
from vlm_rlaif.warehouse.config import PPO
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.progress import Bar
from vlm_rlaif.warehouse.records import row_id

OnLog = Callable[[int, dict[str, float], list[Scored]], None]
"""(step, metrics, what was said in this iteration)."""


class PPOTrainer:
    """Improves a policy on a fixed set of prompts; resumes exactly."""

    def __init__(self, settings: PPO, reward_folder: Path, prompts: Sequence[Scored], folder: Path) -> None:
        if not prompts:
            raise UserError("There are no questions to practise on.", "vlm-rlaif add W FOLDER --questions Q")
        torch.manual_seed(settings.seed)
        self.settings, self.prompts, self.folder = settings, list(prompts), folder
        self.backbone = Backbone(settings.model)
        self.backbone.add_adapter(POLICY, settings.lora)
        reward = RewardModel.load(reward_folder, self.backbone)
        asked = [(p.path.name, p.question, p.context) for p in self.prompts]
        self._fingerprint = row_id("ppo", *identity(settings), self.backbone.revision, asked, reward.fingerprint())
        self.backbone.add_adapter(VALUE, reward.settings.lora)
        self.backbone.load_adapter_weights(VALUE, self.backbone.adapter_weights(REWARD))
        self.value_head = scalar_head(self.backbone.hidden_size, zero=True)
        self.value_head.to(self.backbone.device)
        self.sampler = Sampler(self.backbone, reward, self.value_head, settings)
        self.policy_parameters = self.backbone.parameters_of(POLICY)
        self.value_parameters = [
            *self.backbone.parameters_of(VALUE),
            *self.value_head.parameters(),
        ]
        self.optimizers = {
            POLICY: torch.optim.AdamW(self.policy_parameters, lr=settings.learning_rate, eps=1e-5, weight_decay=0.0),
            VALUE: torch.optim.AdamW(
                self.value_parameters, lr=settings.value_learning_rate, eps=1e-5, weight_decay=0.0
            ),
        }

    def train(self, on_log: OnLog = lambda *_: None) -> Path:
        """Run all iterations; returns the folder of the trained policy adapter."""
        step, history = self._resume()
        with Bar("ppo", self.settings.iterations) as bar:
            bar.advance(step)
            while step < self.settings.iterations:
                rollout = self.roll_out(step)
                metrics = self.learn(rollout, step)
                step += 1
                history.append({"step": float(step), **metrics})
                on_log(step, metrics, rollout.rows)
                note = f"score {metrics['objective/scores']:.2f} KL {metrics['objective/kl']:.2f}"
                bar.advance(1, note)
                if step % self.settings.save_every == 0:
                    self._save(step, history)
        card = {
            "kind": "ppo",
            "settings": asdict(self.settings),
            "lora": asdict(self.settings.lora),
        }
        save_adapter(self.folder, self.backbone, POLICY, None, card)
        return self.folder

    def roll_out(self, step: int) -> Rollout:
        """Sample this iteration's episodes; prompts and seeds depend on (seed, step, place) alone."""
        rng = random.Random(f"ppo/{self.settings.seed}/{step}")
        rows = [rng.choice(self.prompts) for _ in range(self.settings.episodes)]
        seeds = [int(row_id("rollout", self.settings.seed, step, i)[:8], 16) for i in range(len(rows))]
        return self.sampler.sample(rows, seeds)

    def learn(self, rollout: Rollout, step: int) -> dict[str, float]:
        """Several epochs of clipped steps on one rollout."""
        s = self.settings
        advantages, returns = gae(rollout.rewards, rollout.values, rollout.mask, s.gamma, s.lam)
        advantages = masked_whiten(advantages, rollout.mask)
        self._set_rates(step)
        seen: list[dict[str, float]] = []
        for epoch in range(s.epochs):
            order = list(range(len(rollout.rows)))
            random.Random(f"epoch/{s.seed}/{step}/{epoch}").shuffle(order)
            size = -(-len(order) // s.mini_batches)
            for start in range(0, len(order), size):
                seen.append(self._step(rollout, advantages, returns, order[start : start + size]))
        means = {name: sum(entry[name] for entry in seen) / len(seen) for name in seen[0]}
        return {
            **self._describe(rollout, returns),
            **means,
            "val/first_ratio_max": seen[0]["val/ratio_max"],
        }

    def _step(
        self, rollout: Rollout, advantages: torch.Tensor, returns: torch.Tensor, chosen: list[int]
    ) -> dict[str, float]:
        """One optimizer step over a mini-batch, accumulated over micro-batches."""
        s = self.settings
        tokens = rollout.mask[chosen].sum()
        totals: dict[str, float] = {}
        for start in range(0, len(chosen), s.micro_batch):
            part = chosen[start : start + s.micro_batch]
            width = int(rollout.mask[part].sum(1).max())
            cut = (part, slice(width))
            mask = rollout.mask[part][:, :width]
            batch = join(
                [rollout.prompts[i] for i in part], [rollout.tokens[i] for i in part],
                self.backbone.encoder.pad_id, self.backbone.device,
            )  # fmt: skip
            with self.backbone.activate(POLICY, learn=True):
                policy = policy_loss(
                    self.sampler.logprobs(batch), _cut(rollout.logprobs, cut),
                    _cut(advantages, cut), mask, s.clip, denominator=tokens,
                )  # fmt: skip
                policy.loss.backward()
            with self.backbone.activate(VALUE, learn=True):
                values = self.sampler.values([rollout.rows[i] for i in part], [rollout.tokens[i] for i in part])
                value = value_loss(
                    values, _cut(rollout.values, cut), _cut(returns, cut), mask, s.value_clip,
                    denominator=tokens,
                )  # fmt: skip
                (s.value_coef * value.loss).backward()
            share = mask.sum().item() / tokens.item()
            for name, number in {
                "loss/policy_avg": policy.loss.item(), "loss/value_avg": value.loss.item(),
                "policy/approxkl_avg": policy.approx_kl * share,
                "policy/clipfrac_avg": policy.clip_fraction * share,
            }.items():  # fmt: skip
                totals[name] = totals.get(name, 0.0) + number
            worst = max(totals.get("val/ratio_max", 0.0), policy.ratio_max_deviation)
            totals["val/ratio_max"] = worst
        for parameters in (self.policy_parameters, self.value_parameters):
            nn.utils.clip_grad_norm_(parameters, s.max_grad_norm)
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return totals

    def _describe(self, rollout: Rollout, returns: torch.Tensor) -> dict[str, float]:
        lengths = rollout.mask.sum(1).float()
        return {
            "objective/scores": rollout.scores.mean().item(),
            "objective/kl": rollout.kl.sum(1).mean().item(),
            "objective/rlhf_reward": rollout.rewards.sum(1).mean().item(),
            "policy/entropy_avg": -masked_mean(rollout.logprobs, rollout.mask).item(),
            "val/num_eos_tokens": float(rollout.ended.sum()),
            "val/length_mean": lengths.mean().item(),
            "val/explained_variance": float(explained_variance(rollout.values, returns, rollout.mask)),
            "val/sampling_gap": rollout.sampling_gap,
        }

    def _set_rates(self, step: int) -> None:
        """Linear decay to a tenth."""
        scale = 1 - 0.9 * step / max(1, self.settings.iterations)
        rates = {POLICY: self.settings.learning_rate, VALUE: self.settings.value_learning_rate}
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rates[name] * scale

    def _save(self, step: int, history: list[dict[str, float]]) -> None:
        weights: dict[str, torch.Tensor] = {}
        for name in (POLICY, VALUE):
            weights |= {f"{name}/{k}": v for k, v in self.backbone.adapter_weights(name).items()}
        weights |= {f"head/{k}": v for k, v in self.value_head.state_dict().items()}
        states = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        checkpoint.save(self.folder / "training", checkpoint.State(step, weights, states, history, self._fingerprint))

    def _resume(self) -> tuple[int, list[dict[str, float]]]:
        kept = checkpoint.load_latest(self.folder / "training", self._fingerprint)
        if kept is None:
            return 0, []
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in kept.weights.items():
            owner, name = key.split("/", 1)
            parts.setdefault(owner, {})[name] = tensor
        for name in (POLICY, VALUE):
            self.backbone.load_adapter_weights(name, parts[name])
            self.optimizers[name].load_state_dict(kept.optimizer[name])
        self.value_head.load_state_dict(parts["head"])
        return kept.step, kept.log_history


def _cut(values: torch.Tensor, cut: tuple[list[int], slice]) -> torch.Tensor:
    rows, columns = cut
    return values[rows][:, columns]
