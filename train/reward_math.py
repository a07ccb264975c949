"""The reward model's mathematics: pure functions on tensors, no model, no loop.

Pairs are unordered; `p_a` (B,) in [0, 1] is how probable it is that the first response is better, 0.5 a tie.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def bradley_terry_loss(score_a: Tensor, score_b: Tensor, p_a: Tensor) -> Tensor:
    """Cross-entropy of soft labels under P(a better) = sigmoid(score_a - score_b), mean over pairs.

    Scores and `p_a` are (B,). Bradley and Terry 1952; soft labels as in Lee et al., arXiv 2309.00267.

    >>> zero = torch.zeros(1, dtype=torch.float64)
    >>> round(bradley_terry_loss(zero, zero, torch.ones(1, dtype=torch.float64)).item(), 6)
    0.693147
    """
    return functional.binary_cross_entropy_with_logits(score_a - score_b, p_a.to(score_a.dtype))


def centering_penalty(score_a: Tensor, score_b: Tensor) -> Tensor:
    """Mean squared sum of the two scores (B,): Bradley-Terry fixes differences only, this fixes the level."""
    return (score_a + score_b).square().mean()


def normalise(score: Tensor, mean: float, std: float) -> Tensor:
    """Scores in units of their own spread under the responses that the mean and std were taken from."""
    return (score - mean) / std


def head_init_std(hidden_size: int) -> float:
    """Standard deviation of a new scalar head's weights: 1 / sqrt(hidden_size + 1).

    Huang et al., "The N Implementation Details of RLHF with PPO".
    """
    return float((hidden_size + 1) ** -0.5)


def pair_accuracy(score_a: Tensor, score_b: Tensor, p_a: Tensor) -> Tensor:
    """(B,): 1 where the better response scores higher, 1/2 for equal scores, 0 otherwise."""
    difference = (score_a - score_b) * (p_a - 0.5).sign()
    return (difference.sign() + 1) / 2


def last_true_index(mask: Tensor) -> Tensor:
    """(B, T) bool -> (B,) index of the last True of every row; a row without one is an error.

    >>> last_true_index(torch.tensor([[False, True, True, False], [True, False, False, False]]))
    tensor([2, 0])
    """
    if not bool(mask.any(dim=1).all()):
        raise ValueError("a row has no token to read the score at")
    return mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1)
