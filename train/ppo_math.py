"""The mathematics of PPO: pure functions on tensors of response tokens, no model, no loop.

Everything is (B, T) over response tokens padded on the right unless it says otherwise; `mask` (B, T) bool, True =
a real token. What stands on a pad, be it NaN, never changes a result or a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlm_rlaif.train.reward_math import last_true_index


def logprobs_of(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of each token: logits (..., V), ids (...) -> (...).

    >>> logprobs_of(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([1, 0]))
    tensor([-0.6931, -0.0486])
    """
    return logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def entropy_of(logits: Tensor) -> Tensor:
    """Entropy in nat of every next-token distribution: logits (..., V) -> (...); -inf = an impossible token.

    >>> entropy_of(torch.tensor([[0.0, 0.0, -torch.inf], [0.0, 0.0, 0.0]]))
    tensor([0.6931, 1.0986])
    """
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs.masked_fill(logprobs == -torch.inf, 0)).sum(-1)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens; an empty mask is an error.

    >>> masked_mean(torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[True, True, False]])).item()
    2.0
    """
    if not bool(mask.any()):
        raise ValueError("there is no real token to average over")
    return torch.where(mask, x, 0).sum() / mask.sum()


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Variance over real tokens (divided by their number)."""
    return masked_mean((x - masked_mean(x, mask)).square(), mask)


def masked_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Variance 1 over real tokens, and mean 0 unless `shift_mean` is False; pads become 0.

    >>> masked_whiten(torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[True, True, False]]))
    tensor([[-1.,  1.,  0.]])
    """
    mean = masked_mean(x, mask)
    white = (x - mean) * torch.rsqrt(masked_var(x, mask) + 1e-8)
    return torch.where(mask, white if shift_mean else white + mean, 0)


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, kind: Literal["k1", "k2", "k3"]) -> Tensor:
    """Per-token estimate of KL(policy || reference) from tokens that the policy sampled.

    k1 is unbiased and may be negative; k2 = k1^2/2 is biased, k3 = exp(-k1) - 1 + k1 unbiased, neither negative.
    Schulman, "Approximating KL Divergence" (2020). They are values: put into a loss, only k2 has the KL's gradient.

    >>> kl_estimate(torch.tensor([-1.0]), torch.tensor([-2.0]), "k3")
    tensor([0.3679])
    """
    k1 = logprobs - reference_logprobs
    if kind == "k1":
        return k1
    return k1.square() / 2 if kind == "k2" else torch.expm1(-k1) + k1


def token_rewards(score: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """-kl_coef * KL at every real token, and the score (B,) added at the last real one.

    The sum of a row is score - kl_coef * sum(KL). A row without a real token is an error.

    >>> kl, mask = torch.tensor([[1.0, 2.0, 99.0]]), torch.tensor([[True, True, False]])
    >>> token_rewards(torch.tensor([5.0]), kl, mask, kl_coef=0.5)
    tensor([[-0.5000,  4.0000,  0.0000]])
    """
    rewards = torch.where(mask, -kl_coef * kl, 0)
    rewards[torch.arange(len(rewards)), last_true_index(mask)] += score
    return rewards


def penalise_missing_eos(score: Tensor, has_eos: Tensor, penalty: float) -> Tensor:
    """Subtract `penalty` from the scores (B,) of responses that the length limit cut off.

    `has_eos` (B,) bool, True = the response ended by itself.

    >>> penalise_missing_eos(torch.tensor([2.0, 2.0]), torch.tensor([True, False]), penalty=1.0)
    tensor([2., 1.])
    """
    return score - penalty * (~has_eos).to(score.dtype)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and returns (= advantages + values, before any whitening).

    Schulman et al., arXiv 1506.02438, eq. 16, over real tokens; nothing follows a response's last token.

    >>> rewards, mask = torch.tensor([[0.0, 1.0, 99.0]]), torch.tensor([[True, True, False]])
    >>> gae(rewards, torch.tensor([[0.5, 0.5, 99.0]]), mask, gamma=1.0, lam=0.5)
    (tensor([[0.2500, 0.5000, 0.0000]]), tensor([[0.7500, 1.0000, 0.0000]]))
    """
    rewards, values = torch.where(mask, rewards, 0), torch.where(mask, values, 0)
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    following = torch.zeros_like(running)
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = delta + gamma * lam * running
        following = values[:, t]
        advantages[:, t] = running
    return advantages, advantages + values


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """The clipped policy objective and how far the policy has moved."""

    loss: Tensor
    approx_kl: float
    """Mean k3 estimate of KL(old policy || policy), in nat per real token."""
    clip_fraction: float
    """Share of real tokens whose |ratio - 1| exceeds the clip."""
    ratio_max_deviation: float
    """Largest |ratio - 1| over real tokens: 0 before the first step."""


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float,
    denominator: Tensor | float | None = None,
) -> PolicyLoss:  # fmt: skip
    """PPO's clipped surrogate, summed over real tokens and divided by `denominator`.

    Schulman et al., arXiv 1707.06347, eq. 7. Give the number of real tokens of the whole mini-batch as
    `denominator` and micro-batches add up to exactly the mini-batch's loss.

    >>> old, new = torch.zeros(1, 2), torch.tensor([[1.5, 0.5]]).log()
    >>> advantages, mask = torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool)
    >>> round(policy_loss(new, old, advantages, mask, clip=0.2).loss.item(), 6)  # -(1.2 + 0.5) / 2
    -0.85
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
    """Share of real tokens whose loss is the clipped one, which has no gradient."""


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float,
    denominator: Tensor | float | None = None,
) -> ValueLoss:  # fmt: skip
    """Half the squared error, values clipped to `clip` around the old ones (in units of the returns).

    `denominator` as in `policy_loss`. The worse of plain and clipped error counts, as in OpenAI's baselines.

    >>> zero, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    >>> result = value_loss(zero + 0.75, zero, zero + 1, mask, clip=0.25)  # (1 - 0.25)^2 / 2
    >>> result.loss.item(), result.clip_fraction
    (0.28125, 1.0)
    """
    values, old_values, returns = (torch.where(mask, x, 0) for x in (values, old_values, returns))
    # Bounds, not a clipped difference: inside them the value must come back bit for bit.
    clipped = values.clamp(old_values - clip, old_values + clip)
    plain, limited = (values - returns).square(), (clipped - returns).square()
    worse = torch.where(mask, torch.maximum(plain, limited), 0) / 2
    return ValueLoss(
        worse.sum() / (mask.sum() if denominator is None else denominator),
        masked_mean((limited > plain).float(), mask).item(),
    )


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 = perfect, 0 = no better than the mean, or nothing to explain.

    >>> returns, mask = torch.tensor([[1.0, 3.0]]), torch.ones(1, 2, dtype=torch.bool)
    >>> explained_variance(torch.tensor([[1.5, 2.5]]), returns, mask)
    0.75
    """
    spread = masked_var(returns, mask)
    if spread < 1e-8:
        return 0.0
    return float(1 - masked_var(returns - values, mask) / spread)
