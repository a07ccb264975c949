import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vlm_rlaif.train.reward_math import (
    bradley_terry_loss,
    centering_penalty,
    head_init_std,
    last_true_index,
    normalise,
    pair_accuracy,
)

torch.set_num_threads(1)

differences = st.floats(-30, 30)
probabilities = st.floats(0, 1)
masks = st.integers(1, 6).flatmap(
    lambda width: st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=5)
)


def exact(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def log_loss(difference: float) -> float:
    """-log sigmoid(difference), without overflow."""
    return math.log1p(math.exp(-abs(difference))) + max(-difference, 0.0)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@given(differences, st.floats(-5, 5))
def test_the_loss_of_a_sure_label_is_the_log_loss_of_the_difference(difference: float, b: float) -> None:
    """R1."""
    loss = bradley_terry_loss(exact(b + difference), exact(b), exact(1.0))
    assert loss.item() == pytest.approx(log_loss((b + difference) - b), abs=1e-12)


@given(differences)
def test_both_scores_get_opposite_gradients_of_the_chance_to_be_wrong(difference: float) -> None:
    """R1."""
    a, b = exact(difference).requires_grad_(), exact(0.0).requires_grad_()
    bradley_terry_loss(a, b, exact(1.0)).backward()
    assert a.grad is not None and b.grad is not None
    assert a.grad.item() == pytest.approx(-sigmoid(-difference), abs=1e-12)
    assert b.grad.item() == -a.grad.item()


def test_a_constant_added_to_both_scores_changes_no_loss() -> None:
    """R1."""
    a, b, p_a = exact(0.5, -1.0, 2.0), exact(0.25, 1.5, 2.0), exact(1.0, 0.25, 0.5)
    for constant in (-64.0, 0.125, 1024.0):  # exact in binary, so the differences are the same bits
        assert torch.equal(bradley_terry_loss(a + constant, b + constant, p_a), bradley_terry_loss(a, b, p_a))


@given(differences, probabilities)
def test_a_soft_label_mixes_the_losses_of_both_sure_labels(difference: float, p_a: float) -> None:
    """R2."""
    loss = bradley_terry_loss(exact(difference), exact(0.0), exact(p_a))
    mixed = p_a * log_loss(difference) + (1 - p_a) * log_loss(-difference)
    assert loss.item() == pytest.approx(mixed, abs=1e-12)


@given(st.floats(0.01, 0.99))
def test_the_best_difference_is_the_log_odds_of_the_label(p_a: float) -> None:
    """R2."""
    best = math.log(p_a / (1 - p_a))
    a = exact(best).requires_grad_()
    loss = bradley_terry_loss(a, exact(0.0), exact(p_a))
    loss.backward()
    assert a.grad is not None and a.grad.item() == pytest.approx(0, abs=1e-12)
    for other in (best - 0.1, best + 0.1):
        assert bradley_terry_loss(exact(other), exact(0.0), exact(p_a)) > loss


def test_a_tie_wants_equal_scores() -> None:
    """R2."""
    a = exact(0.0).requires_grad_()
    loss = bradley_terry_loss(a, exact(0.0), exact(0.5))
    loss.backward()
    assert a.grad is not None and a.grad.item() == 0
    assert loss.item() == pytest.approx(math.log(2), abs=1e-12)


@given(st.lists(st.tuples(differences, probabilities), min_size=1, max_size=6))
def test_swapping_the_responses_and_the_label_changes_nothing(pairs: list[tuple[float, float]]) -> None:
    """R2."""
    a, p_a = exact(*(d for d, _ in pairs)), exact(*(p for _, p in pairs))
    b = torch.zeros_like(a)
    assert bradley_terry_loss(a, b, p_a).item() == pytest.approx(bradley_terry_loss(b, a, 1 - p_a).item(), abs=1e-12)


def mean_score_after_training(centering: float) -> float:
    """Of a linear reward model whose bias starts at 3, on pairs whose features have a mean."""
    generator = torch.Generator().manual_seed(0)
    a, b = 0.5 + torch.randn(2, 64, 4, generator=generator, dtype=torch.float64)
    p_a = (a - b) @ exact(1.0, -0.5, 0.0, 0.25) > 0
    weights, bias = exact(0.0, 0.0, 0.0, 0.0).requires_grad_(), exact(3.0).requires_grad_()
    optimizer = torch.optim.SGD([weights, bias], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        score_a, score_b = a @ weights + bias, b @ weights + bias
        penalty = centering * centering_penalty(score_a, score_b)
        (bradley_terry_loss(score_a, score_b, p_a) + penalty).backward()
        optimizer.step()
    return torch.cat([a @ weights + bias, b @ weights + bias]).mean().item()


def test_centering_pulls_the_mean_score_to_zero_the_more_the_stronger_it_is() -> None:
    """R3."""
    offsets = [abs(mean_score_after_training(c)) for c in (0.0, 0.001, 0.01, 0.1)]
    assert offsets == sorted(offsets, reverse=True) and len(set(offsets)) == 4
    assert offsets[0] > 2.5  # Bradley-Terry alone never moves the level
    assert offsets[-1] < 0.05


@given(st.lists(st.tuples(differences, differences), min_size=1, max_size=6))
def test_the_centering_penalty_is_the_mean_squared_sum(pairs: list[tuple[float, float]]) -> None:
    """R3."""
    penalty = centering_penalty(exact(*(a for a, _ in pairs)), exact(*(b for _, b in pairs)))
    assert penalty.item() == pytest.approx(sum((a + b) ** 2 for a, b in pairs) / len(pairs), abs=1e-9)


def test_a_new_head_gives_scores_of_about_unit_variance() -> None:
    """R6."""
    assert [head_init_std(size) for size in (0, 3, 255)] == [1.0, 0.5, 0.0625]
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(1024, 512, generator=generator) * head_init_std(512)
    features = torch.randn(512, generator=generator)
    features = features / features.square().mean().sqrt()
    assert (weights @ features).std().item() == pytest.approx(1.0, abs=0.08)  # 3.5 s.e.


def test_scores_normalised_by_their_own_mean_and_std_have_mean_zero_and_std_one() -> None:
    """R7."""
    scores = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 7
    result = normalise(scores, scores.mean().item(), scores.std().item())
    assert result.mean().item() == pytest.approx(0, abs=1e-12)
    assert result.std().item() == pytest.approx(1, abs=1e-12)
    assert torch.equal(result.argsort(), scores.argsort())


@pytest.mark.parametrize(
    ("a", "b", "truth_a", "expected"),
    [(2, 1, True, 1.0), (1, 2, True, 0.0), (2, 1, False, 0.0), (1, 2, False, 1.0), (1, 1, True, 0.5),
     (2, 1, 0.9, 1.0), (2, 1, 0.1, 0.0), (2, 1, 0.5, 0.5), (1, 1, 0.5, 0.5)],
)  # fmt: skip
def test_a_pair_is_right_or_wrong_or_half(a: float, b: float, truth_a: float, expected: float) -> None:
    assert pair_accuracy(exact(a), exact(b), torch.tensor([truth_a])).tolist() == [expected]


@given(st.lists(st.tuples(differences, differences, st.booleans()), min_size=1, max_size=8))
def test_the_accuracy_of_a_pair_does_not_depend_on_its_order(
    pairs: list[tuple[float, float, bool]],
) -> None:
    a, b = exact(*(p[0] for p in pairs)), exact(*(p[1] for p in pairs))
    truth_a = torch.tensor([p[2] for p in pairs])
    right = pair_accuracy(a, b, truth_a)
    assert torch.equal(right, pair_accuracy(b, a, ~truth_a))
    assert torch.equal(1 - right, pair_accuracy(a, b, ~truth_a))


@given(masks)
def test_the_last_true_index_is_what_a_loop_finds(rows: list[list[bool]]) -> None:
    if not all(any(row) for row in rows):
        with pytest.raises(ValueError, match="no token"):
            last_true_index(torch.tensor(rows))
        return
    expected = [max(i for i, real in enumerate(row) if real) for row in rows]
    assert last_true_index(torch.tensor(rows)).tolist() == expected


@given(st.integers(0, 5), st.integers(0, 5))
def test_the_score_is_read_at_the_same_token_whatever_the_padding(left: int, right: int) -> None:
    """R4."""
    tokens = torch.tensor([11, 12, 13])
    padded = torch.nn.functional.pad(tokens, (left, right), value=13)  # the pad may be a real token (R5)
    mask = torch.nn.functional.pad(torch.ones(3, dtype=torch.bool), (left, right))
    assert last_true_index(mask[None]).item() == left + 2
    assert padded[last_true_index(mask[None])].item() == 13


def test_a_row_without_any_token_is_an_error() -> None:
    with pytest.raises(ValueError, match="no token"):
        last_true_index(torch.tensor([[True, False], [False, False]]))
