import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlm_rlaif.train.ppo_math import (
    entropy_of,
    explained_variance,
    gae,
    kl_estimate,
    logprobs_of,
    masked_mean,
    masked_var,
    masked_whiten,
    penalise_missing_eos,
    policy_loss,
    token_rewards,
    value_loss,
)

torch.set_num_threads(1)

NAN = math.nan
numbers = st.floats(-10, 10).map(lambda x: round(x, 4))
responses = st.lists(st.lists(numbers, min_size=1, max_size=7), min_size=1, max_size=5)
seeds = st.integers(0, 10_000)


def padded(rows: list[list[float]], filler: float = NAN, extra: int = 0) -> tuple[Tensor, Tensor]:
    """Ragged rows as (B, T) float64 and their mask."""
    width = max(map(len, rows)) + extra
    values = torch.tensor([row + [filler] * (width - len(row)) for row in rows], dtype=torch.float64)
    mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    return values, mask


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ragged_mask(seed: int, rows: int, width: int) -> Tensor:
    lengths = torch.randint(1, width + 1, (rows, 1), generator=torch.Generator().manual_seed(seed))
    return torch.arange(width) < lengths


def more_pads(x: Tensor, pads: int, filler: float = NAN) -> Tensor:
    """(B, T) -> (B, T + pads)."""
    return torch.nn.functional.pad(x, (0, pads), value=False if x.dtype == torch.bool else filler)


# --- log-probabilities and entropy


def test_the_log_probability_of_a_token_is_that_of_the_softmax() -> None:
    logits, ids = noise(0, 2, 3, 5), torch.tensor([[0, 4, 2], [1, 1, 3]])
    for b, t in itertools.product(range(2), range(3)):
        chances = [math.exp(x) for x in logits[b, t].tolist()]
        expected = math.log(chances[int(ids[b, t])] / sum(chances))
        assert logprobs_of(logits, ids)[b, t].item() == pytest.approx(expected, abs=1e-12)
        entropy = -sum(c / sum(chances) * math.log(c / sum(chances)) for c in chances)
        assert entropy_of(logits)[b, t].item() == pytest.approx(entropy, abs=1e-12)


def test_a_forbidden_token_has_no_entropy_and_no_gradient() -> None:
    """P12."""
    logits = torch.tensor([1.0, 2.0, -torch.inf], dtype=torch.float64, requires_grad=True)
    entropy = entropy_of(logits)
    assert entropy.item() == pytest.approx(entropy_of(logits[:2]).item(), abs=1e-12)
    entropy.backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and logits.grad[2] == 0


# --- masked statistics


@given(responses, st.integers(0, 3))
def test_masked_statistics_are_those_of_the_real_tokens_alone(rows: list[list[float]], extra: int) -> None:
    """P12."""
    x, mask = padded(rows, extra=extra)
    real = torch.tensor(list(itertools.chain(*rows)), dtype=torch.float64)
    assert masked_mean(x, mask).item() == pytest.approx(real.mean().item(), abs=1e-12)
    assert masked_var(x, mask).item() == pytest.approx(real.var(correction=0).item(), abs=1e-10)


@given(responses)
def test_whitened_real_tokens_have_mean_zero_and_variance_one(rows: list[list[float]]) -> None:
    """P5."""
    x, mask = padded(rows, extra=2)
    if masked_var(x, mask) < 0.01:
        return
    white = masked_whiten(x, mask)
    assert masked_mean(white, mask).item() == pytest.approx(0, abs=1e-9)
    assert masked_var(white, mask).item() == pytest.approx(1, abs=1e-5)
    assert (white[~mask] == 0).all()


@given(responses)
def test_whitening_rewards_without_a_shift_keeps_their_mean(rows: list[list[float]]) -> None:
    """P6."""
    x, mask = padded(rows, extra=2)
    if masked_var(x, mask) < 0.01:
        return
    white = masked_whiten(x, mask, shift_mean=False)
    assert masked_mean(white, mask).item() == pytest.approx(masked_mean(x, mask).item(), abs=1e-9)
    assert masked_var(white, mask).item() == pytest.approx(1, abs=1e-5)


def test_whitening_equal_numbers_gives_zeros_and_not_nan() -> None:
    """P5."""
    x, mask = padded([[2.0, 2.0], [2.0]])
    assert masked_whiten(x, mask).tolist() == [[0, 0], [0, 0]]


