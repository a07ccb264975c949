"""The reward model: LoRA and a scalar head over the policy's start, Bradley-Terry on soft labels.

A sequence is (video, question, optional context, response, end-of-sequence) and its score is read at that last
token, whatever the padding. The split belongs to the videos. After training the score is normalised to mean 0 and
standard deviation 1 over the training responses, and gain and bias stay with the checkpoint.

    model = RewardModel.load(folder)
    model.score(rows)
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlm_rlaif.datagen import prompt
from vlm_rlaif.train import checkpoint
from vlm_rlaif.train.data import Batch, PromptCache, join
from vlm_rlaif.train.jobs import identity
from vlm_rlaif.train.reward_math import (
    bradley_terry_loss,
    centering_penalty,
    last_true_index,
    normalise,
    pair_accuracy,
)
from vlm_rlaif.train.vlm import (
    Backbone,
    load_adapter,
    load_head,
    read_card,
    save_adapter,
    scalar_head,
)
from vlm_rlaif.warehouse.config import Rewarding, build
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.progress import Bar
from vlm_rlaif.warehouse.records import row_id

ADAPTER_NAME = "reward"


@dataclass(frozen=True, slots=True)
class Scored:
    """One thing to score: a response to a question about a video."""

    path: Path
    question: str
    response: str
    context: str | None = None


@dataclass(frozen=True, slots=True)
class LabeledPair:
    """Two responses and how probable it is that the first is better."""

    pair_id: str
    a: Scored
    b: Scored
    p_a: float


class RewardModel:
    """Scores responses. The head reads the hidden state of the last token of the response."""

    def __init__(
        self, backbone: Backbone, head: nn.Linear, settings: Rewarding,
        mean: float = 0.0, std: float = 1.0,
    ) -> None:  # fmt: skip
        self.backbone, self.head, self.settings = backbone, head.to(backbone.device), settings
        self.mean, self.std = mean, std
        self.prompts = PromptCache(backbone.encoder, settings.frames if settings.use_video else None)

    def look(self, *, backwards: bool) -> None:
        """Show videos forwards, or backwards to probe whether the scores depend on the order of time."""
        self.prompts = PromptCache(self.backbone.encoder, self.prompts.frames, backwards=backwards)

    @classmethod
    def load(cls, folder: Path, backbone: Backbone | None = None) -> RewardModel:
        """A trained reward model; on a given backbone it becomes one of its adapters."""
        card = read_card(folder)
        backbone = backbone or Backbone(card["base"])
        load_adapter(folder, backbone, ADAPTER_NAME)
        settings = build(Rewarding, card["settings"], str(folder))
        head = load_head(folder, backbone.hidden_size)
        return cls(backbone, head, settings, card["mean"], card["std"])

    def save(self, folder: Path) -> None:
        card = {
            "kind": "reward", "settings": asdict(self.settings), "lora": asdict(self.settings.lora),
            "mean": self.mean, "std": self.std,
        }  # fmt: skip
        save_adapter(folder, self.backbone, ADAPTER_NAME, self.head, card)

    def fingerprint(self) -> str:
        """Hash of everything that decides its scores."""
        digest = hashlib.sha256()
        tensors = {**self.backbone.adapter_weights(ADAPTER_NAME), **self.head.state_dict()}
        for name, tensor in sorted(tensors.items()):
            digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
        return row_id(digest.hexdigest(), *identity(self.settings), self.backbone.revision, self.mean, self.std)

    def rendered(self, row: Scored) -> prompt.Rendered:
        """The prompt of a row, with the narrative when this model reads one."""
        if self.settings.context_prompt is None:
            return prompt.load(self.settings.prompt).render(question=row.question)
        if row.context is None:
            raise UserError(
                f"This reward model reads the narrative of a video, and {row.path} has none here.",
                "Learn from labels made with context, and run: vlm-rlaif datagen context W --recipe R",
            )
        return prompt.load(self.settings.context_prompt).render(question=row.question, context=row.context)

    def batch(self, rows: Sequence[Scored], tokens: Sequence[list[int]] | None = None) -> Batch:
        """Sequences that end in the end-of-sequence token, with given response tokens or the text's own."""
        eos = self.backbone.eos_id
        if tokens is None:
            texts = [row.response for row in rows]
            encode = self.backbone.encoder.tokenizer
            tokens = encode(texts, add_special_tokens=False)["input_ids"]
        ended = [ids if ids and ids[-1] == eos else [*ids, eos] for ids in tokens]
        prompts = self.prompts.get([(row.path, self.rendered(row)) for row in rows])
        return join(prompts, ended, self.backbone.encoder.pad_id, self.backbone.device)

    def raw_scores(self, batch: Batch) -> torch.Tensor:
        """(B,) before normalisation. Call inside `backbone.activate("reward")`."""
        hidden = self.backbone.hidden(batch)
        last = last_true_index(batch.target)
        scores: torch.Tensor = self.head(hidden[torch.arange(len(last)), last].float())[:, 0]
        return scores

    @torch.no_grad()
    def score_batch(self, batch: Batch) -> torch.Tensor:
        """(B,) normalised scores."""
        with self.backbone.activate(ADAPTER_NAME):
            return normalise(self.raw_scores(batch), self.mean, self.std)

    def score(self, rows: Sequence[Scored]) -> list[float]:
        """Normalised scores of any number of rows."""
        scores: list[float] = []
        size = 2 * self.settings.micro_batch
        for start in range(0, len(rows), size):
            scores += self.score_batch(self.batch(rows[start : start + size])).tolist()
        return scores


