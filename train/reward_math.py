"""The reward model's mathematics: pure functions on tensors, no model, no loop.

Pairs are unordered; `p_a` (B,) in [0, 1] is how probable it is that the first response is better, 0.5 a tie.
"""

from __future__ import annotations

import torch
from torch import Tensor


def bradley_terry_loss(score_a: Tensor, score_b: Tensor, p_a: Tensor) -> Tensor:
    """Cross-entropy of soft labels under P(a better) = sigmoid(score_a - score_b), mean over pairs.

    Scores and `p_a` are (B,). Bradley and Terry 1952; soft labels as in Lee et al., arXiv 2309.00267.

    >>> tensor = lambda *x: torch.tensor(x, dtype=torch.float64)
    >>> round(bradley_terry_loss(tensor(0.0), tensor(0.0), tensor(1.0)).item(), 6)  # log 2
    0.693147
    """
    difference, p_a = score_a - score_b, p_a.to(score_a.dtype)
    return torch.nn.functional.binary_cross_entropy_with_logits(difference, p_a)


def centering_penalty(score_a: Tensor, score_b: Tensor) -> Tensor:
    """Mean squared sum of the two scores (B,): Bradley-Terry fixes differences only, this fixes the level.

    Eisenstein et al., arXiv 2312.09244, eq. 2; the caller multiplies it by a small coefficient.

    >>> centering_penalty(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 0.0])).item()
    2.0
    """
    return (score_a + score_b).square().mean()


def normalise(score: Tensor, mean: float, std: float) -> Tensor:
    """Scores in units of their own spread under the responses that the mean and std were taken from.

    >>> normalise(torch.tensor([1.0, 4.0]), mean=2.0, std=0.5)
    tensor([-2.,  4.])
    """
    return (score - mean) / std


def head_init_std(hidden_size: int) -> float:
    """Standard deviation of a new scalar head's weights: 1 / sqrt(hidden_size + 1).

    Huang et al., "The N Implementation Details of RLHF with PPO".

    >>> head_init_std(255)
    0.0625
    """
    return float((hidden_size + 1) ** -0.5)


def pair_accuracy(score_a: Tensor, score_b: Tensor, truth_a: Tensor) -> Tensor:
    """(B,): 1 where the better response scores higher, 0 where it scores lower, 1/2 where either is a tie.

    `truth_a` (B,) is bool, True = the first response is better, or the probability that it is (0.5 a tie).

    >>> scores = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 3.0, 2.0])
    >>> pair_accuracy(*scores, torch.tensor([True, True, True]))
    tensor([1.0000, 0.0000, 0.5000])
    """
    agreement = (score_a - score_b).sign() * (truth_a.to(score_a.dtype) - 0.5).sign()
    return (agreement + 1) / 2


def last_true_index(mask: Tensor) -> Tensor:
    """(B, T) bool -> (B,) index of the last True of every row; a row without one is an error.

    >>> last_true_index(torch.tensor([[False, True, True, False], [True, False, False, False]]))
    tensor([2, 0])
    """
    if not bool(mask.any(dim=1).all()):
        raise ValueError("a row has no token to read the score at")
    return mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1)