def test_a_mean_over_no_token_is_an_error() -> None:
    with pytest.raises(ValueError, match="no real token"):
        masked_mean(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool))


# --- rewards


@given(responses, seeds, st.floats(0, 2))
def test_the_rewards_of_a_response_sum_to_its_score_less_the_kl(
    rows: list[list[float]], seed: int, kl_coef: float
) -> None:
    """P1."""
    kl, mask = padded(rows, extra=2)
    score = noise(seed, len(rows))
    rewards = token_rewards(score, kl, mask, kl_coef)
    expected = [s - kl_coef * sum(row) for s, row in zip(score.tolist(), rows, strict=True)]
    assert rewards.sum(1).tolist() == pytest.approx(expected, abs=1e-9)
    assert (rewards[~mask] == 0).all()


def test_the_score_stands_on_the_last_real_token() -> None:
    """P1. A full row, a row that ended early, a row of one token."""
    _, mask = padded([[0.0] * 4, [0.0] * 2, [0.0]])
    rewards = token_rewards(torch.tensor([7.0, 8.0, 9.0]), torch.zeros(3, 4), mask, 0.1)
    assert rewards.tolist() == [[0, 0, 0, 7], [0, 8, 0, 0], [9, 0, 0, 0]]


def test_the_score_does_not_move_with_the_padding() -> None:
    """P1."""
    kl, mask = padded([[0.5, -0.5, 1.0], [2.0]])
    score = torch.tensor([1.0, -1.0])
    rewards = token_rewards(score, kl, mask, 0.1)
    wider = token_rewards(score, more_pads(kl, 5), more_pads(mask, 5), 0.1)
    assert torch.equal(wider, more_pads(rewards, 5, 0.0))


def test_a_response_without_a_token_is_an_error() -> None:
    """P1."""
    mask = torch.tensor([[True, True], [False, False]])
    with pytest.raises(ValueError, match="no token"):
        token_rewards(torch.ones(2), torch.zeros(2, 2), mask, 0.1)


def test_only_a_response_that_was_cut_off_pays_the_penalty() -> None:
    """P1, L10."""
    scores, ended = torch.tensor([-1.0, 2.0, 2.0]), torch.tensor([False, True, False])
    assert penalise_missing_eos(scores, ended, 1.5).tolist() == [-2.5, 2.0, 0.5]
    assert scores.tolist() == [-1.0, 2.0, 2.0]


# --- KL estimators, on a vocabulary of 50


@pytest.fixture(scope="module")
def policies() -> tuple[Tensor, Tensor]:
    """Logits (50,) of a policy and of a reference that is close to it."""
    logits = noise(0, 50)
    return logits, logits + 0.2 * noise(1, 50)


def exact_kl(logits: Tensor, reference: Tensor) -> Tensor:
    logprobs = logits.log_softmax(-1)
    return (logprobs.exp() * (logprobs - reference.log_softmax(-1))).sum()


def test_k1_and_k3_have_the_expectation_of_the_kl_and_k2_has_not(policies: tuple[Tensor, Tensor]) -> None:
    """P2. Summed over the vocabulary, so exactly."""
    logits, reference = policies
    p, log_p, log_q = logits.softmax(-1), logits.log_softmax(-1), reference.log_softmax(-1)
    kl = exact_kl(logits, reference).item()
    expected = {kind: (p * kl_estimate(log_p, log_q, kind)).sum().item() for kind in ("k1", "k2", "k3")}
    assert expected["k1"] == pytest.approx(kl, abs=1e-14)
    assert expected["k3"] == pytest.approx(kl, abs=1e-14)
    assert abs(expected["k2"] - kl) > 1e-4 * kl


def test_a_million_samples_estimate_the_kl_without_bias(policies: tuple[Tensor, Tensor]) -> None:
    """P2."""
    logits, reference = policies
    generator = torch.Generator().manual_seed(0)
    ids = logits.softmax(-1).multinomial(1_000_000, replacement=True, generator=generator)
    log_p, log_q = logits.log_softmax(-1)[ids], reference.log_softmax(-1)[ids]
    kl = exact_kl(logits, reference)
    spread = {}
    for kind in ("k1", "k3"):
        estimates = kl_estimate(log_p, log_q, kind)
        spread[kind] = estimates.std()
        assert abs(estimates.mean() - kl) / (spread[kind] / 1000) < 4
    assert spread["k3"] < spread["k1"] / 4
    assert (kl_estimate(log_p, log_q, "k1") < 0).any()


