"""Sampling with a seed per row, inside transformers' own `generate`.

`generate` draws from one global random state, so a row's answer would depend on its neighbours. Here every row
brings its own: adding Gumbel noise to log-probabilities and taking the largest is an exact draw, so a greedy
`generate` with noisy scores samples, and a seed gives the same answer in any batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from vlm_rlaif.warehouse.config import Sampling


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a batch of prompts was continued with."""

    tokens: list[list[int]]
    """Per row, up to and including the end-of-sequence token where there is one."""
    logprobs: list[list[float]]
    """Per token, under the model at temperature 1."""
    ended: list[bool]
    """True: the row ended by itself; False: the limit cut it off."""


class SeededDraw:
    """A logits processor: temperature, top-p, forbidden tokens and one random stream per row.

    Remembers the log-probability of every token that it makes the largest: the scores of all steps together would
    be (B, R, V), gigabytes for a vocabulary of a real size.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int], forbidden: Sequence[int]) -> None:
        self.sampling = sampling
        self.forbidden = list(forbidden)
        self.streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.logprobs: list[torch.Tensor] = []
        """Per step: (B,) at temperature 1, without the forbidden tokens."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores (B, V) of the next token -> the same with noise, so that argmax is a draw."""
        scores = scores.float()
        scores[:, self.forbidden] = -torch.inf
        noisy = self._noisy(scores)
        chosen = noisy.argmax(-1, keepdim=True)
        self.logprobs.append(scores.log_softmax(-1).gather(-1, chosen)[:, 0])
        return noisy

    def _noisy(self, scores: torch.Tensor) -> torch.Tensor:
        if self.sampling.temperature == 0:
            return scores
        logprobs = (scores / self.sampling.temperature).log_softmax(-1)
        if self.sampling.top_p < 1:
            logprobs = keep_top_p(logprobs, self.sampling.top_p)
        waits = [torch.empty(scores.shape[-1]).exponential_(generator=g) for g in self.streams]
        noise = -torch.stack(waits).clamp_min(1e-20).log()  # minus the log of Exp(1) is Gumbel
        return logprobs + noise.to(scores.device)


def keep_top_p(logprobs: torch.Tensor, top_p: float) -> torch.Tensor:
    """(B, V): the fewest tokens whose probabilities reach `top_p` stay, the others become impossible."""
    ordered, index = logprobs.sort(dim=-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    ordered = ordered.masked_fill(before >= top_p, -torch.inf)
    return torch.empty_like(logprobs).scatter(-1, index, ordered)


@contextmanager
def _without_habits(model: Any, eos_ids: Sequence[int], pad_id: int) -> Iterator[None]:
    """Hide the checkpoint's own generation settings, which `generate` would mix in (a repetition penalty, say)."""
    kept = model.generation_config
    model.generation_config = type(kept)(eos_token_id=list(eos_ids), pad_token_id=pad_id)
    try:
        yield
    finally:
        model.generation_config = kept


@torch.no_grad()
def draw(
    model: Any, inputs: dict[str, torch.Tensor], sampling: Sampling, seeds: Sequence[int],
    *, eos_ids: Sequence[int], pad_id: int, forbidden: Sequence[int],
) -> Drawn:  # fmt: skip
    """Continue left-padded prompts (B, P). Log-probabilities leave the forbidden tokens out as well."""
    noisy = SeededDraw(sampling, seeds, forbidden)
    with _without_habits(model, eos_ids, pad_id):
        made = model.generate(
            **inputs, do_sample=False, max_new_tokens=sampling.max_new_tokens, logits_processor=[noisy],
            use_cache=True,
        )  # fmt: skip
    new = made[:, inputs["input_ids"].shape[1] :]
    logprobs = torch.stack(noisy.logprobs, dim=1)
    tokens, kept, ended = [], [], []
    for row, values in zip(new.tolist(), logprobs.tolist(), strict=True):
        stop = next((i for i, token in enumerate(row) if token in eos_ids), None)
        length = len(row) if stop is None else stop + 1
        tokens.append(row[:length])
        kept.append(values[:length])
        ended.append(stop is not None)
    return Drawn(tokens, kept, ended)