class RewardTrainer:
    """Trains a reward model on labeled pairs and resumes from its last checkpoint."""

    def __init__(self, settings: Rewarding, pairs: Sequence[LabeledPair], folder: Path) -> None:
        if not pairs:
            raise UserError("There are no preferences to learn from.", "vlm-rlaif feedback label W --recipe R")
        torch.manual_seed(settings.seed)
        backbone = Backbone(settings.model)
        backbone.add_adapter(ADAPTER_NAME, settings.lora)
        self.model = RewardModel(backbone, scalar_head(backbone.hidden_size), settings)
        self.settings, self.pairs, self.folder = settings, list(pairs), folder
        asked = [(p.pair_id, p.p_a) for p in self.pairs]
        self._fingerprint = row_id("reward", *identity(settings), backbone.revision, asked)

    @property
    def steps(self) -> int:
        return self.settings.epochs * -(-len(self.pairs) // self.settings.batch_pairs)

    def train(self, on_log: Callable[[int, dict[str, float]], None] = lambda *_: None) -> RewardModel:
        """Train, normalise, save; returns the model."""
        adapter = self.model.backbone.parameters_of(ADAPTER_NAME)
        learned = [*adapter, *self.model.head.parameters()]
        optimizer = torch.optim.AdamW(learned, lr=self.settings.learning_rate, weight_decay=0.0)
        step, history = self._resume(optimizer)
        with Bar("reward", self.steps) as bar:
            bar.advance(step)
            for number, pairs in enumerate(self._batches()):
                if number < step:
                    continue
                self._set_rate(optimizer, number)
                metrics = self._step(optimizer, pairs)
                step = number + 1
                history.append({"step": float(step), **metrics})
                on_log(step, metrics)
                bar.advance(1, f"accuracy {metrics['reward/accuracy']:.2f}")
                if step % 50 == 0:
                    self._save(step, optimizer, history)
        self.model = self.calibrate(self.model)
        self.model.save(self.folder)
        return self.model

    def _batches(self) -> Iterator[list[LabeledPair]]:
        for epoch in range(self.settings.epochs):
            order = list(self.pairs)
            random.Random(f"reward/{self.settings.seed}/{epoch}").shuffle(order)
            for start in range(0, len(order), self.settings.batch_pairs):
                yield order[start : start + self.settings.batch_pairs]

    def _set_rate(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Warm-up over 5 % of the steps, then linear decay."""
        warm = max(1, self.steps // 20)
        scale = min(1.0, (step + 1) / warm, (self.steps - step) / max(1, self.steps - warm))
        for group in optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * scale

    def _step(self, optimizer: torch.optim.Optimizer, pairs: list[LabeledPair]) -> dict[str, float]:
        """One optimizer step, its gradient accumulated over micro-batches."""
        seen = []
        for start in range(0, len(pairs), self.settings.micro_batch):
            part = pairs[start : start + self.settings.micro_batch]
            seen.append((len(part) / len(pairs), self._backward(part, len(part) / len(pairs))))
        norm = nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        means = {name: sum(share * metrics[name] for share, metrics in seen) for name in seen[0][1]}
        return {**means, "reward/grad_norm": float(norm)}

    def _backward(self, pairs: list[LabeledPair], share: float) -> dict[str, float]:
        """Add the gradient of some pairs, which are this share of the batch."""
        model = self.model
        p_a = torch.tensor([pair.p_a for pair in pairs], device=model.backbone.device)
        batch = model.batch([pair.a for pair in pairs] + [pair.b for pair in pairs])
        with model.backbone.activate(ADAPTER_NAME, learn=True):
            a, b = model.raw_scores(batch).split(len(pairs))
            loss = bradley_terry_loss(a, b, p_a)
            (share * (loss + self.settings.centering * centering_penalty(a, b))).backward()
        return {
            "loss/reward": loss.item(),
            "reward/accuracy": pair_accuracy(a, b, p_a).mean().item(),
            "reward/mean": torch.cat([a, b]).mean().item(),
        }

    def calibrate(self, model: RewardModel, most: int = 512) -> RewardModel:
        """Gain and bias so that training responses score with mean 0 and standard deviation 1."""
        rows = [pair.a for pair in self.pairs[:most]] + [pair.b for pair in self.pairs[:most]]
        scores = torch.tensor(model.score(rows))
        model.mean, model.std = scores.mean().item(), max(scores.std().item(), 1e-6)
        return model

    def _save(self, step: int, optimizer: Any, history: list[dict[str, float]]) -> None:
        weights = self.model.backbone.adapter_weights(ADAPTER_NAME)
        weights |= {f"head.{k}": v for k, v in self.model.head.state_dict().items()}
        state = checkpoint.State(step, weights, optimizer.state_dict(), history, self._fingerprint)
        checkpoint.save(self.folder / "training", state)

    def _resume(self, optimizer: torch.optim.Optimizer) -> tuple[int, list[dict[str, float]]]:
        kept = checkpoint.load_latest(self.folder / "training", self._fingerprint)
        if kept is None:
            return 0, []
        head = {k.removeprefix("head."): v for k, v in kept.weights.items() if k.startswith("head.")}
        adapter = {k: v for k, v in kept.weights.items() if not k.startswith("head.")}
        self.model.head.load_state_dict(head)
        self.model.backbone.load_adapter_weights(ADAPTER_NAME, adapter)
        optimizer.load_state_dict(kept.optimizer)
        return kept.step, kept.log_history


def pairs_from_rows(rows: Sequence[dict[str, Any]], path_of: Callable[[str], Path]) -> list[LabeledPair]:
    """Rows of `Warehouse.preferences` to labeled pairs."""
    return [
        LabeledPair(
            row["pair_id"],
            Scored(path_of(row["uri"]), row["question"], row["text_a"], row["context"]),
            Scored(path_of(row["uri"]), row["question"], row["text_b"], row["context"]),
            row["p_a"],
        )
        for row in rows
    ]  # fmt: skip