@given(numbers, numbers)
def test_k2_and_k3_are_never_negative(logprob: float, reference: float) -> None:
    """P2."""
    both = torch.tensor(logprob, dtype=torch.float64), torch.tensor(reference, dtype=torch.float64)
    difference = logprob - reference
    assert kl_estimate(*both, "k1").item() == pytest.approx(difference)
    assert kl_estimate(*both, "k2").item() == pytest.approx(difference**2 / 2)
    k3 = kl_estimate(*both, "k3").item()
    assert k3 >= 0 and k3 == pytest.approx(math.exp(-difference) - 1 + difference, abs=1e-9)


def test_in_a_loss_only_k2_has_the_gradient_of_the_kl(policies: tuple[Tensor, Tensor]) -> None:
    """P2. The expectation over the vocabulary of each sample's gradient."""
    logits, reference = policies

    def gradient(objective: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = logits.clone().requires_grad_()
        return torch.autograd.grad(objective(leaf), leaf)[0]

    log_q = reference.log_softmax(-1)
    wanted = gradient(lambda x: exact_kl(x, reference))
    found = {
        kind: gradient(lambda x, k=kind: (logits.softmax(-1) * kl_estimate(x.log_softmax(-1), log_q, k)).sum())
        for kind in ("k1", "k2", "k3")
    }
    assert torch.allclose(found["k2"], wanted, atol=1e-12)
    assert found["k1"].abs().max() < 1e-12  # the score function has expectation zero
    assert not torch.allclose(found["k3"], wanted, atol=1e-3)


# --- advantages


def slow_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """The definition, a double sum: A_t = sum_l (gamma lam)^l (r_{t+l} + gamma V_{t+l+1} - V_{t+l})."""
    end = len(rewards)
    following = [*values[1:], 0.0]
    return [
        sum((gamma * lam) ** (k - t) * (rewards[k] + gamma * following[k] - values[k]) for k in range(t, end))
        for t in range(end)
    ]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_advantages_are_those_of_the_double_sum(gamma: float, lam: float) -> None:
    """P3. Random ragged batches; pads hold NaN."""
    for seed in range(5):
        mask = ragged_mask(seed, rows=6, width=9)
        rewards, values = noise(seed, 2, 6, 9).masked_fill(~mask, NAN)
        advantages, returns = gae(rewards, values, mask, gamma, lam)
        for row, real in enumerate(mask):
            wanted = slow_gae(rewards[row, real].tolist(), values[row, real].tolist(), gamma, lam)
            assert advantages[row, real].tolist() == pytest.approx(wanted, abs=1e-12)
        assert torch.equal(returns[mask], (advantages + values)[mask])
        assert (advantages[~mask] == 0).all() and (returns[~mask] == 0).all()


@given(responses, seeds)
def test_with_lambda_and_gamma_one_the_return_is_the_sum_of_what_follows(rows: list[list[float]], seed: int) -> None:
    """P3, P4."""
    rewards, mask = padded(rows)
    values = noise(seed, *rewards.shape)
    advantages, returns = gae(rewards, values, mask, 1.0, 1.0)
    for b, row in enumerate(rows):
        ahead = [sum(row[t:]) for t in range(len(row))]
        assert returns[b, : len(row)].tolist() == pytest.approx(ahead, abs=1e-9)
        assert (returns - values)[b, : len(row)].tolist() == pytest.approx(
            advantages[b, : len(row)].tolist(), abs=1e-9
        )


@given(responses, seeds, st.integers(1, 6))
def test_pads_and_neighbours_never_change_an_advantage(rows: list[list[float]], seed: int, pads: int) -> None:
    """P3. Bit-equal with more pads, and alone without any."""
    rewards, mask = padded(rows)
    values = noise(seed, *rewards.shape)
    advantages, returns = gae(rewards, values, mask, 0.95, 0.9)
    wider = gae(more_pads(rewards, pads), more_pads(values, pads, 1e6), more_pads(mask, pads), 0.95, 0.9)
    assert torch.equal(wider[0], more_pads(advantages, pads, 0.0))
    assert torch.equal(wider[1], more_pads(returns, pads, 0.0))
    for b, row in enumerate(rows):
        one = slice(b, b + 1), slice(len(row))
        assert torch.equal(gae(rewards[one], values[one], mask[one], 0.95, 0.9)[0], advantages[one])


def test_the_last_token_gets_the_score_even_far_before_the_end_of_the_tensor() -> None:
    """P3. With the score on the last of 896 positions, lambda .95 would leave 1e-18 of it (S11)."""
    mask = torch.arange(896)[None] < 90
    rewards = token_rewards(torch.ones(1), torch.zeros(1, 896), mask, 0.1)
    advantages, _ = gae(rewards, torch.zeros(1, 896), mask, 1.0, 0.95)
    assert advantages[0, 89] == 1
    assert advantages[0, 0].item() == pytest.approx(0.95**89, rel=1e-4)


def test_returns_are_taken_before_the_advantages_are_whitened() -> None:
    """P4. They stay in the units of the rewards."""
    mask = ragged_mask(0, rows=6, width=9)
    rewards, values = noise(1, 2, 6, 9)
    advantages, returns = gae(rewards, values, mask, 0.95, 0.9)
    assert torch.equal(returns[mask], (advantages + values)[mask])
    assert not torch.allclose(returns[mask], (masked_whiten(advantages, mask) + values)[mask], atol=0.1)
    _, tenfold = gae(10 * rewards, 10 * values, mask, 0.95, 0.9)
    assert torch.allclose(tenfold, 10 * returns, atol=1e-12)


# --- policy loss


def loss_of_ratio(ratio: float, advantage: float, clip: float) -> tuple[float, float]:
    """Loss and its derivative by the log-probability: piecewise, as in figure 1 of the PPO paper."""
    if advantage >= 0 and ratio > 1 + clip:
        return -advantage * (1 + clip), 0.0
    if advantage < 0 and ratio < 1 - clip:
        return -advantage * (1 - clip), 0.0
    return -advantage * ratio, -advantage * ratio


@pytest.mark.parametrize("advantage", [-2.0, -0.5, 0.5, 2.0])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.79, 0.81, 0.999, 1.0, 1.001, 1.19, 1.21, 2.0, 10.0])
def test_the_policy_loss_and_its_gradient_are_piecewise_as_in_the_paper(ratio: float, advantage: float) -> None:
    """P7. The gradient is exactly zero where the clip binds, and nowhere else."""
    old = torch.full((1, 1), -1.25, dtype=torch.float64)
    new = (old + math.log(ratio)).requires_grad_()
    result = policy_loss(new, old, torch.full_like(old, advantage), torch.ones(1, 1, dtype=torch.bool), 0.2)
    result.loss.backward()
    loss, slope = loss_of_ratio(ratio, advantage, 0.2)
    assert new.grad is not None
    assert result.loss.item() == pytest.approx(loss, abs=1e-12)
    assert new.grad.item() == pytest.approx(slope, abs=1e-12)
    assert (new.grad.item() == 0) == (slope == 0)
    assert result.ratio_max_deviation == pytest.approx(abs(ratio - 1), abs=1e-12)
    assert result.clip_fraction == (abs(ratio - 1) > 0.2)


