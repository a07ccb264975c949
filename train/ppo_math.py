"""The mathematics of PPO: pure functions on tensors of response tokens, no model, no loop.

Everything is (B, T) over response tokens padded on the right unless it says otherwise; `mask` (B, T) bool, True =
a real token. What stands on a pad never changes a result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


def logprobs_of(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of each token: logits (..., V), ids (...) -> (...)."""
    return logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens; an empty mask is an error."""
    if not bool(mask.any()):
        raise ValueError("there is no real token to average over")
    return torch.where(mask, x, 0).sum() / mask.sum()


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Variance over real tokens (divided by their number)."""
    return masked_mean((x - masked_mean(x, mask)).square(), mask)


def masked_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Variance 1 over real tokens, and mean 0 unless `shift_mean` is False; pads become 0."""
    mean = masked_mean(x, mask)
    white = (x - mean) * torch.rsqrt(masked_var(x, mask) + 1e-8)
    return torch.where(mask, white if shift_mean else white + mean, 0)


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, kind: Literal["k1", "k2", "k3"]) -> Tensor:
    """Per-token estimate of KL(policy || reference) from tokens that the policy sampled.

    k1 is unbiased and may be negative; k2 = k1^2/2 is biased, k3 = exp(-k1) - 1 + k1 unbiased, neither negative.
    Schulman, "Approximating KL Divergence" (2020).
    """
    k1 = logprobs - reference_logprobs
    if kind == "k1":
        return k1
    return k1.square() / 2 if kind == "k2" else torch.expm1(-k1) + k1


def token_rewards(score: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """-kl_coef * KL at every real token, and the score (B,) added at the last real one.

    The sum of a row is score - kl_coef * sum(KL).
    """
    rewards = torch.where(mask, -kl_coef * kl, 0)
    last = mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1)
    rewards[torch.arange(len(rewards)), last] += score
    return rewards


def penalise_missing_eos(score: Tensor, has_eos: Tensor, penalty: float) -> Tensor:
    """Subtract `penalty` from the scores (B,) of responses that the length limit cut off."""
    return score - penalty * (~has_eos).to(score.dtype)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and returns (= advantages + values, before any whitening).

    Schulman et al., arXiv 1506.02438, eq. 16, over real tokens; nothing follows a response's last token.
    """
    rewards, values = torch.where(mask, rewards, 0), torch.where(mask, values, 0)
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    following = torch.zeros_like(running)
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = torch.where(mask[:, t], delta + gamma * lam * running, 0)
        following = values[:, t]
        advantages[:, t] = running
    return advantages, advantages + values


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """The clipped policy objective and how far the policy has moved."""

    loss: Tensor
    approx_kl: float
    clip_fraction: float
    ratio_max_deviation: float
    """Largest |ratio - 1| over real tokens: 0 before the first step."""


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float,
    denominator: Tensor | float | None = None,
) -> PolicyLoss:  # fmt: skip
    """PPO's clipped surrogate, summed over real tokens and divided by `denominator`.

    Schulman et al., arXiv 1707.06347, eq. 7. Give the number of real tokens of the whole mini-batch as
    `denominator` and micro-batches add up to exactly the mini-batch's loss.
    """
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0)
    ratio = log_ratio.exp()
    surrogate = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))
    moved = (ratio.detach() - 1).abs()
    return PolicyLoss(
        torch.where(mask, surrogate, 0).sum() / (mask.sum() if denominator is None else denominator),
        masked_mean(torch.expm1(log_ratio.detach()) - log_ratio.detach(), mask).item(),
        masked_mean((moved > clip).float(), mask).item(),
        torch.where(mask, moved, 0).max().item(),
    )


@dataclass(frozen=True, slots=True)
class ValueLoss:
    """The clipped value objective."""

    loss: Tensor
    clip_fraction: float


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float,
    denominator: Tensor | float | None = None,
) -> ValueLoss:  # fmt: skip
    """Half the squared error, values clipped to `clip` around the old ones (in units of the returns)."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    plain, limited = (values - returns).square(), (clipped - returns).square()
    worse = torch.where(mask, torch.maximum(plain, limited), 0) / 2
    return ValueLoss(
        worse.sum() / (mask.sum() if denominator is None else denominator),
        masked_mean((limited > plain).float(), mask).item(),
    )


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 = perfect, 0 = no better than the mean."""
    spread = masked_var(returns, mask)
    return float(1 - masked_var(returns - values, mask) / spread.clamp_min(1e-8))
