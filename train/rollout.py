"""Rollouts: what the policy says now, with everything that PPO needs to know about it.

Log-probabilities are computed by a forward over the finished sequence, the same forward that training does, so
the first ratio is one, up to the rounding of another padding. Sampling's own log-probabilities are kept beside them
as a check (L2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vlm_rlaif.datagen import prompt
from vlm_rlaif.datagen.engines.decoding import Drawn, draw
from vlm_rlaif.datagen.engines.encode import Encoded, collate
from vlm_rlaif.train.data import Batch, PromptCache, join
from vlm_rlaif.train.ppo_math import kl_estimate, logprobs_of, penalise_missing_eos, token_rewards
from vlm_rlaif.train.reward import RewardModel, Scored
from vlm_rlaif.train.vlm import Backbone
from vlm_rlaif.warehouse.config import PPO

POLICY, VALUE = "policy", "value"


@dataclass(frozen=True, slots=True)
class Rollout:
    """B responses. Response tensors are (B, R), padded on the right; `mask` True = a real response token."""

    rows: list[Scored]
    """Question, video and what was said."""
    tokens: list[list[int]]
    prompts: list[Encoded]
    mask: torch.Tensor
    logprobs: torch.Tensor
    """Of the policy that sampled."""
    reference_logprobs: torch.Tensor
    values: torch.Tensor
    rewards: torch.Tensor
    """-KL cost per token, the score added at the last real token."""
    kl: torch.Tensor
    scores: torch.Tensor
    """(B,) normalised scores of the reward model, before any penalty."""
    ended: torch.Tensor
    """(B,) bool: the response ended by itself."""
    sampling_gap: float
    """Largest difference between sampling's and training's log-probabilities."""


def by_row(flat: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(N,) numbers of the response tokens of a batch to (B, R), padded with zeros on the right.

    `target` is (B, T) bool; N = its sum.
    """
    lengths = target.sum(1).tolist()
    return nn.utils.rnn.pad_sequence(list(flat.split(lengths)), batch_first=True)


def concatenate(parts: Sequence[Rollout]) -> Rollout:
    """Rollouts of several batches as one, padded to the longest response."""
    width = max(part.mask.shape[1] for part in parts)

    def padded(name: str) -> torch.Tensor:
        tensors = [getattr(part, name) for part in parts]
        return torch.cat([nn.functional.pad(t, (0, width - t.shape[1])) if t.ndim == 2 else t for t in tensors])

    def chained(name: str) -> list[Any]:
        return [item for part in parts for item in getattr(part, name)]

    return Rollout(
        rows=chained("rows"), tokens=chained("tokens"), prompts=chained("prompts"),
        **{name: padded(name) for name in (
            "mask", "logprobs", "reference_logprobs", "values", "rewards", "kl", "scores", "ended",
        )},
        sampling_gap=max(part.sampling_gap for part in parts),
    )  # fmt: skip


class Sampler:
    """Draws rollouts from a backbone that carries the adapters policy, value and reward.

    The reference is the base without an adapter: the policy as it started.
    """

    def __init__(self, backbone: Backbone, reward: RewardModel, value_head: nn.Linear, settings: PPO) -> None:
        self.backbone, self.reward, self.value_head = backbone, reward, value_head
        self.settings = settings
        self.prompts = PromptCache(backbone.encoder, settings.frames)
        self.forbidden = backbone.encoder.visual_ids()

    def sample(self, rows: Sequence[Scored], seeds: Sequence[int]) -> Rollout:
        """One response per row; `response` of the given rows is ignored. Never more than `micro_batch` at once."""
        size = self.settings.micro_batch
        parts = [self._sample(rows[i : i + size], seeds[i : i + size]) for i in range(0, len(rows), size)]
        return parts[0] if len(parts) == 1 else concatenate(parts)

    def _sample(self, rows: Sequence[Scored], seeds: Sequence[int]) -> Rollout:
        template = prompt.load(self.settings.prompt)
        encoder = self.backbone.encoder
        prompts = self.prompts.get([(r.path, template.render(question=r.question)) for r in rows])
        inputs = collate(prompts, encoder.pad_id, side="left", device=self.backbone.device)
        with self.backbone.activate(POLICY):
            drawn = draw(
                self.backbone.base, inputs, self.settings.sampling, seeds,
                eos_ids=[self.backbone.eos_id], pad_id=encoder.pad_id, forbidden=self.forbidden,
            )  # fmt: skip
        texts = encoder.tokenizer.batch_decode(drawn.tokens, skip_special_tokens=True)
        said = [
            Scored(row.path, row.question, text.strip(), row.context) for row, text in zip(rows, texts, strict=True)
        ]
        return self._judge(said, drawn, prompts)

    @torch.no_grad()
    def _judge(self, rows: list[Scored], drawn: Drawn, prompts: list[Encoded]) -> Rollout:
        tokens = drawn.tokens
        batch = join(prompts, tokens, self.backbone.encoder.pad_id, self.backbone.device)
        with self.backbone.activate(POLICY):
            logprobs = self.logprobs(batch)
        with self.backbone.activate(None):
            reference = self.logprobs(batch)
        with self.backbone.activate(VALUE):
            values = self.values(rows, tokens)
        scores = self.reward.score_batch(self.reward.batch(rows, tokens))
        mask = by_row(torch.ones_like(batch.target[batch.target], dtype=torch.float), batch.target) > 0
        kl = kl_estimate(logprobs, reference, "k1") * mask
        ended = torch.tensor(drawn.ended, device=scores.device)
        final = penalise_missing_eos(scores, ended, self.settings.missing_eos_penalty)
        told = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in drawn.logprobs], batch_first=True)
        return Rollout(
            rows, tokens, prompts, mask, logprobs, reference, values,
            token_rewards(final, kl, mask, self.settings.kl_coef), kl, scores, ended,
            (told.to(logprobs.device) - logprobs).abs()[mask].max().item(),
        )  # fmt: skip

    def logprobs(self, batch: Batch) -> torch.Tensor:
        """(B, R) log-probabilities of the response tokens under the active adapter."""
        logits = self.backbone.response_logits(batch, self.forbidden)
        ids = batch.input_ids[:, 1:][batch.target[:, 1:]]
        return by_row(logprobs_of(logits, ids), batch.target)

    def values(self, rows: Sequence[Scored], tokens: Sequence[list[int]]) -> torch.Tensor:
        """(B, R) values, one per response token, read where the token is about to be chosen.

        The critic reads the reward model's own sequence, so it may know more than the policy. Call with the
        adapter `value` active.
        """
        batch = join(
            self.reward.prompts.get([(r.path, self.reward.rendered(r)) for r in rows]),
            tokens, self.backbone.encoder.pad_id, self.backbone.device,
        )  # fmt: skip
        states = self.backbone.hidden(batch)[:, :-1][batch.target[:, 1:]]
        return by_row(self.value_head(states.float())[:, 0], batch.target)