def test_the_first_step_has_ratio_one_and_the_gradient_of_the_policy_gradient() -> None:
    """P7, L1."""
    mask, advantages = ragged_mask(0, 4, 6), noise(1, 4, 6)
    logprobs = noise(2, 4, 6).requires_grad_()
    result = policy_loss(logprobs, logprobs.detach(), advantages, mask, 0.2)
    result.loss.backward()
    assert (result.approx_kl, result.clip_fraction, result.ratio_max_deviation) == (0, 0, 0)
    assert logprobs.grad is not None
    assert torch.allclose(logprobs.grad, -advantages * mask / mask.sum(), atol=1e-14)


def test_the_approximate_kl_is_k3_of_the_old_policy_against_the_new_one() -> None:
    """P12."""
    mask, old = ragged_mask(0, 4, 6), noise(1, 4, 6)
    new = old + 0.2 * noise(2, 4, 6)
    result = policy_loss(new, old, torch.ones(4, 6), mask, 0.2)
    assert result.approx_kl == pytest.approx(masked_mean(kl_estimate(old, new, "k3"), mask).item())
    ratios = (new - old)[mask].exp()
    assert result.clip_fraction == pytest.approx(((ratios - 1).abs() > 0.2).double().mean().item())
    assert 0 < result.clip_fraction < 1


# --- value loss


@pytest.mark.parametrize(
    ("value", "returned", "loss", "slope", "clipped"),
    [
        (0.6, 1.0, 0.08, -0.4, 0.0),  # inside the range
        (0.9, 1.0, 0.045, 0.0, 1.0),  # moved too far towards the return: the value 0.7 counts
        (0.9, 0.0, 0.405, 0.9, 0.0),  # moved too far away from it: the plain error is worse
        (0.1, 0.0, 0.045, 0.0, 1.0),  # the same below: the value 0.3 counts
        (0.1, 1.0, 0.405, -0.9, 0.0),
    ],
)
def test_values_are_clipped_around_the_old_ones(
    value: float, returned: float, loss: float, slope: float, clipped: float
) -> None:
    """P8. The old value is 0.5 and the clip 0.2."""
    values = torch.full((1, 1), value, dtype=torch.float64).requires_grad_()
    old, returns = torch.full_like(values, 0.5), torch.full_like(values, returned)
    result = value_loss(values, old, returns, torch.ones(1, 1, dtype=torch.bool), 0.2)
    result.loss.backward()
    assert values.grad is not None
    assert result.loss.item() == pytest.approx(loss, abs=1e-12)
    assert values.grad.item() == pytest.approx(slope, abs=1e-12)
    assert result.clip_fraction == clipped


def test_rounding_clips_no_value() -> None:
    """P8. old + (new - old) is not new in float32: inside the range nothing may count as clipped."""
    new, old = (0.1 * noise(0, 2, 40, 50).clamp(-0.9, 0.9)).float()
    assert (old + (new - old) != new).any()
    result = value_loss(new, old, noise(2, 40, 50).float(), torch.ones(40, 50, dtype=torch.bool), 0.2)
    assert result.clip_fraction == 0


@given(seeds, st.sampled_from([0.1, 3.0, 10.0]))
def test_the_value_clip_is_in_units_of_the_reward(seed: int, scale: float) -> None:
    """P8. Rewards ten times as large need a clip ten times as wide, and then nothing else changes."""
    mask, (values, old, returns) = ragged_mask(seed, 3, 5), noise(seed, 3, 3, 5)
    result = value_loss(values, old, returns, mask, 0.2)
    scaled = value_loss(scale * values, scale * old, scale * returns, mask, scale * 0.2)
    assert scaled.loss.item() == pytest.approx(scale**2 * result.loss.item())
    assert scaled.clip_fraction == result.clip_fraction


def variance_explained_by_a_critic(reward_scale: float, clip: float) -> float:
    """A linear critic learns fixed returns in 5 rollouts of 20 steps."""
    features, mask = noise(0, 32, 8, 4), ragged_mask(1, 32, 8)
    returns = reward_scale * (features @ torch.tensor([0.4, -0.3, 0.2, 0.1], dtype=torch.float64))
    weights = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=0.02)
    for _ in range(5):
        old_values = (features @ weights).detach()
        for _ in range(20):
            optimizer.zero_grad()
            value_loss(features @ weights, old_values, returns, mask, clip).loss.backward()
            optimizer.step()
    return explained_variance((features @ weights).detach(), returns, mask)


def test_a_critic_cannot_follow_tenfold_rewards_within_the_same_clip() -> None:
    """P8. The regression of S12: a wider clip repairs what the factor ten broke."""
    ours = variance_explained_by_a_critic(reward_scale=1.0, clip=0.2)
    assert ours > 0.3
    assert variance_explained_by_a_critic(reward_scale=10.0, clip=0.2) < ours - 0.2
    assert variance_explained_by_a_critic(reward_scale=10.0, clip=2.0) == pytest.approx(ours)


# --- loss aggregation


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from([[8], [1] * 8, [4, 4], [5, 1, 2], [3, 3, 2], "packed"]))
def test_micro_batches_add_up_to_the_gradient_of_the_whole_batch(seed: int, sizes: list[int] | str) -> None:
    """P9. One batch of 8, 8 of one, uneven ones, or all tokens packed into one row."""
    hidden, ids = noise(seed, 8, 6, 3), torch.arange(48).reshape(8, 6) % 5
    mask = ragged_mask(seed, 8, 6)
    head, critic = noise(seed + 1, 3, 5), noise(seed + 2, 3)
    old, old_values, advantages, returns = noise(seed + 3, 4, 8, 6) * 0.3
    old = old + logprobs_of(hidden @ head, ids)

    def gradients(parts: list[Callable[[Tensor], Tensor]], denominator: Tensor | None) -> list[Tensor]:
        leaves = head.clone().requires_grad_(), critic.clone().requires_grad_()
        for cut in parts:
            logprobs = logprobs_of(cut(hidden) @ leaves[0], cut(ids))
            policy_loss(logprobs, cut(old), cut(advantages), cut(mask), 0.2, denominator=denominator).loss.backward()
            value_loss(
                cut(hidden) @ leaves[1], cut(old_values), cut(returns), cut(mask), 0.2,
                denominator=denominator,
            ).loss.backward()  # fmt: skip
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    def rows(start: int, size: int) -> Callable[[Tensor], Tensor]:
        return lambda x: x[start : start + size]

    if isinstance(sizes, str):
        parts: list[Callable[[Tensor], Tensor]] = [lambda x: x[mask][None]]
    else:
        parts = [rows(sum(sizes[:i]), size) for i, size in enumerate(sizes)]
    whole = gradients([lambda x: x], None)  # the default: the number of real tokens
    split = gradients(parts, mask.sum())
    assert len(whole) == len(split) == 2
    for one, other in zip(whole, split, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_a_mean_of_the_means_of_micro_batches_would_be_another_loss() -> None:
    """P9. Why the denominator is an argument."""
    mask = torch.arange(4) < torch.tensor([[4], [1]])
    old, advantages = torch.zeros(2, 4), torch.tensor([[1.0] * 4, [-1.0] * 4])
    whole = policy_loss(old, old, advantages, mask, 0.2).loss.item()
    halves = [policy_loss(old[i], old[i], advantages[i], mask[i], 0.2).loss.item() for i in range(2)]
    shares = [policy_loss(old[i], old[i], advantages[i], mask[i], 0.2, denominator=5).loss.item() for i in range(2)]
    assert whole == pytest.approx(-0.6) and sum(shares) == pytest.approx(whole)
    assert sum(halves) / 2 == 0


# --- padding


@given(seeds, st.integers(1, 5), st.sampled_from([0.0, 50.0, NAN, math.inf]))
def test_what_stands_on_a_pad_changes_no_metric(seed: int, pads: int, filler: float) -> None:
    """P12."""
    mask = ragged_mask(seed, 4, 6)
    new, old, advantages, values, old_values, returns = noise(seed, 6, 4, 6)
    logits = noise(seed, 4, 6, 5)

    def garbage(x: Tensor) -> Tensor:
        return more_pads(x.masked_fill(~mask, filler), pads, filler)

    def metrics(change: Callable[[Tensor], Tensor], wide: Tensor) -> list[float]:
        policy = policy_loss(change(new), change(old), change(advantages), wide, 0.2)
        value = value_loss(change(values), change(old_values), change(returns), wide, 0.2)
        return [
            policy.loss.item(), policy.approx_kl, policy.clip_fraction, policy.ratio_max_deviation,
            value.loss.item(), value.clip_fraction,
            masked_mean(change(entropy_of(logits)), wide).item(),
            explained_variance(change(values), change(returns), wide),
        ]  # fmt: skip

    plain = metrics(lambda x: x, mask)
    assert metrics(garbage, more_pads(mask, pads)) == pytest.approx(plain, rel=1e-12, abs=1e-14)


def test_what_stands_on_a_pad_changes_no_gradient() -> None:
    """P12. Not even NaN, which zero times does not remove."""
    mask = ragged_mask(0, 4, 6)
    assert not mask.all()
    bad = [x.masked_fill(~mask, NAN) for x in noise(1, 6, 4, 6)]
    new, values = bad[0].requires_grad_(), bad[3].requires_grad_()
    policy_loss(new, bad[1], bad[2], mask, 0.2).loss.backward()
    value_loss(values, bad[4], bad[5], mask, 0.2).loss.backward()
    for leaf in (new, values):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all() and (leaf.grad[~mask] == 0).all() and (leaf.grad[mask] != 0).any()


# --- explained variance


def test_a_perfect_critic_explains_everything_and_a_constant_one_nothing() -> None:
    """P10."""
    mask, returns = ragged_mask(0, 4, 6), noise(1, 4, 6)
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(returns - 3, returns, mask) == pytest.approx(1)  # an offset has no variance
    assert explained_variance(torch.full_like(returns, 3.0), returns, mask) == pytest.approx(0, abs=1e-12)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3)


def test_returns_that_never_vary_leave_nothing_to_explain() -> None:
    """P10. A number all the same: NaN is not JSON."""
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert explained_variance(noise(0, 2, 3), torch.full((2, 3), 0.1), mask) == 0
